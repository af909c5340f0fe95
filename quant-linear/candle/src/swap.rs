//! Linear layers of either kind, and swapping those of a model by the patterns of their names.
//!
//! ```text
//! the model shows each layer with its name      Linears::visit_linears
//! what the patterns match is quantized          nothing is changed yet: an error leaves the model
//! every one is put in its place                 as it was
//! ```
//!
//! The models of candle-transformers keep their layers in private fields of the type
//! `candle_nn::Linear`, so nothing outside can reach them. The README has a recipe for these: a
//! copy of the model's file with another constructor.

use std::collections::BTreeMap;

use candle_core::{Module, Tensor};
use quant_linear::DenseOptions;
use quant_linear::model::patterns::Patterns;

use crate::Fp4Linear;
use crate::error::{Error, names};

/// A linear layer, dense or in FP4.
#[derive(Debug, Clone)]
pub enum AnyLinear {
    /// Candle's own.
    Dense(candle_nn::Linear),
    /// In FP4.
    Fp4(Fp4Linear),
}

impl AnyLinear {
    /// A dense layer of a weight (out, in) and perhaps a bias (out), as for tied embeddings.
    pub fn from_weights(weight: Tensor, bias: Option<Tensor>) -> Self {
        candle_nn::Linear::new(weight, bias).into()
    }

    /// The layer, if it is in FP4.
    pub fn fp4(&self) -> Option<&Fp4Linear> {
        match self {
            AnyLinear::Dense(_) => None,
            AnyLinear::Fp4(layer) => Some(layer),
        }
    }
}

impl From<candle_nn::Linear> for AnyLinear {
    fn from(linear: candle_nn::Linear) -> Self {
        AnyLinear::Dense(linear)
    }
}

impl From<Fp4Linear> for AnyLinear {
    fn from(linear: Fp4Linear) -> Self {
        AnyLinear::Fp4(linear)
    }
}

impl Module for AnyLinear {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            AnyLinear::Dense(linear) => linear.forward(x),
            AnyLinear::Fp4(linear) => linear.forward(x),
        }
    }
}

/// Is shown a linear layer and its name.
pub type Visit<'a> = dyn FnMut(&str, &mut AnyLinear) -> Result<(), Error> + 'a;

/// Makes the layer that takes the place of one, if any does.
pub type Make<'a> = dyn FnMut(&str, &AnyLinear) -> Result<Option<Fp4Linear>, Error> + 'a;

/// A model, or a part of one, that shows its linear layers.
///
/// ```
/// use quant_linear_candle::{AnyLinear, Error, Linears, Visit, join};
///
/// struct Mlp {
///     up: AnyLinear,
///     down: AnyLinear,
/// }
///
/// impl Linears for Mlp {
///     fn visit_linears(&mut self, prefix: &str, visit: &mut Visit<'_>) -> Result<(), Error> {
///         visit(&join(prefix, "up"), &mut self.up)?;
///         visit(&join(prefix, "down"), &mut self.down)
///     }
/// }
///
/// struct Model {
///     layers: Vec<Mlp>,
/// }
///
/// impl Linears for Model {
///     fn visit_linears(&mut self, prefix: &str, visit: &mut Visit<'_>) -> Result<(), Error> {
///         let layers = self.layers.iter_mut().enumerate();
///         for (at, layer) in layers {
///             layer.visit_linears(&join(prefix, &format!("layers.{at}")), visit)?;
///         }
///         Ok(())
///     }
/// }
/// ```
pub trait Linears {
    /// Shows `visit` every linear layer with its name, which begins with `prefix`: all of them, the
    /// same ones at every call, each with a name of its own.
    ///
    /// # Errors
    /// Those of `visit`, at the first of which it ends.
    fn visit_linears(&mut self, prefix: &str, visit: &mut Visit<'_>) -> Result<(), Error>;
}

/// A name below a prefix, or, where that is empty, the name.
pub fn join(prefix: &str, name: &str) -> String {
    quant_linear::state::join(prefix, name)
}

/// What became of the layers of a model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Swapped {
    /// Names of the layers that are in FP4 now and were dense, in the order of the model.
    pub swapped: Vec<String>,
    /// Names of the layers that a pattern matches and that stay as they are, and why.
    pub kept: Vec<(String, String)>,
}

/// Quantizes the dense layers of a model whose names match one of `patterns`, globs in which `*`
/// matches any text: `model.layers.*.mlp.*`. A layer whose input features are no whole groups of
/// the format, or no whole blocks of the transform, stays dense and is listed; so is one that is in
/// FP4 already. On an error the model is as it was.
///
/// # Errors
/// A pattern that is no glob; [`Error::Pattern`] for one by which nothing is swapped;
/// [`Error::NameTwice`]; those of [`Fp4Linear::from_linear`] and of the model.
pub fn swap_linears<S: AsRef<str>>(
    model: &mut dyn Linears,
    patterns: &[S],
    options: &DenseOptions,
) -> Result<Swapped, Error> {
    let globs = Patterns::new(patterns)?;
    let (mut report, mut made, mut all) = (Swapped::default(), BTreeMap::new(), Vec::new());
    let mut used = vec![false; patterns.len()];
    model.visit_linears("", &mut |name, linear| {
        all.push(name.to_string());
        let matches = globs.matches(name);
        if matches.is_empty() {
            return Ok(());
        }
        let kept = match linear {
            AnyLinear::Fp4(_) => "it is in FP4 already".to_string(),
            AnyLinear::Dense(dense) => match Fp4Linear::from_linear(dense, options) {
                Ok(layer) => {
                    matches.into_iter().for_each(|at| used[at] = true);
                    report.swapped.push(name.to_string());
                    return keep(&mut made, name, layer);
                }
                Err(error) if is_of_width(&error) => error.to_string(),
                Err(error) => return Err(at(name, error)),
            },
        };
        report.kept.push((name.to_string(), kept));
        Ok(())
    })?;
    if let Some((pattern, _)) = patterns.iter().zip(&used).find(|(_, used)| !**used) {
        let pattern = pattern.as_ref().to_string();
        let only = Patterns::new(&[&pattern])?;
        let kept = report.kept.iter().find(|(name, _)| !only.matches(name).is_empty());
        let found = match kept {
            Some((name, why)) => format!("`{name}` stays as it is, {why}"),
            None => format!(
                "no layer's name matches; the model has {}, {}",
                all.len(),
                names(all.iter().map(String::as_str))
            ),
        };
        return Err(Error::Pattern { pattern, found });
    }
    put(model, made)?;
    Ok(report)
}

/// Swaps the layers of a model for which `make` has one, given the name and the layer; returns
/// their names. With `|name, _| vb.root(name).load().map(Some)` they come from a checkpoint. On an
/// error the model is as it was.
///
/// # Errors
/// Those of `make` and of the model; [`Error::NameTwice`].
pub fn swap_linears_with(
    model: &mut dyn Linears,
    make: &mut Make<'_>,
) -> Result<Vec<String>, Error> {
    let (mut made, mut swapped) = (BTreeMap::new(), Vec::new());
    model.visit_linears("", &mut |name, linear| match make(name, linear)? {
        Some(layer) => {
            swapped.push(name.to_string());
            keep(&mut made, name, layer)
        }
        None => Ok(()),
    })?;
    put(model, made)?;
    Ok(swapped)
}

type Made = BTreeMap<String, Fp4Linear>;

fn keep(made: &mut Made, name: &str, layer: Fp4Linear) -> Result<(), Error> {
    match made.insert(name.to_string(), layer) {
        None => Ok(()),
        Some(_) => Err(Error::NameTwice { name: name.to_string() }),
    }
}

/// Puts every layer that was made in its place.
fn put(model: &mut dyn Linears, mut made: Made) -> Result<(), Error> {
    model.visit_linears("", &mut |name, linear| {
        if let Some(layer) = made.remove(name) {
            let mut layer = layer.into_layer();
            if layer.name().is_none() {
                layer.set_name(name);
            }
            *linear = Fp4Linear::from(layer).into();
        }
        Ok(())
    })
}

/// True if the layer's width is why it cannot be quantized.
fn is_of_width(error: &Error) -> bool {
    use fp4_core::Error::{KNotWholeGroups, TransformShape};
    matches!(
        error,
        Error::Layer(quant_linear::Error::Core(KNotWholeGroups { .. } | TransformShape { .. }))
    )
}

fn at(name: &str, error: Error) -> Error {
    match error {
        Error::Layer(error) => {
            quant_linear::Error::Layer { name: name.to_string(), error: Box::new(error) }.into()
        }
        error => error,
    }
}
