//! What the three levels share: a list of steps, in blocks, for the rows of a tile, a few at a time.

use std::arch::aarch64::*;

use super::operand::{BLOCK, Bytes, Expanded};
use crate::tiles::operand::{COLUMNS, Form, STEPS, TileView};
use crate::tiles::{PanelView, Steps, Sums};

/// `$body` for `$i` = 0, 1, ..., `$n` - 1, at most `$most`, written out: a loop of this length with a long
/// body would not be unrolled, and its sums not be kept in registers.
macro_rules! each {
    ($i:ident, 2, $body:block) => {
        $crate::neon::block::each!($i, 2, $body, 0 1);
    };
    ($i:ident, 4, $body:block) => {
        $crate::neon::block::each!($i, 4, $body, 0 1 2 3);
    };
    ($i:ident, $n:expr, at most 2, $body:block) => {
        $crate::neon::block::each!($i, $n, $body, 0 1);
    };
    ($i:ident, $n:expr, at most 3, $body:block) => {
        $crate::neon::block::each!($i, $n, $body, 0 1 2);
    };
    ($i:ident, $n:expr, at most 4, $body:block) => {
        $crate::neon::block::each!($i, $n, $body, 0 1 2 3);
    };
    ($i:ident, $n:expr, at most 6, $body:block) => {
        $crate::neon::block::each!($i, $n, $body, 0 1 2 3 4 5);
    };
    ($i:ident, $n:expr, $body:block, $($value:literal)*) => {
        $(if $value < $n {
            let $i = $value;
            $body
        })*
    };
}
pub(super) use each;

/// Some rows of a tile and an expanded block of chunks.
pub(super) struct Part<'a> {
    a: TileView<'a>,
    /// The first of the rows.
    first: usize,
    /// The slots of the codes and of the scales of A, for each step of the block.
    slots: &'a [[usize; 2]],
    w: &'a Expanded,
}

/// The 32-bit sums of R rows, as vectors of four columns.
pub(super) type Rows<const R: usize> = [[int32x4_t; 4]; R];

/// The instructions of one level. The rows of a part are R.
///
/// # Safety
/// Of all methods: the CPU has the level's features; the rows and the slots are inside the tile.
pub(super) trait Level {
    /// Most rows at a time: their sums should stay in registers.
    const FOLD_ROWS: usize = 1;
    /// The same for the group form.
    const GROUP_ROWS: usize;
    /// True if B is expanded to pairs of columns.
    const BY_PAIRS: bool;

    /// Adds the products of folded bytes, in the levels that have the fold form.
    unsafe fn fold<const R: usize>(_part: &Part<'_>, _sums: &mut Rows<R>) {
        unreachable!("this level has no fold form")
    }

    /// Adds the dots of the halves times their scales.
    unsafe fn group<const R: usize>(part: &Part<'_>, sums: &mut Rows<R>);
}

impl<'a> Part<'a> {
    /// The expanded chunk and the slots of A of each step.
    #[inline(always)]
    pub(super) fn steps(
        &self,
    ) -> impl Iterator<Item = (&'a Bytes, &'a [[int32x4_t; 4]; 2], [usize; 2])> + use<'a> {
        let (bytes, scales) = (self.w.bytes.iter(), self.w.scales.iter());
        bytes.zip(scales).zip(self.slots).map(|((bytes, scales), &slots)| (bytes, scales, slots))
    }

    /// Steps 2j and 2j + 1 of rows 2k and 2k + 1 of R, zeros for a row past them.
    ///
    /// # Safety
    /// The slot and the R rows are inside the tile, 2k < R and j < 4.
    #[inline(always)]
    pub(super) unsafe fn codes<const R: usize>(
        &self,
        slot: usize,
        j: usize,
        k: usize,
    ) -> int8x16_t {
        let rows = self.a.rows;
        let at = slot * STEPS * rows + 2 * (j * rows + self.first + 2 * k);
        // SAFETY: inside, by the caller; NEON is in every build for aarch64.
        unsafe {
            let codes = self.a.codes.as_ptr().add(at).cast::<i8>();
            if 2 * k + 1 < R { vld1q_s8(codes) } else { vcombine_s8(vld1_s8(codes), vdup_n_s8(0)) }
        }
    }

    /// The scaled scale of row r in a half, in all lanes.
    ///
    /// # Safety
    /// The slot and the row are inside the tile, half < 2.
    #[inline(always)]
    pub(super) unsafe fn scale(&self, slot: usize, half: usize, r: usize) -> int32x4_t {
        // SAFETY: inside, by the caller; NEON is in every build for aarch64.
        unsafe {
            let scales = self.a.scales.as_ptr().add(slot * self.a.rows + self.first + r);
            vdupq_n_s32(i32::from(*scales.cast::<i16>().add(half)))
        }
    }
}

/// Writes the sums over the steps for all rows of the tile. See [`Kernels`](crate::tiles::Kernels).
///
/// # Safety
/// The CPU has the level's features; the steps are inside the buffers of the form.
pub(super) unsafe fn multiply<L: Level>(
    form: Form,
    a: TileView<'_>,
    b: PanelView<'_>,
    steps: Steps<'_>,
    sums: &mut Sums,
) {
    let most = if form == Form::Fold { L::FOLD_ROWS } else { L::GROUP_ROWS };
    sums[..a.rows].fill([0; COLUMNS]);
    let mut w = Expanded::zero();
    for start in (0..steps.len()).step_by(BLOCK) {
        let count = BLOCK.min(steps.len() - start);
        let mut slots = [[0; 2]; BLOCK];
        for (i, slots) in slots[..count].iter_mut().enumerate() {
            let [codes, scales, ..] = steps.at(start + i);
            // Folded codes are stored by plane.
            *slots = [if form == Form::Fold { scales } else { codes }, scales];
        }
        // SAFETY: the steps are inside, by the caller, so the parts are; R is the number of rows.
        unsafe {
            w.fill(form, L::BY_PAIRS, b, steps, [start, count]);
            for first in (0..a.rows).step_by(most) {
                let part = Part { a, first, slots: &slots[..count], w: &w };
                match most.min(a.rows - first) {
                    1 => add::<L, 1>(form, &part, sums),
                    2 => add::<L, 2>(form, &part, sums),
                    3 => add::<L, 3>(form, &part, sums),
                    4 => add::<L, 4>(form, &part, sums),
                    5 => add::<L, 5>(form, &part, sums),
                    _ => add::<L, 6>(form, &part, sums),
                }
            }
        }
    }
}

/// Adds the terms of R rows of a part to the sums.
///
/// # Safety
/// As of the methods of [`Level`].
#[inline(always)]
unsafe fn add<L: Level, const R: usize>(form: Form, part: &Part<'_>, sums: &mut Sums) {
    const { assert!(L::FOLD_ROWS <= 6 && L::GROUP_ROWS <= 6) };
    let sums: &mut [[i32; COLUMNS]; R] =
        (&mut sums[part.first..part.first + R]).try_into().expect("R rows");
    // SAFETY: a row of sums is four vectors; the rest by the caller.
    unsafe {
        let vectors = sums.as_mut_ptr().cast::<Rows<R>>();
        let mut rows = vectors.read_unaligned();
        match form {
            Form::Fold => L::fold(part, &mut rows),
            Form::Group => L::group(part, &mut rows),
        }
        vectors.write_unaligned(rows);
    }
}
