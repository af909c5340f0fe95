//! Operands in device memory: a layer whose both halves run on one device makes no host round trip.
//!
//! Tensor in, tensor out, a forward is a few launches and nothing else: quantize (with the
//! transform fused) and row metadata, or where kernels on folded operands multiply, quantize and
//! fold in one pass and a launch for what outliers make; then matmul. It allocates nothing once the
//! buffers have grown, never waits for the device, and takes its decisions from data on the device,
//! so it can be captured in a CUDA graph, once it has run.

use fp4_core::{
    Buffer as What, Epilogue, Error, FloatSlice, FloatSliceMut, FloatType, Packed, PackedMut,
    PackedView, Paths, QuantCounts, QuantSpec, QuantizeQuery, Quantizer, Transform,
    backend::{Resident, Sink, Source},
    check_environment,
};

use crate::backend::{Cuda, expect_outputs, quant_counts};
use crate::build::arguments::{self, Outputs, Pointer};
use crate::operand::packed::{CudaOperand, CudaWeight};
use crate::operand::tensor::{CudaTensor, CudaTransform, host_bytes};
use crate::ops::matmul::{self, Product};
use crate::ops::quantize::{self, Quantization};
use crate::staging::Staging;

impl Resident for Cuda {
    type Tensor = CudaTensor;
    type Operand = CudaOperand;
    type Transform = CudaTransform;

    fn empty_tensor(&self) -> Result<CudaTensor, Error> {
        Ok(CudaTensor::new(&self.gpu))
    }

    fn empty_operand(&self) -> Result<CudaOperand, Error> {
        CudaOperand::new(&self.gpu)
    }

    fn scratch_bytes(&self) -> usize {
        Cuda::scratch_bytes(self)
    }

    fn release_scratch(&self) -> Result<(), Error> {
        Cuda::release_scratch(self)
    }

    fn operand_bytes(&self, operand: &CudaOperand) -> usize {
        operand.allocated_bytes()
    }

    fn upload(&self, x: FloatSlice<'_>, to: &mut CudaTensor) -> Result<(), Error> {
        self.own(&to.gpu)?;
        let _operation = self.gpu.enter()?;
        to.upload(x)?;
        // The caller may change its memory as soon as this returns.
        self.gpu.synchronize()
    }

    fn download(&self, from: &CudaTensor, out: FloatSliceMut<'_>) -> Result<(), Error> {
        self.own(&from.gpu)?;
        let _operation = self.gpu.enter()?;
        from.download(out)?;
        self.gpu.synchronize()
    }

    fn load_transform(&self, t: &Transform<'_>, x: FloatType) -> Result<CudaTransform, Error> {
        check_environment()?;
        let _operation = self.gpu.enter()?;
        let transform = CudaTransform::load(&self.gpu, t, x)?;
        self.gpu.synchronize()?;
        Ok(transform)
    }

    fn quantize_resident(
        &self,
        x: Source<'_, CudaTensor>,
        [rows, k]: [usize; 2],
        spec: &QuantSpec,
        transform: Option<&CudaTransform>,
        out: &mut CudaOperand,
        counts: Option<&mut QuantCounts>,
    ) -> Result<(), Error> {
        check_environment()?;
        self.own(&out.gpu)?;
        let _operation = self.gpu.enter()?;
        let shape = spec.shape(rows, k)?;
        let (float_type, got) = match &x {
            Source::Host(x) => (x.float_type(), x.len()),
            Source::Resident(x) => (x.float_type, x.len),
        };
        let expected = rows * k;
        if expected != got {
            return Err(Error::Len { what: What::Input, expected, got });
        }
        if let Some(t) = transform {
            self.own(&t.gpu)?;
            let block = t.shape.block.get();
            let fits = match t.shape.blocks {
                None => k.is_multiple_of(block),
                Some(blocks) => blocks.checked_mul(block) == Some(k),
            };
            if !fits {
                return Err(Error::TransformShape { k, block, blocks: t.shape.blocks });
            }
            if t.shape.float_type != float_type {
                let (expected, got) = (t.shape.float_type, float_type);
                return Err(Error::Float { what: What::Input, expected, got });
            }
        }
        let query = QuantizeQuery::new(shape, spec, float_type);
        self.supports_quantize(&query.with_transform(transform.map(|t| t.shape)))?;
        let from_host = matches!(x, Source::Host(_));
        let x = match x {
            Source::Host(x) => {
                out.input.upload(&self.gpu.stream, host_bytes(x))?;
                (out.input.pointer(), float_type)
            }
            Source::Resident(x) => {
                self.own(&x.gpu)?;
                (x.values.pointer(), float_type)
            }
        };
        let (given, asked) = (Pointer::NULL, counts.is_some());
        let what = Quantization { x, shape, spec, transform, given, counts: asked };
        let folded = matmul::folds_activation(self.kernel, &self.gpu, shape)
            && quantize::quantize_and_fold(&what, out)?;
        if !folded {
            quantize::quantize(&what, out)?;
        }
        if let Some(counts) = counts {
            *counts = quant_counts(shape, out.counted()?);
            return Ok(());
        }
        // The caller may change its memory as soon as this returns.
        if from_host { self.gpu.synchronize() } else { Ok(()) }
    }

    /// For a [`Sink::Resident`] the counts are 0: see [`Cuda::paths`]. A bias stays on the device
    /// with the weight, and is copied there again only when it changes; so do the row scales of an
    /// operand. Those of an epilogue are copied, and waited for, in every call, so a product with
    /// them is not for a graph.
    fn matmul_resident<B: Packed>(
        &self,
        a: &CudaOperand,
        b: &CudaWeight<B>,
        epilogue: Epilogue<'_>,
        out: Sink<'_, CudaTensor>,
    ) -> Result<Paths, Error> {
        check_environment()?;
        self.own(&a.gpu)?;
        self.own(&b.operand.gpu)?;
        let _operation = self.gpu.enter()?;
        match out {
            Sink::Host(out) => self.with_staging(|staging| {
                let Staging { output, row_scales, paths, .. } = staging;
                self.matmul_to_host(a, b, &epilogue, out, [output, row_scales, paths])
            }),
            Sink::Resident(out, float_type) => {
                self.own(&out.gpu)?;
                out.resize(float_type, expect_outputs(a, b, &epilogue)?)?;
                let bias = epilogue.bias.map(|bias| b.bias(bias)).transpose()?;
                let queue = |row_scales| {
                    self.multiply(&Product {
                        a,
                        b: &b.operand,
                        outputs: Outputs {
                            out: out.values.pointer(),
                            row_scales,
                            bias: bias.as_ref().map_or(Pointer::NULL, |bias| bias.pointer()),
                            alpha: epilogue.alpha,
                            out_type: arguments::float_type(float_type),
                        },
                        paths: self.device_paths.pointer(),
                    })
                };
                match epilogue.row_scales {
                    None => queue(a.row_scales())?,
                    Some(values) => self.with_staging(|staging| {
                        let Staging { row_scales, .. } = staging;
                        row_scales.upload(&self.gpu.stream, bytemuck::cast_slice(values))?;
                        queue(row_scales.pointer())?;
                        // The caller may change its memory as soon as this returns.
                        self.gpu.synchronize()
                    })?,
                }
                Ok(Paths::default())
            }
        }
    }

    fn export(&self, from: &CudaOperand, out: &mut PackedMut<'_>) -> Result<(), Error> {
        self.own(&from.gpu)?;
        let _operation = self.gpu.enter()?;
        self.with_staging(|staging| {
            from.export(&mut staging.spare, out)?;
            self.gpu.synchronize()
        })
    }

    fn import(&self, from: PackedView<'_>, to: &mut CudaOperand) -> Result<(), Error> {
        self.own(&to.gpu)?;
        let _operation = self.gpu.enter()?;
        to.import(from, matmul::folds_activation(self.kernel, &self.gpu, from.shape()))?;
        self.gpu.synchronize()
    }
}
