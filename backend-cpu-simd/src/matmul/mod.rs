//! The tiled exact matmul that every instruction set's kernels plug into: tiles of rows of A by
//! panels of columns of B.
//!
//! | module | contents | unsafe |
//! |---|---|---|
//! | `operand` | the layout of both operands | no |
//! | `panels` | the weight B in panels of columns, and back | no |
//! | `tiles` | the activation A in tiles of rows | no |
//! | `gemm` | which planes meet, sums of planes | no |
//! | `meta` | what the proofs need to know of a row | no |
//! | `bounds` | how many chunks are summed in 32 bits | no |
//! | `cut` | how a call is cut into tasks | one call |
//! | `meeting` | the chunks that two planes both have | no |
//! | `planes` | a row's live groups in several windows of exponents | no |
//! | `bytes` | work on the bytes of a row's scales, by vectors | no |
//! | `output` | disjoint parts of the output, written by several threads | yes |
//! | `rounding` | the one rounding of a tile, and what follows it | no |
//! | `scratch` | tiles that calls leave for the next ones | no |
//! | `tile_sums` | the sums of a tile with a panel, and what becomes of them | no |
//! | `sum` | the exact sum of an output and its one rounding; partial sums | no |
//!
//! The kernels are in `kernels`: types that implement [`Kernels`] and, where the instruction set
//! has what it takes, [`FoldKernels`] and [`PairKernels`].

pub(crate) mod bounds;
mod bytes;
pub(crate) mod cut;
pub(crate) mod gemm;
mod meeting;
pub(crate) mod meta;
pub(crate) mod operand;
mod output;
mod panels;
pub(crate) mod planes;
pub(crate) mod rounding;
mod scratch;
pub(crate) mod sum;
mod tile_sums;
mod tiles;

use std::ops::Range;

use fp4_core::{Epilogue, Error, FloatSliceMut, Format, PackedView, Paths};

pub(crate) use cut::CutCall;
pub(crate) use gemm::{TiledOperands, expect as expect_call};
pub(crate) use operand::Form;
pub(crate) use output::OutputTile;
pub(crate) use panels::Panels;
pub(crate) use scratch::{ReusedTiles, TileScratch, is_same};
pub(crate) use tiles::{FoldTile, RowOfTile, RowTiles, TileView};

use crate::isa::Isa;
use crate::quantize::FloatValue;
use crate::threads::TaskThreads;
use operand::{COLUMNS, LINES, Line, MAX_ROWS, STEPS};
use rounding::Rounding;

/// 32-bit sums of a tile with a panel; rows past the tile's are left as they were.
pub(crate) type Sums = [[i32; COLUMNS]; MAX_ROWS];

/// 64-bit sums of a tile with a panel; rows past the tile's are left as they were.
pub(crate) type Units = [[i64; COLUMNS]; MAX_ROWS];

/// Which chunks a kernel multiplies.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Steps<'a> {
    /// Slots `a..a + count` of plane 0 of A with chunks `b..b + count` of plane 0 of B.
    Dense { a: usize, b: usize, count: usize },
    /// These.
    List(&'a [Step]),
}

impl Steps<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Steps::Dense { count, .. } => *count,
            Steps::List(list) => list.len(),
        }
    }

    /// Step `i`.
    #[inline(always)]
    pub(crate) fn at(&self, i: usize) -> StepAt {
        match *self {
            Steps::Dense { a, b, .. } => {
                StepAt { a: a + i, a_slot: a + i, b: b + i, b_slot: b + i }
            }
            Steps::List(list) => {
                let Step { a, a_slot, b, b_slot } = list[i];
                let [a, a_slot, b, b_slot] = [a, a_slot, b, b_slot].map(|at| at as usize);
                StepAt { a, a_slot, b, b_slot }
            }
        }
    }
}

/// A chunk of A and one of B, with the slots of their scales.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Step {
    /// Slot of the tile.
    pub(crate) a: u32,
    /// The same in the plane of A: where its scales, or its folded codes, are.
    pub(crate) a_slot: u32,
    /// Chunk of the panel.
    pub(crate) b: u32,
    /// The same in the plane of B: where its scale bytes are.
    pub(crate) b_slot: u32,
}

/// A [`Step`] to index with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StepAt {
    pub(crate) a: usize,
    pub(crate) a_slot: usize,
    pub(crate) b: usize,
    pub(crate) b_slot: usize,
}

/// What a kernel reads of B: a panel's codes and the scale bytes of one of its planes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PanelView<'a> {
    pub(crate) codes: &'a [Line],
    pub(crate) scales: &'a [u8],
    /// Groups in a chunk: scale bytes of a column.
    pub(crate) groups: usize,
}

impl PanelView<'_> {
    /// Scale bytes of a chunk.
    #[inline(always)]
    pub(crate) fn scale_bytes(&self) -> usize {
        COLUMNS * self.groups
    }
}

/// A row of outputs of a tile with a panel.
pub(crate) type OutputRow = [f32; COLUMNS];

/// Panics unless every step is inside the buffers.
pub(crate) fn expect_inside(form: Form, a: TileView<'_>, b: PanelView<'_>, steps: Steps<'_>) {
    assert!(matches!((form, b.groups), (Form::Fold, 1) | (Form::Group, 1 | 2)));
    // The first slots and chunks past the steps.
    let (chunk_a, slot_a, chunk_b, slot_b) = match steps {
        Steps::Dense { a, b, count } => (a + count, a + count, b + count, b + count),
        Steps::List(list) => list.iter().fold((0, 0, 0, 0), |ends, step| {
            let Step { a, a_slot, b, b_slot } = *step;
            let [a, a_slot, b, b_slot] = [a, a_slot, b, b_slot].map(|at| at as usize + 1);
            (ends.0.max(a), ends.1.max(a_slot), ends.2.max(b), ends.3.max(b_slot))
        }),
    };
    // The fold form has codes for the slots of its plane.
    let codes = if form == Form::Fold { slot_a } else { chunk_a };
    assert!(codes * STEPS * a.rows <= a.codes.len());
    if form == Form::Group {
        assert!(chunk_a * a.rows <= a.init.len() && slot_a * a.rows <= a.scales.len());
    }
    assert!(chunk_b * LINES <= b.codes.len() && slot_b * b.scale_bytes() <= b.scales.len());
}

/// The matmul kernels of an instruction set. A value is the proof that this CPU has it: the only
/// way to make one is to ask the CPU.
///
/// The group form is every set's; a set that has the fold form too names it ([`Fold`](Self::Fold)).
pub(crate) trait Kernels: Copy + Send + Sync + std::fmt::Debug {
    /// The instruction set.
    const ISA: Isa;

    /// Most rows of a tile in the group form.
    const GROUP_ROWS: usize;

    /// True if the group form has two i16 lanes for each half of a chunk, false if it has one i32.
    const BY_HALVES: bool;

    /// The kernels of the fold form; [`Never`] where there are none.
    type Fold: FoldKernels;

    /// The kernels of the fold form, if there are any.
    fn fold_kernels(self) -> Option<Self::Fold>;

    /// The form in which a format is multiplied.
    fn form(self, format: Format) -> Form {
        match (format, self.fold_kernels()) {
            (Format::MxFp4, Some(_)) => Form::Fold,
            (Format::MxFp4, None) | (Format::NvFp4, _) => Form::Group,
        }
    }

    /// The kernels of the fold form, if that is `form` and there are any.
    #[inline(always)]
    fn for_fold(self, form: Form) -> Option<Self::Fold> {
        match form {
            Form::Fold => self.fold_kernels(),
            Form::Group => None,
        }
    }

    /// Runs `f` compiled for the instruction set, as far as it is inlined.
    fn enter<R>(self, f: impl FnOnce() -> R) -> R;

    /// Packs a row in the group form.
    fn pack_group(self, from: &[u8], at: RowOfTile, codes: &mut [i32], init: &mut [[i32; 2]]);

    /// Packs a row of MXINT8 for the group form: as [`pack_group`](Self::pack_group), whole chunks
    /// of elements.
    fn pack_int8(self, from: &[u8], at: RowOfTile, codes: &mut [i32], init: &mut [[i32; 2]]);

    /// Sums over the steps of group dots times scaled scales, modulo 2^32. A is e2m1, or MXINT8.
    fn group(self, a: TileView<'_>, b: PanelView<'_>, steps: Steps<'_>, sums: &mut Sums);

    /// Adds each sum less the correction, times `2^(shift + column shift)`, to `to`. Only outputs
    /// that are not narrow can shift or sum out of range: what becomes of those is left open.
    #[inline(always)]
    fn add_shifted(
        self,
        from: &[i32; COLUMNS],
        correction: i32,
        shift: u32,
        column_shifts: &[u32; COLUMNS],
        to: &mut [i64; COLUMNS],
    ) {
        for ((to, &sum), &column) in to.iter_mut().zip(from).zip(column_shifts) {
            let sum = i64::from(sum.wrapping_sub(correction));
            *to = to.wrapping_add(sum.wrapping_shl(shift + column));
        }
    }

    /// Rounds the sums less the corrections of each row of the tile, and writes the outputs.
    #[inline(always)]
    fn round_sums<T: FloatValue>(self, sums: &Sums, by: &Rounding<'_>, out: OutputTile<'_, T>) {
        by.sums(sums, out);
    }

    /// The same for 64-bit sums, which need no corrections.
    #[inline(always)]
    fn round_units<T: FloatValue>(self, units: &Units, by: &Rounding<'_>, out: OutputTile<'_, T>) {
        by.units(units, out);
    }
}

/// The kernels of the fold form.
pub(crate) trait FoldKernels: Copy + Send + Sync + std::fmt::Debug {
    /// What the sums take B's values to be too large by.
    const OFFSET: i32;

    /// The kernels on pairs of expanded panels; [`Never`] where there are none.
    type Pairs: PairKernels;

    /// The kernels on pairs of expanded panels, if tiles of `m` rows of A are multiplied by them.
    fn pair_kernels(self, m: usize) -> Option<Self::Pairs>;

    /// Most rows of a tile of `m` rows of A.
    fn rows(self, m: usize) -> usize;

    /// Packs a plane of a tile; writes the sums of each slot and row, and their totals, if sums are
    /// offset.
    fn pack_fold(
        self,
        from: FoldTile<'_>,
        codes: &mut [i32],
        sums: &mut [i32],
        totals: &mut [i32; MAX_ROWS],
    );

    /// Packs a row of MXINT8, whole chunks of elements.
    fn pack_int8(self, from: &[u8], at: RowOfTile, codes: &mut [i32], init: &mut [[i32; 2]]);

    /// Sums over the steps of the dots of chunks of MXINT8 in A and of B, each shifted left by A's
    /// scale, modulo 2^32.
    fn int8(self, a: TileView<'_>, b: PanelView<'_>, steps: Steps<'_>, sums: &mut Sums);

    /// Sums over the steps of products of A and of B + [`OFFSET`](Self::OFFSET), modulo 2^32.
    fn fold(self, a: TileView<'_>, b: PanelView<'_>, steps: Steps<'_>, sums: &mut Sums);
}

/// The kernels of the fold form on pairs of panels that are expanded once for many tiles.
pub(crate) trait PairKernels: Copy + Send + Sync + std::fmt::Debug {
    /// Expands the chunks `chunks` of plane 0 of a panel, B + [`OFFSET`](FoldKernels::OFFSET), for
    /// [`fold_pair`](Self::fold_pair): two lines for each of the eight steps of a chunk, of which this
    /// panel's is line `half`.
    fn expand(self, b: PanelView<'_>, chunks: Range<usize>, half: usize, to: &mut [Line]);

    /// As [`fold`](FoldKernels::fold), for these slots of plane 0 of A and two panels; added to the
    /// sums if `add`. `next` is read soon.
    fn fold_pair(self, a: TileView<'_>, b: &[Line], next: &[Line], add: bool, sums: &mut [Sums; 2]);
}

/// Kernels that an instruction set does not have: there is no value of this type.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Never {}

impl FoldKernels for Never {
    const OFFSET: i32 = 0;
    type Pairs = Never;

    fn pair_kernels(self, _: usize) -> Option<Never> {
        match self {}
    }

    fn rows(self, _: usize) -> usize {
        match self {}
    }

    fn pack_fold(self, _: FoldTile<'_>, _: &mut [i32], _: &mut [i32], _: &mut [i32; MAX_ROWS]) {
        match self {}
    }

    fn pack_int8(self, _: &[u8], _: RowOfTile, _: &mut [i32], _: &mut [[i32; 2]]) {
        match self {}
    }

    fn int8(self, _: TileView<'_>, _: PanelView<'_>, _: Steps<'_>, _: &mut Sums) {
        match self {}
    }

    fn fold(self, _: TileView<'_>, _: PanelView<'_>, _: Steps<'_>, _: &mut Sums) {
        match self {}
    }
}

impl PairKernels for Never {
    fn expand(self, _: PanelView<'_>, _: Range<usize>, _: usize, _: &mut [Line]) {
        match self {}
    }

    fn fold_pair(self, _: TileView<'_>, _: &[Line], _: &[Line], _: bool, _: &mut [Sums; 2]) {
        match self {}
    }
}

/// The instruction set of `kernels`.
pub(crate) fn isa<K: Kernels>(_: K) -> Isa {
    K::ISA
}

/// Prepares a weight for `kernels`.
pub(crate) fn prepare<K: Kernels>(
    kernels: K,
    threads: &TaskThreads,
    b: PackedView<'_>,
) -> Result<Panels, Error> {
    Panels::new(threads, b, kernels.form(b.shape().expect_format()?))
}

/// Packs A into tiles for a weight in format `b`, as [`matmul_tiles`] reads them.
pub(crate) fn pack<K: Kernels>(
    kernels: K,
    threads: &TaskThreads,
    a: PackedView<'_>,
    b: Format,
    tiles: &mut RowTiles,
) -> Result<(), Error> {
    tiles.fill(kernels, threads, &a, b, 0..a.shape().k() / b.group().get())
}

/// Writes round(f32(A * B^T) * alpha), or what else the epilogue says, to `out`. `b` was prepared
/// for `kernels`.
pub(crate) fn matmul<K: Kernels>(
    kernels: K,
    threads: &TaskThreads,
    scratch: &TileScratch,
    a: PackedView<'_>,
    b: &Panels,
    epilogue: Epilogue<'_>,
    out: FloatSliceMut<'_>,
) -> Result<Paths, Error> {
    gemm::expect(a.shape(), b.shape(), &epilogue, &out)?;
    let mut tiles = scratch.take();
    let packed = pack(kernels, threads, a, b.format(), &mut tiles);
    let paths = packed.and_then(|()| gemm::matmul(kernels, threads, a, &tiles, b, epilogue, out));
    scratch.give(tiles);
    paths
}

/// The same for an A that may be in `tiles` already. Tiles for other kernels are of no use to
/// these: A is packed again.
#[expect(clippy::too_many_arguments, reason = "those of `matmul` and the tiles")]
pub(crate) fn matmul_tiles<K: Kernels>(
    kernels: K,
    threads: &TaskThreads,
    scratch: &TileScratch,
    a: PackedView<'_>,
    tiles: &RowTiles,
    b: &Panels,
    epilogue: Epilogue<'_>,
    out: FloatSliceMut<'_>,
) -> Result<Paths, Error> {
    if !tiles.hold(K::ISA, a.shape(), b.format()) {
        return matmul(kernels, threads, scratch, a, b, epilogue, out);
    }
    gemm::expect(a.shape(), b.shape(), &epilogue, &out)?;
    gemm::matmul(kernels, threads, a, tiles, b, epilogue, out)
}

/// As [`matmul`], by tiles that may hold A from the product before; the operands are checked.
pub(crate) fn matmul_reusing<'a, K: Kernels>(
    kernels: K,
    threads: &TaskThreads,
    rows: &mut ReusedTiles<'a>,
    a: PackedView<'a>,
    b: &Panels,
    epilogue: Epilogue<'_>,
    out: FloatSliceMut<'_>,
) -> Result<Paths, Error> {
    if out.is_empty() {
        return Ok(Paths::default());
    }
    rows.pack(kernels, threads, a, b.format())?;
    gemm::matmul(kernels, threads, a, rows.tiles(), b, epilogue, out)
}

/// Packs A for [`cut::cut`], unless it is packed already.
pub(crate) fn pack_reusing<'a, K: Kernels>(
    kernels: K,
    threads: &TaskThreads,
    rows: &mut ReusedTiles<'a>,
    a: PackedView<'a>,
    b: &Panels,
) -> Result<(), Error> {
    rows.pack(kernels, threads, a, b.format())
}
