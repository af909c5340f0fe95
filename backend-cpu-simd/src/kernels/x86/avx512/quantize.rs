//! The quantizer on AVX-512: sixteen values at a time, ties to even (C1, C4, C5).
//!
//! ```text
//! amax    the largest |x| as an integer: the bits of non-negative floats order as their values,
//!         and a NaN's are above those of infinity; up to eight groups are reduced together
//! scale   core's rule, and the reciprocals of the units, for eight groups at a time
//! code    by the reciprocal of the group's unit ([`reciprocal`]), where the proof is: the upper
//!         halves of two vectors of bits in one, cells from two of those, one look into a table for
//!         64 values, whose index has the sign above the cell
//! ```
//!
//! Of 64 values, those that have a group without a reciprocal are divided: [`encode`] of q = x / d,
//!
//! ```text
//! of a = min(|q|, 6), NaN included, e = the exponent of max(a, 1), 0 to 2:
//!         sum = a + 2^e * (2^22 + 3), one fused operation, whose unit is 2^(e - 1)
//!         code = the low bits of bits + (bits >> 22), where bits are those of the sum
//! ```
//!
//! The sum is below 2^(e + 23), so it is rounded to the distance of codes in the binade of a, which
//! below 1 is that of [1, 2). Its last bits are n + 6, where n is the nearest even of a / 2^(e -
//! 1); a code is even where n is, so ties agree. The code is n + 2 * e; and bits >> 22 is 2 * (e +
//! 149), so the two add up to n + 2 * e + 304, and 304 is a multiple of 16.
//!
//! Worked example: 2.5 is between codes 4 and 5, and e = 1. The unit of 2^23 + 6 + 2.5 is 1; the
//! nearest even is 2^23 + 8, so n = 2 and the code is 2 + 2 * 1 = 4, the even one. 5 has e = 2 and
//! unit 2: n = 2, code 6.
//!
//! [`reciprocal`]: crate::quantize::reciprocal
//!
//! The transform's chains are real fused multiply-adds, of sixteen vectors of outputs at a time.

use std::arch::x86_64::*;

use fp4_core::{FloatType, GroupSize, QuantSpec};

use super::Avx512;
use crate::counts::{GROUPS, Groups};
use crate::kernels::x86::{LANES, NAN, quantize_int8, scales};
use crate::matmul::Kernels;
use crate::quantize::reciprocal::{CELL_LESS_ONE, CELL_SHIFT, CODES, FIRST, THIRD_ULP};
use crate::quantize::{Encode, FloatValue};

/// Ties to even.
impl Encode for Avx512 {
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
#[target_feature(enable = "avx512f")]
fn load(x: &[f32; 16]) -> __m512 {
    // SAFETY: 64 readable bytes.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,fma")]
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
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,fma")]
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
        // SAFETY: 32 writable bytes.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), largest) };
    }
    // All scales of the run first: one group's wait is filled by the others.
    let reciprocals = scales::groups(groups.len(), spec, given, scales, known);
    let encode = |i: usize, y: &[[f32; 16]; 4]| {
        let of = |all: &[f32; GROUPS]| -> [f32; 4] {
            std::array::from_fn(|j| all[(4 * i + j) * 16 / G % GROUPS])
        };
        let groups = ((1 << 64usize.div_ceil(G)) - 1) << (64 * i / G);
        if reciprocals.divided & groups == 0 {
            multiplied(y, of(&reciprocals.high), of(&reciprocals.low))
        } else {
            divided(y, of(&known.units))
        }
    };
    let (fours, rest) = y.as_chunks::<16>().0.as_chunks::<4>();
    let (whole, last) = codes.as_chunks_mut::<32>();
    for (i, (y, codes)) in fours.iter().zip(whole).enumerate() {
        *codes = encode(i, y);
    }
    if !rest.is_empty() {
        // Made whole by zeros, under any unit.
        let mut four = [[0f32; 16]; 4];
        four[..rest.len()].copy_from_slice(rest);
        last.copy_from_slice(&encode(fours.len(), &four)[..8 * rest.len()]);
    }
}

/// The bits of the largest magnitude of each of up to eight groups, a NaN's if there is one (C4.1).
/// Past the last 1, because the processor takes long for the subnormal scales of zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn largest<const G: usize>(groups: &[[f32; G]]) -> __m256i {
    let mut all = [_mm512_castps_si512(_mm512_set1_ps(1.0)); LANES];
    for (all, y) in all.iter_mut().zip(groups) {
        *all = _mm512_setzero_si512();
        for y in y.as_chunks::<16>().0 {
            *all = _mm512_max_epu32(*all, _mm512_castps_si512(_mm512_abs_ps(load(y))));
        }
    }
    // A transposition that keeps the larger of the two halves at each step: of two groups with the
    // lanes alternating; of four in each quarter; of eight, four in a quarter, in two pairs of
    // quarters.
    let two = |a, b| _mm512_max_epu32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let four = |a, b| _mm512_max_epu32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    let [a, b, c, d, e, f, g, h] = all;
    let (low, high) = (four(two(a, b), two(c, d)), four(two(e, f), two(g, h)));
    let pairs = _mm512_max_epu32(
        _mm512_shuffle_i32x4::<0b01_00_01_00>(low, high),
        _mm512_shuffle_i32x4::<0b11_10_11_10>(low, high),
    );
    _mm512_castsi512_si256(_mm512_max_epu32(
        _mm512_shuffle_i32x4::<0b10_00_10_00>(pairs, pairs),
        _mm512_shuffle_i32x4::<0b11_01_11_01>(pairs, pairs),
    ))
}

/// The codes of the cells of positive values, then of negative ones.
const SIGNED_CODES: [u8; 64] = {
    let mut codes = [0; 64];
    let mut i = 0;
    while i < 32 {
        codes[i] = CODES[i];
        codes[i + 32] = CODES[i] | 8;
        i += 1;
    }
    codes
};

/// Where the pairs of codes of four vectors are, in order: in the lowest two bytes of each lane, of
/// the first two vectors, then of the others, two lanes each in every quarter.
const PAIRS: [u8; 64] = {
    let mut order = [0; 64];
    let mut i = 0;
    while i < 32 {
        let (vector, quarter, pair) = (i / 8, i / 2 % 4, i % 2);
        order[i] = (16 * quarter + 8 * (vector / 2) + 4 * pair + vector % 2) as u8;
        i += 1;
    }
    order
};

/// The codes of 64 values by the reciprocals of their groups, a vector's in one place of `high` and
/// `low`: [`reciprocal`](crate::quantize::reciprocal).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,fma")]
fn multiplied(y: &[[f32; 16]; 4], high: [f32; 4], low: [f32; 4]) -> [u8; 32] {
    let rounded = |v: usize| {
        let y = load(&y[v]);
        let low = _mm512_mul_ps(y, _mm512_set1_ps(low[v]));
        let q = _mm512_fmadd_ps(y, _mm512_set1_ps(high[v]), low);
        let to_even = _mm512_fmadd_ps(q, _mm512_set1_ps(THIRD_ULP), q);
        _mm512_add_epi32(_mm512_castps_si512(to_even), _mm512_set1_epi32(CELL_LESS_ONE))
    };
    // The upper halves, of the one in the even places, of the other in the odd ones.
    let words = |a, b| {
        let a = _mm512_srli_epi32::<16>(a);
        _mm512_mask_blend_epi16(0xAAAA_AAAA, a, b)
    };
    let (e, f) = (words(rounded(0), rounded(1)), words(rounded(2), rounded(3)));
    let cells = |words| {
        let magnitude = _mm512_add_epi16(words, words);
        _mm512_srli_epi16::<CELL_SHIFT>(_mm512_subs_epu16(magnitude, _mm512_set1_epi16(FIRST)))
    };
    let cells = _mm512_packus_epi16(cells(e), cells(f));
    let cells = _mm512_min_epu8(cells, _mm512_set1_epi8(31));
    let signs = _mm512_srli_epi16::<2>(_mm512_packs_epi16(e, f));
    let index = _mm512_ternarylogic_epi32::<0xCA>(_mm512_set1_epi8(32), signs, cells);
    let mut codes = [0; 32];
    // SAFETY: 64 readable bytes each and 32 writable bytes.
    unsafe {
        let table = _mm512_loadu_si512(SIGNED_CODES.as_ptr().cast());
        let order = _mm512_loadu_si512(PAIRS.as_ptr().cast());
        let single = _mm512_permutexvar_epi8(index, table);
        let pairs = _mm512_or_si512(single, _mm512_srli_epi32::<12>(single));
        let in_order = _mm512_castsi512_si256(_mm512_permutexvar_epi8(order, pairs));
        _mm256_storeu_si256(codes.as_mut_ptr().cast(), in_order);
    }
    codes
}

/// The codes of 64 values by their quotients; `d` has the units of the four vectors' groups.
#[cold]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,fma")]
fn divided(y: &[[f32; 16]; 4], d: [f32; 4]) -> [u8; 32] {
    let code = |i: usize| encode(quotient(&y[i], d[i]));
    pack([code(0), code(1), code(2), code(3)])
}

/// x / d, or a zero with the sign of x if d is 0 (C4.3).
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
fn quotient(x: &[f32; 16], d: f32) -> __m512 {
    if d == 0.0 {
        return _mm512_and_ps(load(x), _mm512_set1_ps(-0.0));
    }
    _mm512_div_ps(load(x), _mm512_set1_ps(d))
}

/// The code of each value, in the low four bits of its lane; the others are zero.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,fma")]
fn encode(q: __m512) -> __m512i {
    let six = _mm512_set1_ps(6.0);
    // The minimum with a NaN is its second operand, so NaN is +6 whatever its sign (C1).
    let q = _mm512_min_ps(q, six);
    // The one of smaller magnitude, without its sign.
    let a = _mm512_range_ps::<0b10_10>(q, six);
    let exponent = _mm512_and_ps(a, _mm512_set1_ps(f32::INFINITY));
    let binade = _mm512_max_ps(exponent, _mm512_set1_ps(1.0));
    let sum = _mm512_fmadd_ps(binade, _mm512_set1_ps(4_194_307.0), a);
    let bits = _mm512_castps_si512(sum);
    let magnitude = _mm512_add_epi32(bits, _mm512_srli_epi32::<22>(bits));
    let sign = _mm512_srli_epi32::<28>(_mm512_castps_si512(q));
    // Three bits of the magnitude; above them, of four bits, the sign.
    _mm512_ternarylogic_epi32::<0xCA>(_mm512_set1_epi32(7), magnitude, sign)
}

/// Which bytes of four vectors' packed pairs make up the codes in order: of each quarter, two pairs
/// of each vector.
const ORDER: [u8; 64] = {
    let mut order = [0; 64];
    let mut i = 0;
    while i < 32 {
        let (vector, quarter, pair) = (i / 8, i / 2 % 4, i % 2);
        order[i] = (16 * quarter + 4 * vector + 2 * pair) as u8;
        i += 1;
    }
    order
};

/// Packs the codes of 64 values, low nibble first (C3).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
fn pack([e, f, g, h]: [__m512i; 4]) -> [u8; 32] {
    let bytes = _mm512_packus_epi16(_mm512_packus_epi32(e, f), _mm512_packus_epi32(g, h));
    // Low + 16 * high.
    let pairs = _mm512_maddubs_epi16(bytes, _mm512_set1_epi16(0x1001));
    let mut codes = [0; 32];
    // SAFETY: 64 readable and 32 writable bytes.
    unsafe {
        let order = _mm512_loadu_si512(ORDER.as_ptr().cast());
        let in_order = _mm512_castsi512_si256(_mm512_permutexvar_epi8(order, pairs));
        _mm256_storeu_si256(codes.as_mut_ptr().cast(), in_order);
    }
    codes
}

/// The chains of whole blocks: in each, `y[j]` = fma chain over `x[i] * columns[i * block + j]`.
/// NaN is canonical (C9).
///
/// # Panics
/// Unless `x` and `y` are as long, whole blocks, and `columns` a square.
#[target_feature(enable = "avx512f,fma")]
fn chains(block: usize, x: &[f32], columns: &[f32], y: &mut [f32]) {
    assert!(x.len() == y.len() && x.len().is_multiple_of(block) && columns.len() == block * block);
    for first in (0..block).step_by(64) {
        let (mut x, mut y) = (x, &mut *y);
        // SAFETY: what is left of `x` and `y` is at least as many blocks, `columns` are those of
        // one, and the vectors from `first` on are in it.
        unsafe {
            match block {
                16 => {
                    (x, y) = blocks::<1, 16>(block, first, x, columns, y);
                    (x, y) = blocks::<1, 4>(block, first, x, columns, y);
                    blocks::<1, 1>(block, first, x, columns, y);
                }
                32 => {
                    (x, y) = blocks::<2, 8>(block, first, x, columns, y);
                    (x, y) = blocks::<2, 4>(block, first, x, columns, y);
                    blocks::<2, 1>(block, first, x, columns, y);
                }
                _ => {
                    (x, y) = blocks::<4, 4>(block, first, x, columns, y);
                    (x, y) = blocks::<4, 2>(block, first, x, columns, y);
                    blocks::<4, 1>(block, first, x, columns, y);
                }
            }
        }
    }
}

/// The outputs `first..first + 16 * V` of blocks, R of them at a time. Returns the rest, which is
/// fewer.
///
/// # Safety
/// `x` and `y` are as long, and whole blocks; `columns` has `block * block` values; `first + 16 *
/// V` is at most `block`.
#[inline]
#[target_feature(enable = "avx512f,fma")]
unsafe fn blocks<'a, const V: usize, const R: usize>(
    block: usize,
    first: usize,
    x: &'a [f32],
    columns: &[f32],
    y: &'a mut [f32],
) -> (&'a [f32], &'a mut [f32]) {
    let whole = x.len() / (R * block) * (R * block);
    let ((now, x), (to, y)) = (x.split_at(whole), y.split_at_mut(whole));
    for (x, y) in now.chunks_exact(R * block).zip(to.chunks_exact_mut(R * block)) {
        let mut acc = [[_mm512_setzero_ps(); V]; R];
        for i in 0..block {
            // SAFETY: `i` is less than `block`, `first + 16 * V` is not more.
            let t: [__m512; V] = std::array::from_fn(|v| unsafe {
                _mm512_loadu_ps(columns.as_ptr().add(i * block + first + 16 * v))
            });
            for (r, acc) in acc.iter_mut().enumerate() {
                // SAFETY: `x` is R blocks.
                let x = _mm512_set1_ps(unsafe { *x.get_unchecked(r * block + i) });
                for (acc, &t) in acc.iter_mut().zip(&t) {
                    *acc = _mm512_fmadd_ps(x, t, *acc);
                }
            }
        }
        for (y, acc) in y.chunks_exact_mut(block).zip(acc) {
            for (y, acc) in y[first..].as_chunks_mut::<16>().0.iter_mut().zip(acc) {
                let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(acc, acc);
                let acc = _mm512_mask_mov_ps(acc, nan, _mm512_set1_ps(NAN));
                // SAFETY: 64 writable bytes.
                unsafe { _mm512_storeu_ps(y.as_mut_ptr(), acc) };
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
        if Avx512::new().is_err() {
            println!("not checked: no AVX-512");
            return;
        }
        let mut compared = 0;
        let bits = magnitudes().into_iter().flat_map(|m| [m, m | 1 << 31]);
        let values: Vec<f32> = bits.map(f32::from_bits).collect();
        for q in values.as_chunks::<64>().0 {
            let expected = q.map(|q| E2m1::from_f32(q).to_bits());
            let expected: [u8; 32] =
                std::array::from_fn(|i| expected[2 * i] | expected[2 * i + 1] << 4);
            let [e, f, g, h] = q.as_chunks::<16>().0 else { unreachable!() };
            // SAFETY: the CPU has the features.
            let got = unsafe {
                pack([encode(load(e)), encode(load(f)), encode(load(g)), encode(load(h))])
            };
            assert_eq!(got, expected, "{q:?}");
            compared += q.len();
        }
        println!("compared {compared} codes");
        assert_eq!(compared, 2 * 256 * 80);
    }

    #[test]
    fn the_largest_magnitude_is_found_in_every_place() {
        if Avx512::new().is_err() {
            println!("not checked: no AVX-512");
            return;
        }
        fn bits<const G: usize>(y: &[f32; PART]) -> [f32; LANES] {
            let mut got = [0f32; LANES];
            // SAFETY: the CPU has the features; 32 writable bytes.
            unsafe { _mm256_storeu_si256(got.as_mut_ptr().cast(), largest(y.as_chunks::<G>().0)) };
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
