//! The quantizer on AVX-512: sixteen values at a time, ties to even (C1, C4, C5).
//!
//! ```text
//! amax    the largest |x| as an integer: the bits of non-negative floats order as their values,
//!         and a NaN's are above those of infinity; up to eight groups are reduced together
//! scale   core's rule, for all groups of a run at a time
//! q       x / d, one IEEE division
//! code    of a = min(|q|, 6), NaN included, e = the exponent of max(a, 1), 0 to 2:
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
//! The transform's chains are real fused multiply-adds, one vector of outputs each.

use std::arch::x86_64::*;

use fp4_core::{GroupSize, QuantSpec};

use super::Avx512;
use crate::counts::{GROUPS, Groups};
use crate::kernels::x86::quantize_int8;
use crate::kernels::x86::scales::{clears, largest_bits, scales};
use crate::matmul::Kernels;
use crate::quantize::{Encode, FloatValue, RUN};

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
        unsafe { largest_bits(y) }
    }

    fn run_int8(&self, y: &[f32], scales: &mut [u8], elements: &mut [u8]) -> bool {
        // SAFETY: the token proves AVX2.
        unsafe { quantize_int8::run(y, scales, elements) }
    }

    fn chains<T: FloatValue>(&self, x: &[f32], columns: &[f32], y: &mut [f32]) {
        // SAFETY: the token proves the features.
        unsafe { chains(x, columns, y) }
        self.enter(
            #[inline(always)]
            || y.iter_mut().for_each(|y| *y = T::from_f32(*y).to_f32()),
        );
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
    match (<&[f32; RUN]>::try_from(y), <&mut [u8; RUN / 2]>::try_from(&mut *codes)) {
        (Ok(y), Ok(codes)) => whole(y, spec, given, scales, codes, known),
        // The last run of a task: made whole by zeros.
        _ => {
            let (mut all, mut all_codes) = ([0f32; RUN], [0; RUN / 2]);
            let mut all_scales = [0; GROUPS];
            all[..y.len()].copy_from_slice(y);
            all_scales[..scales.len()].copy_from_slice(scales);
            whole(&all, spec, given, &mut all_scales, &mut all_codes, known);
            scales.copy_from_slice(&all_scales[..scales.len()]);
            codes.copy_from_slice(&all_codes[..codes.len()]);
        }
    }
}

/// A run of 128 values; `scales` may be longer than it has groups.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,fma")]
fn whole(
    y: &[f32; RUN],
    spec: &QuantSpec,
    given: bool,
    scales: &mut [u8],
    codes: &mut [u8; RUN / 2],
    known: &mut Groups,
) {
    match spec.group() {
        GroupSize::G16 => groups::<16>(y, spec, given, scales, codes, known),
        GroupSize::G32 => groups::<32>(y, spec, given, scales, codes, known),
        GroupSize::G64 => groups::<64>(y, spec, given, scales, codes, known),
        GroupSize::G128 => groups::<128>(y, spec, given, scales, codes, known),
    }
}

/// A run in groups of G.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,fma")]
fn groups<const G: usize>(
    y: &[f32; RUN],
    spec: &QuantSpec,
    given: bool,
    to: &mut [u8],
    codes: &mut [u8; RUN / 2],
    known: &mut Groups,
) {
    let largest = largest::<G>(y);
    let Groups { largest: magnitudes, units, top, plain, clear } = known;
    // SAFETY: 32 writable bytes.
    unsafe { _mm256_storeu_si256(magnitudes.as_mut_ptr().cast(), largest) };
    if given {
        units.iter_mut().zip(&*to).for_each(|(unit, &scale)| *unit = spec.unit(scale));
    } else {
        // All scales of the run first: one group's wait is filled by the others.
        let bytes;
        (bytes, *units) = scales(largest, spec);
        to.iter_mut().zip(bytes).for_each(|(scale, byte)| *scale = byte);
    }
    *clear = clears::<G>(largest, units, plain, *top);
    let vectors = y.as_chunks::<16>().0;
    for (i, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let quotient = |j: usize| quotient(&vectors[4 * i + j], units[(4 * i + j) * 16 / G]);
        *codes = pack([
            encode(quotient(0)),
            encode(quotient(1)),
            encode(quotient(2)),
            encode(quotient(3)),
        ]);
    }
}

/// The bits of the largest magnitude of each group, a NaN's if there is one (C4.1). Past the
/// last 1, because the processor takes long for the subnormal scales of zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn largest<const G: usize>(y: &[f32; RUN]) -> __m256i {
    let mut all = [_mm512_castps_si512(_mm512_set1_ps(1.0)); GROUPS];
    all[..RUN / G].fill(_mm512_setzero_si512());
    for (all, y) in all.iter_mut().zip(y.as_chunks::<G>().0) {
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

/// The chains of one block: `y[j]` = fma chain over `x[i] * columns[i * x.len() + j]`.
#[target_feature(enable = "avx512f,fma")]
fn chains(x: &[f32], columns: &[f32], y: &mut [f32]) {
    match x.len() {
        16 => block::<1>(x, columns, y),
        32 => block::<2>(x, columns, y),
        64 => block::<4>(x, columns, y),
        _ => block::<8>(x, columns, y),
    }
}

/// A block of 16 * V.
#[inline]
#[target_feature(enable = "avx512f,fma")]
fn block<const V: usize>(x: &[f32], columns: &[f32], y: &mut [f32]) {
    let mut acc = [_mm512_setzero_ps(); V];
    for (&x, row) in x.iter().zip(columns.chunks_exact(16 * V)) {
        let x = _mm512_set1_ps(x);
        for (acc, t) in acc.iter_mut().zip(row.as_chunks::<16>().0) {
            *acc = _mm512_fmadd_ps(x, load(t), *acc);
        }
    }
    for (y, acc) in y.as_chunks_mut::<16>().0.iter_mut().zip(acc) {
        // SAFETY: 64 writable bytes.
        unsafe { _mm512_storeu_ps(y.as_mut_ptr(), acc) };
    }
}

#[cfg(test)]
mod tests {
    use fp4_core::E2m1;

    use super::*;
    use crate::kernels::x86::{check_largest, magnitudes};

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
        fn bits<const G: usize>(y: &[f32; RUN]) -> [f32; GROUPS] {
            let mut got = [0f32; GROUPS];
            // SAFETY: the CPU has the features; 32 writable bytes.
            unsafe { _mm256_storeu_si256(got.as_mut_ptr().cast(), largest::<G>(y)) };
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
