//! Tile kernels with simd128: the group form for both formats. Where a tile has several rows, the
//! scales are multiplied into 16-bit operands, once for all of them:
//!
//! ```text
//! for each block of up to 8 steps (a chunk of A and one of B):
//!     w = the chunks of B times their scales, as i16,                  i8x16.swizzle, i16x8.mul
//!         4 columns x 2 k a vector
//!     for each up to 4 rows of the tile, by 8 or 16 columns:
//!         a = 8 codes of A times their scale                           i16x8.mul
//!         for each of its 4 pairs: sum += w . (the pair in all lanes)  i32x4.dot_i16x8_s
//! ```
//!
//! A tile of one row, which would expand each chunk for itself alone, multiplies unscaled codes,
//! and their dots by the scales, lanes (column, half) with two i16 each:
//!
//! ```text
//! for each step, each quarter of the columns, two columns and both halves at a time:
//!     dots = -12 * (sums of a)
//!     for low and high nibbles of two lines:
//!         w = table[code], u8 = v + 12                                i8x16.swizzle
//!         dots += w * a_even + (w >> 8) * (a_odd - 256 * a_even)      i16x8.mul, twice
//!     sum += dots . (s_a * s_b)                                       i32x4.dot_i16x8_s
//! ```
//!
//! A lane of w is w_even + 256 * w_odd, so the two products are w_even * a_even + w_odd * a_odd:
//! the even bytes need not be taken out of their lanes.
//!
//! No relaxed operation and no saturating one is used, so every engine computes the same (C9).
//!
//! # Why it is exact
//!
//! Doubled codes are at most 12, scaled scales of B at most 127 and of A at most 258: the operands
//! are at most 1524 and 3096, in i16, and a pair of products is below 2^24. A chunk sums to at most
//! 2 * 2304 * max_a * max_b, and the driver drains 32-bit sums in time ([`group_chunks`]).
//!
//! One row: i16 products and sums wrap, so the dots are right modulo 2^16, and each is a sum of
//! 8 products v * a, at most 8 * 144 = 1152. The product of scaled scales is at most 258 * 127 =
//! 32766, an i16; both i16 of a lane are multiplied by it and added in 32 bits, as above.
//!
//! With MXINT8 in A, elements of up to 128 are scaled by at most 32 to 4096, in i16; a pair of
//! products is below 2^24, a chunk sums to at most 32 * 128 * 12 * max_a * max_b ([`int8_chunks`]),
//! and a dot of one row is at most 8 * 128 * 12 = 12288, an i16.
//!
//! Worked example: code 5 (6 doubled) with a scaled scale of 3 and code 7 (12) with one of 2 are
//! 18 and 24; their product 432 is 6 * 12 * (3 * 2). One row, even and odd codes of B 6 and -2
//! doubled, of A 1 and 3: w is 18 + 256 * 10, and 2578 * 1 + 10 * (3 - 256) = 48, less 12 * (1 + 3)
//! is 0 = 6 * 1 - 2 * 3.
//!
//! [`group_chunks`]: crate::matmul::bounds::group_chunks
//! [`int8_chunks`]: crate::matmul::bounds::int8_chunks

use std::arch::wasm32::*;

use super::WasmSimd128;
use super::operand::{self, BLOCK, Expanded, RowChunk};
use crate::isa::Isa;
use crate::matmul::operand::{COLUMNS, Form, LINES, MAX_ROWS, STEPS};
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

    fn pack_int8(self, from: &[u8], at: RowOfTile, codes: &mut [i32], _: &mut [[i32; 2]]) {
        operand::pack_int8(from, at, codes);
    }

    fn group(self, a: TileView<'_>, b: PanelView<'_>, steps: Steps<'_>, sums: &mut Sums) {
        expect_inside(Form::Group, a, b, steps);
        if a.rows == 1 {
            // SAFETY: the steps are inside, and the tile has one row.
            unsafe { one_row(a, b, steps, &mut sums[0]) };
            return;
        }
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

/// The sums of a tile of one row.
///
/// # Safety
/// The steps are inside; `a` has one row.
unsafe fn one_row(a: TileView<'_>, b: PanelView<'_>, steps: Steps<'_>, sums: &mut [i32; COLUMNS]) {
    let mut acc = [[i32x4_splat(0); 2]; 4];
    for i in 0..steps.len() {
        let StepAt { a: slot, a_slot, b: chunk, b_slot } = steps.at(i);
        // SAFETY: the chunk of the row, that of the panel, and their scales are inside, by the
        // caller; line 2h + j of a chunk has 64 bytes, 16 of them for quarter q.
        unsafe {
            let row = RowChunk::load(a.codes.as_ptr().add(slot * STEPS));
            let scales_a = v128_load64_splat(a.scales.as_ptr().add(a_slot).cast());
            let scales_a = i16x8_shuffle::<0, 0, 1, 1, 0, 0, 1, 1>(scales_a, scales_a);
            let codes = b.codes.as_ptr().add(chunk * LINES).cast::<u8>();
            let scales = b.scales.as_ptr().add(b_slot * b.scale_bytes());
            each!(q, 4, {
                let scales_b = operand::quarter_scales(scales, b.groups, q);
                each!(h, 2, {
                    let dots = row.dots(codes.add(128 * h + 16 * q));
                    let scales = i16x8_mul(scales_a, scales_b[h]);
                    let terms = i32x4_dot_i16x8(dots, scales);
                    acc[q][h] = i32x4_add(acc[q][h], terms);
                });
            });
        }
    }
    for (acc, sums) in acc.into_iter().zip(sums.as_chunks_mut::<4>().0) {
        // Both halves of columns 0 and 1, then of 2 and 3.
        let [even, odd] = [
            i32x4_shuffle::<0, 2, 4, 6>(acc[0], acc[1]),
            i32x4_shuffle::<1, 3, 5, 7>(acc[0], acc[1]),
        ];
        // SAFETY: four sums.
        unsafe { v128_store(sums.as_mut_ptr().cast(), i32x4_add(even, odd)) };
    }
}
