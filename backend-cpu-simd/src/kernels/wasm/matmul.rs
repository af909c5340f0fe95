//! Tile kernels with simd128: the group form for both formats, with the scales multiplied into
//! 16-bit operands.
//!
//! ```text
//! for each block of up to 8 steps (a chunk of A and one of B):
//!     w = the chunks of B times their scales, as i16, 4 columns x 2 k a vector      i8x16.swizzle, i16x8.mul
//!     for each up to 4 rows of the tile, by 8 or 16 columns:
//!         a = 8 codes of A times their scale                                        i16x8.mul
//!         for each of its 4 pairs: sum += w . (the pair in all lanes)               i32x4.dot_i16x8_s
//! ```
//!
//! No relaxed operation and no saturating one is used, so every engine computes the same (C9).
//!
//! # Why it is exact
//!
//! Doubled codes are at most 12, scaled scales of B at most 127 and of A at most 258: the operands
//! are at most 1524 and 3096, in i16, and a pair of products is below 2^24. A chunk sums to at most
//! 2 * 2304 * max_a * max_b, and the driver drains 32-bit sums in time ([`group_chunks`]).
//!
//! Worked example: code 5 (6 doubled) with a scaled scale of 3 and code 7 (12) with one of 2 are
//! 18 and 24; their product 432 is 6 * 12 * (3 * 2).
//!
//! [`group_chunks`]: crate::matmul::gemm::group_chunks

use std::arch::wasm32::*;

use super::WasmSimd128;
use super::operand::{self, BLOCK, Expanded};
use crate::isa::Isa;
use crate::matmul::operand::{COLUMNS, Form, MAX_ROWS, STEPS};
use crate::matmul::{
    Kernels, Never, PanelView, RowOfTile, StepAt, Steps, Sums, TileView, expect_inside,
};

/// Most rows at a time.
const ROWS: usize = 4;

impl Kernels for WasmSimd128 {
    const ISA: Isa = Isa::WasmSimd128;
    const GROUP_ROWS: usize = MAX_ROWS;
    const BY_HALVES: bool = false;
    type Fold = Never;

    #[inline(always)]
    fn fold_kernels(self) -> Option<Never> {
        None
    }

    fn enter<R>(self, f: impl FnOnce() -> R) -> R {
        f()
    }

    fn pack_group(self, from: &[u8], at: RowOfTile, codes: &mut [i32], _: &mut [[i32; 2]]) {
        operand::pack_group(from, at, codes);
    }

    fn group(self, a: TileView<'_>, b: PanelView<'_>, steps: Steps<'_>, sums: &mut Sums) {
        expect_inside(Form::Group, a, b, steps);
        sums[..a.rows].fill([0; COLUMNS]);
        let mut w = Expanded::zero();
        for start in (0..steps.len()).step_by(BLOCK) {
            let count = BLOCK.min(steps.len() - start);
            let mut slots = [Slots::default(); BLOCK];
            for (i, slots) in slots[..count].iter_mut().enumerate() {
                let StepAt { a, a_slot, .. } = steps.at(start + i);
                *slots = Slots { codes: a, scales: a_slot };
            }
            // SAFETY: the steps are inside.
            unsafe { w.fill(b, steps, start..start + count) };
            for first in (0..a.rows).step_by(ROWS) {
                let part = Part { a, first, slots: &slots[..count], w: &w };
                // SAFETY: the slots are inside, and the rows are those of the tile.
                unsafe {
                    match ROWS.min(a.rows - first) {
                        1 => part.add::<1, 4>(0, sums),
                        2 => part.add::<2, 4>(0, sums),
                        3 => (0..2).for_each(|q| part.add::<3, 2>(2 * q, sums)),
                        _ => (0..2).for_each(|q| part.add::<4, 2>(2 * q, sums)),
                    }
                }
            }
        }
    }
}

/// The slots of A of a step.
#[derive(Debug, Clone, Copy, Default)]
struct Slots {
    codes: usize,
    scales: usize,
}

/// Some rows of a tile and an expanded block of chunks.
struct Part<'a> {
    a: TileView<'a>,
    /// The first of the rows.
    first: usize,
    /// The slots of the codes and of the scales of A, for each step of the block.
    slots: &'a [Slots],
    w: &'a Expanded,
}

/// `$body` for `$i` = 0, 1, ..., `$n` - 1, written out, so that sums stay in registers.
macro_rules! each {
    ($i:ident, $n:expr, $body:block) => {
        each!($i, $n, $body, 0 1 2 3);
    };
    ($i:ident, $n:expr, $body:block, $($value:literal)*) => {
        $(if $value < $n {
            const { assert!($n <= 4) };
            let $i = $value;
            $body
        })*
    };
}

impl Part<'_> {
    /// Adds the terms of R rows by 4 * Q columns, the quarters of the panel from `from` on.
    ///
    /// # Safety
    /// The slots and the R rows are inside the tile; `from` + Q is at most 4.
    unsafe fn add<const R: usize, const Q: usize>(&self, from: usize, sums: &mut Sums) {
        let (rows, sums) = (self.a.rows, &mut sums[self.first..self.first + R]);
        let mut acc = [[i32x4_splat(0); Q]; R];
        for (acc, sums) in acc.iter_mut().zip(&*sums) {
            for (q, acc) in acc.iter_mut().enumerate() {
                // SAFETY: four of 16 sums.
                *acc = unsafe { v128_load(sums.as_ptr().add(4 * (from + q)).cast()) };
            }
        }
        for (&Slots { codes: slot, scales: scale_slot }, w) in self.slots.iter().zip(&self.w.0) {
            for half in 0..2 {
                let mut scales = [i16x8_splat(0); R];
                each!(r, R, {
                    // SAFETY: the slot and the row are inside, by the caller.
                    let all =
                        unsafe { *self.a.scales.as_ptr().add(scale_slot * rows + self.first + r) };
                    scales[r] = i16x8_splat(all[half]);
                });
                for j in 0..2 {
                    let mut a = [i16x8_splat(0); R];
                    each!(r, R, {
                        let at = slot * STEPS * rows + 2 * ((2 * half + j) * rows + self.first + r);
                        // SAFETY: as above, eight bytes of the row.
                        let codes =
                            unsafe { i16x8_load_extend_i8x8(self.a.codes.as_ptr().add(at).cast()) };
                        a[r] = i16x8_mul(codes, scales[r]);
                    });
                    macro_rules! pair {
                        ($pair:literal) => {{
                            let mut columns = [i16x8_splat(0); Q];
                            each!(q, Q, {
                                columns[q] = w[from + q][half][4 * j + $pair];
                            });
                            each!(r, R, {
                                let a = i32x4_shuffle::<$pair, $pair, $pair, $pair>(a[r], a[r]);
                                each!(q, Q, {
                                    acc[r][q] =
                                        i32x4_add(acc[r][q], i32x4_dot_i16x8(columns[q], a));
                                });
                            });
                        }};
                    }
                    pair!(0);
                    pair!(1);
                    pair!(2);
                    pair!(3);
                }
            }
        }
        for (acc, sums) in acc.into_iter().zip(sums) {
            for (q, acc) in acc.into_iter().enumerate() {
                // SAFETY: four of 16 sums.
                unsafe { v128_store(sums.as_mut_ptr().add(4 * (from + q)).cast(), acc) };
            }
        }
    }
}
