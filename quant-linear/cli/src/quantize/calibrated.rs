//! What `fp4 quantize` takes of a calibration: transforms made for a layer, methods that look at
//! second moments, scales of activations.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use fp4_core::GroupSize;
use quant_linear::calibrate::{ActivationScale, Calibration, KeptNorm, Method, TransformKind};
use quant_linear::model::pipeline::{Objective, Pipeline};

use super::TransformArg;

/// Arguments about calibration.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "With a calibration")]
pub(super) struct Args {
    /// What `fp4 calibrate` wrote for this model. Beside what is chosen below it gives the global
    /// scale of NVFP4 activations.
    #[arg(long, value_name = "DIR")]
    pub(super) calib: Option<PathBuf>,
    /// How weights are rounded: `rtn` to nearest, `gptq` or `babai` so that errors make up for each
    /// other.
    #[arg(long, value_name = "rtn|gptq|babai", default_value = "rtn")]
    pub(super) method: Method,
    /// The method inside blocks of the transform's size, where it is another than across them.
    #[arg(long, value_name = "rtn|gptq|babai")]
    inner_method: Option<Method>,
    /// Round inputs by descending second moment, each under its own group's scale.
    #[arg(long)]
    act_order: bool,
    /// Added to the diagonals of second moments, as a share of their mean.
    #[arg(long, value_name = "SHARE", default_value_t = 0.01, allow_hyphen_values = true)]
    damping: f64,
    /// What errors are counted in: products with activations as they are (`weight`), or as the
    /// layer quantizes them (`weight-and-activations`: calibrate with 8 times K --rows or more).
    #[arg(long, value_name = "WHAT", default_value = "weight")]
    objective: Objective,
    /// Seed of the random transform.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What the scale of WUSH keeps: `balanced` both alike, `weight` or `activation` the norm of
    /// one.
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    wush_norm: NormArg,
}

/// `--wush-norm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum NormArg {
    /// Weights and activations get the same second moments.
    #[default]
    Balanced,
    /// The mean square of the weight is kept.
    Weight,
    /// The mean square of the activations is kept.
    Activation,
}

impl Args {
    /// The pipeline; `None` if all is as without one.
    ///
    /// # Errors
    /// A calibration that cannot be read, or settings that want one.
    pub(super) fn pipeline(
        &self,
        transform: TransformArg,
        block: usize,
        activation_scale: Option<ActivationScale>,
    ) -> Result<Option<Pipeline>> {
        let calibration = self.calib.as_deref().map(Calibration::open).transpose()?;
        let pipeline = Pipeline {
            calibration: calibration.map(Arc::new),
            transform: match transform {
                TransformArg::None => TransformKind::Identity,
                TransformArg::Hadamard => TransformKind::Hadamard,
                TransformArg::Random => TransformKind::Random,
                TransformArg::Wush => TransformKind::Wush,
            },
            block: GroupSize::new(block).context("--transform-block")?,
            seed: self.seed,
            norm: match self.wush_norm {
                NormArg::Balanced => KeptNorm::Balanced,
                NormArg::Weight => KeptNorm::Weight,
                NormArg::Activation => KeptNorm::Activation,
            },
            inner: self.inner_method.unwrap_or(self.method),
            outer: self.method,
            act_order: self.act_order,
            damping: self.damping,
            objective: self.objective,
            activation_scale,
        };
        Ok((!pipeline.is_plain()).then_some(pipeline))
    }
}
