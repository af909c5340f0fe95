//! Activations quantized into the form that the matmul reads, kept from one call to the next.
//!
//! A CPU backend has no memory of its own; what it has is an operand form. [`CpuOperand`] holds the
//! packed codes and scales (the wide path and `export` read them) and, for the tiled kernels, the
//! tiles. Tensors are host values. These buffers are reused, so a steady state of decoding
//! allocates nothing; a product of many rows by pairs of panels makes one buffer of pairs a task.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use fp4_core::{
    Buffer, Encoding, Epilogue, Error, FloatSlice, FloatSliceMut, FloatType, FloatVec, Format,
    Packed, PackedMatrix, PackedMut, PackedShape, PackedView, Paths, PreparedWeight, QuantCounts,
    QuantSpec, QuantizeInput, Transform,
    backend::{Resident, Sink, Source},
    check_environment,
};

use crate::engine::by_engine;
use crate::quantize::TransformColumns;
use crate::{CpuSimd, CpuWeight, Quantizer, matmul};

/// Dense values on the host.
#[derive(Debug, Clone)]
pub struct CpuTensor(FloatVec);

impl CpuTensor {
    /// The values.
    pub fn values(&self) -> FloatSlice<'_> {
        self.0.as_slice()
    }
}

/// A quantized activation in the form that the kernels of the backend that made it read. Other
/// kernels read its packed form.
pub struct CpuOperand {
    packed: PackedMatrix,
    /// The scales of the rows, if it was quantized with any (C4).
    row_scales: Vec<f32>,
    tiles: matmul::RowTiles,
    /// The format of the weight that it was multiplied with last: MXINT8 is packed for one of them,
    /// and a weight in the other packs it again.
    weight: WeightFormat,
}

/// A format that several threads may set: whichever stays, the bits are the same.
#[derive(Debug, Default)]
struct WeightFormat(AtomicBool);

impl WeightFormat {
    fn get(&self) -> Format {
        if self.0.load(Ordering::Relaxed) { Format::NvFp4 } else { Format::MxFp4 }
    }

    fn set(&self, format: Format) {
        self.0.store(format == Format::NvFp4, Ordering::Relaxed);
    }
}

/// Shape and format.
impl fmt::Debug for CpuOperand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CpuOperand").field(&self.packed).finish()
    }
}

impl CpuOperand {
    /// The packed form.
    pub fn packed(&self) -> PackedView<'_> {
        self.packed.view()
    }

    /// The scales of the rows, if it was quantized with any: what the epilogue of its products
    /// takes (C6).
    pub fn row_scales(&self) -> Option<&[f32]> {
        Some(&self.row_scales[..]).filter(|scales| !scales.is_empty())
    }

    /// Makes room for a matrix that is to be written. The tiles are those of no matrix until it is
    /// packed: a backend without tiles would leave those of another that filled it before. And it
    /// has no row scales.
    fn reshape(&mut self, shape: PackedShape) {
        self.packed.reshape(shape);
        self.tiles.clear();
        self.row_scales.clear();
    }
}

/// A transform, transposed and rounded to the type of the activations.
#[derive(Clone)]
pub struct CpuTransform(TransformColumns);

/// Shape and type.
impl fmt::Debug for CpuTransform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CpuTransform").field(&self.0.shape()).finish()
    }
}

impl CpuSimd {
    /// Brings the packed form of an operand into the kernels' form.
    fn pack(&self, operand: &mut CpuOperand) -> Result<(), Error> {
        let CpuOperand { packed, tiles, weight, .. } = operand;
        let b = match packed.shape().encoding() {
            Some(Encoding::MxInt8) => weight.get(),
            Some(Encoding::MxFp4) => Format::MxFp4,
            Some(Encoding::NvFp4) => Format::NvFp4,
            // Other groups than the formats' are quantized only.
            _ => return Ok(()),
        };
        by_engine!(self.engine,
            kernels, () => matmul::pack(kernels, &self.threads, packed.view(), b, tiles),
            portable, () => {
                let _ = (tiles, b); // it reads the packed form
                Ok(())
            }
        )
    }
}

impl Resident for CpuSimd {
    type Tensor = CpuTensor;
    type Operand = CpuOperand;
    type Transform = CpuTransform;

    fn empty_tensor(&self) -> Result<CpuTensor, Error> {
        Ok(CpuTensor(FloatVec::default()))
    }

    fn empty_operand(&self) -> Result<CpuOperand, Error> {
        Ok(CpuOperand {
            packed: PackedMatrix::zeros(PackedShape::of(Format::MxFp4, 0, 0)?),
            row_scales: Vec::new(),
            tiles: matmul::RowTiles::default(),
            weight: WeightFormat::default(),
        })
    }

    fn scratch_bytes(&self) -> usize {
        CpuSimd::scratch_bytes(self)
    }

    fn release_scratch(&self) -> Result<(), Error> {
        CpuSimd::release_scratch(self);
        Ok(())
    }

    fn operand_bytes(&self, operand: &CpuOperand) -> usize {
        let rows = operand.row_scales.capacity() * size_of::<f32>();
        operand.packed.allocated_bytes() + operand.tiles.allocated_bytes() + rows
    }

    fn upload(&self, x: FloatSlice<'_>, to: &mut CpuTensor) -> Result<(), Error> {
        to.0.resize(x.float_type(), x.len()).copy_from(x, Buffer::Input)
    }

    fn download(&self, from: &CpuTensor, mut out: FloatSliceMut<'_>) -> Result<(), Error> {
        out.copy_from(from.values(), Buffer::Output)
    }

    fn load_transform(&self, t: &Transform<'_>, x: FloatType) -> Result<CpuTransform, Error> {
        Ok(CpuTransform(TransformColumns::new(t, x)))
    }

    fn quantize_resident(
        &self,
        x: Source<'_, CpuTensor>,
        [rows, k]: [usize; 2],
        spec: &QuantSpec,
        transform: Option<&CpuTransform>,
        out: &mut CpuOperand,
        counts: Option<&mut QuantCounts>,
    ) -> Result<(), Error> {
        check_environment()?;
        let x = match x {
            Source::Host(x) => x,
            Source::Resident(x) => x.values(),
        };
        let input = QuantizeInput::new(x, rows, k, spec)?;
        if let Some(CpuTransform(t)) = transform {
            let (shape, block) = (t.shape(), t.shape().block.get());
            let fits = match shape.blocks {
                None => k.is_multiple_of(block),
                Some(blocks) => blocks.checked_mul(block) == Some(k),
            };
            if !fits {
                return Err(Error::TransformShape { k, block, blocks: shape.blocks });
            }
            let (expected, got) = (shape.float_type, x.float_type());
            if expected != got {
                return Err(Error::Float { what: Buffer::Input, expected, got });
            }
        }
        self.supports_quantize(&input.query())?;
        out.reshape(input.shape());
        let CpuOperand { packed, row_scales, .. } = out;
        let mut to = packed.view_mut();
        if spec.row_scales() {
            row_scales.resize(rows, 0.0);
            to = to.with_row_scales(row_scales)?;
        }
        let counted = self.quantize_by(&input, transform.map(|t| &t.0), &mut to)?;
        if let Some(counts) = counts {
            *counts = counted;
        }
        self.pack(out)
    }

    fn matmul_resident<B: Packed>(
        &self,
        a: &CpuOperand,
        b: &CpuWeight<B>,
        epilogue: Epilogue<'_>,
        out: Sink<'_, CpuTensor>,
    ) -> Result<Paths, Error> {
        let outputs = a.packed.shape().rows().checked_mul(b.rows());
        let out = match (out, outputs) {
            (Sink::Host(out), _) => out,
            (Sink::Resident(out, float_type), Some(outputs)) => out.0.resize(float_type, outputs),
            (Sink::Resident(..), None) => {
                let (rows, cols) = (a.packed.shape().rows(), b.rows());
                return Err(Error::ShapeOverflow { rows, cols });
            }
        };
        if let Some(format) = PreparedWeight::shape(b).format() {
            a.weight.set(format);
        }
        let epilogue = epilogue.with_row_scales(epilogue.row_scales.or(a.row_scales()));
        let view = a.packed.view();
        let (by, rows) = ((&self.threads, &self.scratch), (view, &a.tiles));
        b.weight.matmul_tiles(by, rows, epilogue, out)
    }

    fn export(&self, from: &CpuOperand, out: &mut PackedMut<'_>) -> Result<(), Error> {
        out.copy_from(from.packed.view())?;
        if let (Some(to), Some(from)) = (out.row_scales_mut(), from.row_scales()) {
            to.copy_from_slice(from);
        }
        Ok(())
    }

    fn import(&self, from: PackedView<'_>, to: &mut CpuOperand) -> Result<(), Error> {
        to.reshape(from.shape());
        to.packed.view_mut().copy_from(from)?;
        self.pack(to)
    }
}
