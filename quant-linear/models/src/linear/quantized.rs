//! The FP4 linear layer: weights quantized at load, activations in every forward.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use fp4_core::{Format, QuantSpec};
use quant_linear::checkpoint::Checkpoint;
use quant_linear::{ActivationEncoding, DenseOptions, LoadOptions, QuantLinear, StoredTransform};

use super::{Linear, Parts, dense};

/// How a linear layer multiplies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Encoding {
    /// Weight and activations in f32, by faer's product.
    F32,
    /// Weight in FP4, activations quantized in every forward.
    Quantized {
        /// Of the weight.
        format: Format,
        /// Of the activations.
        activations: ActivationEncoding,
        /// Block size of a Hadamard transform of both.
        hadamard: Option<usize>,
    },
}

impl Encoding {
    /// f32, and every encoding of activations that fits a format, without a transform.
    pub fn all() -> Vec<Self> {
        let mut all = vec![Encoding::F32];
        for format in Format::ALL {
            let own = QuantSpec::usual(format);
            let fits = ActivationEncoding::ALL.into_iter().filter(|a| a.spec(own).is_ok());
            all.extend(fits.map(|activations| Encoding::Quantized {
                format,
                activations,
                hadamard: None,
            }));
        }
        all
    }

    /// The same with a Hadamard transform, in blocks of the format's group.
    #[must_use]
    pub fn with_hadamard(self) -> Self {
        match self {
            Encoding::F32 => self,
            Encoding::Quantized { format, activations, .. } => {
                let hadamard = Some(format.group().get());
                Encoding::Quantized { format, activations, hadamard }
            }
        }
    }

    /// Builds the layer. `|parts| encoding.build(parts)` is a
    /// [`LinearFactory`](super::LinearFactory).
    ///
    /// # Errors
    /// If a weight does not fit the format, the transform or the activations.
    pub fn build(self, parts: &Parts<'_>) -> Result<Box<dyn Linear>> {
        let Encoding::Quantized { format, activations, hadamard } = self else {
            return dense(parts);
        };
        parts.check()?;
        let options = DenseOptions {
            transform: hadamard.map(StoredTransform::hadamard).transpose()?,
            activations,
            ..DenseOptions::new(format)
        };
        let mut layer = QuantLinear::from_dense(parts.weight, parts.out, parts.inp, &options)?;
        layer.set_bias(parts.bias)?;
        layer.set_name(parts.name);
        Ok(Box::new(Quantized(layer)))
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Encoding::F32 => f.write_str("f32"),
            Encoding::Quantized { format, activations, hadamard } => {
                write!(f, "{}-{}", format.name(), activations.name())?;
                hadamard.map_or(Ok(()), |_| f.write_str("-hadamard"))
            }
        }
    }
}

impl FromStr for Encoding {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        let all = || Encoding::all().into_iter().flat_map(|e| [e, e.with_hadamard()]);
        all().find(|encoding| encoding.to_string() == name).with_context(|| {
            let known = Encoding::all().iter().map(ToString::to_string).collect::<Vec<_>>();
            format!(
                "there is no encoding {name:?}, known are {}, and each but the first with \
                 -hadamard behind it",
                known.join(", ")
            )
        })
    }
}

/// A factory of the layers that a checkpoint holds in FP4, by their names, and of dense ones for
/// all others.
pub fn stored(layers: &Checkpoint) -> impl Fn(&Parts<'_>) -> Result<Box<dyn Linear>> {
    move |parts| {
        let codes = quant_linear::state::join(parts.name, quant_linear::state::E2M1);
        if !layers.tensors().contains_key(&codes) {
            return dense(parts);
        }
        parts.check()?;
        let options = LoadOptions { bias: quant_linear::Bias::Ignore, ..LoadOptions::default() };
        let mut layer = QuantLinear::from_state(layers, parts.name, &options)?;
        let given = [layer.out_features(), layer.in_features()];
        let wanted = [parts.out, parts.inp];
        ensure!(given == wanted, "the FP4 layer is {given:?}, and the model's is {wanted:?}");
        layer.set_bias(parts.bias)?;
        layer.prepare()?;
        Ok(Box::new(Quantized(layer)))
    }
}

/// `y = x W^T + b` with the weight in FP4 and the activations in FP4 or MXINT8: exact, rounded, and
/// the bias added (contract, C6).
pub struct Quantized(pub QuantLinear);

impl Linear for Quantized {
    fn forward(&self, x: &[f32], rows: usize, y: &mut [f32]) -> Result<()> {
        let inp = self.0.in_features();
        ensure!(
            rows.checked_mul(inp) == Some(x.len()),
            "an input of {} values is not ({rows}, {inp})",
            x.len()
        );
        Ok(self.0.forward_into(x.into(), rows, y.into())?)
    }

    fn quantized(&self) -> Option<&QuantLinear> {
        Some(&self.0)
    }

    fn quantized_mut(&mut self) -> Option<&mut QuantLinear> {
        Some(&mut self.0)
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
        let parts = Parts { name: "w", weight, bias: Some(bias), out: bias.len(), inp };
        Encoding::Quantized { format: Format::MxFp4, activations, hadamard: None }.build(&parts)
    }

    fn forward(layer: &dyn Linear, x: &[f32], out: usize) -> Vec<f32> {
        let mut y = vec![f32::NAN; out];
        layer.forward(x, 1, &mut y).unwrap();
        y
    }

    #[test]
    fn eight_bits_keep_activations_that_four_round() {
        let weight: Vec<f32> =
            (0..32 * 32).map(|i| if i / 32 == i % 32 { 4.0 / 3.0 } else { 0.0 }).collect();
        let x: Vec<f32> = (0..32).map(|i| i as f32 / 32.0).collect();
        let y = |activations| {
            let layer = layer_with(&weight, &[0.0; 32], 32, activations).unwrap();
            forward(&*layer, &x, 32)
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
        let plain = forward(&*layer(&weight, &[0.0; 32], 32).unwrap(), &x, 32);
        let close = x.iter().zip(&plain).all(|(x, y)| (4.0 / 3.0 * x - y).abs() < 1e-6);
        assert!(close, "{plain:?}");
        let biased = forward(&*layer(&weight, &bias, 32).unwrap(), &x, 32);
        let expected: Vec<f32> = plain.iter().zip(&bias).map(|(y, b)| y + b).collect();
        assert_eq!(biased, expected);
    }

    #[test]
    fn a_width_that_is_not_whole_groups_is_an_error() {
        let text = layer(&[0.0; 40], &[0.0], 40).err().unwrap();
        assert!(text.to_string().contains("K = 40"), "{text}");
    }

    #[test]
    fn every_encoding_has_a_name_of_its_own() {
        let names: Vec<String> = Encoding::all().iter().map(ToString::to_string).collect();
        let expected =
            ["f32", "mxfp4-fp4", "mxfp4-mxint8", "nvfp4-fp4", "nvfp4-mxint8", "nvfp4-fp4-rows"];
        assert_eq!(names, expected);
        let last = Encoding::all()[3].with_hadamard();
        assert_eq!(last.to_string(), "nvfp4-fp4-hadamard");
        for encoding in Encoding::all().into_iter().flat_map(|e| [e, e.with_hadamard()]) {
            assert_eq!(encoding.to_string().parse::<Encoding>().unwrap(), encoding);
        }
        let text = "int4".parse::<Encoding>().unwrap_err().to_string();
        assert!(text.contains("\"int4\"") && text.contains("nvfp4-mxint8"), "{text}");
    }
}
