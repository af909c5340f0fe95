//! How a call is cut into units of work, and a call cut into tasks for any threads to run.
//!
//! A unit is a block of tiles, which stays in the cache, by the panels that are taken at a time.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use fp4_core::{Epilogue, Error, FloatSliceMut, PackedView, Paths, with_floats};

use super::Kernels;
use super::gemm::{TiledMatmul, TiledOperands};
use super::output::OutputParts;
use super::panels::Panels;
use super::tile_sums::Finish;
use super::tiles::RowTiles;
use crate::quantize::FloatValue;
use crate::threads::TaskThreads;

/// A call cut into tasks, for any threads to run.
pub(crate) trait CutCall: Sync {
    /// Runs the next task that no thread has taken, if one is left.
    fn run_next(&self) -> Option<Result<Paths, Error>>;
}

/// A [`matmul`](super::matmul) with outputs, cut into about `tasks` tasks. Operands, epilogue and
/// output are checked.
#[expect(clippy::too_many_arguments, reason = "those of `matmul` and the tasks")]
pub(crate) fn cut<'a, K: Kernels + 'a>(
    kernels: K,
    threads: &'a TaskThreads,
    a: PackedView<'a>,
    tiles: &'a RowTiles,
    b: &'a Panels,
    epilogue: Epilogue<'a>,
    out: FloatSliceMut<'a>,
    tasks: usize,
) -> Box<dyn CutCall + 'a> {
    let operands = TiledOperands { kernels, threads, a, b };
    let call = TiledMatmul::new(operands, tiles, 0..b.shape().row_groups());
    let (cut, finish, next) = (call.cut(tasks), Finish { epilogue }, AtomicUsize::new(0));
    let units = cut.units.div_ceil(tasks.max(1));
    with_floats!(FloatSliceMut, out, out => {
        let grid = OutputParts::new(out, b.shape().rows());
        Box::new(CutMatmul { call, cut, units, grid, finish, next })
    })
}

/// A product that is cut, and which of its tasks are taken.
struct CutMatmul<'a, K, T> {
    call: TiledMatmul<'a, K>,
    cut: Cut,
    /// Units of a task.
    pub(super) units: usize,
    grid: OutputParts<'a, T>,
    finish: Finish<'a>,
    /// The first unit that is not taken.
    next: AtomicUsize,
}

impl<K: Kernels, T: FloatValue> CutCall for CutMatmul<'_, K, T> {
    fn run_next(&self) -> Option<Result<Paths, Error>> {
        let start = self.next.fetch_add(self.units, Relaxed);
        let units = start..self.cut.units.min(start + self.units);
        // SAFETY: units are taken once, by the counter.
        let run = || unsafe { self.call.part(&self.cut, units.clone(), &self.grid, &self.finish) };
        (!units.is_empty()).then(run)
    }
}

/// How a call is cut into units of work: blocks of tiles that stay in the cache, by the panels that
/// are taken at a time. Unit `block * across + i` is step i of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    /// Tiles of a block; the last one may have fewer.
    pub(super) block: usize,
    /// Panels of a step; the last one may have fewer.
    pub(super) step: usize,
    /// Steps, and so units, of a block.
    pub(super) across: usize,
    /// Units of all blocks.
    pub(super) units: usize,
}

impl Cut {
    /// For so many tiles and panels; at least `least` units, if there are so many tiles.
    pub(super) fn new(
        [tiles, panels]: [usize; 2],
        block: usize,
        step: usize,
        least: usize,
    ) -> Self {
        let across = panels.div_ceil(step);
        // As even as can be.
        let blocks = tiles.div_ceil(block).max(least.div_ceil(across).min(tiles));
        let block = tiles.div_ceil(blocks);
        Cut { block, step, across, units: tiles.div_ceil(block) * across }
    }
}
