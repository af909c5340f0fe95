//! Shapes of packed matrices, and what must be equal of two of them ([C3], [C8]).
//!
//! Worked example: 2 rows of K = 48 in groups of 16 are 48 bytes of codes and 6 of scales; in
//! groups of 32 there is no such shape.
//!
//! [C3]: crate::contract#c3
//! [C8]: crate::contract#c8

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

    pub(super) fn expect_lens(&self, codes: usize, scales: usize) -> Result<(), Error> {
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
