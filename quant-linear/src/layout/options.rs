//! What a checkpoint does not say for itself.

use fp4_core::ScaleType;

use super::Layout;
use crate::layer::ActivationEncoding;
use crate::layer::state::Bias;

/// What a state does not say for itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct LoadOptions {
    /// The layout, where the tensors allow several or should be taken at the caller's word.
    pub layout: Option<&'static dyn Layout>,
    /// The type of scale bytes stored as U8.
    pub scale_type: Option<ScaleType>,
    /// How activations are quantized. `None`: as a state says; in other software's layers in FP4
    /// where header or config mean that, else in MXINT8, the nearest that there is (in FP4 where
    /// the rows are no whole groups of 32), which a log line says.
    pub activations: Option<ActivationEncoding>,
    /// What to do with a bias.
    pub bias: Bias,
    /// The state was written by other software: an absent scale-scale is then the usual one of its
    /// format (4 for e8m0, 6 for e4m3) instead of 1.
    pub foreign: bool,
}
