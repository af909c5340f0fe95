//! Borrowed packed matrices, to read and to write ([C3]).
//!
//! [C3]: crate::contract#c3

use core::fmt;

use super::PackedShape;
use crate::e2m1::E2m1;
use crate::error::{Buffer, Dim, Error};
use crate::format::Element;

/// A borrowed packed matrix.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PackedView<'a> {
    pub(super) shape: PackedShape,
    pub(super) codes: &'a [u8],
    pub(super) scales: &'a [u8],
}

/// Shape and format: a weight has millions of codes.
impl fmt::Debug for PackedView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PackedView").field("shape", &self.shape).finish_non_exhaustive()
    }
}

impl<'a> PackedView<'a> {
    /// Views `codes` and row-major `scales` as a matrix of `shape`.
    ///
    /// # Errors
    /// [`Error::Len`] if a buffer does not have the shape's length.
    pub fn new(shape: PackedShape, codes: &'a [u8], scales: &'a [u8]) -> Result<Self, Error> {
        shape.expect_lens(codes.len(), scales.len())?;
        Ok(PackedView { shape, codes, scales })
    }

    /// Shape and format.
    pub const fn shape(&self) -> PackedShape {
        self.shape
    }

    /// All codes: two a byte, or the elements of MXINT8.
    pub const fn codes(&self) -> &'a [u8] {
        self.codes
    }

    /// All scale bytes.
    pub const fn scales(&self) -> &'a [u8] {
        self.scales
    }

    /// Rows `range` as a matrix of their own.
    ///
    /// # Errors
    /// [`Error::Range`] if the range is outside the matrix.
    pub fn rows_range(&self, range: core::ops::Range<usize>) -> Result<Self, Error> {
        let (start, end) = (range.start, range.end);
        if start > end || end > self.shape.rows() {
            return Err(Error::Range { what: Dim::Rows, start, end, len: self.shape.rows() });
        }
        let (bytes, groups) = (self.shape.row_bytes(), self.shape.row_groups());
        Ok(PackedView {
            shape: self.shape.resized(end - start, self.shape.k())?,
            codes: &self.codes[start * bytes..end * bytes],
            scales: &self.scales[start * groups..end * groups],
        })
    }

    /// The code bytes of row `i`.
    ///
    /// # Panics
    /// If `i` is not below the number of rows.
    pub fn row_codes(&self, i: usize) -> &'a [u8] {
        let bytes = self.shape.row_bytes();
        &self.codes[i * bytes..(i + 1) * bytes]
    }

    /// The scale bytes of row `i`.
    ///
    /// # Panics
    /// If `i` is not below the number of rows.
    pub fn row_scales(&self, i: usize) -> &'a [u8] {
        let groups = self.shape.row_groups();
        &self.scales[i * groups..(i + 1) * groups]
    }

    /// The code of element `k` in row `i`; `None` outside the matrix, and for MXINT8.
    pub fn code(&self, i: usize, k: usize) -> Option<E2m1> {
        if i >= self.shape.rows() || k >= self.shape.k() || self.shape.element() != Element::E2m1 {
            return None;
        }
        let byte = self.codes[i * self.shape.row_bytes() + k / 2];
        Some(E2m1::from_bits(byte >> (4 * (k % 2))))
    }

    /// The MXINT8 element `k` of row `i`, in units of 2^-6 (C10); `None` outside the matrix, and
    /// for e2m1 codes.
    pub fn int8(&self, i: usize, k: usize) -> Option<i8> {
        if i >= self.shape.rows() || k >= self.shape.k() || self.shape.element() != Element::Int8 {
            return None;
        }
        Some(self.codes[i * self.shape.row_bytes() + k] as i8)
    }

    /// True if any scale of row `i` is NaN: every output of that row is then NaN (C6).
    ///
    /// # Panics
    /// If `i` is not below the number of rows.
    pub fn row_has_nan(&self, i: usize) -> bool {
        self.row_scales(i).iter().any(|&s| self.shape.scale_type().is_nan(s))
    }
}

/// A packed matrix borrowed to be written, with room for row scales if there is any.
pub struct PackedMut<'a> {
    pub(super) shape: PackedShape,
    pub(super) codes: &'a mut [u8],
    pub(super) scales: &'a mut [u8],
    pub(super) row_scales: Option<&'a mut [f32]>,
}

/// Shape and format.
impl fmt::Debug for PackedMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PackedMut").field("shape", &self.shape).finish_non_exhaustive()
    }
}

impl<'a> PackedMut<'a> {
    /// Views `codes` and row-major `scales` as a matrix of `shape` to be written.
    ///
    /// # Errors
    /// [`Error::Len`] if a buffer does not have the shape's length.
    pub fn new(
        shape: PackedShape,
        codes: &'a mut [u8],
        scales: &'a mut [u8],
    ) -> Result<Self, Error> {
        shape.expect_lens(codes.len(), scales.len())?;
        Ok(PackedMut { shape, codes, scales, row_scales: None })
    }

    /// The same with room for a scale for each row: a quantizer writes them where its settings ask
    /// for row scales (C4), and leaves them alone elsewhere.
    ///
    /// # Errors
    /// [`Error::Len`] unless there is one value for each row.
    pub fn with_row_scales(self, row_scales: &'a mut [f32]) -> Result<Self, Error> {
        let (expected, got) = (self.shape.rows(), row_scales.len());
        if got != expected {
            return Err(Error::Len { what: Buffer::RowScales, expected, got });
        }
        Ok(PackedMut { row_scales: Some(row_scales), ..self })
    }

    /// The row scales, if there is room for them.
    pub fn row_scales(&self) -> Option<&[f32]> {
        self.row_scales.as_deref()
    }

    /// The row scales to be written, if there is room for them.
    pub fn row_scales_mut(&mut self) -> Option<&mut [f32]> {
        self.row_scales.as_deref_mut()
    }

    /// Shape and format.
    pub const fn shape(&self) -> PackedShape {
        self.shape
    }

    /// The same matrix, borrowed to read.
    pub fn as_view(&self) -> PackedView<'_> {
        PackedView { shape: self.shape, codes: self.codes, scales: self.scales }
    }

    /// The same matrix, borrowed again.
    pub fn reborrow(&mut self) -> PackedMut<'_> {
        PackedMut {
            shape: self.shape,
            codes: self.codes,
            scales: self.scales,
            row_scales: self.row_scales.as_deref_mut(),
        }
    }

    /// All codes and all scale bytes.
    pub fn buffers(&mut self) -> (&mut [u8], &mut [u8]) {
        (self.codes, self.scales)
    }

    /// All codes, all scale bytes, and the row scales if there is room for them.
    pub fn parts(&mut self) -> (&mut [u8], &mut [u8], Option<&mut [f32]>) {
        (self.codes, self.scales, self.row_scales.as_deref_mut())
    }

    /// The code bytes and the scale bytes of row `i`.
    ///
    /// # Panics
    /// If `i` is not below the number of rows.
    pub fn row(&mut self, i: usize) -> (&mut [u8], &mut [u8]) {
        let (bytes, groups) = (self.shape.row_bytes(), self.shape.row_groups());
        (
            &mut self.codes[i * bytes..(i + 1) * bytes],
            &mut self.scales[i * groups..(i + 1) * groups],
        )
    }

    /// Copies codes and scales verbatim from a matrix of the same shape.
    ///
    /// # Errors
    /// [`Error::FormatMismatch`] or [`Error::ShapeMismatch`].
    pub fn copy_from(&mut self, from: PackedView<'_>) -> Result<(), Error> {
        self.shape.expect_same(&from.shape)?;
        self.codes.copy_from_slice(from.codes);
        self.scales.copy_from_slice(from.scales);
        Ok(())
    }
}

/// Anything that holds a packed matrix: a view, an owned matrix, or a shared pointer to one.
///
/// A backend's [`prepare`](crate::Matmul::prepare) takes any of them, so that the reference can
/// borrow on firmware and share on a server, and other backends can drop what they have repacked.
pub trait Packed {
    /// The matrix, borrowed.
    fn view(&self) -> PackedView<'_>;
}

impl Packed for PackedView<'_> {
    fn view(&self) -> PackedView<'_> {
        *self
    }
}

impl<P: Packed + ?Sized> Packed for &P {
    fn view(&self) -> PackedView<'_> {
        (**self).view()
    }
}
