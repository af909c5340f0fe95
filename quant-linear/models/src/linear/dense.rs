//! The dense linear layer in f32: what the FP4 layers are compared with.
//!
//! The product is faer's, whose kernels for AVX2 and AVX-512 are chosen at run time, so that FP4 is
//! compared with a fair peer. The order of its sums depends on the shape, so a row's bits depend on
//! its batch.

use anyhow::{Result, ensure};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

use std::cell::Cell;

use super::{Linear, Parts};

/// Multiply-adds that are worth more than one thread.
const PARALLEL: usize = 1 << 20;

thread_local! {
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `job` with dense products on this thread alone, so that their bits do not depend on the
/// number of threads: for who has one such job on each thread.
pub(crate) fn alone<T>(job: impl FnOnce() -> T) -> T {
    let before = ALONE.replace(true);
    let result = job();
    ALONE.set(before);
    result
}

/// `y = x W^T + b` in f32.
pub struct Dense {
    /// (out, in), row-major.
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    out: usize,
    inp: usize,
}

impl Dense {
    /// # Errors
    /// As [`Parts::check`].
    pub fn new(parts: &Parts<'_>) -> Result<Self> {
        parts.check()?;
        let &Parts { weight, bias, out, inp, .. } = parts;
        Ok(Self { weight: weight.to_vec(), bias: bias.map(<[f32]>::to_vec), out, inp })
    }
}

/// The factory of dense layers, a [`LinearFactory`](super::LinearFactory).
///
/// # Errors
/// As [`Dense::new`].
pub fn dense(parts: &Parts<'_>) -> Result<Box<dyn Linear>> {
    Ok(Box::new(Dense::new(parts)?))
}

impl Linear for Dense {
    fn forward(&self, x: &[f32], rows: usize, y: &mut [f32]) -> Result<()> {
        let &Self { out, inp, .. } = self;
        ensure!(
            rows.checked_mul(inp) == Some(x.len()),
            "an input of {} values is not ({rows}, {inp})",
            x.len()
        );
        ensure!(
            rows.checked_mul(out) == Some(y.len()),
            "an output of {} values is not ({rows}, {out})",
            y.len()
        );
        if y.is_empty() {
            return Ok(());
        }
        if inp == 0 {
            y.fill(0.0);
        } else {
            let threads = rows.saturating_mul(out).saturating_mul(inp) >= PARALLEL;
            let par = if threads && !ALONE.get() { Par::rayon(0) } else { Par::Seq };
            let x = MatRef::from_row_major_slice(x, rows, inp);
            let weight = MatRef::from_row_major_slice(&self.weight, out, inp);
            let y = MatMut::from_row_major_slice_mut(y, rows, out);
            matmul(y, Accum::Replace, x, weight.transpose(), 1.0, par);
        }
        if let Some(bias) = &self.bias {
            for row in y.chunks_exact_mut(out) {
                row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(weight: &[f32], bias: &[f32], out: usize, inp: usize) -> Result<Dense> {
        Dense::new(&Parts { name: "l", weight, bias: Some(bias), out, inp })
    }

    #[test]
    fn forward_multiplies_by_the_transposed_weight_and_adds_the_bias_to_every_row() {
        let layer = layer(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[100.0, 200.0, 300.0], 3, 2).unwrap();
        let mut y = [9.0; 6];
        layer.forward(&[1.0, 10.0, 0.0, -1.0], 2, &mut y).unwrap();
        assert_eq!(y, [121.0, 243.0, 365.0, 98.0, 196.0, 294.0]);
    }

    #[test]
    fn products_of_all_heights_and_threads_are_those_of_f64() {
        let value = |i: usize| ((i * 37) % 101) as f32 / 50.0 - 1.0;
        for (rows, out, inp) in [(1, 1, 1), (1, 65, 33), (3, 7, 64), (40, 33, 65), (129, 64, 96)] {
            let (x, w): (Vec<f32>, Vec<f32>) =
                ((0..rows * inp).map(value).collect(), (5..out * inp + 5).map(value).collect());
            let layer = layer(&w, &vec![0.0; out], out, inp).unwrap();
            for threads in [1, 2] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let mut y = vec![f32::NAN; rows * out];
                pool.install(|| layer.forward(&x, rows, &mut y)).unwrap();
                for (i, y) in y.iter().enumerate() {
                    let (a, b) = (&x[i / out * inp..], &w[i % out * inp..]);
                    let wanted: f64 =
                        a.iter().zip(b).take(inp).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                    assert!((f64::from(*y) - wanted).abs() < 1e-4, "{y} instead of {wanted}");
                }
            }
        }
    }

    #[test]
    fn no_rows_give_no_output_and_no_columns_the_bias() {
        layer(&[1.0], &[0.0], 1, 1).unwrap().forward(&[], 0, &mut []).unwrap();
        let mut y = [5.0; 2];
        layer(&[], &[3.0], 1, 0).unwrap().forward(&[], 2, &mut y).unwrap();
        assert_eq!(y, [3.0; 2]);
    }

    #[test]
    fn wrong_lengths_are_errors_that_name_both_sides() {
        let text = layer(&[1.0; 5], &[0.0; 3], 3, 2).err().map(|e| e.to_string());
        assert_eq!(text.as_deref(), Some("a weight of 5 values is not (3, 2)"));
        let text = layer(&[1.0; 6], &[0.0; 2], 3, 2).err().map(|e| e.to_string());
        assert_eq!(text.as_deref(), Some("a bias of 2 values is not (3)"));
        let layer = layer(&[1.0; 6], &[0.0; 3], 3, 2).unwrap();
        let text = layer.forward(&[1.0; 3], 2, &mut [0.0; 6]).err().map(|e| e.to_string());
        assert_eq!(text.as_deref(), Some("an input of 3 values is not (2, 2)"));
        let text = layer.forward(&[1.0; 4], 2, &mut [0.0; 5]).err().map(|e| e.to_string());
        assert_eq!(text.as_deref(), Some("an output of 5 values is not (2, 3)"));
    }
}
