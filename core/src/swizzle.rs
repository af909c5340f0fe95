//! The 128x4-tile scale layout that block-scaled tensor cores read ([C7]).
//!
//! Rows are padded with zero bytes to a multiple of 128 and columns to a multiple of 4. The padded
//! matrix is cut into 128 x 4 tiles, stored row-major, 512 bytes each; inside a tile
//!
//! ```text
//! offset(r, c) = (r % 32) * 16 + (r / 32) * 4 + c        r in 0..128, c in 0..4
//! ```
//!
//! [`Swizzle`] is that layout as a value: sizes, the offset of a coordinate, and its inverse.
//!
//! Worked example: 5 rows x 5 columns pad to 128 x 8, two tiles, 1024 bytes. Row 4, column 4 lies
//! in the second tile at (4, 0): offset 512 + 4 * 16 = 576.
//!
//! Source: the block scaling factors layout of the cuBLAS documentation; contract clause [C7].
//!
//! [C7]: crate::contract#c7

use crate::error::{Buffer, Error};

/// Rows of a tile.
const TILE_ROWS: usize = 128;
/// Columns of a tile.
const TILE_COLS: usize = 4;
/// Bytes of a tile.
const TILE_BYTES: usize = TILE_ROWS * TILE_COLS;

/// The swizzled layout of a (rows, cols) matrix of scale bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Swizzle {
    rows: usize,
    cols: usize,
}

impl Swizzle {
    /// The layout of a matrix of `rows` x `cols` scale bytes.
    ///
    /// # Errors
    /// [`Error::ShapeOverflow`] if the padded size does not fit `usize`.
    pub const fn new(rows: usize, cols: usize) -> Result<Self, Error> {
        let overflow = Err(Error::ShapeOverflow { rows, cols });
        let (Some(padded_rows), Some(padded_cols)) =
            (rows.checked_next_multiple_of(TILE_ROWS), cols.checked_next_multiple_of(TILE_COLS))
        else {
            return overflow;
        };
        if padded_rows.checked_mul(padded_cols).is_none() {
            return overflow;
        }
        Ok(Swizzle { rows, cols })
    }

    /// Rows without padding.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Columns without padding.
    pub const fn cols(&self) -> usize {
        self.cols
    }

    /// Rows with padding, a multiple of 128.
    pub const fn padded_rows(&self) -> usize {
        self.rows.next_multiple_of(TILE_ROWS)
    }

    /// Columns with padding, a multiple of 4.
    pub const fn padded_cols(&self) -> usize {
        self.cols.next_multiple_of(TILE_COLS)
    }

    /// Bytes of the swizzled form, padding included.
    #[expect(clippy::len_without_is_empty, reason = "a layout is not a collection")]
    pub const fn len(&self) -> usize {
        self.padded_rows() * self.padded_cols()
    }

    /// Where the byte of `(row, col)` sits; defined for the padding too, `None` outside it.
    pub const fn offset(&self, row: usize, col: usize) -> Option<usize> {
        if row >= self.padded_rows() || col >= self.padded_cols() {
            return None;
        }
        let tile = row / TILE_ROWS * (self.padded_cols() / TILE_COLS) + col / TILE_COLS;
        let (r, c) = (row % TILE_ROWS, col % TILE_COLS);
        Some(tile * TILE_BYTES + r % 32 * 16 + r / 32 * 4 + c)
    }

    /// The `(row, col)` whose byte sits at `offset`, the inverse of [`offset`](Self::offset);
    /// the result lies in the padding where it is not below (rows, cols). `None` past the end.
    pub const fn coordinate(&self, offset: usize) -> Option<(usize, usize)> {
        if offset >= self.len() {
            return None;
        }
        let tiles_across = self.padded_cols() / TILE_COLS;
        let (tile, inside) = (offset / TILE_BYTES, offset % TILE_BYTES);
        let r = inside / 16 + inside % 16 / 4 * 32;
        Some((tile / tiles_across * TILE_ROWS + r, tile % tiles_across * TILE_COLS + inside % 4))
    }

    /// Swizzles a row-major matrix; the padding is written as zero bytes.
    ///
    /// # Errors
    /// [`Error::Len`] unless `scales` has rows * cols bytes and `swizzled` has [`len`](Self::len).
    pub fn swizzle(&self, scales: &[u8], swizzled: &mut [u8]) -> Result<(), Error> {
        self.expect_lens(scales.len(), swizzled.len())?;
        swizzled.fill(0);
        self.for_each(|index, offset| {
            if let (Some(to), Some(from)) = (swizzled.get_mut(offset), scales.get(index)) {
                *to = *from;
            }
        });
        Ok(())
    }

    /// Unswizzles into a row-major matrix; the padding is dropped.
    ///
    /// # Errors
    /// [`Error::Len`] unless `swizzled` has [`len`](Self::len) bytes and `scales` rows * cols.
    pub fn unswizzle(&self, swizzled: &[u8], scales: &mut [u8]) -> Result<(), Error> {
        self.expect_lens(scales.len(), swizzled.len())?;
        self.for_each(|index, offset| {
            if let (Some(to), Some(from)) = (scales.get_mut(index), swizzled.get(offset)) {
                *to = *from;
            }
        });
        Ok(())
    }

    /// Calls `f(row-major index, swizzled offset)` for every byte that is not padding.
    fn for_each(&self, mut f: impl FnMut(usize, usize)) {
        for row in 0..self.rows {
            for col in 0..self.cols {
                if let Some(offset) = self.offset(row, col) {
                    f(row * self.cols + col, offset);
                }
            }
        }
    }

    fn expect_lens(&self, scales: usize, swizzled: usize) -> Result<(), Error> {
        let expected = self.rows * self.cols;
        if scales != expected {
            return Err(Error::Len { what: Buffer::Scales, expected, got: scales });
        }
        let expected = self.len();
        if swizzled != expected {
            return Err(Error::Len { what: Buffer::Swizzled, expected, got: swizzled });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worked_example_sits_at_576() {
        let layout = Swizzle::new(5, 5).unwrap();
        assert_eq!(layout.len(), 1024);
        assert_eq!(layout.offset(4, 4), Some(576));
        assert_eq!(layout.coordinate(576), Some((4, 4)));
    }

    #[test]
    fn offset_and_coordinate_are_inverse_over_the_whole_padded_matrix() {
        for (rows, cols) in [(1, 1), (5, 5), (128, 4), (129, 3), (256, 9), (300, 65)] {
            let layout = Swizzle::new(rows, cols).unwrap();
            for offset in 0..layout.len() {
                let (r, c) = layout.coordinate(offset).unwrap();
                assert_eq!(layout.offset(r, c), Some(offset), "{rows}x{cols} at {offset}");
            }
            assert_eq!(layout.coordinate(layout.len()), None);
            assert_eq!(layout.offset(layout.padded_rows(), 0), None);
            assert_eq!(layout.offset(0, layout.padded_cols()), None);
        }
    }

    #[test]
    fn unswizzling_ignores_what_the_padding_holds() {
        let layout = Swizzle::new(3, 2).unwrap();
        let scales = [1, 2, 3, 4, 5, 6];
        let mut swizzled = [0xEE; 512];
        layout.swizzle(&scales, &mut swizzled).unwrap();
        assert_eq!(swizzled.iter().map(|&b| u32::from(b)).sum::<u32>(), 21);
        for (offset, byte) in swizzled.iter_mut().enumerate() {
            let (r, c) = layout.coordinate(offset).unwrap();
            if r >= 3 || c >= 2 {
                *byte = 0x55;
            }
        }
        let mut back = [0; 6];
        layout.unswizzle(&swizzled, &mut back).unwrap();
        assert_eq!(back, scales);
    }

    #[test]
    fn empty_and_overflowing_shapes() {
        let mut nothing = [0u8; 0];
        for (rows, cols) in [(0, 0), (0, 7), (7, 0)] {
            let layout = Swizzle::new(rows, cols).unwrap();
            assert_eq!(layout.len(), 0);
            layout.swizzle(&[], &mut nothing).unwrap();
            assert_eq!(layout.coordinate(0), None);
        }
        assert!(Swizzle::new(usize::MAX, 1).is_err());
        assert!(Swizzle::new(usize::MAX / 2, 8).is_err());
        assert!(Swizzle::new(3, 2).unwrap().swizzle(&[0; 5], &mut [0; 512]).is_err());
        assert!(Swizzle::new(3, 2).unwrap().unswizzle(&[0; 511], &mut [0; 6]).is_err());
    }
}
