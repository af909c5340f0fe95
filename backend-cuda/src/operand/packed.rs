//! Packed operands and prepared weights in device memory.
//!
//! A packed operand has rows of `k_pad` elements, K rounded up to a multiple of 128; the padding is
//! zero codes and zero scale bytes, which never change a result (C8). Beside the bytes lies the row
//! metadata that the matmul chooses its path by.

use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fp4_core::{Error, Format, Packed, PackedShape, PreparedWeight, padded_k};

use super::folded::{FoldShape, Folded};
use crate::build::arguments::{PackedOperand, Pointer, RowMeta};
use crate::device::buffer::Buffer;
use crate::device::gpu::Gpu;
use crate::device::launch::int;

/// A packed matrix in device memory, with its row metadata.
#[derive(Debug)]
pub struct CudaOperand {
    pub(crate) shape: PackedShape,
    pub(crate) k_pad: usize,
    pub(crate) codes: Buffer,
    pub(crate) scales: Buffer,
    pub(crate) meta: Buffer,
    /// The same for the kernels on folded operands, where they are to multiply it.
    pub(crate) folded: Folded,
    /// Of a weight, how many tiles the kernel of `MatmulKernel::WgmmaRs` leaves to another; `None`
    /// if nobody has counted.
    pub(crate) wide_tiles: Option<usize>,
    /// Whether it was folded when it got its contents, as a graph that writes it does too.
    pub(crate) folds: bool,
    /// A global scale for each row, where it was quantized with them (C4).
    row_scales: Buffer,
    has_row_scales: bool,
    /// The values after the transform, where row scales need them whole.
    pub(crate) transformed: Buffer,
    /// Host values on their way in, and bytes without padding on their way in or out.
    pub(crate) input: Buffer,
    pub(crate) staging: Buffer,
    /// What the last quantization did, where it was asked.
    pub(crate) counts: Buffer,
    pub(crate) gpu: Arc<Gpu>,
}

impl CudaOperand {
    pub(crate) fn new(gpu: &Arc<Gpu>) -> Result<Self, Error> {
        Ok(CudaOperand {
            shape: PackedShape::of(Format::MxFp4, 0, 0)?,
            k_pad: 0,
            codes: Buffer::default(),
            scales: Buffer::default(),
            meta: Buffer::default(),
            folded: Folded::default(),
            wide_tiles: None,
            folds: false,
            row_scales: Buffer::default(),
            has_row_scales: false,
            transformed: Buffer::default(),
            input: Buffer::default(),
            staging: Buffer::default(),
            counts: Buffer::default(),
            gpu: gpu.clone(),
        })
    }

    /// Shape and format.
    pub fn shape(&self) -> PackedShape {
        self.shape
    }

    /// Bytes of device memory held.
    pub(crate) fn allocated_bytes(&self) -> usize {
        let CudaOperand { codes, scales, meta, input, staging, counts, .. } = self;
        let CudaOperand { row_scales, transformed, .. } = self;
        let own = [codes, scales, meta, input, staging, counts, row_scales, transformed];
        own.iter().map(|buffer| buffer.len()).sum::<usize>() + self.folded.allocated_bytes()
    }

    /// Bytes of a row of codes and of a row of scales, padding included.
    pub(crate) fn row_bytes(&self) -> [usize; 2] {
        [self.k_pad / self.shape.element().per_byte(), self.k_pad / self.shape.group().get()]
    }

    /// Makes room for a shape, to be folded or not, with row scales or without. Every byte is
    /// written by what follows.
    pub(crate) fn reshape(
        &mut self,
        shape: PackedShape,
        folds: bool,
        row_scales: bool,
    ) -> Result<(), Error> {
        if (shape, folds, row_scales) != (self.shape, self.folds, self.has_row_scales) {
            self.leave_graphs()?;
            // Until there is room, it is an operand without rows.
            (self.shape, self.k_pad) = (self.shape.resized(0, 0)?, 0);
        }
        self.folded.forget();
        let k_pad = padded_k(shape.k())?;
        let padded = shape.resized(shape.rows(), k_pad)?;
        int(k_pad)?;
        let stream = &self.gpu.stream;
        self.codes.reserve(stream, padded.codes_len())?;
        self.scales.reserve(stream, padded.scales_len())?;
        let (rows, cols) = (shape.rows(), size_of::<RowMeta>());
        let meta =
            rows.checked_mul(size_of::<RowMeta>()).ok_or(Error::ShapeOverflow { rows, cols })?;
        self.meta.reserve(stream, meta)?;
        if row_scales {
            // As many as the metadata has, which are larger.
            self.row_scales.reserve(stream, rows * size_of::<f32>())?;
        }
        (self.shape, self.k_pad, self.folds) = (shape, k_pad, folds);
        self.has_row_scales = row_scales;
        Ok(())
    }

    /// The row scales on the device; null if there are none.
    pub(crate) fn row_scales(&self) -> Pointer {
        if self.has_row_scales { self.row_scales.pointer() } else { Pointer::NULL }
    }

    /// Copies the row scales to the host, if there are any. The caller synchronizes.
    pub(crate) fn download_row_scales(&self, out: &mut [f32]) -> Result<(), Error> {
        match self.has_row_scales {
            true => self.row_scales.download(&self.gpu.stream, bytemuck::cast_slice_mut(out)),
            false => Ok(()),
        }
    }

    /// Leaves to captured graphs the memory that they may use. A replay writes it in the layout of
    /// the capture: kernels that were told of another one would follow its offsets to anywhere.
    fn leave_graphs(&mut self) -> Result<(), Error> {
        let CudaOperand { codes, scales, meta, row_scales, transformed, .. } = &*self;
        let used = [codes, scales, meta, row_scales, transformed].iter().any(|b| b.is_in_a_graph());
        if used || self.folded.is_in_a_graph() {
            self.gpu.stream.gate.expect_running()?;
            // What goes to or comes from the host is in no graph, and may be on its way.
            (self.codes, self.scales, self.meta) = Default::default();
            (self.row_scales, self.transformed) = Default::default();
            self.folded = Folded::default();
        }
        Ok(())
    }

    /// What a folding needs to know.
    pub(crate) fn shape_to_fold(&self) -> Result<FoldShape, Error> {
        let (scale, group) = (self.shape.scale_type(), self.shape.group());
        let encoding = self.shape.encoding().ok_or(Error::NotAMatmulFormat { scale, group })?;
        Ok(FoldShape {
            gpu: self.gpu.clone(),
            encoding,
            rows: self.shape.rows(),
            k_pad: self.k_pad,
            packed: self.packed(),
        })
    }

    /// As the kernels take it.
    pub(crate) fn packed(&self) -> PackedOperand {
        PackedOperand {
            codes: self.codes.pointer(),
            scales: self.scales.pointer(),
            meta: self.meta.pointer(),
        }
    }

    /// Drops what only conversions need: a weight is converted once.
    pub(crate) fn trim(&mut self) {
        self.input = Buffer::default();
        self.staging = Buffer::default();
        self.counts = Buffer::default();
        (self.row_scales, self.transformed) = Default::default();
    }
}

/// A weight in device memory. `B` is what it was prepared from; nothing of that type is held.
///
/// What is kept is one copy: codes and scales as they came, with K padded to a multiple of 128, and
/// 16 bytes of metadata a row. The folded form lies beside it if that is wanted:
/// [`FoldedWeights`](crate::FoldedWeights).
#[derive(Debug)]
pub struct CudaWeight<B> {
    pub(crate) operand: CudaOperand,
    /// The bias that came with it last: it is a layer's, and the same in every call.
    bias: Mutex<Option<Arc<Bias>>>,
    from: PhantomData<fn() -> B>,
}

/// A bias in device memory.
#[derive(Debug)]
pub(crate) struct Bias {
    values: Box<[f32]>,
    buffer: Buffer,
}

impl Bias {
    pub(crate) fn pointer(&self) -> Pointer {
        self.buffer.pointer()
    }
}

impl<B> CudaWeight<B> {
    pub(crate) fn new(operand: CudaOperand) -> Self {
        CudaWeight { operand, bias: Mutex::default(), from: PhantomData }
    }

    /// Bytes of device memory held.
    pub fn device_bytes(&self) -> usize {
        self.operand.allocated_bytes() + self.lock().as_ref().map_or(0, |bias| bias.buffer.len())
    }

    /// The bias on the device. Values that are not those of the last call are copied there first,
    /// which waits; the lock is not held meanwhile.
    pub(crate) fn bias(&self, values: &[f32]) -> Result<Arc<Bias>, Error> {
        let bits = |values| -> &[u32] { bytemuck::cast_slice::<f32, u32>(values) };
        let known = self.lock().clone();
        if let Some(known) = known
            && bits(&known.values) == bits(values)
        {
            return Ok(known);
        }
        let gpu = &self.operand.gpu;
        let mut bias = Bias { values: values.into(), buffer: Buffer::default() };
        bias.buffer.upload(&gpu.stream, bytemuck::cast_slice(&bias.values))?;
        gpu.synchronize()?;
        let bias = Arc::new(bias);
        let last = self.lock().replace(bias.clone());
        drop(last);
        Ok(bias)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Bias>>> {
        self.bias.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: Packed> PreparedWeight for CudaWeight<B> {
    fn shape(&self) -> PackedShape {
        self.operand.shape
    }
}
