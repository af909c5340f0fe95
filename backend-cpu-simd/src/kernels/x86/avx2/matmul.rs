//! Tile kernels on AVX2: both formats in the group form (C6).
//!
//! ```text
//! any number of rows x 2 * 4 columns, for each chunk of 32 k, lanes (column, half):
//!     w[0..4] = table[code], u8 = v + 12                             vpshufb
//!     for each row:
//!         t = -12 * (sums of a) + w . a over four steps              vpmaddubsw, vpaddw, in i16
//!         sum[row] += t . (s_a * s_b)                                vpmullw, vpmaddwd, vpaddd
//! ```
//!
//! Each chunk takes two passes, two quarters of the columns each. The sums stay in the first-level
//! cache, one load and one store for four `vpmaddubsw`, so that a tile can have many rows for which
//! weights are looked up once. An MXFP4 chunk is two halves of the same scale, stored once.
//!
//! # Why it is exact
//!
//! w is in 0..=24 and |a| <= 12, so `vpmaddubsw` adds two products of at most 288: no saturation.
//! An i16 of t sums 8 products v * a, at most 8 * 144 = 1152, and on the way at most 8 * 288 more:
//! below 2^15. The product of scaled scales is at most 258 * 127 = 32766, an i16. Both i16 of a
//! lane are multiplied by it and added in 32 bits; the driver drains in time ([`group_chunks`]).
//!
//! With MXINT8 in A, |a| <= 128: `vpmaddubsw` adds two products of at most 24 * 128 = 3072; an i16
//! of t sums 8 products v * a, at most 8 * 12 * 128 = 12288 at the end, and i16 sums wrap on the
//! way. The scaled scales of A are at most 32, and the driver drains by [`int8_chunks`].
//!
//! [`int8_chunks`]: crate::matmul::bounds::int8_chunks
//! [`group_chunks`]: crate::matmul::bounds::group_chunks

use std::arch::x86_64::*;

use fp4_core::E2m1;

use super::{Avx2, output};
use crate::isa::Isa;
use crate::kernels::x86::{operand, prefetch_chunk};
use crate::matmul::operand::{COLUMNS, Form, LINES, Line, MAX_ROWS, STEPS};
use crate::matmul::rounding::Rounding;
use crate::matmul::{
    Kernels, Never, OutputTile, PanelView, RowOfTile, StepAt, Steps, Sums, TileView, Units,
    expect_inside,
};
use crate::quantize::FloatValue;

/// v + 12 for each code.
static TABLE: [u8; 16] = {
    let mut table = [0; 16];
    let mut i = 0;
    while i < 16 {
        table[i] = (12 + E2m1::from_bits(i as u8).doubled()) as u8;
        i += 1;
    }
    table
};

impl Kernels for Avx2 {
    const ISA: Isa = Isa::Avx2;
    const GROUP_ROWS: usize = MAX_ROWS;
    const BY_HALVES: bool = true;
    type Fold = Never;

    #[inline(always)]
    fn fold_kernels(self) -> Option<Never> {
        None
    }

    fn enter<R>(self, f: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn inner<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        // SAFETY: `self` proves the features.
        unsafe { inner(f) }
    }

    fn pack_group(self, from: &[u8], at: RowOfTile, codes: &mut [i32], init: &mut [[i32; 2]]) {
        // SAFETY: `self` proves AVX2.
        unsafe { operand::group(from, at, true, codes, init) }
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

    fn pack_int8(self, from: &[u8], at: RowOfTile, codes: &mut [i32], init: &mut [[i32; 2]]) {
        // SAFETY: `self` proves AVX2.
        unsafe { operand::group_int8(from, at, true, codes, init) }
    }

    fn group(self, a: TileView<'_>, b: PanelView<'_>, steps: Steps<'_>, sums: &mut Sums) {
        expect_inside(Form::Group, a, b, steps);
        assert!(a.rows <= MAX_ROWS);
        // SAFETY: `self` proves the features; all steps are inside their buffers.
        unsafe { group_rows(a, b, steps, sums) };
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn add_shifted(
    from: &[i32; COLUMNS],
    correction: i32,
    shift: u32,
    column_shifts: &[u32; COLUMNS],
    to: &mut [i64; COLUMNS],
) {
    for quarter in (0..COLUMNS).step_by(4) {
        // SAFETY: a quarter is 16 bytes of sums and of shifts, and 32 of what they are added to.
        unsafe {
            let sums = _mm_loadu_si128(from.as_ptr().add(quarter).cast());
            let sums = _mm_sub_epi32(sums, _mm_set1_epi32(correction));
            let shifts = _mm_loadu_si128(column_shifts.as_ptr().add(quarter).cast());
            let shifts = _mm_add_epi32(shifts, _mm_set1_epi32(shift as i32));
            let added =
                _mm256_sllv_epi64(_mm256_cvtepi32_epi64(sums), _mm256_cvtepi32_epi64(shifts));
            let to = to.as_mut_ptr().add(quarter).cast();
            _mm256_storeu_si256(to, _mm256_add_epi64(_mm256_loadu_si256(to), added));
        }
    }
}

/// # Safety
/// The CPU has the features; `a` has at most [`MAX_ROWS`] rows; the steps are inside the buffers.
#[target_feature(enable = "avx2")]
unsafe fn group_rows(a: TileView<'_>, b: PanelView<'_>, steps: Steps<'_>, sums: &mut Sums) {
    let mut acc = [[_mm256_setzero_si256(); 4]; MAX_ROWS];
    // SAFETY: as the caller says.
    unsafe {
        match b.groups {
            1 => group_steps::<1>(a, b, steps, &mut acc),
            _ => group_steps::<2>(a, b, steps, &mut acc),
        }
    }
    for (sums, acc) in sums[..a.rows].iter_mut().zip(&acc) {
        for (quarter, &acc) in acc.iter().enumerate() {
            let (h, q) = (quarter / 2, quarter % 2);
            let lanes: [i32; 8] = wide::bytemuck::cast(acc);
            for i in 0..4 {
                // The halves of one column.
                let sum = lanes[2 * i].wrapping_add(lanes[2 * i + 1]);
                sums[8 * q + 4 * (i / 2) + 2 * h + i % 2] = sum;
            }
        }
    }
}

/// Adds the steps' products to the sums of the quarters of the columns. A chunk has G groups.
///
/// # Safety
/// As [`group_rows`], and `b.groups` is G.
#[inline(never)]
#[target_feature(enable = "avx2")]
unsafe fn group_steps<const G: usize>(
    a: TileView<'_>,
    b: PanelView<'_>,
    steps: Steps<'_>,
    acc: &mut [[__m256i; 4]; MAX_ROWS],
) {
    for i in 0..steps.len() {
        let StepAt { a: a_chunk, a_slot, b: b_chunk, b_slot } = steps.at(i);
        for h in 0..2 {
            // SAFETY: the step is inside, by the caller: its lines, scale bytes, codes, sums and
            // scales of all rows.
            unsafe {
                let lines = b.codes.as_ptr().add(b_chunk * LINES);
                let scales = b.scales.as_ptr().add(b_slot * G * COLUMNS);
                if h == 0 {
                    prefetch_chunk(a.rows, lines, scales, G * COLUMNS);
                }
                let lines = lines.add(2 * h);
                let quarters =
                    [quarter::<G>(lines, scales, h, 0), quarter::<G>(lines, scales, h, 1)];
                let mut rows = RowPointers {
                    codes: a.codes.as_ptr().add(a_chunk * a.rows * STEPS).cast(),
                    init: a.init.as_ptr().add(a_chunk * a.rows).cast(),
                    scales: a.scales.as_ptr().add(a_slot * a.rows).cast(),
                    acc: acc.as_mut_ptr().cast::<__m256i>().add(2 * h),
                };
                for _ in 0..a.rows {
                    rows.multiply(&quarters);
                }
            }
        }
    }
}

/// A chunk of the weights of four columns.
struct Quarter {
    /// v + 12, by steps.
    w: [__m256i; 4],
    /// The scaled scales.
    scales: __m256i,
}

/// Quarter `q` of half `h` of a chunk, whose lines begin at `lines` and scales at `scales`. No
/// closure, which is not always inlined: the weights would be in memory then.
///
/// # Safety
/// The CPU has AVX2; `lines` points to the two lines of the half, `scales` to those of the chunk.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn quarter<const G: usize>(
    lines: *const Line,
    scales: *const u8,
    h: usize,
    q: usize,
) -> Quarter {
    // SAFETY: inside, by the caller.
    unsafe {
        let scales = match G {
            1 => column_scales(scales.add(8 * q + 2 * h)),
            _ => half_scales(scales.add(16 * q + 4 * h)),
        };
        Quarter { w: weights(lines, q), scales }
    }
}

/// Where the next row's operands and sums of two quarters are; another row's are four vectors on.
struct RowPointers {
    codes: *const [i64; 4],
    init: *const i64,
    scales: *const i64,
    acc: *mut __m256i,
}

impl RowPointers {
    /// Adds a chunk's products with two quarters to the sums of a row, and goes on to the next.
    /// Each word of codes is loaded once for both: loads are what there is most of.
    ///
    /// # Safety
    /// The CPU has AVX2; the pointers have a row, its sums to be written.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn multiply(&mut self, quarters: &[Quarter; 2]) {
        // SAFETY: the row is inside, by the caller.
        unsafe {
            let codes = self.codes.cast::<i64>();
            let init = _mm256_set1_epi64x(self.init.read_unaligned());
            let mut dots = [init; 2];
            for step in 0..4 {
                let codes = _mm256_set1_epi64x(codes.add(step).read_unaligned());
                for (dot, quarter) in dots.iter_mut().zip(quarters) {
                    let products = _mm256_maddubs_epi16(quarter.w[step], codes);
                    *dot = _mm256_add_epi16(*dot, products);
                }
            }
            let scales = _mm256_set1_epi64x(self.scales.read_unaligned());
            for (q, (dot, quarter)) in dots.into_iter().zip(quarters).enumerate() {
                let scales = _mm256_mullo_epi16(scales, quarter.scales);
                let acc = self.acc.add(q);
                *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(dot, scales));
            }
        }
        self.codes = self.codes.wrapping_add(1);
        self.init = self.init.wrapping_add(1);
        self.scales = self.scales.wrapping_add(1);
        self.acc = self.acc.wrapping_add(4);
    }
}

/// [`TABLE`] in both halves.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::kernels::x86) fn table() -> __m256i {
    // SAFETY: 16 readable bytes.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(TABLE.as_ptr().cast()) })
}

/// The weights of a quarter of a chunk, v + 12, by steps: half `q` of two lines.
///
/// # Safety
/// The CPU has AVX2; `lines` points to two lines.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::kernels::x86) unsafe fn weights(lines: *const Line, q: usize) -> [__m256i; 4] {
    let (table, low) = (table(), _mm256_set1_epi8(0xF));
    // SAFETY: half q of line j is inside, by the caller.
    let [c, d] = [0, 1].map(|j| unsafe { lines.add(j).cast::<__m256i>().add(q).read() });
    let high = |v| _mm256_and_si256(_mm256_srli_epi16::<4>(v), low);
    [_mm256_and_si256(c, low), high(c), _mm256_and_si256(d, low), high(d)]
        .map(|codes| _mm256_shuffle_epi8(table, codes))
}

/// The scales of a quarter's columns and halves, each in both i16 of its lane.
///
/// # Safety
/// The CPU has AVX2; `scales` points to 12 bytes, of which 4..8 are another quarter's.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn half_scales(scales: *const u8) -> __m256i {
    // SAFETY: inside, by the caller.
    let bytes = unsafe {
        let [c, d] = [0, 8].map(|at| scales.add(at).cast::<i32>().read_unaligned());
        _mm_unpacklo_epi32(_mm_cvtsi32_si128(c), _mm_cvtsi32_si128(d))
    };
    in_both_words(bytes)
}

/// The same where both halves have one scale.
///
/// # Safety
/// The CPU has AVX2; `scales` points to 6 bytes, of which 2..4 are another quarter's.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn column_scales(scales: *const u8) -> __m256i {
    // SAFETY: inside, by the caller.
    let [c, d] = unsafe { [0, 4].map(|at| scales.add(at).cast::<u16>().read_unaligned()) };
    let bytes = _mm_cvtsi32_si128(i32::from(c) | i32::from(d) << 16);
    in_both_words(_mm_unpacklo_epi8(bytes, bytes))
}

/// Eight bytes, each in both i16 of a lane.
#[inline]
#[target_feature(enable = "avx2")]
fn in_both_words(bytes: __m128i) -> __m256i {
    let scales = _mm256_cvtepi8_epi32(bytes);
    _mm256_blend_epi16::<0b1010_1010>(scales, _mm256_slli_epi32::<16>(scales))
}
