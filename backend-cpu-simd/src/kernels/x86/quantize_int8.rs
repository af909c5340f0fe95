//! The quantizer of MXINT8 on AVX2, for all three instruction sets (C10).
//!
//! The arithmetic is that of [`int8::run`], where it is proved, but for the last step: a quotient
//! of at most 127 is exact or far below a half, and `vcvtps2dq` rounds it to the nearest integer,
//! ties to even. The packing saturates nothing that small. What a group that is not plain becomes
//! is of no use to the caller, and its products, whatever they are, convert to some integer.
//!
//! ```text
//! amax     the largest |x| as an integer; the four groups of a part are reduced together
//! byte     (amax + 0x1FFFF) >> 23, factor 2^(133 - byte): for all four
//! element  x * factor, to an integer; 32 of them packed into a vector
//! ```
//!
//! [`int8::run`]: crate::quantize::int8::run

use std::arch::x86_64::*;

use crate::quantize::PART;
use crate::quantize::int8::{GROUP, LEAST, MOST};

/// Most groups of a part.
const GROUPS: usize = PART / GROUP;

/// See [`Encode::run_int8`](crate::quantize::Encode::run_int8).
#[target_feature(enable = "avx2")]
pub(super) fn run(y: &[f32], scales: &mut [u8], elements: &mut [u8]) -> bool {
    let parts = y.chunks(PART).zip(scales.chunks_mut(GROUPS)).zip(elements.chunks_mut(PART));
    parts.fold(true, |plain, ((y, scales), elements)| plain & part(y, scales, elements))
}

/// The same of up to four groups.
#[inline]
#[target_feature(enable = "avx2")]
fn part(y: &[f32], scales: &mut [u8], elements: &mut [u8]) -> bool {
    let y = y.as_chunks::<GROUP>().0;
    let amax = largest(y);
    let byte = _mm_srli_epi32::<23>(_mm_add_epi32(amax, _mm_set1_epi32(0x1_FFFF)));
    let factor = _mm_sub_epi32(_mm_set1_epi32(260), _mm_max_epi32(byte, _mm_set1_epi32(6)));
    let factor = _mm_slli_epi32::<23>(factor);
    let (mut bytes, mut factors) = ([0u32; GROUPS], [0f32; GROUPS]);
    // SAFETY: 16 writable bytes each.
    unsafe {
        _mm_storeu_si128(bytes.as_mut_ptr().cast(), byte);
        _mm_storeu_si128(factors.as_mut_ptr().cast(), factor);
    }
    scales.iter_mut().zip(bytes).for_each(|(scale, byte)| *scale = byte as u8);
    let elements = elements.as_chunks_mut::<GROUP>().0;
    for ((y, elements), factor) in y.iter().zip(elements).zip(factors) {
        let factor = _mm256_set1_ps(factor);
        let [a, b, c, d] = vectors(y).map(|y| _mm256_cvtps_epi32(_mm256_mul_ps(y, factor)));
        let packed = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
        // The halves have four of a, of b, of c and of d each.
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        let packed = _mm256_permutevar8x32_epi32(packed, order);
        // SAFETY: 32 writable bytes.
        unsafe { _mm256_storeu_si256(elements.as_mut_ptr().cast(), packed) };
    }
    // Magnitudes are not negative as integers.
    let low = _mm_cmpgt_epi32(_mm_set1_epi32(LEAST as i32), amax);
    let low = _mm_andnot_si128(_mm_cmpeq_epi32(amax, _mm_setzero_si128()), low);
    let high = _mm_cmpgt_epi32(amax, _mm_set1_epi32(MOST as i32));
    let rest = _mm_or_si128(low, high);
    _mm_testz_si128(rest, rest) == 1
}

#[inline]
#[target_feature(enable = "avx2")]
fn vectors(y: &[f32; GROUP]) -> [__m256; 4] {
    // SAFETY: each 32 readable bytes of the group.
    [0, 8, 16, 24].map(|at| unsafe { _mm256_loadu_ps(y.as_ptr().add(at)) })
}

/// The bits of the largest magnitude of each group, a NaN's if there is one; 0 past the last.
#[inline]
#[target_feature(enable = "avx2")]
fn largest(y: &[[f32; GROUP]]) -> __m128i {
    let mut all = [_mm256_setzero_si256(); GROUPS];
    for (all, y) in all.iter_mut().zip(y) {
        let [a, b, c, d] = vectors(y)
            .map(|y| _mm256_and_si256(_mm256_castps_si256(y), _mm256_set1_epi32(i32::MAX)));
        *all = _mm256_max_epu32(_mm256_max_epu32(a, b), _mm256_max_epu32(c, d));
    }
    // A transposition that keeps the larger of two halves at each step.
    let two = |a, b| _mm256_max_epu32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    let [a, b] = [two(all[0], all[1]), two(all[2], all[3])];
    let four = _mm256_max_epu32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    _mm_max_epu32(_mm256_castsi256_si128(four), _mm256_extracti128_si256::<1>(four))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::x86::{Avx2, magnitudes};
    use crate::quantize::int8;

    #[test]
    fn runs_equal_the_plain_loop_whatever_the_magnitudes_and_wherever_the_largest_is() {
        if Avx2::new().is_err() {
            println!("not checked: no AVX2");
            return;
        }
        let (mut compared, mut plains) = (0, 0);
        let mut magnitudes = magnitudes();
        magnitudes.extend([LEAST - 1, LEAST, MOST, MOST + 1]);
        for (i, &bits) in magnitudes.iter().enumerate() {
            for groups in [1, 2, 3, 4, 5, 8, 15] {
                // The others are smaller, down to nothing, of either sign.
                let value = |j: usize| f32::from_bits((bits >> (j % 4)) | (j as u32 % 2) << 31);
                let mut y: Vec<f32> = (0..groups * GROUP).map(|j| value(j + 1 + i)).collect();
                let at = i % (groups * GROUP);
                y[at] = f32::from_bits(bits | (i as u32 & 1) << 31);
                let [mut got, mut expected] =
                    [(); 2].map(|()| (vec![7; groups], vec![7; 32 * groups]));
                let plain = int8::run(&y, &mut expected.0, &mut expected.1);
                // SAFETY: the CPU has AVX2.
                let got_plain = unsafe { run(&y, &mut got.0, &mut got.1) };
                assert_eq!(got_plain, plain, "{bits:#x} of {groups}");
                if plain {
                    assert_eq!(got, expected, "{bits:#x} of {groups}");
                    plains += 1;
                }
                compared += 1;
            }
        }
        println!("compared {compared} runs, {plains} of them plain");
        assert!(compared == 7 * magnitudes.len() && plains > compared / 2);
    }
}
