//! The level of every aarch64 CPU: `smlal` sums products of bytes in 16 bits.

use std::arch::aarch64::*;

use super::matmul::{Level, Part, RowSums, Slots, each};

/// `smlal`.
#[derive(Debug)]
pub(super) struct Smlal;

impl Level for Smlal {
    const GROUP_ROWS: usize = 2;
    const BY_PAIRS: bool = false;

    #[target_feature(enable = "neon")]
    unsafe fn group<const R: usize>(part: &Part<'_>, sums: &mut RowSums<R>) {
        let mut acc = *sums;
        for (w, scales_b, Slots { codes: slot, scales: scale_slot }) in part.steps() {
            for half in 0..2 {
                let mut scales_a = [vdupq_n_s32(0); R];
                each!(r, R, at most 2, {
                    // SAFETY: the slot and the row are inside, by the caller.
                    scales_a[r] = unsafe { part.scale(scale_slot, half, r) };
                });
                // The steps of each row, four times each.
                let mut a = [[vdupq_n_s8(0); 4]; R];
                each!(k, R.div_ceil(2), at most 2, {
                    for j in 0..2 {
                        // SAFETY: as above.
                        let codes = unsafe { part.codes::<R>(slot, 2 * half + j, k) };
                        let codes = vreinterpretq_s32_s8(codes);
                        let steps = [
                            vreinterpretq_s8_s32(vdupq_laneq_s32::<0>(codes)),
                            vreinterpretq_s8_s32(vdupq_laneq_s32::<1>(codes)),
                            vreinterpretq_s8_s32(vdupq_laneq_s32::<2>(codes)),
                            vreinterpretq_s8_s32(vdupq_laneq_s32::<3>(codes)),
                        ];
                        a[2 * k][2 * j..][..2].copy_from_slice(&steps[..2]);
                        if 2 * k + 1 < R {
                            a[2 * k + 1][2 * j..][..2].copy_from_slice(&steps[2..]);
                        }
                    }
                });
                each!(q, 4, {
                    let w = &w[q][4 * half..][..4];
                    each!(r, R, at most 2, {
                        let a = &a[r];
                        let mut low = vmull_s8(vget_low_s8(w[0]), vget_low_s8(a[0]));
                        let mut high = vmull_high_s8(w[0], a[0]);
                        for step in 1..4 {
                            low = vmlal_s8(low, vget_low_s8(w[step]), vget_low_s8(a[step]));
                            high = vmlal_high_s8(high, w[step], a[step]);
                        }
                        // Four lanes to a column.
                        let dots = vpaddlq_s16(vpaddq_s16(low, high));
                        let scales = vmulq_s32(scales_b[half][q], scales_a[r]);
                        acc[r][q] = vmlaq_s32(acc[r][q], dots, scales);
                    });
                });
            }
        }
        *sums = acc;
    }
}
