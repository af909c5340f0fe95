//! How a dense weight becomes a layer.

use fp4_core::{Format, QuantSpec, ScaleRule};

use crate::error::Error;
use crate::layer::regrid::Regrid;
use crate::layer::{ActivationEncoding, StoredTransform};

/// How a dense weight is quantized.
#[derive(Debug, Clone)]
pub struct DenseOptions {
    /// The format.
    pub format: Format,
    /// Applied to the weight before it is quantized, and to activations in every forward.
    pub transform: Option<StoredTransform>,
    /// How the scale bytes of the weight are found; activations keep the contract's rule.
    pub scale_rule: ScaleRule,
    /// `None`: what goes with the rule ([`ScaleRule::global_scale`]). Where that comes of the
    /// largest magnitude of the (transformed) weight, it must be finite then. A rule that searches
    /// takes another where the weight is in the format already: that which it was quantized with,
    /// so that no weight moves.
    pub weight_global_scale: Option<f32>,
    /// `None`: 1/3 for MXFP4, 0.1 for NVFP4. Never the weight's: a stored constant, so that a
    /// row's bits do not depend on its batch.
    pub activation_global_scale: Option<f32>,
    /// How activations are quantized.
    pub activations: ActivationEncoding,
}

impl DenseOptions {
    /// The rule for the scale bytes of weights unless another is chosen: of those that leave a
    /// weight as it is that is in the format already, the one with the least error elsewhere.
    pub const SCALE_RULE: ScaleRule = ScaleRule::Search;

    /// The usual settings of a format, with no transform.
    pub fn new(format: Format) -> Self {
        DenseOptions {
            format,
            transform: None,
            scale_rule: Self::SCALE_RULE,
            weight_global_scale: None,
            activation_global_scale: None,
            activations: ActivationEncoding::Own,
        }
    }

    /// True if the weight's largest magnitude decides its settings: no global scale is given, and
    /// that of the rule is derived from it.
    pub fn needs_amax(&self) -> bool {
        self.weight_global_scale.is_none() && self.scale_rule.needs_amax(self.format)
    }

    /// What looks for the global scale of a weight that is in the format already; `None` where that
    /// is not wanted, because one is given or the rule has its own.
    pub(crate) fn regrid(&self) -> Option<Regrid> {
        let searches = self.scale_rule == ScaleRule::Search;
        (searches && self.weight_global_scale.is_none()).then(|| Regrid::new(self.format))
    }

    /// The settings for the weight itself, whose largest (transformed) magnitude is `amax`, which
    /// counts only where [`needs_amax`](Self::needs_amax) says so.
    ///
    /// # Errors
    /// [`fp4_core::Error::ScaleRule`] for a rule of another format;
    /// [`fp4_core::Error::ScaleSetting`] for a given global scale that is not legal, or where there
    /// is none if `amax` counts and is not finite.
    pub fn weight_spec(&self, amax: f32) -> Result<QuantSpec, Error> {
        let Some(given) = self.weight_global_scale else {
            return Ok(QuantSpec::by_rule(self.format, self.scale_rule, amax)?);
        };
        let (usual, scale) = (QuantSpec::usual(self.format), self.format.scale_type());
        let spec = QuantSpec::new(scale, self.format.group(), given, usual.scale_scale())?;
        Ok(spec.with_tie(self.scale_rule.tie(scale)).with_rule(self.scale_rule)?)
    }

    /// The same with the global scale that was found, if one was.
    pub(crate) fn with_found(&self, found: Option<f32>) -> Self {
        let weight_global_scale = found.or(self.weight_global_scale);
        DenseOptions { weight_global_scale, ..self.clone() }
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
