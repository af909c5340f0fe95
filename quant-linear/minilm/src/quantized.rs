//! The FP4 linear layer: weights quantized at load, activations in every forward.

use anyhow::Result;
use fp4_core::Format;
use quant_linear::{DenseOptions, QuantLinear, StoredTransform};

use crate::encoder::Linear;

/// `y = x W^T` with both operands in FP4, exact and rounded once.
struct Quantized(QuantLinear);

/// A [`LinearFactory`](crate::encoder::LinearFactory) for a format with its usual settings;
/// `hadamard` is the block size of an optional Hadamard transform.
///
/// # Errors
/// If a weight does not fit the format or the transform.
pub(crate) fn quantized(
    format: Format,
    hadamard: Option<usize>,
) -> impl Fn(&str, &[f32], usize, usize) -> Result<Box<dyn Linear>> {
    move |_name, weight, out, inp| {
        let options = DenseOptions {
            transform: hadamard.map(StoredTransform::hadamard).transpose()?,
            ..DenseOptions::new(format)
        };
        Ok(Box::new(Quantized(QuantLinear::from_dense(weight, out, inp, &options)?)))
    }
}

impl Linear for Quantized {
    fn forward(&self, x: &[f32], rows: usize) -> Result<Vec<f32>> {
        Ok(self.0.forward(x, &[rows, self.0.in_features()])?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_fp4_holds_multiply_exactly() {
        // Under gs = 1/3 and ss = 4 a group whose maximum is 4/3 has scale 1 and units of 1/3.
        let weight: Vec<f32> =
            (0..32 * 32).map(|i| if i / 32 == i % 32 { 4.0 / 3.0 } else { 0.0 }).collect();
        let layer = quantized(Format::MxFp4, None)("w", &weight, 32, 32).unwrap();
        let x: Vec<f32> = (0..32).map(|i| [4.0, -3.0, 2.0, 0.5][i % 4] / 3.0).collect();
        let y = layer.forward(&x, 1).unwrap();
        let close = x.iter().zip(&y).all(|(x, y)| (4.0 / 3.0 * x - y).abs() < 1e-6);
        assert!(close, "{y:?}");
    }

    #[test]
    fn a_width_that_is_not_whole_groups_is_an_error() {
        let text = quantized(Format::MxFp4, None)("w", &[0.0; 40], 1, 40).err().unwrap();
        assert!(text.to_string().contains("K = 40"), "{text}");
    }
}
