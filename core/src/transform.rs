//! The block transform before quantization: y = x * T^T per block of K ([C5]).
//!
//! A Hadamard or another orthogonal block spreads an outlier over its block, so that it costs less
//! precision; applied to both operands it leaves the product as it was. This module holds the
//! borrowed transform and its checks; [`reference`](mod@crate::reference) applies it.
//!
//! ```text
//! shared      (Bt, Bt): every block of Bt columns uses the same matrix
//! per block   (K / Bt, Bt, Bt): block b of the columns uses matrix b
//! y[j] = round_to_x_type(fma chain over ascending i of x[i] * T[j][i])
//! ```
//!
//! [C5]: crate::contract#c5

use crate::error::{Buffer, Error};
use crate::float::FloatSlice;
use crate::format::{FloatType, GroupSize};

/// A borrowed block transform, checked to be square blocks of 16, 32, 64 or 128.
#[derive(Debug, Clone, Copy)]
pub struct Transform<'a> {
    values: FloatSlice<'a>,
    block: GroupSize,
    blocks: Option<usize>,
}

/// The shape of a transform: what capability queries see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TransformShape {
    /// Rows and columns of one block.
    pub block: GroupSize,
    /// Number of blocks; `None` if one block is shared.
    pub blocks: Option<usize>,
    /// The stored type.
    pub float_type: FloatType,
}

impl<'a> Transform<'a> {
    /// One (block, block) matrix for every block of K.
    ///
    /// # Errors
    /// [`Error::TransformBlock`] unless `block` is 16, 32, 64 or 128; [`Error::Len`] unless there
    /// are block * block values.
    pub fn shared(values: impl Into<FloatSlice<'a>>, block: usize) -> Result<Self, Error> {
        Self::new(values.into(), block, None)
    }

    /// `blocks` matrices of (block, block), one for each block of K.
    ///
    /// # Errors
    /// As [`Transform::shared`], with blocks * block * block values.
    pub fn per_block(
        values: impl Into<FloatSlice<'a>>,
        block: usize,
        blocks: usize,
    ) -> Result<Self, Error> {
        Self::new(values.into(), block, Some(blocks))
    }

    /// A transform of a stored shape: rank 2 (block, block) or rank 3 (blocks, block, block).
    ///
    /// # Errors
    /// [`Error::TransformBlock`] if the rank or the block is another, or the block not square;
    /// [`Error::Len`] if the values do not fill the shape.
    pub fn from_shape(values: impl Into<FloatSlice<'a>>, shape: &[usize]) -> Result<Self, Error> {
        match *shape {
            [rows, cols] if rows == cols => Self::new(values.into(), rows, None),
            [blocks, rows, cols] if rows == cols => Self::new(values.into(), rows, Some(blocks)),
            _ => Err(Error::TransformBlock { got: shape.last().copied().unwrap_or(0) }),
        }
    }

    fn new(values: FloatSlice<'a>, block: usize, blocks: Option<usize>) -> Result<Self, Error> {
        let Ok(size) = GroupSize::new(block) else {
            return Err(Error::TransformBlock { got: block });
        };
        let expected = blocks
            .unwrap_or(1)
            .checked_mul(block * block)
            .ok_or(Error::ShapeOverflow { rows: blocks.unwrap_or(1), cols: block * block })?;
        values.expect_len(Buffer::Transform, expected)?;
        Ok(Transform { values, block: size, blocks })
    }

    /// The transform's shape.
    pub fn shape(&self) -> TransformShape {
        TransformShape {
            block: self.block,
            blocks: self.blocks,
            float_type: self.values.float_type(),
        }
    }

    /// The stored values: row j of a block holds the weights of output j.
    pub fn values(&self) -> FloatSlice<'a> {
        self.values
    }

    /// Rows and columns of one block.
    pub fn block(&self) -> usize {
        self.block.get()
    }

    /// Where the matrix of column block `b` starts in [`values`](Self::values); for a `b` that the
    /// transform does not have, somewhere past its end.
    pub fn offset(&self, b: usize) -> usize {
        if self.blocks.is_some() { b.saturating_mul(self.block() * self.block()) } else { 0 }
    }

    /// Checks the transform against K.
    ///
    /// # Errors
    /// [`Error::TransformShape`] unless K is a whole number of blocks, and for a transform per
    /// block exactly as many as it has.
    pub fn expect_k(&self, k: usize) -> Result<(), Error> {
        let block = self.block();
        let fits = match self.blocks {
            None => k.is_multiple_of(block),
            Some(n) => n.checked_mul(block) == Some(k),
        };
        if fits { Ok(()) } else { Err(Error::TransformShape { k, block, blocks: self.blocks }) }
    }
}

/// Fills `out` (block * block values) with the orthonormal Hadamard matrix in Sylvester's order:
/// entry (j, i) is (-1)^popcount(j & i) / sqrt(block), rounded once to f32.
///
/// # Errors
/// [`Error::TransformBlock`] unless `block` is 16, 32, 64 or 128; [`Error::Len`] if `out` has
/// another length.
pub fn hadamard(block: usize, out: &mut [f32]) -> Result<(), Error> {
    let scale = match block {
        16 => 0.25,
        32 => core::f32::consts::FRAC_1_SQRT_2 * 0.25,
        64 => 0.125,
        128 => core::f32::consts::FRAC_1_SQRT_2 * 0.125,
        got => return Err(Error::TransformBlock { got }),
    };
    let (expected, got) = (block * block, out.len());
    if got != expected {
        return Err(Error::Len { what: Buffer::Transform, expected, got });
    }
    for (index, value) in out.iter_mut().enumerate() {
        let odd = ((index / block) & (index % block)).count_ones() % 2 == 1;
        *value = if odd { -scale } else { scale };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_sizes_are_errors() {
        let values = [0f32; 512];
        assert!(matches!(
            Transform::shared(&values[..64], 8),
            Err(Error::TransformBlock { got: 8 })
        ));
        assert!(matches!(Transform::shared(&values[..255], 16), Err(Error::Len { .. })));
        assert!(matches!(
            Transform::from_shape(&values[..512], &[16, 32]),
            Err(Error::TransformBlock { got: 32 })
        ));
        assert!(Transform::per_block(&values[..], 16, usize::MAX).is_err());
        let shared = Transform::shared(&values[..256], 16).unwrap();
        assert!(shared.expect_k(48).is_ok());
        assert_eq!(
            shared.expect_k(40),
            Err(Error::TransformShape { k: 40, block: 16, blocks: None })
        );
        let per_block = Transform::from_shape(&values[..], &[2, 16, 16]).unwrap();
        assert!(per_block.expect_k(32).is_ok());
        assert!(per_block.expect_k(48).is_err());
        assert_eq!((per_block.offset(1), shared.offset(1)), (256, 0));
    }

    #[test]
    fn hadamard_rows_are_orthonormal() {
        for block in [16, 32, 64, 128] {
            let mut h = vec![0f32; block * block];
            hadamard(block, &mut h).unwrap();
            for a in 0..block {
                for b in 0..block {
                    let dot: f64 = (0..block)
                        .map(|i| f64::from(h[a * block + i]) * f64::from(h[b * block + i]))
                        .sum();
                    let expected = f64::from(u8::from(a == b));
                    assert!((dot - expected).abs() < 1e-6, "{block}: {a} {b} {dot}");
                }
            }
        }
    }
}
