//! Kernels for x86-64: the same tiles and panels, two instruction sets.
//!
//! | module | contents | unsafe |
//! |---|---|---|
//! | `operand` | panels of B, tiles of A, their planes | no |
//! | `gemm` | which planes meet, sums of planes, the one rounding, tasks | one call |
//! | `output` | disjoint parts of the output, written by several threads | yes |
//! | `pack` | codes of A into tiles (AVX2) | yes |
//! | `quantize` | scales, codes and transforms on AVX-512 | yes |
//! | `avx512` | tile kernels on AVX-512 VNNI and VBMI | yes |

mod avx512;
mod gemm;
mod operand;
mod output;
mod pack;
mod quantize;

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use fp4_core::{Error, FloatSliceMut, Format, PackedView, Paths};

pub(crate) use avx512::Avx512;
pub(crate) use gemm::Pair;
pub(crate) use operand::{Form, Panels, Tiles};
pub(crate) use quantize::Avx512Encoder;

use crate::threads::Threads;
use operand::{COLUMNS, FoldRow, Line, MAX_ROWS, TileView};

/// 32-bit sums of a tile with a panel; rows past the tile's are left as they were.
pub(crate) type Sums = [[i32; COLUMNS]; MAX_ROWS];

/// Which chunks a kernel multiplies.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Steps<'a> {
    /// Slots `a..a + count` of plane 0 of A with chunks `b..b + count` of plane 0 of B.
    Dense { a: usize, b: usize, count: usize },
    /// These.
    List(&'a [Step]),
}

impl Steps<'_> {
    fn len(&self) -> usize {
        match self {
            Steps::Dense { count, .. } => *count,
            Steps::List(list) => list.len(),
        }
    }

    /// The fields of a [`Step`].
    #[inline(always)]
    fn at(&self, i: usize) -> [usize; 4] {
        match *self {
            Steps::Dense { a, b, .. } => [a + i, a + i, b + i, b + i],
            Steps::List(list) => {
                let step = list[i];
                [step.a, step.a_slot, step.b, step.b_slot].map(|i| i as usize)
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

/// What a kernel reads of B: a panel's codes and the scale bytes of one of its planes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PanelView<'a> {
    pub(crate) codes: &'a [Line],
    pub(crate) scales: &'a [u8],
}

/// The kernels of an instruction set. A value is the proof that this CPU has it: the only way to
/// make one is to ask the CPU.
pub(crate) trait Kernels: Copy + Send + Sync + std::fmt::Debug {
    /// The form in which a format is multiplied.
    fn form(self, format: Format) -> Form;

    /// Most rows of a tile of `m` rows of A.
    fn rows(self, form: Form, m: usize) -> usize;

    /// True if tiles of `m` rows of A in the fold form are multiplied by pairs of expanded panels.
    fn pairs(self, form: Form, m: usize) -> bool;

    /// Runs `f` compiled for the instruction set, as far as it is inlined.
    fn enter<R>(self, f: impl FnOnce() -> R) -> R;

    /// Packs row `row[0]` of a tile of `row[1]` rows in the fold form, and returns its total.
    fn pack_fold(
        self,
        from: FoldRow<'_>,
        row: [usize; 2],
        codes: &mut [i32],
        sums: &mut [i32],
    ) -> i32;

    /// Packs row `row[0]` of a tile of `row[1]` rows in the group form.
    fn pack_group(self, from: &[u8], row: [usize; 2], codes: &mut [i32], init: &mut [[i32; 2]]);

    /// Sums over the steps of products of A and of B + 128, modulo 2^32.
    fn fold(self, a: TileView<'_>, b: PanelView<'_>, steps: Steps<'_>, sums: &mut Sums);

    /// Expands the chunks `chunks` of plane 0 of a panel, B + 128, for [`fold_pair`](Self::fold_pair):
    /// two lines for each of the eight steps of a chunk, of which this panel's is line `half`.
    fn expand(self, b: PanelView<'_>, chunks: Range<usize>, half: usize, to: &mut [Line]);

    /// As [`fold`](Self::fold), for all slots of plane 0 of A and two panels.
    fn fold_pair(self, a: TileView<'_>, b: &[Line], sums: &mut [Sums; 2]);

    /// Sums over the steps of group dots times scaled scales, modulo 2^32.
    fn group(self, a: TileView<'_>, b: PanelView<'_>, steps: Steps<'_>, sums: &mut Sums);
}

/// Buffers that calls leave for the next ones.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scratch(Arc<Mutex<Vec<Tiles>>>);

impl Scratch {
    fn take(&self) -> Tiles {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    fn give(&self, tiles: Tiles) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(tiles);
    }
}

/// Prepares a weight for `kernels`.
pub(crate) fn prepare<K: Kernels>(
    kernels: K,
    threads: &Threads,
    b: PackedView<'_>,
) -> Result<Panels, Error> {
    Panels::new(threads, b, kernels.form(b.shape().expect_format()?))
}

/// Writes round(f32(A * B^T) * alpha) to `out`.
pub(crate) fn matmul<K: Kernels>(
    kernels: K,
    threads: &Threads,
    scratch: &Scratch,
    a: PackedView<'_>,
    b: &Panels,
    alpha: f32,
    out: FloatSliceMut<'_>,
) -> Result<Paths, Error> {
    gemm::expect(a.shape(), b.shape(), &out)?;
    let mut tiles = scratch.take();
    let filled = tiles.fill(kernels, threads, &a, b.form(), 0..a.shape().row_groups());
    let paths = filled.and_then(|()| gemm::matmul(kernels, threads, a, &tiles, b, alpha, out));
    scratch.give(tiles);
    paths
}
