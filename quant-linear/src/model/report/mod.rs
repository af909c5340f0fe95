//! Everything that a report on one checkpoint, or on two, shows: numbers, read tile by tile.
//!
//! ```text
//! A alone      each quantized layer of A: codes, scales, zero groups, spreads; sizes
//! A against B  the same of each quantized layer of either, and its error against what the other
//!              holds under its name, by layer and by group; the dense tensors that differ
//! ```
//!
//! As for [`compare`](super::compare) a dense side is the reference, and between equals it is A; and
//! where a layer has a transform, the dense weight is transformed in the same way first.
//!
//! A report is bounded, whatever the checkpoints hold. Rows beyond [`MAX_ROWS`], names beyond
//! [`MAX_NAMES`] and characters of a name beyond [`NAME_CHARS`] are left out and counted; totals are
//! over all. It takes memory for one layer's tile at a time and a few kilobytes a layer. Names and
//! paths in it are [printable](crate::text::printable).
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

mod counts;
mod groups;
mod natural;
mod reference;
mod sizes;

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Serialize;

use crate::checkpoint::Checkpoint;
use crate::checkpoint::tiles::{DEFAULT_BLOCK_BYTES, tiles};
use crate::error::Error;
use crate::layer::state::{LoadOptions, join};
use crate::layout::{Layer, Layers};
use crate::model::compare::{self, Item, Side};
use crate::model::dense;
use crate::model::difference::Difference;
use crate::text;

pub use counts::Counts;
pub use groups::{Group, Groups, Quantiles, Worst};
pub use sizes::{Class, Source};

use counts::Counter;
use groups::Measure;
use reference::Reference;

/// The most rows of a report; of more, those with the largest error are kept, or the largest.
pub const MAX_ROWS: usize = 2000;

/// The most names in a list of names, and problems in the list of those.
pub const MAX_NAMES: usize = 200;

/// The most characters of a name; a longer one loses its middle.
pub const NAME_CHARS: usize = 200;

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
    /// Rows and columns, or a tensor's own shape.
    pub shape: Vec<usize>,
    /// Are its values those of a transformed weight?
    pub transformed: bool,
    /// Bytes of codes and scales, or of the tensor.
    pub bytes: u64,
    /// Bytes of the reference.
    pub reference_bytes: Option<u64>,
    /// The global scale of a layer.
    pub global_scale: Option<f32>,
    /// What a layer holds.
    pub counts: Option<Counts>,
    /// The error, where there is a reference.
    pub error: Option<Figures>,
    /// The error by group.
    pub groups: Option<Groups>,
    /// The worst groups.
    pub worst_groups: Option<Worst>,
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
    fn add(&mut self, name: &str) {
        match self.first.len() < MAX_NAMES {
            true => self.first.push(text::printable(name).into_owned()),
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
    let shown = text::printable(name);
    if shown.chars().nth(NAME_CHARS).is_none() {
        return shown.into_owned();
    }
    let half = NAME_CHARS / 2 - 2;
    let tail = shown.char_indices().rev().nth(half - 1).map_or(0, |(at, _)| at);
    shown.chars().take(half).chain("...".chars()).chain(shown[tail..].chars()).collect()
}

/// What a checkpoint holds: layers under the name that their dense weight would have.
fn items<'a>(
    checkpoint: &'a Checkpoint,
    layers: &'a Layers,
    problems: &mut Names,
) -> BTreeMap<Cow<'a, str>, Item<'a>> {
    let dense = checkpoint.tensors().iter();
    let dense = dense.filter(|(name, _)| !layers.tensors.contains(*name));
    let mut items: BTreeMap<_, _> =
        dense.map(|(name, tensor)| (name.as_str().into(), Item::Dense(tensor))).collect();
    for (prefix, layer) in &layers.good {
        items.insert(join(prefix, "weight").into(), Item::Layer(layer));
    }
    let path = checkpoint.path().display();
    for (prefix, error) in &layers.bad {
        items.remove(join(prefix, "weight").as_str());
        problems.add(&format!("{path}: layer `{}`: {error}", named(prefix)));
    }
    items
}

fn named(prefix: &str) -> String {
    if prefix.is_empty() { "(no prefix)".into() } else { shown(prefix) }
}

impl Report {
    /// Reads one checkpoint, or two that belong together, and reports on them. What cannot be
    /// reported on (a layer that is not whole, shapes that differ) is among the problems.
    ///
    /// # Errors
    /// I/O errors.
    pub fn new(
        a: &Checkpoint,
        b: Option<&Checkpoint>,
        options: &LoadOptions,
        on: &mut dyn FnMut(Event<'_>),
    ) -> Result<Self, Error> {
        let layers = [Some(a), b].map(|c| c.map(|c| Layers::find(c, options)).unwrap_or_default());
        let mut report = Report {
            version: VERSION,
            a: Source::new(a, &layers[0]),
            b: b.map(|b| Source::new(b, &layers[1])),
            totals: Totals::default(),
            formats: BTreeMap::new(),
            rows: vec![],
            rows_left_out: 0,
            worst_groups: Worst::new(WORST[1]),
            identical: 0,
            only_in_a: Names::default(),
            only_in_b: Names::default(),
            problems: Names::default(),
        };
        let ours = items(a, &layers[0], &mut report.problems);
        let theirs = b.map(|b| (b, items(b, &layers[1], &mut report.problems)));
        report.gather(a, &ours, theirs.as_ref().map(|(b, items)| (*b, items)), on)?;
        report.bound();
        Ok(report)
    }

    /// Fills everything from the items of both.
    fn gather(
        &mut self,
        a: &Checkpoint,
        ours: &BTreeMap<Cow<'_, str>, Item<'_>>,
        theirs: Option<(&Checkpoint, &BTreeMap<Cow<'_, str>, Item<'_>>)>,
        on: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), Error> {
        let mut work = vec![];
        for (name, item) in ours {
            let side = Side { from: a, item: *item };
            let other = theirs.and_then(|(b, items)| Some((b, items.get(name)?)));
            match other {
                Some((from, item)) => work.push((name, side, Some(Side { from, item: *item }))),
                None if matches!(item, Item::Layer(_)) => work.push((name, side, None)),
                None => {}
            }
            if theirs.is_some() && other.is_none() {
                self.only_in_a.add(&item.shown(name));
            }
        }
        if let Some((from, items)) = theirs {
            for (name, item) in items.iter().filter(|(name, _)| !ours.contains_key(*name)) {
                self.only_in_b.add(&item.shown(name));
                if matches!(item, Item::Layer(_)) {
                    work.push((name, Side { from, item: *item }, None));
                }
            }
        }
        work.sort_by(|(a, ..), (b, ..)| natural::order(a, b));
        on(Event::Work(work.iter().map(|(_, a, b)| bytes(a) + b.as_ref().map_or(0, bytes)).sum()));
        for (name, a, b) in &work {
            on(Event::Working(name));
            self.item(name, a, b.as_ref())?;
            on(Event::Bytes(bytes(a) + b.as_ref().map_or(0, bytes)));
        }
        Ok(())
    }

    /// Reports on one name.
    fn item(&mut self, name: &str, a: &Side<'_>, b: Option<&Side<'_>>) -> Result<(), Error> {
        // Between two layers B is reported on; else it is the side that is a layer.
        let (layer, own, other) = match (a.item, b.map(|b| (b, b.item))) {
            (_, Some((b, Item::Layer(layer)))) => (layer, b, Some(a)),
            (Item::Layer(layer), _) => (layer, a, b),
            (Item::Dense(_), Some((b, Item::Dense(_)))) => return self.dense(name, a, b),
            (Item::Dense(_), None) => return Ok(()),
        };
        let prefix = name.strip_suffix("weight").unwrap_or(name);
        let prefix = named(prefix.strip_suffix('.').unwrap_or(prefix));
        let reference = match other {
            None => None,
            Some(other) => match Reference::new(other, own.from, layer)? {
                Ok(reference) => Some((reference, bytes(other))),
                Err(problem) => {
                    self.problems.add(&format!("`{}`: {problem}", shown(name)));
                    None
                }
            },
        };
        self.layer(prefix, own.from, layer, reference.as_ref())
    }

    /// Reports on a layer.
    fn layer(
        &mut self,
        name: String,
        from: &Checkpoint,
        layer: &Layer,
        reference: Option<&(Reference<'_>, u64)>,
    ) -> Result<(), Error> {
        let shape = layer.shape;
        let (mut counter, mut measure) = (Counter::new(shape), Measure::new(shape, WORST[0]));
        // Dense values are what takes memory.
        for tile in tiles(shape.rows(), shape.k(), size_of::<f32>(), DEFAULT_BLOCK_BYTES) {
            let packed = layer.packed(from, &tile)?;
            counter.add(&packed, &tile);
            if let Some((reference, _)) = reference {
                let values = dense::dequantized(packed.view(), layer.scalars.weight_global_scale)?;
                measure.add(&reference.values(&tile)?, &values, &tile);
            }
        }
        let measured = reference.map(|_| measure.finish());
        let (difference, groups, worst) = match measured {
            Some((difference, groups, worst)) => (Some(difference), Some(groups), Some(worst)),
            None => (None, None, None),
        };
        let row = Row {
            name,
            layout: "native",
            format: shape.format().map_or("none".into(), |format| format.to_string()),
            shape: vec![shape.rows(), shape.k()],
            transformed: layer.transform.is_some(),
            bytes: layer.byte_len(),
            reference_bytes: reference.map(|(_, bytes)| *bytes),
            global_scale: Some(layer.scalars.weight_global_scale),
            counts: Some(counter.finish()),
            error: difference.as_ref().map(Figures::from),
            groups,
            worst_groups: worst,
        };
        self.totals.add(&row, difference.as_ref());
        self.formats.entry(row.format.clone()).or_default().add(&row, difference.as_ref());
        if let Some(worst) = &row.worst_groups {
            self.worst_groups.merge(worst, &row.name);
        }
        self.rows.push(row);
        Ok(())
    }

    /// Reports on two dense tensors, if they differ.
    fn dense(&mut self, name: &str, a: &Side<'_>, b: &Side<'_>) -> Result<(), Error> {
        let pair = match compare::compare(&[*a, *b])? {
            Ok(pair) => pair,
            Err(problem) => {
                self.problems.add(&format!("`{}`: {problem}", shown(name)));
                return Ok(());
            }
        };
        if pair.identical {
            self.identical += 1;
            return Ok(());
        }
        let types = [a, b].map(|side| match side.item {
            Item::Dense(tensor) => tensor.info.dtype.to_string(),
            Item::Layer(_) => String::new(),
        });
        self.rows.push(Row {
            name: shown(name),
            layout: "dense",
            format: if types[0] == types[1] { types[0].clone() } else { types.join(" / ") },
            shape: pair.shape.to_vec(),
            transformed: false,
            bytes: bytes(b),
            reference_bytes: Some(bytes(a)),
            global_scale: None,
            counts: None,
            error: pair.difference.as_ref().map(Figures::from),
            groups: None,
            worst_groups: None,
        });
        Ok(())
    }

    /// Leaves out rows beyond the limit.
    fn bound(&mut self) {
        let Some(over) = self.rows.len().checked_sub(MAX_ROWS + 1) else { return };
        self.rows_left_out = over + 1;
        // By error where there is one, and then by size; what is kept stays in the model's order.
        let rank = |row: &Row| (row.error.map_or(-1.0, |e| e.relative_error), row.bytes);
        let mut ranks: Vec<_> = self.rows.iter().map(rank).enumerate().collect();
        ranks.sort_by(|(i, (a, a_bytes)), (j, (b, b_bytes))| {
            b.total_cmp(a).then(b_bytes.cmp(a_bytes)).then(i.cmp(j))
        });
        let mut keep = vec![false; self.rows.len()];
        ranks.iter().take(MAX_ROWS).for_each(|(i, _)| keep[*i] = true);
        let mut keep = keep.into_iter();
        self.rows.retain(|_| keep.next() == Some(true));
    }
}

fn bytes(side: &Side<'_>) -> u64 {
    side.item.byte_len()
}
