//! The exact matmul on panels and tiles: which planes meet, when to drain, what sums them (C6).
//!
//! ```text
//! for each block of tiles that stays in the cache, each panel, each tile of the block:
//!     for each plane p of the tile, each plane q of the panel:
//!         for each stretch of chunks that both have:
//!             sums = kernel                               i32, exact
//!             units += sums << (shift_p + shift_q)        i64, exact
//!     out = round(f32(units * 2^(base_a + base_b + unit)) * alpha)    or what else the epilogue says
//! ```
//!
//! One plane on each side and one stretch, the usual case, needs no i64: the i32 is rounded at
//! once.
//!
//! # Why it is exact
//!
//! *A stretch.* Its 32-bit sum is below 2^31 in magnitude ([`bounds`](super::bounds)).
//!
//! *A sum.* As in the portable kernels, with D the largest dot of a group, reach the largest scale
//! over the row's base and live the number of groups that count
//! ([`RowMeta`](super::meta::RowMeta)):
//!
//! ```text
//! D * reach_a * reach_b * min(live_a, live_b, groups) <= 2^63 - 1
//! ```
//!
//! Each partial sum is a sum over some of the groups, so it is in range too. An output that does
//! not pass, or whose row or column is incomplete (it needs too many planes), is *wide*:
//! [`ExactSum`](fp4_core::ExactSum) over its groups, alone. For NVFP4 every K up to 2^20 passes and every row is
//! complete.
//!
//! *The rounding* is [`Sum::to_f32`]'s, in vectors when all exponents of a tile allow
//! ([`rounding`](super::rounding)).

use std::ops::Range;

use fp4_core::{
    Buffer, Element, Epilogue, Error, FloatSliceMut, PackedShape, PackedView, Paths, ScaledSums,
    with_floats,
};

use super::bounds::{FOLD_CHUNKS, group_chunk, group_chunks, int8_chunk, int8_chunks};
use super::cut::Cut;
use super::meeting::for_each_meeting;
use super::operand::{COLUMNS, Form, LINES, Line, MAX_ROWS, STEPS, Terms};
use super::output::OutputParts;
use super::panels::Panels;
use super::rounding::RowFactors;
use super::sum::{ExactSums, PLAIN_EXPONENTS, Sum, fits_63_bits};
use super::tile_sums::{AddScaled, Emit, Finish, TileSums, TileWriter};
use super::tiles::{RowTile, RowTiles, TilePlane};
use super::{FoldKernels, Kernels, PairKernels, Step, Steps, Sums, Units};
use crate::cost::Cost;
use crate::threads::TaskThreads;

/// Into how many units of work to cut a call for each thread, at least, if there are so many tiles.
const UNITS: usize = 4;
/// Bytes of A that are multiplied with one panel after the other: they should stay in the
/// second-level cache, beside the panels that pass through it and the outputs. (At twice as many
/// M = 512 is 3% slower on a cache of 2 MB.)
const BLOCK_BYTES: usize = 11 << 16;
/// Most tiles that are multiplied with one pair of panels after the other.
const PAIR_TILES: usize = 24;
/// Chunks of pairs of panels that are expanded at a time: 16 KB, in the first-level cache with as
/// many of a tile (7 KB) and its sums (3 KB).
const PAIR_CHUNKS: usize = 16;
/// Bytes of panels that are multiplied with one tile after the other: they stay in the first-level
/// cache, and what is written of a row is together. One panel of a long K is more.
const PANEL_BYTES: usize = 12 << 10;
/// Tiles of a block whose factors are on the stack.
const FIRST_TILES: usize = 8;
/// Steps of a sparse plane that are multiplied at a time.
const LIST: usize = 64;

/// A packed A and a prepared B.
#[derive(Clone, Copy)]
pub(crate) struct TiledOperands<'a, K> {
    pub(crate) kernels: K,
    pub(crate) threads: &'a TaskThreads,
    pub(crate) a: PackedView<'a>,
    pub(crate) b: &'a Panels,
}

/// Writes round(f32(A * B^T) * alpha), or what else the epilogue says, to `out`. `tiles` hold `a`.
pub(crate) fn matmul<K: Kernels>(
    kernels: K,
    threads: &TaskThreads,
    a: PackedView<'_>,
    tiles: &RowTiles,
    b: &Panels,
    epilogue: Epilogue<'_>,
    out: FloatSliceMut<'_>,
) -> Result<Paths, Error> {
    let operands = TiledOperands { kernels, threads, a, b };
    let call = TiledMatmul::new(operands, tiles, 0..b.shape().row_groups());
    with_floats!(FloatSliceMut, out, out => call.run(out, &Finish { epilogue }))
}

/// Checks the operands, the epilogue and the output of a matmul.
pub(crate) fn expect(
    a: PackedShape,
    b: PackedShape,
    epilogue: &Epilogue<'_>,
    out: &FloatSliceMut<'_>,
) -> Result<(), Error> {
    a.expect_product(&b)?;
    epilogue.expect(a.rows(), b.rows())?;
    let outputs = a.rows() * b.rows();
    out.as_ref().expect_len(Buffer::Output, outputs)
}

impl<K: Kernels> ExactSums for TiledOperands<'_, K> {
    fn shapes(&self) -> [PackedShape; 2] {
        [self.a.shape(), self.b.shape()]
    }

    fn sums<T: Send>(
        &self,
        groups: Range<usize>,
        out: &mut [T],
        emit: impl Fn(&mut T, bool, Sum<'_>) -> Result<(), Error> + Sync,
    ) -> Result<Paths, Error> {
        self.run(groups, out, &Emit(emit))
    }

    fn add_scaled(&self, groups: Range<usize>, out: ScaledSums<'_>) -> Result<Paths, Error> {
        let (units, rows, columns) = out.into_parts();
        self.run(groups, units, &AddScaled { rows, columns })
    }
}

impl<K: Kernels> TiledOperands<'_, K> {
    /// All sums over the groups `groups` of B, A packed for this call.
    fn run<T: Send>(
        &self,
        groups: Range<usize>,
        out: &mut [T],
        sink: &impl TileWriter<T>,
    ) -> Result<Paths, Error> {
        let TiledOperands { kernels, threads, a, b } = *self;
        let mut tiles = RowTiles::default();
        tiles.fill(kernels, threads, &a, b.format(), groups.clone())?;
        TiledMatmul::new(*self, &tiles, groups).run(out, sink)
    }
}

/// How many outputs each path computed: [`Paths`] to count with. Not returned from tile to tile,
/// because whole vectors of counts just written one by one would be read when all stores before
/// them, those of the outputs, have reached the cache.
#[derive(Debug, Clone, Copy, Default)]
struct PathCounts {
    narrow: u64,
    planes: u64,
    wide: u64,
}

/// A plane of a tile and one of a panel.
#[derive(Debug, Clone, Copy)]
struct PlanePair {
    a: usize,
    b: usize,
}

/// Where the sums of plane 0 of a tile with one of a pair of panels are in [`Buffers::pairs`].
#[derive(Debug, Clone, Copy)]
struct Ready {
    at: usize,
    half: usize,
}

/// Buffers of a task.
struct Buffers {
    /// Some chunks of two panels expanded. Empty where panels are not taken in pairs.
    expanded: Vec<Line>,
    /// Sums of plane 0 of a tile with the two, of each tile if the panels are expanded in parts. As
    /// empty.
    pairs: Vec<[Sums; 2]>,
    sums: Sums,
    corrections: [i32; MAX_ROWS],
    units: Units,
    /// What is kept for the next panel, by tile of the block: the first ones, for which decoding
    /// needs no allocation, and the others.
    factors: ([Option<RowFactors>; FIRST_TILES], Vec<Option<RowFactors>>),
    paths: PathCounts,
}

/// One call of the driver.
pub(super) struct TiledMatmul<'a, K> {
    operands: TiledOperands<'a, K>,
    /// A over the groups `groups`.
    tiles: &'a [RowTile],
    /// B's.
    groups: Range<usize>,
    /// The chunks of the range.
    chunks: Range<usize>,
    terms: Terms,
}

impl<'a, K: Kernels> TiledMatmul<'a, K> {
    /// Over the groups `groups` of B, for which the tiles were filled.
    pub(super) fn new(
        operands: TiledOperands<'a, K>,
        tiles: &'a RowTiles,
        groups: Range<usize>,
    ) -> Self {
        let per = super::operand::chunk_groups(&operands.b.shape());
        let chunks = groups.start / per..groups.end.div_ceil(per);
        let terms = Terms::new(operands.a.shape(), operands.b.shape());
        TiledMatmul { operands, tiles: tiles.tiles(), groups, chunks, terms }
    }

    /// The kernels of the fold form, if that is B's.
    #[inline(always)]
    fn fold(&self) -> Option<K::Fold> {
        self.operands.kernels.for_fold(self.operands.b.form())
    }

    /// True if A is in MXINT8.
    #[inline(always)]
    fn int8(&self) -> bool {
        self.operands.a.shape().element() == Element::Int8
    }

    fn run<T: Send>(&self, out: &mut [T], sink: &impl TileWriter<T>) -> Result<Paths, Error> {
        if out.is_empty() {
            return Ok(Paths::default());
        }
        let TiledOperands { threads, a, b, .. } = self.operands;
        let grid = OutputParts::new(out, b.shape().rows());
        let k = self.groups.len() * b.shape().group().get();
        let plan = threads.plan(Cost::matmul(K::ISA, [a.shape().rows(), b.shape().rows(), k]));
        let cut = self.cut(if plan.threads == 1 { 1 } else { UNITS * plan.threads });
        threads.for_each(plan.threads, cut.units, |units| {
            // SAFETY: `for_each` runs each unit once.
            unsafe { self.part(&cut, units, &grid, sink) }
        })
    }

    /// The kernels on pairs of panels, if one stretch takes all chunks.
    fn pair_kernels(&self) -> Option<<K::Fold as FoldKernels>::Pairs> {
        let fold = self.fold().filter(|_| !self.int8() && self.chunks.len() <= FOLD_CHUNKS);
        fold.and_then(|fold| fold.pair_kernels(self.operands.a.shape().rows()))
    }

    /// Cuts a call that has outputs, into `least` units if it can be.
    pub(super) fn cut(&self, least: usize) -> Cut {
        let tile_bytes = (self.tiles[0].meta.len() * self.operands.a.shape().k()).max(1);
        let chunks = self.chunks.len().max(1);
        let (step, most) = if self.pair_kernels().is_some() {
            (2 * (PAIR_CHUNKS / chunks).max(1), PAIR_TILES)
        } else {
            ((PANEL_BYTES / (chunks * LINES * size_of::<Line>())).max(1), usize::MAX)
        };
        let block = (BLOCK_BYTES / tile_bytes).clamp(1, most);
        Cut::new([self.tiles.len(), self.operands.b.panels().len()], block, step, least)
    }

    /// Computes and writes the outputs of some units of a cut. `grid` is all of the call's output.
    ///
    /// # Safety
    /// No unit of a call is run twice.
    pub(super) unsafe fn part<T: Send>(
        &self,
        cut: &Cut,
        units: Range<usize>,
        grid: &OutputParts<'_, T>,
        sink: &impl TileWriter<T>,
    ) -> Result<Paths, Error> {
        let pairs = self.pair_kernels();
        let in_parts = self.chunks.len() > PAIR_CHUNKS;
        let mut buffers = Buffers {
            expanded: vec![Line([0; 64]); pairs.map_or(0, |_| PAIR_CHUNKS * 2 * STEPS)],
            pairs: vec![
                [[[0; COLUMNS]; MAX_ROWS]; 2];
                pairs.map_or(0, |_| if in_parts { cut.block } else { 1 })
            ],
            sums: [[0; COLUMNS]; MAX_ROWS],
            corrections: [0; MAX_ROWS],
            units: [[0; COLUMNS]; MAX_ROWS],
            factors: (
                [const { None }; FIRST_TILES],
                vec![None; cut.block.saturating_sub(FIRST_TILES)],
            ),
            paths: PathCounts::default(),
        };
        let mut start = units.start;
        while start < units.end {
            let block = start / cut.across;
            let end = units.end.min((block + 1) * cut.across);
            let tiles = block * cut.block..self.tiles.len().min((block + 1) * cut.block);
            let panel = |unit: usize| (unit - block * cut.across) * cut.step;
            let panels = panel(start)..self.operands.b.panels().len().min(panel(end));
            self.block(&self.tiles[tiles], panels, cut.step, &mut buffers, grid, sink)?;
            start = end;
        }
        let PathCounts { narrow, planes, wide } = buffers.paths;
        Ok(Paths::new(narrow, planes, wide))
    }

    /// Computes and writes the outputs of tiles and panels, `step` panels at a time.
    fn block<T: Send>(
        &self,
        tiles: &[RowTile],
        panels: Range<usize>,
        step: usize,
        buffers: &mut Buffers,
        grid: &OutputParts<'_, T>,
        sink: &impl TileWriter<T>,
    ) -> Result<(), Error> {
        let (b, pairs, end) = (self.operands.b, self.pair_kernels(), panels.end);
        for p in panels.step_by(step) {
            let next = b.run_of_codes((p + step).min(end)..end.min(p + 2 * step));
            let panels = p..end.min(p + step);
            if let Some(kernels) = pairs {
                self.pairs(kernels, tiles, panels, next, buffers, grid, sink)?;
                continue;
            }
            for (t, tile) in tiles.iter().enumerate() {
                let rows = tile.first..tile.first + tile.meta.len();
                for p in panels.clone() {
                    rows.clone().for_each(|r| grid.prefetch(r, p * COLUMNS, COLUMNS));
                    self.tile((t, tile), p, None, buffers, grid, sink)?;
                }
            }
        }
        Ok(())
    }

    /// Computes and writes the outputs of the tiles and some panels, plane 0 with plane 0 by pairs:
    /// as many pairs as are expanded at a time, or one in parts. `next` is read soon.
    #[expect(clippy::too_many_arguments, reason = "those of `tile` and the pairs'")]
    #[inline]
    fn pairs<T: Send>(
        &self,
        kernels: impl PairKernels,
        tiles: &[RowTile],
        panels: Range<usize>,
        next: &[Line],
        buffers: &mut Buffers,
        grid: &OutputParts<'_, T>,
        sink: &impl TileWriter<T>,
    ) -> Result<(), Error> {
        let chunks = self.chunks.clone();
        // Without any chunk the sums are zeros, which a part without chunks makes too.
        let parts = chunks.len().div_ceil(PAIR_CHUNKS).max(1);
        let pairs = panels.len().div_ceil(2);
        let products = parts * tiles.len() * pairs;
        let mut next = next.chunks(next.len().div_ceil(products.max(1)).max(1));
        for part in 0..parts {
            let start = chunks.start + part * PAIR_CHUNKS;
            let of_part = start..chunks.end.min(start + PAIR_CHUNKS);
            let lines = of_part.len() * 2 * STEPS;
            for (at, p) in panels.clone().enumerate() {
                let to = &mut buffers.expanded[at / 2 * lines..];
                kernels.expand(self.operands.b.view(p, 0), of_part.clone(), at % 2, to);
            }
            let slots = of_part.start - chunks.start..of_part.end - chunks.start;
            for (t, tile) in tiles.iter().enumerate() {
                let mut a = tile.view(0);
                let step = STEPS * a.rows;
                a.codes = &a.codes[slots.start * step..slots.end * step];
                let at = if parts == 1 { 0 } else { t };
                for pair in 0..pairs {
                    let first = panels.start + 2 * pair;
                    if part + 1 == parts {
                        let rows = tile.first..tile.first + tile.meta.len();
                        rows.for_each(|r| grid.prefetch(r, first * COLUMNS, 2 * COLUMNS));
                    }
                    let b = &buffers.expanded[pair * lines..][..lines];
                    let (next, sums) = (next.next().unwrap_or(&[]), &mut buffers.pairs[at]);
                    kernels.fold_pair(a, b, next, part > 0, sums);
                    if part + 1 == parts {
                        for (half, p) in (first..panels.end.min(first + 2)).enumerate() {
                            let ready = Some(Ready { at, half });
                            self.tile((t, tile), p, ready, buffers, grid, sink)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Computes and writes the outputs of a tile, with its place in the block, and a panel. `ready`
    /// is where the sums of plane 0 are, if they are already.
    fn tile<T: Send>(
        &self,
        (t, tile): (usize, &RowTile),
        p: usize,
        ready: Option<Ready>,
        buffers: &mut Buffers,
        grid: &OutputParts<'_, T>,
        sink: &impl TileWriter<T>,
    ) -> Result<(), Error> {
        let panel = &self.operands.b.panels()[p];
        let in_32_bits = self.multiply(tile, p, ready, buffers);
        let (a, b, terms) = (&tile.extremes, panel.extremes(), self.terms);
        let live = terms.live(a.live, b.live, self.groups.len());
        let plain = a.complete
            && b.complete
            && !a.nan
            && !b.nan
            && fits_63_bits(terms.dot, a.reach, b.reach, live)
            && PLAIN_EXPONENTS.contains(&(a.least_base + b.least_base + terms.unit))
            && PLAIN_EXPONENTS.contains(&(a.most_base + b.most_base + terms.unit));
        let sums = TileSums {
            kernels: self.operands.kernels,
            a: &self.operands.a,
            b: self.operands.b,
            groups: &self.groups,
            terms,
            tile,
            p,
            in_32_bits,
            sums: ready.map_or(&buffers.sums, |Ready { at, half }| &buffers.pairs[at][half]),
            units: &buffers.units,
            plain,
        };
        let factors = match buffers.factors.0.get_mut(t) {
            Some(factors) => factors,
            None => &mut buffers.factors.1[t - FIRST_TILES],
        };
        let rows = tile.first..tile.first + tile.meta.len();
        let columns = p * COLUMNS..p * COLUMNS + panel.columns();
        // SAFETY: this task alone has this tile and this panel, and one part of them at a time.
        let out = unsafe { grid.part(rows, columns) };
        self.operands.kernels.enter(
            #[inline(always)]
            || sink.write(&sums, out, factors),
        )?;
        let wide = sums.wide();
        let others = (tile.meta.len() * panel.columns()) as u64 - wide;
        let one = tile.planes().len() == 1 && panel.planes() == 1;
        buffers.paths.wide += wide;
        *(if one { &mut buffers.paths.narrow } else { &mut buffers.paths.planes }) += others;
        Ok(())
    }

    /// The sums of a tile with a panel; true if they are in 32 bits.
    fn multiply(
        &self,
        tile: &RowTile,
        p: usize,
        ready: Option<Ready>,
        buffers: &mut Buffers,
    ) -> bool {
        let panel = &self.operands.b.panels()[p];
        let (slots, first) = (self.chunks.len(), self.chunks.start);
        let plane_a = &tile.planes()[0];
        if tile.planes().len() == 1
            && panel.planes() == 1
            && self.fit_32_bits(slots, plane_a, panel.first_max())
        {
            if ready.is_none() {
                let steps = Steps::Dense { a: 0, b: first, count: slots };
                self.kernel(tile, PlanePair { a: 0, b: 0 }, p, steps, buffers);
            }
            return true;
        }
        let most = self.most_chunks(plane_a, panel.first_max());
        let plane_b = panel.plane(0);
        if slots == 0 {
            buffers.units = [[0; COLUMNS]; MAX_ROWS];
        }
        for start in (0..slots).step_by(most) {
            let count = most.min(slots - start);
            let steps = Steps::Dense { a: start, b: first + start, count };
            match ready {
                Some(Ready { at, half }) => {
                    self.correct(tile, 0, steps, buffers);
                    buffers.sums = buffers.pairs[at][half];
                }
                None => self.multiply_steps(tile, PlanePair { a: 0, b: 0 }, p, steps, buffers),
            }
            self.drain(plane_a, &plane_b.shift, start > 0, buffers);
        }
        let mut list = [Step::default(); LIST];
        for (i, plane_a) in tile.planes().iter().enumerate() {
            for j in 0..panel.planes() {
                let plane_b = panel.plane(j);
                if i == 0 && j == 0 {
                    continue;
                }
                let most = LIST.min(self.most_chunks(plane_a, plane_b.max));
                let planes = PlanePair { a: i, b: j };
                let mut len = 0;
                let mut multiply = |list: &[Step]| {
                    self.multiply_steps(tile, planes, p, Steps::List(list), buffers);
                    self.drain(plane_a, &plane_b.shift, true, buffers);
                };
                let chunks = first as u32..(first + slots) as u32;
                for_each_meeting(i, &plane_a.slots, j, plane_b.chunks, chunks, |step| {
                    list[len] = step;
                    len += 1;
                    if len == most {
                        multiply(&list[..len]);
                        len = 0;
                    }
                });
                if len > 0 {
                    multiply(&list[..len]);
                }
            }
        }
        false
    }

    /// True if the sum of so many chunks of two planes fits 32 bits: [`most_chunks`], but without
    /// the division.
    ///
    /// [`most_chunks`]: Self::most_chunks
    fn fit_32_bits(&self, chunks: usize, a: &TilePlane, max_b: i32) -> bool {
        let of_a_chunk = match self.operands.b.form() {
            _ if self.int8() => int8_chunk(a.max, max_b),
            Form::Fold => return chunks <= FOLD_CHUNKS,
            Form::Group => group_chunk(a.max, max_b),
        };
        chunks.checked_mul(of_a_chunk).is_some_and(|sum| sum <= i32::MAX as usize)
    }

    /// Chunks of two planes whose sum fits 32 bits.
    fn most_chunks(&self, a: &TilePlane, max_b: i32) -> usize {
        match self.operands.b.form() {
            _ if self.int8() => int8_chunks(a.max, max_b),
            Form::Fold => FOLD_CHUNKS,
            Form::Group => group_chunks(a.max, max_b),
        }
    }

    /// Multiplies the steps of a plane of the tile and one of the panel, and finds what the sums
    /// are too large by.
    fn multiply_steps(
        &self,
        tile: &RowTile,
        planes: PlanePair,
        p: usize,
        steps: Steps<'_>,
        buffers: &mut Buffers,
    ) {
        self.kernel(tile, planes, p, steps, buffers);
        self.correct(tile, planes.a, steps, buffers);
    }

    /// Multiplies the steps of a plane of the tile and one of the panel. Inlined, as the steps
    /// would be copied by vectors that wait for their parts to be written.
    #[inline(always)]
    fn kernel(
        &self,
        tile: &RowTile,
        planes: PlanePair,
        p: usize,
        steps: Steps<'_>,
        buffers: &mut Buffers,
    ) {
        let a = tile.view(planes.a);
        let b = self.operands.b.view(p, planes.b);
        match self.fold() {
            Some(kernels) if self.int8() => kernels.int8(a, b, steps, &mut buffers.sums),
            Some(kernels) => kernels.fold(a, b, steps, &mut buffers.sums),
            None => self.operands.kernels.group(a, b, steps, &mut buffers.sums),
        }
    }

    /// What the sums over the steps of plane `i` of the tile are too large by.
    fn correct(&self, tile: &RowTile, i: usize, steps: Steps<'_>, buffers: &mut Buffers) {
        if self.fold().is_none() || self.int8() || K::Fold::OFFSET == 0 {
            return;
        }
        let (plane, rows) = (&tile.planes()[i], tile.meta.len());
        let corrections = &mut buffers.corrections[..rows];
        match steps {
            Steps::Dense { a: 0, count, .. } if count * rows == plane.sums.len() => {
                corrections.copy_from_slice(&plane.corrections[..rows]);
                return;
            }
            Steps::Dense { a, count, .. } => {
                corrections.fill(0);
                (a..a + count).for_each(|slot| plane.add_sums(slot, corrections));
            }
            Steps::List(list) => {
                corrections.fill(0);
                list.iter().for_each(|step| plane.add_sums(step.a_slot as usize, corrections));
            }
        }
        corrections.iter_mut().for_each(|sum| *sum = sum.wrapping_mul(K::Fold::OFFSET));
    }

    /// Makes the 32-bit sums of a plane of the tile and one of the panel 64-bit ones, or adds them
    /// to those.
    fn drain(&self, plane: &TilePlane, shift_b: &[u32; COLUMNS], add: bool, buffers: &mut Buffers) {
        let kernels = self.operands.kernels;
        kernels.enter(
            #[inline(always)]
            || {
                for (r, &shift_a) in plane.shift.iter().enumerate() {
                    let (sums, correction) = (&buffers.sums[r], buffers.corrections[r]);
                    let units = &mut buffers.units[r];
                    if !add {
                        *units = [0; COLUMNS];
                    }
                    kernels.add_shifted(sums, correction, shift_a, shift_b, units);
                }
            },
        );
    }
}
