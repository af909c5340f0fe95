//! Layers from checkpoints, whatever their layout.

use std::path::Path;

use super::of;
use crate::checkpoint::{Checkpoint, TensorSource};
use crate::error::Error;
use crate::layer::state::{Bias, LoadOptions, read_bias};
use crate::layer::{Contents, QuantLinear};

impl QuantLinear {
    /// A layer from the tensors under `prefix`.
    ///
    /// # Errors
    /// Missing tensors, wrong types or shapes, illegal scalars, a bias that is not zero.
    pub fn from_state(
        state: &dyn TensorSource,
        prefix: &str,
        options: &LoadOptions,
    ) -> Result<Self, Error> {
        let mut layer = Self::from_parts(of(state, prefix).parts(state, prefix, options)?)?;
        if let Some(bias) = read_bias(state, prefix, layer.out_features(), options)? {
            layer.set_bias(Some(&bias))?;
        }
        if !prefix.is_empty() {
            layer.set_name(prefix);
        }
        Ok(layer)
    }

    /// Replaces the layer's weight, format, transform, scalars and bias by a state; its backends
    /// and its device stay. A layer that was built with a bias, or has one, applies that of the
    /// state, unless the options say to ignore it. On an error the layer is as it was.
    ///
    /// # Errors
    /// As [`from_state`](Self::from_state).
    pub fn load_state(
        &mut self,
        state: &dyn TensorSource,
        prefix: &str,
        options: &LoadOptions,
    ) -> Result<(), Error> {
        let applies =
            self.bias().is_some() || matches!(self.contents, Contents::Empty { bias: true, .. });
        let bias = match options.bias {
            Bias::Refuse if applies => Bias::Apply,
            other => other,
        };
        let options = &LoadOptions { bias, ..*options };
        let parts = of(state, prefix).parts(state, prefix, options)?;
        let bias = read_bias(state, prefix, parts.weight.shape().rows(), options)?;
        self.replace(parts, bias)?;
        if self.name.is_none() && !prefix.is_empty() {
            self.set_name(prefix);
        }
        Ok(())
    }

    /// A layer from a safetensors file, or from a folder of them: its header and the layer's bytes
    /// are read. For many layers of one file open a [`Checkpoint`] once.
    ///
    /// # Errors
    /// An I/O error, a file that is not safetensors, or as [`from_state`](Self::from_state).
    pub fn load(path: &Path, prefix: &str, options: &LoadOptions) -> Result<Self, Error> {
        Self::from_state(&Checkpoint::open(path)?, prefix, options)
    }
}
