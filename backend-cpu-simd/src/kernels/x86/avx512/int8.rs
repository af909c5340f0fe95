//! MXINT8 activations by MXFP4 weights: the dot of each chunk, shifted by A's scale (C6, C10).
//!
//! ```text
//! R rows x 16 columns, for each chunk of 32 k:
//!     w[0..8] = table[code | shift << 4], as in the fold form: v + 128, B's scales in it
//!     for each row:
//!         d = -128 * sum(a) + w (u8) . a (s8)                     8 vpdpbusd, a broadcast from
//!         memory sum[row] += d << shift of A's scale                     vpsllvd, vpaddd
//! ```
//!
//! # Why it is exact
//!
//! v is a doubled code times B's scaled scale, |v| <= 12 * max_b <= 96, and w = v + 128 is a u8. A
//! chunk's dot is at most 32 * 128 * 12 * max_b, below 2^19; products are summed modulo 2^32, never
//! saturating, and the offset comes off in the accumulator's start. A's scale is 2^shift with shift
//! at most 5, or its group is outside of the plane and the shift is 32, for which `vpsllvd` gives
//! 0. So n chunks sum to at most
//!
//! ```text
//! n * 32 * 128 * 12 * max_a * max_b < 2^31        int8_chunks(max_a, max_b): n >= 170
//! ```
//!
//! and the driver drains in time ([`int8_chunks`]).
//!
//! Worked example: one element -128 under shift 2, code 7 with B's shift 3: w = 96 + 128, d = 16384
//! + 224 * -128 = -12288 = -128 * 96, and the sum gets -49152.
//!
//! [`int8_chunks`]: crate::matmul::bounds::int8_chunks

use std::arch::asm;
use std::arch::x86_64::*;

use super::Avx512;
use super::matmul::{each_row, fold_line, fold_scales};
use crate::kernels::x86::{prefetch, prefetch_chunk};
use crate::matmul::operand::{Form, LINES, Line, MAX_ROWS, STEPS};
use crate::matmul::{PanelView, StepAt, Steps, Sums, TileView, expect_inside};

/// See [`FoldKernels::int8`](crate::matmul::FoldKernels::int8).
pub(super) fn multiply(
    _proof: Avx512,
    a: TileView<'_>,
    b: PanelView<'_>,
    steps: Steps<'_>,
    sums: &mut Sums,
) {
    // The layout of A is that of the group form.
    expect_inside(Form::Group, a, b, steps);
    assert_eq!(b.groups, 1, "NVFP4 has the group form");
    // SAFETY: the token proves the features; all steps are inside their buffers; R is the tile's
    // number of rows.
    by_rows!(a.rows, rows(a, b, steps, sums),
        1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1, 7: 1, 8: 1, 9: 1, 10: 1, 11: 1, 12: 1, 13: 1, 14: 1,
        15: 1, 16: 1);
}

/// # Safety
/// The CPU has the features; R is the number of rows of `a`; the steps are inside the buffers.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn rows<const R: usize, const U: usize>(
    a: TileView<'_>,
    b: PanelView<'_>,
    steps: Steps<'_>,
    sums: &mut Sums,
) {
    const { assert!(U == 1) };
    let mut acc = [_mm512_setzero_si512(); R];
    for i in 0..steps.len() {
        let StepAt { a: a_chunk, a_slot, b: b_chunk, b_slot } = steps.at(i);
        // SAFETY: the step is inside, by the caller.
        unsafe {
            chunk(
                &mut acc,
                a.codes.as_ptr().add(a_chunk * STEPS * R),
                a.init.as_ptr().add(a_chunk * R),
                a.scales.as_ptr().add(a_slot * R),
                b.codes.as_ptr().add(b_chunk * LINES),
                b.scales.as_ptr().add(b_slot * 16),
            );
        }
    }
    for (sums, acc) in sums.iter_mut().zip(acc) {
        // SAFETY: a row of sums is 64 writable bytes.
        unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), acc) };
    }
}

/// Adds a chunk's products to the sums of row `$row`.
///
/// Written out, for the same reasons as the group form's.
macro_rules! one_row {
    ($row:ident, $acc:expr, $codes:ident, $init:ident, $shifts:ident, $w:ident) => {{
        let _d: __m512i;
        asm!(
            "vpbroadcastd {d}, [{init} + {o}]",
            "vpdpbusd {d}, {w0}, dword ptr [{codes} + {o_codes}]{{1to16}}",
            "vpdpbusd {d}, {w1}, dword ptr [{codes} + {o_codes} + 4]{{1to16}}",
            "vpdpbusd {d}, {w2}, dword ptr [{codes} + {o_codes} + 8]{{1to16}}",
            "vpdpbusd {d}, {w3}, dword ptr [{codes} + {o_codes} + 12]{{1to16}}",
            "vpdpbusd {d}, {w4}, dword ptr [{codes} + {o_codes} + 16]{{1to16}}",
            "vpdpbusd {d}, {w5}, dword ptr [{codes} + {o_codes} + 20]{{1to16}}",
            "vpdpbusd {d}, {w6}, dword ptr [{codes} + {o_codes} + 24]{{1to16}}",
            "vpdpbusd {d}, {w7}, dword ptr [{codes} + {o_codes} + 28]{{1to16}}",
            "vpsllvd {d}, {d}, dword ptr [{shifts} + {o}]{{1to16}}",
            "vpaddd {acc}, {acc}, {d}",
            acc = inout(zmm_reg) $acc, d = out(zmm_reg) _d,
            w0 = in(zmm_reg) $w[0], w1 = in(zmm_reg) $w[1], w2 = in(zmm_reg) $w[2],
            w3 = in(zmm_reg) $w[3], w4 = in(zmm_reg) $w[4], w5 = in(zmm_reg) $w[5],
            w6 = in(zmm_reg) $w[6], w7 = in(zmm_reg) $w[7],
            codes = in(reg) $codes, init = in(reg) $init, shifts = in(reg) $shifts,
            o_codes = const $row * 4 * STEPS, o = const $row * 8,
            options(readonly, nostack, preserves_flags),
        )
    }};
}

/// The same for two rows that follow each other; one row's chain of multiply-adds would wait for
/// itself.
macro_rules! two_rows {
    ($row:ident, $acc:expr, $next:expr, $codes:ident, $init:ident, $shifts:ident, $w:ident) => {{
        let (_d, _e): (__m512i, __m512i);
        asm!(
            "vpbroadcastd {d}, [{init} + {o}]",
            "vpbroadcastd {e}, [{init} + {o} + 8]",
            "vpdpbusd {d}, {w0}, dword ptr [{codes} + {o_codes}]{{1to16}}",
            "vpdpbusd {e}, {w0}, dword ptr [{codes} + {o_codes} + 32]{{1to16}}",
            "vpdpbusd {d}, {w1}, dword ptr [{codes} + {o_codes} + 4]{{1to16}}",
            "vpdpbusd {e}, {w1}, dword ptr [{codes} + {o_codes} + 36]{{1to16}}",
            "vpdpbusd {d}, {w2}, dword ptr [{codes} + {o_codes} + 8]{{1to16}}",
            "vpdpbusd {e}, {w2}, dword ptr [{codes} + {o_codes} + 40]{{1to16}}",
            "vpdpbusd {d}, {w3}, dword ptr [{codes} + {o_codes} + 12]{{1to16}}",
            "vpdpbusd {e}, {w3}, dword ptr [{codes} + {o_codes} + 44]{{1to16}}",
            "vpdpbusd {d}, {w4}, dword ptr [{codes} + {o_codes} + 16]{{1to16}}",
            "vpdpbusd {e}, {w4}, dword ptr [{codes} + {o_codes} + 48]{{1to16}}",
            "vpdpbusd {d}, {w5}, dword ptr [{codes} + {o_codes} + 20]{{1to16}}",
            "vpdpbusd {e}, {w5}, dword ptr [{codes} + {o_codes} + 52]{{1to16}}",
            "vpdpbusd {d}, {w6}, dword ptr [{codes} + {o_codes} + 24]{{1to16}}",
            "vpdpbusd {e}, {w6}, dword ptr [{codes} + {o_codes} + 56]{{1to16}}",
            "vpdpbusd {d}, {w7}, dword ptr [{codes} + {o_codes} + 28]{{1to16}}",
            "vpdpbusd {e}, {w7}, dword ptr [{codes} + {o_codes} + 60]{{1to16}}",
            "vpsllvd {d}, {d}, dword ptr [{shifts} + {o}]{{1to16}}",
            "vpaddd {acc}, {acc}, {d}",
            "vpsllvd {e}, {e}, dword ptr [{shifts} + {o} + 8]{{1to16}}",
            "vpaddd {next}, {next}, {e}",
            acc = inout(zmm_reg) $acc, next = inout(zmm_reg) $next,
            d = out(zmm_reg) _d, e = out(zmm_reg) _e,
            w0 = in(zmm_reg) $w[0], w1 = in(zmm_reg) $w[1], w2 = in(zmm_reg) $w[2],
            w3 = in(zmm_reg) $w[3], w4 = in(zmm_reg) $w[4], w5 = in(zmm_reg) $w[5],
            w6 = in(zmm_reg) $w[6], w7 = in(zmm_reg) $w[7],
            codes = in(reg) $codes, init = in(reg) $init, shifts = in(reg) $shifts,
            o_codes = const $row * 4 * STEPS, o = const $row * 8,
            options(readonly, nostack, preserves_flags),
        )
    }};
}

/// # Safety
/// The CPU has the features; the pointers have `STEPS * R` values, R sums, R shifts, `LINES` lines
/// and 16 scale bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn chunk<const R: usize>(
    acc: &mut [__m512i; R],
    codes: *const i32,
    init: *const [i32; 2],
    shifts: *const [i16; 4],
    lines: *const Line,
    scales_b: *const u8,
) {
    prefetch_chunk(R, lines, scales_b, 16);
    // SAFETY: 16 readable bytes, by the caller.
    let s = unsafe { fold_scales(scales_b) };
    let mut w = [_mm512_setzero_si512(); STEPS];
    for (j, w) in w.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        let line = lines.wrapping_add(j);
        // SAFETY: line j is inside, by the caller.
        *w = unsafe { fold_line(line, s) };
    }
    each_row!(R, r, {
        if r.is_multiple_of(2) {
            // The tile comes from the second-level cache: its line of two chunks ahead.
            prefetch::<_MM_HINT_T0>(codes.wrapping_add((2 * R + r) * STEPS).cast());
            if r.is_multiple_of(8) {
                prefetch::<_MM_HINT_T0>(init.wrapping_add(4 * R + r).cast());
                prefetch::<_MM_HINT_T0>(shifts.wrapping_add(4 * R + r).cast());
            }
            // SAFETY: rows r and, if there is one, r + 1 are inside, by the caller.
            unsafe {
                if r + 1 < R {
                    two_rows!(ROW, acc[r], acc[r + 1], codes, init, shifts, w);
                } else {
                    one_row!(ROW, acc[r], codes, init, shifts, w);
                }
            }
        }
    });
}
