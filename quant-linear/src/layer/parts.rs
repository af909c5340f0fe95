//! What a layer is made of: packed weight, optional transform, scalars.

use fp4_core::{OwnedTransform as StoredTransform, PackedMatrix, QuantSpec};

use crate::error::Error;
use crate::layer::ActivationEncoding;
use crate::layer::state::{self, Scalars};

/// Everything a layer is made of: what a state holds.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Packed weight, (out, in).
    pub weight: PackedMatrix,
    /// Transform of activations (the weight was transformed before it was quantized).
    pub transform: Option<StoredTransform>,
    /// Global scale of the weight.
    pub weight_global_scale: f32,
    /// Global scale of activations; `None` takes the weight's.
    pub activation_global_scale: Option<f32>,
    /// Scale-scale of activations; `None` takes 1, with a warning.
    pub activation_scale_scale: Option<f32>,
    /// How activations are quantized.
    pub activations: ActivationEncoding,
}

impl Parts {
    /// Checks that the parts make a layer, and resolves the settings of the activations.
    ///
    /// # Errors
    /// As [`QuantLinear::from_parts`](crate::QuantLinear::from_parts).
    pub fn check(&self) -> Result<QuantSpec, Error> {
        let transform = self.transform.as_ref().map(|t| t.view().map(|t| t.shape())).transpose()?;
        let scalars = Scalars {
            weight_global_scale: self.weight_global_scale,
            activation_global_scale: self.activation_global_scale,
            activation_scale_scale: self.activation_scale_scale,
            activations: self.activations,
        };
        state::check(self.weight.shape(), transform, &scalars)
    }
}
