//! MXINT8 activations by MXFP4 weights: the dot of each chunk, shifted by A's scale (C6, C10).
//!
//! ```text
//! any number of rows x 8 columns, for each chunk of 32 k:
//!     w[0..8] = as in the fold form: v + 128, B's scales in it
//!     for each row:
//!         d = -128 * sum(a) + w (u8) . a (s8)                     8 vpdpbusd
//!         sum[row] += d << shift of A's scale                     vpsllvd, vpaddd
//! ```
//!
//! The registers hold weights, and the sums stay in the first-level cache.
//!
//! # Why it is exact
//!
//! As in `avx512`: |v| <= 12 * max_b <= 96, a chunk's dot is at most 32 * 128 * 12 * max_b, A's
//! scale is a shift of at most 5 or, outside of the plane, 32, which leaves nothing; the driver
//! drains before n chunks can pass n * 32 * 128 * 12 * max_a * max_b < 2^31 ([`int8_chunks`]).
//!
//! [`int8_chunks`]: crate::matmul::bounds::int8_chunks

use std::arch::x86_64::*;

use super::AvxVnni;
use super::matmul::{HALF, fold_half_line, fold_scales};
use crate::kernels::x86::prefetch_chunk;
use crate::matmul::operand::{COLUMNS, Form, LINES, MAX_ROWS, STEPS};
use crate::matmul::{PanelView, StepAt, Steps, Sums, TileView, expect_inside};

/// See [`FoldKernels::int8`](crate::matmul::FoldKernels::int8).
pub(super) fn multiply(
    _proof: AvxVnni,
    a: TileView<'_>,
    b: PanelView<'_>,
    steps: Steps<'_>,
    sums: &mut Sums,
) {
    // The layout of A is that of the group form.
    expect_inside(Form::Group, a, b, steps);
    assert_eq!(b.groups, 1, "NVFP4 has the group form");
    assert!(a.rows <= MAX_ROWS);
    // SAFETY: the token proves the features; all steps are inside their buffers.
    unsafe { rows(a, b, steps, sums) };
}

/// # Safety
/// The CPU has the features; `a` has at most [`MAX_ROWS`] rows; the steps are inside the buffers.
#[target_feature(enable = "avx2,avxvnni")]
unsafe fn rows(a: TileView<'_>, b: PanelView<'_>, steps: Steps<'_>, sums: &mut Sums) {
    sums[..a.rows].fill([0; COLUMNS]);
    for i in 0..steps.len() {
        let StepAt { a: a_chunk, a_slot, b: b_chunk, b_slot } = steps.at(i);
        for half in 0..2 {
            // SAFETY: the step is inside, by the caller: its lines, 16 scale bytes, and codes, sums
            // and shifts of all rows.
            unsafe {
                let lines = b.codes.as_ptr().add(b_chunk * LINES);
                let scales = b.scales.as_ptr().add(b_slot * COLUMNS + HALF * half);
                if half == 0 {
                    prefetch_chunk(a.rows, lines, scales, COLUMNS);
                }
                let by = fold_scales(scales);
                let mut w = [_mm256_setzero_si256(); STEPS];
                for (j, w) in w.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                    *w = fold_half_line(lines.add(j), half, &by);
                }
                let mut rows = RowPointers {
                    codes: a.codes.as_ptr().add(a_chunk * STEPS * a.rows),
                    init: a.init.as_ptr().add(a_chunk * a.rows),
                    shifts: a.scales.as_ptr().add(a_slot * a.rows),
                    sums: sums.as_mut_ptr().cast::<i32>().add(HALF * half),
                };
                for _ in 0..a.rows / 2 {
                    rows.multiply::<2>(&w);
                }
                if !a.rows.is_multiple_of(2) {
                    rows.multiply::<1>(&w);
                }
            }
        }
    }
}

/// Where the next row's operands and sums are.
struct RowPointers {
    codes: *const i32,
    init: *const [i32; 2],
    shifts: *const [i16; 4],
    sums: *mut i32,
}

impl RowPointers {
    /// Adds a chunk's products to the sums of R rows, and goes on to the next: one row's chain of
    /// multiply-adds would wait for itself.
    ///
    /// # Safety
    /// The CPU has the features; the pointers have R rows, and their sums half a row to be written.
    #[inline]
    #[target_feature(enable = "avx2,avxvnni")]
    unsafe fn multiply<const R: usize>(&mut self, w: &[__m256i; STEPS]) {
        let mut dots = [_mm256_setzero_si256(); R];
        // SAFETY: it reads and writes inside, by the caller. A shift is the first four bytes of a
        // row's scales.
        unsafe {
            for (r, dot) in dots.iter_mut().enumerate() {
                *dot = _mm256_set1_epi32((*self.init.add(r))[0]);
            }
            for (step, &w) in w.iter().enumerate() {
                for (r, dot) in dots.iter_mut().enumerate() {
                    let a = _mm256_set1_epi32(*self.codes.add(r * STEPS + step));
                    *dot = _mm256_dpbusd_avx_epi32(*dot, w, a);
                }
            }
            for (r, &dot) in dots.iter().enumerate() {
                let shift = _mm256_set1_epi32(self.shifts.add(r).cast::<i32>().read());
                let to = self.sums.add(r * COLUMNS).cast::<__m256i>();
                let sum = _mm256_add_epi32(to.read_unaligned(), _mm256_sllv_epi32(dot, shift));
                to.write_unaligned(sum);
            }
        }
        self.codes = self.codes.wrapping_add(R * STEPS);
        self.init = self.init.wrapping_add(R);
        self.shifts = self.shifts.wrapping_add(R);
        self.sums = self.sums.wrapping_add(R * COLUMNS);
    }
}
