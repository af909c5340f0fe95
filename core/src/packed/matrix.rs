//! Packed matrices that own their buffers (feature `alloc`).

use alloc::vec::Vec;
use core::fmt;

use super::{Packed, PackedMut, PackedShape, PackedView, pad_k, padded_k};
use crate::error::Error;

/// An owned packed matrix.
#[derive(Clone, PartialEq, Eq)]
pub struct PackedMatrix {
    shape: PackedShape,
    codes: Vec<u8>,
    scales: Vec<u8>,
}

/// Shape and format.
impl fmt::Debug for PackedMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PackedMatrix").field("shape", &self.shape).finish_non_exhaustive()
    }
}

impl PackedMatrix {
    /// Takes `codes` and row-major `scales` as a matrix of `shape`.
    ///
    /// # Errors
    /// [`Error::Len`] if a buffer does not have the shape's length.
    pub fn new(shape: PackedShape, codes: Vec<u8>, scales: Vec<u8>) -> Result<Self, Error> {
        shape.expect_lens(codes.len(), scales.len())?;
        Ok(PackedMatrix { shape, codes, scales })
    }

    /// A matrix of zero codes and zero scale bytes.
    pub fn zeros(shape: PackedShape) -> Self {
        PackedMatrix {
            shape,
            codes: alloc::vec![0; shape.codes_len()],
            scales: alloc::vec![0; shape.scales_len()],
        }
    }

    /// Shape and format.
    pub const fn shape(&self) -> PackedShape {
        self.shape
    }

    /// All codes: two a byte, or the elements of MXINT8.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// All scale bytes.
    pub fn scales(&self) -> &[u8] {
        &self.scales
    }

    /// The matrix, borrowed.
    pub fn view(&self) -> PackedView<'_> {
        PackedView { shape: self.shape, codes: &self.codes, scales: &self.scales }
    }

    /// The matrix, borrowed to be written.
    pub fn view_mut(&mut self) -> PackedMut<'_> {
        PackedMut {
            shape: self.shape,
            codes: &mut self.codes,
            scales: &mut self.scales,
            row_scales: None,
        }
    }

    /// Changes the shape, keeping the allocation where it is large enough. Contents are
    /// unspecified afterwards: a quantizer writes every byte.
    pub fn reshape(&mut self, shape: PackedShape) {
        self.codes.resize(shape.codes_len(), 0);
        self.scales.resize(shape.scales_len(), 0);
        self.shape = shape;
    }

    /// Bytes of memory held, also those that the present shape does not use.
    pub fn allocated_bytes(&self) -> usize {
        self.codes.capacity() + self.scales.capacity()
    }

    /// A copy with K padded to a multiple of 128 (C8).
    ///
    /// # Errors
    /// [`Error::ShapeOverflow`] if the padded shape does not fit `usize`.
    pub fn padded_k(&self) -> Result<Self, Error> {
        let mut padded =
            PackedMatrix::zeros(self.shape.resized(self.shape.rows(), padded_k(self.shape.k())?)?);
        pad_k(self.view(), &mut padded.view_mut())?;
        Ok(padded)
    }

    /// Codes and scale bytes.
    pub fn into_parts(self) -> (Vec<u8>, Vec<u8>) {
        (self.codes, self.scales)
    }
}

impl Packed for PackedMatrix {
    fn view(&self) -> PackedView<'_> {
        PackedMatrix::view(self)
    }
}

impl<P: Packed + ?Sized> Packed for alloc::sync::Arc<P> {
    fn view(&self) -> PackedView<'_> {
        (**self).view()
    }
}
