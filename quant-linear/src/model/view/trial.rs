//! A dense weight, quantized to be looked at: the bytes that `quantize` would write, and their
//! error, choice by choice.

use std::sync::Arc;

use fp4_core::{Format, PackedShape, ScaleRule};
use serde::Serialize;

use super::map::Map;
use super::{Progress, ScaleCount, WORST, scale_counts};
use crate::checkpoint::{Checkpoint, TensorSource};
use crate::error::{Error, ModelError, Reason};
use crate::layer::{DenseOptions, StoredTransform};
use crate::model::groups;
use crate::model::orientation;
use crate::model::plan::Weight;
use crate::model::quantize::{Engine, Event, Outcome};
use crate::model::report::counts::Counter;
use crate::model::report::groups::Measure;
use crate::model::report::{Counts, Figures, Groups, Worst};
use crate::model::select::{Request, Rule};
use crate::model::stream::Memory;
use crate::run::routing::Backends;

/// How a weight is quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Choice {
    /// The format.
    #[serde(serialize_with = "shown")]
    pub format: Format,
    /// How scale bytes are found.
    #[serde(serialize_with = "shown")]
    pub rule: ScaleRule,
    /// The block of a Hadamard transform: 16, 32, 64 or 128.
    pub transform: Option<usize>,
}

fn shown<T: std::fmt::Display, S: serde::Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(value)
}

/// What a choice comes to.
#[derive(Debug, Clone, Serialize)]
pub struct Trial {
    /// The choice.
    pub choice: Choice,
    /// The weight's name.
    pub name: String,
    /// Which of its matrices, and of how many.
    pub matrix: [usize; 2],
    /// Is it stored as (in, out)?
    pub transposed: bool,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// Elements that share a scale.
    pub group_size: usize,
    /// The type of the scale bytes.
    pub scale_type: &'static str,
    /// The weight's global scale.
    pub global_scale: f32,
    /// Bytes of codes and scales.
    pub bytes: u64,
    /// What the user should know.
    pub warning: Option<String>,
    /// The backend that quantized it.
    pub quantizer: String,
    /// What the codes and scales hold.
    pub counts: Counts,
    /// How often each scale byte occurs, and what it is worth.
    pub scales: Vec<ScaleCount>,
    /// The error.
    pub error: Option<Figures>,
    /// The error by group.
    pub groups: Groups,
    /// The worst groups.
    pub worst_groups: Worst,
    /// Groups and weights that something became of: lost, flushed, saturated.
    pub became: groups::Counts,
    /// Where everything sits.
    pub map: Map,
}

impl Choice {
    fn options(self) -> Result<DenseOptions, Error> {
        let transform = self.transform.map(StoredTransform::hadamard).transpose()?;
        let options =
            DenseOptions { transform, scale_rule: self.rule, ..DenseOptions::new(self.format) };
        // A rule of another format is refused before anything is read.
        options.weight_spec(1.0)?;
        Ok(options)
    }
}

/// Quantizes a matrix of a dense tensor by each of some choices: what
/// [`Engine::write`](crate::model::quantize::Engine::write) of that tensor alone would make of it.
///
/// # Errors
/// A tensor that is missing or cannot be quantized so, with the reason; a matrix that it does not
/// have; a rule of another format; I/O errors.
pub fn trials(
    (from, name, matrix): (&Checkpoint, &str, usize),
    choices: &[Choice],
    backends: &Backends,
    progress: &mut Progress<'_>,
) -> Result<Vec<Trial>, Error> {
    let weights: Vec<_> = choices
        .iter()
        .map(|choice| Ok((*choice, weight(from, name, matrix, choice.options()?)?)))
        .collect::<Result<_, Error>>()?;
    let total = weights.iter().map(|(_, (weight, _))| weight.byte_len() * weight.passes()).sum();
    let engine = Engine { input: from, backends: backends.clone(), memory: Memory::default() };
    let mut done = 0;
    let mut on = |event: Event<'_>| {
        if let Event::Bytes(more) = event {
            done += more;
            progress(done, total);
        }
    };
    let trials = weights.iter().map(|(choice, (weight, matrices))| {
        trial(&engine, *choice, weight, [matrix, *matrices], &mut on)
    });
    trials.collect()
}

/// One matrix of a tensor as a weight, and the number of its matrices.
fn weight(
    from: &Checkpoint,
    name: &str,
    matrix: usize,
    options: DenseOptions,
) -> Result<(Weight, usize), Error> {
    let tensor = from.tensor(name)?.clone();
    let refused = |reason| ModelError::Trial { name: name.into(), reason };
    let rule = Rule::new(&Request::new(options), from.tensors(), Some(from.config().model()))?;
    let rule = rule.recorded(orientation::recorded(from)?);
    let chosen = rule.on_trial(name, &tensor.info).map_err(refused)?;
    let [matrices, rows, k] = chosen.shape();
    if matrix >= matrices {
        let text = format!("its matrix {matrix} is asked for, and it has {matrices}");
        return Err(refused(Reason::Unloadable(text)).into());
    }
    let weight = Weight {
        name: name.into(),
        expert: chosen.experts.then_some(matrix),
        prefix: chosen.prefix.clone(),
        tensor,
        source: chosen.source.clone().matrix(matrix),
        shape: PackedShape::of(chosen.options.format, rows, k)?,
        options: Arc::clone(&chosen.options),
        tied: None,
        pipeline: None,
        siblings: None,
    };
    Ok((weight, matrices))
}

fn trial(
    engine: &Engine<'_>,
    choice: Choice,
    weight: &Weight,
    matrix: [usize; 2],
    on: &mut dyn FnMut(Event<'_>),
) -> Result<Trial, Error> {
    let (shape, mut outcome) = (weight.shape, Outcome::default());
    let (mut counter, mut measure) = (Counter::new(shape), Measure::new(shape, WORST));
    let mut map = Map::of_codes(shape, true);
    engine.each_tile(weight, &mut outcome, on, &mut |done| {
        counter.add(done.packed, done.tile);
        measure.add(done.values, done.back, done.tile);
        map.add_codes(done.packed, done.tile);
        map.add_error(done.values, done.back, done.tile);
        Ok(())
    })?;
    let scales = scale_counts(shape.scale_type(), counter.scale_bytes());
    let (difference, groups, worst_groups) = measure.finish();
    Ok(Trial {
        choice,
        name: weight.name.clone(),
        matrix,
        transposed: weight.is_transposed(),
        rows: shape.rows(),
        cols: shape.k(),
        group_size: shape.group().get(),
        scale_type: shape.scale_type().name(),
        global_scale: outcome.global_scale,
        bytes: shape.codes_len() as u64 + shape.scales_len() as u64,
        warning: outcome.warning.map(|warning| warning.to_string()),
        quantizer: outcome.quantizer,
        counts: counter.finish(),
        scales,
        error: Some((&difference).into()),
        groups,
        worst_groups,
        became: outcome.groups.counts(),
        map: map.finish(),
    })
}
