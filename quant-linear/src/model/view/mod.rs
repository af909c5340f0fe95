//! One tensor in depth: what its bytes hold, how its values are spread, and where its error sits.
//!
//! ```text
//! a quantized layer   codes, scale bytes, spreads, a map of both; against another checkpoint its
//!                     error too, as in a report
//! a dense tensor      the powers of two of its values, a map of them
//! a trial             a dense weight, quantized in several ways: what `quantize` would write, and
//!                     its error, without writing it
//! ```
//!
//! Everything is read tile by tile. A [`Map`] has at most [`MAX_CELLS`] cells each way, whatever
//! the size of the tensor.
//!
//! ```no_run
//! use fp4_core::{Format, ScaleRule};
//! use quant_linear::checkpoint::Checkpoint;
//! use quant_linear::layout::Layers;
//! use quant_linear::model::view::{self, Choice, View};
//! use quant_linear::{Backends, LoadOptions};
//!
//! let checkpoint = Checkpoint::open("model.safetensors".as_ref())?;
//! let options = LoadOptions::default();
//! let layers = Layers::find(&checkpoint, &options)?;
//! let view = View::new((&checkpoint, &layers), "a.weight", None, &options, &mut |_, _| {})?;
//! println!("{} rows", view.rows);
//! let choice = Choice { format: Format::NvFp4, rule: ScaleRule::Search, transform: None };
//! let trials = view::trials(
//!     (&checkpoint, "a.weight", 0),
//!     &[choice],
//!     &Backends::available(),
//!     &mut |_, _| {},
//! )?;
//! println!("{} dB", trials[0].error.unwrap().sqnr_db);
//! # Ok::<(), quant_linear::Error>(())
//! ```

mod dense;
mod map;
#[cfg(test)]
mod tests;
mod trial;

use fp4_core::ScaleType;
use serde::Serialize;

use crate::checkpoint::Checkpoint;
use crate::checkpoint::tiles::{DEFAULT_BLOCK_BYTES, tiles};
use crate::error::Error;
use crate::layout::{Layer, Layers, LoadOptions};
use crate::model::compare::Side;
use crate::model::items::{Item, Items};
use crate::model::report::counts::{Counter, pairs};
use crate::model::report::groups::Measure;
use crate::model::report::reference::Reference;
use crate::model::report::{Counts, Figures, Groups, Worst};

pub use dense::Values;
pub use map::{MAX_CELLS, Map};
pub use trial::{Choice, Trial, trials};

/// Columns that hold whole groups, and whole blocks of every type of GGUF.
const WHOLE_BLOCKS: usize = 256;

/// Groups that are named as the worst.
const WORST: usize = 20;

/// One tensor or layer.
#[derive(Debug, Clone, Serialize)]
pub struct View {
    /// The layer's module, or the tensor's name.
    pub name: String,
    /// `layer` or `dense`.
    pub kind: &'static str,
    /// How a layer is stored.
    pub layout: Option<&'static str>,
    /// Its format, or `none`; the type of a dense tensor.
    pub format: String,
    /// The shape: of a layer that of its dense weight.
    pub shape: Vec<usize>,
    /// Rows, those of all matrices below each other.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Bytes of codes and scales, or of the tensor.
    pub bytes: u64,
    /// Elements that share a scale.
    pub group_size: Option<usize>,
    /// The type of the scale bytes.
    pub scale_type: Option<&'static str>,
    /// Global scales as the contract has them: one, or one for each expert.
    pub global_scales: Vec<f32>,
    /// Is a layer's weight transformed?
    pub transformed: bool,
    /// What a layer does otherwise than its config says.
    pub note: Option<String>,
    /// What a layer holds.
    pub counts: Option<Counts>,
    /// How often each of its scale bytes occurs, and what it is worth.
    pub scales: Vec<ScaleCount>,
    /// What a dense tensor holds.
    pub values: Option<Values>,
    /// The error, where there is a reference.
    pub error: Option<Figures>,
    /// The error by group.
    pub groups: Option<Groups>,
    /// The worst groups.
    pub worst_groups: Option<Worst>,
    /// Why there is no error though a reference was given.
    pub incomparable: Option<String>,
    /// Where everything sits.
    pub map: Map,
}

/// A scale byte that occurs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ScaleCount {
    /// The byte.
    pub byte: u8,
    /// Its value; NaN, `null` as JSON, where it is none.
    pub value: f32,
    /// Groups that have it.
    pub count: u64,
}

/// What is told of how far it is: bytes done, bytes in all.
pub type Progress<'p> = dyn FnMut(u64, u64) + 'p;

impl View {
    /// Looks at the layer of a module, or at a tensor that is part of none; `against` is what a
    /// layer's error is measured by. A checkpoint comes with its layers, which are found once for
    /// all views; `options` are those by which `from`'s were.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::NoValues`] for a tensor without values, a layer that is
    /// not whole; I/O errors.
    pub fn new(
        (from, layers): (&Checkpoint, &Layers),
        name: &str,
        against: Option<(&Checkpoint, &Layers)>,
        options: &LoadOptions,
        progress: &mut Progress<'_>,
    ) -> Result<Self, Error> {
        if let Some(layer) = layers.good.get(name) {
            return match against {
                None => Self::layer(from, layer, None, progress),
                Some((other, theirs)) => {
                    let items = Items::of((other, theirs), Some((from, layers)))?;
                    let item = items.by_name.get(layer.tensor.as_str());
                    let reference = match item {
                        None => Err(format!("the other file has no `{}`", layer.tensor)),
                        Some(item) => Reference::new(&Side { from: other, item }, from, layer)?
                            .map(|reference| (reference, item_bytes(item)))
                            .map_err(|problem| problem.to_string()),
                    };
                    Self::layer(from, layer, Some(reference), progress)
                }
            };
        }
        if layers.bad.contains_key(name) && !from.tensors().contains_key(name) {
            // Found again, for an error of its own.
            if let Some(error) = Layers::find(from, options)?.bad.remove(name) {
                return Err(error);
            }
        }
        Self::dense(from, name, progress)
    }

    fn layer(
        from: &Checkpoint,
        layer: &Layer,
        reference: Option<Result<(Reference<'_>, u64), String>>,
        progress: &mut Progress<'_>,
    ) -> Result<Self, Error> {
        let (shape, decoder) = (layer.shape, layer.decoder());
        let (reference, incomparable) = match reference {
            None => (None, None),
            Some(Ok(reference)) => (Some(reference), None),
            Some(Err(why)) => (None, Some(why)),
        };
        let total = layer.byte_len() + reference.as_ref().map_or(0, |(_, bytes)| *bytes);
        let mut done = Done { elements: 0, of: shape.rows() as u64 * shape.k() as u64, total };
        let (mut counter, mut measure) = (Counter::new(shape), Measure::new(shape, WORST));
        let mut map = Map::of_codes(shape, reference.is_some());
        for tile in tiles(shape.rows(), shape.k(), size_of::<f32>(), DEFAULT_BLOCK_BYTES) {
            let packed = layer.packed(from, &tile)?;
            counter.add(&packed, &tile);
            map.add_codes(&packed, &tile);
            if let Some((reference, _)) = &reference {
                let values = decoder.values(&packed, &tile);
                let reference = reference.values(&tile)?;
                measure.add(&reference, &values, &tile);
                map.add_error(&reference, &values, &tile);
            }
            done.add(tile.len(), progress);
        }
        let scales = scale_counts(shape.scale_type(), counter.scale_bytes());
        let measured = reference.is_some().then(|| measure.finish());
        let (difference, groups, worst) = match measured {
            Some((difference, groups, worst)) => (Some(difference), Some(groups), Some(worst)),
            None => (None, None, None),
        };
        Ok(View {
            name: layer.module.clone(),
            kind: "layer",
            layout: Some(layer.layout.name()),
            format: crate::model::inspect::format_name(layer).into(),
            shape: layer.dense_shape(),
            rows: shape.rows(),
            cols: shape.k(),
            bytes: layer.byte_len(),
            group_size: Some(shape.group().get()),
            scale_type: Some(shape.scale_type().name()),
            global_scales: layer.globals.iter().map(|global| global.multiplier()).collect(),
            transformed: layer.transform.is_some(),
            note: layer.note.clone(),
            counts: Some(counter.finish()),
            scales,
            values: None,
            error: difference.as_ref().map(Figures::from),
            groups,
            worst_groups: worst,
            incomparable,
            map: map.finish(),
        })
    }

    fn dense(from: &Checkpoint, name: &str, progress: &mut Progress<'_>) -> Result<Self, Error> {
        let info = &from.tensor(name)?;
        let source = super::values::Values::find(from, name)?;
        let (rows, cols) = (source.rows(), source.row_len());
        let bytes = crate::checkpoint::byte_len(&info.info) as u64;
        let mut done = Done { elements: 0, of: rows as u64 * cols as u64, total: bytes };
        let (mut values, mut map) = (Values::default(), Map::of_values(rows, cols));
        for tile in tiles(rows, cols, size_of::<f32>(), DEFAULT_BLOCK_BYTES) {
            let read = source.read_tile(from, &tile)?;
            values.add(&read);
            map.add_values(&read, &tile);
            done.add(read.len(), progress);
        }
        Ok(View {
            name: name.into(),
            kind: "dense",
            layout: None,
            format: info.type_name(),
            shape: source.shape(),
            rows,
            cols,
            bytes,
            group_size: None,
            scale_type: None,
            global_scales: vec![],
            transformed: false,
            note: None,
            counts: None,
            scales: vec![],
            values: Some(values),
            error: None,
            groups: None,
            worst_groups: None,
            incomparable: None,
            map: map.finish(),
        })
    }
}

/// Some dense values of a layer or a tensor, row-major: those of `rows` rows and `cols` columns
/// from an element on. A layer's are what its codes are worth, in the domain of its transform. The
/// checkpoint comes with its layers.
///
/// # Errors
/// As [`View::new`]; a part that is not inside.
pub fn values(
    (from, layers): (&Checkpoint, &Layers),
    name: &str,
    [row, col]: [usize; 2],
    [rows, cols]: [usize; 2],
) -> Result<Vec<f32>, Error> {
    use crate::checkpoint::tiles::Tile;
    let layer = layers.good.get(name);
    let dense = match layer {
        Some(_) => None,
        None => Some(super::values::Values::find(from, name)?),
    };
    let [all, k] = match (layer, &dense) {
        (Some(layer), _) => [layer.shape.rows(), layer.shape.k()],
        (None, Some(dense)) => [dense.rows(), dense.row_len()],
        (None, None) => [0, 0],
    };
    let ends = row.checked_add(rows).zip(col.checked_add(cols));
    if !ends.is_some_and(|(row, col)| row <= all && col <= k) {
        let text = format!(
            "{rows} rows and {cols} columns from ({row}, {col}) on are asked for, of {all} x {k}"
        );
        let reason = Box::new(crate::error::Reason::Unloadable(text));
        return Err(Error::NoValues { name: name.into(), reason });
    }
    let (mut out, len) = (Vec::new(), rows.saturating_mul(cols));
    out.try_reserve_exact(len).map_err(|_| Error::Memory { len })?;
    // Whole blocks of every type, and of a long row no more than a tile.
    let first = col / WHOLE_BLOCKS * WHOLE_BLOCKS;
    let end = (col + cols).next_multiple_of(WHOLE_BLOCKS).min(k);
    for row in row..row + rows {
        for part in tiles(1, end - first, size_of::<f32>(), DEFAULT_BLOCK_BYTES) {
            let from_col = first + part.col;
            let tile = Tile { row, col: from_col, start: row * k + from_col, ..part };
            let values = match (layer, &dense) {
                (Some(layer), _) => layer.decoder().values(&layer.packed(from, &tile)?, &tile),
                (None, Some(dense)) => dense.read_tile(from, &tile)?,
                (None, None) => vec![],
            };
            let inside = col.max(from_col)..(col + cols).min(from_col + tile.cols);
            out.extend_from_slice(&values[inside.start - from_col..inside.end - from_col]);
        }
    }
    Ok(out)
}

/// How far a tensor is read.
struct Done {
    elements: u64,
    of: u64,
    total: u64,
}

impl Done {
    fn add(&mut self, elements: usize, progress: &mut Progress<'_>) {
        self.elements += elements as u64;
        let share = u128::from(self.total) * u128::from(self.elements);
        progress((share / u128::from(self.of.max(1))) as u64, self.total);
    }
}

fn item_bytes(item: &Item<'_>) -> u64 {
    item.byte_len()
}

/// The scale bytes that occur, in the order of the bytes.
fn scale_counts(ty: ScaleType, bytes: &[u64; 256]) -> Vec<ScaleCount> {
    let all = (0..=255u8).zip(bytes).filter(|(_, count)| **count > 0);
    all.map(|(byte, &count)| ScaleCount { byte, value: ty.decode(byte), count }).collect()
}
