//! How a matrix is read piece by piece, so that memory does not grow with the largest tensor.
//!
//! ```text
//! a row fits the limit     tiles of whole rows, as many as fit
//! a row does not fit       tiles of one row, cut at multiples of 128 columns
//! ```
//!
//! Every legal group and transform block divides 128 and K, so a tile always holds whole groups and
//! whole blocks, and a tile is contiguous in the row-major codes, scales and values alike.
//!
//! Worked example: (3, 100000) f32 under 256 KiB: a row is 400 000 bytes, so tiles are one row by
//! 65 536 columns, and a rest of 34 464.

/// Default bytes of dense values in a tile.
pub const DEFAULT_BLOCK_BYTES: usize = 8 << 20;

/// Tiles are cut inside a row at multiples of this many columns.
const COLUMN_UNIT: usize = 128;

/// A piece of a (rows, k) matrix; what [`tiles`] gives is contiguous in row-major order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    /// First row.
    pub row: usize,
    /// Number of rows.
    pub rows: usize,
    /// First column.
    pub col: usize,
    /// Number of columns; of what [`tiles`] gives all of them unless `rows` is 1.
    pub cols: usize,
    /// Index of the first element.
    pub start: usize,
}

impl Tile {
    /// Number of elements.
    #[expect(clippy::len_without_is_empty, reason = "a tile is never empty")]
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// The same piece of the rows from `row` on of a matrix of `k` columns.
    pub(crate) fn below(self, row: usize, k: usize) -> Self {
        Tile { row: self.row + row, start: self.start + row * k, ..self }
    }
}

/// The tiles of a (rows, k) matrix of `element_bytes` each, of at most `limit` bytes (or 128
/// columns of one row, if that is more), in row-major order.
pub fn tiles(
    rows: usize,
    k: usize,
    element_bytes: usize,
    limit: usize,
) -> impl Iterator<Item = Tile> {
    let elements = limit / element_bytes.max(1);
    let (rows_step, cols_step) = match elements.checked_div(k).unwrap_or(0) {
        0 => (1, (elements / COLUMN_UNIT).max(1) * COLUMN_UNIT),
        rows => (rows, k),
    };
    let rows = if k == 0 { 0 } else { rows };
    (0..rows).step_by(rows_step).flat_map(move |row| {
        (0..k).step_by(cols_step).map(move |col| Tile {
            row,
            rows: rows_step.min(rows - row),
            col,
            cols: cols_step.min(k - col),
            start: row * k + col,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_a_matrix_in_order() {
        for (rows, k, limit) in
            [(7, 48, 4 * 48 * 3), (3, 100_000, 1 << 18), (1, 16, 1), (5, 400, 64), (4, 128, 512)]
        {
            let mut next = 0;
            for tile in tiles(rows, k, 4, limit) {
                assert_eq!(tile.start, next);
                assert_eq!(tile.start, tile.row * k + tile.col);
                assert!(tile.rows == 1 || tile.cols == k);
                assert!(4 * tile.len() <= limit.max(4 * COLUMN_UNIT), "{tile:?}");
                assert_eq!(tile.col % COLUMN_UNIT, 0);
                next += tile.len();
            }
            assert_eq!(next, rows * k, "{rows} x {k}");
        }
    }

    #[test]
    fn the_worked_example() {
        let cols: Vec<_> = tiles(3, 100_000, 4, 256 << 10).map(|t| t.cols).take(2).collect();
        assert_eq!(cols, [65_536, 34_464]);
    }

    #[test]
    fn empty_matrices_have_no_tiles() {
        for (rows, k) in [(0, 64), (64, 0), (0, 0), (usize::MAX, 0), (0, usize::MAX)] {
            assert_eq!(tiles(rows, k, 4, 1 << 20).count(), 0, "{rows} x {k}");
        }
    }
}
