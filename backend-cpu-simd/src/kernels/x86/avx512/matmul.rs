//! Tile kernels on AVX-512 VNNI, with VBMI's byte permute (C6).
//!
//! One zmm holds the 16 columns of a panel. Weights stay 4-bit in memory and are looked up in
//! registers, once for all rows of a tile; there are no horizontal sums.
//!
//! ```text
//! fold, R rows x 16 columns, for each chunk of 32 k:
//!     s = scale bytes, four times each                               vpermb
//!     for each of 4 lines of codes:
//!         w = table[code | shift << 4], low nibbles, then high       vpternlogd, vpermb
//!         for each row: sum[row] += w (u8) . a[row][step] (s8)       vpdpbusd, a broadcast from memory
//! fold by pairs, many rows: w is written once, as bytes, for some chunks of two panels and all tiles of a block;
//!     R rows x 32 columns, for each step: sum[row][0, 1] += w[0, 1] . a[row][step]
//! group, R rows x 16 columns, for each chunk:
//!     w[0..8] = table[code]: 2 sets of 8 columns x 2 halves, 4 steps
//!     for each row:
//!         d0, d1 = -12 * sum(a) + w . a, a set each                  8 vpdpbusd
//!         sum[row] += pack16(d0, d1) . (s_a * s_b), pairs of halves  vpackssdw, vpmullw, vpdpwssd
//! ```
//!
//! # Why it is exact
//!
//! *Fold.* w = v + 128 where v is a doubled code times 2^shift, |v| <= 96, and |a| <= 96. Products
//! with u8 factors below 256 are summed in 32 bits, never saturating (`vpdpbusd`, not `vpdpbusds`),
//! modulo 2^32; the driver takes 128 * sum(a) away again. The true sum of n chunks is at most n *
//! 32 * 96 * 96, below 2^31 for n <= [`FOLD_CHUNKS`], so the wrapped result is the true one.
//!
//! *Group.* w = v + 12 in 0..=24 and |a| <= 12. A half's dot is at most 16 * 144 = 2304: it fits
//! the i16 that `vpackssdw` makes without saturating. The product of scaled scales is at most 258 *
//! 127 = 32766: `vpmullw` keeps all of it. With the planes' own maxima, n chunks sum to at most n *
//! 2 * 2304 * max_a * max_b: the driver drains in time ([`group_chunks`]).
//!
//! *MXINT8 by NVFP4* is the group form with elements for codes: a half's dot is at most 16 * 128 *
//! 12 = 24576, still an i16, the scaled scales of A are at most 32, and n chunks sum to at most
//! n * 32 * 128 * 12 * max_a * max_b ([`int8_chunks`]). MXINT8 by MXFP4 is in `int8`.
//!
//! Worked example, fold: code 7 with shift 3 is 12 * 8 = 96, w = 224; a = -96: the kernel adds
//! -21504, the correction is 128 * -96 = -12288, and -21504 + 12288 = -9216 = 96 * -96.
//!
//! [`FOLD_CHUNKS`]: crate::matmul::bounds::FOLD_CHUNKS
//! [`group_chunks`]: crate::matmul::bounds::group_chunks
//! [`int8_chunks`]: crate::matmul::bounds::int8_chunks

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

use fp4_core::E2m1;

use super::{Avx512, int8, output};
use crate::isa::Isa;
use crate::kernels::x86::{operand, prefetch, prefetch_chunk};
use crate::matmul::operand::{COLUMNS, Form, LINES, Line, MAX_ROWS, STEPS};
use crate::matmul::rounding::Rounding;
use crate::matmul::{
    FoldKernels, FoldTile, Kernels, OutputTile, PairKernels, PanelView, RowOfTile, StepAt, Steps,
    Sums, TileView, Units, expect_inside,
};
use crate::quantize::FloatValue;

/// Rows of the largest tile in the group form.
const GROUP_ROWS: usize = 16;
/// Rows of the largest tile by a pair of panels: 28 accumulators.
const PAIR_ROWS: usize = 14;
/// Lines of an expanded chunk of a pair of panels.
const PAIR_LINES: usize = 2 * STEPS;

/// v + 128 for code | shift << 4.
static FOLD_TABLE: Line = {
    let mut table = [0; 64];
    let mut i = 0;
    while i < 64 {
        table[i] = (128 + ((E2m1::from_bits(i as u8).doubled() as i32) << (i >> 4))) as u8;
        i += 1;
    }
    Line(table)
};

/// v + 12 for the code in the low four of six bits.
static GROUP_TABLE: Line = {
    let mut table = [0; 64];
    let mut i = 0;
    while i < 64 {
        table[i] = (12 + E2m1::from_bits(i as u8).doubled()) as u8;
        i += 1;
    }
    Line(table)
};

/// i / 4.
static FOUR_TIMES: Line = {
    let mut table = [0; 64];
    let mut i = 0;
    while i < 64 {
        table[i] = i as u8 / 4;
        i += 1;
    }
    Line(table)
};

#[inline]
#[target_feature(enable = "avx512f")]
fn load(line: &Line) -> __m512i {
    // SAFETY: a line is 64 readable bytes.
    unsafe { _mm512_loadu_si512(line.0.as_ptr().cast()) }
}

/// `$body` for `$r` = 0, 1, ..., `$rows` - 1, which also is the constant `ROW`, written out: a loop
/// of this length with a long body would not be unrolled, and its accumulators not be kept in
/// registers.
macro_rules! each_row {
    ($rows:ident, $r:ident, $body:block) => {
        $crate::kernels::x86::avx512::matmul::each_row!($rows, $r, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23);
    };
    ($rows:ident, $r:ident, $body:block, $($i:literal)*) => {
        $(if $i < $rows {
            const { assert!($rows <= MAX_ROWS) };
            const ROW: usize = $i;
            let $r = ROW;
            $body
        })*
    };
}

pub(super) use each_row;

impl Kernels for Avx512 {
    const ISA: Isa = Isa::Avx512Vnni;
    const GROUP_ROWS: usize = GROUP_ROWS;
    const BY_HALVES: bool = false;
    type Fold = Self;

    #[inline(always)]
    fn fold_kernels(self) -> Option<Self> {
        Some(self)
    }

    fn enter<R>(self, f: impl FnOnce() -> R) -> R {
        #[target_feature(
            enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx2,fma,f16c"
        )]
        fn inner<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        // SAFETY: `self` proves the features.
        unsafe { inner(f) }
    }

    fn pack_group(self, from: &[u8], at: RowOfTile, codes: &mut [i32], init: &mut [[i32; 2]]) {
        // SAFETY: `self` proves AVX2.
        unsafe { operand::group(from, at, false, codes, init) }
    }

    fn pack_int8(self, from: &[u8], at: RowOfTile, codes: &mut [i32], init: &mut [[i32; 2]]) {
        // SAFETY: `self` proves AVX2.
        unsafe { operand::group_int8(from, at, false, codes, init) }
    }

    #[inline]
    fn group(self, a: TileView<'_>, b: PanelView<'_>, steps: Steps<'_>, sums: &mut Sums) {
        expect_inside(Form::Group, a, b, steps);
        assert_eq!(b.groups, 2, "MXFP4 has the fold form");
        // SAFETY: `self` proves the features; all steps are inside their buffers; R is the
        // tile's number of rows.
        by_rows!(a.rows, group_rows(a, b, steps, sums),
            1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1, 7: 1, 8: 1, 9: 1, 10: 1, 11: 1, 12: 1, 13: 1,
            14: 1, 15: 1, 16: 1);
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
        // SAFETY: `self` proves the features.
        unsafe { add_shifted(from, correction, shift, column_shifts, to) }
    }

    #[inline(always)]
    fn round_sums<T: FloatValue>(self, sums: &Sums, by: &Rounding<'_>, out: OutputTile<'_, T>) {
        // SAFETY: `self` proves the features.
        unsafe { output::round_sums(sums, by, out) }
    }

    #[inline(always)]
    fn round_units<T: FloatValue>(self, units: &Units, by: &Rounding<'_>, out: OutputTile<'_, T>) {
        // SAFETY: `self` proves the features.
        unsafe { output::round_units(units, by, out) }
    }
}

impl FoldKernels for Avx512 {
    const OFFSET: i32 = 128;
    type Pairs = Self;

    fn pair_kernels(self, m: usize) -> Option<Self> {
        (m > MAX_ROWS).then_some(self)
    }

    fn rows(self, m: usize) -> usize {
        if self.pair_kernels(m).is_some() { PAIR_ROWS } else { MAX_ROWS }
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

    #[inline]
    fn fold(self, a: TileView<'_>, b: PanelView<'_>, steps: Steps<'_>, sums: &mut Sums) {
        expect_inside(Form::Fold, a, b, steps);
        // SAFETY: `self` proves the features; all steps are inside their buffers; R is the
        // tile's number of rows.
        by_rows!(a.rows, fold_rows(a, b, steps, sums),
            1: 8, 2: 4, 3: 4, 4: 2, 5: 2, 6: 2, 7: 2, 8: 2, 9: 1, 10: 1, 11: 1, 12: 1, 13: 1,
            14: 1, 15: 1, 16: 1, 17: 1, 18: 1, 19: 1, 20: 1, 21: 1, 22: 1, 23: 1, 24: 1);
    }
}

impl PairKernels for Avx512 {
    fn expand(self, b: PanelView<'_>, chunks: Range<usize>, half: usize, to: &mut [Line]) {
        assert!(chunks.end * LINES <= b.codes.len() && chunks.end * 16 <= b.scales.len());
        assert!(chunks.len() * PAIR_LINES <= to.len() && half < 2);
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
        // SAFETY: `self` proves the features; B has as many chunks as A; R is the tile's number of
        // rows.
        by_rows!(a.rows, pair_rows(a, b, next, add, sums), 1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1, 7: 1, 8: 1,
            9: 1, 10: 1, 11: 1, 12: 1, 13: 1, 14: 1);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn add_shifted(
    from: &[i32; COLUMNS],
    correction: i32,
    shift: u32,
    column_shifts: &[u32; COLUMNS],
    to: &mut [i64; COLUMNS],
) {
    for half in [0, COLUMNS / 2] {
        // SAFETY: a half is 32 bytes of sums and of shifts, and 64 of what they are added to.
        unsafe {
            let sums = _mm256_loadu_si256(from.as_ptr().add(half).cast());
            let sums = _mm256_sub_epi32(sums, _mm256_set1_epi32(correction));
            let shifts = _mm256_loadu_si256(column_shifts.as_ptr().add(half).cast());
            let shifts = _mm256_add_epi32(shifts, _mm256_set1_epi32(shift as i32));
            let added =
                _mm512_sllv_epi64(_mm512_cvtepi32_epi64(sums), _mm512_cvtepi32_epi64(shifts));
            let to = to.as_mut_ptr().add(half).cast();
            _mm512_storeu_si512(to, _mm512_add_epi64(_mm512_loadu_si512(to), added));
        }
    }
}

/// # Safety
/// The CPU has the features; R is the number of rows of `a`; the steps are inside the buffers.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn fold_rows<const R: usize, const U: usize>(
    a: TileView<'_>,
    b: PanelView<'_>,
    steps: Steps<'_>,
    sums: &mut Sums,
) {
    let mut acc = [[_mm512_setzero_si512(); R]; U];
    let (pa, pb, ps) = (a.codes.as_ptr(), b.codes.as_ptr(), b.scales.as_ptr());
    // One loop with one call, which is inlined: the accumulators are then in registers.
    for i in 0..steps.len() {
        let StepAt { a_slot: a, b, b_slot, .. } = steps.at(i);
        // SAFETY: the step is inside, by the caller.
        unsafe {
            let (pa, pb) = (pa.add(a * STEPS * R), pb.add(b * LINES));
            fold_chunk(&mut acc, pa, pb, ps.add(b_slot * 16));
        }
    }
    for (r, sums) in sums[..R].iter_mut().enumerate() {
        let sum = acc[1..].iter().fold(acc[0][r], |sum, acc| _mm512_add_epi32(sum, acc[r]));
        // SAFETY: a row of sums is 64 writable bytes.
        unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), sum) };
    }
}

/// # Safety
/// The CPU has the features; `a` points to `STEPS * R` values, `b` to `LINES` lines and `s` to 16
/// scale bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn fold_chunk<const R: usize, const U: usize>(
    acc: &mut [[__m512i; R]; U],
    a: *const i32,
    b: *const Line,
    s: *const u8,
) {
    prefetch_chunk(R, b, s, 16);
    // SAFETY: 16 readable bytes, by the caller.
    let s = unsafe { fold_scales(s) };
    for j in 0..LINES {
        // SAFETY: line j is inside, by the caller.
        let weights = unsafe { fold_line(b.add(j), s) };
        for (step, w) in (2 * j..).zip(weights) {
            let acc = &mut acc[step % U];
            each_row!(R, r, {
                // SAFETY: step `step` of row r is inside, by the caller.
                let a = _mm512_set1_epi32(unsafe { *a.add(step * R + r) });
                acc[r] = _mm512_dpbusd_epi32(acc[r], w, a);
            });
        }
    }
}

/// The weights of a chunk, v + 128, by steps.
///
/// # Safety
/// The CPU has the features; `b` points to `LINES` lines and `s` to 16 scale bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
pub(super) unsafe fn fold_line(line: *const Line, s: __m512i) -> [__m512i; 2] {
    let (table, nibble) = (load(&FOLD_TABLE), _mm512_set1_epi8(0xF));
    // SAFETY: the line is readable, by the caller.
    let codes = load(unsafe { &*line });
    // nibble ? codes & s : s, that is: the code where the plane has the group, else 0, and the
    // shift above it.
    let index = |codes| _mm512_ternarylogic_epi32::<0b1000_1010>(nibble, codes, s);
    [codes, _mm512_srli_epi16::<4>(codes)].map(|codes| _mm512_permutexvar_epi8(index(codes), table))
}

/// The 16 scale bytes of a chunk, four times each.
///
/// # Safety
/// The CPU has the features; `s` points to 16 bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512vbmi")]
pub(super) unsafe fn fold_scales(s: *const u8) -> __m512i {
    // SAFETY: 16 readable bytes, by the caller.
    let s = _mm512_castsi128_si512(unsafe { _mm_loadu_si128(s.cast()) });
    _mm512_permutexvar_epi8(load(&FOUR_TIMES), s)
}

/// # Safety
/// The CPU has the features; the chunks are inside `b` and fit `to`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
unsafe fn expand(b: PanelView<'_>, chunks: Range<usize>, half: usize, to: &mut [Line]) {
    let (pb, ps, mut to) = (b.codes.as_ptr(), b.scales.as_ptr(), to.as_mut_ptr());
    for chunk in chunks {
        // SAFETY: the chunk is inside, by the caller.
        unsafe {
            let s = fold_scales(ps.add(chunk * 16));
            for j in 0..LINES {
                for w in fold_line(pb.add(chunk * LINES + j), s) {
                    _mm512_store_si512(to.add(half).cast(), w);
                    to = to.add(2);
                }
            }
        }
    }
}

/// # Safety
/// The CPU has the features; R is the number of rows of `a`; `b` has its chunks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn pair_rows<const R: usize, const U: usize>(
    a: TileView<'_>,
    b: &[Line],
    next: &[Line],
    add: bool,
    sums: &mut [Sums; 2],
) {
    const { assert!(U == 1) };
    let mut acc = [[_mm512_setzero_si512(); R]; 2];
    if add {
        for (acc, sums) in acc.iter_mut().zip(&*sums) {
            for (acc, sums) in acc.iter_mut().zip(sums) {
                // SAFETY: a row of sums is 64 readable bytes.
                *acc = unsafe { _mm512_loadu_si512(sums.as_ptr().cast()) };
            }
        }
    }
    let (mut pa, mut pb) = (a.codes.as_ptr(), b.as_ptr());
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
                let w = [load(&*pb), load(&*pb.add(1))];
                let [first, second] = &mut acc;
                each_row!(R, r, {
                    let a = _mm512_set1_epi32(*pa.add(r));
                    first[r] = _mm512_dpbusd_epi32(first[r], w[0], a);
                    second[r] = _mm512_dpbusd_epi32(second[r], w[1], a);
                });
                (pa, pb) = (pa.add(R), pb.add(2));
            }
        }
    }
    for (sums, acc) in sums.iter_mut().zip(acc) {
        for (sums, acc) in sums.iter_mut().zip(acc) {
            // SAFETY: a row of sums is 64 writable bytes.
            unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), acc) };
        }
    }
}

/// # Safety
/// As [`fold_rows`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn group_rows<const R: usize, const U: usize>(
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
        let chunk = unsafe {
            GroupChunk {
                codes_a: a.codes.as_ptr().add(a_chunk * STEPS * R),
                init: a.init.as_ptr().add(a_chunk * R),
                scales_a: a.scales.as_ptr().add(a_slot * R),
                codes_b: b.codes.as_ptr().add(b_chunk * LINES),
                scales_b: b.scales.as_ptr().add(b_slot * 32),
            }
        };
        // SAFETY: as above.
        unsafe { group_chunk(&mut acc, chunk) };
    }
    for (sums, acc) in sums.iter_mut().zip(acc) {
        // SAFETY: a row of sums is 64 writable bytes.
        unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), acc) };
    }
}

/// Where a chunk's operands are.
struct GroupChunk {
    codes_a: *const i32,
    init: *const [i32; 2],
    scales_a: *const [i16; 4],
    codes_b: *const Line,
    scales_b: *const u8,
}

/// Adds a chunk's products to the sums of row `$acc`: dots of 16 columns by two halves in two
/// registers, packed to i16 and multiplied by the product of the scales.
///
/// Written out, because from intrinsics LLVM makes something else: it takes `vpdpwssd` apart, and
/// mixes rows until their sums no longer fit the registers.
macro_rules! one_row {
    ($row:ident, $acc:expr, $codes:ident, $init:ident, $scales:ident, $w:ident, $scales_b:ident) => {{
        let (_d, _e, _c): (__m512i, __m512i, __m512i);
        asm!(
            "vpbroadcastq {d}, [{init} + {o_init}]",
            "vpbroadcastq {e}, [{init} + {o_init}]",
            "vpbroadcastq {c}, [{codes} + {o_codes}]",
            "vpdpbusd {d}, {w00}, {c}",
            "vpdpbusd {e}, {w10}, {c}",
            "vpbroadcastq {c}, [{codes} + {o_codes} + 8]",
            "vpdpbusd {d}, {w01}, {c}",
            "vpdpbusd {e}, {w11}, {c}",
            "vpbroadcastq {c}, [{codes} + {o_codes} + 16]",
            "vpdpbusd {d}, {w02}, {c}",
            "vpdpbusd {e}, {w12}, {c}",
            "vpbroadcastq {c}, [{codes} + {o_codes} + 24]",
            "vpdpbusd {d}, {w03}, {c}",
            "vpdpbusd {e}, {w13}, {c}",
            "vpbroadcastd {c}, [{scales} + {o_scales}]",
            "vpmullw {c}, {c}, {scales_b}",
            "vpackssdw {d}, {d}, {e}",
            "vpdpwssd {acc}, {d}, {c}",
            acc = inout(zmm_reg) $acc,
            d = out(zmm_reg) _d, e = out(zmm_reg) _e, c = out(zmm_reg) _c,
            w00 = in(zmm_reg) $w[0][0], w01 = in(zmm_reg) $w[0][1],
            w02 = in(zmm_reg) $w[0][2], w03 = in(zmm_reg) $w[0][3],
            w10 = in(zmm_reg) $w[1][0], w11 = in(zmm_reg) $w[1][1],
            w12 = in(zmm_reg) $w[1][2], w13 = in(zmm_reg) $w[1][3],
            scales_b = in(zmm_reg) $scales_b,
            codes = in(reg) $codes, init = in(reg) $init, scales = in(reg) $scales,
            o_codes = const $row * 4 * STEPS, o_init = const $row * 8, o_scales = const $row * 8,
            options(readonly, nostack, preserves_flags),
        )
    }};
}

/// The same for two rows that follow each other; one row's chain of multiply-adds would wait for
/// itself.
macro_rules! two_rows {
    ($row:ident, $acc:expr, $next:expr, $codes:ident, $init:ident, $scales:ident, $w:ident, $scales_b:ident) => {{
        let (_d, _e, _f, _g, _c): (__m512i, __m512i, __m512i, __m512i, __m512i);
        asm!(
            "vpbroadcastq {d}, [{init} + {o_init}]",
            "vpbroadcastq {e}, [{init} + {o_init}]",
            "vpbroadcastq {f}, [{init} + {o_init} + 8]",
            "vpbroadcastq {g}, [{init} + {o_init} + 8]",
            "vpbroadcastq {c}, [{codes} + {o_codes}]",
            "vpdpbusd {d}, {w00}, {c}",
            "vpdpbusd {e}, {w10}, {c}",
            "vpbroadcastq {c}, [{codes} + {o_codes} + 32]",
            "vpdpbusd {f}, {w00}, {c}",
            "vpdpbusd {g}, {w10}, {c}",
            "vpbroadcastq {c}, [{codes} + {o_codes} + 8]",
            "vpdpbusd {d}, {w01}, {c}",
            "vpdpbusd {e}, {w11}, {c}",
            "vpbroadcastq {c}, [{codes} + {o_codes} + 40]",
            "vpdpbusd {f}, {w01}, {c}",
            "vpdpbusd {g}, {w11}, {c}",
            "vpbroadcastq {c}, [{codes} + {o_codes} + 16]",
            "vpdpbusd {d}, {w02}, {c}",
            "vpdpbusd {e}, {w12}, {c}",
            "vpbroadcastq {c}, [{codes} + {o_codes} + 48]",
            "vpdpbusd {f}, {w02}, {c}",
            "vpdpbusd {g}, {w12}, {c}",
            "vpbroadcastq {c}, [{codes} + {o_codes} + 24]",
            "vpdpbusd {d}, {w03}, {c}",
            "vpdpbusd {e}, {w13}, {c}",
            "vpbroadcastq {c}, [{codes} + {o_codes} + 56]",
            "vpdpbusd {f}, {w03}, {c}",
            "vpdpbusd {g}, {w13}, {c}",
            "vpbroadcastd {c}, [{scales} + {o_scales}]",
            "vpmullw {c}, {c}, {scales_b}",
            "vpackssdw {d}, {d}, {e}",
            "vpdpwssd {acc}, {d}, {c}",
            "vpbroadcastd {c}, [{scales} + {o_scales} + 8]",
            "vpmullw {c}, {c}, {scales_b}",
            "vpackssdw {f}, {f}, {g}",
            "vpdpwssd {next}, {f}, {c}",
            acc = inout(zmm_reg) $acc, next = inout(zmm_reg) $next,
            d = out(zmm_reg) _d, e = out(zmm_reg) _e, f = out(zmm_reg) _f, g = out(zmm_reg) _g,
            c = out(zmm_reg) _c,
            w00 = in(zmm_reg) $w[0][0], w01 = in(zmm_reg) $w[0][1],
            w02 = in(zmm_reg) $w[0][2], w03 = in(zmm_reg) $w[0][3],
            w10 = in(zmm_reg) $w[1][0], w11 = in(zmm_reg) $w[1][1],
            w12 = in(zmm_reg) $w[1][2], w13 = in(zmm_reg) $w[1][3],
            scales_b = in(zmm_reg) $scales_b,
            codes = in(reg) $codes, init = in(reg) $init, scales = in(reg) $scales,
            o_codes = const $row * 4 * STEPS, o_init = const $row * 8, o_scales = const $row * 8,
            options(readonly, nostack, preserves_flags),
        )
    }};
}

/// # Safety
/// The CPU has the features; the pointers have `STEPS * R` values, R sums, R scales, `LINES` lines
/// and 32 scale bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn group_chunk<const R: usize>(acc: &mut [__m512i; R], chunk: GroupChunk) {
    prefetch_chunk(R, chunk.codes_b, chunk.scales_b, 32);
    let table = load(&GROUP_TABLE);
    let mut w = [[_mm512_setzero_si512(); 4]; 2];
    for (h, w) in w.iter_mut().enumerate() {
        for j in 0..2 {
            let line = chunk.codes_b.wrapping_add(2 * h + j);
            // SAFETY: the line is inside, by the caller. The permute reads six bits of an index
            // and the table is the same for every upper two.
            let codes = load(unsafe { &*line });
            w[2 * j] = _mm512_permutexvar_epi8(codes, table);
            w[2 * j + 1] = _mm512_permutexvar_epi8(_mm512_srli_epi16::<4>(codes), table);
        }
    }
    // SAFETY: 32 readable bytes, by the caller.
    let scales_b = _mm512_cvtepi8_epi16(unsafe { _mm256_loadu_si256(chunk.scales_b.cast()) });
    let GroupChunk { codes_a, init, scales_a, .. } = chunk;
    each_row!(R, r, {
        if r.is_multiple_of(2) {
            // The tile comes from the second-level cache: its line of two chunks ahead.
            let ahead = |at: *const i8| prefetch::<_MM_HINT_T0>(at);
            ahead(codes_a.wrapping_add((2 * R + r) * STEPS).cast());
            if r.is_multiple_of(8) {
                ahead(init.wrapping_add(4 * R + r).cast());
                ahead(scales_a.wrapping_add(4 * R + r).cast());
            }
            // SAFETY: rows r and, if there is one, r + 1 are inside, by the caller.
            unsafe {
                if r + 1 < R {
                    two_rows!(ROW, acc[r], acc[r + 1], codes_a, init, scales_a, w, scales_b);
                } else {
                    one_row!(ROW, acc[r], codes_a, init, scales_a, w, scales_b);
                }
            }
        }
    });
}
