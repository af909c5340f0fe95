//! Scales of up to eight groups at a time, for the quantizers of both instruction sets (C2, C4).
//!
//! ```text
//! s      = largest / (ss * gs), one IEEE division
//! e4m3   s >= 2^-6   the bits rounded to three bits of mantissa, ties to even, then moved so that 2^-6 is 8
//!        s <  2^-6   the last bits of s + 2^14, whose unit is 2^-9
//! e8m0   the exponent of the bits plus half an octave, at most 254; 0 below 1.5 * 2^-127
//! unit   the byte's value * gs
//! ```
//!
//! Worked example, e8m0: 1.5 is 0x3FC00000; plus 0x00400000 it is 0x40000000, whose exponent is
//! 128, the byte of 2: ties go up. 1.4 * 2^-127 is 0x00599999, below 0x00600000, and gives byte 0
//! where the sum's exponent would be 1: a subnormal's octave is counted differently.

use std::arch::x86_64::*;

use fp4_core::{QuantSpec, ScaleType};

use super::{LANES, NAN};
use crate::counts::{GROUPS, Groups, LEAST, NOT_CLIPPED, NOT_FLUSHED, Plain};
use crate::quantize::reciprocal::{LARGEST, LAST_SIGNIFICAND, LEAST_UNIT, MOST_UNIT};

/// The reciprocals of a run's groups, in two parts each.
#[derive(Debug)]
pub(super) struct Reciprocals {
    /// The larger.
    pub(super) high: [f32; GROUPS],
    pub(super) low: [f32; GROUPS],
    /// A bit for each group that is to be divided.
    pub(super) divided: u32,
}

/// The scale bytes of a run's first `count` groups, whose largest magnitudes are in `known`, unless
/// they are given; what is known of the groups; and their reciprocals. The largest magnitudes of a
/// vector that is not full are to be those of some groups.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn groups(
    count: usize,
    spec: &QuantSpec,
    given: bool,
    to: &mut [u8],
    known: &mut Groups,
) -> Reciprocals {
    let mut all = Reciprocals { high: [0.0; GROUPS], low: [0.0; GROUPS], divided: 0 };
    let Groups { largest, units, top, plain, clear } = known;
    *clear = true;
    let vectors = largest.as_chunks().0.iter().zip(units.as_chunks_mut::<LANES>().0);
    let parts = all.high.as_chunks_mut().0.iter_mut().zip(all.low.as_chunks_mut().0);
    for (v, ((largest, units), parts)) in vectors.zip(parts).take(count.div_ceil(LANES)).enumerate()
    {
        let (to, there) = (&mut to[v * LANES..], (1 << (count - v * LANES).min(LANES)) - 1);
        let largest = _mm256_castps_si256(load(largest));
        if given {
            units.iter_mut().zip(to).for_each(|(unit, scale)| *unit = spec.unit(*scale));
        } else {
            let bytes;
            (bytes, *units) = scales(largest, spec);
            match to.first_chunk_mut() {
                Some(to) => *to = bytes,
                None => to.iter_mut().zip(bytes).for_each(|(scale, byte)| *scale = byte),
            }
        }
        *clear &= clears(largest, units, plain, *top, there);
        let divided = reciprocals(largest, units, parts);
        all.divided |= ((divided & there) as u32) << (v * LANES);
    }
    all
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(from: &[f32; LANES]) -> __m256 {
    // SAFETY: 32 readable bytes.
    unsafe { _mm256_loadu_ps(from.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn int(v: i32) -> __m256i {
    _mm256_set1_epi32(v)
}

/// The scale bytes of groups with these largest magnitudes, as bits, and what a unit of a code is
/// worth under each: core's [`QuantSpec::encode_scale`] and [`QuantSpec::unit`].
#[inline]
#[target_feature(enable = "avx2")]
fn scales(largest: __m256i, spec: &QuantSpec) -> ([u8; LANES], [f32; LANES]) {
    let divisor = spec.scale_scale() * spec.global_scale();
    let s = _mm256_div_ps(_mm256_castsi256_ps(largest), _mm256_set1_ps(divisor));
    let (bytes, values) = match spec.scale_type() {
        ScaleType::E4M3 => e4m3(s),
        ScaleType::E8M0 => e8m0(s),
    };
    let mut units = [0f32; LANES];
    // SAFETY: 32 writable bytes.
    unsafe {
        let worth = _mm256_mul_ps(values, _mm256_set1_ps(spec.global_scale()));
        _mm256_storeu_ps(units.as_mut_ptr(), worth);
    }
    (low_bytes(bytes), units)
}

/// The reciprocals of groups with these largest magnitudes and units: [`reciprocal`] of each, to
/// `parts`. Returns a bit for each that has none.
///
/// [`reciprocal`]: crate::quantize::reciprocal::reciprocal
#[inline]
#[target_feature(enable = "avx2,fma")]
fn reciprocals(
    largest: __m256i,
    units: &[f32; LANES],
    parts: (&mut [f32; LANES], &mut [f32; LANES]),
) -> i32 {
    let d = load(units);
    let bits = _mm256_castps_si256(d);
    let (one, none) = (_mm256_set1_ps(1.0), _mm256_setzero_ps());
    let no_values = _mm256_castsi256_ps(_mm256_cmpeq_epi32(largest, _mm256_setzero_si256()));
    let zero = _mm256_or_ps(
        _mm256_cmp_ps::<_CMP_EQ_OQ>(d, none),
        _mm256_and_ps(no_values, _mm256_cmp_ps::<_CMP_GE_OQ>(d, none)),
    );
    // Bits of positive floats order as their values; those of negative ones are below.
    let outside = _mm256_or_si256(
        _mm256_cmpgt_epi32(int(LEAST_UNIT.to_bits() as i32), bits),
        _mm256_cmpgt_epi32(bits, int(MOST_UNIT.to_bits() as i32)),
    );
    let significand = int(LAST_SIGNIFICAND as i32);
    let last = _mm256_cmpeq_epi32(_mm256_and_si256(bits, significand), significand);
    let outside = _mm256_or_si256(outside, last);
    let large = _mm256_cmpgt_epi32(largest, int(LARGEST.to_bits() as i32));
    let outside = _mm256_or_ps(
        _mm256_andnot_ps(zero, _mm256_castsi256_ps(outside)),
        _mm256_castsi256_ps(large),
    );
    // The processor takes long to divide by a subnormal.
    let d = _mm256_blendv_ps(d, one, zero);
    let nearest = _mm256_div_ps(one, d);
    // The sign of what is left is -1 as an integer.
    let above = _mm256_srai_epi32::<31>(_mm256_castps_si256(_mm256_fnmadd_ps(d, nearest, one)));
    let high = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(nearest), above));
    let rest = _mm256_fnmadd_ps(d, high, one);
    let low = _mm256_mul_ps(rest, high);
    let low = _mm256_fmadd_ps(low, rest, low);
    for (to, value) in [(parts.0, high), (parts.1, low)] {
        // SAFETY: 32 writable bytes.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), _mm256_andnot_ps(zero, value)) };
    }
    _mm256_movemask_ps(outside)
}

/// The bits of the largest magnitude of whole groups, a NaN's if there is one: of a row, for both
/// instruction sets.
#[target_feature(enable = "avx2")]
pub(super) fn largest_bits(y: &[f32]) -> u32 {
    // Four chains, because a maximum waits for the one before.
    let mut all = [_mm256_setzero_si256(); 4];
    let (chunks, rest) = y.as_chunks::<32>();
    let mut step = |y: &[f32]| {
        for (all, y) in all.iter_mut().zip(y.as_chunks::<8>().0) {
            // SAFETY: 32 readable bytes.
            let bits = unsafe { _mm256_loadu_si256(y.as_ptr().cast()) };
            *all = _mm256_max_epu32(*all, _mm256_and_si256(bits, int(i32::MAX)));
        }
    };
    chunks.iter().for_each(|y| step(y));
    step(rest);
    let [a, b, c, d] = all;
    let all = _mm256_max_epu32(_mm256_max_epu32(a, b), _mm256_max_epu32(c, d));
    let mut lanes = [0u32; 8];
    // SAFETY: 32 writable bytes.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), all) };
    lanes.into_iter().fold(0, u32::max)
}

/// True if there is nothing to count in the groups that are `there`, by a bit each:
/// [`Groups::look`] in vectors.
///
/// [`Groups::look`]: crate::counts::Groups::look
#[inline]
#[target_feature(enable = "avx2")]
fn clears(largest: __m256i, units: &[f32; LANES], plain: &Plain, top: f32, there: i32) -> bool {
    let inside = _mm256_andnot_si256(
        _mm256_cmpgt_epi32(int(plain.least), largest),
        _mm256_cmpgt_epi32(int(plain.end), largest),
    );
    let clear = _mm256_or_si256(inside, _mm256_cmpeq_epi32(largest, int(plain.zero)));
    let clear = _mm256_movemask_ps(_mm256_castsi256_ps(clear));
    clear & there == there || looked_at(largest, units, top, there)
}

/// The same for groups that are not all plain.
#[inline(never)]
#[target_feature(enable = "avx2")]
fn looked_at(largest: __m256i, units: &[f32; LANES], top: f32, there: i32) -> bool {
    let (amax, zero) = (_mm256_castsi256_ps(largest), _mm256_setzero_ps());
    let d = _mm256_and_ps(load(units), _mm256_castsi256_ps(int(i32::MAX)));
    let times = |by| _mm256_mul_ps(amax, _mm256_set1_ps(by));
    let inside = _mm256_and_ps(
        _mm256_cmp_ps::<_CMP_GE_OQ>(amax, _mm256_set1_ps(LEAST)),
        _mm256_cmp_ps::<_CMP_LT_OQ>(amax, _mm256_set1_ps(top)),
    );
    let by_d = _mm256_and_ps(
        _mm256_cmp_ps::<_CMP_LE_OQ>(times(NOT_CLIPPED), d),
        _mm256_cmp_ps::<_CMP_GE_OQ>(times(NOT_FLUSHED), d),
    );
    let none = _mm256_and_ps(
        _mm256_cmp_ps::<_CMP_EQ_OQ>(amax, zero),
        _mm256_cmp_ps::<_CMP_GE_OQ>(d, zero),
    );
    let clear = _mm256_movemask_ps(_mm256_or_ps(none, _mm256_and_ps(inside, by_d)));
    clear & there == there
}

/// Non-negative values and NaN as e4m3 bytes, and what the bytes are worth.
#[inline]
#[target_feature(enable = "avx2")]
fn e4m3(s: __m256) -> (__m256i, __m256) {
    let select = |no, yes, mask: __m256| _mm256_blendv_ps(no, yes, mask);
    let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(s, s);
    let s = _mm256_min_ps(s, _mm256_set1_ps(448.0));
    let bits = _mm256_castps_si256(s);
    let odd = _mm256_and_si256(_mm256_srli_epi32::<20>(bits), int(1));
    let rounded = _mm256_add_epi32(_mm256_add_epi32(bits, odd), int(0x7_FFFF));
    let large = _mm256_sub_epi32(_mm256_srli_epi32::<20>(rounded), int(120 << 3));
    let is_small = _mm256_cmp_ps::<_CMP_LT_OQ>(s, _mm256_set1_ps(1.0 / 64.0));
    let halves = _mm256_castps_si256(_mm256_add_ps(s, _mm256_set1_ps(16384.0)));
    let small = _mm256_sub_epi32(halves, int(16384f32.to_bits() as i32));
    let byte = select(_mm256_castsi256_ps(large), _mm256_castsi256_ps(small), is_small);
    let byte = select(byte, _mm256_castsi256_ps(int(0x7F)), nan);
    let byte = _mm256_castps_si256(byte);
    let normal = _mm256_slli_epi32::<20>(_mm256_add_epi32(byte, int(120 << 3)));
    let subnormal = _mm256_mul_ps(_mm256_cvtepi32_ps(byte), _mm256_set1_ps(1.0 / 512.0));
    let few = _mm256_castsi256_ps(_mm256_cmpgt_epi32(int(8), byte));
    let value = select(_mm256_castsi256_ps(normal), subnormal, few);
    (byte, select(value, _mm256_set1_ps(NAN), nan))
}

/// Non-negative values and NaN as e8m0 bytes, and what the bytes are worth.
#[inline]
#[target_feature(enable = "avx2")]
fn e8m0(s: __m256) -> (__m256i, __m256) {
    let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(s, s));
    let bits = _mm256_castps_si256(s);
    let rounded = _mm256_srli_epi32::<23>(_mm256_add_epi32(bits, int(0x0040_0000)));
    let byte = _mm256_min_epi32(rounded, int(254));
    // Non-negative bits order as integers.
    let above_least = _mm256_cmpgt_epi32(bits, int(0x005F_FFFF));
    let byte = _mm256_and_si256(byte, above_least);
    let least = _mm256_andnot_si256(above_least, int(0x0040_0000));
    let value = _mm256_or_si256(_mm256_slli_epi32::<23>(byte), least);
    (
        _mm256_blendv_epi8(byte, int(0xFF), nan),
        _mm256_castsi256_ps(_mm256_blendv_epi8(value, int(NAN.to_bits() as i32), nan)),
    )
}

/// The lowest byte of each of eight lanes, which are at most 255.
#[inline]
#[target_feature(enable = "avx2")]
fn low_bytes(lanes: __m256i) -> [u8; LANES] {
    let words =
        _mm_packus_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256::<1>(lanes));
    (_mm_cvtsi128_si64(_mm_packus_epi16(words, words)) as u64).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::super::{Avx2, magnitudes};
    use super::*;

    #[test]
    fn vectors_of_scales_are_cores_scales() {
        if Avx2::new().is_err() {
            println!("not checked: no AVX2");
            return;
        }
        let mut compared = 0;
        for ty in ScaleType::ALL {
            for bits in magnitudes().as_chunks::<LANES>().0 {
                let s = bits.map(f32::from_bits);
                let mut values = [0f32; LANES];
                // SAFETY: the CPU has the feature; 32 readable or writable bytes each.
                let bytes = unsafe {
                    let s = _mm256_loadu_ps(s.as_ptr());
                    let (bytes, worth) = if ty == ScaleType::E4M3 { e4m3(s) } else { e8m0(s) };
                    _mm256_storeu_ps(values.as_mut_ptr(), worth);
                    low_bytes(bytes)
                };
                for ((s, byte), value) in s.into_iter().zip(bytes).zip(values) {
                    let expected = ty.encode(s);
                    assert_eq!(byte, expected, "{ty} {s:e}");
                    assert_eq!(value.to_bits(), ty.decode(expected).to_bits(), "{ty} {s:e}");
                    compared += 1;
                }
            }
        }
        println!("compared {compared} scales");
        assert_eq!(compared, 2 * 256 * 80);
    }
}
