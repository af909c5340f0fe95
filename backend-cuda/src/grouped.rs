//! Grouped calls: several products at once, from host memory and to it.
//!
//! Operands go up and are folded one by one, the products are a launch for each kernel that some of
//! them go by ([`ops::matmul`](crate::ops::matmul)), and the call waits once, at its end.

use std::sync::PoisonError;

use fp4_core::{Error, GroupedProduct, Packed, PackedView, Paths, PreparedWeight};

use crate::backend::Cuda;
use crate::build::arguments::{Outputs, Pointer, float_type};
use crate::operand::packed::CudaWeight;
use crate::operand::tensor::host_bytes_mut;
use crate::ops::matmul::{self, PATHS_BYTES, Product, Route, paths_of};
use crate::staging::{Member, Staging};

/// Whether two views are of the same memory.
fn same(a: PackedView<'_>, b: PackedView<'_>) -> bool {
    let parts =
        |view: PackedView<'_>| (view.shape(), view.codes().as_ptr(), view.scales().as_ptr());
    parts(a) == parts(b)
}

impl Cuda {
    /// Multiplies products that have been checked.
    pub(crate) fn multiply_grouped<B: Packed>(
        &self,
        products: &mut [GroupedProduct<'_, CudaWeight<B>>],
    ) -> Result<Paths, Error> {
        let _operation = self.gpu.enter()?;
        self.with_staging(|staging| {
            let Staging { members, paths, .. } = staging;
            while members.len() < products.len() {
                members.push(Member::new(&self.gpu)?);
            }
            let stream = &self.gpu.stream;
            paths.zero(stream, PATHS_BYTES * products.len())?;
            let (mut routes, mut operands) = (Vec::<Route>::new(), Vec::<usize>::new());
            let mut biases = Vec::new();
            for (i, product) in products.iter().enumerate() {
                let (a, b) = (product.a, product.b);
                let (of, shape) = (a.shape().expect_product(&b.shape())?, a.shape());
                let sizes = [shape.rows(), b.shape().rows(), b.operand.k_pad];
                let folded = b.operand.folded.ready();
                let route = matmul::route(self.kernel, &self.gpu, of, sizes, folded);
                let known = i > 0 && same(products[i - 1].a, a) && routes[i - 1] == route;
                operands.push(if known { operands[i - 1] } else { i });
                if !known {
                    // MXINT8 too, which nothing else folds before its product.
                    let fold = route == Route::MmaFolded
                        || (route == Route::Alone
                            && matmul::folds_activation(self.kernel, &self.gpu, shape));
                    members[i].operand.import(a, fold)?;
                }
                routes.push(route);
                let (epilogue, out) = (product.epilogue, product.out.as_ref());
                let bytes = shape.rows() * b.shape().rows() * out.float_type().bytes();
                members[i].output.reserve(stream, bytes)?;
                let row_scales = epilogue.row_scales.unwrap_or_default();
                members[i].row_scales.upload(stream, bytemuck::cast_slice(row_scales))?;
                biases.push(epilogue.bias.map(|bias| b.bias(bias)).transpose()?);
            }
            let queued: Vec<_> = (products.iter().enumerate())
                .map(|(i, product)| {
                    let (epilogue, member) = (product.epilogue, &members[i]);
                    let row_scales = epilogue.row_scales.map(|_| member.row_scales.pointer());
                    let outputs = Outputs {
                        out: member.output.pointer(),
                        row_scales: row_scales.unwrap_or(Pointer::NULL),
                        bias: biases[i].as_ref().map_or(Pointer::NULL, |bias| bias.pointer()),
                        alpha: epilogue.alpha,
                        out_type: float_type(product.out.as_ref().float_type()),
                    };
                    let (a, b) = (&members[operands[i]].operand, &product.b.operand);
                    let paths = paths.pointer().plus(PATHS_BYTES * i);
                    (Product { a, b, outputs, paths }, routes[i])
                })
                .collect();
            // The launches read it until they have run.
            let kept = matmul::grouped(self.kernel, &queued, &self.scratch)?;
            drop(queued);
            self.trim_scratch();
            for (product, member) in products.iter_mut().zip(&*members) {
                member.output.download(stream, host_bytes_mut(product.out.reborrow()))?;
            }
            let mut counters = vec![[0u8; PATHS_BYTES]; products.len()];
            paths.download(stream, counters.as_flattened_mut())?;
            self.gpu.synchronize()?;
            drop(kept);
            let mut all = Paths::default();
            for (product, counters) in products.iter_mut().zip(counters) {
                product.paths = paths_of(counters);
                all.merge(&product.paths);
            }
            self.host_paths.lock().unwrap_or_else(PoisonError::into_inner).merge(&all);
            Ok(all)
        })
    }
}
