//! What one rank has of a layer, and how a layer is cut.

use std::ops::Range;

use fp4_core::{OwnedTransform as StoredTransform, PackedMatrix};

use crate::checkpoint::TensorSource;
use crate::error::Error;
use crate::layer::{ActivationEncoding, Parts, QuantLinear};
use crate::layout::LoadOptions;
use crate::layout::load::Found;
use crate::sharded::ShardError;
use crate::sharded::card::digest_all;

/// Range `rank` of `ranks` ranges of `0..len`, as even as multiples of `unit` allow; with more
/// ranks than units some are empty.
pub fn even(len: usize, unit: usize, rank: usize, ranks: usize) -> Range<usize> {
    let units = len.div_ceil(unit.max(1));
    let cut = |rank: usize| {
        let at = (units as u128 * rank as u128 / ranks.max(1) as u128) as usize;
        (at * unit.max(1)).min(len)
    };
    cut(rank)..cut(rank + 1)
}

/// What the columns of a row-parallel shard must be multiples of: the groups of the activations and
/// of the weight, and the block of the transform, powers of two all.
pub fn unit(parts: &Parts) -> usize {
    let group = match parts.activations {
        ActivationEncoding::MxInt8 => 32,
        _ => 1,
    };
    let block = parts.transform.as_ref().and_then(|t| t.shape().last().copied()).unwrap_or(1);
    parts.weight.shape().group().get().max(group).max(block)
}

/// The columns of W that one rank of a row-parallel layer has.
#[derive(Debug, Clone)]
pub struct RowShard {
    /// The weight (out, own columns), and the settings of the whole layer. Of a transform with a
    /// matrix for each block its own blocks; where there are no columns, none.
    pub parts: Parts,
    /// The layer's bias, on every rank.
    pub bias: Option<Vec<f32>>,
    /// Its columns.
    pub columns: Range<usize>,
    /// All columns: the layer's input features.
    pub in_features: usize,
    /// A digest of the whole weight and transform, which ranks compare; without, it goes with any.
    pub source: Option<String>,
}

/// The rows of W that one rank of a column-parallel layer has.
#[derive(Debug, Clone)]
pub struct ColumnShard {
    /// The weight (own rows, in), and the settings of the whole layer.
    pub parts: Parts,
    /// Its rows' bias.
    pub bias: Option<Vec<f32>>,
    /// Its rows.
    pub rows: Range<usize>,
    /// All rows: the layer's output features.
    pub out_features: usize,
    /// A digest of the whole weight and transform, which ranks compare; without, it goes with any.
    pub source: Option<String>,
}

/// The parts of a layer.
fn parts(layer: &QuantLinear) -> Result<Parts, Error> {
    Ok(Parts {
        weight: layer.weight()?,
        transform: layer.transform().cloned(),
        weight_global_scale: layer.weight_global_scale(),
        activation_global_scale: Some(layer.activation_global_scale()),
        activation_scale_scale: Some(layer.activation_scale_scale()),
        activations: layer.activations(),
    })
}

impl RowShard {
    /// Rank `rank`'s of `ranks` even shards of a layer.
    ///
    /// # Errors
    /// [`Error::Empty`].
    pub fn even(layer: &QuantLinear, rank: usize, ranks: usize) -> Result<Self, ShardError> {
        let whole = parts(layer)?;
        let columns = even(layer.in_features(), unit(&whole), rank, ranks);
        Self::of(&whole, layer.bias(), columns)
    }

    /// Rank `rank`'s of `ranks` even shards of the layer of a module of a checkpoint. Of the weight
    /// only this shard's columns are read, and two rows that tell it from others: every rank reads,
    /// then, or every rank [cuts](Self::even).
    ///
    /// # Errors
    /// As [`QuantLinear::from_state`].
    pub fn read(
        state: &dyn TensorSource,
        module: &str,
        rank: usize,
        ranks: usize,
        options: &LoadOptions,
    ) -> Result<Self, ShardError> {
        let found = Found::of(state, module, options)?;
        let [out_features, in_features] = found.features();
        let columns = even(in_features, unit(&found.settings), rank, ranks);
        let weight = found.weight(0..out_features, columns.clone())?;
        let source = Some(sample(&found)?);
        let transform = match &found.settings.transform {
            Some(t) if !columns.is_empty() => Some(blocks(t, &columns)?),
            _ => None,
        };
        let parts = Parts { weight, transform, ..settings(&found.settings) };
        Ok(RowShard { parts, bias: found.bias, columns, in_features, source })
    }

    /// Some columns of a layer's parts.
    ///
    /// # Errors
    /// [`ShardError::Cut`]; a range outside the columns.
    pub fn of(
        whole: &Parts,
        bias: Option<&[f32]>,
        columns: Range<usize>,
    ) -> Result<Self, ShardError> {
        let (shape, unit) = (whole.weight.shape(), unit(whole));
        let whole_units = [columns.start, columns.end].iter().all(|at| at.is_multiple_of(unit));
        if !whole_units || columns.end < columns.start {
            return Err(ShardError::Cut { got: columns, unit });
        }
        let group = shape.group().get();
        let groups = columns.start / group..columns.end / group;
        shape.expect_groups(&groups)?;
        let to = shape.resized(shape.rows(), columns.len())?;
        let bytes = groups.start * shape.group_bytes()..groups.end * shape.group_bytes();
        let (view, rows) = (whole.weight.view(), 0..shape.rows());
        let (mut codes, mut scales) = (Vec::new(), Vec::new());
        codes.reserve_exact(to.codes_len());
        scales.reserve_exact(to.scales_len());
        for i in rows {
            codes.extend_from_slice(&view.row_codes(i)[bytes.clone()]);
            scales.extend_from_slice(&view.row_scales(i)[groups.clone()]);
        }
        let transform = match &whole.transform {
            Some(t) if !columns.is_empty() => Some(blocks(t, &columns)?),
            _ => None,
        };
        let weight = PackedMatrix::new(to, codes, scales)?;
        let parts = Parts { weight, transform, ..settings(whole) };
        let (bias, source) = (bias.map(<[f32]>::to_vec), Some(source(whole)));
        Ok(RowShard { parts, bias, columns, in_features: shape.k(), source })
    }
}

impl ColumnShard {
    /// Rank `rank`'s of `ranks` even shards of a layer.
    ///
    /// # Errors
    /// [`Error::Empty`].
    pub fn even(layer: &QuantLinear, rank: usize, ranks: usize) -> Result<Self, ShardError> {
        let rows = even(layer.out_features(), 1, rank, ranks);
        Self::of(&parts(layer)?, layer.bias(), rows)
    }

    /// Rank `rank`'s of `ranks` even shards of the layer of a module of a checkpoint, of whose
    /// weight only its rows are read: see [`RowShard::read`].
    ///
    /// # Errors
    /// As [`QuantLinear::from_state`].
    pub fn read(
        state: &dyn TensorSource,
        module: &str,
        rank: usize,
        ranks: usize,
        options: &LoadOptions,
    ) -> Result<Self, ShardError> {
        let found = Found::of(state, module, options)?;
        let [out_features, in_features] = found.features();
        let rows = even(out_features, 1, rank, ranks);
        let weight = found.weight(rows.clone(), 0..in_features)?;
        let source = Some(sample(&found)?);
        let bias = found.bias.map(|bias| bias[rows.clone()].to_vec());
        let transform = found.settings.transform.clone();
        let parts = Parts { weight, transform, ..settings(&found.settings) };
        Ok(ColumnShard { parts, bias, rows, out_features, source })
    }

    /// Some rows of a layer's parts.
    ///
    /// # Errors
    /// A range outside the rows; a bias of another length than the rows.
    pub fn of(whole: &Parts, bias: Option<&[f32]>, rows: Range<usize>) -> Result<Self, ShardError> {
        let view = whole.weight.view().rows_range(rows.clone())?;
        let weight = PackedMatrix::new(view.shape(), view.codes().into(), view.scales().into())?;
        let out_features = whole.weight.shape().rows();
        if let Some(got) = bias.map(<[f32]>::len).filter(|&len| len != out_features) {
            return Err(Error::BiasLen { out_features, got }.into());
        }
        let bias = bias.map(|bias| bias[rows.clone()].to_vec());
        let parts = Parts { weight, transform: whole.transform.clone(), ..settings(whole) };
        Ok(ColumnShard { parts, bias, rows, out_features, source: Some(source(whole)) })
    }
}

/// What tells a layer's weight and transform from others of their shape.
fn source(whole: &Parts) -> String {
    let view = whole.weight.view();
    let transform = whole.transform.as_ref().map(|t| t.values().to_le_bytes());
    digest_all(&[view.codes(), view.scales(), &transform.unwrap_or_default()])
}

/// What tells a weight, of which nobody reads all, from others of its shape: its first and last
/// row, and the transform.
fn sample(found: &Found<'_>) -> Result<String, Error> {
    let [rows, k] = found.features();
    let first = found.weight(0..rows.min(1), 0..k)?;
    let last = found.weight(rows.saturating_sub(1)..rows, 0..k)?;
    let transform = found.settings.transform.as_ref().map(|t| t.values().to_le_bytes());
    let [first, last] = [first.view(), last.view()];
    let parts = [first.codes(), first.scales(), last.codes(), last.scales()];
    let digest = digest_all(&[&parts[..], &[&transform.unwrap_or_default()]].concat());
    Ok(format!("{digest} of its first and last row"))
}

/// The scalars of a layer, with a weight of no rows and no columns, and no transform.
pub(super) fn settings(parts: &Parts) -> Parts {
    let nothing = parts.weight.shape().resized(0, 0);
    Parts {
        // No rows and no columns fit every group.
        weight: PackedMatrix::zeros(nothing.unwrap_or(parts.weight.shape())),
        transform: None,
        weight_global_scale: parts.weight_global_scale,
        activation_global_scale: parts.activation_global_scale,
        // An absent one is 1; the layer warned of it when it was loaded.
        activation_scale_scale: Some(parts.activation_scale_scale.unwrap_or(1.0)),
        activations: parts.activations,
    }
}

/// The transform of some columns: all of a shared one, the columns' own matrices else.
fn blocks(transform: &StoredTransform, columns: &Range<usize>) -> Result<StoredTransform, Error> {
    let [_, size, _] = transform.shape() else { return Ok(transform.clone()) };
    let each = size * size * transform.values().float_type().bytes();
    let bytes = transform.values().to_le_bytes();
    let own = bytes.get(columns.start / size * each..columns.end / size * each);
    let ty = transform.values().float_type();
    let values = own.and_then(|own| fp4_core::FloatVec::from_le_bytes(ty, own));
    let values = values.ok_or(fp4_core::Error::Len {
        what: fp4_core::Buffer::Transform,
        expected: columns.end * size,
        got: transform.values().len(),
    })?;
    Ok(StoredTransform::new(values, vec![columns.len() / size, *size, *size])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_ranges_are_the_whole_once() {
        for (len, unit) in [(0, 16), (16, 16), (96, 32), (4096, 128), (17, 1), (100, 32)] {
            for ranks in [1, 2, 3, 5, 8, 40] {
                let ranges: Vec<_> = (0..ranks).map(|r| even(len, unit, r, ranks)).collect();
                assert_eq!((ranges[0].start, ranges[ranks - 1].end), (0, len));
                assert!(ranges.windows(2).all(|w| w[0].end == w[1].start));
                assert!(ranges.iter().all(|r| r.start.is_multiple_of(unit) && r.start <= r.end));
            }
        }
        assert_eq!(even(96, 32, 3, 5), 32..64);
    }
}
