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
use fp4_core::{Epilogue, ExactSum, PartialsMut};
use fp4_mpi::Mpi;
use quant_linear::sharded::{ColumnParallel, ColumnShard, Communicator, RowParallel, RowShard};
use quant_linear::{PackedRows, QuantLinear};
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

/// A row-parallel layer as it is elsewhere: each rank's sum is rounded to f32, and those are added in
/// f32, in the order of the ranks. In one process.
pub(crate) struct Rounded {
    whole: QuantLinear,
    shards: Vec<(QuantLinear, std::ops::Range<usize>)>,
    changed: Arc<Changed>,
}

impl Rounded {
    pub(crate) fn of(layer: &QuantLinear, ranks: usize, changed: &Arc<Changed>) -> Result<Self> {
        let mut shards = Vec::new();
        for rank in 0..ranks {
            let RowShard { parts, columns, .. } = RowShard::even(layer, rank, ranks)?;
            if !columns.is_empty() {
                let mut shard = QuantLinear::from_parts(parts)?;
                shard.set_runtime(layer.runtime());
                shards.push((shard, columns));
            }
        }
        Ok(Rounded { whole: layer.clone(), shards, changed: changed.clone() })
    }
}

impl Linear for Rounded {
    fn forward(&self, x: &[f32], rows: usize, y: &mut [f32]) -> Result<()> {
        let (n, k) = (self.whole.out_features(), self.whole.in_features());
        ensure!(x.len() == rows * k, "an input of {} values is not ({rows}, {k})", x.len());
        let mut sums = vec![0f32; rows * n];
        let mut row_scales = Vec::new();
        let amax = self.whole.row_amax(x.into(), rows)?;
        for (shard, columns) in &self.shards {
            let own: Vec<f32> =
                x.chunks(k).flat_map(|row| &row[columns.clone()]).copied().collect();
            let a = shard.quantize_packed((&own[..]).into(), rows, Some(&amax))?;
            let PackedRows { packed, row_scales: scales } = a;
            row_scales = scales;
            let mut exact = vec![ExactSum::ZERO; rows * n];
            shard.partial_into(packed.view(), PartialsMut::Exact(&mut exact))?;
            sums.iter_mut().zip(&exact).for_each(|(to, part)| *to += part.to_f32());
        }
        let epilogue = Epilogue::new(self.whole.alpha()?)
            .with_row_scales((!row_scales.is_empty()).then_some(&row_scales[..]))
            .with_bias(self.whole.bias());
        for (at, (y, sum)) in y.iter_mut().zip(&sums).enumerate() {
            *y = epilogue.apply(*sum, at / n, at % n);
        }
        let mut exact = vec![0f32; rows * n];
        self.whole.forward_into(x.into(), rows, (&mut exact[..]).into())?;
        let differ = exact.iter().zip(y.iter()).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        self.changed.outputs.fetch_add(exact.len() as u64, Ordering::Relaxed);
        self.changed.differ.fetch_add(differ as u64, Ordering::Relaxed);
        Ok(())
    }
}
