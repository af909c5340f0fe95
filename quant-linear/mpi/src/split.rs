//! The linear layers of a model split over ranks, and what a reduction of rounded parts gives.
//!
//! ```text
//! query, key, value, gate, up, intermediate, head    column-parallel, gathered
//! attention output, down, output                     row-parallel, all-reduced
//! ```
//!
//! Everything between them, attention and norms, runs on every rank, as for one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, ensure};
use fp4_core::{Epilogue, ExactSum, FloatType, PartialsMut, bf16, f16, nvfp4_row_scale};
use fp4_mpi::Mpi;
use quant_linear::sharded::{ColumnParallel, ColumnShard, Communicator, RowParallel, RowShard};
use quant_linear::{ActivationEncoding, QuantLinear};
use quant_linear_models::linear::Linear;

/// True for the layers whose input is split: those that end a half of a block.
pub(crate) fn is_row_parallel(name: &str) -> bool {
    let ends = ["attn_output", "ffn_down", "o_proj", "down_proj", "output.dense"];
    ends.iter().any(|end| name.ends_with(end))
}

/// A layer on one of the ranks.
pub(crate) enum Split {
    Rows(RowParallel<Arc<Mpi>>),
    Columns(ColumnParallel<Arc<Mpi>>),
}

impl Split {
    /// This rank's part of a layer that every rank has.
    pub(crate) fn of(layer: &QuantLinear, name: &str, comm: &Arc<Mpi>) -> Result<Self> {
        let (rank, ranks, comm) = (comm.rank(), comm.size(), comm.clone());
        let runtime = Some(layer.runtime());
        Ok(match is_row_parallel(name) {
            true => {
                Split::Rows(RowParallel::new(comm, RowShard::even(layer, rank, ranks), runtime)?)
            }
            false => {
                let shard = ColumnShard::even(layer, rank, ranks);
                Split::Columns(ColumnParallel::new(comm, shard, runtime)?)
            }
        })
    }
}

impl Linear for Split {
    fn forward(&self, x: &[f32], rows: usize, y: &mut [f32]) -> Result<()> {
        match self {
            Split::Rows(layer) => {
                layer.forward_whole_into(x.into(), rows, y.into())?;
            }
            Split::Columns(layer) => layer.forward_into(x.into(), rows, y.into())?,
        }
        Ok(())
    }
}

/// How many outputs of row-parallel layers there were, and how many of them rounded parts changed.
#[derive(Debug, Default)]
pub(crate) struct Changed {
    pub(crate) outputs: AtomicU64,
    pub(crate) differ: AtomicU64,
}

/// A row-parallel layer as it is elsewhere: each rank's outputs are rounded to a type, and those
/// are added in it, in the order of the ranks. In one process; one part is an output rounded
/// once.
pub(crate) struct Rounded {
    whole: QuantLinear,
    shards: Vec<(QuantLinear, std::ops::Range<usize>)>,
    ty: FloatType,
    changed: Arc<Changed>,
}

impl Rounded {
    pub(crate) fn of(
        layer: &QuantLinear,
        ranks: usize,
        ty: FloatType,
        changed: &Arc<Changed>,
    ) -> Result<Self> {
        let mut shards = Vec::new();
        for rank in 0..ranks {
            let RowShard { parts, columns, .. } = RowShard::even(layer, rank, ranks)?;
            if !columns.is_empty() {
                let mut shard = QuantLinear::from_parts(parts)?;
                shard.set_runtime(layer.runtime());
                shards.push((shard, columns));
            }
        }
        Ok(Rounded { whole: layer.clone(), shards, ty, changed: changed.clone() })
    }

    /// Rounded to the type.
    fn rounded(&self, value: f32) -> f32 {
        match self.ty {
            FloatType::F32 => value,
            FloatType::F16 => f16::from_f32(value).to_f32(),
            FloatType::Bf16 => bf16::from_f32(value).to_f32(),
        }
    }
}

impl Linear for Rounded {
    fn forward(&self, x: &[f32], rows: usize, y: &mut [f32]) -> Result<()> {
        let (n, k) = (self.whole.out_features(), self.whole.in_features());
        ensure!(x.len() == rows * k, "an input of {} values is not ({rows}, {k})", x.len());
        let amax = self.whole.row_amax(x.into(), rows)?;
        let mut exact = vec![ExactSum::ZERO; rows * n];
        let alpha = self.whole.alpha()?;
        y.fill(0.0);
        for (at, (shard, columns)) in self.shards.iter().enumerate() {
            let own: Vec<f32> =
                x.chunks(k).flat_map(|row| &row[columns.clone()]).copied().collect();
            let a = shard.quantize_packed((&own[..]).into(), rows, Some(&amax))?;
            let row_scales = (!a.row_scales.is_empty()).then_some(&a.row_scales[..]);
            let epilogue = Epilogue::new(alpha).with_row_scales(row_scales);
            let mut part = vec![ExactSum::ZERO; rows * n];
            shard.partial_into(a.packed.view(), PartialsMut::Exact(&mut part))?;
            for (i, ((y, part), exact)) in y.iter_mut().zip(&part).zip(&mut exact).enumerate() {
                exact.merge(part);
                let part = self.rounded(epilogue.apply::<f32>(part.to_f32(), i / n, i % n));
                // The first is not added to anything.
                *y = if at == 0 { part } else { self.rounded(*y + part) };
            }
        }
        let mut differ = 0;
        let row_alpha = |i: usize| match self.whole.activations() {
            ActivationEncoding::OwnRowScales => alpha * nvfp4_row_scale(amax[i]),
            _ => alpha,
        };
        for (i, (y, exact)) in y.iter_mut().zip(&exact).enumerate() {
            let once = self.rounded(exact.to_f32() * row_alpha(i / n));
            differ += u64::from(once.to_bits() != y.to_bits());
            *y = self.rounded(*y + self.whole.bias().map_or(0.0, |bias| bias[i % n]));
        }
        self.changed.outputs.fetch_add(y.len() as u64, Ordering::Relaxed);
        self.changed.differ.fetch_add(differ, Ordering::Relaxed);
        Ok(())
    }
}
