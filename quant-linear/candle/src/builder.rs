//! Layers of a checkpoint by prefix, as candle's models ask for theirs.
//!
//! ```text
//! let vb = Fp4VarBuilder::open(path)?;               any layout, safetensors or GGUF
//! let vb = vb.pp("model").pp("layers").pp(3);        model.layers.3
//! vb.pp("mlp.up_proj").quant_linear(64, 128, false)  a quantized layer, checked
//! vb.pp("lm_head").linear(64, 100, false)            quantized or dense, as the checkpoint has it
//! vb.dense(DType::F32)                               candle's VarBuilder, for norms and embeddings
//! ```
//!
//! An expert of a 3-D weight `NAME` is `NAME.0`, `NAME.1`, ...

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use quant_linear::checkpoint::Checkpoint;
use quant_linear::layout::{Layer, Layers};
use quant_linear::{Bias, LoadOptions, QuantLinear, Runtime};

use crate::dense::DenseTensors;
use crate::error::{Error, names};
use crate::swap::AnyLinear;
use crate::{Fp4Linear, join};

/// Gives a model its layers from a checkpoint of any [layout](quant_linear::layout), by prefix.
///
/// A handle: clones, and builders of other prefixes, share the open checkpoint and one [`Runtime`].
#[derive(Clone)]
pub struct Fp4VarBuilder {
    shared: Arc<Shared>,
    prefix: String,
}

/// What builders of one checkpoint share.
struct Shared {
    checkpoint: Arc<Checkpoint>,
    layers: Layers,
    runtime: Runtime,
    options: LoadOptions,
}

impl Fp4VarBuilder {
    /// Opens a checkpoint, a file or a folder, with the usual options and the runtime that layers
    /// share in this process. Headers are read, no weight.
    ///
    /// # Errors
    /// As [`Checkpoint::open`] and [`new`](Self::new).
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let checkpoint = Checkpoint::open(path.as_ref())?;
        Self::new(checkpoint, Runtime::shared(), LoadOptions::default())
    }

    /// A builder over an open checkpoint, whose layers run on `runtime`.
    ///
    /// # Errors
    /// [`quant_linear::Error::Ambiguous`] for tensors that several layouts explain.
    pub fn new(
        checkpoint: Checkpoint,
        runtime: &Runtime,
        options: LoadOptions,
    ) -> Result<Self, Error> {
        let layers = Layers::find(&checkpoint, &options)?;
        let (checkpoint, runtime) = (Arc::new(checkpoint), runtime.clone());
        let shared = Arc::new(Shared { checkpoint, layers, runtime, options });
        Ok(Fp4VarBuilder { shared, prefix: String::new() })
    }

    /// A builder of one more part of the prefix, which may have dots itself.
    #[must_use]
    pub fn pp(&self, part: impl fmt::Display) -> Self {
        let prefix = join(&self.prefix, &part.to_string());
        Fp4VarBuilder { shared: self.shared.clone(), prefix }
    }

    /// A builder of this prefix alone.
    #[must_use]
    pub fn root(&self, prefix: impl fmt::Display) -> Self {
        Fp4VarBuilder { shared: self.shared.clone(), prefix: prefix.to_string() }
    }

    /// The prefix.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The checkpoint.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.shared.checkpoint
    }

    /// The quantized layers of the whole checkpoint, by module, as their headers tell.
    pub fn layers(&self) -> &Layers {
        &self.shared.layers
    }

    /// True if the prefix is a quantized layer, or an expert of one.
    pub fn is_quantized(&self) -> bool {
        self.header().is_some() || self.shared.layers.bad.contains_key(&self.prefix)
    }

    /// The header of the layer that the prefix is, or is an expert of.
    fn header(&self) -> Option<&Layer> {
        let good = &self.shared.layers.good;
        good.get(&self.prefix).or_else(|| {
            let (parent, expert) = self.prefix.rsplit_once('.')?;
            expert.parse::<usize>().ok()?;
            good.get(parent).filter(|layer| layer.experts.is_some())
        })
    }

    /// The quantized layer that the prefix is, whatever its features, with the bias that its
    /// checkpoint and the options say.
    ///
    /// # Errors
    /// [`Error::Missing`], and those of [`QuantLinear::from_state`].
    pub fn load(&self) -> Result<Fp4Linear, Error> {
        Ok(self.read(&self.shared.options)?.into())
    }

    fn read(&self, options: &LoadOptions) -> Result<QuantLinear, Error> {
        if !self.is_quantized() {
            return Err(Error::Missing { name: self.prefix.clone(), found: self.found() });
        }
        let mut layer = QuantLinear::from_state(&*self.shared.checkpoint, &self.prefix, options)?;
        layer.set_runtime(&self.shared.runtime);
        Ok(layer)
    }

    /// The quantized layer that the prefix is, of these features, with a bias or without one.
    ///
    /// # Errors
    /// [`Error::Missing`]; [`Error::Features`]; [`Error::NoBias`] if a bias is asked for and there
    /// is none; [`Error::Bias`] if none is asked for and there is one that is not zero, unless the
    /// options ignore it; those of [`QuantLinear::from_state`].
    pub fn quant_linear(
        &self,
        in_features: usize,
        out_features: usize,
        bias: bool,
    ) -> Result<Fp4Linear, Error> {
        if let Some(header) = self.header() {
            let got = [header.out_features(), header.shape.k()];
            let expected = [out_features, in_features];
            if got != expected {
                let (name, layout) = (self.prefix.clone(), header.layout.name());
                return Err(Error::Features { name, layout, expected, got });
            }
        }
        let asked = self.shared.options.bias;
        if bias {
            let layer = self.read(&LoadOptions { bias: Bias::Apply, ..self.shared.options })?;
            return match layer.bias() {
                Some(_) => Ok(layer.into()),
                None => Err(Error::NoBias { name: self.prefix.clone() }),
            };
        }
        let ignored = asked == Bias::Ignore;
        let bias = if ignored { Bias::Ignore } else { Bias::Apply };
        let mut layer = self.read(&LoadOptions { bias, ..self.shared.options })?;
        if layer.bias().is_some_and(|bias| bias.iter().any(|&b| b != 0.0)) {
            return Err(Error::Bias { name: self.prefix.clone() });
        }
        layer.set_bias(None)?;
        Ok(layer.into())
    }

    /// The layer that the prefix is: quantized where the checkpoint has it so, else dense, in F32,
    /// F16 or BF16 as stored, on the CPU.
    ///
    /// # Errors
    /// As [`quant_linear`](Self::quant_linear); [`Error::Missing`] if there is neither; a dense
    /// tensor of another shape.
    pub fn linear(
        &self,
        in_features: usize,
        out_features: usize,
        bias: bool,
    ) -> Result<AnyLinear, Error> {
        let weight = join(&self.prefix, "weight");
        let dense = self.shared.checkpoint.tensors().get(&weight);
        if self.is_quantized() || dense.is_none() {
            return Ok(self.quant_linear(in_features, out_features, bias)?.into());
        }
        let dtype = dense.and_then(|tensor| DType::try_from(tensor.info.dtype).ok());
        let vb = self.dense(dtype.unwrap_or(DType::F32));
        Ok(candle_nn::linear_b(in_features, out_features, bias, vb)?.into())
    }

    /// Candle's own builder over the dense tensors of the checkpoint, at this prefix, on the CPU:
    /// for norms, embeddings and all else that is no quantized layer.
    pub fn dense(&self, dtype: DType) -> VarBuilder<'static> {
        let tensors = DenseTensors(self.shared.checkpoint.clone());
        let vb = VarBuilder::from_backend(Box::new(tensors), dtype, Device::Cpu);
        if self.prefix.is_empty() { vb } else { vb.pp(&self.prefix) }
    }

    /// True if the checkpoint has a tensor of this name below the prefix.
    pub fn contains_tensor(&self, name: &str) -> bool {
        self.shared.checkpoint.tensors().contains_key(&join(&self.prefix, name))
    }

    /// Where tensors come to be: the CPU.
    pub fn device(&self) -> &Device {
        &Device::Cpu
    }

    /// What there is where no quantized layer is, in words.
    fn found(&self) -> String {
        if let Some(tensor) = self.shared.checkpoint.tensors().get(&join(&self.prefix, "weight")) {
            return format!(
                "it is dense there, {} {:?}: ask with linear, which takes both",
                tensor.type_name(),
                tensor.shape()
            );
        }
        let good = &self.shared.layers.good;
        if good.is_empty() {
            return "the checkpoint has no quantized layer at all: quantize it with `fp4 quantize`"
                .into();
        }
        let below = join(&self.prefix, "");
        let below: Vec<_> = good.keys().filter(|name| name.starts_with(&below)).collect();
        if below.is_empty() {
            let all = names(good.keys().map(String::as_str));
            format!("the checkpoint has {} of them, {all}", good.len())
        } else {
            let all = names(below.iter().map(|name| name.as_str()));
            format!("{} of them are below it, {all}", below.len())
        }
    }
}

/// [`Fp4VarBuilder::linear`] with a bias, in the form of `candle_nn::linear`: one `use` puts it in
/// that one's place in a copy of a model's file.
///
/// # Errors
/// As [`Fp4VarBuilder::linear`].
pub fn linear(
    in_features: usize,
    out_features: usize,
    vb: Fp4VarBuilder,
) -> candle_core::Result<AnyLinear> {
    linear_b(in_features, out_features, true, vb)
}

/// [`Fp4VarBuilder::linear`] without a bias, in the form of `candle_nn::linear_no_bias`.
///
/// # Errors
/// As [`Fp4VarBuilder::linear`].
pub fn linear_no_bias(
    in_features: usize,
    out_features: usize,
    vb: Fp4VarBuilder,
) -> candle_core::Result<AnyLinear> {
    linear_b(in_features, out_features, false, vb)
}

/// [`Fp4VarBuilder::linear`] in the form of `candle_nn::linear_b`.
///
/// # Errors
/// As [`Fp4VarBuilder::linear`].
pub fn linear_b(
    in_features: usize,
    out_features: usize,
    bias: bool,
    vb: Fp4VarBuilder,
) -> candle_core::Result<AnyLinear> {
    Ok(vb.linear(in_features, out_features, bias)?)
}

impl fmt::Debug for Fp4VarBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fp4VarBuilder")
            .field("checkpoint", &self.shared.checkpoint.path())
            .field("prefix", &self.prefix)
            .field("layers", &self.shared.layers.good.len())
            .finish_non_exhaustive()
    }
}
