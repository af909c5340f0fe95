//! The dense linear layer in f32: what the FP4 layers are compared with.
//!
//! The product is candle's, which is the `gemm` crate's, built with its AVX-512 kernels beside
//! those for AVX2 and chosen at run time, so that the speed column compares FP4 with a fair peer.
//! Candle takes as many threads as the CPU has, or RAYON_NUM_THREADS.

use anyhow::{Result, ensure};
use candle_core::{Device, Tensor};

use crate::encoder::{Linear, Parts};

/// `y = x W^T + b` in f32.
pub(crate) struct Dense {
    /// (in, out), a view of the row-major (out, in).
    weight: Tensor,
    bias: Vec<f32>,
    inp: usize,
}

impl Dense {
    /// # Errors
    /// If the weight's length is not `out * inp`, or the bias's not `out`.
    pub(crate) fn new(parts: &Parts<'_>) -> Result<Self> {
        let &Parts { weight, bias, out, inp, .. } = parts;
        ensure!(
            out.checked_mul(inp) == Some(weight.len()),
            "a weight of {} values is not ({out}, {inp})",
            weight.len()
        );
        ensure!(bias.len() == out, "a bias of {} values is not ({out})", bias.len());
        let weight = Tensor::from_slice(weight, (out, inp), &Device::Cpu)?.t()?;
        Ok(Self { weight, bias: bias.to_vec(), inp })
    }
}

/// The factory of dense layers, a [`LinearFactory`](crate::encoder::LinearFactory).
///
/// # Errors
/// As [`Dense::new`].
pub(crate) fn dense(parts: &Parts<'_>) -> Result<Box<dyn Linear>> {
    Ok(Box::new(Dense::new(parts)?))
}

impl Linear for Dense {
    fn forward(&self, x: &[f32], rows: usize) -> Result<Vec<f32>> {
        let inp = self.inp;
        ensure!(
            rows.checked_mul(inp) == Some(x.len()),
            "an input of {} values is not ({rows}, {inp})",
            x.len()
        );
        if rows == 0 {
            return Ok(Vec::new());
        }
        let x = Tensor::from_slice(x, (rows, inp), &Device::Cpu)?;
        let mut y: Vec<f32> = x.matmul(&self.weight)?.flatten_all()?.to_vec1()?;
        for row in y.chunks_exact_mut(self.bias.len().max(1)) {
            row.iter_mut().zip(&self.bias).for_each(|(y, b)| *y += b);
        }
        Ok(y)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(weight: &[f32], bias: &[f32], out: usize, inp: usize) -> Result<Dense> {
        Dense::new(&Parts { name: "l", weight, bias, out, inp })
    }

    #[test]
    fn forward_multiplies_by_the_transposed_weight_and_adds_the_bias_to_every_row() {
        let layer = layer(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[100.0, 200.0, 300.0], 3, 2).unwrap();
        let y = layer.forward(&[1.0, 10.0, 0.0, -1.0], 2).unwrap();
        assert_eq!(y, [121.0, 243.0, 365.0, 98.0, 196.0, 294.0]);
    }

    #[test]
    fn no_rows_give_no_output() {
        assert!(layer(&[1.0], &[0.0], 1, 1).unwrap().forward(&[], 0).unwrap().is_empty());
    }

    #[test]
    fn wrong_lengths_are_errors_that_name_both_sides() {
        let text = layer(&[1.0; 5], &[0.0; 3], 3, 2).err().map(|e| e.to_string());
        assert_eq!(text.as_deref(), Some("a weight of 5 values is not (3, 2)"));
        let text = layer(&[1.0; 6], &[0.0; 2], 3, 2).err().map(|e| e.to_string());
        assert_eq!(text.as_deref(), Some("a bias of 2 values is not (3)"));
        let layer = layer(&[1.0; 6], &[0.0; 3], 3, 2).unwrap();
        let text = layer.forward(&[1.0; 3], 2).err().map(|e| e.to_string());
        assert_eq!(text.as_deref(), Some("an input of 3 values is not (2, 2)"));
    }
}
