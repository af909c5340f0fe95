//! Codes of A into the kernels' order (AVX2); see `matmul::operand` for the layouts.
//!
//! Sixteen packed bytes hold 16 low and 16 high nibbles; a byte shuffle looks all 16 up at once, in
//! a table that already has the fold's factor. The eight 4-byte steps of a chunk then go to their
//! rows' places.

use std::arch::x86_64::*;

use fp4_core::E2m1;
use wide::bytemuck;

use crate::matmul::operand::{CHUNK, STEPS};
use crate::matmul::{FoldRow, RowOfTile};

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

/// The two halves of 16 packed bytes, looked up.
#[inline]
#[target_feature(enable = "avx2")]
fn expand(bytes: &[u8; 16], table: &[i8; 16]) -> [__m128i; 2] {
    // SAFETY: both are 16 readable bytes.
    let (bytes, table) =
        unsafe { (_mm_loadu_si128(bytes.as_ptr().cast()), _mm_loadu_si128(table.as_ptr().cast())) };
    let low = _mm_set1_epi8(0xF);
    let high = _mm_and_si128(_mm_srli_epi16::<4>(bytes), low);
    [_mm_shuffle_epi8(table, _mm_and_si128(bytes, low)), _mm_shuffle_epi8(table, high)]
}

fn dwords(v: __m128i) -> [i32; 4] {
    bytemuck::cast(v)
}

/// See [`FoldKernels::pack_fold`](crate::matmul::FoldKernels::pack_fold).
#[target_feature(enable = "avx2")]
pub(super) fn fold(
    from: FoldRow<'_>,
    RowOfTile { row, rows }: RowOfTile,
    codes: &mut [i32],
    sums: &mut [i32],
) -> i32 {
    let chunks = from.codes.as_chunks::<16>().0;
    let mut total = 0i32;
    let mut pack = |at: usize, slot: usize, codes: &mut [i32], sums: &mut [i32]| {
        let byte = usize::from(from.scales[slot]);
        let scaled =
            if from.planes.of_byte[byte] == from.plane { from.planes.scaled[byte] } else { 0 };
        let table = if scaled == 0 { 0 } else { scaled.trailing_zeros() as usize + 1 };
        let halves = expand(&chunks[slot], &TABLES[table]);
        let [low, high] = halves.map(dwords);
        let to = &mut codes[at * STEPS * rows + row..];
        for j in 0..4 {
            to[2 * j * rows] = low[j];
            to[(2 * j + 1) * rows] = high[j];
        }
        let pairs = halves.map(|v| _mm_maddubs_epi16(_mm_set1_epi8(1), v));
        let four = _mm_madd_epi16(_mm_add_epi16(pairs[0], pairs[1]), _mm_set1_epi16(1));
        let sum = dwords(four).iter().sum();
        sums[at * rows + row] = sum;
        total = total.wrapping_add(sum);
    };
    match from.slots {
        None => (0..chunks.len()).for_each(|slot| pack(slot, slot, codes, sums)),
        Some(slots) => {
            slots.iter().enumerate().for_each(|(at, &s)| pack(at, s as usize, codes, sums));
        }
    }
    total
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
        let [low, high] = expand(bytes, &TABLES[1]);
        // Lanes: half 0 steps 0 and 2 of the low nibbles, half 1; wanted step by step.
        let to = &mut codes[(slot * rows + row) * STEPS..][..STEPS];
        let (l, h) = (dwords(low), dwords(high));
        to.copy_from_slice(&[l[0], l[2], h[0], h[2], l[1], l[3], h[1], h[3]]);
        let pairs = |v| _mm_maddubs_epi16(_mm_set1_epi8(12), v);
        let sums = _mm_add_epi16(pairs(low), pairs(high));
        // The two lanes of each half.
        let sums = _mm_add_epi16(sums, _mm_shuffle_epi32::<0b10_11_00_01>(sums));
        let negative = _mm_sub_epi16(_mm_setzero_si128(), sums);
        let negative = if split { negative } else { _mm_madd_epi16(negative, _mm_set1_epi16(1)) };
        let lanes = dwords(negative);
        init[slot * rows + row] = [lanes[0], lanes[2]];
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
        // 12 times pairs, in magnitude up to 3072, of which eight fit an i16.
        let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(12), steps);
        let sums = _mm256_add_epi16(pairs, _mm256_shuffle_epi32::<0b10_11_00_01>(pairs));
        let sums = _mm256_add_epi16(sums, _mm256_shuffle_epi32::<0b01_00_11_10>(sums));
        let negative = _mm256_sub_epi16(_mm256_setzero_si256(), sums);
        let one = _mm256_set1_epi16(1);
        let negative = if split { negative } else { _mm256_madd_epi16(negative, one) };
        let lanes: [i32; 8] = bytemuck::cast(negative);
        init[slot * rows + row] = [lanes[0], lanes[4]];
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
