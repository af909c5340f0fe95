//! The quantizer on AVX-512: sixteen values at a time, ties to even (C1, C4, C5).
//!
//! ```text
//! amax    the largest |x| as an integer: the bits of non-negative floats order as their values,
//!         and a NaN's are above those of infinity
//! scale   core's rule, once a group
//! q       x / d, one IEEE division
//! code    of a = min(|q|, 6), NaN included:
//!         a < 1    the last bits of a + 2^22, whose unit is 1/2: nearest even of 2a, in 0..=2
//!         a >= 1   a's bits rounded to one bit of mantissa, ties to even, then moved so that 1 is code 2:
//!                  (bits + 0x1FFFFF + (bits >> 22 & 1) - (252 << 22)) >> 22
//! ```
//!
//! Worked example: 2.5 is 0x40200000, between codes 4 and 5. Bit 22 is 0, so 0x1FFFFF is added, which
//! does not carry into bit 22: 0x403FFFFF >> 22 = 256, less 252 is code 4, the even one. 3.5 is
//! 0x40600000, bit 22 is 1 and 0x200000 is added: 0x40800000 >> 22 = 258, code 6.
//!
//! The transform's chains are real fused multiply-adds, one vector of outputs each.

use std::arch::x86_64::*;

use fp4_core::QuantSpec;

use super::{Avx512, Kernels};
use crate::portable::Value;
use crate::portable::quantize::Encode;

/// Quantizes runs with ties to even.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512Encoder(pub(crate) Avx512);

impl Encode for Avx512Encoder {
    fn run(&self, y: &[f32], spec: &QuantSpec, given: bool, scales: &mut [u8], codes: &mut [u8]) {
        // SAFETY: the token proves the features.
        unsafe { run(y, spec, given, scales, codes) }
    }

    fn chains<T: Value>(&self, x: &[f32], columns: &[f32], y: &mut [f32]) {
        // SAFETY: the token proves the features.
        unsafe { chains(x, columns, y) }
        self.0.enter(
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

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
fn run(y: &[f32], spec: &QuantSpec, given: bool, scales: &mut [u8], codes: &mut [u8]) {
    let group = spec.group().get();
    let groups = y.chunks_exact(group).zip(codes.chunks_exact_mut(group / 2));
    if !given {
        // All scales of the run first: one group's wait is filled by the others.
        for (y, scale) in y.chunks_exact(group).zip(scales.iter_mut()) {
            let largest =
                y.as_chunks::<16>().0.iter().fold(_mm512_setzero_si512(), |largest, y| {
                    let magnitude = _mm512_abs_ps(load(y));
                    _mm512_max_epu32(largest, _mm512_castps_si512(magnitude))
                });
            *scale = spec.encode_scale(f32::from_bits(_mm512_reduce_max_epu32(largest)));
        }
    }
    for ((y, codes), scale) in groups.zip(scales) {
        let (y, codes) = (y.as_chunks::<16>().0, codes.as_chunks_mut::<8>().0);
        let d = spec.unit(*scale);
        if d == 0.0 {
            for (y, codes) in y.iter().zip(codes) {
                *codes = pack(sign(_mm512_castps_si512(load(y))));
            }
        } else {
            let d = _mm512_set1_ps(d);
            for (y, codes) in y.iter().zip(codes) {
                *codes = pack(encode(_mm512_div_ps(load(y), d)));
            }
        }
    }
}

/// The sign of each value as bit 3 of a code.
#[inline]
#[target_feature(enable = "avx512f")]
fn sign(bits: __m512i) -> __m512i {
    _mm512_and_si512(_mm512_srli_epi32::<28>(bits), _mm512_set1_epi32(8))
}

#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn encode(q: __m512) -> __m512i {
    let bits = |v: f32| _mm512_set1_epi32(v.to_bits() as i32);
    // The minimum with a NaN is its second operand.
    let a = _mm512_min_ps(_mm512_abs_ps(q), _mm512_set1_ps(6.0));
    let halves = _mm512_castps_si512(_mm512_add_ps(a, _mm512_set1_ps(4_194_304.0)));
    let a_bits = _mm512_castps_si512(a);
    let odd = _mm512_and_si512(_mm512_srli_epi32::<22>(a_bits), _mm512_set1_epi32(1));
    let offset = _mm512_set1_epi32(0x1F_FFFFi32.wrapping_sub(252 << 22));
    let rounded = _mm512_add_epi32(_mm512_add_epi32(a_bits, odd), offset);
    let code = _mm512_srli_epi32::<22>(rounded);
    let below_one = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, _mm512_set1_ps(1.0));
    let code = _mm512_mask_sub_epi32(code, below_one, halves, bits(4_194_304.0));
    // NaN is +6 whatever its sign (C1).
    let number = _mm512_cmp_ps_mask::<_CMP_ORD_Q>(q, q);
    _mm512_mask_or_epi32(code, number, code, sign(_mm512_castps_si512(q)))
}

/// Packs sixteen codes, low nibble first (C3).
#[inline]
#[target_feature(enable = "avx512f")]
fn pack(codes: __m512i) -> [u8; 8] {
    // A pair of codes is a 64-bit lane with one in each half.
    let pairs = _mm512_or_si512(codes, _mm512_srli_epi64::<28>(codes));
    let bytes = _mm512_cvtepi64_epi8(pairs);
    (_mm_cvtsi128_si64(bytes) as u64).to_le_bytes()
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
