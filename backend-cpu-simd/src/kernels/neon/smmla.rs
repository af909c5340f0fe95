//! The level `i8mm`: `smmla` multiplies eight bytes of each of two rows by eight bytes of each of
//! two columns, to four sums: row 0 with both columns, row 1 with both.

use std::arch::aarch64::*;
use std::arch::asm;

use super::matmul::{FoldLevel, Level, Part, RowSums, Slots, each};

/// `smmla`.
#[derive(Debug)]
pub(super) struct Smmla;

/// sum + a . w, of two rows by two columns.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn smmla(mut sum: int32x4_t, a: int8x16_t, w: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction reads and writes registers only; the feature is enabled.
    unsafe {
        asm!(
            "smmla {sum:v}.4s, {a:v}.16b, {w:v}.16b",
            sum = inout(vreg) sum, a = in(vreg) a, w = in(vreg) w,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// The lower halves of both, and the upper halves.
#[inline(always)]
fn zip([x, y]: [int32x4_t; 2]) -> [int32x4_t; 2] {
    // SAFETY: NEON is in every build for aarch64.
    unsafe {
        let (x, y) = (vreinterpretq_s64_s32(x), vreinterpretq_s64_s32(y));
        [vzip1q_s64(x, y), vzip2q_s64(x, y)].map(|v| vreinterpretq_s32_s64(v))
    }
}

/// Sums of up to three pairs of rows by eight pairs of columns.
type PairSums = [[int32x4_t; 8]; 3];

#[inline(always)]
fn to_pairs<const R: usize>(rows: &RowSums<R>) -> PairSums {
    // SAFETY: NEON is in every build for aarch64.
    let zero = unsafe { vdupq_n_s32(0) };
    let mut pairs = [[zero; 8]; 3];
    for k in 0..R.div_ceil(2) {
        for q in 0..4 {
            let second = if 2 * k + 1 < R { rows[2 * k + 1][q] } else { zero };
            [pairs[k][2 * q], pairs[k][2 * q + 1]] = zip([rows[2 * k][q], second]);
        }
    }
    pairs
}

#[inline(always)]
fn to_rows<const R: usize>(pairs: &PairSums, rows: &mut RowSums<R>) {
    for k in 0..R.div_ceil(2) {
        for q in 0..4 {
            let [first, second] = zip([pairs[k][2 * q], pairs[k][2 * q + 1]]);
            rows[2 * k][q] = first;
            if 2 * k + 1 < R {
                rows[2 * k + 1][q] = second;
            }
        }
    }
}

impl Level for Smmla {
    const GROUP_ROWS: usize = 4;
    const BY_PAIRS: bool = true;

    #[target_feature(enable = "neon,i8mm")]
    unsafe fn group<const R: usize>(part: &Part<'_>, sums: &mut RowSums<R>) {
        let mut acc = to_pairs(sums);
        for (w, scales_b, Slots { codes: slot, scales: scale_slot }) in part.steps() {
            each!(half, 2, {
                // For each pair of rows: twice the scale of the first, twice that of the second.
                // SAFETY: the slot and the rows are inside, by the caller.
                let scales_a = unsafe { part.scales::<R>(scale_slot, half) };
                let scales_a = [vzip1q_s32(scales_a, scales_a), vzip2q_s32(scales_a, scales_a)];
                let mut a = [[vdupq_n_s8(0); 2]; 2];
                each!(k, R.div_ceil(2), at most 2, {
                    // SAFETY: as above.
                    a[k] = unsafe {
                        [part.codes::<R>(slot, 2 * half, k), part.codes::<R>(slot, 2 * half + 1, k)]
                    };
                });
                each!(q, 4, {
                    let scales_b = zip([scales_b[half][q]; 2]);
                    each!(i, 2, {
                        each!(k, R.div_ceil(2), at most 2, {
                            let mut dots = vdupq_n_s32(0);
                            dots = smmla(dots, a[k][0], w[q][4 * half + i]);
                            dots = smmla(dots, a[k][1], w[q][4 * half + 2 + i]);
                            let scales = vmulq_s32(scales_a[k], scales_b[i]);
                            acc[k][2 * q + i] = vmlaq_s32(acc[k][2 * q + i], dots, scales);
                        });
                    });
                });
            });
        }
        to_rows(&acc, sums);
    }
}

impl FoldLevel for Smmla {
    const FOLD_ROWS: usize = 6;

    #[target_feature(enable = "neon,i8mm")]
    unsafe fn fold<const R: usize>(part: &Part<'_>, sums: &mut RowSums<R>) {
        let mut acc = to_pairs(sums);
        for (w, _, Slots { codes: slot, .. }) in part.steps() {
            for j in 0..4 {
                let mut a = [vdupq_n_s8(0); 3];
                each!(k, R.div_ceil(2), at most 3, {
                    // SAFETY: the slot and the rows are inside, by the caller.
                    a[k] = unsafe { part.codes::<R>(slot, j, k) };
                });
                each!(q, 4, {
                    each!(k, R.div_ceil(2), at most 3, {
                        acc[k][2 * q] = smmla(acc[k][2 * q], a[k], w[q][2 * j]);
                        acc[k][2 * q + 1] = smmla(acc[k][2 * q + 1], a[k], w[q][2 * j + 1]);
                    });
                });
            }
        }
        to_rows(&acc, sums);
    }

    #[target_feature(enable = "neon,i8mm")]
    unsafe fn int8<const R: usize>(part: &Part<'_>, sums: &mut RowSums<R>) {
        let mut acc = to_pairs(sums);
        for (w, _, Slots { codes: slot, scales: scale_slot }) in part.steps() {
            // For each pair of rows: twice the shift of the first, twice that of the second.
            let mut shifts = [vdupq_n_s32(0); 2];
            let mut a = [[vdupq_n_s8(0); 4]; 2];
            each!(k, R.div_ceil(2), at most 2, {
                // SAFETY: the slot and the rows are inside, by the caller.
                let (c, d) = unsafe {
                    let second = (2 * k + 1).min(R - 1);
                    (part.scale(scale_slot, 0, 2 * k), part.scale(scale_slot, 0, second))
                };
                shifts[k] = zip([c, d])[0];
                each!(j, 4, {
                    // SAFETY: as above.
                    a[k][j] = unsafe { part.codes::<R>(slot, j, k) };
                });
            });
            each!(q, 4, {
                each!(i, 2, {
                    each!(k, R.div_ceil(2), at most 2, {
                        let mut dots = vdupq_n_s32(0);
                        each!(j, 4, {
                            dots = smmla(dots, a[k][j], w[q][2 * j + i]);
                        });
                        // A shift of 32 leaves nothing.
                        let shifted = vshlq_s32(dots, shifts[k]);
                        acc[k][2 * q + i] = vaddq_s32(acc[k][2 * q + i], shifted);
                    });
                });
            });
        }
        to_rows(&acc, sums);
    }
}
