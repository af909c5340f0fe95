//! Everything that a report on one checkpoint, or on two, shows: numbers, read tile by tile.
//!
//! ```text
//! A alone      each quantized layer of A: codes, scales, zero groups, spreads; sizes
//! A against B  the same of each quantized layer of either, and its error against what the other
//!              holds under its name, by layer and by group; the dense tensors that differ
//! ```
//!
//! As for [`compare`](super::compare) a dense side is the reference, and between equals it is A;
//! where a layer has a transform, the dense weight is transformed in the same way first.
//!
//! With the [`Losses`] of a calibrated run each layer has what it loses on the sample rows of the
//! calibration, before (rounded to nearest) and after.
//!
//! A report is bounded, whatever the checkpoints hold. Rows beyond [`MAX_ROWS`] and names beyond
//! [`MAX_NAMES`] are left out and counted, and what is longer than [`NAME_CHARS`] or
//! [`PROBLEM_CHARS`] loses its middle; totals are over all. It takes memory for one tile at a time
//! and a few kilobytes a layer. Names and paths in it are [printable](crate::text::printable).
//!
//! As JSON, what has no number (NaN, an infinity) is `null`, and `error_kind` says which.
//!
//! ```no_run
//! use quant_linear::checkpoint::Checkpoint;
//! use quant_linear::{LoadOptions, model::report::Report};
//!
//! let a = Checkpoint::open("model.safetensors".as_ref())?;
//! let b = Checkpoint::open("model-fp4.safetensors".as_ref())?;
//! let report = Report::new(&a, Some(&b), &LoadOptions::default(), &mut |_| {})?;
//! println!("{} dB", report.totals.error.unwrap().sqnr_db);
//! # Ok::<(), quant_linear::Error>(())
//! ```

pub(in crate::model) mod counts;
mod gather;
pub(in crate::model) mod groups;
mod losses;
mod natural;
pub(in crate::model) mod reference;
mod sizes;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::model::difference::Difference;
use crate::model::quantize::LayerLoss;
use crate::text;

pub use counts::Counts;
pub use groups::{Group, Groups, Quantiles, Worst};
pub use losses::{Losses, LossesError, MAX_LOSSES, Run};
pub use sizes::{Class, Source};

/// The most rows of a report; of more, those with the largest error are kept, or the largest.
pub const MAX_ROWS: usize = 2000;

/// The most names in a list of names, and problems in the list of those.
pub const MAX_NAMES: usize = 200;

/// The most characters of a name; a longer one loses its middle.
pub const NAME_CHARS: usize = 200;

/// The most characters of a problem, likewise.
pub const PROBLEM_CHARS: usize = 800;

/// The worst groups that are kept of a layer, and of all, in either order.
const WORST: [usize; 2] = [5, 50];

/// The version of the report's shape as JSON.
const VERSION: u32 = 1;

/// The numbers of a report.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Version of this shape.
    pub version: u32,
    /// The first checkpoint: the one reported on, or the reference.
    pub a: Source,
    /// The second.
    pub b: Option<Source>,
    /// Over all quantized layers.
    pub totals: Totals,
    /// The same by format.
    pub formats: BTreeMap<String, Totals>,
    /// Quantized layers, and dense tensors that differ, in the order of the model.
    pub rows: Vec<Row>,
    /// Rows that are left out.
    pub rows_left_out: usize,
    /// The worst groups of all layers.
    pub worst_groups: Worst,
    /// What the layers lost in the run that made them, where it is known.
    pub losses: Option<Run>,
    /// Tensors outside quantized layers that are the same in both.
    pub identical: u64,
    /// Names that only A has.
    pub only_in_a: Names,
    /// Names that only B has.
    pub only_in_b: Names,
    /// What could not be reported on.
    pub problems: Names,
}

/// Sums over quantized layers.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Totals {
    /// How many layers.
    pub layers: u64,
    /// Bytes of their codes and scales.
    pub bytes: u64,
    /// Of the layers with a reference: their own bytes, and those of the reference.
    pub compared_bytes: Option<[u64; 2]>,
    /// What they hold.
    pub counts: Counts,
    /// Their error; absent without any reference.
    pub error: Option<Figures>,
    /// Their error by group.
    pub groups: Option<Groups>,
    #[serde(skip)]
    difference: Difference,
}

/// One quantized layer, or a dense tensor that differs.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The layer's prefix, or the tensor's name.
    pub name: String,
    /// How the layer is stored; `dense` for a tensor.
    pub layout: &'static str,
    /// Its format, or the types of both tensors.
    pub format: String,
    /// Rows and columns, before them the number of experts if there are several; or a tensor's own
    /// shape.
    pub shape: Vec<usize>,
    /// Are its values those of a transformed weight?
    pub transformed: bool,
    /// Bytes of codes and scales, or of the tensor.
    pub bytes: u64,
    /// Bytes of the reference.
    pub reference_bytes: Option<u64>,
    /// The global scale of a layer, of the first expert.
    pub global_scale: Option<f32>,
    /// What a layer holds.
    pub counts: Option<Counts>,
    /// The error, where there is a reference.
    pub error: Option<Figures>,
    /// The error by group.
    pub groups: Option<Groups>,
    /// The worst groups.
    pub worst_groups: Option<Worst>,
    /// What the layer lost in the run that made it, where it is known.
    pub loss: Option<LayerLoss>,
}

/// A [`Difference`] in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figures {
    /// The relative error.
    pub relative_error: f64,
    /// Signal to quantization noise in dB.
    pub sqnr_db: f64,
    /// The largest absolute difference.
    pub max_abs_error: f64,
    /// Which of the numbers there are.
    pub error_kind: &'static str,
    /// Values that differ.
    pub values_differ: u64,
    /// Those that are not finite on one side.
    pub not_finite: u64,
}

/// Names, the first of many.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Names {
    /// The first.
    pub first: Vec<String>,
    /// How many more there are.
    pub left_out: usize,
}

/// How far the report has come.
#[derive(Debug, Clone, Copy)]
pub enum Event<'e> {
    /// There are so many bytes to be read.
    Work(u64),
    /// It reads this item now.
    Working(&'e str),
    /// So many of them are read.
    Bytes(u64),
}

impl From<&Difference> for Figures {
    fn from(difference: &Difference) -> Self {
        Figures {
            relative_error: difference.relative(),
            sqnr_db: difference.sqnr_db(),
            max_abs_error: difference.max_abs(),
            error_kind: difference.kind().name(),
            values_differ: difference.differ(),
            not_finite: difference.not_finite(),
        }
    }
}

impl Names {
    fn add(&mut self, name: &str, most: usize) {
        match self.first.len() < MAX_NAMES {
            true => self.first.push(cut(name, most)),
            false => self.left_out += 1,
        }
    }

    /// How many there are in all.
    pub fn count(&self) -> usize {
        self.first.len() + self.left_out
    }
}

impl Totals {
    fn add(&mut self, row: &Row, difference: Option<&Difference>) {
        let Some(counts) = &row.counts else { return };
        self.layers += 1;
        self.bytes += row.bytes;
        self.counts.merge(counts);
        if let Some(bytes) = row.reference_bytes {
            let [own, reference] = self.compared_bytes.unwrap_or_default();
            self.compared_bytes = Some([own + row.bytes, reference + bytes]);
        }
        if let (Some(difference), Some(groups)) = (difference, &row.groups) {
            self.difference.merge(difference);
            self.error = Some((&self.difference).into());
            self.groups.get_or_insert_default().merge(groups);
        }
    }
}

/// A name for a person: printable, and of a bounded length.
fn shown(name: &str) -> String {
    cut(name, NAME_CHARS)
}

/// A text for a person, of at most so many characters; a longer one loses its middle.
fn cut(text: &str, most: usize) -> String {
    let shown = text::printable(text);
    if shown.chars().nth(most).is_none() {
        return shown.into_owned();
    }
    let half = most / 2 - 2;
    let tail = shown.char_indices().rev().nth(half - 1).map_or(0, |(at, _)| at);
    shown.chars().take(half).chain("...".chars()).chain(shown[tail..].chars()).collect()
}
