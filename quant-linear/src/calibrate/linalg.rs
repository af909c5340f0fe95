//! What is used of dense linear algebra, in f64 on one thread: whoever calls cuts the work into
//! pieces of fixed size and spreads those, so that no bit depends on the number of threads.
//!
//! Rounding may differ between CPUs with other vector widths: the sums of a product are taken in
//! another order there.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::linalg::triangular_solve::{
    solve_unit_lower_triangular_in_place, solve_upper_triangular_in_place,
};
use faer::prelude::*;
use faer::{Accum, Par, diag::Diag};

pub(super) use faer::{Mat, MatMut, MatRef};

/// `dst = a * b`.
pub(super) fn product(dst: MatMut<'_, f64>, a: MatRef<'_, f64>, b: MatRef<'_, f64>) {
    faer::linalg::matmul::matmul(dst, Accum::Replace, a, b, 1.0, Par::Seq);
}

/// `dst += alpha * a * b`.
pub(super) fn add_product(
    dst: MatMut<'_, f64>,
    alpha: f64,
    a: MatRef<'_, f64>,
    b: MatRef<'_, f64>,
) {
    faer::linalg::matmul::matmul(dst, Accum::Add, a, b, alpha, Par::Seq);
}

/// The lower triangular L with L L^T = `a`, of which the lower triangle is read.
///
/// # Errors
/// The index of the first pivot that is not above zero.
pub(super) fn cholesky(a: MatRef<'_, f64>) -> Result<Mat<f64>, usize> {
    let n = a.nrows();
    let mut l = a.to_owned();
    let mut memory = MemBuffer::new(cholesky_in_place_scratch::<f64>(n, Par::Seq, default()));
    let stack = MemStack::new(&mut memory);
    if let Err(error) = cholesky_in_place(l.as_mut(), default(), Par::Seq, stack, default()) {
        let faer::linalg::cholesky::llt::factor::LltError::NonPositivePivot { index } = error;
        return Err(index);
    }
    clear_upper(&mut l);
    // A pivot that is NaN passes every comparison.
    match (0..n).find(|&i| !(l[(i, i)].is_finite() && l[(i, i)] > 0.0)) {
        Some(pivot) => Err(pivot),
        None => Ok(l),
    }
}

fn clear_upper(l: &mut Mat<f64>) {
    for j in 1..l.ncols() {
        l.col_as_slice_mut(j)[..j].fill(0.0);
    }
}

/// The inverse of a lower triangular matrix.
pub(super) fn inverse_of_lower(l: MatRef<'_, f64>) -> Mat<f64> {
    let mut inverse = Mat::zeros(l.nrows(), l.ncols());
    invert_lower_triangular(inverse.as_mut(), l, Par::Seq);
    inverse
}

/// Ascending eigenvalues of a symmetric matrix, of which the lower triangle is read, and its
/// eigenvectors as columns; `None` if they do not converge.
pub(super) fn eigen(a: MatRef<'_, f64>) -> Option<(Vec<f64>, Mat<f64>)> {
    let n = a.nrows();
    let (mut values, mut vectors) = (Diag::<f64>::zeros(n), Mat::zeros(n, n));
    let scratch = self_adjoint_evd_scratch::<f64>(n, ComputeEigenvectors::Yes, Par::Seq, default());
    let mut memory = MemBuffer::new(scratch);
    let stack = MemStack::new(&mut memory);
    let (s, u) = (values.as_mut(), Some(vectors.as_mut()));
    self_adjoint_evd(a, s, u, Par::Seq, stack, default()).ok()?;
    Some(((0..n).map(|i| values[i]).collect(), vectors))
}

/// A square matrix A factored as P A = L U with partial pivoting, to solve x A = b.
#[derive(Debug, Clone)]
pub(super) struct Lu {
    /// Of the transpose of A: L without its unit diagonal below, U on and above the diagonal.
    factors: Mat<f64>,
    /// Row i of the permuted transpose is its row `rows[i]`.
    rows: Vec<usize>,
    /// The largest sum of magnitudes in a row of A, for the condition.
    norm: f64,
}

impl Lu {
    /// Factors `a`, row-major; `None` if it is singular.
    pub(super) fn new(a: &[f64], n: usize) -> Option<Self> {
        let mut factors = Mat::from_fn(n, n, |i, j| a[j * n + i]);
        let norm = a.chunks_exact(n).map(|row| row.iter().map(|x| x.abs()).sum::<f64>());
        let norm = norm.fold(0.0, f64::max);
        let mut rows: Vec<usize> = (0..n).collect();
        for j in 0..n {
            let pivot = (j..n).fold(j, |best, i| {
                if factors[(i, j)].abs() > factors[(best, j)].abs() { i } else { best }
            });
            // Of a NaN too.
            if factors[(pivot, j)].abs().partial_cmp(&0.0) != Some(std::cmp::Ordering::Greater) {
                return None;
            }
            if pivot != j {
                rows.swap(pivot, j);
                for c in 0..n {
                    let (a, b) = (factors[(pivot, c)], factors[(j, c)]);
                    (factors[(pivot, c)], factors[(j, c)]) = (b, a);
                }
            }
            let divisor = factors[(j, j)];
            factors.col_as_slice_mut(j)[j + 1..].iter_mut().for_each(|x| *x /= divisor);
            let column = factors.col_as_slice(j)[j + 1..].to_vec();
            for c in j + 1..n {
                let factor = factors[(j, c)];
                let below = factors.col_as_slice_mut(c)[j + 1..].iter_mut();
                below.zip(&column).for_each(|(x, l)| *x -= l * factor);
            }
        }
        Some(Lu { factors, rows, norm })
    }

    /// Solves x A = b for the rows of `b`, (rows, stride) row-major of which the `n` values from
    /// `first` on are used and replaced.
    pub(super) fn solve_rows(&self, b: &mut [f64], stride: usize, first: usize) {
        let n = self.rows.len();
        let count = b.len() / stride;
        let mut x = Mat::from_fn(n, count, |i, r| b[r * stride + first + self.rows[i]]);
        let factors = self.factors.as_ref();
        solve_unit_lower_triangular_in_place(factors, x.as_mut(), Par::Seq);
        solve_upper_triangular_in_place(factors, x.as_mut(), Par::Seq);
        for (r, row) in b.chunks_exact_mut(stride).enumerate() {
            row[first..first + n].copy_from_slice(x.col_as_slice(r));
        }
    }

    /// The condition number in the norm of row sums: that of A times that of its inverse.
    pub(super) fn condition(&self) -> f64 {
        let n = self.rows.len();
        let mut inverse: Vec<f64> =
            (0..n * n).map(|i| f64::from(u8::from(i / n == i % n))).collect();
        self.solve_rows(&mut inverse, n, 0);
        let sums = inverse.chunks_exact(n).map(|row| row.iter().map(|x| x.abs()).sum::<f64>());
        let norm = sums.fold(0.0, |a: f64, b| if b.is_nan() { f64::INFINITY } else { a.max(b) });
        self.norm * norm
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_solution_by_rows_solves_and_a_singular_matrix_is_none() {
        let n = 16;
        let a: Vec<f64> = (0..n * n).map(|i| ((i * i * 31 + i * 7) % 101) as f64 - 50.0).collect();
        let lu = Lu::new(&a, n).unwrap();
        let b: Vec<f64> = (0..3 * 20).map(|i| (i as f64 * 0.7).sin()).collect();
        let mut x = b.clone();
        lu.solve_rows(&mut x, 20, 2);
        for r in 0..3 {
            for j in 0..n {
                let y: f64 = (0..n).map(|i| x[r * 20 + 2 + i] * a[i * n + j]).sum();
                assert!((y - b[r * 20 + 2 + j]).abs() < 1e-9, "{r} {j}");
            }
            assert_eq!((x[r * 20], x[r * 20 + 19]), (b[r * 20], b[r * 20 + 19]));
        }
        let mut singular = a.clone();
        singular.copy_within(0..n, n);
        assert!(Lu::new(&singular, n).is_none_or(|lu| lu.condition() > 1e12));
        assert!(Lu::new(&vec![0.0; n * n], n).is_none());
        let two: Vec<f64> = vec![1.0, 0.0, 0.0, 0.25];
        assert_eq!(Lu::new(&two, 2).unwrap().condition(), 4.0);
    }

    #[test]
    fn a_cholesky_factor_multiplies_back_and_names_the_pivot_that_fails() {
        let a = Mat::from_fn(3, 3, |i, j| if i == j { 4.0 } else { 1.0 });
        let l = cholesky(a.as_ref()).unwrap();
        let mut back = Mat::zeros(3, 3);
        product(back.as_mut(), l.as_ref(), l.transpose());
        assert!((0..9).all(|i| (back[(i / 3, i % 3)] - a[(i / 3, i % 3)]).abs() < 1e-15));
        assert_eq!(l[(0, 2)], 0.0);
        let mut bad = a.clone();
        bad[(1, 1)] = -1.0;
        assert_eq!(cholesky(bad.as_ref()), Err(1));
        bad[(1, 1)] = f64::NAN;
        assert!(cholesky(bad.as_ref()).is_err());
    }
}
