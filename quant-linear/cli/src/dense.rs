//! Dense values, tile by tile: reading, and what packed values are worth.
//!
//! The rule is the reference's (C4); this file only spreads rows over rayon's threads.

use anyhow::{Context, Result};
use fp4_core::{FloatType, PackedView, Transform, reference, with_floats};
use quant_linear::FloatVec;
use rayon::prelude::*;

use quant_linear::checkpoint::{Checkpoint, Tensor};
use quant_linear::model::tiles::Tile;

/// Fewest elements worth a task of their own.
const TASK: usize = 1 << 14;

/// Reads a tile of a dense tensor.
///
/// # Errors
/// As [`Checkpoint::read`].
pub(crate) fn read(
    from: &Checkpoint,
    tensor: &Tensor,
    float_type: FloatType,
    tile: &Tile,
) -> Result<FloatVec> {
    let size = float_type.bytes();
    let bytes = from.read(tensor, tile.start * size..(tile.start + tile.len()) * size)?;
    FloatVec::from_le_bytes(float_type, &bytes).context("a tile that ends inside a value")
}

/// The part of a transform that acts on a tile's columns.
///
/// # Errors
/// A transform per block that has no block for the tile.
pub(crate) fn columns<'a>(transform: &Transform<'a>, tile: &Tile) -> Result<Transform<'a>> {
    let (block, Some(_)) = (transform.block(), transform.shape().blocks) else {
        return Ok(*transform);
    };
    let (start, blocks) = (transform.offset(tile.col / block), tile.cols / block);
    let values = start..start + blocks * block * block;
    Ok(with_floats!(FloatSlice, transform.values(), v => {
        let values = v.get(values).context("the transform has too few blocks")?;
        Transform::per_block(values, block, blocks)?
    }))
}

/// What the packed values are worth, in f32 (C4.4).
///
/// # Errors
/// A global scale that is not legal.
pub(crate) fn dequantized(packed: PackedView<'_>, global_scale: f32) -> Result<Vec<f32>> {
    let shape = packed.shape();
    let (cols, mut out) = (shape.k(), vec![0f32; shape.rows() * shape.k()]);
    let rows = rows_per_task(cols);
    out.par_chunks_mut((rows * cols).max(1)).enumerate().try_for_each(|(task, out)| {
        let first = task * rows;
        let part = packed.rows_range(first..first + out.len() / cols)?;
        reference::dequantize(part, global_scale, out.into())
    })?;
    Ok(out)
}

fn rows_per_task(cols: usize) -> usize {
    TASK.div_ceil(cols.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fp4_core::TransformShape;

    #[test]
    fn a_tile_takes_its_part_of_a_transform() {
        let (rows, cols) = (700, 256);
        let x: Vec<f32> = (0..rows * cols).map(|i| (i as f32 * 0.37).sin()).collect();
        let t: Vec<f32> = (0..16 * 16 * 16).map(|i| (i as f32 * 0.11).cos()).collect();
        let t = Transform::per_block(&t[..], 16, 16).unwrap();
        let mut whole = vec![0f32; x.len()];
        reference::apply_transform((&x[..]).into(), cols, &t, (&mut whole[..]).into()).unwrap();
        // The second half of the first row, with the second half of the transform.
        let tile = Tile { row: 0, rows: 1, col: 128, cols: 128, start: 128 };
        let part = columns(&t, &tile).unwrap();
        assert!(matches!(part.shape(), TransformShape { blocks: Some(8), .. }));
        let y = quant_linear::transformed(x[128..256].into(), 128, &part).unwrap();
        assert_eq!(y, FloatVec::F32(whole[128..256].to_vec()));
    }
}
