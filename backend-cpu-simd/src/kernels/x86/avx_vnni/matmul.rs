//! Tile kernels on AVX2 with AVX-VNNI, the dot-product instructions on 256 bits (C6).
//!
//! One ymm holds 8 columns, half a panel.
//!
//! ```text
//! fold, R rows x 8 columns, for each chunk of 32 k:
//!     s = shift << 4 | 0xF of each column, in 32 bits                 vpmovzxbd
//!     for each of 4 half lines of codes:
//!         w = (table[code] << shift) + 128 - (12 << shift), low nibbles, then high
//!                                                                    vpand, vpshufb, vpsllvd, vpaddb
//!         for each row: sum[row] += w (u8) . a[row][step] (s8)       vpdpbusd, a broadcast from memory
//! fold by pairs, many rows: w is written once, as bytes, for some chunks of two panels and all tiles of a block;
//!     R rows x 16 columns, for each step: sum[row][0, 1] += w[0, 1] . a[row][step]
//! group, any number of rows x 8 columns, for each chunk:
//!     w[0..8] = table[code]: 2 sets of 4 columns x 2 halves, 4 steps
//!     for each row:
//!         d0, d1 = -12 * sum(a) + w . a, a set each                  8 vpdpbusd
//!         sum[row] += pack16(d0, d1) . (s_a * s_b), pairs of halves  vpackssdw, vpmullw, vpdpwssd
//! ```
//!
//! The fold form takes a panel in two passes, so that the sums of eight rows fit the sixteen
//! registers. In the group form the registers hold weights, and the sums stay in the first-level
//! cache: one load and one store for eight `vpdpbusd`.
//!
//! # Why it is exact
//!
//! *Fold.* The table holds v + 12 in 0..=24 for v a doubled code. A shift of 0..=3 keeps each below
//! 24 << 3 = 192 < 256, so the 32-bit shift carries nothing from one byte into the next, and `(v +
//! 12 << s) + 128 - (12 << s) = (v << s) + 128` is in 32..=224. A group outside the plane has scale
//! byte 0: code 0 and shift 0, that is 128. From here it is the sum of `avx512`: u8 times s8
//! products, |v << s| <= 96 and |a| <= 96, summed modulo 2^32, never saturating (`vpdpbusd`, not
//! `vpdpbusds`); the driver takes 128 * sum(a) away, and n <= [`FOLD_CHUNKS`] chunks have a true
//! sum below 2^31.
//!
//! *Group.* As in `avx512`: a half's dot is at most 16 * 144 = 2304 and fits the i16 of
//! `vpackssdw`; the product of scaled scales is at most 258 * 127 = 32766 and fits the i16 of
//! `vpmullw`; the driver drains in time ([`group_chunks`]).
//!
//! *MXINT8 by NVFP4* is the group form with elements for codes: as in `avx512`, a half's dot is at
//! most 16 * 128 * 12 = 24576, an i16. MXINT8 by MXFP4 is in `int8`.
//!
//! Worked example, fold: code 0xF with shift 3 is -12 * 8 = -96; the table gives 0, shifted 0, plus
//! 128 - 96: w = 32 = -96 + 128.
//!
//! [`FOLD_CHUNKS`]: crate::matmul::bounds::FOLD_CHUNKS
//! [`group_chunks`]: crate::matmul::bounds::group_chunks

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

use super::{AvxVnni, int8};
use crate::isa::Isa;
use crate::kernels::x86::avx2::matmul as avx2;
use crate::kernels::x86::{operand, prefetch, prefetch_chunk};
use crate::matmul::operand::{COLUMNS, Form, LINES, Line, MAX_ROWS, STEPS};
use crate::matmul::rounding::Rounding;
use crate::matmul::{
    FoldKernels, FoldTile, Kernels, OutputTile, PairKernels, PanelView, RowOfTile, StepAt, Steps,
    Sums, TileView, Units, expect_inside,
};
use crate::quantize::FloatValue;

/// Columns of a pass.
pub(super) const HALF: usize = COLUMNS / 2;
/// Rows of the largest tile in the fold form.
const FOLD_ROWS: usize = 8;
/// Rows of the largest tile by expanded panels: 12 sums.
const PAIR_ROWS: usize = 6;
/// Panels are expanded for more rows of A than this.
const PAIRS_FROM: usize = 3 * FOLD_ROWS;
/// Chunks of a tile and a panel that the first-level cache holds: 16 KB.
const BLOCK: usize = 32;

impl Kernels for AvxVnni {
    const ISA: Isa = Isa::AvxVnni;
    const GROUP_ROWS: usize = MAX_ROWS;
    const BY_HALVES: bool = false;
    type Fold = Self;

    #[inline(always)]
    fn fold_kernels(self) -> Option<Self> {
        Some(self)
    }

    fn enter<R>(self, f: impl FnOnce() -> R) -> R {
        self.0.enter(f)
    }

    fn pack_group(self, from: &[u8], at: RowOfTile, codes: &mut [i32], init: &mut [[i32; 2]]) {
        // SAFETY: `self` proves AVX2.
        unsafe { operand::group(from, at, false, codes, init) }
    }

    fn pack_int8(self, from: &[u8], at: RowOfTile, codes: &mut [i32], init: &mut [[i32; 2]]) {
        // SAFETY: `self` proves AVX2.
        unsafe { operand::group_int8(from, at, false, codes, init) }
    }

    fn group(self, a: TileView<'_>, b: PanelView<'_>, steps: Steps<'_>, sums: &mut Sums) {
        expect_inside(Form::Group, a, b, steps);
        assert_eq!(b.groups, 2, "MXFP4 has the fold form");
        assert!(a.rows <= MAX_ROWS);
        // SAFETY: `self` proves the features; all steps are inside their buffers.
        unsafe { group_rows(a, b, steps, sums) };
    }

    #[inline(always)]
    fn add_shifted(
        self,
        from: &[i32; COLUMNS],
        correction: i32,
        shift: u32,
        column_shifts: &[u32; COLUMNS],
        to: &mut [i64; COLUMNS],
    ) {
        self.0.add_shifted(from, correction, shift, column_shifts, to);
    }

    #[inline(always)]
    fn round_sums<T: FloatValue>(self, sums: &Sums, by: &Rounding<'_>, out: OutputTile<'_, T>) {
        self.0.round_sums(sums, by, out);
    }

    #[inline(always)]
    fn round_units<T: FloatValue>(self, units: &Units, by: &Rounding<'_>, out: OutputTile<'_, T>) {
        self.0.round_units(units, by, out);
    }
}

impl FoldKernels for AvxVnni {
    const OFFSET: i32 = 128;
    type Pairs = Self;

    fn pair_kernels(self, m: usize) -> Option<Self> {
        (m > PAIRS_FROM).then_some(self)
    }

    fn rows(self, m: usize) -> usize {
        if self.pair_kernels(m).is_some() { PAIR_ROWS } else { FOLD_ROWS }
    }

    fn pack_fold(
        self,
        from: FoldTile<'_>,
        codes: &mut [i32],
        sums: &mut [i32],
        totals: &mut [i32; MAX_ROWS],
    ) {
        // SAFETY: `self` proves AVX2.
        unsafe { operand::fold(from, codes, sums, totals) }
    }

    fn pack_int8(self, from: &[u8], at: RowOfTile, codes: &mut [i32], init: &mut [[i32; 2]]) {
        // SAFETY: `self` proves AVX2.
        unsafe { operand::fold_int8(from, at, codes, init) }
    }

    fn int8(self, a: TileView<'_>, b: PanelView<'_>, steps: Steps<'_>, sums: &mut Sums) {
        int8::multiply(self, a, b, steps, sums);
    }

    fn fold(self, a: TileView<'_>, b: PanelView<'_>, steps: Steps<'_>, sums: &mut Sums) {
        expect_inside(Form::Fold, a, b, steps);
        // SAFETY: `self` proves the features; all steps are inside their buffers; R is the
        // tile's number of rows.
        by_rows!(a.rows, fold_rows(a, b, steps, sums),
            1: 4, 2: 4, 3: 2, 4: 2, 5: 1, 6: 1, 7: 1, 8: 1);
    }
}

impl PairKernels for AvxVnni {
    fn expand(self, b: PanelView<'_>, chunks: Range<usize>, half: usize, to: &mut [Line]) {
        assert!(chunks.end * LINES <= b.codes.len() && chunks.end * COLUMNS <= b.scales.len());
        assert!(chunks.len() * 2 * STEPS <= to.len() && half < 2);
        // SAFETY: `self` proves the features; chunks and lines are inside, as asserted.
        unsafe { expand(b, chunks, half, to) }
    }

    fn fold_pair(
        self,
        a: TileView<'_>,
        b: &[Line],
        next: &[Line],
        add: bool,
        sums: &mut [Sums; 2],
    ) {
        assert!(a.codes.len() * 2 <= b.len() * a.rows);
        for (half, sums) in sums.iter_mut().enumerate() {
            let next = if half == 0 { next } else { &[] };
            // SAFETY: `self` proves the features; B has as many chunks as A; R is the tile's
            // number of rows.
            by_rows!(a.rows, panel_rows(a, b, half, next, add, sums),
                1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1);
        }
    }
}

/// # Safety
/// The CPU has the features; R is the number of rows of `a`; the steps are inside the buffers.
#[target_feature(enable = "avx2,avxvnni")]
unsafe fn fold_rows<const R: usize, const U: usize>(
    a: TileView<'_>,
    b: PanelView<'_>,
    steps: Steps<'_>,
    sums: &mut Sums,
) {
    const { assert!(R <= FOLD_ROWS) };
    let mut acc = [[_mm256_setzero_si256(); R]; 2];
    for start in (0..steps.len()).step_by(BLOCK) {
        let block = start..steps.len().min(start + BLOCK);
        for (half, acc) in acc.iter_mut().enumerate() {
            // SAFETY: as the caller says.
            unsafe { fold_half::<R, U>(a, b, steps, block.clone(), half, acc) };
        }
    }
    for (half, acc) in acc.iter().enumerate() {
        for (sums, &acc) in sums.iter_mut().zip(acc) {
            // SAFETY: half a row of sums is 32 writable bytes.
            unsafe { _mm256_storeu_si256(sums.as_mut_ptr().add(HALF * half).cast(), acc) };
        }
    }
}

/// Adds the steps `block` of half the columns to `sums`.
///
/// # Safety
/// As [`fold_rows`].
#[inline(never)]
#[target_feature(enable = "avx2,avxvnni")]
unsafe fn fold_half<const R: usize, const U: usize>(
    a: TileView<'_>,
    b: PanelView<'_>,
    steps: Steps<'_>,
    block: Range<usize>,
    half: usize,
    sums: &mut [__m256i; R],
) {
    let mut acc = [[_mm256_setzero_si256(); R]; U];
    acc[0] = *sums;
    for i in block {
        let StepAt { a_slot, b: b_chunk, b_slot, .. } = steps.at(i);
        // SAFETY: the step is inside, by the caller: its lines, 16 scale bytes and codes of R rows.
        unsafe {
            let lines = b.codes.as_ptr().add(b_chunk * LINES);
            let scales = b.scales.as_ptr().add(b_slot * COLUMNS + HALF * half);
            if half == 0 {
                prefetch_chunk(R, lines, scales, COLUMNS);
            }
            let by = fold_scales(scales);
            let codes = a.codes.as_ptr().add(a_slot * STEPS * R);
            for j in 0..LINES {
                let line = lines.add(j);
                let w = fold_half_line(line, half, &by);
                for (step, w) in (2 * j..).zip(w) {
                    for (r, acc) in acc[step % U].iter_mut().enumerate() {
                        let a = _mm256_set1_epi32(*codes.add(step * R + r));
                        *acc = _mm256_dpbusd_avx_epi32(*acc, w, a);
                    }
                }
            }
        }
    }
    for (r, sum) in sums.iter_mut().enumerate() {
        *sum = acc[1..].iter().fold(acc[0][r], |sum, acc| _mm256_add_epi32(sum, acc[r]));
    }
}

/// What 8 columns' codes become weights by.
pub(super) struct FoldScales {
    /// 0xF in each byte of the columns that have the group in the plane.
    mask: __m256i,
    /// The shifts, each in 32 bits.
    shift: __m256i,
    /// 128 - (12 << shift), in each byte.
    offset: __m256i,
}

/// # Safety
/// The CPU has AVX2; `s` points to 8 scale bytes.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn fold_scales(s: *const u8) -> FoldScales {
    // SAFETY: 8 readable bytes, by the caller.
    let s = _mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(s.cast()) });
    let four = _mm256_setr_epi8(
        0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12, 0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12,
        12, 12, 12,
    );
    let mask = _mm256_and_si256(_mm256_shuffle_epi8(s, four), _mm256_set1_epi8(0xF));
    let shift = _mm256_srli_epi32::<4>(s);
    let offsets = |shift: i32| i32::from_ne_bytes([(128 - (12 << shift)) as u8; 4]);
    let [o, p, q, r] = [0, 1, 2, 3].map(offsets);
    let offset = _mm256_permutevar8x32_epi32(_mm256_setr_epi32(o, p, q, r, o, p, q, r), shift);
    FoldScales { mask, shift, offset }
}

/// The weights of half a line, v + 128, of its low nibbles and its high ones.
///
/// # Safety
/// The CPU has AVX2; `line` points to a line.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn fold_half_line(
    line: *const Line,
    half: usize,
    by: &FoldScales,
) -> [__m256i; 2] {
    // SAFETY: the half is inside, by the caller.
    let codes = unsafe { line.cast::<__m256i>().add(half).read() };
    let table = avx2::table();
    [codes, _mm256_srli_epi16::<4>(codes)].map(|codes| {
        let v = _mm256_shuffle_epi8(table, _mm256_and_si256(codes, by.mask));
        _mm256_add_epi8(_mm256_sllv_epi32(v, by.shift), by.offset)
    })
}

/// # Safety
/// The CPU has the features; the chunks are inside `b` and fit `to`.
#[target_feature(enable = "avx2,avxvnni")]
unsafe fn expand(b: PanelView<'_>, chunks: Range<usize>, half: usize, to: &mut [Line]) {
    let mut to = to.as_mut_ptr().wrapping_add(half);
    for chunk in chunks {
        // SAFETY: the chunk is inside, by the caller.
        unsafe {
            let scales = b.scales.as_ptr().add(chunk * COLUMNS);
            let by = [fold_scales(scales), fold_scales(scales.add(HALF))];
            for j in 0..LINES {
                let line = b.codes.as_ptr().add(chunk * LINES + j);
                for (columns, by) in by.iter().enumerate() {
                    let [low, high] = fold_half_line(line, columns, by);
                    to.cast::<__m256i>().add(columns).write(low);
                    to.add(2).cast::<__m256i>().add(columns).write(high);
                }
                to = to.wrapping_add(4);
            }
        }
    }
}

/// All slots of plane 0 with one of two expanded panels: every other line of `b`.
///
/// # Safety
/// The CPU has the features; R is the number of rows of `a`; `b` has its chunks.
#[target_feature(enable = "avx2,avxvnni")]
unsafe fn panel_rows<const R: usize, const U: usize>(
    a: TileView<'_>,
    b: &[Line],
    half: usize,
    next: &[Line],
    add: bool,
    sums: &mut Sums,
) {
    const { assert!(U == 1 && R <= PAIR_ROWS) };
    let mut acc = [[_mm256_setzero_si256(); R]; 2];
    if add {
        for (half, acc) in acc.iter_mut().enumerate() {
            for (acc, sums) in acc.iter_mut().zip(&*sums) {
                // SAFETY: half a row of sums is 32 readable bytes.
                *acc = unsafe { _mm256_loadu_si256(sums.as_ptr().add(HALF * half).cast()) };
            }
        }
    }
    let (mut pa, mut pb) = (a.codes.as_ptr(), b.as_ptr().wrapping_add(half));
    let chunks = a.codes.len() / (STEPS * R);
    let (mut next, each) = (next.as_ptr(), next.len().div_ceil(chunks.max(1)));
    for _ in 0..chunks {
        for _ in 0..each {
            prefetch::<_MM_HINT_T1>(next.cast());
            next = next.wrapping_add(1);
        }
        for _ in 0..STEPS {
            // SAFETY: the step is inside, by the caller.
            unsafe {
                let w = pb.cast::<[__m256i; 2]>().read();
                let [first, second] = &mut acc;
                for (r, (first, second)) in first.iter_mut().zip(second).enumerate() {
                    let a = _mm256_set1_epi32(*pa.add(r));
                    *first = _mm256_dpbusd_avx_epi32(*first, w[0], a);
                    *second = _mm256_dpbusd_avx_epi32(*second, w[1], a);
                }
                (pa, pb) = (pa.add(R), pb.wrapping_add(2));
            }
        }
    }
    for (half, acc) in acc.iter().enumerate() {
        for (sums, &acc) in sums.iter_mut().zip(acc) {
            // SAFETY: half a row of sums is 32 writable bytes.
            unsafe { _mm256_storeu_si256(sums.as_mut_ptr().add(HALF * half).cast(), acc) };
        }
    }
}

/// # Safety
/// The CPU has the features; `a` has at most [`MAX_ROWS`] rows; the steps are inside the buffers.
#[target_feature(enable = "avx2,avxvnni")]
unsafe fn group_rows(a: TileView<'_>, b: PanelView<'_>, steps: Steps<'_>, sums: &mut Sums) {
    sums[..a.rows].fill([0; COLUMNS]);
    for i in 0..steps.len() {
        let StepAt { a: a_chunk, a_slot, b: b_chunk, b_slot } = steps.at(i);
        for half in 0..2 {
            // SAFETY: the step is inside, by the caller: its lines, 32 scale bytes, and codes, sums
            // and scales of all rows.
            unsafe {
                let lines = b.codes.as_ptr().add(b_chunk * LINES);
                let scales_b = b.scales.as_ptr().add(b_slot * 2 * COLUMNS + COLUMNS * half);
                if half == 0 {
                    prefetch_chunk(a.rows, lines, scales_b, 2 * COLUMNS);
                }
                let w = [avx2::weights(lines, half), avx2::weights(lines.add(2), half)];
                let scales_b = _mm256_cvtepi8_epi16(_mm_loadu_si128(scales_b.cast()));
                let mut rows = RowPointers {
                    codes: a.codes.as_ptr().add(a_chunk * STEPS * a.rows),
                    init: a.init.as_ptr().add(a_chunk * a.rows),
                    scales: a.scales.as_ptr().add(a_slot * a.rows),
                    sums: sums.as_mut_ptr().cast::<i32>().add(HALF * half),
                };
                for _ in 0..a.rows / 2 {
                    rows.multiply_two(&w, scales_b);
                }
                if !a.rows.is_multiple_of(2) {
                    rows.multiply_one(&w, scales_b);
                }
            }
        }
    }
}

/// Where the next row's operands and sums are.
struct RowPointers {
    codes: *const i32,
    init: *const [i32; 2],
    scales: *const [i16; 4],
    sums: *mut i32,
}

/// Lines of assembly that compute the dots of 8 columns by two halves, pack them to i16, multiply
/// by the product of the scales and add to the sums in memory, for the row at `$i` from the
/// pointers.
///
/// Written out, because from intrinsics LLVM keeps sums of many rows in registers that there are
/// not, and takes `vpdpwssd` apart.
macro_rules! rows_of_group {
    ($self:ident, $w:ident, $scales_b:ident, $count:literal, $($line:literal),*) => {{
        let (_d, _e, _f, _g, _c): (__m256i, __m256i, __m256i, __m256i, __m256i);
        asm!(
            $($line,)*
            d = out(ymm_reg) _d, e = out(ymm_reg) _e, f = out(ymm_reg) _f, g = out(ymm_reg) _g,
            c = out(ymm_reg) _c,
            w00 = in(ymm_reg) $w[0][0], w01 = in(ymm_reg) $w[0][1],
            w02 = in(ymm_reg) $w[0][2], w03 = in(ymm_reg) $w[0][3],
            w10 = in(ymm_reg) $w[1][0], w11 = in(ymm_reg) $w[1][1],
            w12 = in(ymm_reg) $w[1][2], w13 = in(ymm_reg) $w[1][3],
            scales_b = in(ymm_reg) $scales_b,
            codes = in(reg) $self.codes, init = in(reg) $self.init, scales = in(reg) $self.scales,
            sums = in(reg) $self.sums,
            options(nostack, preserves_flags),
        );
        $self.codes = $self.codes.wrapping_add($count * STEPS);
        $self.init = $self.init.wrapping_add($count);
        $self.scales = $self.scales.wrapping_add($count);
        $self.sums = $self.sums.wrapping_add($count * COLUMNS);
    }};
}

impl RowPointers {
    /// Adds a chunk's products to the sums of one row, and goes on to the next.
    ///
    /// # Safety
    /// The CPU has the features; the pointers have a row, and its sums half a row to be written.
    #[inline]
    #[target_feature(enable = "avx2,avxvnni")]
    unsafe fn multiply_one(&mut self, w: &[[__m256i; 4]; 2], scales_b: __m256i) {
        // SAFETY: it reads and writes inside, by the caller.
        unsafe {
            rows_of_group!(
                self,
                w,
                scales_b,
                1,
                "vpbroadcastq {d}, [{init}]",
                "vmovdqa {e}, {d}",
                "vpbroadcastq {c}, [{codes}]",
                "vpbroadcastq {f}, [{codes} + 8]",
                "{{vex}} vpdpbusd {d}, {w00}, {c}",
                "{{vex}} vpdpbusd {e}, {w10}, {c}",
                "{{vex}} vpdpbusd {d}, {w01}, {f}",
                "{{vex}} vpdpbusd {e}, {w11}, {f}",
                "vpbroadcastq {c}, [{codes} + 16]",
                "vpbroadcastq {g}, [{codes} + 24]",
                "{{vex}} vpdpbusd {d}, {w02}, {c}",
                "{{vex}} vpdpbusd {e}, {w12}, {c}",
                "{{vex}} vpdpbusd {d}, {w03}, {g}",
                "{{vex}} vpdpbusd {e}, {w13}, {g}",
                "vpbroadcastd {c}, [{scales}]",
                "vpmullw {c}, {c}, {scales_b}",
                "vpackssdw {d}, {d}, {e}",
                "vmovdqu {e}, [{sums}]",
                "{{vex}} vpdpwssd {e}, {d}, {c}",
                "vmovdqu [{sums}], {e}"
            );
        }
    }

    /// The same for two rows: one row's chain of multiply-adds would wait for itself.
    ///
    /// # Safety
    /// As [`multiply_one`](Self::multiply_one), two rows.
    #[inline]
    #[target_feature(enable = "avx2,avxvnni")]
    unsafe fn multiply_two(&mut self, w: &[[__m256i; 4]; 2], scales_b: __m256i) {
        // SAFETY: it reads and writes inside, by the caller.
        unsafe {
            rows_of_group!(
                self,
                w,
                scales_b,
                2,
                "vpbroadcastq {d}, [{init}]",
                "vmovdqa {e}, {d}",
                "vpbroadcastq {f}, [{init} + 8]",
                "vmovdqa {g}, {f}",
                "vpbroadcastq {c}, [{codes}]",
                "{{vex}} vpdpbusd {d}, {w00}, {c}",
                "{{vex}} vpdpbusd {e}, {w10}, {c}",
                "vpbroadcastq {c}, [{codes} + 32]",
                "{{vex}} vpdpbusd {f}, {w00}, {c}",
                "{{vex}} vpdpbusd {g}, {w10}, {c}",
                "vpbroadcastq {c}, [{codes} + 8]",
                "{{vex}} vpdpbusd {d}, {w01}, {c}",
                "{{vex}} vpdpbusd {e}, {w11}, {c}",
                "vpbroadcastq {c}, [{codes} + 40]",
                "{{vex}} vpdpbusd {f}, {w01}, {c}",
                "{{vex}} vpdpbusd {g}, {w11}, {c}",
                "vpbroadcastq {c}, [{codes} + 16]",
                "{{vex}} vpdpbusd {d}, {w02}, {c}",
                "{{vex}} vpdpbusd {e}, {w12}, {c}",
                "vpbroadcastq {c}, [{codes} + 48]",
                "{{vex}} vpdpbusd {f}, {w02}, {c}",
                "{{vex}} vpdpbusd {g}, {w12}, {c}",
                "vpbroadcastq {c}, [{codes} + 24]",
                "{{vex}} vpdpbusd {d}, {w03}, {c}",
                "{{vex}} vpdpbusd {e}, {w13}, {c}",
                "vpbroadcastq {c}, [{codes} + 56]",
                "{{vex}} vpdpbusd {f}, {w03}, {c}",
                "{{vex}} vpdpbusd {g}, {w13}, {c}",
                "vpbroadcastd {c}, [{scales}]",
                "vpmullw {c}, {c}, {scales_b}",
                "vpackssdw {d}, {d}, {e}",
                "vmovdqu {e}, [{sums}]",
                "{{vex}} vpdpwssd {e}, {d}, {c}",
                "vmovdqu [{sums}], {e}",
                "vpbroadcastd {c}, [{scales} + 8]",
                "vpmullw {c}, {c}, {scales_b}",
                "vpackssdw {f}, {f}, {g}",
                "vmovdqu {g}, [{sums} + 64]",
                "{{vex}} vpdpwssd {g}, {f}, {c}",
                "vmovdqu [{sums} + 64], {g}"
            );
        }
    }
}
