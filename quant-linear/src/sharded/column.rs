//! A layer whose outputs are split: each rank has some rows of W, and all of x.

use std::ops::Range;

use fp4_core::{Buffer, FloatSlice, FloatSliceMut, FloatVec};

use crate::error::Error;
use crate::layer::QuantLinear;
use crate::run::runtime::Runtime;
use crate::sharded::card::{self, ANY, Call, Card, Operation};
use crate::sharded::row::transform_card;
use crate::sharded::shard::ColumnShard;
use crate::sharded::{Communicator, ShardError};

/// A column-parallel layer on one rank: rank r has some rows of W, and computes their outputs for
/// all of x.
///
/// All ranks build it together. Each output is one rank's whole sum, so nothing is added.
pub struct ColumnParallel<C> {
    comm: C,
    /// `None` where this rank has no rows.
    layer: Option<QuantLinear>,
    ranges: Vec<Range<usize>>,
    in_features: usize,
    out_features: usize,
}

impl<C: Communicator> ColumnParallel<C> {
    /// The layer of the ranks' shards, on a runtime, or the shared one. Every rank of the
    /// communicator calls it, also one whose shard could not be had: it hands over why.
    ///
    /// # Errors
    /// The same on every rank: [`ShardError::Peer`] if one has no shard, [`ShardError::Disagree`],
    /// [`ShardError::Ranges`]; on the rank itself what is wrong with its shard.
    pub fn new(
        comm: C,
        shard: Result<ColumnShard, ShardError>,
        runtime: Option<&Runtime>,
    ) -> Result<Self, ShardError> {
        let built = shard.and_then(|shard| built(shard, runtime));
        let card = match &built {
            Ok((_, shard, card)) => card_of(card).with_range(&shard.0),
            Err(error) => Card::failed(error),
        };
        let exchanged = card::exchange(&comm, &card);
        let (layer, (_, in_features, out_features), _) = built?;
        let ranges = exchanged?;
        card::expect_whole(&ranges, "rows", out_features)?;
        Ok(ColumnParallel { comm, layer, ranges, in_features, out_features })
    }

    /// This rank's outputs.
    pub fn rows(&self) -> Range<usize> {
        self.ranges[self.comm.rank()].clone()
    }

    /// Input features.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// All output features.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// This rank's outputs, (rows, own outputs), for all of x, (rows, in): what a row-parallel
    /// layer behind it takes. Nothing is sent.
    ///
    /// # Errors
    /// As [`QuantLinear::forward_into`].
    pub fn forward_own_into(
        &self,
        x: FloatSlice<'_>,
        rows: usize,
        out: FloatSliceMut<'_>,
    ) -> Result<(), ShardError> {
        match &self.layer {
            Some(layer) => Ok(layer.forward_into(x, rows, out)?),
            None => Ok(out.as_ref().expect_len(Buffer::Output, 0)?),
        }
    }

    /// All outputs, (rows, out), on every rank.
    ///
    /// # Errors
    /// [`ShardError::PeerInput`] or [`ShardError::Calls`] on every rank if one rank's input does
    /// not fit, or ranks are in different calls; an error of the communicator, which all later
    /// calls are then: end all ranks.
    pub fn forward_into(
        &self,
        x: FloatSlice<'_>,
        rows: usize,
        mut out: FloatSliceMut<'_>,
    ) -> Result<(), ShardError> {
        let own = self.rows().len();
        let ty = out.as_ref().float_type();
        let computed = self.computed(x, rows, &out);
        let call = Call { rows, operation: Operation::Columns, ty, wide: false };
        let mut opening = call.opening(computed.is_err());
        self.comm.max(&mut opening)?;
        let computed = computed?;
        call.check(&opening)?;
        debug_assert_eq!(computed.len(), rows * own);
        let lens: Vec<usize> = self.ranges.iter().map(|r| rows * r.len() * ty.bytes()).collect();
        let computed = computed.to_le_bytes();
        let all = self.comm.gather(&computed, &lens)?;
        let mut rest = &all[..];
        for (range, &len) in self.ranges.iter().zip(&lens) {
            let (part, others) = rest.split_at(len);
            rest = others;
            let values = FloatVec::from_le_bytes(ty, part).unwrap_or_default();
            scatter(&values, range.clone(), self.out_features, &mut out);
        }
        Ok(())
    }

    fn computed(
        &self,
        x: FloatSlice<'_>,
        rows: usize,
        out: &FloatSliceMut<'_>,
    ) -> Result<FloatVec, ShardError> {
        let expected = rows.saturating_mul(self.in_features);
        if x.len() != expected {
            let shape = vec![rows, self.in_features];
            return Err(Error::InputLen { shape, expected, got: x.len() }.into());
        }
        out.as_ref().expect_len(Buffer::Output, rows.saturating_mul(self.out_features))?;
        let mut own = FloatVec::zeros(out.as_ref().float_type(), rows * self.rows().len());
        self.forward_own_into(x, rows, own.as_mut_slice())?;
        Ok(own)
    }
}

/// Writes (rows, range) values into their columns.
fn scatter(values: &FloatVec, range: Range<usize>, n: usize, out: &mut FloatSliceMut<'_>) {
    fn typed<T: Copy>(values: &[T], range: Range<usize>, n: usize, out: &mut [T]) {
        if range.is_empty() {
            return;
        }
        for (from, to) in values.chunks_exact(range.len()).zip(out.chunks_exact_mut(n)) {
            to[range.clone()].copy_from_slice(from);
        }
    }
    match (values, out) {
        (FloatVec::F32(v), FloatSliceMut::F32(out)) => typed(v, range, n, out),
        (FloatVec::F16(v), FloatSliceMut::F16(out)) => typed(v, range, n, out),
        (FloatVec::Bf16(v), FloatSliceMut::Bf16(out)) => typed(v, range, n, out),
        // Both are of the output's type.
        _ => {}
    }
}

/// What is known of a shard when its layer is made: its rows, all inputs, all outputs.
type Known = (Range<usize>, usize, usize);
type Lines = Vec<(&'static str, String)>;

fn built(
    shard: ColumnShard,
    runtime: Option<&Runtime>,
) -> Result<(Option<QuantLinear>, Known, Lines), ShardError> {
    let ColumnShard { parts, bias, rows, out_features, source } = shard;
    let shape = parts.weight.shape();
    let format = shape.expect_format()?;
    if shape.rows() != rows.len() {
        let (what, expected, got) = (fp4_core::Dim::Rows, rows.len(), shape.rows());
        return Err(fp4_core::Error::ShapeMismatch { what, expected, got }.into());
    }
    let some = |scale: Option<f32>| scale.map_or("as the weight's".into(), |s| s.to_string());
    let lines = vec![
        ("format", format.to_string()),
        ("activations", parts.activations.to_string()),
        ("output features", out_features.to_string()),
        ("input features", shape.k().to_string()),
        ("weight_global_scale", parts.weight_global_scale.to_string()),
        ("activation_global_scale", some(parts.activation_global_scale)),
        ("activation_scale_scale", some(parts.activation_scale_scale)),
        ("transform", format!("{} {}", transform_card(&parts), digest_of(&parts))),
        ("the whole weight", source.unwrap_or(ANY.into())),
        ("bias", if bias.is_some() { "applied" } else { "none" }.to_string()),
    ];
    let known = (rows.clone(), shape.k(), out_features);
    if rows.is_empty() {
        return Ok((None, known, lines));
    }
    let mut layer = QuantLinear::from_parts(parts)?;
    layer.set_bias(bias.as_deref())?;
    if let Some(runtime) = runtime {
        layer.set_runtime(runtime);
    }
    layer.prepare()?;
    Ok((Some(layer), known, lines))
}

fn digest_of(parts: &crate::layer::Parts) -> String {
    parts.transform.as_ref().map_or(String::new(), |t| card::digest(&t.values().to_le_bytes()))
}

fn card_of(lines: &Lines) -> Card {
    lines.iter().fold(Card::new("column-parallel"), |card, (name, value)| card.with(name, value))
}
