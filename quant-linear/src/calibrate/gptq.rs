//! GPTQ: each input is rounded in turn, and its error goes to those that come later.
//!
//! ```text
//! M lower triangular, M M^T = H^-1
//! for i ascending:
//!     q[i] = round(x[i])
//!     e[i] = (x[i] - q[i]) / M[i][i]
//!     for j > i: x[j] -= e[i] * M[j][i]
//! ```
//!
//! A block takes what all earlier ones hand it in one product as it is reached, so the cost is in
//! products of large matrices: x -= e M^T over the columns of M that are decided.
//!
//! Worked example: H = [[1, 0.5], [0.5, 1]], x = (0.3, 0.1), integers: q[0] = 0, and x[1] becomes
//! 0.1 + 0.3 * 0.5 / 1 = 0.25, the best that input 1 can do about the error of input 0.
//!
//! Source: Frantar et al., arXiv 2210.17323.

use faer::Par;
use faer::linalg::triangular_solve::solve_lower_triangular_in_place;

use super::linalg::{Mat, MatMut, MatRef, add_product};
use super::panel::Panel;
use crate::error::Error;

/// Adds to a block's values, which start at position `first`, what the errors of earlier positions
/// are carried to it.
pub(super) fn carry(x: MatMut<'_, f64>, errors: MatRef<'_, f64>, m: &Mat<f64>, first: usize) {
    let n = x.ncols();
    let factor = m.submatrix(first, 0, n, first);
    add_product(x, -1.0, errors.subcols(0, first), factor.transpose());
}

/// Rounds a block's inputs in turn; gives their errors e.
pub(super) fn round(
    panel: &mut Panel<'_>,
    x: &mut Mat<f64>,
    q: &mut Mat<f64>,
    m: &Mat<f64>,
    first: usize,
) -> Result<Mat<f64>, Error> {
    let n = x.ncols();
    let mut errors = Mat::zeros(x.nrows(), n);
    for i in 0..n {
        panel.encode(first + i, x.col_as_slice(i), q.col_as_slice_mut(i))?;
        let values = x.col_as_slice(i).iter().zip(q.col_as_slice(i));
        let into = errors.col_as_slice_mut(i).iter_mut();
        into.zip(values).for_each(|(e, (x, q))| *e = (x - q) / m[(i, i)]);
        for j in i + 1..n {
            let factor = m[(j, i)];
            let later = x.col_as_slice_mut(j).iter_mut();
            later.zip(errors.col_as_slice(i)).for_each(|(x, e)| *x -= e * factor);
        }
    }
    Ok(errors)
}

/// The errors e of a block that was rounded in another way, of which `off` is what its values were
/// when it was reached less what they became: e M^T = off, on the block.
pub(super) fn errors(off: &Mat<f64>, m: &Mat<f64>, first: usize) -> Mat<f64> {
    let n = off.ncols();
    let mut errors = off.clone();
    let rhs = errors.as_mut().transpose_mut();
    solve_lower_triangular_in_place(m.submatrix(first, first, n, n), rhs, Par::Seq);
    errors
}
