//! The quantizer on AVX2: eight values at a time, ties to even (C1, C4, C5).
//!
//! ```text
//! amax    the largest |x| as an integer: the bits of non-negative floats order as their values,
//!         and a NaN's are above those of infinity; up to eight groups are reduced together
//! scale   core's rule, and the reciprocals of the units, for eight groups at a time
//! code    by the reciprocal of the group's unit ([`reciprocal`]), where the proof is: the upper
//!         halves of two vectors of bits in one, cells from two of those, a table of 16 bytes for
//!         the cells from 0.75 on
//! ```
//!
//! Of 32 values, those that have a group without a reciprocal are divided: [`encode`] of q = x / d,
//!
//! ```text
//! of a = min(|q|, 6), NaN included, e = the exponent of max(a, 1), 0 to 2:
//!         n = the last bits of a + 2^(e + 22), whose unit is 2^(e - 1): nearest even of a / 2^(e - 1)
//!         code = n + 2 * e, and 2^(e + 22) as bits is (e + 149) << 23, which is 2 * e + 298 after >> 22
//! ```
//!
//! The sum is below 2^(e + 23), so its unit is 2^(e - 1): the distance of codes in the binade of a,
//! which below 1 is that of [1, 2). A code is even where n is, so ties agree.
//!
//! Worked example: 2.5 is between codes 4 and 5, and e = 1. The unit of 2^23 + 2.5 is 1; the
//! nearest even is 2^23 + 2, n = 2 and the code is 2 + 2 * 1 = 4, the even one. 5 has e = 2 and
//! unit 2: n = 2, code 6.
//!
//! [`reciprocal`]: crate::quantize::reciprocal
//!
//! The transform's chains are real fused multiply-adds, of eight vectors of outputs at a time.

use std::arch::x86_64::*;

use fp4_core::{FloatType, GroupSize, QuantSpec};

use super::Avx2;
use crate::counts::{GROUPS, Groups};
use crate::kernels::x86::{LANES, NAN, quantize_int8, scales};
use crate::matmul::Kernels;
use crate::quantize::reciprocal::{CELL_LESS_ONE, CELL_SHIFT, CODES, FIRST, LAST_CELL, THIRD_ULP};
use crate::quantize::{Encode, FloatValue};

/// What the exponent of 2^22 adds to a code.
const BIASED: i16 = 149 << 1;

/// Ties to even.
impl Encode for Avx2 {
    fn run(
        &self,
        y: &[f32],
        spec: &QuantSpec,
        given: bool,
        scales: &mut [u8],
        codes: &mut [u8],
        groups: &mut Groups,
    ) {
        // SAFETY: the token proves the features.
        unsafe { run(y, spec, given, scales, codes, groups) }
    }

    fn largest(&self, y: &[f32]) -> u32 {
        // SAFETY: the token proves AVX2.
        unsafe { scales::largest_bits(y) }
    }

    fn run_int8(&self, y: &[f32], scales: &mut [u8], elements: &mut [u8]) -> bool {
        // SAFETY: the token proves AVX2.
        unsafe { quantize_int8::run(y, scales, elements) }
    }

    fn chains<T: FloatValue>(&self, block: usize, x: &[f32], columns: &[f32], y: &mut [f32]) {
        // SAFETY: the token proves the features.
        unsafe { chains(block, x, columns, y) }
        if T::TYPE != FloatType::F32 {
            self.enter(
                #[inline(always)]
                || y.iter_mut().for_each(|y| *y = T::from_f32(*y).to_f32()),
            );
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(x: &[f32; 8]) -> __m256 {
    // SAFETY: 32 readable bytes.
    unsafe { _mm256_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(from: __m256, to: &mut [f32; 8]) {
    // SAFETY: 32 writable bytes.
    unsafe { _mm256_storeu_ps(to.as_mut_ptr(), from) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn int(v: i32) -> __m256i {
    _mm256_set1_epi32(v)
}

#[target_feature(enable = "avx2,fma")]
fn run(
    y: &[f32],
    spec: &QuantSpec,
    given: bool,
    scales: &mut [u8],
    codes: &mut [u8],
    known: &mut Groups,
) {
    match spec.group() {
        GroupSize::G16 => groups::<16>(y, spec, given, scales, codes, known),
        GroupSize::G32 => groups::<32>(y, spec, given, scales, codes, known),
        GroupSize::G64 => groups::<64>(y, spec, given, scales, codes, known),
        GroupSize::G128 => groups::<128>(y, spec, given, scales, codes, known),
    }
}

/// Groups of G, up to a run of them.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn groups<const G: usize>(
    y: &[f32],
    spec: &QuantSpec,
    given: bool,
    scales: &mut [u8],
    codes: &mut [u8],
    known: &mut Groups,
) {
    let groups = y.as_chunks::<G>().0;
    let (eights, rest) = groups.as_chunks::<LANES>();
    for (i, to) in known.largest.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let largest = match eights.get(i) {
            Some(eight) => largest(eight),
            None if i == eights.len() => largest(rest),
            None => break,
        };
        store(_mm256_castsi256_ps(largest), to);
    }
    // All scales of the run first: one group's wait is filled by the others.
    let reciprocals = scales::groups(groups.len(), spec, given, scales, known);
    let encode = |i: usize, y: &[[f32; 8]; 4]| {
        let of = |all: &[f32; GROUPS]| -> [f32; 4] {
            std::array::from_fn(|j| all[(4 * i + j) * 8 / G % GROUPS])
        };
        let groups = ((1 << 32usize.div_ceil(G)) - 1) << (32 * i / G);
        if reciprocals.divided & groups == 0 {
            multiplied(y, of(&reciprocals.high), of(&reciprocals.low))
        } else {
            divided(y, of(&known.units))
        }
    };
    let (fours, rest) = y.as_chunks::<8>().0.as_chunks::<4>();
    let (whole, last) = codes.as_chunks_mut::<16>();
    for (i, (y, codes)) in fours.iter().zip(whole).enumerate() {
        *codes = encode(i, y);
    }
    // A last group of 16.
    if let &[e, f] = rest {
        let codes = encode(fours.len(), &[e, f, [0.0; 8], [0.0; 8]]);
        last.copy_from_slice(&codes[..8]);
    }
}

/// The codes of 32 values by their quotients; `d` has the units of the four vectors' groups.
#[cold]
#[target_feature(enable = "avx2,fma")]
fn divided(y: &[[f32; 8]; 4], d: [f32; 4]) -> [u8; 16] {
    let mut codes = [0; 16];
    // Two vectors of values are eight bytes of codes.
    let pairs = y.as_chunks::<2>().0.iter().zip(d.as_chunks::<2>().0);
    for (([e, f], [d, _]), codes) in pairs.zip(codes.as_chunks_mut::<8>().0) {
        let (e, f, dd) = (load(e), load(f), _mm256_set1_ps(*d));
        *codes = if *d == 0.0 {
            // Zeros with their signs (C4.3).
            pack(signs([e, f]))
        } else {
            encode([_mm256_div_ps(e, dd), _mm256_div_ps(f, dd)])
        };
    }
    codes
}

/// The bits of the largest magnitude of each of up to eight groups, a NaN's if there is one (C4.1).
/// Past the last 1, because the processor takes long for the subnormal scales of zeros.
#[inline]
#[target_feature(enable = "avx2")]
fn largest<const G: usize>(groups: &[[f32; G]]) -> __m256i {
    let mut all = [_mm256_castps_si256(_mm256_set1_ps(1.0)); LANES];
    for (all, y) in all.iter_mut().zip(groups) {
        *all = _mm256_setzero_si256();
        for y in y.as_chunks::<8>().0 {
            let bits = _mm256_and_si256(_mm256_castps_si256(load(y)), int(i32::MAX));
            *all = _mm256_max_epu32(*all, bits);
        }
    }
    // A transposition that keeps the larger of the two halves at each step: of two groups with the
    // lanes alternating, of four in each half, of eight.
    let two = |a, b| _mm256_max_epu32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    let four = |a, b| _mm256_max_epu32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    let [a, b, c, d, e, f, g, h] = all;
    let (low, high) = (four(two(a, b), two(c, d)), four(two(e, f), two(g, h)));
    _mm256_max_epu32(
        _mm256_permute2x128_si256::<0x20>(low, high),
        _mm256_permute2x128_si256::<0x31>(low, high),
    )
}

/// The last cell whose code is 1.
const LAST_OF_ONE: usize = 6;
/// What the codes of the cells from that on are above 1.
const MORE: [u8; 16] = {
    let mut more = [0; 16];
    let mut i = 1;
    while i < 16 {
        more[i] = CODES[LAST_OF_ONE + i] - 1;
        i += 1;
    }
    more
};

/// The codes of 32 values by the reciprocals of their groups, a vector's in one place of `high` and
/// `low`: [`reciprocal`](crate::quantize::reciprocal).
#[inline]
#[target_feature(enable = "avx2,fma")]
fn multiplied(y: &[[f32; 8]; 4], high: [f32; 4], low: [f32; 4]) -> [u8; 16] {
    let rounded = |v: usize| {
        let y = load(&y[v]);
        let low = _mm256_mul_ps(y, _mm256_set1_ps(low[v]));
        let q = _mm256_fmadd_ps(y, _mm256_set1_ps(high[v]), low);
        let to_even = _mm256_fmadd_ps(q, _mm256_set1_ps(THIRD_ULP), q);
        _mm256_add_epi32(_mm256_castps_si256(to_even), int(CELL_LESS_ONE))
    };
    // The upper halves, of the one in the even places, of the other in the odd ones.
    let words = |a, b| _mm256_blend_epi16::<0b1010_1010>(_mm256_srli_epi32::<16>(a), b);
    let (e, f) = (words(rounded(0), rounded(1)), words(rounded(2), rounded(3)));
    let cells = |words| {
        let magnitude = _mm256_add_epi16(words, words);
        _mm256_srli_epi16::<{ CELL_SHIFT as i32 }>(_mm256_subs_epu16(
            magnitude,
            _mm256_set1_epi16(FIRST),
        ))
    };
    let cells = _mm256_packus_epi16(cells(e), cells(f));
    let cells = _mm256_min_epu8(cells, _mm256_set1_epi8(LAST_CELL as i8));
    // One past 0.25, and what the cells of 0.75 and more have besides.
    // SAFETY: 16 readable bytes.
    let table = unsafe { _mm_loadu_si128(MORE.as_ptr().cast()) };
    let table = _mm256_broadcastsi128_si256(table);
    let more =
        _mm256_shuffle_epi8(table, _mm256_subs_epu8(cells, _mm256_set1_epi8(LAST_OF_ONE as i8)));
    let magnitude = _mm256_add_epi8(more, _mm256_min_epu8(cells, _mm256_set1_epi8(1)));
    let signs = _mm256_srli_epi16::<4>(_mm256_packs_epi16(e, f));
    let single = _mm256_or_si256(magnitude, _mm256_and_si256(signs, _mm256_set1_epi8(8)));
    let pairs = _mm256_or_si256(single, _mm256_srli_epi32::<12>(single));
    // The two pairs that each half has of each vector, then the halves side by side.
    let order = _mm256_setr_epi8(
        0, 4, 1, 5, 8, 12, 9, 13, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 1, 5, 8, 12, 9, 13, -1, -1,
        -1, -1, -1, -1, -1, -1,
    );
    let pairs = _mm256_shuffle_epi8(pairs, order);
    let (low, high) = (_mm256_castsi256_si128(pairs), _mm256_extracti128_si256::<1>(pairs));
    let mut codes = [0; 16];
    // SAFETY: 16 writable bytes.
    unsafe { _mm_storeu_si128(codes.as_mut_ptr().cast(), _mm_unpacklo_epi16(low, high)) };
    codes
}

/// The code of each magnitude, with [`BIASED`] more.
#[inline]
#[target_feature(enable = "avx2")]
fn encode_biased(q: __m256) -> __m256i {
    let magnitude = _mm256_and_ps(q, _mm256_castsi256_ps(int(i32::MAX)));
    // The minimum with a NaN is its second operand.
    let a = _mm256_min_ps(magnitude, _mm256_set1_ps(6.0));
    let binade = _mm256_castps_si256(_mm256_max_ps(a, _mm256_set1_ps(1.0)));
    let binade = _mm256_and_si256(binade, int(f32::INFINITY.to_bits() as i32));
    let magic = _mm256_add_epi32(binade, int(22 << 23));
    let sum = _mm256_castps_si256(_mm256_add_ps(a, _mm256_castsi256_ps(magic)));
    _mm256_add_epi32(_mm256_sub_epi32(sum, magic), _mm256_srli_epi32::<22>(magic))
}

/// Packs the codes of sixteen quotients, low nibble first (C3).
#[inline]
#[target_feature(enable = "avx2")]
fn encode([e, f]: [__m256; 2]) -> [u8; 8] {
    // In each half four of e, then four of f.
    let codes = _mm256_packus_epi32(encode_biased(e), encode_biased(f));
    let codes = _mm256_sub_epi16(codes, _mm256_set1_epi16(BIASED));
    // NaN is +6 whatever its sign (C1).
    let number = |q: __m256| _mm256_and_ps(q, _mm256_cmp_ps::<_CMP_ORD_Q>(q, q));
    pack(_mm256_or_si256(codes, signs([number(e), number(f)])))
}

/// The signs of sixteen values as bit 3 of codes, in each half four of the first, then of the
/// second.
#[inline]
#[target_feature(enable = "avx2")]
fn signs([e, f]: [__m256; 2]) -> __m256i {
    // Saturation keeps the sign.
    let words = _mm256_packs_epi32(_mm256_castps_si256(e), _mm256_castps_si256(f));
    _mm256_and_si256(_mm256_srli_epi16::<12>(words), _mm256_set1_epi16(8))
}

/// Packs sixteen codes in the order of [`signs`], low nibble first (C3).
#[inline]
#[target_feature(enable = "avx2")]
fn pack(codes: __m256i) -> [u8; 8] {
    // A pair of codes a lane, low + 16 * high; the four bytes of a half; e's four and f's four.
    let pairs = _mm256_madd_epi16(codes, int(0x10_0001));
    let bytes = _mm256_shuffle_epi8(pairs, int(0x0C08_0400));
    let (low, high) = (_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes));
    (_mm_cvtsi128_si64(_mm_unpacklo_epi16(low, high)) as u64).to_le_bytes()
}

/// The chains of whole blocks: in each, `y[j]` = fma chain over `x[i] * columns[i * block + j]`.
/// NaN is canonical (C9).
///
/// # Panics
/// Unless `x` and `y` are as long, whole blocks, and `columns` a square.
#[target_feature(enable = "avx2,fma")]
fn chains(block: usize, x: &[f32], columns: &[f32], y: &mut [f32]) {
    assert!(x.len() == y.len() && x.len().is_multiple_of(block) && columns.len() == block * block);
    for first in (0..block).step_by(16) {
        // SAFETY: blocks are of 16 values or more, and what is left of `x` and `y` is whole ones.
        unsafe {
            let (x, y) = blocks::<4>(block, first, x, columns, y);
            blocks::<1>(block, first, x, columns, y);
        }
    }
}

/// The outputs `first..first + 16` of blocks, R of them at a time. Returns the rest, which is
/// fewer.
///
/// # Safety
/// `x` and `y` are as long, and whole blocks; `columns` has `block * block` values; `first + 16` is
/// at most `block`.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn blocks<'a, const R: usize>(
    block: usize,
    first: usize,
    x: &'a [f32],
    columns: &[f32],
    y: &'a mut [f32],
) -> (&'a [f32], &'a mut [f32]) {
    let whole = x.len() / (R * block) * (R * block);
    let ((now, x), (to, y)) = (x.split_at(whole), y.split_at_mut(whole));
    for (x, y) in now.chunks_exact(R * block).zip(to.chunks_exact_mut(R * block)) {
        let mut acc = [[_mm256_setzero_ps(); 2]; R];
        for i in 0..block {
            // SAFETY: `i` is less than `block`, `first + 16` is not more.
            let t: [__m256; 2] = std::array::from_fn(|v| unsafe {
                _mm256_loadu_ps(columns.as_ptr().add(i * block + first + 8 * v))
            });
            for (r, acc) in acc.iter_mut().enumerate() {
                // SAFETY: `x` is R blocks.
                let x = _mm256_set1_ps(unsafe { *x.get_unchecked(r * block + i) });
                for (acc, &t) in acc.iter_mut().zip(&t) {
                    *acc = _mm256_fmadd_ps(x, t, *acc);
                }
            }
        }
        for (y, acc) in y.chunks_exact_mut(block).zip(acc) {
            for (y, acc) in y[first..].as_chunks_mut::<8>().0.iter_mut().zip(acc) {
                let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(acc, acc);
                store(_mm256_blendv_ps(acc, _mm256_set1_ps(NAN), nan), y);
            }
        }
    }
    (x, y)
}

#[cfg(test)]
mod tests {
    use fp4_core::E2m1;

    use super::*;
    use crate::kernels::x86::{check_largest, magnitudes};
    use crate::quantize::PART;

    #[test]
    fn vectors_of_codes_are_cores_codes_each_in_its_place() {
        if Avx2::new().is_err() {
            println!("not checked: no AVX2");
            return;
        }
        let mut compared = 0;
        let bits = magnitudes().into_iter().flat_map(|m| [m, m | 1 << 31]);
        let values: Vec<f32> = bits.map(f32::from_bits).collect();
        for q in values.as_chunks::<16>().0 {
            let expected = q.map(|q| E2m1::from_f32(q).to_bits());
            let expected: [u8; 8] =
                std::array::from_fn(|i| expected[2 * i] | expected[2 * i + 1] << 4);
            let [low, high] = q.as_chunks::<8>().0 else { unreachable!() };
            // SAFETY: the CPU has the features.
            let got = unsafe { encode([load(low), load(high)]) };
            assert_eq!(got, expected, "{q:?}");
            compared += q.len();
        }
        println!("compared {compared} codes");
        assert_eq!(compared, 2 * 256 * 80);
    }

    #[test]
    fn the_largest_magnitude_is_found_in_every_place() {
        if Avx2::new().is_err() {
            println!("not checked: no AVX2");
            return;
        }
        fn bits<const G: usize>(y: &[f32; PART]) -> [f32; LANES] {
            let mut got = [0f32; LANES];
            // SAFETY: the CPU has the features.
            unsafe { store(_mm256_castsi256_ps(largest(y.as_chunks::<G>().0)), &mut got) };
            got
        }
        let compared = [
            check_largest(16, bits::<16>),
            check_largest(32, bits::<32>),
            check_largest(64, bits::<64>),
            check_largest(128, bits::<128>),
        ];
        println!("compared {compared:?} groups");
        assert_eq!(compared, [128 * 4 * 8; 4]);
    }
}
