//! Operands in a backend's own memory and form: GPUs, and CPU kernels that skip packing.

use crate::backend::{Matmul, Paths, Quantizer};
use crate::counts::QuantCounts;
use crate::epilogue::Epilogue;
use crate::error::Error;
use crate::float::{FloatSlice, FloatSliceMut};
use crate::format::FloatType;
use crate::packed::{Packed, PackedMut, PackedView};
use crate::spec::QuantSpec;
use crate::transform::Transform;

/// Dense values to read: on the host, or in the backend's memory.
#[derive(Debug)]
pub enum Source<'a, T: ?Sized> {
    /// Host values.
    Host(FloatSlice<'a>),
    /// A tensor of the backend.
    Resident(&'a T),
}

/// Where dense values are written: to the host, or to the backend's memory.
#[derive(Debug)]
pub enum Sink<'a, T: ?Sized> {
    /// Host values; the slice's type is the output type.
    Host(FloatSliceMut<'a>),
    /// A tensor of the backend, resized as needed, of this type.
    Resident(&'a mut T, FloatType),
}

/// A backend that quantizes and multiplies operands in its own memory or its own form.
///
/// Routing uses it when both roles land on the same backend: the quantized activation then never
/// leaves it. `&mut` outputs are resized as needed and reused, so that a steady state allocates
/// nothing. The bits are the same as by way of [`Quantizer::quantize`] and [`Matmul::matmul`].
pub trait Resident: Quantizer + Matmul {
    /// Dense values in the backend's memory.
    type Tensor: Send + Sync + 'static;
    /// A quantized activation in the form that this backend's matmul reads.
    type Operand: Send + Sync + 'static;
    /// A transform in the backend's memory, rounded to the type of the activations.
    type Transform: Send + Sync + 'static;

    /// An empty tensor, to be filled by [`upload`](Self::upload) or as a [`Sink`].
    ///
    /// # Errors
    /// A device failure.
    fn empty_tensor(&self) -> Result<Self::Tensor, Error>;

    /// An empty operand, to be filled by [`quantize_resident`](Self::quantize_resident).
    ///
    /// # Errors
    /// A device failure.
    fn empty_operand(&self) -> Result<Self::Operand, Error>;

    /// Bytes of idle buffers that the backend keeps between calls for its own use: 0 by default.
    fn scratch_bytes(&self) -> usize {
        0
    }

    /// Frees those buffers; the next calls make them again.
    ///
    /// # Errors
    /// A device failure.
    fn release_scratch(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Bytes of memory that an operand holds, on whatever device: what keeping it costs.
    fn operand_bytes(&self, operand: &Self::Operand) -> usize;

    /// Copies host values into a tensor.
    ///
    /// # Errors
    /// A device failure.
    fn upload(&self, x: FloatSlice<'_>, to: &mut Self::Tensor) -> Result<(), Error>;

    /// Copies a tensor to the host.
    ///
    /// # Errors
    /// [`Error::Len`] or [`Error::Float`] if `out` does not fit; a device failure.
    fn download(&self, from: &Self::Tensor, out: FloatSliceMut<'_>) -> Result<(), Error>;

    /// Loads a transform for activations of type `x`, once for many calls.
    ///
    /// # Errors
    /// [`Error::Unsupported`] or a device failure.
    fn load_transform(
        &self,
        transform: &Transform<'_>,
        x: FloatType,
    ) -> Result<Self::Transform, Error>;

    /// Quantizes a (rows, k) matrix into the backend's own operand form (C4, C5). What that did to
    /// the values is written to `counts` if it is asked for: a device may have to be waited for.
    ///
    /// Where the settings ask for row scales, the operand keeps them until it gets other contents:
    /// [`matmul_resident`](Self::matmul_resident) multiplies by them, [`export`](Self::export)
    /// writes them.
    ///
    /// # Errors
    /// As [`Quantizer::quantize`].
    fn quantize_resident(
        &self,
        x: Source<'_, Self::Tensor>,
        shape: [usize; 2],
        spec: &QuantSpec,
        transform: Option<&Self::Transform>,
        out: &mut Self::Operand,
        counts: Option<&mut QuantCounts>,
    ) -> Result<(), Error>;

    /// Multiplies an operand in the backend's own form (C6). An operand that was quantized with row
    /// scales brings them along: the epilogue need not have them, and if it does, its own are
    /// taken.
    ///
    /// # Errors
    /// As [`Matmul::matmul`].
    fn matmul_resident<B: Packed>(
        &self,
        a: &Self::Operand,
        b: &Self::Prepared<B>,
        epilogue: Epilogue<'_>,
        out: Sink<'_, Self::Tensor>,
    ) -> Result<Paths, Error>;

    /// Writes an operand as packed codes and row-major scales, for a mixed pair whose matmul is
    /// another backend's; its row scales too, if it has them and `out` has room.
    ///
    /// # Errors
    /// A shape that does not fit, or a device failure.
    fn export(&self, from: &Self::Operand, out: &mut PackedMut<'_>) -> Result<(), Error>;

    /// Reads packed codes and row-major scales into the backend's own form, for a mixed pair
    /// whose quantizer is another backend's.
    ///
    /// # Errors
    /// [`Error::Unsupported`] or a device failure.
    fn import(&self, from: PackedView<'_>, to: &mut Self::Operand) -> Result<(), Error>;
}
