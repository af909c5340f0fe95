//! Codes of A into the kernels' order (AVX2); see `matmul::operand` for the layouts.
//!
//! Sixteen packed bytes hold 16 low and 16 high nibbles; a byte shuffle looks all 16 up at once, in
//! a table that already has the fold's factor. The eight 4-byte steps of a chunk then go to their
//! rows' places.

use std::arch::x86_64::*;

use fp4_core::E2m1;
use wide::bytemuck;

use crate::matmul::operand::{CHUNK, MAX_ROWS, STEPS};
use crate::matmul::{FoldTile, RowOfTile};

/// Doubled codes times 0, 1, 2, 4 and 8.
static TABLES: [[i8; 16]; 5] = {
    let mut tables = [[0; 16]; 5];
    let mut t = 1;
    while t < 5 {
        let mut code = 0;
        while code < 16 {
            tables[t][code] = E2m1::from_bits(code as u8).doubled() << (t - 1);
            code += 1;
        }
        t += 1;
    }
    tables
};

/// 16 packed bytes looked up: the even steps in the low half, the odd ones in the high half.
#[inline]
#[target_feature(enable = "avx2")]
fn look_up(bytes: &[u8; 16], table: &[i8; 16]) -> __m256i {
    // SAFETY: both are 16 readable bytes.
    let [bytes, table] = unsafe {
        [bytes.as_ptr().cast(), table.as_ptr().cast()]
            .map(|at| _mm256_broadcastsi128_si256(_mm_loadu_si128(at)))
    };
    let nibbles = _mm256_srlv_epi64(bytes, _mm256_setr_epi64x(0, 0, 4, 4));
    _mm256_shuffle_epi8(table, _mm256_and_si256(nibbles, _mm256_set1_epi8(0xF)))
}

/// See [`FoldKernels::pack_fold`](crate::matmul::FoldKernels::pack_fold): four rows at a time, so
/// that what is written of a step is together.
#[target_feature(enable = "avx2")]
pub(super) fn fold(
    from: FoldTile<'_>,
    codes: &mut [i32],
    sums: &mut [i32],
    totals: &mut [i32; MAX_ROWS],
) {
    match from.codes.len() {
        0 => {}
        1 => few_rows::<1>(from, codes, sums, totals),
        2 => few_rows::<2>(from, codes, sums, totals),
        3 => few_rows::<3>(from, codes, sums, totals),
        rows => {
            // The last four overlap those before them if the rows are no multiple of four.
            for first in (0..rows).step_by(4) {
                four_rows(from, first.min(rows - 4), codes, sums, totals);
            }
        }
    }
}

/// Four rows of a slot, looked up and transposed: vector j has step 2j of each row in the low half,
/// step 2j + 1 in the high half.
#[inline]
#[target_feature(enable = "avx2")]
fn transposed(rows: [__m256i; 4]) -> [__m256i; 4] {
    let [a, b, c, d] = rows;
    let (e, f) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
    let (g, h) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
    [
        _mm256_unpacklo_epi64(e, f),
        _mm256_unpackhi_epi64(e, f),
        _mm256_unpacklo_epi64(g, h),
        _mm256_unpackhi_epi64(g, h),
    ]
}

/// The sums of four rows of a slot, from their steps, each at most 96 in magnitude.
#[inline]
#[target_feature(enable = "avx2")]
fn sums_of(steps: [__m256i; 4]) -> __m128i {
    let mut pairs = _mm256_setzero_si256();
    for step in steps {
        // At most 4 * 2 * 96, an i16.
        pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(_mm256_set1_epi8(1), step));
    }
    let sums = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums))
}

/// The rows `first..first + 4` of a plane.
#[inline]
#[target_feature(enable = "avx2")]
fn four_rows(
    from: FoldTile<'_>,
    first: usize,
    codes: &mut [i32],
    sums: &mut [i32],
    totals: &mut [i32; MAX_ROWS],
) {
    let (rows, held) = (from.codes.len(), from.held());
    assert!(codes.len() >= held * STEPS * rows && sums.len() >= held * rows && first + 4 <= rows);
    let mut total = _mm_setzero_si128();
    for at in 0..held {
        let (chunk, mut v) = (from.chunk(at), [_mm256_setzero_si256(); 4]);
        for (r, v) in v.iter_mut().enumerate() {
            let bytes = &from.codes[first + r].as_chunks().0[chunk];
            *v = look_up(bytes, &TABLES[usize::from(from.shifts[(first + r) * held + at])]);
        }
        let steps = transposed(v);
        let sum = sums_of(steps);
        total = _mm_add_epi32(total, sum);
        // SAFETY: row first + 3 of the last step of slot `at` is inside, as asserted: each store
        // is of four rows of a step, or of four sums.
        unsafe {
            let to = codes.as_mut_ptr().add(at * STEPS * rows + first);
            for (j, step) in steps.into_iter().enumerate() {
                let to = to.add(2 * j * rows);
                _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(step));
                _mm_storeu_si128(to.add(rows).cast(), _mm256_extracti128_si256::<1>(step));
            }
            _mm_storeu_si128(sums.as_mut_ptr().add(at * rows + first).cast(), sum);
        }
    }
    totals[first..first + 4].copy_from_slice(&dwords(total));
}

/// All R rows of a plane, fewer than four.
#[inline]
#[target_feature(enable = "avx2")]
fn few_rows<const R: usize>(
    from: FoldTile<'_>,
    codes: &mut [i32],
    sums: &mut [i32],
    totals: &mut [i32; MAX_ROWS],
) {
    const { assert!(R < 4) };
    let held = from.held();
    let mut total = _mm_setzero_si128();
    let (codes, sums) = (codes.as_chunks_mut::<R>().0, sums.as_chunks_mut::<R>().0);
    for (at, (codes, sums)) in codes.chunks_exact_mut(STEPS).zip(sums).enumerate() {
        let (chunk, mut v) = (from.chunk(at), [_mm256_setzero_si256(); 4]);
        for (r, v) in v[..R].iter_mut().enumerate() {
            let bytes = &from.codes[r].as_chunks().0[chunk];
            *v = look_up(bytes, &TABLES[usize::from(from.shifts[r * held + at])]);
        }
        let steps = transposed(v);
        let sum = sums_of(steps);
        total = _mm_add_epi32(total, sum);
        for (to, step) in codes.as_chunks_mut::<2>().0.iter_mut().zip(steps) {
            let [low, high]: [[i32; 4]; 2] = bytemuck::cast(step);
            *to = [low, high].map(|step| *step.first_chunk().unwrap());
        }
        *sums = *dwords(sum).first_chunk().unwrap();
    }
    totals[..R].copy_from_slice(&dwords(total)[..R]);
}

fn dwords(v: __m128i) -> [i32; 4] {
    bytemuck::cast(v)
}

/// See [`Kernels::pack_group`](crate::matmul::Kernels::pack_group): `split` gives the sums of a
/// half as two i16, of the first and last two elements of each step, instead of one i32.
#[target_feature(enable = "avx2")]
pub(super) fn group(
    from: &[u8],
    RowOfTile { row, rows }: RowOfTile,
    split: bool,
    codes: &mut [i32],
    init: &mut [[i32; 2]],
) {
    let pack = |slot: usize, bytes: &[u8; 16], codes: &mut [i32], init: &mut [[i32; 2]]| {
        // The low nibbles' four steps, of which two are of each half, then the high nibbles';
        // wanted is a step of each half in turn.
        let steps = look_up(bytes, &TABLES[1]);
        let order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
        let to = &mut codes[(slot * rows + row) * STEPS..][..STEPS];
        // SAFETY: `to` is 32 writable bytes.
        unsafe {
            let steps = _mm256_permutevar8x32_epi32(steps, order);
            _mm256_storeu_si256(to.as_mut_ptr().cast(), steps);
        }
        let by_halves = _mm256_permute4x64_epi64::<0b11_01_10_00>(steps);
        init[slot * rows + row] = less_halves(by_halves, split);
    };
    let (chunks, rest) = from.as_chunks::<16>();
    for (slot, bytes) in chunks.iter().enumerate() {
        pack(slot, bytes, codes, init);
    }
    if !rest.is_empty() {
        let mut bytes = [0; 16];
        bytes[..rest.len()].copy_from_slice(rest);
        pack(chunks.len(), &bytes, codes, init);
    }
}

/// -12 times the sums of the halves of eight steps, the halves of the vector; if `split`, two i16
/// for each, of the first and last two elements of each step.
#[inline]
#[target_feature(enable = "avx2")]
fn less_halves(steps: __m256i, split: bool) -> [i32; 2] {
    // 12 times pairs, with MXINT8 in magnitude up to 3072, of which eight fit an i16.
    let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(12), steps);
    let sums = _mm256_add_epi16(pairs, _mm256_shuffle_epi32::<0b10_11_00_01>(pairs));
    let sums = _mm256_add_epi16(sums, _mm256_shuffle_epi32::<0b01_00_11_10>(sums));
    let negative = _mm256_sub_epi16(_mm256_setzero_si256(), sums);
    let one = _mm256_set1_epi16(1);
    let negative = if split { negative } else { _mm256_madd_epi16(negative, one) };
    let lanes: [i32; 8] = bytemuck::cast(negative);
    [lanes[0], lanes[4]]
}

/// The steps of a chunk of MXINT8: four of each half.
#[inline]
#[target_feature(enable = "avx2")]
fn steps(chunk: &[u8; CHUNK]) -> __m256i {
    // Of each eight elements the even ones, then the odd ones.
    let order = _mm256_setr_epi8(
        0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15, 0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12,
        14, 9, 11, 13, 15,
    );
    // SAFETY: 32 readable bytes.
    _mm256_shuffle_epi8(unsafe { _mm256_loadu_si256(chunk.as_ptr().cast()) }, order)
}

/// See [`Kernels::pack_int8`](crate::matmul::Kernels::pack_int8); `split` as of [`group`].
#[target_feature(enable = "avx2")]
pub(super) fn group_int8(
    from: &[u8],
    RowOfTile { row, rows }: RowOfTile,
    split: bool,
    codes: &mut [i32],
    init: &mut [[i32; 2]],
) {
    for (slot, chunk) in from.as_chunks().0.iter().enumerate() {
        let steps = steps(chunk);
        let [a, b, c, d, e, f, g, h]: [i32; STEPS] = bytemuck::cast(steps);
        let to = &mut codes[(slot * rows + row) * STEPS..][..STEPS];
        to.copy_from_slice(&[a, e, b, f, c, g, d, h]);
        init[slot * rows + row] = less_halves(steps, split);
    }
}

/// See [`FoldKernels::pack_int8`](crate::matmul::FoldKernels::pack_int8): the eight steps of a row one
/// after the other, and -128 times their sum.
#[target_feature(enable = "avx2")]
pub(super) fn fold_int8(
    from: &[u8],
    RowOfTile { row, rows }: RowOfTile,
    codes: &mut [i32],
    init: &mut [[i32; 2]],
) {
    for (slot, chunk) in from.as_chunks().0.iter().enumerate() {
        let steps = steps(chunk);
        let to = &mut codes[(slot * rows + row) * STEPS..][..STEPS];
        to.copy_from_slice(&bytemuck::cast::<_, [i32; STEPS]>(steps));
        let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), steps);
        let fours: [i32; 8] = bytemuck::cast(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
        init[slot * rows + row] = [-128 * fours.iter().sum::<i32>(); 2];
    }
}
