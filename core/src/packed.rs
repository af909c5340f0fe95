//! Packed matrices: e2m1 codes two a byte, or int8 elements, and row-major scale bytes ([C3],
//! [C10]).
//!
//! ```text
//! codes   (rows, K / 2)   byte j of a row = code(2j) | code(2j + 1) << 4
//! scales  (rows, K / G)   byte g of a row scales elements g*G .. (g+1)*G
//! ```
//!
//! MXINT8 activations have one element a byte: codes (rows, K).
//!
//! A is (M, K), B is (N, K), both row-major with K contiguous: the product is A * B^T ("tn").
//! [`PackedView`] borrows, [`PackedMut`] borrows to write, `PackedMatrix` owns (feature `alloc`).
//! All three are checked once, at construction, so that the code behind them never indexes outside.
//!
//! Worked example: the codes 1, 2, 3, 4 along K are the bytes 0x21, 0x43.
//!
//! [C3]: crate::contract#c3
//! [C10]: crate::contract#c10

use core::fmt;

use crate::e2m1::E2m1;
use crate::error::{Buffer, Dim, Error};
use crate::format::{Element, Encoding, Format, GroupSize, Product, ScaleType};

/// The shape and format of a packed matrix: a value that every buffer is checked against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PackedShape {
    rows: usize,
    k: usize,
    scale_type: ScaleType,
    group: GroupSize,
    element: Element,
}

impl PackedShape {
    /// A matrix of e2m1 codes, `rows` rows of `k` elements. Zero rows and zero `k` are legal.
    ///
    /// # Errors
    /// [`Error::KNotWholeGroups`] if `k` is not a multiple of the group,
    /// [`Error::ShapeOverflow`] if `rows * k` does not fit `usize`.
    pub const fn new(
        rows: usize,
        k: usize,
        scale_type: ScaleType,
        group: GroupSize,
    ) -> Result<Self, Error> {
        Self::with_element(rows, k, Element::E2m1, scale_type, group)
    }

    const fn with_element(
        rows: usize,
        k: usize,
        element: Element,
        scale_type: ScaleType,
        group: GroupSize,
    ) -> Result<Self, Error> {
        if !k.is_multiple_of(group.get()) {
            let encoding = Encoding::from_parts(element, scale_type, group);
            return Err(Error::KNotWholeGroups { k, group: group.get(), encoding });
        }
        if rows.checked_mul(k).is_none() {
            return Err(Error::ShapeOverflow { rows, cols: k });
        }
        Ok(PackedShape { rows, k, scale_type, group, element })
    }

    /// A matrix in one of the two formats.
    ///
    /// # Errors
    /// As [`PackedShape::new`].
    pub const fn of(format: Format, rows: usize, k: usize) -> Result<Self, Error> {
        Self::new(rows, k, format.scale_type(), format.group())
    }

    /// A matrix in an encoding that a matmul takes as an operand.
    ///
    /// # Errors
    /// As [`PackedShape::new`].
    pub const fn encoded(encoding: Encoding, rows: usize, k: usize) -> Result<Self, Error> {
        let (element, scale) = (encoding.element(), encoding.scale_type());
        Self::with_element(rows, k, element, scale, encoding.group())
    }

    /// Rows.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Elements of a row.
    pub const fn k(&self) -> usize {
        self.k
    }

    /// Type of the scale bytes.
    pub const fn scale_type(&self) -> ScaleType {
        self.scale_type
    }

    /// Elements that share a scale.
    pub const fn group(&self) -> GroupSize {
        self.group
    }

    /// How one element is stored.
    pub const fn element(&self) -> Element {
        self.element
    }

    /// The format, if a weight may have it.
    pub const fn format(&self) -> Option<Format> {
        match self.element {
            Element::E2m1 => Format::from_parts(self.scale_type, self.group),
            Element::Int8 => None,
        }
    }

    /// The encoding, if a matmul takes it as an operand.
    pub const fn encoding(&self) -> Option<Encoding> {
        Encoding::from_parts(self.element, self.scale_type, self.group)
    }

    /// The format of a weight.
    ///
    /// # Errors
    /// [`Error::ElementMismatch`] for MXINT8; [`Error::NotAMatmulFormat`] if the scale type and
    /// group size make none.
    pub const fn expect_format(&self) -> Result<Format, Error> {
        match (self.element, self.format()) {
            (_, Some(format)) => Ok(format),
            (Element::Int8, None) => {
                Err(Error::ElementMismatch { expected: Element::E2m1, got: Element::Int8 })
            }
            (Element::E2m1, None) => {
                Err(Error::NotAMatmulFormat { scale: self.scale_type, group: self.group })
            }
        }
    }

    /// Groups in a row, K / G.
    pub const fn row_groups(&self) -> usize {
        self.k / self.group.get()
    }

    /// Bytes of codes in a row: K / 2, or K for MXINT8.
    pub const fn row_bytes(&self) -> usize {
        self.k / self.element.per_byte()
    }

    /// Bytes of codes in a group.
    pub const fn group_bytes(&self) -> usize {
        self.group.get() / self.element.per_byte()
    }

    /// Bytes of codes in the matrix.
    pub const fn codes_len(&self) -> usize {
        self.rows * self.row_bytes()
    }

    /// Scale bytes in the matrix.
    pub const fn scales_len(&self) -> usize {
        self.rows * self.row_groups()
    }

    /// The same encoding with other dimensions.
    ///
    /// # Errors
    /// As [`PackedShape::new`].
    pub const fn resized(&self, rows: usize, k: usize) -> Result<Self, Error> {
        Self::with_element(rows, k, self.element, self.scale_type, self.group)
    }

    fn expect_lens(&self, codes: usize, scales: usize) -> Result<(), Error> {
        if codes != self.codes_len() {
            let expected = self.codes_len();
            return Err(Error::Len { what: Buffer::Codes, expected, got: codes });
        }
        if scales != self.scales_len() {
            let expected = self.scales_len();
            return Err(Error::Len { what: Buffer::Scales, expected, got: scales });
        }
        Ok(())
    }

    /// Checks that `other` is of the same elements, format and dimensions.
    ///
    /// # Errors
    /// [`Error::ElementMismatch`], [`Error::FormatMismatch`] or [`Error::ShapeMismatch`].
    pub fn expect_same(&self, other: &PackedShape) -> Result<(), Error> {
        self.expect_same_format(other)?;
        for (what, expected, got) in [(Dim::Rows, self.rows, other.rows), (Dim::K, self.k, other.k)]
        {
            if expected != got {
                return Err(Error::ShapeMismatch { what, expected, got });
            }
        }
        Ok(())
    }

    /// Checks that this (M, K) operand and the (N, K) operand `b` can be multiplied (C6): `b` in
    /// one of the two formats, this one in the same or in MXINT8, the same K, and an M * N that
    /// fits `usize`. Returns the encodings.
    ///
    /// # Errors
    /// [`Error::FormatMismatch`], [`Error::ElementMismatch`], [`Error::NotAMatmulFormat`],
    /// [`Error::ShapeMismatch`] or [`Error::ShapeOverflow`].
    pub fn expect_product(&self, b: &PackedShape) -> Result<Product, Error> {
        let a = match self.encoding() {
            Some(Encoding::MxInt8) => Some(Encoding::MxInt8),
            encoding => {
                self.expect_same_format(b)?;
                encoding
            }
        };
        if self.k != b.k {
            return Err(Error::ShapeMismatch { what: Dim::K, expected: self.k, got: b.k });
        }
        if self.rows.checked_mul(b.rows).is_none() {
            return Err(Error::ShapeOverflow { rows: self.rows, cols: b.rows });
        }
        let b = b.expect_format()?;
        Ok(Product { a: a.unwrap_or(b.into()), b })
    }

    /// Checks that a range of groups lies inside a row.
    ///
    /// # Errors
    /// [`Error::Range`].
    pub fn expect_groups(&self, groups: &core::ops::Range<usize>) -> Result<(), Error> {
        let (start, end, len) = (groups.start, groups.end, self.row_groups());
        if start > end || end > len {
            return Err(Error::Range { what: Dim::Groups, start, end, len });
        }
        Ok(())
    }

    /// Checks that `other` has these elements and this format, whatever its dimensions.
    ///
    /// # Errors
    /// [`Error::ElementMismatch`] or [`Error::FormatMismatch`].
    pub fn expect_same_format(&self, other: &PackedShape) -> Result<(), Error> {
        if self.element != other.element {
            return Err(Error::ElementMismatch { expected: self.element, got: other.element });
        }
        let (expected, got) = ((self.scale_type, self.group), (other.scale_type, other.group));
        if expected == got { Ok(()) } else { Err(Error::FormatMismatch { expected, got }) }
    }
}

/// A borrowed packed matrix.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PackedView<'a> {
    shape: PackedShape,
    codes: &'a [u8],
    scales: &'a [u8],
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
        if start > end || end > self.shape.rows {
            return Err(Error::Range { what: Dim::Rows, start, end, len: self.shape.rows });
        }
        let (bytes, groups) = (self.shape.row_bytes(), self.shape.row_groups());
        Ok(PackedView {
            shape: PackedShape { rows: end - start, ..self.shape },
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
        if i >= self.shape.rows || k >= self.shape.k || self.shape.element != Element::E2m1 {
            return None;
        }
        let byte = self.codes[i * self.shape.row_bytes() + k / 2];
        Some(E2m1::from_bits(byte >> (4 * (k % 2))))
    }

    /// The MXINT8 element `k` of row `i`, in units of 2^-6 (C10); `None` outside the matrix, and
    /// for e2m1 codes.
    pub fn int8(&self, i: usize, k: usize) -> Option<i8> {
        if i >= self.shape.rows || k >= self.shape.k || self.shape.element != Element::Int8 {
            return None;
        }
        Some(self.codes[i * self.shape.row_bytes() + k] as i8)
    }

    /// True if any scale of row `i` is NaN: every output of that row is then NaN (C6).
    ///
    /// # Panics
    /// If `i` is not below the number of rows.
    pub fn row_has_nan(&self, i: usize) -> bool {
        self.row_scales(i).iter().any(|&s| self.shape.scale_type.is_nan(s))
    }
}

/// A packed matrix borrowed to be written, with room for row scales if there is any.
pub struct PackedMut<'a> {
    shape: PackedShape,
    codes: &'a mut [u8],
    scales: &'a mut [u8],
    row_scales: Option<&'a mut [f32]>,
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
        let (expected, got) = (self.shape.rows, row_scales.len());
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

/// Packs codes two a byte, low nibble first (C3). Only the low four bits of each code count.
///
/// # Errors
/// [`Error::Len`] unless `packed` is half as long as `codes`, which must be even.
pub fn pack(codes: &[u8], packed: &mut [u8]) -> Result<(), Error> {
    if codes.len() != 2 * packed.len() {
        return Err(Error::Len {
            what: Buffer::Codes,
            expected: codes.len().div_ceil(2),
            got: packed.len(),
        });
    }
    for (byte, pair) in packed.iter_mut().zip(codes.chunks_exact(2)) {
        *byte = (pair[0] & 0xF) | (pair[1] << 4);
    }
    Ok(())
}

/// Unpacks codes, low nibble first (C3).
///
/// # Errors
/// [`Error::Len`] unless `codes` is twice as long as `packed`.
pub fn unpack(packed: &[u8], codes: &mut [u8]) -> Result<(), Error> {
    if codes.len() != 2 * packed.len() {
        return Err(Error::Len {
            what: Buffer::Codes,
            expected: 2 * packed.len(),
            got: codes.len(),
        });
    }
    for (pair, &byte) in codes.chunks_exact_mut(2).zip(packed) {
        pair[0] = byte & 0xF;
        pair[1] = byte >> 4;
    }
    Ok(())
}

/// K rounded up to a multiple of 128 (C8).
///
/// # Errors
/// [`Error::ShapeOverflow`] if the result does not fit `usize`.
pub fn padded_k(k: usize) -> Result<usize, Error> {
    k.checked_next_multiple_of(128).ok_or(Error::ShapeOverflow { rows: 1, cols: k })
}

/// Copies `from` into `to`, whose K is larger: the extra codes become 0x0 and the extra scale
/// bytes 0x00 (C8). The padding multiplies to zero in every encoding and never changes a result.
///
/// # Errors
/// [`Error::ElementMismatch`], [`Error::FormatMismatch`] or [`Error::ShapeMismatch`] if `to` has
/// another encoding, other rows, or a smaller K.
pub fn pad_k(from: PackedView<'_>, to: &mut PackedMut<'_>) -> Result<(), Error> {
    let (src, dst) = (from.shape, to.shape);
    src.expect_same_format(&dst)?;
    if src.rows != dst.rows {
        return Err(Error::ShapeMismatch { what: Dim::Rows, expected: src.rows, got: dst.rows });
    }
    if dst.k < src.k {
        return Err(Error::ShapeMismatch { what: Dim::K, expected: src.k, got: dst.k });
    }
    if dst.k == 0 {
        return Ok(());
    }
    for i in 0..src.rows {
        let (codes, scales) = to.row(i);
        let (kept, padding) = codes.split_at_mut(src.row_bytes());
        kept.copy_from_slice(from.row_codes(i));
        padding.fill(0);
        let (kept, padding) = scales.split_at_mut(src.row_groups());
        kept.copy_from_slice(from.row_scales(i));
        padding.fill(0);
    }
    Ok(())
}

#[cfg(feature = "alloc")]
mod owned {
    use alloc::vec::Vec;

    use super::*;

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
                PackedMatrix::zeros(self.shape.resized(self.shape.rows, padded_k(self.shape.k)?)?);
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
}

#[cfg(feature = "alloc")]
pub use owned::PackedMatrix;

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(rows: usize, k: usize) -> PackedShape {
        PackedShape::of(Format::NvFp4, rows, k).unwrap()
    }

    #[test]
    fn the_low_nibble_is_the_even_index() {
        let mut packed = [0; 2];
        pack(&[1, 2, 3, 0xF4], &mut packed).unwrap();
        assert_eq!(packed, [0x21, 0x43]);
        let mut codes = [0; 4];
        unpack(&packed, &mut codes).unwrap();
        assert_eq!(codes, [1, 2, 3, 4]);
        assert!(pack(&[1, 2, 3], &mut packed).is_err());
        assert!(unpack(&packed, &mut codes[..3]).is_err());
    }

    #[test]
    fn hostile_shapes_are_errors() {
        let e8m0 = ScaleType::E8M0;
        assert_eq!(
            PackedShape::new(3, 48, e8m0, GroupSize::G32),
            Err(Error::KNotWholeGroups { k: 48, group: 32, encoding: Some(Encoding::MxFp4) })
        );
        let huge = usize::MAX - 31;
        assert_eq!(
            PackedShape::new(2, huge, e8m0, GroupSize::G32),
            Err(Error::ShapeOverflow { rows: 2, cols: huge })
        );
        let err = PackedView::new(shape(2, 32), &[0; 31], &[0; 4]).unwrap_err();
        assert_eq!(err, Error::Len { what: Buffer::Codes, expected: 32, got: 31 });
        let err = PackedView::new(shape(2, 32), &[0; 32], &[0; 5]).unwrap_err();
        assert_eq!(err, Error::Len { what: Buffer::Scales, expected: 4, got: 5 });
    }

    #[test]
    fn empty_matrices_are_legal() {
        for (rows, k) in [(0, 32), (4, 0), (0, 0)] {
            let view = PackedView::new(shape(rows, k), &[], &[]).unwrap();
            assert_eq!(view.code(0, 0), None);
            let wider = shape(rows, padded_k(k).unwrap());
            let (mut codes, mut scales) = ([1; 64], [1; 8]);
            let mut to = PackedMut::new(
                wider,
                &mut codes[..wider.codes_len()],
                &mut scales[..wider.scales_len()],
            )
            .unwrap();
            pad_k(view, &mut to).unwrap();
        }
    }

    #[test]
    fn padding_adds_zero_codes_and_zero_scale_bytes() {
        let (codes, scales) = ([0x77; 16], [0x7E, 0x01, 0xFE, 0x81]);
        let from = PackedView::new(shape(2, 16), &codes, &scales[..2]).unwrap();
        let (mut codes, mut scales) = ([0xAA; 128], [0xAA; 16]);
        let mut to = PackedMut::new(shape(2, 128), &mut codes, &mut scales).unwrap();
        pad_k(from, &mut to).unwrap();
        assert_eq!(
            (&codes[..9], &codes[64..73]),
            (
                &[0x77, 0x77, 0x77, 0x77, 0x77, 0x77, 0x77, 0x77, 0][..],
                &[0x77, 0x77, 0x77, 0x77, 0x77, 0x77, 0x77, 0x77, 0][..]
            )
        );
        assert!(codes[8..64].iter().chain(&codes[72..]).all(|&b| b == 0));
        assert_eq!(scales, [0x7E, 0, 0, 0, 0, 0, 0, 0, 0x01, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_row_range_shows_the_same_bytes() {
        let (codes, scales) = (core::array::from_fn::<u8, 24, _>(|i| i as u8), [1, 2, 3]);
        let all = PackedView::new(shape(3, 16), &codes, &scales).unwrap();
        let tail = all.rows_range(1..3).unwrap();
        assert_eq!((tail.codes(), tail.scales()), (&codes[8..], &scales[1..]));
        assert_eq!(tail.code(0, 3).unwrap().to_bits(), all.code(1, 3).unwrap().to_bits());
        assert!(all.rows_range(2..4).is_err());
        #[expect(clippy::reversed_empty_ranges)]
        let reversed = all.rows_range(2..1);
        assert!(reversed.is_err());
    }
}
