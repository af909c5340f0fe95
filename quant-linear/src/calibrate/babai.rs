//! Babai's nearest plane: each input is rounded in turn, from the last to the first, and its error
//! goes to those before it.
//!
//! ```text
//! L lower triangular, L L^T = H: the rows of L are a basis of the lattice, whose points q L are
//! for i descending, nearest to w L:
//!     x[i] = w[i] + (sum over j > i of (w[j] - q[j]) * L[j][i]) / L[i][i]
//!     q[i] = round(x[i])
//! ```
//!
//! It is GPTQ on the reversed order: x[i] is the best real value of input i, given those that are
//! decided. Errors are kept as w - q, not as w L - q L, which would cancel.
//!
//! Worked example: H = [[1, 0.5], [0.5, 1]], w = (0.1, 0.3), integers: q[1] = 0, and x[0] is
//! 0.1 + 0.3 * 0.5 / 1 = 0.25.
//!
//! Sources: Babai, "On Lovasz' lattice reduction and the nearest lattice point problem", 1986; Chen
//! et al., arXiv 2507.18553.

use faer::linalg::triangular_solve::solve_upper_triangular_in_place;
use faer::{Accum, Par};

use super::linalg::{Mat, MatMut, MatRef};
use super::panel::Panel;
use crate::error::Error;

/// Adds to a block's values, which start at position `first`, what the errors of later positions
/// are carried to it: (w - q) L of those, divided by the block's own L.
pub(super) fn carry(mut x: MatMut<'_, f64>, off: MatRef<'_, f64>, l: &Mat<f64>, first: usize) {
    let (n, k) = (x.ncols(), l.nrows());
    let rest = k - first - n;
    if rest == 0 {
        return;
    }
    let mut sums = Mat::zeros(x.nrows(), n);
    let (decided, factor) = (off.subcols(first + n, rest), l.submatrix(first + n, first, rest, n));
    faer::linalg::matmul::matmul(sums.as_mut(), Accum::Replace, decided, factor, 1.0, Par::Seq);
    let own = l.submatrix(first, first, n, n);
    solve_upper_triangular_in_place(own.transpose(), sums.as_mut().transpose_mut(), Par::Seq);
    x += &sums;
}

/// Rounds a block's inputs in turn.
pub(super) fn round(
    panel: &mut Panel<'_>,
    x: &mut Mat<f64>,
    q: &mut Mat<f64>,
    l: &Mat<f64>,
    first: usize,
) -> Result<(), Error> {
    let (rows, n) = (x.nrows(), x.ncols());
    // The sums that each input takes, from those behind it.
    let mut sums = Mat::<f64>::zeros(rows, n);
    let mut off = vec![0.0; rows];
    for i in (0..n).rev() {
        let diagonal = l[(i, i)];
        let taken: Vec<f64> = x.col_as_slice(i).to_vec();
        let into = x.col_as_slice_mut(i).iter_mut();
        into.zip(sums.col_as_slice(i)).for_each(|(x, s)| *x += s / diagonal);
        panel.encode(first + i, x.col_as_slice(i), q.col_as_slice_mut(i))?;
        let values = taken.iter().zip(q.col_as_slice(i));
        off.iter_mut().zip(values).for_each(|(o, (w, q))| *o = w - q);
        for j in 0..i {
            let factor = l[(i, j)];
            let earlier = sums.col_as_slice_mut(j).iter_mut();
            earlier.zip(&off).for_each(|(s, o)| *s += o * factor);
        }
    }
    Ok(())
}
