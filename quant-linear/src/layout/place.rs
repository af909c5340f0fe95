//! Where and in which order a layout keeps codes and scale bytes, and how they get from there to
//! the contract's order and back.
//!
//! ```text
//! contract    codes (rows, K / 2), low nibble = even; scales (rows, K / G), row-major     (C3)
//! nibbles     the even element in the low nibble, or in the high one
//! scales      row-major, or swizzled in tiles of 128 x 4                                  (C7)
//! columns     the matrix of each expert transposed: a row of a tensor is a column of the weight
//! blocks      ggml's: scales and codes of 32 or 64 elements side by side
//! ```
//!
//! ggml's blocks, along K:
//!
//! ```text
//! MXFP4, 17 bytes of 32 elements   scale, 16 bytes; byte j = element j (low), j + 16 (high)
//! NVFP4, 36 bytes of 64 elements   4 scales, 4 x 8 bytes; of each 16: j (low), j + 8 (high)
//! ```
//!
//! A tile is read as its rows need it: row-major bytes by range, all at once where the tile has all
//! columns; a swizzled matrix by the bands of 128 rows that the tile touches; columns one by one,
//! or all at once for all rows of an expert.

use std::ops::Range;

use fp4_core::{PackedMatrix, PackedShape, ScaleType, Swizzle};

use crate::checkpoint::TensorSource;
use crate::checkpoint::tiles::Tile;
use crate::error::Error;

/// The order of two codes in a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nibbles {
    /// Low nibble = even index (C3).
    LowEven,
    /// High nibble = even index.
    HighEven,
}

/// The order of scale bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleOrder {
    /// (rows, K / G), row-major.
    Rows,
    /// Swizzled in tiles of 128 x 4, padded (C7).
    Swizzled,
}

/// Where codes and scale bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Two tensors.
    Apart {
        /// Name of the codes.
        codes: String,
        /// Their order.
        nibbles: Nibbles,
        /// Name of the scale bytes.
        scales: String,
        /// Their order.
        order: ScaleOrder,
    },
    /// Two tensors of experts, each matrix transposed: codes (experts, K / 2, out), the low nibble
    /// the even element, and scales (experts, K / G, out).
    Columns {
        /// Name of the codes.
        codes: String,
        /// Name of the scale bytes.
        scales: String,
        /// Number of experts.
        experts: usize,
    },
    /// One tensor of ggml's blocks.
    Blocks {
        /// Its name.
        tensor: String,
    },
}

/// Bytes and elements of a block of ggml's.
pub fn block(scale_type: ScaleType) -> (usize, usize) {
    match scale_type {
        ScaleType::E8M0 => (17, 32),
        ScaleType::E4M3 => (36, 64),
    }
}

impl Place {
    /// Reads a tile.
    ///
    /// # Errors
    /// As [`TensorSource::range`].
    pub(super) fn read(
        &self,
        source: &dyn TensorSource,
        whole: PackedShape,
        tile: &Tile,
    ) -> Result<PackedMatrix, Error> {
        let shape = whole.resized(tile.rows, tile.cols)?;
        let (codes, scales) = match self {
            Place::Apart { codes, nibbles, scales, order } => {
                let mut codes = of_rows(source, codes, whole.k(), tile, (1, 2))?;
                if *nibbles == Nibbles::HighEven {
                    swap_nibbles(&mut codes);
                }
                let scales = match order {
                    ScaleOrder::Rows => {
                        of_rows(source, scales, whole.k(), tile, (1, whole.group().get()))?
                    }
                    ScaleOrder::Swizzled => unswizzled(source, scales, whole, tile)?,
                };
                (codes, scales)
            }
            Place::Columns { codes, scales, experts } => {
                let out = whole.rows() / (*experts).max(1);
                let part = |name: &str, elements: usize| {
                    let cols = tile.col / elements..(tile.col + tile.cols) / elements;
                    of_columns(source, name, [whole.k() / elements, out], tile, cols)
                };
                (part(codes, 2)?, part(scales, whole.group().get())?)
            }
            Place::Blocks { tensor } => {
                let (bytes, elements) = block(whole.scale_type());
                // Whole blocks, of which a tile may begin or end inside one.
                let first = tile.col / elements * elements;
                let cols = (tile.col + tile.cols).next_multiple_of(elements) - first;
                let start = tile.start - (tile.col - first);
                let blocks = Tile { col: first, cols, start, ..*tile };
                let read = of_rows(source, tensor, whole.k(), &blocks, (bytes, elements))?;
                let (codes, scales) = from_blocks(whole.scale_type(), &read);
                let part = |all: Vec<u8>, elements: usize| {
                    let own =
                        (tile.col - first) / elements..(tile.col - first + tile.cols) / elements;
                    columns(all, cols / elements, own)
                };
                (part(codes, 2), part(scales, whole.group().get()))
            }
        };
        Ok(PackedMatrix::new(shape, codes, scales)?)
    }
}

/// The bytes of a tile of a row-major matrix of `k` columns, so many bytes for so many elements.
fn of_rows(
    source: &dyn TensorSource,
    name: &str,
    k: usize,
    tile: &Tile,
    (bytes, elements): (usize, usize),
) -> Result<Vec<u8>, Error> {
    let at = |element: usize| element / elements * bytes;
    if tile.cols == k || tile.rows == 1 {
        let start = at(tile.start);
        return Ok(source.range(name, start..start + at(tile.len()))?.into_owned());
    }
    let mut all = Vec::with_capacity(at(tile.len()));
    for row in 0..tile.rows {
        let start = at(tile.start + row * k);
        all.extend_from_slice(&source.range(name, start..start + at(tile.cols))?);
    }
    Ok(all)
}

/// The bytes `own` of each row of `width` bytes.
fn columns(all: Vec<u8>, width: usize, own: Range<usize>) -> Vec<u8> {
    match own.len() == width {
        true => all,
        false => all.chunks_exact(width).flat_map(|row| &row[own.clone()]).copied().collect(),
    }
}

/// Exchanges the codes of each byte.
pub fn swap_nibbles(codes: &mut [u8]) {
    codes.iter_mut().for_each(|byte| *byte = byte.rotate_left(4));
}

/// The scales of a tile of a swizzled matrix.
fn unswizzled(
    source: &dyn TensorSource,
    name: &str,
    whole: PackedShape,
    tile: &Tile,
) -> Result<Vec<u8>, Error> {
    let (groups, group) = (whole.row_groups(), whole.group().get());
    let (rows, cols) = (tile.row..tile.row + tile.rows, tile.col / group..);
    let cols: Range<usize> = cols.start..cols.start + tile.cols / group;
    let mut scales = Vec::with_capacity(rows.len() * cols.len());
    for band in (rows.start / 128 * 128..rows.end).step_by(128) {
        let swizzle = Swizzle::new(128, groups)?;
        let start = band * swizzle.padded_cols();
        let bytes = source.range(name, start..start + swizzle.len())?;
        for row in rows.start.max(band)..rows.end.min(band + 128) {
            // The offsets of a band of 128 whole rows are inside it.
            let at = cols.clone().filter_map(|col| swizzle.offset(row - band, col));
            scales.extend(at.map(|at| bytes[at]));
        }
    }
    Ok(scales)
}

/// The bytes `cols` of the rows of a tile, row-major, out of a tensor (experts, depth, out) that
/// holds the columns of each matrix.
fn of_columns(
    source: &dyn TensorSource,
    name: &str,
    [depth, out]: [usize; 2],
    tile: &Tile,
    cols: Range<usize>,
) -> Result<Vec<u8>, Error> {
    let width = cols.len();
    let mut bytes = vec![0; tile.rows * width];
    let (mut row, end) = (tile.row, tile.row + tile.rows);
    while row < end {
        let (expert, first) = (row / out, row % out);
        let rows = (out - first).min(end - row);
        let into = &mut bytes[(row - tile.row) * width..][..rows * width];
        // Whole columns lie one after the other.
        let step = if rows == out { width.max(1) } else { 1 };
        for at in cols.clone().step_by(step) {
            let start = (expert * depth + at) * out + first;
            let read = source.range(name, start..start + rows * step)?;
            for (col, column) in read.chunks_exact(rows).enumerate() {
                for (row, &byte) in column.iter().enumerate() {
                    into[row * width + (at - cols.start) + col] = byte;
                }
            }
        }
        row += rows;
    }
    Ok(bytes)
}

/// Codes and scales in the contract's order out of whole blocks.
pub fn from_blocks(scale_type: ScaleType, blocks: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (bytes, elements) = block(scale_type);
    let (per_block, group) = (bytes - elements / 2, elements / (bytes - elements / 2));
    let (mut codes, mut scales) = (vec![], vec![]);
    for block in blocks.chunks_exact(bytes) {
        let (of_scales, of_codes) = block.split_at(per_block);
        scales.extend_from_slice(of_scales);
        for halves in of_codes.chunks_exact(group / 2) {
            let low = halves.chunks_exact(2).map(|pair| pair[0] & 15 | pair[1] << 4);
            let high = halves.chunks_exact(2).map(|pair| pair[0] >> 4 | pair[1] & 0xF0);
            codes.extend(low.chain(high));
        }
    }
    (codes, scales)
}

/// Whole blocks out of codes and scales in the contract's order.
pub fn to_blocks(scale_type: ScaleType, codes: &[u8], scales: &[u8]) -> Vec<u8> {
    let (bytes, elements) = block(scale_type);
    let (per_block, group) = (bytes - elements / 2, elements / (bytes - elements / 2));
    let mut blocks = Vec::with_capacity(codes.len() + scales.len());
    for (codes, scales) in codes.chunks_exact(elements / 2).zip(scales.chunks_exact(per_block)) {
        blocks.extend_from_slice(scales);
        for group in codes.chunks_exact(group / 2) {
            let (low, high) = group.split_at(group.len() / 2);
            for (low, high) in low.iter().zip(high) {
                blocks.push(low & 15 | high << 4);
                blocks.push(low >> 4 | high & 0xF0);
            }
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_hold_the_halves_of_a_group_side_by_side() {
        // Element i of 32 has code i % 16: low nibbles 0..16, high ones too.
        let codes: Vec<u8> = (0..16).map(|j| ((2 * j) % 16) | (((2 * j + 1) % 16) << 4)).collect();
        let blocks = to_blocks(ScaleType::E8M0, &codes, &[0x7F]);
        let expected: Vec<u8> = std::iter::once(0x7F).chain((0..16).map(|j| j * 0x11)).collect();
        assert_eq!(blocks, expected);
        assert_eq!(from_blocks(ScaleType::E8M0, &blocks), (codes, vec![0x7F]));
    }

    #[test]
    fn blocks_and_back_is_the_identity() {
        for ty in ScaleType::ALL {
            let (bytes, elements) = block(ty);
            let codes: Vec<u8> = (0..3 * elements / 2).map(|i| (i * 37 % 251) as u8).collect();
            let scales: Vec<u8> = (0..3 * (bytes - elements / 2)).map(|i| i as u8).collect();
            let blocks = to_blocks(ty, &codes, &scales);
            assert_eq!(blocks.len(), 3 * bytes);
            assert_eq!(from_blocks(ty, &blocks), (codes, scales));
        }
    }

    #[test]
    fn a_group_of_sixteen_is_split_at_eight() {
        // NVFP4: element i of 64 is i % 16; byte j of each 16 holds j and j + 8.
        let codes: Vec<u8> = (0..32).map(|j| ((2 * j) % 16) | (((2 * j + 1) % 16) << 4)).collect();
        let blocks = to_blocks(ScaleType::E4M3, &codes, &[1, 2, 3, 4]);
        assert_eq!(blocks[..5], [1, 2, 3, 4, 0x80]);
        assert_eq!(blocks[4..12], [0x80, 0x91, 0xA2, 0xB3, 0xC4, 0xD5, 0xE6, 0xF7]);
    }
}
