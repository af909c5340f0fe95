//! The streaming writer: copies dense tensors, and quantizes weights tile by tile.
//!
//! ```text
//! pass 1 (an automatic global scale)
//!     for each tile: read, transform, amax = max(amax, |y|); look for the global scale that the
//!                    values had if they are in the format already (`layer::regrid`)
//!     gs as found, or by the scale rule; 1, with a warning, where amax is not finite
//!     where amax does not count (MXFP4), the pass ends with the first group that is in no format
//! pass 2
//!     for each tile: read, transform, quantize; write codes and scales at their offsets;
//!                    dequantize and compare with the (transformed) tile
//! ```
//!
//! The transform is applied once per tile and pass, and the quantizer gets its result: by
//! C5 that is what a fused transform and quantize gives, and the error needs the values anyway.
//!
//! Memory: a few tiles a thread, within [`Engine::memory`], and one transform, whatever the size of
//! the tensors. What drives this is [`stream`].

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use fp4_core::{
    FloatType, FloatVec, PackedMatrix, QuantSpec, QuantizeInput, Transform, with_floats,
};

use crate::checkpoint::tiles::{Tile, tiles};
use crate::checkpoint::{Arrangement, Checkpoint, Listing, byte_len};
use crate::error::{Error, ModelError};
use crate::layer::{ActivationEncoding, DenseOptions, StoredTransform, state};
use crate::model::dense::{self, DenseSource, encoded};
use crate::model::difference::Difference;
use crate::model::groups::Groups;
use crate::model::parts::{Part, Seen, part_bytes};
use crate::model::plan::{Plan, Weight};
use crate::model::stream::{self, Contents, Inputs, Job, Layout, Memory, Output, Progress, Sink};
use crate::model::ties::Known;
use crate::run::routing::Backends;
use crate::sharded::Team;
use crate::transform::{amax, transformed};

/// What quantizes a checkpoint.
pub struct Engine<'a> {
    /// The dense checkpoint.
    pub input: &'a Checkpoint,
    /// Who may quantize, the first that can.
    pub backends: Backends,
    /// How much may be in memory at a time.
    pub memory: Memory,
}

/// What a run has come to.
pub enum Event<'e> {
    /// It works on this tensor or file now.
    Working(&'e str),
    /// So many bytes more are read.
    Bytes(u64),
    /// So many bytes were read already by the run that this one continues.
    Kept(u64),
    /// A weight is quantized, to the tensors of its file's arrangement.
    Done(&'e Weight, &'e Arrangement, Box<Outcome>),
}

/// Who is told of events.
pub type Observer<'o> = dyn FnMut(Event<'_>) + 'o;

/// What the user should know of a weight.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Warning {
    /// All its values are zero, so its global scale is 1 (C4).
    Zero,
    /// Its largest magnitude, this one, gives no global scale, so it is 1.
    NotFinite(#[serde(with = "stream::bits")] f32),
    /// Its calibration saw fewer rows than it has inputs: of the rest the damping decides.
    FewRows {
        /// Rows that were seen.
        rows: u64,
        /// Inputs.
        k: usize,
    },
    /// So many blocks of its transform could not be undone before their damping was raised.
    Raised(usize),
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::Zero => f.write_str("all weights are zero; global scale 1"),
            Warning::NotFinite(amax) if amax.is_nan() => {
                f.write_str("largest magnitude is NaN; global scale 1")
            }
            Warning::NotFinite(_) => f.write_str("largest magnitude is infinite; global scale 1"),
            Warning::FewRows { rows, k } => write!(
                f,
                "calibrated on {rows} rows, fewer than its {k} inputs; give `fp4 calibrate` more \
                 text"
            ),
            Warning::Raised(blocks) => write!(
                f,
                "the damping of {blocks} blocks of the transform was raised until they could be \
                 undone: their inputs are nearly dependent, or hardly used"
            ),
        }
    }
}

/// What became of one weight.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// The weight's global scale.
    pub global_scale: f32,
    /// The error of the quantized weight.
    pub difference: Difference,
    /// Weights that are NaN or infinite.
    pub not_finite_weights: u64,
    /// What became of its groups.
    pub groups: Groups,
    /// What the user should know.
    pub warning: Option<Warning>,
    /// The backend that quantized it, or the method; empty if there was nothing to do.
    pub quantizer: String,
    /// What the layer loses on sample rows of its input, where there are any.
    #[serde(default)]
    pub loss: Option<LayerLoss>,
}

impl Outcome {
    /// Adds what became of more rows of the weight.
    fn merge(&mut self, other: Outcome) {
        self.global_scale = other.global_scale;
        self.difference.merge(&other.difference);
        self.not_finite_weights += other.not_finite_weights;
        self.groups.merge(&other.groups);
        self.warning = self.warning.or(other.warning);
        if self.quantizer.is_empty() {
            self.quantizer = other.quantizer;
        }
        self.loss = self.loss.or(other.loss);
    }
}

/// What a layer loses on the sample rows of a calibration, as a share of the squares of the dense
/// layer's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LayerLoss {
    /// By its weight alone.
    pub weight: f64,
    /// By weight and activations.
    pub layer: f64,
    /// By weight and activations, rounded to nearest under the contract's scales, with no
    /// transform.
    pub before: f64,
}

/// A tile that is quantized.
pub(super) struct Done<'d> {
    /// Its place.
    pub(super) tile: &'d Tile,
    /// Its values, transformed.
    pub(super) values: &'d FloatVec,
    /// What they became.
    pub(super) packed: &'d PackedMatrix,
    /// What those are worth.
    pub(super) back: &'d [f32],
}

impl Engine<'_> {
    /// A file to a file; or a folder to a folder: shards under their names, all else, as `listing`
    /// has it, copied, the index rewritten.
    ///
    /// # Errors
    /// As [`stream::write`]; a weight that cannot be quantized.
    pub fn write(
        &self,
        plan: &Plan,
        listing: &Listing,
        output: &Output<'_>,
        on: &mut Observer<'_>,
    ) -> Result<(), Error> {
        self.write_over(plan, listing, output, None, on)
    }

    /// As [`write`](Self::write), by all ranks of a team together, if there is one: the same bytes.
    ///
    /// # Errors
    /// As [`stream::write_over`]; a weight that cannot be quantized.
    pub fn write_over(
        &self,
        plan: &Plan,
        listing: &Listing,
        output: &Output<'_>,
        team: Option<&dyn Team>,
        on: &mut Observer<'_>,
    ) -> Result<(), Error> {
        let files = self.input.files().iter().zip(&plan.layouts);
        let index = self.input.index().map(|index| {
            (
                index.name(),
                index.rewritten(&plan.weight_map(self.input), plan.data_len()).into_bytes(),
            )
        });
        let contents = Contents {
            files: files
                .map(|((name, _), layout)| (name.as_str(), layout as &dyn Layout))
                .collect(),
            carried: self.input.is_folder().then(|| (self.input.path(), listing)),
            generated: index.into_iter().collect(),
        };
        let all = plan.weights.iter().map(Weight::byte_len).sum();
        let most = team.map_or(u64::MAX, |_| part_bytes(all));
        let (tasks, inputs) = (self.tasks(plan, most), Inputs::of(self.input, listing)?);
        let mut parts = Outcome::default();
        let mut told = |event: stream::Event<'_, Task<'_>>| match event {
            stream::Event::Working(name) => on(Event::Working(name)),
            stream::Event::Bytes(more) => on(Event::Bytes(more)),
            stream::Event::Kept(bytes) => on(Event::Kept(bytes)),
            stream::Event::Done(task, Some(outcome)) => {
                let (weight, last) = match &task.what {
                    What::Quantize(weight) => (*weight, true),
                    What::Rows(part) => (part.weight, part.is_last()),
                    What::Copy { .. } | What::Decode { .. } => return,
                };
                parts.merge(outcome);
                if last {
                    let outcome = Box::new(std::mem::take(&mut parts));
                    on(Event::Done(weight, &plan.layouts[weight.tensor.file], outcome));
                }
            }
            stream::Event::Done(_, None) => {}
        };
        let memory = self.memory;
        match team {
            None => stream::write(&contents, &tasks, output, memory, &inputs, &mut told),
            Some(team) => {
                // Pieces of work have other numbers where none is cut.
                let (cut, mut output) =
                    (tasks.iter().filter(|t| t.is_part()).count(), output.clone());
                if cut > 0 {
                    output.settings.push(("parts of large tensors".into(), cut.to_string()));
                }
                stream::write_over(&contents, &tasks, &output, memory, &inputs, team, &mut told)
            }
        }
    }

    /// What is to be done, file by file: the weights, those of more than `most` bytes by ranges of
    /// rows, then what is copied.
    fn tasks<'t>(&'t self, plan: &'t Plan, most: u64) -> Vec<Task<'t>> {
        let files = plan.layouts.iter().enumerate();
        let tasks = files.flat_map(|(file, layout)| {
            let weights = &plan.weights[plan.weights_of(file)];
            let weights = weights.iter().flat_map(move |weight| match Part::cut(weight, most) {
                parts if parts.is_empty() => vec![What::Quantize(weight)],
                parts => parts.into_iter().map(What::Rows).collect(),
            });
            let names = layout.tensors().keys().map(String::as_str);
            let copied = names.filter(|name| self.input.tensors().contains_key(*name));
            let copied = copied.map(move |name| match encoded(self.input, name) {
                Some(Ok(source)) => What::Decode { name, file, source },
                _ => What::Copy { name, file },
            });
            weights.chain(copied).map(move |what| Task { engine: self, plan, what })
        });
        tasks.collect()
    }

    /// Quantizes a weight and writes its layer's state.
    fn quantize(
        &self,
        weight: &Weight,
        layout: &Arrangement,
        sink: &Sink<'_>,
        on: &mut Observer<'_>,
    ) -> Result<Outcome, Error> {
        if let Some(pipeline) = &weight.pipeline {
            return self.quantize_by(pipeline, weight, layout, sink, on);
        }
        let mut outcome = Outcome::default();
        let transform = weight.options.transform.as_ref().map(StoredTransform::view).transpose()?;
        let spec = self.weight_spec(weight, transform.as_ref(), &mut outcome, on)?;
        let rows = 0..weight.shape.rows();
        self.write_rows(weight, rows, &spec, layout, sink, &mut outcome, on)?;
        self.write_settings(weight, &spec, layout, sink)?;
        Ok(outcome)
    }

    /// Quantizes a part of a weight's rows; the first part has the layer's settings with it.
    fn quantize_part(
        &self,
        part: &Part<'_>,
        layout: &Arrangement,
        sink: &Sink<'_>,
        on: &mut Observer<'_>,
    ) -> Result<Outcome, Error> {
        let (weight, mut outcome) = (part.weight, Outcome::default());
        let transform = weight.options.transform.as_ref().map(StoredTransform::view).transpose()?;
        let known =
            part.known(|seen| self.known_of(weight, transform.as_ref(), seen, &mut |_| {}))?;
        // Its share of the pass, whoever made it.
        on(Event::Bytes((weight.passes() - 1) * part.byte_len()));
        let spec = self.spec_of(weight, known, &mut outcome)?;
        self.write_rows(weight, part.rows.clone(), &spec, layout, sink, &mut outcome, on)?;
        if part.rows.start == 0 {
            self.write_settings(weight, &spec, layout, sink)?;
        }
        Ok(outcome)
    }

    /// Quantizes some rows and writes their codes and scales.
    #[expect(clippy::too_many_arguments, reason = "what, how, where to, and who is told")]
    fn write_rows(
        &self,
        weight: &Weight,
        rows: Range<usize>,
        spec: &QuantSpec,
        layout: &Arrangement,
        sink: &Sink<'_>,
        outcome: &mut Outcome,
        on: &mut Observer<'_>,
    ) -> Result<(), Error> {
        let position = |name| position(layout, &state::join(&weight.prefix, name));
        let (codes_at, scales_at) = (position(state::E2M1)?, position(state::SCALE_QUANT)?);
        let group = weight.shape.group().get();
        self.each_tile_of(weight, rows, spec, outcome, on, &mut |done| {
            let start = done.tile.start;
            sink.write(codes_at + (start / 2) as u64, done.packed.codes())?;
            sink.write(scales_at + (start / group) as u64, done.packed.scales())
        })
    }

    /// Writes what a layer's state has beside codes and scales.
    fn write_settings(
        &self,
        weight: &Weight,
        spec: &QuantSpec,
        layout: &Arrangement,
        sink: &Sink<'_>,
    ) -> Result<(), Error> {
        let options = &weight.options;
        let position = |name| position(layout, &state::join(&weight.prefix, name));
        let activation = options.activation_spec()?;
        for (name, value) in [
            (state::WEIGHT_GLOBAL_SCALE, spec.global_scale()),
            (state::ACTIVATION_GLOBAL_SCALE, activation.global_scale()),
            (state::ACTIVATION_SCALE_SCALE, activation.scale_scale()),
        ] {
            sink.write(position(name)?, &value.to_le_bytes())?;
        }
        if options.activations != ActivationEncoding::Own {
            sink.write(position(state::ACTIVATION_ENCODING)?, &[options.activations.byte()])?;
        }
        if let Some(t) = &options.transform {
            sink.write(position(state::TRANSFORM)?, &t.values().to_le_bytes())?;
        }
        Ok(())
    }

    /// Quantizes a weight and hands over each tile when it is done; the settings.
    pub(super) fn each_tile(
        &self,
        weight: &Weight,
        outcome: &mut Outcome,
        on: &mut Observer<'_>,
        take: &mut dyn FnMut(Done<'_>) -> Result<(), Error>,
    ) -> Result<QuantSpec, Error> {
        let transform = weight.options.transform.as_ref().map(StoredTransform::view).transpose()?;
        let spec = self.weight_spec(weight, transform.as_ref(), outcome, on)?;
        self.each_tile_of(weight, 0..weight.shape.rows(), &spec, outcome, on, take)?;
        Ok(spec)
    }

    /// Quantizes some rows of a weight and hands over each tile when it is done.
    fn each_tile_of(
        &self,
        weight: &Weight,
        rows: Range<usize>,
        spec: &QuantSpec,
        outcome: &mut Outcome,
        on: &mut Observer<'_>,
        take: &mut dyn FnMut(Done<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let transform = weight.options.transform.as_ref().map(StoredTransform::view).transpose()?;
        outcome.global_scale = spec.global_scale();
        let source = &weight.source;
        let (bytes, limit) = (source.float_type().bytes(), self.memory.tile_bytes());
        for tile in tiles(rows.len(), source.k(), bytes, limit) {
            let tile = tile.below(rows.start, source.k());
            let dense = weight.source.read(self.input, &tile)?;
            outcome.not_finite_weights += not_finite(&dense);
            let y = self.transformed(dense, &tile, transform.as_ref())?;
            let packed = self.quantize_tile(&y, &tile, spec, outcome)?;
            let back = dense::dequantized(packed.view(), spec.global_scale())?;
            take(Done { tile: &tile, values: &y, packed: &packed, back: &back })?;
            with_floats!(FloatSlice, y.as_slice(), y => outcome.difference.add(y, &back));
            outcome.groups.add(&y, &packed, &back, spec);
            on(Event::Bytes(weight.source.stored_len(&tile)));
        }
        Ok(())
    }

    /// The settings of a weight's quantization; reads it once if its values decide them.
    pub(super) fn weight_spec(
        &self,
        weight: &Weight,
        transform: Option<&Transform<'_>>,
        outcome: &mut Outcome,
        on: &mut Observer<'_>,
    ) -> Result<QuantSpec, Error> {
        let known = self.known_of(weight, transform, &Seen::default(), on)?;
        self.spec_of(weight, known, outcome)
    }

    /// What decides a weight's global scale.
    fn known_of(
        &self,
        weight: &Weight,
        transform: Option<&Transform<'_>>,
        seen: &Seen,
        on: &mut Observer<'_>,
    ) -> Result<Known, Error> {
        let options = &*weight.options;
        Ok(match &weight.tied {
            None => {
                self.known(std::slice::from_ref(&weight.source), options, transform, seen, on)?
            }
            Some(tied) => match tied.known.get() {
                Some(known) => *known,
                None => {
                    let known = self.known(&tied.sources, options, transform, seen, on)?;
                    *tied.known.get_or_init(|| known)
                }
            },
        })
    }

    /// The settings of a weight's quantization, and what the user should know of them.
    fn spec_of(
        &self,
        weight: &Weight,
        known: Known,
        outcome: &mut Outcome,
    ) -> Result<QuantSpec, Error> {
        let options = &*weight.options;
        let needs_amax = options.needs_amax();
        let given = match known {
            Known { amax, .. } if !amax.is_finite() => Some(1.0),
            Known { found, .. } => found,
        };
        let spec = options.with_found(given).weight_spec(known.amax)?;
        if !needs_amax && given.is_none() {
            return Ok(spec);
        }
        check_product(spec.global_scale(), options.activation_factor()?)?;
        let empty = weight.shape.rows() * weight.shape.k() == 0;
        outcome.warning = match known.amax {
            0.0 if needs_amax && !empty => Some(Warning::Zero),
            largest if !largest.is_finite() => Some(Warning::NotFinite(largest)),
            _ => None,
        };
        Ok(spec)
    }

    /// What decides the global scale of matrices after the transform, by one pass over them: a
    /// short one where their largest magnitude does not count. What is seen already is not read.
    fn known(
        &self,
        sources: &[DenseSource],
        options: &DenseOptions,
        transform: Option<&Transform<'_>>,
        seen: &Seen,
        on: &mut Observer<'_>,
    ) -> Result<Known, Error> {
        let (needs_amax, mut regrid) = (options.needs_amax(), options.regrid());
        let of = |source| self.tiles(source).map(move |tile| (source, tile));
        let tiles: Vec<_> = sources.iter().flat_map(of).collect();
        let mut read = |at: usize| -> Result<FloatVec, Error> {
            let (source, tile) = &tiles[at];
            let y = self.transformed(source.read(self.input, tile)?, tile, transform)?;
            // The bytes of a pass that ends early are not counted as work.
            if needs_amax {
                on(Event::Bytes(source.stored_len(tile)));
            }
            Ok(y)
        };
        // In order, as far as the values may still be in a format.
        if let Some(regrid) = &mut regrid {
            for at in 0..tiles.len() {
                if regrid.is_settled() {
                    break;
                }
                let y = read(at)?;
                regrid.feed(y.as_slice());
                if needs_amax {
                    seen.note(at, tiles.len(), amax(y.as_slice()));
                }
            }
        }
        let largest = match needs_amax {
            true => seen.largest(tiles.len(), |at| Ok(amax(read(at)?.as_slice())))?,
            false => 0.0,
        };
        Ok(Known { amax: largest, found: regrid.and_then(|regrid| regrid.found()) })
    }

    pub(super) fn tiles(&self, source: &DenseSource) -> impl Iterator<Item = Tile> + use<> {
        tiles(source.rows(), source.k(), source.float_type().bytes(), self.memory.tile_bytes())
    }

    fn transformed(
        &self,
        dense: FloatVec,
        tile: &Tile,
        transform: Option<&Transform<'_>>,
    ) -> Result<FloatVec, Error> {
        match transform {
            None => Ok(dense),
            Some(t) => transformed(dense.as_slice(), tile.cols, &dense::columns(t, tile)?),
        }
    }

    /// Quantizes a tile by the first backend that can: the fastest, unless one was chosen.
    pub(super) fn quantize_tile(
        &self,
        values: &FloatVec,
        tile: &Tile,
        spec: &QuantSpec,
        outcome: &mut Outcome,
    ) -> Result<PackedMatrix, Error> {
        let input = QuantizeInput::new(values.as_slice(), tile.rows, tile.cols, spec)?;
        let mut packed = PackedMatrix::zeros(input.shape());
        let query = input.query();
        let quantizers = || self.backends.list().iter().filter_map(|b| b.quantizer());
        let able = quantizers().find(|q| q.supports_quantize(&query).is_ok());
        let quantizer = able.ok_or_else(|| {
            let refusals = quantizers().filter_map(|q| {
                Some(format!("{}: {}", q.name(), q.supports_quantize(&query).err()?))
            });
            let refusals = refusals.collect::<Vec<_>>().join("; ");
            ModelError::NoQuantizer(refusals)
        })?;
        quantizer.quantize(&input, &mut packed.view_mut())?;
        if outcome.quantizer != quantizer.name() {
            outcome.quantizer = quantizer.name().to_string();
        }
        Ok(packed)
    }
}

/// One tensor of the input.
struct Task<'t> {
    engine: &'t Engine<'t>,
    plan: &'t Plan,
    what: What<'t>,
}

enum What<'t> {
    Quantize(&'t Weight),
    Rows(Part<'t>),
    Copy {
        name: &'t str,
        file: usize,
    },
    /// Blocks of ggml's, in F32.
    Decode {
        name: &'t str,
        file: usize,
        source: DenseSource,
    },
}

impl Task<'_> {
    fn is_part(&self) -> bool {
        matches!(self.what, What::Rows(_))
    }

    /// Bytes of what is read.
    fn bytes(&self) -> u64 {
        let tensors = self.engine.input.tensors();
        match &self.what {
            What::Quantize(weight) => weight.byte_len(),
            What::Rows(part) => part.byte_len(),
            What::Copy { name, .. } | What::Decode { name, .. } => {
                tensors.get(*name).map_or(0, |t| byte_len(&t.info) as u64)
            }
        }
    }
}

impl Job for Task<'_> {
    type Outcome = Option<Outcome>;

    fn name(&self) -> &str {
        match &self.what {
            What::Quantize(weight) => &weight.name,
            What::Rows(part) => &part.weight.name,
            What::Copy { name, .. } | What::Decode { name, .. } => name,
        }
    }

    fn file(&self) -> usize {
        match self.what {
            What::Quantize(weight) => weight.tensor.file,
            What::Rows(ref part) => part.weight.tensor.file,
            What::Copy { file, .. } | What::Decode { file, .. } => file,
        }
    }

    fn work(&self) -> u64 {
        match self.what {
            What::Quantize(weight) => self.bytes() * weight.passes(),
            What::Rows(ref part) => self.bytes() * part.weight.passes(),
            What::Copy { .. } | What::Decode { .. } => self.bytes(),
        }
    }

    fn memory(&self) -> u64 {
        match self.what {
            What::Quantize(weight) => {
                if let Some(pipeline) = &weight.pipeline {
                    let own = weight.shape.rows();
                    let all = weight.siblings.as_deref();
                    let rows = all.map_or(own, |all| all.iter().map(DenseSource::rows).sum());
                    return pipeline.memory(own + rows, weight.shape.k());
                }
                let memory = self.engine.memory;
                memory.of_tiles(weight.value_len()) + weight.source.scales_len(memory.tile_bytes())
            }
            What::Rows(ref part) => {
                let (memory, source) = (self.engine.memory, &part.weight.source);
                memory.of_tiles(part.weight.value_len()) + source.scales_len(memory.tile_bytes())
            }
            What::Copy { .. } => self.bytes().min(self.engine.memory.tile_bytes() as u64),
            What::Decode { ref source, .. } => {
                self.engine.memory.of_tiles(source.value_len() as u64 * source.matrices() as u64)
            }
        }
    }

    fn run(&self, sink: &Sink<'_>, progress: &Progress<'_>) -> Result<Self::Outcome, Error> {
        let Task { engine, plan, .. } = self;
        let mut on = |event: Event<'_>| {
            if let Event::Bytes(more) = event {
                progress.bytes(more);
            }
        };
        let of = |weight: &Weight, outcome: Result<Outcome, Error>| {
            outcome.map(Some).map_err(|error| Error::Weight {
                name: weight.name.clone(),
                error: Box::new(error),
            })
        };
        match self.what {
            What::Quantize(weight) => {
                let layout = &plan.layouts[weight.tensor.file];
                of(weight, engine.quantize(weight, layout, sink, &mut on))
            }
            What::Rows(ref part) => {
                let layout = &plan.layouts[part.weight.tensor.file];
                of(part.weight, engine.quantize_part(part, layout, sink, &mut on))
            }
            What::Copy { name, .. } => {
                stream::copy(engine.input, name, engine.memory, sink, progress).map(|()| None)
            }
            What::Decode { name, ref source, .. } => {
                let to = (sink, sink.position(name)?);
                let (input, memory) = (engine.input, engine.memory);
                source.write(input, FloatType::F32, memory, to, progress).map(|()| None)
            }
        }
    }
}

/// Where a tensor of the plan goes.
pub(super) fn position(layout: &Arrangement, name: &str) -> Result<u64, Error> {
    layout.position(name).ok_or_else(|| Error::MissingTensor { name: name.into() })
}

/// Checks that a layer with these global scales can run: it multiplies by their product in f32.
///
/// # Errors
/// A product that is 0 or infinite.
pub fn check_product(weight: f32, activation: f32) -> Result<(), ModelError> {
    let product = weight * activation;
    match product.is_finite() && product > 0.0 {
        true => Ok(()),
        false => Err(ModelError::ScaleProduct { weight, activation }),
    }
}

fn not_finite(values: &FloatVec) -> u64 {
    with_floats!(FloatSlice, values.as_slice(), v => {
        v.iter().filter(|x| !fp4_core::Float::to_f32(**x).is_finite()).count() as u64
    })
}
