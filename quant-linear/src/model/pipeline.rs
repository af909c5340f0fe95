//! Quantizing with a calibration: a transform made for the layer, a method that looks at the second
//! moments of its input, and a global scale of activations from what was seen of them.
//!
//! ```text
//! W, the weights that take the same input     read whole
//! T                                           i | r | h | wush, rounded to bf16       calibrate
//! V = W T^-1, H = T G T^T                     G from the calibration
//! global scale of V, then codes and scales    rtn | gptq | babai
//! activations' global scale                   a rule, over what was seen of T x
//! losses                                      on the sample rows, before and after
//! ```
//!
//! Layers that take the same input (q, k and v) get one T, of all their weights, and one global
//! scale of activations: so they share one quantized activation. Of T x nothing is stored: with a
//! transform, statistics are those of the sample rows and of the rows with the largest magnitudes.
//!
//! A weight is in memory as a whole, and with it K x K second moments in f64, five times over at
//! the most.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use fp4_core::{FloatType, FloatVec, Format, GroupSize, PackedMatrix, QuantSpec, with_floats};
use serde::{Deserialize, Serialize};

use crate::calibrate::{
    ActivationScale, BlockTransform, Calibration, Gram, GroupScales, Input, JointMoments, KeptNorm,
    Method, QuantizeOptions, Statistics, TransformKind, WushOptions, loss, quantize_weight,
};
use crate::checkpoint::Arrangement;
use crate::checkpoint::tiles::Tile;
use crate::error::{CalibrateError, Error};
use crate::layer::{ActivationEncoding, DenseOptions, StoredTransform, state};
use crate::model::dense::{self, DenseSource};
use crate::model::plan::Weight;
use crate::model::quantize::{
    Engine, Event, LayerLoss, Observer, Outcome, Warning, check_product, position,
};
use crate::model::stream::Sink;
use crate::model::ties::Known;
use crate::transform::{amax, larger_amax};

/// What the quantized weight is made to come close to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// The product with the activations as they are.
    #[default]
    Weight,
    /// The product with the activations as the layer quantizes them, by the sample rows alone:
    /// there should be 8 times K of them or more, for fewer are overfitted.
    WeightAndActivations,
}

impl Objective {
    /// All of them.
    pub const ALL: [Objective; 2] = [Objective::Weight, Objective::WeightAndActivations];

    /// The name on the command line and in a recipe.
    pub const fn name(self) -> &'static str {
        match self {
            Objective::Weight => "weight",
            Objective::WeightAndActivations => "weight-and-activations",
        }
    }
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Objective {
    type Err = Error;

    /// # Errors
    /// [`CalibrateError::Name`].
    fn from_str(name: &str) -> Result<Self, Error> {
        let found = Objective::ALL.into_iter().find(|objective| objective.name() == name);
        found.ok_or_else(|| {
            let (what, expected) = ("objective", "weight or weight-and-activations");
            CalibrateError::Name { what, expected, got: name.into() }.into()
        })
    }
}

/// How weights are quantized with a calibration.
#[derive(Debug, Clone)]
pub struct Pipeline {
    /// What is known of the layers' inputs. Without it: round to nearest, and a transform that is
    /// made of nothing.
    pub calibration: Option<Arc<Calibration>>,
    /// The transform.
    pub transform: TransformKind,
    /// Inputs of a block of the transform.
    pub block: GroupSize,
    /// Of the random transform.
    pub seed: u64,
    /// What WUSH's scale keeps.
    pub norm: KeptNorm,
    /// How errors go within a block.
    pub inner: Method,
    /// How errors go across blocks.
    pub outer: Method,
    /// Takes inputs by descending second moment.
    pub act_order: bool,
    /// Added to the diagonals of second moments, as a share of their mean.
    pub damping: f64,
    /// What is minimized.
    pub objective: Objective,
    /// The rule for the global scale of NVFP4 activations; `None`: the constant of the options.
    pub activation_scale: Option<ActivationScale>,
}

impl Default for Pipeline {
    fn default() -> Self {
        Pipeline {
            calibration: None,
            transform: TransformKind::Identity,
            block: GroupSize::G32,
            seed: 0,
            norm: KeptNorm::default(),
            inner: Method::Rtn,
            outer: Method::Rtn,
            act_order: false,
            damping: 1e-2,
            objective: Objective::Weight,
            activation_scale: None,
        }
    }
}

impl Pipeline {
    /// True if nothing differs from what is done without one: a Hadamard matrix can be of the
    /// options.
    pub fn is_plain(&self) -> bool {
        matches!(self.transform, TransformKind::Identity | TransformKind::Hadamard)
            && self.calibration.is_none()
            && self.activation_scale.is_none()
            && !self.needs_moments()
    }

    fn needs_moments(&self) -> bool {
        self.inner != Method::Rtn || self.outer != Method::Rtn
    }

    /// Checks the settings against each other.
    ///
    /// # Errors
    /// [`CalibrateError::NoCalibration`] where one is needed; what
    /// [`QuantizeOptions::check`] refuses.
    pub fn check(&self, options: &DenseOptions) -> Result<(), Error> {
        let wants = match self {
            _ if self.calibration.is_some() => None,
            Pipeline { transform: TransformKind::Wush, .. } => Some("the transform wush"),
            _ if self.needs_moments() => Some("a method other than rtn"),
            Pipeline { activation_scale: Some(_), .. } => Some("a rule for the activations' scale"),
            _ => None,
        };
        if let Some(what) = wants {
            return Err(CalibrateError::NoCalibration { what }.into());
        }
        self.quantize_options(options.weight_spec(1.0)?).check()
    }

    fn quantize_options(&self, spec: QuantSpec) -> QuantizeOptions {
        let Pipeline { inner, outer, block, damping, act_order, .. } = *self;
        QuantizeOptions {
            spec,
            inner,
            outer,
            block,
            damping,
            act_order,
            scales: GroupScales::Reached,
        }
    }

    /// What decides the bytes that it makes.
    pub fn settings(&self) -> Vec<(String, String)> {
        let rule = self.activation_scale.map_or("none".into(), |rule| rule.to_string());
        let all = [
            ("--transform", format!("{} {} {:?}", self.transform, self.block.get(), self.norm)),
            ("--seed", self.seed.to_string()),
            ("--method", format!("{} {}", self.inner, self.outer)),
            ("--act-order", self.act_order.to_string()),
            ("--damping", format!("{:e}", self.damping)),
            ("--objective", self.objective.to_string()),
            ("--activation-scale", rule),
            ("--calib", self.calibration.as_ref().map_or("none".into(), |c| c.fingerprint())),
        ];
        all.map(|(name, value)| (name.to_string(), value)).to_vec()
    }

    /// Type and shape of the transform that a layer of `k` inputs stores, if there is one.
    pub(super) fn transform_shape(&self, k: usize) -> Option<(FloatType, Vec<usize>)> {
        let d = self.block.get();
        match self.transform {
            TransformKind::Identity => None,
            TransformKind::Random => Some((FloatType::Bf16, vec![d, d])),
            TransformKind::Hadamard => Some((FloatType::F32, vec![d, d])),
            TransformKind::Wush => Some((FloatType::Bf16, vec![k / d, d, d])),
        }
    }

    /// What a header says of it.
    pub(super) fn transform_name(&self) -> String {
        match self.transform {
            TransformKind::Identity => "none".into(),
            TransformKind::Random => format!("random{}", self.block.get()),
            TransformKind::Hadamard => format!("hadamard{}", self.block.get()),
            TransformKind::Wush => format!("wush{}", self.block.get()),
        }
    }

    /// True if two layers take the same input.
    pub(super) fn shares(&self, a: &str, b: &str) -> bool {
        let calibration = self.calibration.as_deref();
        let input = |layer| calibration.and_then(|calibration| calibration.input(layer).ok());
        input(a).zip(input(b)).is_some_and(|(a, b)| std::ptr::eq(a, b))
    }

    /// Checks that what is needed is known of a layer.
    ///
    /// # Errors
    /// [`CalibrateError::NoInput`].
    pub(super) fn expect_layer(&self, layer: &str) -> Result<(), Error> {
        let input = self.calibration.as_deref().map(|calibration| calibration.input(layer));
        input.transpose().map(|_| ())
    }

    /// Bytes that quantizing a weight takes.
    pub(super) fn memory(&self, rows: usize, k: usize) -> u64 {
        let (weight, moments) = (rows as u64 * k as u64, k as u64 * k as u64);
        // The weight, what it is in f64, transformed and dequantized; moments and their factors.
        weight * (4 + 8 + 4 + 4) + moments * 8 * 5
    }

    /// Block of the transform, if there is one.
    pub(super) fn transform_block(&self) -> Option<usize> {
        (self.transform != TransformKind::Identity).then_some(self.block.get())
    }
}

/// One weight on its way.
struct Work<'w> {
    weight: &'w Weight,
    pipeline: &'w Pipeline,
    options: &'w DenseOptions,
    input: Option<&'w Input>,
    /// The calibration's sample rows; none without one.
    rows: Vec<f32>,
    k: usize,
}

impl Engine<'_> {
    /// Quantizes a weight by a pipeline and writes its layer's state.
    pub(super) fn quantize_by(
        &self,
        pipeline: &Pipeline,
        weight: &Weight,
        layout: &Arrangement,
        sink: &Sink<'_>,
        on: &mut Observer<'_>,
    ) -> Result<Outcome, Error> {
        let k = weight.shape.k();
        let known = pipeline.calibration.as_deref().map(|calibration| {
            let input = calibration.input(&weight.prefix)?;
            if input.k != k {
                let (what, expected, got) = ("its calibrated input", k, input.k);
                return Err(CalibrateError::Width { what, expected, got }.into());
            }
            Ok::<_, Error>((calibration, input))
        });
        let known = known.transpose()?;
        let rows = known.map_or(Ok(vec![]), |(calibration, input)| calibration.rows(input))?;
        let (options, input) = (&*weight.options, known.map(|(_, input)| input));
        let work = Work { weight, pipeline, options, input, rows, k };
        let dense = self.read_whole(&weight.source)?;
        on(Event::Bytes(weight.byte_len()));
        let not_finite_weights = dense.iter().filter(|x| !x.is_finite()).count() as u64;
        let mut outcome = Outcome { not_finite_weights, ..Outcome::default() };
        let gram = known.map(|(calibration, input)| calibration.gram(input)).transpose()?;
        let transform = self.transform_of(&work, gram.as_ref())?;
        let looks = pipeline.needs_moments() || pipeline.transform == TransformKind::Wush;
        outcome.warning = match input.filter(|_| looks) {
            Some(input) if input.rows < k as u64 => Some(Warning::FewRows { rows: input.rows, k }),
            _ if transform.raised().is_empty() => None,
            _ => Some(Warning::Raised(transform.raised().len())),
        };
        let through = transform.weight_through(&dense)?;
        let spec = self.spec_through(&work, &transform, &through, &mut outcome)?;
        outcome.global_scale = spec.global_scale();
        let stored = work.activation(known.map(|(calibration, _)| calibration), &transform)?;
        let activation = options.activations.spec(stored)?;
        if options.activations == ActivationEncoding::Own {
            check_product(spec.global_scale(), stored.global_scale())?;
        }
        let packed =
            self.packed(&work, (&through, gram), &transform, &spec, &activation, &mut outcome)?;
        let position = |name| position(layout, &state::join(&weight.prefix, name));
        sink.write(position(state::E2M1)?, packed.codes())?;
        sink.write(position(state::SCALE_QUANT)?, packed.scales())?;
        for (name, value) in [
            (state::WEIGHT_GLOBAL_SCALE, spec.global_scale()),
            (state::ACTIVATION_GLOBAL_SCALE, stored.global_scale()),
            (state::ACTIVATION_SCALE_SCALE, stored.scale_scale()),
        ] {
            sink.write(position(name)?, &value.to_le_bytes())?;
        }
        if options.activations != ActivationEncoding::Own {
            sink.write(position(state::ACTIVATION_ENCODING)?, &[options.activations.byte()])?;
        }
        if let Some(t) = transform.stored() {
            sink.write(position(state::TRANSFORM)?, &t.values().to_le_bytes())?;
        }
        let back = dense::dequantized(packed.view(), spec.global_scale())?;
        outcome.difference.add(&through, &back);
        outcome.groups.add(&FloatVec::F32(through), &packed, &back, &spec);
        outcome.loss = work.loss(&dense, &transform, &packed, &spec, &activation)?;
        Ok(outcome)
    }

    /// All values of a matrix, in f32.
    fn read_whole(&self, source: &DenseSource) -> Result<Vec<f32>, Error> {
        let mut all = Vec::with_capacity(source.rows() * source.k());
        for tile in self.tiles(source) {
            let values = source.read(self.input, &tile)?;
            with_floats!(FloatSlice, values.as_slice(), v => {
                all.extend(v.iter().map(|x| fp4_core::Float::to_f32(*x)));
            });
        }
        Ok(all)
    }

    /// The transform of a weight's layer.
    fn transform_of(&self, work: &Work<'_>, gram: Option<&Gram>) -> Result<BlockTransform, Error> {
        let Work { weight, pipeline, k, .. } = *work;
        let Pipeline { block, seed, damping, norm, .. } = *pipeline;
        match (pipeline.transform, gram) {
            // A rule of a recipe may have one of its own.
            (TransformKind::Identity, _) => match &work.options.transform {
                Some(stored) => BlockTransform::from_stored(k, stored),
                None => BlockTransform::identity(k, GroupSize::G16),
            },
            (TransformKind::Random, _) => BlockTransform::random_orthogonal(k, block, seed),
            // The one that layers without a calibration have.
            (TransformKind::Hadamard, _) => {
                BlockTransform::from_stored(k, &StoredTransform::hadamard(block.get())?)
            }
            (TransformKind::Wush, Some(gram)) => {
                let own = std::slice::from_ref(&weight.source);
                let sources = weight.siblings.as_deref().unwrap_or(own);
                let weights = sources.iter().map(|source| self.read_whole(source));
                let weights = weights.collect::<Result<Vec<_>, _>>()?;
                let weights: Vec<&[f32]> = weights.iter().map(Vec::as_slice).collect();
                BlockTransform::wush(gram, &weights, block, &WushOptions { damping, norm })
            }
            (TransformKind::Wush, None) => {
                Err(CalibrateError::NoCalibration { what: "the transform wush" }.into())
            }
        }
    }

    /// The settings of a transformed weight's quantization.
    fn spec_through(
        &self,
        work: &Work<'_>,
        transform: &BlockTransform,
        through: &[f32],
        outcome: &mut Outcome,
    ) -> Result<QuantSpec, Error> {
        let (weight, options) = (work.weight, work.options);
        if transform.is_identity() {
            // It may be in the format already: what is looked for there, is here too.
            let known = outcome.warning.take();
            let spec = self.weight_spec(weight, None, outcome, &mut |_| {})?;
            outcome.warning = outcome.warning.or(known);
            return Ok(spec);
        }
        let own = amax(through.into());
        let largest = match weight.tied.as_ref().filter(|_| options.needs_amax()) {
            None => own,
            Some(tied) => match tied.known.get() {
                Some(known) => known.amax,
                None => {
                    let mut largest = own;
                    for source in &tied.sources {
                        let through = transform.weight_through(&self.read_whole(source)?)?;
                        largest = larger_amax(largest, amax((&through[..]).into()));
                    }
                    tied.known.get_or_init(|| Known { amax: largest, found: None }).amax
                }
            },
        };
        if own == 0.0 && !through.is_empty() && options.needs_amax() {
            outcome.warning = Some(Warning::Zero);
        }
        options.weight_spec(largest)
    }

    /// The transformed weight, quantized.
    fn packed(
        &self,
        work: &Work<'_>,
        (through, gram): (&[f32], Option<Gram>),
        transform: &BlockTransform,
        spec: &QuantSpec,
        activation: &QuantSpec,
        outcome: &mut Outcome,
    ) -> Result<PackedMatrix, Error> {
        let (pipeline, k) = (work.pipeline, work.k);
        if !pipeline.needs_moments() {
            let rows = through.len().checked_div(k).unwrap_or(0);
            let tile = Tile { row: 0, rows, col: 0, cols: k, start: 0 };
            return self.quantize_tile(&FloatVec::F32(through.to_vec()), &tile, spec, outcome);
        }
        let options = pipeline.quantize_options(*spec);
        outcome.quantizer = match (pipeline.inner, pipeline.outer) {
            (inner, outer) if inner == outer => inner.name().into(),
            (inner, outer) => format!("{inner} in blocks, {outer} across"),
        };
        let gram = gram.ok_or(CalibrateError::NoMoments { method: pipeline.outer.name() })?;
        if pipeline.objective == Objective::Weight {
            let gram = gram.transformed(transform)?;
            return quantize_weight(through, k, Some(&gram), &options);
        }
        let y = transform.activations_through(&work.rows)?;
        let quantized = loss::quantized_rows(&y, k, activation)?;
        let mut moments = JointMoments::new(k);
        moments.add(&y, &quantized)?;
        let joint = moments.finish();
        let target = joint.target(through, pipeline.damping)?;
        quantize_weight(&target, k, Some(joint.gram()), &options)
    }
}

impl Work<'_> {
    /// The settings of the layer's activations in the weight's format.
    fn activation(
        &self,
        calibration: Option<&Calibration>,
        transform: &BlockTransform,
    ) -> Result<QuantSpec, Error> {
        let Work { pipeline, options, input, ref rows, k, .. } = *self;
        let stored = options.activation_spec()?;
        let rule = pipeline.activation_scale.filter(|_| {
            options.format == Format::NvFp4 && options.activations == ActivationEncoding::Own
        });
        let (Some(rule), Some(calibration), Some(input)) = (rule, calibration, input) else {
            return Ok(stored);
        };
        let seen = match transform.is_identity() {
            true => calibration.statistics(input)?,
            false => {
                let mut seen = Statistics::new(k);
                seen.add(&transform.activations_through(rows)?)?;
                // Where one large input is, T x is large as well.
                let extremes = calibration.extremes(input)?;
                seen.add(&transform.activations_through(&extremes)?)?;
                seen
            }
        };
        let (scale, group) = (stored.scale_type(), stored.group());
        Ok(QuantSpec::new(scale, group, seen.global_scale(&rule)?, stored.scale_scale())?)
    }

    /// What the layer loses on the sample rows; `None` without any, or where the dense layer gives
    /// nothing but zeros.
    fn loss(
        &self,
        dense: &[f32],
        transform: &BlockTransform,
        packed: &PackedMatrix,
        spec: &QuantSpec,
        activation: &QuantSpec,
    ) -> Result<Option<LayerLoss>, Error> {
        let Work { options, ref rows, k, .. } = *self;
        if rows.is_empty() || dense.is_empty() {
            return Ok(None);
        }
        let gs = spec.global_scale();
        let weight = loss::of_weight(rows, dense, transform, packed.view(), gs)?;
        let layer = loss::of_layer(rows, dense, transform, packed.view(), gs, activation)?;
        let nearest = QuantSpec::for_weight(options.format, amax(dense.into()))?;
        let none = BlockTransform::identity(k, GroupSize::G16)?;
        let rtn = quantize_weight(dense, k, None, &QuantizeOptions::new(nearest, Method::Rtn))?;
        // The same rule for activations as they are.
        let plain = match self.pipeline.activation_scale {
            Some(rule) if activation.encoding() == Some(fp4_core::Encoding::NvFp4) => {
                let mut seen = Statistics::new(k);
                seen.add(rows)?;
                let gs = seen.global_scale(&rule)?;
                QuantSpec::new(
                    activation.scale_type(),
                    activation.group(),
                    gs,
                    activation.scale_scale(),
                )?
            }
            _ => *activation,
        };
        let before =
            loss::of_layer(rows, dense, &none, rtn.view(), nearest.global_scale(), &plain)?;
        let [weight, layer, before] = [weight.ratio(), layer.ratio(), before.ratio()];
        Ok(layer.is_finite().then_some(LayerLoss { weight, layer, before }))
    }
}
