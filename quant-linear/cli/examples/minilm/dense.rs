//! The dense linear layer in f32: what the FP4 layers are compared with.
//!
//! The product is `ndarray`'s, a tuned and multi-threaded matmul behind a safe API, so that the
//! speed column compares FP4 with a fair peer.

use anyhow::{Context, Result};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, linalg::general_mat_mul};

use crate::encoder::Linear;

/// `y = x W^T` with W in f32.
pub(crate) struct Dense {
    weight: Array2<f32>,
}

impl Dense {
    /// Takes the row-major `(out, inp)` weight.
    ///
    /// # Errors
    /// If the weight's length is not `out * inp`.
    pub(crate) fn new(weight: &[f32], out: usize, inp: usize) -> Result<Self> {
        let weight = Array2::from_shape_vec((out, inp), weight.to_vec()).with_context(|| {
            format!("a weight of {} values is not ({out}, {inp})", weight.len())
        })?;
        Ok(Self { weight })
    }
}

/// The factory of dense layers, a [`LinearFactory`](crate::encoder::LinearFactory).
///
/// # Errors
/// As [`Dense::new`].
pub(crate) fn dense(
    _name: &str,
    weight: &[f32],
    out: usize,
    inp: usize,
) -> Result<Box<dyn Linear>> {
    Ok(Box::new(Dense::new(weight, out, inp)?))
}

impl Linear for Dense {
    fn forward(&self, x: &[f32], rows: usize) -> Result<Vec<f32>> {
        let (out, inp) = self.weight.dim();
        let mut y = vec![0.0; rows * out];
        let x = ArrayView2::from_shape((rows, inp), x)
            .with_context(|| format!("an input of {} values is not ({rows}, {inp})", x.len()))?;
        let mut view = ArrayViewMut2::from_shape((rows, out), &mut y)?;
        general_mat_mul(1.0, &x, &self.weight.t(), 0.0, &mut view);
        Ok(y)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forward_multiplies_by_the_transposed_weight() {
        let layer = Dense::new(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3, 2).unwrap();
        let y = layer.forward(&[1.0, 10.0, 0.0, -1.0], 2).unwrap();
        assert_eq!(y, [21.0, 43.0, 65.0, -2.0, -4.0, -6.0]);
    }

    #[test]
    fn no_rows_give_no_output() {
        assert!(Dense::new(&[1.0], 1, 1).unwrap().forward(&[], 0).unwrap().is_empty());
    }

    #[test]
    fn wrong_lengths_are_errors_that_name_both_sides() {
        let text = Dense::new(&[1.0; 5], 3, 2).err().map(|e| e.to_string());
        assert_eq!(text.as_deref(), Some("a weight of 5 values is not (3, 2)"));
        let layer = Dense::new(&[1.0; 6], 3, 2).unwrap();
        let text = layer.forward(&[1.0; 3], 2).err().map(|e| e.to_string());
        assert_eq!(text.as_deref(), Some("an input of 3 values is not (2, 2)"));
    }
}
