//! Activations quantized into the form that the matmul reads, kept from one call to the next.
//!
//! A CPU backend has no memory of its own; what it has is an operand form. [`CpuOperand`] holds the
//! packed codes and scales (the wide path and `export` read them) and, for the tiled kernels, the tiles.
//! Tensors are host values. These buffers are reused, so a steady state of
//! decoding allocates nothing; a product of many rows by pairs of panels makes one buffer of pairs a task.

use std::fmt;

use fp4_core::{
    Buffer, Epilogue, Error, FloatSlice, FloatSliceMut, FloatType, Format, Packed, PackedMatrix,
    PackedMut, PackedShape, PackedView, Paths, QuantCounts, QuantSpec, QuantizeInput, Transform,
    backend::{Resident, Sink, Source},
    check_environment,
};
use half::{bf16, f16};

use crate::engine::by_engine;
use crate::quantize::Columns;
use crate::{CpuSimd, CpuWeight, Matmul, matmul};

/// Dense values on the host.
#[derive(Clone)]
pub struct CpuTensor(Values);

#[derive(Clone)]
enum Values {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

/// Type and length.
impl fmt::Debug for CpuTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CpuTensor").field(&self.values()).finish()
    }
}

impl CpuTensor {
    /// The values.
    pub fn values(&self) -> FloatSlice<'_> {
        match &self.0 {
            Values::F32(v) => FloatSlice::F32(v),
            Values::F16(v) => FloatSlice::F16(v),
            Values::Bf16(v) => FloatSlice::Bf16(v),
        }
    }

    /// `len` values of type `float_type`, whatever they are; the buffer is kept if it can be.
    fn resized(&mut self, float_type: FloatType, len: usize) -> FloatSliceMut<'_> {
        if self.values().float_type() != float_type {
            self.0 = match float_type {
                FloatType::F32 => Values::F32(Vec::new()),
                FloatType::F16 => Values::F16(Vec::new()),
                FloatType::Bf16 => Values::Bf16(Vec::new()),
            };
        }
        match &mut self.0 {
            Values::F32(v) => {
                v.resize(len, 0.0);
                FloatSliceMut::F32(v)
            }
            Values::F16(v) => {
                v.resize(len, f16::ZERO);
                FloatSliceMut::F16(v)
            }
            Values::Bf16(v) => {
                v.resize(len, bf16::ZERO);
                FloatSliceMut::Bf16(v)
            }
        }
    }
}

/// Copies values to others of the same type and number.
fn copy(from: FloatSlice<'_>, to: FloatSliceMut<'_>) -> Result<(), Error> {
    to.as_ref().expect_len(Buffer::Output, from.len())?;
    match (from, to) {
        (FloatSlice::F32(from), FloatSliceMut::F32(to)) => to.copy_from_slice(from),
        (FloatSlice::F16(from), FloatSliceMut::F16(to)) => to.copy_from_slice(from),
        (FloatSlice::Bf16(from), FloatSliceMut::Bf16(to)) => to.copy_from_slice(from),
        (from, to) => {
            let (expected, got) = (from.float_type(), to.float_type());
            return Err(Error::Float { what: Buffer::Output, expected, got });
        }
    }
    Ok(())
}

/// A quantized activation in the form that the kernels read.
pub struct CpuOperand {
    packed: PackedMatrix,
    tiles: matmul::Tiles,
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
}

/// A transform, transposed and rounded to the type of the activations.
#[derive(Clone)]
pub struct CpuTransform(Columns);

/// Shape and type.
impl fmt::Debug for CpuTransform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CpuTransform").field(&self.0.shape()).finish()
    }
}

impl CpuSimd {
    /// Brings the packed form of an operand into the kernels' form.
    fn pack(&self, operand: &mut CpuOperand) -> Result<(), Error> {
        // Other groups than the formats' are quantized only.
        if operand.packed.shape().format().is_none() {
            return Ok(());
        }
        let a = operand.packed.view();
        by_engine!(self.engine,
            kernels => matmul::pack(kernels, &self.threads, a, &mut operand.tiles),
            portable => Ok(())
        )
    }
}

impl Resident for CpuSimd {
    type Tensor = CpuTensor;
    type Operand = CpuOperand;
    type Transform = CpuTransform;

    fn empty_tensor(&self) -> Result<CpuTensor, Error> {
        Ok(CpuTensor(Values::F32(Vec::new())))
    }

    fn empty_operand(&self) -> Result<CpuOperand, Error> {
        Ok(CpuOperand {
            packed: PackedMatrix::zeros(PackedShape::of(Format::MxFp4, 0, 0)?),
            tiles: matmul::Tiles::default(),
        })
    }

    fn operand_bytes(&self, operand: &CpuOperand) -> usize {
        operand.packed.allocated_bytes() + operand.tiles.allocated_bytes()
    }

    fn upload(&self, x: FloatSlice<'_>, to: &mut CpuTensor) -> Result<(), Error> {
        copy(x, to.resized(x.float_type(), x.len()))
    }

    fn download(&self, from: &CpuTensor, out: FloatSliceMut<'_>) -> Result<(), Error> {
        copy(from.values(), out)
    }

    fn load_transform(&self, t: &Transform<'_>, x: FloatType) -> Result<CpuTransform, Error> {
        Ok(CpuTransform(Columns::new(t, x)))
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
        out.packed.reshape(input.shape());
        let to = &mut out.packed.view_mut();
        let counted = self.quantize_by(&input, transform.map(|t| &t.0), to)?;
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
            (Sink::Resident(out, float_type), Some(outputs)) => out.resized(float_type, outputs),
            (Sink::Resident(..), None) => {
                let (rows, cols) = (a.packed.shape().rows(), b.rows());
                return Err(Error::ShapeOverflow { rows, cols });
            }
        };
        let view = a.packed.view();
        by_engine!(self.engine,
            kernels => {
                check_environment()?;
                let alpha = epilogue.alpha_only()?;
                let (threads, b) = (&self.threads, b.tiled()?);
                matmul::matmul_tiles(kernels, threads, view, &a.tiles, b, alpha, out)
            },
            portable => self.matmul(view, b, epilogue, out)
        )
    }

    fn export(&self, from: &CpuOperand, out: &mut PackedMut<'_>) -> Result<(), Error> {
        out.copy_from(from.packed.view())
    }

    fn import(&self, from: PackedView<'_>, to: &mut CpuOperand) -> Result<(), Error> {
        to.packed.reshape(from.shape());
        to.packed.view_mut().copy_from(from)?;
        self.pack(to)
    }
}
