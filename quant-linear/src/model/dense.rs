//! Dense values, tile by tile: reading, and what packed values are worth.
//!
//! The SIMD backend dequantizes where it is compiled in, the reference elsewhere; the bits are the
//! same.

use fp4_core::{Buffer, FloatType, FloatVec, PackedView, Transform, with_floats};

use crate::checkpoint::tiles::Tile;
use crate::checkpoint::{Checkpoint, Tensor};
use crate::error::Error;

/// Reads a tile of a dense tensor.
///
/// # Errors
/// As [`Checkpoint::read`].
pub(super) fn read(
    from: &Checkpoint,
    tensor: &Tensor,
    float_type: FloatType,
    tile: &Tile,
) -> Result<FloatVec, Error> {
    let (size, mut values) = (float_type.bytes(), FloatVec::zeros(float_type, 0));
    let bytes = from.read(tensor, tile.start * size..(tile.start + tile.len()) * size)?;
    values.append_le_bytes(&bytes);
    Ok(values)
}

/// The part of a transform that acts on a tile's columns.
///
/// # Errors
/// A transform per block that has no block for the tile.
pub(super) fn columns<'a>(transform: &Transform<'a>, tile: &Tile) -> Result<Transform<'a>, Error> {
    let (block, Some(_)) = (transform.block(), transform.shape().blocks) else {
        return Ok(*transform);
    };
    let (start, blocks) = (transform.offset(tile.col / block), tile.cols / block);
    let values = start..start + blocks * block * block;
    Ok(with_floats!(FloatSlice, transform.values(), v => {
        let (expected, got) = (values.end, v.len());
        let short = fp4_core::Error::Len { what: Buffer::Transform, expected, got };
        let values = v.get(values).ok_or(short)?;
        Transform::per_block(values, block, blocks)?
    }))
}

/// What the packed values are worth, in f32 (C4.4).
///
/// # Errors
/// A global scale that is not legal.
pub(super) fn dequantized(packed: PackedView<'_>, global_scale: f32) -> Result<Vec<f32>, Error> {
    let shape = packed.shape();
    let mut out = vec![0f32; shape.rows() * shape.k()];
    #[cfg(feature = "cpu-simd")]
    fp4_backend_cpu_simd::CpuSimd::new().dequantize(packed, global_scale, (&mut out[..]).into())?;
    #[cfg(not(feature = "cpu-simd"))]
    fp4_core::reference::dequantize(packed, global_scale, (&mut out[..]).into())?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fp4_core::{TransformShape, reference};

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
        let y = crate::transform::transformed(x[128..256].into(), 128, &part).unwrap();
        assert_eq!(y, FloatVec::F32(whole[128..256].to_vec()));
    }
}
