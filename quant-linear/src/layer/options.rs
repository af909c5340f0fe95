//! How a dense weight becomes a layer.

use fp4_core::{Format, QuantSpec, nvfp4_global_scale};

use crate::error::Error;
use crate::layer::{ActivationEncoding, StoredTransform};

/// How a dense weight is quantized.
#[derive(Debug, Clone)]
pub struct DenseOptions {
    /// The format.
    pub format: Format,
    /// Applied to the weight before it is quantized, and to activations in every forward.
    pub transform: Option<StoredTransform>,
    /// `None`: 1/3 for MXFP4; for NVFP4 amax / 2688 of the (transformed) weight, which must be
    /// finite then (C4).
    pub weight_global_scale: Option<f32>,
    /// `None`: 1/3 for MXFP4, 0.1 for NVFP4. Never the weight's: a stored constant, so that a
    /// row's bits do not depend on its batch.
    pub activation_global_scale: Option<f32>,
    /// How activations are quantized.
    pub activations: ActivationEncoding,
}

impl DenseOptions {
    /// The usual settings of a format, with no transform.
    pub fn new(format: Format) -> Self {
        DenseOptions {
            format,
            transform: None,
            weight_global_scale: None,
            activation_global_scale: None,
            activations: ActivationEncoding::Own,
        }
    }

    /// True if the weight's largest magnitude decides its settings: NVFP4 with no global scale
    /// given.
    pub fn needs_amax(&self) -> bool {
        self.format == Format::NvFp4 && self.weight_global_scale.is_none()
    }

    /// The settings for the weight itself, whose largest (transformed) magnitude is `amax`.
    ///
    /// # Errors
    /// [`fp4_core::Error::ScaleSetting`] for a given global scale that is not legal, or for NVFP4
    /// without one if `amax` is not finite.
    pub fn weight_spec(&self, amax: f32) -> Result<QuantSpec, Error> {
        let usual = QuantSpec::usual(self.format);
        let global_scale = match (self.weight_global_scale, self.format) {
            (Some(given), _) => given,
            (None, Format::MxFp4) => usual.global_scale(),
            (None, Format::NvFp4) => nvfp4_global_scale(amax)?,
        };
        Ok(QuantSpec::new(
            self.format.scale_type(),
            self.format.group(),
            global_scale,
            usual.scale_scale(),
        )?)
    }

    /// What alpha is multiplied by for the activations: their global scale, or 1 where their
    /// encoding has no stored one.
    ///
    /// # Errors
    /// As [`activation_spec`](Self::activation_spec).
    pub fn activation_factor(&self) -> Result<f32, Error> {
        let stored = self.activation_spec()?.global_scale();
        Ok(if self.activations == ActivationEncoding::Own { stored } else { 1.0 })
    }

    /// The settings for activations in the weight's own format.
    ///
    /// # Errors
    /// [`fp4_core::Error::ScaleSetting`] for a given global scale that is not legal.
    pub fn activation_spec(&self) -> Result<QuantSpec, Error> {
        let usual = QuantSpec::usual(self.format);
        Ok(QuantSpec::new(
            self.format.scale_type(),
            self.format.group(),
            self.activation_global_scale.unwrap_or(usual.global_scale()),
            usual.scale_scale(),
        )?)
    }
}
