//! The tile kernels of the three levels, and what they share: a list of steps, in blocks, for the
//! rows of a tile, a few at a time.

use std::arch::aarch64::*;

use super::operand::{BLOCK, Bytes, Expanded};
use super::{Neon, NeonDotprod, NeonI8mm, operand, sdot, smlal, smmla};
use crate::isa::Isa;
use crate::matmul::operand::{COLUMNS, Form, MAX_ROWS, STEPS};
use crate::matmul::{
    FoldKernels, FoldTile, Kernels, Never, PanelView, RowOfTile, StepAt, Steps, Sums, TileView,
    expect_inside,
};

/// `$body` for `$i` = 0, 1, ..., `$n` - 1, at most `$most`, written out: a loop of this length with
/// a long body would not be unrolled, and its sums not be kept in registers.
macro_rules! each {
    ($i:ident, 2, $body:block) => {
        $crate::kernels::neon::matmul::each!($i, 2, $body, 0 1);
    };
    ($i:ident, 4, $body:block) => {
        $crate::kernels::neon::matmul::each!($i, 4, $body, 0 1 2 3);
    };
    ($i:ident, $n:expr, at most 2, $body:block) => {
        $crate::kernels::neon::matmul::each!($i, $n, $body, 0 1);
    };
    ($i:ident, $n:expr, at most 3, $body:block) => {
        $crate::kernels::neon::matmul::each!($i, $n, $body, 0 1 2);
    };
    ($i:ident, $n:expr, at most 4, $body:block) => {
        $crate::kernels::neon::matmul::each!($i, $n, $body, 0 1 2 3);
    };
    ($i:ident, $n:expr, at most 6, $body:block) => {
        $crate::kernels::neon::matmul::each!($i, $n, $body, 0 1 2 3 4 5);
    };
    ($i:ident, $n:expr, $body:block, $($value:literal)*) => {
        $(if $value < $n {
            let $i = $value;
            $body
        })*
    };
}
pub(super) use each;

/// The slots of A of a step.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Slots {
    pub(super) codes: usize,
    pub(super) scales: usize,
}

/// Some rows of a tile and an expanded block of chunks.
pub(super) struct Part<'a> {
    a: TileView<'a>,
    /// The first of the rows.
    first: usize,
    /// The slots of the codes and of the scales of A, for each step of the block.
    slots: &'a [Slots],
    w: &'a Expanded,
}

/// The 32-bit sums of R rows, as vectors of four columns.
pub(super) type RowSums<const R: usize> = [[int32x4_t; 4]; R];

/// The instructions of one level. The rows of a part are R.
///
/// # Safety
/// Of all methods: the CPU has the level's features; the rows and the slots are inside the tile.
pub(super) trait Level {
    /// Most rows at a time: their sums should stay in registers.
    const GROUP_ROWS: usize;
    /// True if B is expanded to pairs of columns.
    const BY_PAIRS: bool;

    /// Adds the dots of the halves times their scales.
    unsafe fn group<const R: usize>(part: &Part<'_>, sums: &mut RowSums<R>);
}

/// The instructions of a level that has the fold form.
///
/// # Safety
/// As of [`Level`].
pub(super) trait FoldLevel: Level {
    /// Most rows at a time.
    const FOLD_ROWS: usize;

    /// Adds the products of folded bytes.
    unsafe fn fold<const R: usize>(part: &Part<'_>, sums: &mut RowSums<R>);

    /// Adds the dots of chunks of MXINT8 and folded bytes, shifted left by the rows' scales; at
    /// most [`GROUP_ROWS`](Level::GROUP_ROWS).
    unsafe fn int8<const R: usize>(part: &Part<'_>, sums: &mut RowSums<R>);
}

/// One form of one level.
///
/// # Safety
/// As of [`Level`].
trait Terms {
    /// Of B.
    const FORM: Form;
    /// True if the planes of A share its codes.
    const SHARED: bool;
    const ROWS: usize;
    const BY_PAIRS: bool;

    unsafe fn add<const R: usize>(part: &Part<'_>, sums: &mut RowSums<R>);
}

/// The fold form of a level.
struct FoldTerms<L>(L);

/// The group form of a level.
struct GroupTerms<L>(L);

/// MXINT8 by the fold form of a level.
struct Int8Terms<L>(L);

impl<L: FoldLevel> Terms for Int8Terms<L> {
    const FORM: Form = Form::Fold;
    const SHARED: bool = true;
    const ROWS: usize = L::GROUP_ROWS;
    const BY_PAIRS: bool = L::BY_PAIRS;

    #[inline(always)]
    unsafe fn add<const R: usize>(part: &Part<'_>, sums: &mut RowSums<R>) {
        // SAFETY: as the caller says.
        unsafe { L::int8(part, sums) }
    }
}

impl<L: FoldLevel> Terms for FoldTerms<L> {
    const FORM: Form = Form::Fold;
    const SHARED: bool = false;
    const ROWS: usize = L::FOLD_ROWS;
    const BY_PAIRS: bool = L::BY_PAIRS;

    #[inline(always)]
    unsafe fn add<const R: usize>(part: &Part<'_>, sums: &mut RowSums<R>) {
        // SAFETY: as the caller says.
        unsafe { L::fold(part, sums) }
    }
}

impl<L: Level> Terms for GroupTerms<L> {
    const FORM: Form = Form::Group;
    const SHARED: bool = true;
    const ROWS: usize = L::GROUP_ROWS;
    const BY_PAIRS: bool = L::BY_PAIRS;

    #[inline(always)]
    unsafe fn add<const R: usize>(part: &Part<'_>, sums: &mut RowSums<R>) {
        // SAFETY: as the caller says.
        unsafe { L::group(part, sums) }
    }
}

/// Implements the matmul kernels of a level; a single row takes those of `$one`, and the fold form
/// is what `$fold` and `$some` say.
macro_rules! kernels {
    ($name:ident, $level:ty, $one:ty, $fold:ty, |$self:ident| $some:expr) => {
        impl Kernels for $name {
            const ISA: Isa = Isa::$name;
            const GROUP_ROWS: usize = MAX_ROWS;
            const BY_HALVES: bool = false;
            type Fold = $fold;

            #[inline(always)]
            fn fold_kernels(self) -> Option<$fold> {
                let $self = self;
                $some
            }

            fn enter<R>(self, f: impl FnOnce() -> R) -> R {
                f() // NEON is in every build for aarch64.
            }

            fn pack_group(self, from: &[u8], at: RowOfTile, codes: &mut [i32], _: &mut [[i32; 2]]) {
                operand::pack_group(from, at, codes);
            }

            fn pack_int8(self, from: &[u8], at: RowOfTile, codes: &mut [i32], _: &mut [[i32; 2]]) {
                operand::pack_int8(from, at, codes);
            }

            fn group(self, a: TileView<'_>, b: PanelView<'_>, steps: Steps<'_>, sums: &mut Sums) {
                expect_inside(Form::Group, a, b, steps);
                // SAFETY: `self` proves the features; all steps are inside their buffers.
                unsafe { by_rows::<GroupTerms<$level>, GroupTerms<$one>>(a, b, steps, sums) }
            }
        }
    };
}

/// Implements the fold form of a level that has it.
macro_rules! fold_kernels {
    ($name:ident, $level:ty, $one:ty) => {
        impl FoldKernels for $name {
            const OFFSET: i32 = 0;
            type Pairs = Never;

            fn pair_kernels(self, _: usize) -> Option<Never> {
                None
            }

            fn rows(self, _: usize) -> usize {
                MAX_ROWS
            }

            fn pack_fold(
                self,
                from: FoldTile<'_>,
                codes: &mut [i32],
                _: &mut [i32],
                _: &mut [i32; MAX_ROWS],
            ) {
                operand::pack_fold(from, codes); // Nothing is offset, so no sums are needed.
            }

            fn pack_int8(self, from: &[u8], at: RowOfTile, codes: &mut [i32], _: &mut [[i32; 2]]) {
                operand::pack_int8(from, at, codes);
            }

            fn int8(self, a: TileView<'_>, b: PanelView<'_>, steps: Steps<'_>, sums: &mut Sums) {
                expect_inside(Form::Group, a, b, steps);
                // SAFETY: `self` proves the features; all steps are inside their buffers.
                unsafe { by_rows::<Int8Terms<$level>, Int8Terms<$one>>(a, b, steps, sums) }
            }

            fn fold(self, a: TileView<'_>, b: PanelView<'_>, steps: Steps<'_>, sums: &mut Sums) {
                expect_inside(Form::Fold, a, b, steps);
                // SAFETY: `self` proves the features; all steps are inside their buffers.
                unsafe { by_rows::<FoldTerms<$level>, FoldTerms<$one>>(a, b, steps, sums) }
            }
        }
    };
}

// Half of what `smmla` multiplies is for a second row. Its level has `sdot` too, of the same A.
kernels!(Neon, smlal::Smlal, smlal::Smlal, Never, |_kernels| None);
kernels!(NeonDotprod, sdot::Sdot, sdot::Sdot, Self, |kernels| Some(kernels));
kernels!(NeonI8mm, smmla::Smmla, sdot::Sdot, Self, |kernels| Some(kernels));
fold_kernels!(NeonDotprod, sdot::Sdot, sdot::Sdot);
fold_kernels!(NeonI8mm, smmla::Smmla, sdot::Sdot);

impl<'a> Part<'a> {
    /// The expanded chunk and the slots of A of each step.
    #[inline(always)]
    pub(super) fn steps(
        &self,
    ) -> impl Iterator<Item = (&'a Bytes, &'a [[int32x4_t; 4]; 2], Slots)> + use<'a> {
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

    /// The scaled scales of the R rows in a half, up to four, each in the lane of its row.
    ///
    /// # Safety
    /// The slot and the R rows are inside the tile, half < 2.
    #[inline(always)]
    pub(super) unsafe fn scales<const R: usize>(&self, slot: usize, half: usize) -> int32x4_t {
        // SAFETY: inside, by the caller; NEON is in every build for aarch64.
        unsafe {
            let at = self.a.scales.as_ptr().add(slot * self.a.rows + self.first).cast::<i32>();
            // Two rows, or the last one: each the two halves in 16 bits, and 32 bits that are not.
            let rows = |r: usize| match R.saturating_sub(r) {
                0 => vdupq_n_s32(0),
                1 => vcombine_s32(vld1_s32(at.add(2 * r)), vdup_n_s32(0)),
                _ => vld1q_s32(at.add(2 * r)),
            };
            let halves = vreinterpretq_s16_s32(vuzp1q_s32(rows(0), rows(2)));
            let of_half =
                if half == 0 { vuzp1q_s16(halves, halves) } else { vuzp2q_s16(halves, halves) };
            vmovl_s16(vget_low_s16(of_half))
        }
    }
}

/// [`multiply`] by the terms of `One` for a tile of one row, and of `T` for any other.
///
/// # Safety
/// As of [`multiply`], with both.
unsafe fn by_rows<T: Terms, One: Terms>(
    a: TileView<'_>,
    b: PanelView<'_>,
    steps: Steps<'_>,
    sums: &mut Sums,
) {
    // SAFETY: as the caller says.
    unsafe {
        match a.rows {
            1 => multiply::<One>(a, b, steps, sums),
            _ => multiply::<T>(a, b, steps, sums),
        }
    }
}

/// Writes the sums over the steps for all rows of the tile.
///
/// # Safety
/// The CPU has the level's features; the steps are inside the buffers of the form.
#[inline(never)] // Once for each form of a level.
unsafe fn multiply<T: Terms>(a: TileView<'_>, b: PanelView<'_>, steps: Steps<'_>, sums: &mut Sums) {
    sums[..a.rows].fill([0; COLUMNS]);
    let mut w = Expanded::zero();
    for start in (0..steps.len()).step_by(BLOCK) {
        let count = BLOCK.min(steps.len() - start);
        let mut slots = [Slots::default(); BLOCK];
        for (i, slots) in slots[..count].iter_mut().enumerate() {
            let StepAt { a, a_slot: scales, .. } = steps.at(start + i);
            // Folded codes are stored by plane.
            *slots = Slots { codes: if T::SHARED { a } else { scales }, scales };
        }
        // SAFETY: the steps are inside, by the caller, so the parts are; R is the number of rows.
        unsafe {
            w.fill(T::FORM, T::BY_PAIRS, b, steps, start..start + count);
            for first in (0..a.rows).step_by(T::ROWS) {
                let part = Part { a, first, slots: &slots[..count], w: &w };
                match T::ROWS.min(a.rows - first) {
                    2 => add::<T, 2>(&part, sums),
                    3 => add::<T, 3>(&part, sums),
                    4 => add::<T, 4>(&part, sums),
                    5 => add::<T, 5>(&part, sums),
                    6 => add::<T, 6>(&part, sums),
                    // Not the most rows: that would be code that no level of fewer rows runs.
                    _ => add::<T, 1>(&part, sums),
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
unsafe fn add<T: Terms, const R: usize>(part: &Part<'_>, sums: &mut Sums) {
    const { assert!(T::ROWS <= 6) };
    let sums: &mut [[i32; COLUMNS]; R] =
        (&mut sums[part.first..part.first + R]).try_into().expect("R rows");
    // SAFETY: a row of sums is four vectors; the rest by the caller.
    unsafe {
        let vectors = sums.as_mut_ptr().cast::<RowSums<R>>();
        let mut rows = vectors.read_unaligned();
        T::add(part, &mut rows);
        vectors.write_unaligned(rows);
    }
}
