//! WUSH: a transform made of the second moments of a block's weights and activations.
//!
//! ```text
//! G_w = W^T W / rows        G_x = X^T X / samples          of the block, each (d, d)
//! G  += damping * mean(diag G) * I                          each, 1e-2 usually
//! L L^T = G_w               U S^2 U^T = L^T G_x L
//! T = c H diag(S^-1/2) U^T L^T                              H: normalized Hadamard
//! ```
//!
//! Then T G_x T^T = c^2 H S H^T and T^-T G_w T^-1 = c^-2 H S H^T: the same second moments for both
//! up to c, with all diagonal entries equal, mean(S) times c^2 or c^-2. So no input of a block
//! stands out any more, in the weight nor in the activations. c keeps a norm:
//!
//! | [`KeptNorm`] | c^2 |
//! |---|---|
//! | `Balanced` | 1 |
//! | `Weight` | mean(S) / mean(diag G_w) |
//! | `Activation` | mean(diag G_x) / mean(S) |
//!
//! What is done about blocks without signal: a G that is all zero (inputs that are always 0, or
//! weights that are) is taken as I, in the other's scale. A block whose T is singular after
//! rounding to bf16, or has a condition above
//! [`LARGEST_CONDITION`](super::LARGEST_CONDITION), gets ten times the damping, at least 1e-4, and
//! again, up to 1; then it is an error.
//!
//! Worked example, d = 1: G_w = 4 and G_x = 9 give L = 2, S = 6 and T = 2 / sqrt(6): both squares
//! become 6.
//!
//! Source: Chen et al., arXiv 2512.00956.

use fp4_core::GroupSize;
use rayon::prelude::*;

use super::gram::{Gram, expect_finite, expect_rows, whole_blocks};
use super::linalg::{Lu, Mat, MatRef, add_product, cholesky, eigen, product};
use super::transform::{KeptNorm, WushOptions, hadamard, undoing};
use crate::error::{CalibrateError, Error};

/// Rows of a weight that are summed at a time.
const PIECE: usize = 512;

/// One block's transform.
pub(super) struct Made {
    /// Its values, row-major, rounded to bf16.
    pub values: Vec<f64>,
    pub undo: Lu,
    /// The damping that it took.
    pub damping: f64,
}

/// The transform of every block.
pub(super) fn blocks(
    gram: &Gram,
    weights: &[&[f32]],
    block: GroupSize,
    options: &WushOptions,
) -> Result<Vec<Made>, Error> {
    let (k, d) = (gram.k(), block.get());
    let count = whole_blocks(k, d)?;
    gram.expect_samples()?;
    if !(options.damping.is_finite() && options.damping >= 0.0) {
        return Err(CalibrateError::Damping { got: options.damping }.into());
    }
    let mut rows = 0;
    for weight in weights {
        rows += expect_rows("weight", weight, k)?;
        expect_finite("weight", weight, k)?;
    }
    let h = hadamard(d);
    let h = MatRef::from_row_major_slice(&h, d, d);
    (0..count)
        .into_par_iter()
        .map(|b| {
            let of_weight = weight_block(weights, k, b * d, d);
            let w = Normalized::new(of_weight.as_ref(), rows as f64);
            let x = Normalized::new(gram.block(b * d, d), gram.samples() as f64);
            make_mended(&w, &x, h, b, options)
        })
        .collect()
}

/// W^T W of the columns from `first` on, over all weights.
fn weight_block(weights: &[&[f32]], k: usize, first: usize, d: usize) -> Mat<f64> {
    let mut sum = Mat::zeros(d, d);
    let mut piece = Vec::with_capacity(PIECE * d);
    for weight in weights {
        for rows in weight.chunks(PIECE * k) {
            piece.clear();
            for row in rows.chunks_exact(k) {
                piece.extend(row[first..first + d].iter().map(|&x| f64::from(x)));
            }
            let w = MatRef::from_row_major_slice(&piece, piece.len() / d, d);
            add_product(sum.as_mut(), 1.0, w.transpose(), w);
        }
    }
    sum
}

/// A block of second moments as a scale and a matrix whose mean diagonal is 1: very small and very
/// large moments neither underflow nor overflow.
struct Normalized {
    /// The mean of the diagonal; `None` where it is 0.
    mean: Option<f64>,
    matrix: Mat<f64>,
}

impl Normalized {
    fn new(sums: MatRef<'_, f64>, count: f64) -> Self {
        let d = sums.nrows();
        let mean = (0..d).map(|i| sums[(i, i)]).sum::<f64>() / d as f64;
        // The smallest normal numbers leave room for quotients.
        if mean.is_nan() || mean < f64::MIN_POSITIVE {
            return Normalized { mean: None, matrix: Mat::identity(d, d) };
        }
        let matrix = Mat::from_fn(d, d, |i, j| sums[(i.max(j), i.min(j))] / mean);
        Normalized { mean: Some(mean / count), matrix }
    }

    fn damped(&self, damping: f64) -> Mat<f64> {
        let add = if self.mean.is_some() { damping } else { 0.0 };
        let d = self.matrix.nrows();
        Mat::from_fn(d, d, |i, j| self.matrix[(i, j)] + if i == j { add } else { 0.0 })
    }
}

/// The block's transform, with more damping where that is what it takes.
fn make_mended(
    w: &Normalized,
    x: &Normalized,
    h: MatRef<'_, f64>,
    block: usize,
    options: &WushOptions,
) -> Result<Made, Error> {
    let mut damping = options.damping;
    loop {
        match make(w, x, h, block, &WushOptions { damping, ..*options }) {
            Err(_) if damping < 1.0 => damping = (10.0 * damping).clamp(1e-4, 1.0),
            done => return done,
        }
    }
}

fn make(
    w: &Normalized,
    x: &Normalized,
    h: MatRef<'_, f64>,
    block: usize,
    options: &WushOptions,
) -> Result<Made, Error> {
    let (d, damping) = (h.nrows(), options.damping);
    let singular = || {
        let (condition, most) = (f64::INFINITY, super::LARGEST_CONDITION);
        CalibrateError::Singular { block, condition, most, damping }
    };
    let (of_w, of_x) = (w.damped(damping), x.damped(damping));
    let l = cholesky(of_w.as_ref()).map_err(|_| singular())?;
    let (mut left, mut inner) = (Mat::zeros(d, d), Mat::zeros(d, d));
    product(left.as_mut(), l.transpose(), of_x.as_ref());
    product(inner.as_mut(), left.as_ref(), l.as_ref());
    let eigen = eigen(inner.as_ref()).ok_or(CalibrateError::Eigenvalues { block, damping });
    let (squares, u) = eigen?;
    if !squares.iter().all(|s| s.is_finite() && *s > 0.0) {
        return Err(singular().into());
    }
    let s: Vec<f64> = squares.iter().map(|s| s.sqrt()).collect();
    let mean_s = s.iter().sum::<f64>() / d as f64;
    // Of the matrices normalized to a mean diagonal of 1, plus the damping.
    let (mean_w, mean_x) = (w.mean.unwrap_or(1.0), x.mean.unwrap_or(1.0));
    let diagonal = |of: &Mat<f64>| (0..d).map(|i| of[(i, i)]).sum::<f64>() / d as f64;
    let c = match options.norm {
        // T scales with G_w^1/4 G_x^-1/4; a block without signal in one of them has no scale.
        KeptNorm::Balanced if w.mean.is_some() && x.mean.is_some() => {
            mean_w.sqrt().sqrt() / mean_x.sqrt().sqrt()
        }
        KeptNorm::Balanced => 1.0,
        KeptNorm::Weight => (mean_s / diagonal(&of_w)).sqrt(),
        KeptNorm::Activation => (diagonal(&of_x) / mean_s).sqrt(),
    };
    // c H diag(S^-1/2) U^T L^T
    let scaled = Mat::from_fn(d, d, |i, j| c * h[(i, j)] / s[j].sqrt());
    let mut rotated = Mat::zeros(d, d);
    product(rotated.as_mut(), scaled.as_ref(), u.transpose());
    let mut t = Mat::zeros(d, d);
    product(t.as_mut(), rotated.as_ref(), l.transpose());
    let values: Vec<f64> =
        (0..d * d).map(|i| half::bf16::from_f64(t[(i / d, i % d)]).to_f64()).collect();
    if !values.iter().all(|x| x.is_finite()) {
        return Err(singular().into());
    }
    let undo = undoing(&values, d, block, damping)?;
    Ok(Made { values, undo, damping })
}
