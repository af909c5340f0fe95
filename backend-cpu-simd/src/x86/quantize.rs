//! The quantizer on AVX-512: sixteen values at a time, ties to even (C1, C4, C5).
//!
//! ```text
//! amax    the largest |x| as an integer: the bits of non-negative floats order as their values,
//!         and a NaN's are above those of infinity
//! scale   core's rule; e4m3 for all groups of a run at a time
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

use fp4_core::{QuantSpec, ScaleType};

use super::{Avx512, Kernels, NAN};
use crate::portable::Value;
use crate::portable::quantize::Encode;

/// Most groups of a run: 128 values in groups of 16, and as many again to fill a vector.
const MAX_GROUPS: usize = 16;

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
    // All scales of the run first: one group's wait is filled by the others.
    let largest = |y: &[f32]| {
        let max = y.as_chunks::<16>().0.iter().fold(_mm512_setzero_si512(), |max, y| {
            _mm512_max_epu32(max, _mm512_castps_si512(_mm512_abs_ps(load(y))))
        });
        _mm512_reduce_max_epu32(max)
    };
    let mut units = [0f32; MAX_GROUPS];
    if !given && spec.scale_type() == ScaleType::E4M3 {
        // Collected in a register: a vector read back from several stores would wait for them all.
        let mut all = _mm512_setzero_si512();
        for (i, y) in y.chunks_exact(group).enumerate() {
            all = _mm512_mask_set1_epi32(all, 1 << i, largest(y) as i32);
        }
        let mut bytes = [0; MAX_GROUPS];
        e4m3_scales(all, spec, &mut bytes, &mut units);
        scales.iter_mut().zip(bytes).for_each(|(scale, byte)| *scale = byte);
    } else {
        if !given {
            for (y, scale) in y.chunks_exact(group).zip(scales.iter_mut()) {
                *scale = spec.encode_scale(f32::from_bits(largest(y)));
            }
        }
        units.iter_mut().zip(&*scales).for_each(|(unit, &scale)| *unit = spec.unit(scale));
    }
    for ((y, codes), &d) in groups.zip(&units) {
        let (y, codes) = (y.as_chunks::<16>().0, codes.as_chunks_mut::<8>().0);
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

/// Scale bytes and units of groups with these largest magnitudes, as bits: core's
/// [`QuantSpec::encode_scale`] and [`QuantSpec::unit`] for e4m3, in vectors (C2, C4).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn e4m3_scales(
    largest: __m512i,
    spec: &QuantSpec,
    bytes: &mut [u8; MAX_GROUPS],
    units: &mut [f32; MAX_GROUPS],
) {
    let divisor = spec.scale_scale() * spec.global_scale();
    let s = _mm512_div_ps(_mm512_castsi512_ps(largest), _mm512_set1_ps(divisor));
    let (codes, decoded) = e4m3(s);
    // SAFETY: 16 and 64 writable bytes.
    unsafe {
        _mm_storeu_si128(bytes.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(codes));
        let unit = _mm512_mul_ps(decoded, _mm512_set1_ps(spec.global_scale()));
        _mm512_storeu_ps(units.as_mut_ptr(), unit);
    }
}

/// Non-negative values and NaN as e4m3 bytes, and what the bytes are worth.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn e4m3(s: __m512) -> (__m512i, __m512) {
    let int = |v: i32| _mm512_set1_epi32(v);
    let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(s, s);
    let s = _mm512_min_ps(s, _mm512_set1_ps(448.0));
    let bits = _mm512_castps_si512(s);
    // Three bits of mantissa are kept, to nearest even; then 2^-6 is byte 8.
    let odd = _mm512_and_si512(_mm512_srli_epi32::<20>(bits), int(1));
    let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, odd), int(0x7_FFFF));
    let byte = _mm512_sub_epi32(_mm512_srli_epi32::<20>(rounded), int(120 << 3));
    // Below 2^-6 the unit is 2^-9, which is the last bit of 2^14.
    let small = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(s, _mm512_set1_ps(1.0 / 64.0));
    let halves = _mm512_castps_si512(_mm512_add_ps(s, _mm512_set1_ps(16384.0)));
    let byte = _mm512_mask_sub_epi32(byte, small, halves, int(16384f32.to_bits() as i32));
    let byte = _mm512_mask_mov_epi32(byte, nan, int(0x7F));
    let normal = _mm512_slli_epi32::<20>(_mm512_add_epi32(byte, int(120 << 3)));
    let subnormal = _mm512_mul_ps(_mm512_cvtepi32_ps(byte), _mm512_set1_ps(1.0 / 512.0));
    let few = _mm512_cmplt_epi32_mask(byte, int(8));
    let value = _mm512_mask_mov_ps(_mm512_castsi512_ps(normal), few, subnormal);
    (byte, _mm512_mask_mov_ps(value, nan, _mm512_set1_ps(NAN)))
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

#[cfg(test)]
mod tests {
    use super::super::magnitudes;
    use super::*;

    #[test]
    fn vectors_of_e4m3_scales_are_cores_scales() {
        if Avx512::new().is_err() {
            println!("not checked: no AVX-512");
            return;
        }
        let mut compared = 0;
        for bits in magnitudes().as_chunks::<16>().0 {
            let (mut bytes, mut values) = ([0i32; 16], [0f32; 16]);
            // SAFETY: the CPU has the features; 64 readable or writable bytes each.
            unsafe {
                let (codes, decoded) = e4m3(_mm512_loadu_ps(bits.as_ptr().cast()));
                _mm512_storeu_si512(bytes.as_mut_ptr().cast(), codes);
                _mm512_storeu_ps(values.as_mut_ptr(), decoded);
            }
            for ((&bits, &byte), value) in bits.iter().zip(&bytes).zip(values) {
                let s = f32::from_bits(bits);
                let expected = ScaleType::E4M3.encode(s);
                assert_eq!(byte, i32::from(expected), "{s:e}");
                assert_eq!(value.to_bits(), ScaleType::E4M3.decode(expected).to_bits(), "{s:e}");
                compared += 1;
            }
        }
        println!("compared {compared} scales");
        assert_eq!(compared, 256 * 80);
    }
}
