//! The streaming writer: copies dense tensors, and quantizes weights tile by tile.
//!
//! ```text
//! pass 1 (NVFP4 with an automatic global scale)
//!     for each tile: read, transform, amax = max(amax, |y|)
//!     gs = amax / 2688 in f32, or 1 where that, or its product with the activations' global
//!          scale, is 0 or amax is not finite
//! pass 2
//!     for each tile: read, transform, quantize; write codes and scales at their offsets;
//!                    dequantize and compare with the (transformed) tile
//! ```
//!
//! The transform is applied once per tile and pass, and the quantizer gets its result: by
//! C5 that is what a fused transform and quantize gives, and the error needs the values anyway.

use anyhow::{Context, Result};
use fp4_core::{PackedMatrix, QuantSpec, QuantizeInput, Transform, with_floats};
use indicatif::ProgressBar;
use quant_linear::{
    Backends, DenseOptions, FloatVec, StoredTransform, amax, larger_amax, state, transformed,
};

use super::plan::{Plan, Weight};
use super::summary::Summary;
use quant_linear::checkpoint::{Arrangement, Checkpoint, byte_len};
use quant_linear::model::tiles::{Tile, tiles};

use crate::dense;
use crate::difference::Difference;
use crate::output::Sink;
use crate::progress;

/// Everything that stays the same over all tensors.
pub(super) struct Engine<'a> {
    pub(super) input: &'a Checkpoint,
    pub(super) options: DenseOptions,
    pub(super) backends: Backends,
    pub(super) block_bytes: usize,
    pub(super) progress: ProgressBar,
}

/// What became of one weight.
#[derive(Debug, Clone, Default)]
pub(super) struct Outcome {
    /// The weight's global scale.
    pub(super) global_scale: f32,
    /// The error of the quantized weight.
    pub(super) difference: Difference,
    /// Weights that are NaN or infinite.
    pub(super) not_finite_weights: u64,
    /// Groups with a NaN scale.
    pub(super) nan_groups: u64,
    /// Groups whose codes are all zero.
    pub(super) zero_groups: u64,
    /// Groups in all.
    pub(super) groups: u64,
    /// What the user should know.
    pub(super) warning: Option<String>,
    /// The backend that quantized it; empty if there was nothing to do.
    pub(super) quantizer: String,
}

impl Engine<'_> {
    /// Writes one file of the output.
    ///
    /// # Errors
    /// I/O errors.
    pub(super) fn write(
        &self,
        file: usize,
        plan: &Plan,
        sink: &Sink<'_>,
        summary: &mut Summary,
    ) -> Result<()> {
        let layout = &plan.layouts[file];
        sink.write(0, layout.header())?;
        for weight in &plan.weights[plan.weights_of(file)] {
            progress::show(&self.progress, &weight.name);
            let outcome = self
                .quantize(weight, layout, sink)
                .with_context(|| format!("quantizing `{}`", weight.name))?;
            summary.add(weight, layout, outcome);
        }
        for name in layout.tensors().keys() {
            if self.input.tensors().contains_key(name) {
                progress::show(&self.progress, name);
                self.copy(name, layout, sink)?;
            }
        }
        Ok(())
    }

    /// Copies a tensor byte for byte.
    fn copy(&self, name: &str, layout: &Arrangement, sink: &Sink<'_>) -> Result<()> {
        let tensor = self.input.tensors().get(name).context("a tensor without a source")?;
        let (len, position) = (byte_len(&tensor.info), position(layout, name)?);
        let step = self.block_bytes.max(1);
        for offset in (0..len).step_by(step) {
            let bytes = self.input.read(tensor, offset..len.min(offset + step))?;
            sink.write(position + offset as u64, &bytes)?;
            self.progress.inc(bytes.len() as u64);
        }
        Ok(())
    }

    /// Quantizes a weight and writes its layer's state.
    fn quantize(&self, weight: &Weight, layout: &Arrangement, sink: &Sink<'_>) -> Result<Outcome> {
        let transform = self.options.transform.as_ref().map(StoredTransform::view).transpose()?;
        let mut outcome = Outcome::default();
        let spec = self.weight_spec(weight, transform.as_ref(), &mut outcome)?;
        outcome.global_scale = spec.global_scale();
        let position = |name| position(layout, &state::join(&weight.prefix, name));
        let (codes_at, scales_at) = (position(state::E2M1)?, position(state::SCALE_QUANT)?);
        let group = spec.group().get();
        for tile in self.tiles(weight) {
            let dense = dense::read(self.input, &weight.tensor, weight.float_type, &tile)?;
            outcome.not_finite_weights += not_finite(&dense);
            let y = self.transformed(dense, &tile, transform.as_ref())?;
            let packed = self.quantize_tile(&y, &tile, &spec, &mut outcome)?;
            sink.write(codes_at + (tile.start / 2) as u64, packed.codes())?;
            sink.write(scales_at + (tile.start / group) as u64, packed.scales())?;
            let back = dense::dequantized(packed.view(), spec.global_scale())?;
            with_floats!(FloatSlice, y.as_slice(), y => outcome.difference.add(y, &back));
            outcome.count_groups(&packed);
            self.progress.inc((tile.len() * weight.float_type.bytes()) as u64);
        }
        let activation = self.options.activation_spec()?;
        for (name, value) in [
            (state::WEIGHT_GLOBAL_SCALE, spec.global_scale()),
            (state::ACTIVATION_GLOBAL_SCALE, activation.global_scale()),
            (state::ACTIVATION_SCALE_SCALE, activation.scale_scale()),
        ] {
            sink.write(position(name)?, &value.to_le_bytes())?;
        }
        if let Some(t) = &self.options.transform {
            sink.write(position(state::TRANSFORM)?, &t.values().to_le_bytes())?;
        }
        Ok(outcome)
    }

    /// The settings of a weight's quantization; reads it once if its largest magnitude counts.
    fn weight_spec(
        &self,
        weight: &Weight,
        transform: Option<&Transform<'_>>,
        outcome: &mut Outcome,
    ) -> Result<QuantSpec> {
        if !self.options.needs_amax() {
            return Ok(self.options.weight_spec(0.0)?);
        }
        let mut largest = 0f32;
        for tile in self.tiles(weight) {
            let dense = dense::read(self.input, &weight.tensor, weight.float_type, &tile)?;
            let y = self.transformed(dense, &tile, transform)?;
            largest = larger_amax(largest, amax(y.as_slice()));
            self.progress.inc((tile.len() * weight.float_type.bytes()) as u64);
        }
        let activation = self.options.activation_spec()?.global_scale();
        let empty = weight.shape.rows() * weight.shape.k() == 0;
        let why = if empty { None } else { why_global_scale_1(largest, activation) };
        let spec = match &why {
            Some(_) => DenseOptions { weight_global_scale: Some(1.0), ..self.options.clone() },
            None => self.options.clone(),
        }
        .weight_spec(largest)?;
        super::check_product(spec.global_scale(), activation)?;
        outcome.warning = why.map(|why| format!("{why}; global scale 1"));
        Ok(spec)
    }

    fn tiles(&self, weight: &Weight) -> impl Iterator<Item = Tile> + use<> {
        let (shape, size) = (weight.shape, weight.float_type.bytes());
        tiles(shape.rows(), shape.k(), size, self.block_bytes)
    }

    fn transformed(
        &self,
        dense: FloatVec,
        tile: &Tile,
        transform: Option<&Transform<'_>>,
    ) -> Result<FloatVec> {
        match transform {
            None => Ok(dense),
            Some(t) => Ok(transformed(dense.as_slice(), tile.cols, &dense::columns(t, tile)?)?),
        }
    }

    /// Quantizes a tile by the first backend that can: the fastest, unless one was chosen.
    fn quantize_tile(
        &self,
        values: &FloatVec,
        tile: &Tile,
        spec: &QuantSpec,
        outcome: &mut Outcome,
    ) -> Result<PackedMatrix> {
        let input = QuantizeInput::new(values.as_slice(), tile.rows, tile.cols, spec)?;
        let mut packed = PackedMatrix::zeros(input.shape());
        let query = input.query();
        let quantizers = || self.backends.list().iter().filter_map(|b| b.quantizer());
        let able = quantizers().find(|q| q.supports_quantize(&query).is_ok());
        let quantizer = able.with_context(|| {
            let refusals = quantizers().filter_map(|q| {
                Some(format!("{}: {}", q.name(), q.supports_quantize(&query).err()?))
            });
            let refusals = refusals.collect::<Vec<_>>().join("; ");
            format!(
                "no backend can quantize this ({refusals}); leave --backend out, if it is given"
            )
        })?;
        quantizer.quantize(&input, &mut packed.view_mut())?;
        if outcome.quantizer != quantizer.name() {
            outcome.quantizer = quantizer.name().to_string();
        }
        Ok(packed)
    }
}

/// Where a tensor of the plan goes.
fn position(layout: &Arrangement, name: &str) -> Result<u64> {
    layout.position(name).with_context(|| {
        format!("`{name}` has no place in the output; please report this mistake in fp4")
    })
}

/// Why the automatic global scale of NVFP4 is 1 and not `amax` / 2688, if it is.
fn why_global_scale_1(amax: f32, activation: f32) -> Option<String> {
    // Not `nvfp4_global_scale`, which gives the smallest f32 where the quotient is 0.
    let quotient = amax / 2688.0;
    if amax == 0.0 {
        Some("all weights are zero".into())
    } else if !amax.is_finite() {
        let what = if amax.is_nan() { "NaN" } else { "infinite" };
        Some(format!("largest magnitude is {what}"))
    } else if quotient == 0.0 {
        Some(format!("largest magnitude {amax:e} / 2688 is 0 in f32"))
    } else if quotient * activation == 0.0 {
        Some(format!(
            "largest magnitude {amax:e} / 2688, times the activations' global scale \
             {activation:e}, is 0 in f32"
        ))
    } else {
        None
    }
}

impl Outcome {
    fn count_groups(&mut self, packed: &PackedMatrix) {
        let shape = packed.shape();
        let nan = packed.scales().iter().filter(|&&s| shape.scale_type().is_nan(s)).count();
        self.nan_groups += nan as u64;
        self.zero_groups += zero_groups(packed.codes(), shape.group().get());
        self.groups += packed.scales().len() as u64;
    }
}

/// Number of groups whose codes are all zero, of either sign.
pub(crate) fn zero_groups(codes: &[u8], group: usize) -> u64 {
    let zero = |codes: &&[u8]| codes.iter().all(|byte| byte & 0x77 == 0);
    codes.chunks_exact(group / 2).filter(zero).count() as u64
}

fn not_finite(values: &FloatVec) -> u64 {
    with_floats!(FloatSlice, values.as_slice(), v => {
        v.iter().filter(|x| !fp4_core::Float::to_f32(**x).is_finite()).count() as u64
    })
}
