//! What lives in device memory: dense tensors, packed operands, prepared weights, transforms.
//!
//! A packed operand has rows of `k_pad` elements, K rounded up to a multiple of 128; the padding is
//! zero codes and zero scale bytes, which never change a result (C8). Beside the bytes lies the row
//! metadata that the matmul chooses its path by.

use std::marker::PhantomData;
use std::sync::Arc;

use fp4_core::{
    Buffer as What, Error, FloatSlice, FloatSliceMut, FloatType, Format, Packed, PackedMut,
    PackedShape, PackedView, PreparedWeight, TransformShape, padded_k, with_floats,
};

use crate::build::sources::{LAYOUT, QUANTIZE};
use crate::device::buffer::Buffer;
use crate::device::error::unless_memory_is_short;
use crate::device::gpu::Gpu;
use crate::device::launch::{Arg, blocks_for, int, scale_type};
use crate::ops::fold::{self, Folded};

/// Bytes of one row's metadata: the four ints of `RowMeta` in `kernels/format.cuh`.
const META_BYTES: usize = 16;

/// Dense values in device memory.
#[derive(Debug)]
pub struct CudaTensor {
    pub(crate) float_type: FloatType,
    pub(crate) len: usize,
    pub(crate) values: Buffer,
    pub(crate) gpu: Arc<Gpu>,
}

impl CudaTensor {
    pub(crate) fn new(gpu: &Arc<Gpu>) -> Self {
        let (float_type, values) = (FloatType::F32, Buffer::default());
        CudaTensor { float_type, len: 0, values, gpu: gpu.clone() }
    }

    /// The type of the values.
    pub fn float_type(&self) -> FloatType {
        self.float_type
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there are no values.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The device address of the values, 0 if there are none.
    pub fn device_address(&self) -> u64 {
        self.values.address()
    }

    /// Makes it `len` values of a type, whatever they are.
    pub(crate) fn resize(&mut self, float_type: FloatType, len: usize) -> Result<(), Error> {
        let room = self.values.reserve(&self.gpu.stream, len * float_type.bytes());
        self.expect_room(room)?;
        (self.float_type, self.len) = (float_type, len);
        Ok(())
    }

    /// After a failure to get more memory there is none, so there are no values.
    fn expect_room(&mut self, outcome: Result<(), Error>) -> Result<(), Error> {
        if self.values.address() == 0 {
            self.len = 0;
        }
        outcome
    }

    pub(crate) fn upload(&mut self, x: FloatSlice<'_>) -> Result<(), Error> {
        let uploaded = self.values.upload(&self.gpu.stream, host_bytes(x));
        self.expect_room(uploaded)?;
        (self.float_type, self.len) = (x.float_type(), x.len());
        Ok(())
    }

    /// Copies to the host. The caller synchronizes.
    pub(crate) fn download(&self, out: FloatSliceMut<'_>) -> Result<(), Error> {
        out.as_ref().expect_len(What::Output, self.len)?;
        let (expected, got) = (self.float_type, out.float_type());
        if expected != got {
            return Err(Error::Float { what: What::Output, expected, got });
        }
        self.values.download(&self.gpu.stream, host_bytes_mut(out))
    }
}

/// The bytes of host values.
pub(crate) fn host_bytes(x: FloatSlice<'_>) -> &[u8] {
    with_floats!(FloatSlice, x, x => bytemuck::cast_slice(x))
}

/// The bytes of host values to write to.
pub(crate) fn host_bytes_mut(x: FloatSliceMut<'_>) -> &mut [u8] {
    with_floats!(FloatSliceMut, x, x => bytemuck::cast_slice_mut(x))
}

/// A packed matrix in device memory, with its row metadata.
#[derive(Debug)]
pub struct CudaOperand {
    pub(crate) shape: PackedShape,
    pub(crate) k_pad: usize,
    pub(crate) codes: Buffer,
    pub(crate) scales: Buffer,
    pub(crate) meta: Buffer,
    /// The same for the wgmma kernels, where they are to multiply it.
    pub(crate) folded: Folded,
    /// Whether it was folded when it got its contents, as a graph that writes it does too.
    folds: bool,
    /// Host values on their way in, and bytes without padding on their way in or out.
    pub(crate) input: Buffer,
    staging: Buffer,
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
            folds: false,
            input: Buffer::default(),
            staging: Buffer::default(),
            gpu: gpu.clone(),
        })
    }

    /// Shape and format.
    pub fn shape(&self) -> PackedShape {
        self.shape
    }

    /// Bytes of a row of codes and of a row of scales, padding included.
    pub(crate) fn row_bytes(&self) -> [usize; 2] {
        [self.k_pad / 2, self.k_pad / self.shape.group().get()]
    }

    /// Makes room for a shape, to be folded or not. Every byte is written by what follows.
    pub(crate) fn reshape(&mut self, shape: PackedShape, folds: bool) -> Result<(), Error> {
        if (shape, folds) != (self.shape, self.folds) {
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
        let (rows, cols) = (shape.rows(), META_BYTES);
        let meta = rows.checked_mul(META_BYTES).ok_or(Error::ShapeOverflow { rows, cols })?;
        self.meta.reserve(stream, meta)?;
        (self.shape, self.k_pad, self.folds) = (shape, k_pad, folds);
        Ok(())
    }

    /// Leaves to captured graphs the memory that they may use. A replay writes it in the layout of the
    /// capture: kernels that were told of another one would follow its offsets to anywhere.
    fn leave_graphs(&mut self) -> Result<(), Error> {
        let used = [&self.codes, &self.scales, &self.meta].iter().any(|b| b.is_in_a_graph());
        if used || self.folded.is_in_a_graph() {
            self.gpu.stream.gate.expect_running()?;
            // What goes to or comes from the host is in no graph, and may be on its way.
            (self.codes, self.scales, self.meta) = Default::default();
            self.folded = Folded::default();
        }
        Ok(())
    }

    /// Fills the row metadata, once codes and scales are there; only the matmul formats have it.
    pub(crate) fn describe_rows(&self) -> Result<(), Error> {
        if self.shape.format().is_none() {
            return Ok(());
        }
        let args = [
            Arg::Pointer(self.codes.address()),
            Arg::Pointer(self.scales.address()),
            Arg::Pointer(self.meta.address()),
            Arg::I64(self.shape.rows() as i64),
            Arg::I32(int(self.k_pad)?),
            scale_type(self.shape.scale_type()),
        ];
        // A warp a row, four warps a block.
        let blocks = blocks_for(self.shape.rows(), 4);
        self.gpu.launch((&QUANTIZE, "row_meta"), blocks, 128, &args)
    }

    /// What a folding needs to know.
    pub(crate) fn shape_to_fold(&self) -> Result<fold::Shape, Error> {
        Ok(fold::Shape {
            gpu: self.gpu.clone(),
            format: self.shape.expect_format()?,
            rows: self.shape.rows(),
            k_pad: self.k_pad,
            codes: self.codes.address(),
            scales: self.scales.address(),
            meta: self.meta.address(),
        })
    }

    /// Runs a folding of what is in the operand; without memory for it there is none, and no error.
    pub(crate) fn fold(
        &mut self,
        run: impl FnOnce(&mut Folded, &fold::Shape) -> Result<(), Error>,
    ) -> Result<bool, Error> {
        let of = self.shape_to_fold()?;
        let done = unless_memory_is_short(run(&mut self.folded, &of), "a folded operand")?;
        if !done {
            // What it has got of its memory is of more use elsewhere.
            self.folded = Folded::default();
            self.folds = false;
        }
        Ok(done)
    }

    /// Copies packed bytes from the host, adding the padding, and folds them if that is wanted.
    pub(crate) fn import(&mut self, from: PackedView<'_>, fold: bool) -> Result<(), Error> {
        self.reshape(from.shape(), fold)?;
        let widths = self.row_bytes();
        let CudaOperand { codes, scales, staging, gpu, .. } = self;
        for (bytes, width, to) in
            [(from.codes(), widths[0], codes), (from.scales(), widths[1], scales)]
        {
            let rows = from.shape().rows();
            if bytes.len() == rows * width {
                to.upload(&gpu.stream, bytes)?;
            } else {
                staging.upload(&gpu.stream, bytes)?;
                repad(gpu, staging, to, rows, [bytes.len() / rows.max(1), width])?;
            }
        }
        if fold && self.fold(Folded::fill)? {
            return Ok(());
        }
        self.describe_rows()
    }

    /// Drops what only conversions need: a weight is converted once.
    pub(crate) fn trim(&mut self) {
        self.input = Buffer::default();
        self.staging = Buffer::default();
    }

    /// Copies packed bytes to the host, without the padding. The caller synchronizes.
    pub(crate) fn export(&self, spare: &mut Buffer, out: &mut PackedMut<'_>) -> Result<(), Error> {
        let (shape, rows, widths) = (out.shape(), self.shape.rows(), self.row_bytes());
        self.shape.expect_same_format(&shape)?;
        for (what, expected, got) in [
            (fp4_core::Dim::Rows, rows, shape.rows()),
            (fp4_core::Dim::K, self.shape.k(), shape.k()),
        ] {
            if expected != got {
                return Err(Error::ShapeMismatch { what, expected, got });
            }
        }
        let (codes, scales) = out.buffers();
        for (bytes, width, from) in
            [(codes, widths[0], &self.codes), (scales, widths[1], &self.scales)]
        {
            if bytes.len() == rows * width {
                from.download(&self.gpu.stream, bytes)?;
            } else {
                let narrow = bytes.len() / rows.max(1);
                spare.reserve(&self.gpu.stream, bytes.len())?;
                repad(&self.gpu, from, spare, rows, [width, narrow])?;
                spare.download(&self.gpu.stream, bytes)?;
            }
        }
        Ok(())
    }
}

/// Copies rows of one width to rows of another.
fn repad(
    gpu: &Gpu,
    from: &Buffer,
    to: &Buffer,
    rows: usize,
    [from_cols, to_cols]: [usize; 2],
) -> Result<(), Error> {
    let args = [
        Arg::Pointer(from.address()),
        Arg::Pointer(to.address()),
        Arg::I64(rows as i64),
        Arg::I32(int(from_cols)?),
        Arg::I32(int(to_cols)?),
    ];
    gpu.launch((&LAYOUT, "pad_bytes"), blocks_for(rows * to_cols, 256), 256, &args)
}

/// A weight in device memory. `B` is what it was prepared from; nothing of that type is held.
#[derive(Debug)]
pub struct CudaWeight<B> {
    pub(crate) operand: CudaOperand,
    pub(crate) from: PhantomData<fn() -> B>,
}

impl<B: Packed> PreparedWeight for CudaWeight<B> {
    fn shape(&self) -> PackedShape {
        self.operand.shape
    }
}

/// A block transform in device memory, rounded to the type of the activations.
#[derive(Debug)]
pub struct CudaTransform {
    pub(crate) shape: TransformShape,
    pub(crate) values: Buffer,
    pub(crate) gpu: Arc<Gpu>,
}
