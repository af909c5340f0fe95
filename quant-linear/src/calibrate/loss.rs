//! What a quantized layer loses on sample rows X, as a share of ||X W^T||^2, in f64.
//!
//! ```text
//! of the weight           ||X W^T - X T^T Wq^T||^2               [`of_weight`]
//!     from moments alone  tr( (V - Wq) T G T^T (V - Wq)^T )      [`of_moments`], V = W T^-1
//! of the layer            ||X W^T - Q(X T^T) Wq^T||^2            [`of_layer`]
//! ```
//!
//! Wq are the dequantized codes of the weight, Q quantizes and dequantizes activations as the layer
//! does, bit for bit. Worked example: W = 2, X = (1, 3), Wq = 1.5: 0.25 * 10 / (4 * 10) = 1/16.

use fp4_core::{PackedMatrix, PackedView, QuantSpec, QuantizeInput};
use rayon::prelude::*;

use super::gram::{Gram, expect_finite, expect_rows, expect_width};
use super::linalg::{Mat, MatRef, product};
use super::transform::BlockTransform;
use crate::error::{CalibrateError, Error};

/// Rows that are one task.
const PIECE: usize = 64;

/// A squared error and what it is of.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Loss {
    /// The squared error, summed over samples and outputs.
    pub error: f64,
    /// The squares of the dense layer's outputs, summed likewise.
    pub signal: f64,
}

impl Loss {
    /// The error as a share of the signal; 0 where there is no error, infinite where there is one
    /// and no signal.
    pub fn ratio(&self) -> f64 {
        if self.error == 0.0 { 0.0 } else { self.error / self.signal }
    }
}

impl std::iter::Sum for Loss {
    fn sum<I: Iterator<Item = Loss>>(losses: I) -> Loss {
        losses.fold(Loss::default(), |a, b| Loss {
            error: a.error + b.error,
            signal: a.signal + b.signal,
        })
    }
}

/// What the weight alone loses: `x` are rows before the transform, `weight` the dense one.
///
/// # Errors
/// [`CalibrateError::Ragged`], [`CalibrateError::NotFinite`]; [`CalibrateError::Width`] or
/// [`CalibrateError::Rows`] if the packed weight is another's; those of
/// [`dequantize`](fp4_core::reference::dequantize).
pub fn of_weight(
    x: &[f32],
    weight: &[f32],
    transform: &BlockTransform,
    packed: PackedView<'_>,
    global_scale: f32,
) -> Result<Loss, Error> {
    expect_rows("activations", x, transform.k())?;
    expect_finite("activations", x, transform.k())?;
    let through = transform.activations_through_f64(x)?;
    compare(x, &through, weight, transform.k(), packed, global_scale)
}

/// What a layer loses that quantizes its activations by `activations`: weight and activations.
///
/// # Errors
/// As [`of_weight`]; those of [`fake_quantize`](fp4_core::reference::fake_quantize).
pub fn of_layer(
    x: &[f32],
    weight: &[f32],
    transform: &BlockTransform,
    packed: PackedView<'_>,
    global_scale: f32,
    activations: &QuantSpec,
) -> Result<Loss, Error> {
    let k = transform.k();
    expect_rows("activations", x, k)?;
    expect_finite("activations", x, k)?;
    let through = quantized_rows(&transform.activations_through(x)?, k, activations)?;
    let through: Vec<f64> = through.into_iter().map(f64::from).collect();
    compare(x, &through, weight, k, packed, global_scale)
}

/// Rows after the transform, quantized and dequantized as a layer does.
///
/// # Errors
/// [`CalibrateError::Ragged`]; those of [`fake_quantize`](fp4_core::reference::fake_quantize).
pub fn quantized_rows(y: &[f32], k: usize, spec: &QuantSpec) -> Result<Vec<f32>, Error> {
    expect_rows("activations", y, k)?;
    let mut out = vec![0f32; y.len()];
    let piece = (PIECE * k).max(1);
    out.par_chunks_mut(piece).zip(y.par_chunks(piece)).try_for_each(|(out, y)| {
        let rows = y.len() / k;
        let input = QuantizeInput::new(y, rows, k, spec)?;
        let mut packed = PackedMatrix::zeros(input.shape());
        let mut scales = vec![0f32; if spec.row_scales() { rows } else { 0 }];
        let mut scratch = packed.view_mut();
        if spec.row_scales() {
            scratch = scratch.with_row_scales(&mut scales)?;
        }
        fp4_core::reference::fake_quantize(&input, &mut scratch, out.into())
    })?;
    Ok(out)
}

/// A packed weight's dequantized values, checked to be of `rows` and `k`.
fn dequantized(
    packed: PackedView<'_>,
    global_scale: f32,
    rows: usize,
    k: usize,
) -> Result<Vec<f32>, Error> {
    let shape = packed.shape();
    expect_width("the packed weight", k, shape.k())?;
    if shape.rows() != rows {
        let (what, expected, got) = ("the packed weight", rows, shape.rows());
        return Err(CalibrateError::Rows { what, expected, got }.into());
    }
    let mut values = vec![0f32; rows * k];
    fp4_core::reference::dequantize(packed, global_scale, (&mut values[..]).into())?;
    Ok(values)
}

/// The loss of `through` times the packed weight against `x` times the dense one.
fn compare(
    x: &[f32],
    through: &[f64],
    weight: &[f32],
    k: usize,
    packed: PackedView<'_>,
    global_scale: f32,
) -> Result<Loss, Error> {
    let n = expect_rows("weight", weight, k)?;
    expect_finite("weight", weight, k)?;
    let quantized = dequantized(packed, global_scale, n, k)?;
    let wide = |w: &[f32]| -> Vec<f64> { w.iter().map(|&w| f64::from(w)).collect() };
    let (dense, quantized) = (wide(weight), wide(&quantized));
    let dense = MatRef::from_row_major_slice(&dense, n, k);
    let quantized = MatRef::from_row_major_slice(&quantized, n, k);
    let piece = (PIECE * k).max(1);
    let losses: Vec<Loss> = x
        .par_chunks(piece)
        .zip(through.par_chunks(piece))
        .map(|(x, through)| {
            let (rows, x) = (x.len() / k, wide(x));
            let x = MatRef::from_row_major_slice(&x, rows, k);
            let through = MatRef::from_row_major_slice(through, rows, k);
            let (mut y, mut yq) = (Mat::zeros(n, rows), Mat::zeros(n, rows));
            product(y.as_mut(), dense, x.transpose());
            product(yq.as_mut(), quantized, through.transpose());
            let columns = (0..rows).map(|r| (y.col_as_slice(r), yq.col_as_slice(r)));
            columns
                .map(|(y, yq)| Loss {
                    error: y.iter().zip(yq).map(|(a, b)| (a - b) * (a - b)).sum(),
                    signal: y.iter().map(|y| y * y).sum(),
                })
                .sum()
        })
        .collect();
    Ok(losses.into_iter().sum())
}

/// What the weight alone loses, from second moments: `gram` and `weight` are after the transform.
///
/// # Errors
/// As [`of_weight`]; [`CalibrateError::Width`] for the moments.
pub fn of_moments(
    gram: &Gram,
    weight: &[f32],
    packed: PackedView<'_>,
    global_scale: f32,
) -> Result<Loss, Error> {
    let k = gram.k();
    let n = expect_rows("weight", weight, k)?;
    expect_finite("weight", weight, k)?;
    let quantized = dequantized(packed, global_scale, n, k)?;
    let form = |v: &Mat<f64>| -> f64 {
        let mut vg = Mat::zeros(v.nrows(), k);
        product(vg.as_mut(), v.as_ref(), gram.sums.as_ref());
        (0..k)
            .map(|i| {
                let columns = v.col_as_slice(i).iter().zip(vg.col_as_slice(i));
                columns.map(|(a, b)| a * b).sum::<f64>()
            })
            .sum()
    };
    let piece = (PIECE * k).max(1);
    let losses: Vec<Loss> = weight
        .par_chunks(piece)
        .zip(quantized.par_chunks(piece))
        .map(|(w, q)| {
            let rows = w.len() / k;
            let dense = Mat::from_fn(rows, k, |r, i| f64::from(w[r * k + i]));
            let off =
                Mat::from_fn(rows, k, |r, i| f64::from(w[r * k + i]) - f64::from(q[r * k + i]));
            // Rounding can take a sum of squares below zero where it is nothing.
            Loss { error: form(&off).max(0.0), signal: form(&dense).max(0.0) }
        })
        .collect();
    Ok(losses.into_iter().sum())
}
