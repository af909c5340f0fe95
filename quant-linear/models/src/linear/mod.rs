//! Linear layers that a model takes from its caller: dense, quantized, or of another library.
//!
//! ```text
//! factory(Parts { name, weight, bias, .. })  ->  Box<dyn Linear>       one for each of a model's
//! linear.forward(x, rows, y)                                          y = x W^T + b
//! forward_shared(&[q, k, v], x, rows)        q, k and v take the same rows, quantized once
//! ```

mod dense;
mod quantized;

use anyhow::{Context, Result, ensure};
use quant_linear::QuantLinear;

pub(crate) use dense::alone;
pub use dense::{Dense, dense};
pub use quantized::{Encoding, Quantized, stored};

/// A linear layer: `y = x W^T + b`.
pub trait Linear: Send + Sync {
    /// Multiplies `rows` rows, row-major (rows, inp), into `y`, row-major (rows, out). Every value
    /// of `y` is written.
    ///
    /// # Errors
    /// If a length does not fit, or the layer cannot compute it.
    fn forward(&self, x: &[f32], rows: usize, y: &mut [f32]) -> Result<()>;

    /// The quantized layer behind it, if there is one: layers that take the same rows share one
    /// quantization of them.
    fn quantized(&self) -> Option<&QuantLinear> {
        None
    }

    /// The same, to change its settings.
    fn quantized_mut(&mut self) -> Option<&mut QuantLinear> {
        None
    }
}

/// What a [`Linear`] is built from.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// Its tensors' name without `.weight`: `encoder.layer.0.intermediate.dense`.
    pub name: &'a str,
    /// `(out, inp)`, row-major.
    pub weight: &'a [f32],
    /// `(out)`.
    pub bias: Option<&'a [f32]>,
    /// Output features.
    pub out: usize,
    /// Input features.
    pub inp: usize,
}

impl Parts<'_> {
    /// Checks the lengths of weight and bias.
    ///
    /// # Errors
    /// If they are not those of (out, inp) and (out).
    pub fn check(&self) -> Result<()> {
        let &Parts { weight, bias, out, inp, .. } = self;
        ensure!(
            out.checked_mul(inp) == Some(weight.len()),
            "a weight of {} values is not ({out}, {inp})",
            weight.len()
        );
        if let Some(bias) = bias {
            ensure!(bias.len() == out, "a bias of {} values is not ({out})", bias.len());
        }
        Ok(())
    }
}

/// Builds a [`Linear`].
pub type LinearFactory<'a> = dyn Fn(&Parts<'_>) -> Result<Box<dyn Linear>> + 'a;

/// Is shown the names of linear layers that take the same rows, their number of inputs, and those
/// rows, before they are multiplied. What it refuses ends the run.
pub type Observer<'a> = dyn FnMut(&[&str], usize, &[f32]) -> Result<()> + 'a;

/// Shows an observer what layers are given.
pub(crate) fn show<const N: usize>(
    observe: &mut Observer<'_>,
    layers: [&Projection; N],
    x: &[f32],
) -> Result<()> {
    let k = layers.first().map_or(0, |layer| layer.inp);
    observe(&layers.map(|layer| layer.name.as_str()), k, x)
}

/// A [`Linear`] with its name and shape.
pub struct Projection {
    /// Its tensors' name without `.weight`.
    pub name: String,
    /// Output features.
    pub out: usize,
    /// Input features.
    pub inp: usize,
    linear: Box<dyn Linear>,
}

impl Projection {
    /// Builds the layer by a factory.
    ///
    /// # Errors
    /// As [`Parts::check`], or if the factory refuses.
    pub fn new(factory: &LinearFactory<'_>, parts: &Parts<'_>) -> Result<Self> {
        let &Parts { name, out, inp, .. } = parts;
        let linear = parts.check().and_then(|()| factory(parts));
        let linear = linear
            .with_context(|| format!("cannot build the linear layer {name} ({out}, {inp})"))?;
        Ok(Self { name: name.to_owned(), out, inp, linear })
    }

    /// A layer that is there already.
    pub fn of(name: &str, linear: Box<dyn Linear>, [out, inp]: [usize; 2]) -> Self {
        Self { name: name.to_owned(), out, inp, linear }
    }

    /// The quantized layer, if it is one.
    pub fn quantized(&self) -> Option<&QuantLinear> {
        self.linear.quantized()
    }

    /// The same, to change its settings.
    pub fn quantized_mut(&mut self) -> Option<&mut QuantLinear> {
        self.linear.quantized_mut()
    }

    /// `rows * out` outputs for `rows * inp` inputs.
    ///
    /// # Errors
    /// As [`Linear::forward`]; it names the layer.
    pub fn forward(&self, x: &[f32], rows: usize) -> Result<Vec<f32>> {
        let mut y = vec![0.0; rows * self.out];
        self.forward_into(x, rows, &mut y)?;
        Ok(y)
    }

    fn forward_into(&self, x: &[f32], rows: usize, y: &mut [f32]) -> Result<()> {
        ensure!(
            rows.checked_mul(self.inp) == Some(x.len()),
            "an input of {} values for the linear layer {} is not ({rows}, {})",
            x.len(),
            self.name,
            self.inp
        );
        let done = self.linear.forward(x, rows, y);
        done.with_context(|| format!("in the linear layer {}", self.name))
    }
}

/// The outputs of several layers for the same rows, which are quantized once for those that
/// quantize them the same way.
///
/// # Errors
/// As [`Projection::forward`].
pub fn forward_shared<const N: usize>(
    layers: [&Projection; N],
    x: &[f32],
    rows: usize,
) -> Result<[Vec<f32>; N]> {
    let mut out = [const { Vec::new() }; N];
    let first = layers.first().and_then(|layer| layer.quantized());
    let shared = match first {
        Some(first) if rows > 0 && x.len() == rows * first.in_features() => {
            Some(first.quantize(x.into(), rows)?)
        }
        _ => None,
    };
    for (layer, y) in layers.iter().zip(&mut out) {
        *y = vec![0.0; rows * layer.out];
        match (layer.quantized(), &shared) {
            (Some(quantized), Some(shared)) if shared.fits(quantized) => {
                quantized.forward_quantized_into(shared, (&mut y[..]).into())?;
            }
            _ => layer.forward_into(x, rows, y)?,
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fp4_core::Format;
    use quant_linear::ActivationEncoding;

    fn projection(encoding: Encoding, out: usize, seed: usize) -> Projection {
        let weight: Vec<f32> =
            (0..out * 64).map(|i| ((i * 37 + seed) % 101) as f32 / 50.0 - 1.0).collect();
        let parts = Parts { name: "p", weight: &weight, bias: None, out, inp: 64 };
        Projection::new(&|parts| encoding.build(parts), &parts).unwrap()
    }

    #[test]
    fn layers_that_share_their_rows_give_what_each_gives_alone() {
        let x: Vec<f32> = (0..5 * 64).map(|i| ((i * 29) % 83) as f32 / 20.0 - 2.0).collect();
        let mut kinds = vec![Encoding::F32];
        for format in Format::ALL {
            for activations in [ActivationEncoding::Own, ActivationEncoding::MxInt8] {
                kinds.push(Encoding::Quantized { format, activations, hadamard: None });
            }
        }
        for first in &kinds {
            for second in &kinds {
                let layers = [projection(*first, 3, 1), projection(*second, 7, 2)];
                let [a, b] = forward_shared([&layers[0], &layers[1]], &x, 5).unwrap();
                assert_eq!(a, layers[0].forward(&x, 5).unwrap());
                assert_eq!(b, layers[1].forward(&x, 5).unwrap());
            }
        }
    }

    #[test]
    fn an_input_of_another_length_names_the_layer_and_both_sides() {
        let layer = projection(Encoding::F32, 3, 1);
        let text = layer.forward(&[0.0; 65], 1).unwrap_err().to_string();
        assert_eq!(text, "an input of 65 values for the linear layer p is not (1, 64)");
        let [again] = [forward_shared([&layer], &[0.0; 65], 1).unwrap_err().to_string()];
        assert_eq!(again, text);
    }

    #[test]
    fn parts_of_wrong_lengths_are_errors_that_name_the_layer() {
        for (weight, bias, said) in [
            (&[0.0f32; 5][..], None, "a weight of 5 values is not (3, 2)"),
            (&[0.0; 6], Some(&[0.0f32; 2][..]), "a bias of 2 values is not (3)"),
        ] {
            let parts = Parts { name: "l", weight, bias, out: 3, inp: 2 };
            let error = Projection::new(&|parts| Encoding::F32.build(parts), &parts).err();
            let text = format!("{:#}", error.unwrap());
            assert!(text.contains("the linear layer l (3, 2)") && text.contains(said), "{text}");
        }
    }
}
