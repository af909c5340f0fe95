//! [`Cuda`], the backend: both roles on host operands.
//!
//! A call takes a [`Staging`] from a pool: device buffers that grow to the largest call seen and
//! are then reused. Operands go up, kernels run, results come back, and the call waits once, at its
//! end.

use std::mem;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use fp4_core::{
    Buffer as What, Encoding, Epilogue, Error, FloatSliceMut, GroupedError, GroupedProduct, Matmul,
    MatmulQuery, Named, Packed, PackedMut, PackedShape, PackedView, PartialsMut, Paths,
    PreparedWeight, QuantCounts, QuantizeInput, QuantizeQuery, Quantizer, Unsupported,
    backend::{Resident, expect_grouped},
    check_environment, nvfp4_row_scale,
};

use crate::build::arguments::{Counts, Outputs, Pointer, float_type};
use crate::device::buffer::Buffer;
use crate::device::driver::{self, Device};
use crate::device::gpu::Gpu;
use crate::device::reason::Reason;
use crate::operand::folded::{Folded, folded_bytes};
use crate::operand::form::FoldedWeights;
use crate::operand::packed::{CudaOperand, CudaWeight};
use crate::operand::tensor::{CudaTransform, host_bytes, host_bytes_mut};
use crate::ops::matmul::{self, MatmulKernel, PATHS_BYTES, Product, Scratch, paths_of};
use crate::ops::quantize::{self, Quantization};
use crate::staging::Staging;

/// The backend's name in routing and reports.
pub const NAME: &str = "cuda";

/// The CUDA backend on one device: quantizer, matmul, and operands in device memory. Cheap to
/// clone; the clones share the device's stream and buffers.
#[derive(Debug, Clone)]
pub struct Cuda {
    pub(crate) gpu: Arc<Gpu>,
    pub(crate) kernel: MatmulKernel,
    folded_weights: FoldedWeights,
    scratch_limit: usize,
    pool: Arc<Mutex<Vec<Staging>>>,
    pub(crate) scratch: Arc<Mutex<Scratch>>,
    /// Paths of the products that stayed on the device.
    pub(crate) device_paths: Arc<Buffer>,
    /// Paths of the products that came to the host.
    pub(crate) host_paths: Arc<Mutex<Paths>>,
}

/// Device memory that is kept between calls unless another bound is set.
const SCRATCH_LIMIT: usize = 512 << 20;

impl Cuda {
    /// The backend on the device with this index, in the driver's order.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the reason why there is none: no driver library, no device with
    /// that index, a driver or device that is too old. [`Error::Device`] if it does not start.
    pub fn open(index: usize) -> Result<Self, Error> {
        let (version, info) = driver::device(index)?;
        let gpu = Arc::new(Gpu::open(index, info, version)?);
        let mut device_paths = Buffer::default();
        device_paths.zero(&gpu.stream, PATHS_BYTES)?;
        gpu.synchronize()?;
        Ok(Cuda {
            gpu,
            kernel: MatmulKernel::default(),
            folded_weights: FoldedWeights::default(),
            scratch_limit: SCRATCH_LIMIT,
            pool: Arc::default(),
            scratch: Arc::default(),
            device_paths: Arc::new(device_paths),
            host_paths: Arc::default(),
        })
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.gpu.info
    }

    /// The same backend, multiplying by another kernel of the kernel. The bits are the same.
    #[must_use]
    pub fn with_matmul_kernel(self, kernel: MatmulKernel) -> Self {
        Cuda { kernel, ..self }
    }

    /// The same backend, keeping the folded form of the weights that it prepares or not:
    /// [`FoldedWeights`] says what for, and what it costs. By default it is kept while memory is
    /// ample; `true` keeps it as long as there is any.
    #[must_use]
    pub fn with_folded_weights(self, keep: impl Into<FoldedWeights>) -> Self {
        Cuda { folded_weights: keep.into(), ..self }
    }

    /// The same backend, keeping at most so many bytes of device memory between calls on host
    /// operands, and as many between products; 512 MiB of each by default. A call that needs more
    /// gets it, and frees it at its end. A product can be captured in a graph only if what it needs
    /// is kept.
    #[must_use]
    pub fn with_scratch_limit(self, bytes: usize) -> Self {
        Cuda { scratch_limit: bytes, ..self }
    }

    /// Waits until everything queued so far has run.
    ///
    /// # Errors
    /// A device failure, of any operation queued before.
    pub fn synchronize(&self) -> Result<(), Error> {
        let _operation = self.gpu.enter()?;
        self.gpu.synchronize()
    }

    /// Which paths all products since [`open`](Self::open) took: those that stayed on the device
    /// too, whose calls return no counts, because reading them would wait for the device. This
    /// waits.
    ///
    /// # Errors
    /// A device failure.
    pub fn paths(&self) -> Result<Paths, Error> {
        let _operation = self.gpu.enter()?;
        let mut counters = [0; PATHS_BYTES];
        self.device_paths.download(&self.gpu.stream, &mut counters)?;
        self.gpu.synchronize()?;
        let mut paths = paths_of(counters);
        paths.merge(&self.host_paths.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(paths)
    }

    /// How many tiles of the last product by [`MatmulKernel::Wgmma`],
    /// [`MatmulKernel::WgmmaRs`] or [`MatmulKernel::MmaFolded`], or of the last launch of several,
    /// could not be proved exact there and were left to a kernel on packed operands, and how many
    /// tiles there were. This waits. Of calls in a graph nothing is known: after a capture or a
    /// replay the answer is (0, 0) until the next such product.
    ///
    /// # Errors
    /// A device failure.
    pub fn tiles_left(&self) -> Result<(usize, usize), Error> {
        let _operation = self.gpu.enter()?;
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner).tiles_left(&self.gpu)
    }

    /// Runs `f` with buffers of the pool. After an error they are dropped.
    pub(crate) fn with_staging<R>(
        &self,
        f: impl FnOnce(&mut Staging) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let pool = || self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        let spare = pool().pop();
        let mut staging = match spare {
            Some(staging) => staging,
            None => Staging::new(&self.gpu)?,
        };
        let result = f(&mut staging)?;
        let bytes = staging.allocated_bytes();
        let mut idle = pool();
        if bytes + idle.iter().map(Staging::allocated_bytes).sum::<usize>() <= self.scratch_limit {
            idle.push(staging);
        }
        Ok(result)
    }

    /// Queues a product, and keeps no more of its buffers than is wanted.
    pub(crate) fn multiply(&self, product: &Product<'_>) -> Result<(), Error> {
        matmul::matmul(self.kernel, product, &self.scratch)?;
        self.trim_scratch();
        Ok(())
    }

    /// Keeps no more of the buffers of products than is wanted.
    pub(crate) fn trim_scratch(&self) {
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let large = scratch.allocated_bytes() > self.scratch_limit;
        let dropped = large.then(|| mem::take(&mut *scratch));
        drop(scratch);
        drop(dropped);
    }

    /// Frees the buffers that calls left for the next ones, of this backend and its clones. What a
    /// captured graph uses stays until the graph is dropped.
    ///
    /// # Errors
    /// [`Error::Unsupported`] while another thread captures a graph.
    pub fn release_scratch(&self) -> Result<(), Error> {
        let _operation = self.gpu.enter()?;
        let idle = mem::take(&mut *self.pool.lock().unwrap_or_else(PoisonError::into_inner));
        drop(idle);
        let scratch = mem::take(&mut *self.scratch.lock().unwrap_or_else(PoisonError::into_inner));
        drop(scratch);
        Ok(())
    }

    /// Bytes of device memory in buffers that calls left for the next ones.
    pub fn scratch_bytes(&self) -> usize {
        let idle = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        let staged: usize = idle.iter().map(Staging::allocated_bytes).sum();
        drop(idle);
        staged + self.scratch.lock().unwrap_or_else(PoisonError::into_inner).allocated_bytes()
    }

    /// Multiplies into host memory: the last part of both ways of a product to the host.
    pub(crate) fn matmul_to_host<B>(
        &self,
        a: &CudaOperand,
        b: &CudaWeight<B>,
        epilogue: &Epilogue<'_>,
        out: FloatSliceMut<'_>,
        [output, row_scales, paths]: [&mut Buffer; 3],
    ) -> Result<Paths, Error> {
        let outputs = expect_outputs(a, b, epilogue)?;
        out.as_ref().expect_len(What::Output, outputs)?;
        let stream = &self.gpu.stream;
        output.reserve(stream, outputs * out.float_type().bytes())?;
        paths.zero(stream, PATHS_BYTES)?;
        row_scales.upload(stream, bytemuck::cast_slice(epilogue.row_scales.unwrap_or_default()))?;
        let bias = epilogue.bias.map(|bias| b.bias(bias)).transpose()?;
        self.multiply(&Product {
            a,
            b: &b.operand,
            outputs: Outputs {
                out: output.pointer(),
                row_scales: epilogue.row_scales.map_or(a.row_scales(), |_| row_scales.pointer()),
                bias: bias.as_ref().map_or(Pointer::NULL, |bias| bias.pointer()),
                alpha: epilogue.alpha,
                out_type: float_type(out.float_type()),
            },
            paths: paths.pointer(),
        })?;
        let mut counters = [0; PATHS_BYTES];
        output.download(stream, host_bytes_mut(out))?;
        paths.download(stream, &mut counters)?;
        self.gpu.synchronize()?;
        let paths = paths_of(counters);
        self.host_paths.lock().unwrap_or_else(PoisonError::into_inner).merge(&paths);
        Ok(paths)
    }

    /// Refuses operands of another device, or of the same one opened again: they are queued
    /// elsewhere.
    pub(crate) fn own(&self, gpu: &Arc<Gpu>) -> Result<(), Error> {
        if Arc::ptr_eq(gpu, &self.gpu) { Ok(()) } else { Err(Error::ForeignOperand) }
    }
}

impl Named for Cuda {
    fn name(&self) -> &str {
        NAME
    }
}

/// How many outputs a product has, if its operands and its epilogue fit together.
pub(crate) fn expect_outputs<B>(
    a: &CudaOperand,
    b: &CudaWeight<B>,
    epilogue: &Epilogue<'_>,
) -> Result<usize, Error> {
    a.shape.expect_product(&b.operand.shape)?;
    let (rows, cols) = (a.shape.rows(), b.operand.shape.rows());
    epilogue.expect(rows, cols)?;
    rows.checked_mul(cols).ok_or(Error::ShapeOverflow { rows, cols })
}

/// The counts of a quantization to this shape, with those that a kernel made.
pub(crate) fn quant_counts(shape: PackedShape, counted: Counts) -> QuantCounts {
    let mut counts = QuantCounts::default();
    counts.elements = shape.rows() as u64 * shape.k() as u64;
    counts.groups = shape.rows() as u64 * shape.row_groups() as u64;
    counts.clipped = counted.clipped;
    counts.scale_max = counted.scale_max;
    counts.flushed = counted.flushed;
    counts.nan_groups = counted.nan_groups;
    counts
}

/// Dimensions that the kernels count in `int`.
fn expect_int(sizes: &[usize]) -> Result<(), Unsupported> {
    // One padding step of 128 stays below 2^31.
    let max = i32::MAX as usize - 128;
    match sizes.iter().find(|&&size| size > max) {
        Some(_) => Err(Reason::DimensionTooLarge.into()),
        None => Ok(()),
    }
}

impl Quantizer for Cuda {
    fn supports_quantize(&self, query: &QuantizeQuery) -> Result<(), Unsupported> {
        query.expect_nearest()?;
        expect_int(&[query.rows, query.k])
    }

    fn quantize(
        &self,
        input: &QuantizeInput<'_>,
        out: &mut PackedMut<'_>,
    ) -> Result<QuantCounts, Error> {
        check_environment()?;
        input.expect_output(out.shape())?;
        input.expect_row_scales(out)?;
        self.supports_quantize(&input.query())?;
        if out.shape().codes_len() == 0 {
            // Rows without elements have row scales all the same.
            let scales = out.row_scales_mut().filter(|_| input.spec().row_scales());
            scales.into_iter().for_each(|scales| scales.fill(nvfp4_row_scale(0.0)));
            return Ok(QuantCounts::default());
        }
        let _operation = self.gpu.enter()?;
        let float_type = input.x().float_type();
        let transform =
            input.transform().map(|t| CudaTransform::load(&self.gpu, t, float_type)).transpose()?;
        self.with_staging(|staging| {
            let Staging { operand, given, spare, .. } = staging;
            let stream = &self.gpu.stream;
            if let Some(scales) = input.scales() {
                given.upload(stream, scales)?;
            }
            operand.input.upload(stream, host_bytes(input.x()))?;
            let what = Quantization {
                x: (operand.input.pointer(), float_type),
                shape: input.shape(),
                spec: input.spec(),
                transform: transform.as_ref(),
                given: input.scales().map_or(Pointer::NULL, |_| given.pointer()),
                counts: true,
            };
            quantize::quantize(&what, operand)?;
            operand.export(spare, out)?;
            Ok(quant_counts(what.shape, operand.counted()?))
        })
    }
}

impl Matmul for Cuda {
    type Prepared<B: Packed> = CudaWeight<B>;

    fn supports_matmul(&self, query: &MatmulQuery) -> Result<(), Unsupported> {
        self.supports_partial(query)
    }

    fn supports_partial(&self, query: &MatmulQuery) -> Result<(), Unsupported> {
        match (query.a, query.b.format()) {
            (Encoding::MxInt8, Some(_)) => {}
            _ => query.expect_same_encoding()?,
        }
        expect_int(&[query.m, query.n, query.k])
    }

    fn prepare<B: Packed>(&self, b: B) -> Result<CudaWeight<B>, Error> {
        let view = b.view();
        view.shape().expect_format()?;
        expect_int(&[view.shape().rows(), view.shape().k()])?;
        // Not before: the view is the caller's code.
        let _operation = self.gpu.enter()?;
        let mut operand = CudaOperand::new(&self.gpu)?;
        operand.import(view, false)?;
        let bytes = folded_bytes(&operand.shape_to_fold()?)?;
        if matmul::folds_weight(self.kernel, &self.gpu, view.shape())
            && self.folded_weights.keeps(&self.gpu, bytes)?
        {
            operand.fold(Folded::fill_exactly)?;
        }
        self.gpu.synchronize()?;
        if self.kernel == MatmulKernel::Auto {
            operand.wide_tiles = matmul::wide_tiles(&operand)?;
        }
        operand.trim();
        Ok(CudaWeight::new(operand))
    }

    fn matmul<B: Packed>(
        &self,
        a: PackedView<'_>,
        b: &CudaWeight<B>,
        epilogue: Epilogue<'_>,
        out: FloatSliceMut<'_>,
    ) -> Result<Paths, Error> {
        check_environment()?;
        self.own(&b.operand.gpu)?;
        a.shape().expect_product(&b.shape())?;
        epilogue.expect(a.shape().rows(), b.shape().rows())?;
        expect_int(&[a.shape().rows()])?;
        let _operation = self.gpu.enter()?;
        self.with_staging(|staging| {
            let Staging { operand, output, row_scales, paths, .. } = staging;
            operand.import(a, matmul::folds_activation(self.kernel, &self.gpu, a.shape()))?;
            self.matmul_to_host(operand, b, &epilogue, out, [output, row_scales, paths])
        })
    }

    /// In one launch for all products of a kernel; an A that is given to consecutive products as
    /// the same view is copied to the device once.
    fn grouped<B: Packed>(
        &self,
        products: &mut [GroupedProduct<'_, CudaWeight<B>>],
    ) -> Result<Paths, GroupedError> {
        for (i, product) in products.iter().enumerate() {
            let own = self.own(&product.b.operand.gpu);
            own.map_err(|error| GroupedError::of(i, error))?;
        }
        expect_grouped::<Self, B>(self, products)?;
        Ok(self.multiply_grouped(products)?)
    }

    fn partial<B: Packed>(
        &self,
        a: PackedView<'_>,
        b: &CudaWeight<B>,
        groups: Range<usize>,
        out: PartialsMut<'_>,
    ) -> Result<(), Error> {
        check_environment()?;
        self.own(&b.operand.gpu)?;
        a.shape().expect_product(&b.shape())?;
        expect_int(&[a.shape().rows()])?;
        let _operation = self.gpu.enter()?;
        self.with_staging(|staging| {
            let Staging { operand, sums, .. } = staging;
            operand.import(a, false)?;
            matmul::partial(operand, &b.operand, groups, out, sums)
        })
    }

    fn export_weight<B: Packed>(
        &self,
        b: &CudaWeight<B>,
        out: &mut PackedMut<'_>,
    ) -> Result<(), Error> {
        self.export(&b.operand, out)
    }
}
