//! The damped second moments H of a layer's input, and the triangular factors that carry errors.
//!
//! ```text
//! H = G + damping * mean(diag G) * I
//! L L^T = H            Babai: decided from the last input to the first
//! M M^T = H^-1         GPTQ: decided from the first input to the last
//! ```
//!
//! M is found without the inverse of H: with J the reversal of the order, J H J = R R^T and
//! M = J R^-T J, which is lower triangular, and M M^T = H^-1. So GPTQ on the reversed order has
//! Babai's own factor: there R is L.
//!
//! Dead inputs, which are always 0, have only the damping on their diagonal: no error goes to or
//! from them, and they are rounded to nearest. Where all are dead, H is I.

use super::gram::Gram;
use super::linalg::{Mat, MatRef, cholesky, inverse_of_lower, product};
use super::method::{Method, QuantizeOptions};
use crate::error::{CalibrateError, Error};

/// The factors that a quantization needs.
pub(super) struct Factors {
    /// L or M of all inputs, in the order in which they are taken; `None` if errors stay in their
    /// block.
    pub outer: Option<Mat<f64>>,
    /// L or M of each block, of what its own inputs still decide; empty if that is not looked at.
    pub inner: Vec<Mat<f64>>,
}

/// H, with input `order[p]` at position p.
fn damped(gram: &Gram, damping: f64, order: &[usize]) -> Mat<f64> {
    let mean = gram.mean_diagonal();
    let (add, k) = (if mean > 0.0 { damping * mean } else { 1.0 }, gram.k());
    Mat::from_fn(k, k, |i, j| gram.sums[(order[i], order[j])] + if i == j { add } else { 0.0 })
}

impl Factors {
    /// The factors of `options` for blocks of `block` inputs.
    pub(super) fn new(
        gram: &Gram,
        options: &QuantizeOptions,
        order: &[usize],
        block: usize,
    ) -> Result<Self, Error> {
        let (k, damping) = (gram.k(), options.damping);
        if options.inner == Method::Rtn && options.outer == Method::Rtn {
            return Ok(Factors { outer: None, inner: Vec::new() });
        }
        let refused = |first: usize, last: bool| {
            move |pivot: usize| {
                let pivot = if last { k - 1 - pivot } else { first + pivot };
                CalibrateError::NotPositiveDefinite { k, damping, pivot: order[pivot] }
            }
        };
        let h = damped(gram, damping, order);
        let outer = match options.outer {
            Method::Rtn => None,
            Method::Babai => Some(cholesky(h.as_ref()).map_err(refused(0, false))?),
            Method::Gptq => Some(inverse_factor(h.as_ref()).map_err(refused(0, true))?),
        };
        let mut inner = Vec::new();
        if options.inner != Method::Rtn {
            for first in (0..k).step_by(block) {
                let n = block.min(k - first);
                let own = outer.as_ref().map(|f| f.submatrix(first, first, n, n));
                let at = refused(first, false);
                let factor = match (options.outer, own) {
                    (_, None) => of(options.inner, h.submatrix(first, first, n, n)),
                    (outer, Some(own)) if outer == options.inner => Ok(own.to_owned()),
                    (Method::Babai, Some(l)) => of(options.inner, square(l).as_ref()),
                    // (M M^T)^-1 = M^-T M^-1.
                    (_, Some(m)) => {
                        let inverse = inverse_of_lower(m);
                        of(options.inner, square(inverse.transpose()).as_ref())
                    }
                };
                inner.push(factor.map_err(at)?);
            }
        }
        Ok(Factors { outer, inner })
    }
}

/// a a^T
fn square(a: MatRef<'_, f64>) -> Mat<f64> {
    let mut out = Mat::zeros(a.nrows(), a.nrows());
    product(out.as_mut(), a, a.transpose());
    out
}

/// The factor of a method.
fn of(method: Method, h: MatRef<'_, f64>) -> Result<Mat<f64>, usize> {
    if method == Method::Gptq {
        let n = h.nrows();
        return inverse_factor(h).map_err(|pivot| n - 1 - pivot);
    }
    cholesky(h)
}

/// The lower triangular M with M M^T = H^-1.
///
/// # Errors
/// The position, from the end, of the first pivot that is not above zero.
pub(super) fn inverse_factor(h: MatRef<'_, f64>) -> Result<Mat<f64>, usize> {
    let n = h.nrows();
    // R is gone before M is made: each has as many values as H.
    let inverse = inverse_of_lower(cholesky(h.reverse_rows_and_cols())?.as_ref());
    Ok(Mat::from_fn(n, n, |i, j| if i < j { 0.0 } else { inverse[(n - 1 - j, n - 1 - i)] }))
}
