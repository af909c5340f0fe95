//! The FP4 linear layer: weights quantized at load, activations in every forward.

use anyhow::Result;
use fp4_core::Format;
use quant_linear::{ActivationEncoding, DenseOptions, QuantLinear, StoredTransform};

use crate::encoder::{Linear, Parts};

/// `y = x W^T + b` with the weight in FP4 and the activations in FP4 or MXINT8: exact, rounded, and
/// the bias added (contract, C6).
struct Quantized(QuantLinear);

/// A [`LinearFactory`](crate::encoder::LinearFactory) for a format with its usual settings;
/// `hadamard` is the block size of an optional Hadamard transform, `activations` what activations
/// are quantized to.
///
/// # Errors
/// If a weight does not fit the format, the transform or the activations.
pub(crate) fn quantized(
    format: Format,
    hadamard: Option<usize>,
    activations: ActivationEncoding,
) -> impl Fn(&Parts<'_>) -> Result<Box<dyn Linear>> {
    move |parts| {
        let options = DenseOptions {
            transform: hadamard.map(StoredTransform::hadamard).transpose()?,
            activations,
            ..DenseOptions::new(format)
        };
        let layer = QuantLinear::from_dense(parts.weight, parts.out, parts.inp, &options)?;
        let mut layer = layer.with_bias(parts.bias)?;
        layer.set_name(parts.name);
        Ok(Box::new(Quantized(layer)))
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

    fn layer(weight: &[f32], bias: &[f32], inp: usize) -> Result<Box<dyn Linear>> {
        layer_with(weight, bias, inp, ActivationEncoding::Own)
    }

    fn layer_with(
        weight: &[f32],
        bias: &[f32],
        inp: usize,
        activations: ActivationEncoding,
    ) -> Result<Box<dyn Linear>> {
        let parts = Parts { name: "w", weight, bias, out: bias.len(), inp };
        quantized(Format::MxFp4, None, activations)(&parts)
    }

    #[test]
    fn eight_bits_keep_activations_that_four_round() {
        let weight: Vec<f32> =
            (0..32 * 32).map(|i| if i / 32 == i % 32 { 4.0 / 3.0 } else { 0.0 }).collect();
        let x: Vec<f32> = (0..32).map(|i| i as f32 / 32.0).collect();
        let y = |activations| {
            let layer = layer_with(&weight, &[0.0; 32], 32, activations).unwrap();
            layer.forward(&x, 1).unwrap()
        };
        // Every i / 32 is a value of MXINT8 under their scale, and few are one of FP4.
        let kept = |y: &[f32]| {
            let same = |(x, y): &(&f32, &f32)| (4.0 / 3.0 * **x - **y).abs() < 1e-6;
            x.iter().zip(y).filter(same).count()
        };
        assert_eq!(kept(&y(ActivationEncoding::MxInt8)), 32);
        assert!(kept(&y(ActivationEncoding::Own)) < 16);
    }

    #[test]
    fn values_that_fp4_holds_multiply_exactly_and_get_their_bias() {
        // Under gs = 1/3 and ss = 4 a group whose maximum is 4/3 has scale 1 and units of 1/3.
        let weight: Vec<f32> =
            (0..32 * 32).map(|i| if i / 32 == i % 32 { 4.0 / 3.0 } else { 0.0 }).collect();
        let bias: Vec<f32> = (0..32).map(|i| i as f32).collect();
        let x: Vec<f32> = (0..32).map(|i| [4.0, -3.0, 2.0, 0.5][i % 4] / 3.0).collect();
        let plain = layer(&weight, &[0.0; 32], 32).unwrap().forward(&x, 1).unwrap();
        let close = x.iter().zip(&plain).all(|(x, y)| (4.0 / 3.0 * x - y).abs() < 1e-6);
        assert!(close, "{plain:?}");
        let biased = layer(&weight, &bias, 32).unwrap().forward(&x, 1).unwrap();
        let expected: Vec<f32> = plain.iter().zip(&bias).map(|(y, b)| y + b).collect();
        assert_eq!(biased, expected);
    }

    #[test]
    fn a_width_that_is_not_whole_groups_is_an_error() {
        let text = layer(&[0.0; 40], &[0.0], 40).err().unwrap();
        assert!(text.to_string().contains("K = 40"), "{text}");
    }
}
