//! The objective that counts the activations' own quantization too.
//!
//! With sample rows X, after the transform, and their quantized values Xq, what a layer loses is
//! ||X W^T - Xq Q^T||^2, not ||X W^T - X Q^T||^2. With H = Xq^T Xq, C = X^T Xq and the damping l,
//!
//! ```text
//! ||X W^T - Xq Q^T||^2 + l ||W - Q||^2
//!     = tr( (Q - W') (H + l I) (Q - W')^T ) + what does not depend on Q
//! W' = (W C + l W) (H + l I)^-1  =  W + W (C - H) (H + l I)^-1
//! ```
//!
//! (expand both sides; the terms of second order in Q agree, and those of first order say what W'
//! is). So it is the objective of weights alone with other second moments and another target: give
//! [`quantize_weight`](super::quantize_weight) W' and H, with the same damping. The damping draws
//! W' to W, not to 0: where the samples say nothing, the weight is kept. With Xq = X, W' is W.
//!
//! W' is fitted to the samples, so it wants many: with fewer than some eight for each input it fits
//! their noise, and loses more than it gains where a transform has left little to gain. A larger
//! damping for W' than for H draws it back to W.
//!
//! Worked example, one input: X = (1, 2), Xq = (1, 3), W = 1, l = 0: C = 7, H = 10, W' = 0.7: what
//! makes 0.7 * (1, 3) = (0.7, 2.1) nearest to (1, 2).

use super::gram::{Gram, Moments, expect_finite, expect_rows, expect_width};
use super::linalg::{Mat, MatRef, add_product, cholesky, product};
use crate::error::{CalibrateError, Error};
use rayon::prelude::*;

/// Rows that are multiplied at a time.
const PIECE: usize = 512;
/// Columns of C that are one task.
const STRIP: usize = 128;
/// Rows of a weight that are one task.
const PANEL: usize = 128;

/// Second moments of rows before and after quantization, while they are summed.
#[derive(Debug, Clone)]
pub struct JointMoments {
    quantized: Moments,
    /// C, in strips of columns.
    cross: Vec<Mat<f64>>,
    pending: [Vec<f64>; 2],
}

impl JointMoments {
    /// No rows yet, of `k` values each.
    pub fn new(k: usize) -> Self {
        let strips = (0..k).step_by(STRIP).map(|first| Mat::zeros(k, STRIP.min(k - first)));
        let (cross, pending) = (strips.collect(), [Vec::new(), Vec::new()]);
        JointMoments { quantized: Moments::new(k), cross, pending }
    }

    /// Adds rows, row-major: as they are after the transform, and their dequantized values.
    ///
    /// # Errors
    /// [`CalibrateError::Ragged`], [`CalibrateError::Rows`]; [`CalibrateError::NotFinite`], its row
    /// counted from the first of this call for `rows`. Nothing is added then.
    pub fn add(&mut self, rows: &[f32], quantized: &[f32]) -> Result<(), Error> {
        let k = self.quantized.k();
        let (what, expected) = ("quantized activations", expect_rows("activations", rows, k)?);
        let got = expect_rows(what, quantized, k)?;
        if expected != got {
            return Err(CalibrateError::Rows { what, expected, got }.into());
        }
        expect_finite("activations", rows, k)?;
        self.quantized.add(quantized)?;
        let mut rest = [rows, quantized];
        while !rest[0].is_empty() {
            let room = (PIECE * k - self.pending[0].len()).min(rest[0].len());
            for (pending, rest) in self.pending.iter_mut().zip(&mut rest) {
                pending.extend(rest[..room].iter().map(|&x| f64::from(x)));
                *rest = &rest[room..];
            }
            if self.pending[0].len() == PIECE * k {
                self.sum_pending();
            }
        }
        Ok(())
    }

    fn sum_pending(&mut self) {
        let k = self.quantized.k();
        let rows = self.pending[0].len().checked_div(k).unwrap_or(0);
        let [x, q] = [&self.pending[0], &self.pending[1]];
        let x = MatRef::from_row_major_slice(x, rows, k);
        let q = MatRef::from_row_major_slice(q, rows, k);
        self.cross.par_iter_mut().enumerate().for_each(|(s, strip)| {
            let columns = q.subcols(s * STRIP, strip.ncols());
            add_product(strip.as_mut(), 1.0, x.transpose(), columns);
        });
        self.pending.iter_mut().for_each(Vec::clear);
    }

    /// The sums.
    pub fn finish(mut self) -> Joint {
        self.sum_pending();
        let k = self.quantized.k();
        let cross = Mat::from_fn(k, k, |i, j| self.cross[j / STRIP][(i, j % STRIP)]);
        Joint { quantized: self.quantized.finish(), cross }
    }
}

/// Finished second moments of rows before and after quantization.
#[derive(Debug, Clone)]
pub struct Joint {
    quantized: Gram,
    cross: Mat<f64>,
}

impl Joint {
    /// H = Xq^T Xq.
    pub fn gram(&self) -> &Gram {
        &self.quantized
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        self.quantized.k()
    }

    /// The sum of the products of input `i` and quantized input `j`.
    ///
    /// # Panics
    /// If `i` or `j` is no input.
    pub fn cross(&self, i: usize, j: usize) -> f64 {
        self.cross[(i, j)]
    }

    /// The target W' of a row-major weight W, which is after the transform too; in f32. With it and
    /// [`gram`](Self::gram), [`quantize_weight`](super::quantize_weight) at the same damping makes
    /// ||X W^T - Xq Q^T||^2 + l ||W - Q||^2 small, l being the damping times the mean of diag H:
    ///
    /// ```text
    /// W' = W + W (C - H) (H + l I)^-1      H = Xq^T Xq, C = X^T Xq
    /// ```
    ///
    /// Where samples say nothing, and where nothing was lost, that is W. With fewer than some eight
    /// samples for each input it fits their noise; a larger damping draws it back to W.
    ///
    /// # Errors
    /// [`CalibrateError::Ragged`], [`CalibrateError::NotFinite`], [`CalibrateError::NoSamples`],
    /// [`CalibrateError::Damping`], [`CalibrateError::NotPositiveDefinite`].
    pub fn target(&self, weight: &[f32], damping: f64) -> Result<Vec<f32>, Error> {
        let k = self.k();
        expect_rows("weight", weight, k)?;
        expect_finite("weight", weight, k)?;
        self.quantized.expect_samples()?;
        if !(damping.is_finite() && damping >= 0.0) {
            return Err(CalibrateError::Damping { got: damping }.into());
        }
        let mean = self.quantized.mean_diagonal();
        let add = if mean > 0.0 { damping * mean } else { 1.0 };
        let mut h = self.quantized.sums.clone();
        (0..k).for_each(|i| h[(i, i)] += add);
        let refused = |pivot| CalibrateError::NotPositiveDefinite { k, damping, pivot };
        let l = cholesky(h.as_ref()).map_err(refused)?;
        let difference = &self.cross - &self.quantized.sums;
        let mut target = vec![0f32; weight.len()];
        let pieces = target.par_chunks_mut((PANEL * k).max(1));
        pieces.zip(weight.par_chunks((PANEL * k).max(1))).for_each(|(to, w)| {
            let rows = w.len() / k;
            let wide = Mat::from_fn(rows, k, |r, i| f64::from(w[r * k + i]));
            let mut moved = Mat::zeros(rows, k);
            product(moved.as_mut(), wide.as_ref(), difference.as_ref());
            solve_cholesky(&l, moved.as_mut().transpose_mut());
            for (i, to) in to.iter_mut().enumerate() {
                *to = (f64::from(w[i]) + moved[(i / k, i % k)]) as f32;
            }
        });
        expect_finite("target of the weight", &target, k)?;
        Ok(target)
    }

    /// The same after adding the sums of other rows.
    ///
    /// # Errors
    /// As [`Gram::merge`].
    pub fn merge(&mut self, other: &Joint) -> Result<(), Error> {
        expect_width("the other second moments", self.k(), other.k())?;
        self.quantized.merge(&other.quantized)?;
        self.cross += &other.cross;
        Ok(())
    }
}

/// Solves L L^T x = b, in place.
fn solve_cholesky(l: &Mat<f64>, mut b: super::linalg::MatMut<'_, f64>) {
    use faer::linalg::triangular_solve as solve;
    use faer::prelude::*;
    solve::solve_lower_triangular_in_place(l.as_ref(), b.rb_mut(), faer::Par::Seq);
    solve::solve_upper_triangular_in_place(l.transpose(), b, faer::Par::Seq);
}
