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

#[cfg(feature = "alloc")]
mod matrix;
mod shape;
mod view;

#[cfg(feature = "alloc")]
pub use matrix::PackedMatrix;
pub use shape::PackedShape;
pub use view::{Packed, PackedMut, PackedView};

use crate::error::{Buffer, Dim, Error};

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
    let (src, dst) = (from.shape(), to.shape());
    src.expect_same_format(&dst)?;
    if src.rows() != dst.rows() {
        return Err(Error::ShapeMismatch {
            what: Dim::Rows,
            expected: src.rows(),
            got: dst.rows(),
        });
    }
    if dst.k() < src.k() {
        return Err(Error::ShapeMismatch { what: Dim::K, expected: src.k(), got: dst.k() });
    }
    if dst.k() == 0 {
        return Ok(());
    }
    for i in 0..src.rows() {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Encoding, Format, GroupSize, ScaleType};

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
