//! The level `dotprod`: `sdot` multiplies four bytes of each of four columns by the four bytes of
//! one row's step, which is a lane of A.

use std::arch::aarch64::*;
use std::arch::asm;

use super::matmul::{FoldLevel, Level, Part, RowSums, Slots, each};

/// `sdot`.
#[derive(Debug)]
pub(super) struct Sdot;

/// sum + w . a, a being lane `lane`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot(mut sum: int32x4_t, w: int8x16_t, a: int8x16_t, lane: usize) -> int32x4_t {
    macro_rules! sdot {
        ($lane:literal) => {
            // SAFETY: the instruction reads and writes registers only; the feature is enabled.
            unsafe {
                asm!(
                    concat!("sdot {sum:v}.4s, {w:v}.16b, {a:v}.4b[", $lane, "]"),
                    sum = inout(vreg) sum, w = in(vreg) w, a = in(vreg) a,
                    options(pure, nomem, nostack, preserves_flags),
                )
            }
        };
    }
    match lane {
        0 => sdot!(0),
        1 => sdot!(1),
        2 => sdot!(2),
        _ => sdot!(3),
    }
    sum
}

impl Level for Sdot {
    const GROUP_ROWS: usize = 4;
    const BY_PAIRS: bool = false;

    #[target_feature(enable = "neon,dotprod")]
    unsafe fn group<const R: usize>(part: &Part<'_>, sums: &mut RowSums<R>) {
        let mut acc = *sums;
        for (w, scales_b, Slots { codes: slot, scales: scale_slot }) in part.steps() {
            for half in 0..2 {
                let mut scales_a = [vdupq_n_s32(0); R];
                each!(r, R, at most 4, {
                    // SAFETY: the slot and the row are inside, by the caller.
                    scales_a[r] = unsafe { part.scale(scale_slot, half, r) };
                });
                let mut a = [[vdupq_n_s8(0); 2]; 2];
                each!(k, R.div_ceil(2), at most 2, {
                    // SAFETY: as above.
                    a[k] = unsafe {
                        [part.codes::<R>(slot, 2 * half, k), part.codes::<R>(slot, 2 * half + 1, k)]
                    };
                });
                each!(q, 4, {
                    let w = &w[q][4 * half..][..4];
                    each!(r, R, at most 4, {
                        let (a, lane) = (&a[r / 2], r % 2 * 2);
                        let mut dots = vdupq_n_s32(0);
                        dots = sdot(dots, w[0], a[0], lane);
                        dots = sdot(dots, w[1], a[0], lane + 1);
                        dots = sdot(dots, w[2], a[1], lane);
                        dots = sdot(dots, w[3], a[1], lane + 1);
                        let scales = vmulq_s32(scales_b[half][q], scales_a[r]);
                        acc[r][q] = vmlaq_s32(acc[r][q], dots, scales);
                    });
                });
            }
        }
        *sums = acc;
    }
}

impl FoldLevel for Sdot {
    const FOLD_ROWS: usize = 6;

    #[target_feature(enable = "neon,dotprod")]
    unsafe fn fold<const R: usize>(part: &Part<'_>, sums: &mut RowSums<R>) {
        let mut acc = *sums;
        for (w, _, Slots { codes: slot, .. }) in part.steps() {
            for j in 0..4 {
                let mut a = [vdupq_n_s8(0); 3];
                each!(k, R.div_ceil(2), at most 3, {
                    // SAFETY: the slot and the rows are inside, by the caller.
                    a[k] = unsafe { part.codes::<R>(slot, j, k) };
                });
                each!(q, 4, {
                    each!(r, R, at most 6, {
                        let sum = sdot(acc[r][q], w[q][2 * j], a[r / 2], r % 2 * 2);
                        acc[r][q] = sdot(sum, w[q][2 * j + 1], a[r / 2], r % 2 * 2 + 1);
                    });
                });
            }
        }
        *sums = acc;
    }

    #[target_feature(enable = "neon,dotprod")]
    unsafe fn int8<const R: usize>(part: &Part<'_>, sums: &mut RowSums<R>) {
        let mut acc = *sums;
        for (w, _, Slots { codes: slot, scales: scale_slot }) in part.steps() {
            let mut shifts = [vdupq_n_s32(0); R];
            each!(r, R, at most 4, {
                // SAFETY: the slot and the row are inside, by the caller.
                shifts[r] = unsafe { part.scale(scale_slot, 0, r) };
            });
            let mut a = [[vdupq_n_s8(0); 4]; 2];
            each!(k, R.div_ceil(2), at most 2, {
                each!(j, 4, {
                    // SAFETY: as above.
                    a[k][j] = unsafe { part.codes::<R>(slot, j, k) };
                });
            });
            each!(q, 4, {
                each!(r, R, at most 4, {
                    let (a, lane) = (&a[r / 2], r % 2 * 2);
                    let mut dots = vdupq_n_s32(0);
                    each!(j, 4, {
                        dots = sdot(dots, w[q][2 * j], a[j], lane);
                        dots = sdot(dots, w[q][2 * j + 1], a[j], lane + 1);
                    });
                    // A shift of 32 leaves nothing.
                    acc[r][q] = vaddq_s32(acc[r][q], vshlq_s32(dots, shifts[r]));
                });
            });
        }
        *sums = acc;
    }
}
