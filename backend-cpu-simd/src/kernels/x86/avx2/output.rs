//! The rounding of a tile's sums, eight columns of a row at a time: [`Rounding`]'s operations in
//! its order. The rows of the last panel are made whole and copied as far as they go.

use std::arch::x86_64::*;

use fp4_core::FloatType;

use crate::kernels::x86::NAN;
use crate::matmul::operand::COLUMNS;
use crate::matmul::rounding::Rounding;
use crate::matmul::{OutputTile, Sums, Units};
use crate::quantize::FloatValue;

/// See [`Kernels::round_sums`](crate::matmul::Kernels::round_sums).
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn round_sums<T: FloatValue>(
    sums: &Sums,
    by: &Rounding<'_>,
    mut out: OutputTile<'_, T>,
) {
    for r in 0..out.rows() {
        let mut y = [_mm256_setzero_ps(); 2];
        for (half, y) in y.iter_mut().enumerate() {
            // SAFETY: a half is 32 readable bytes.
            let sums =
                unsafe { _mm256_loadu_si256(sums[r].as_ptr().add(half * COLUMNS / 2).cast()) };
            let sums = _mm256_sub_epi32(sums, _mm256_set1_epi32(by.corrections[r]));
            *y = finish(_mm256_cvtepi32_ps(sums), by, r, half);
        }
        write(y, out.row(r));
    }
}

/// See [`Kernels::round_units`](crate::matmul::Kernels::round_units). There is no conversion of
/// 64-bit integers in vectors.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn round_units<T: FloatValue>(
    units: &Units,
    by: &Rounding<'_>,
    mut out: OutputTile<'_, T>,
) {
    for r in 0..out.rows() {
        let sums = units[r].map(|units| units as f32);
        let mut y = [_mm256_setzero_ps(); 2];
        for (half, y) in y.iter_mut().enumerate() {
            // SAFETY: a half is 32 readable bytes.
            let sums = unsafe { _mm256_loadu_ps(sums.as_ptr().add(half * COLUMNS / 2)) };
            *y = finish(sums, by, r, half);
        }
        write(y, out.row(r));
    }
}

/// The outputs of half of row `r` for sums that are rounded to f32.
#[inline]
#[target_feature(enable = "avx2")]
fn finish(sums: __m256, by: &Rounding<'_>, r: usize, half: usize) -> __m256 {
    let load = |row: &[f32; COLUMNS]| {
        // SAFETY: a half is 32 readable bytes.
        unsafe { _mm256_loadu_ps(row.as_ptr().add(half * COLUMNS / 2)) }
    };
    let y = _mm256_mul_ps(_mm256_mul_ps(sums, load(&by.columns)), _mm256_set1_ps(by.rows.rows[r]));
    let y = match &by.rows.alphas {
        Some(alphas) => _mm256_mul_ps(y, _mm256_set1_ps(alphas[r])),
        None => y,
    };
    let y = match &by.bias {
        Some(bias) => _mm256_add_ps(y, load(bias)),
        None => y,
    };
    if !by.nan {
        return y;
    }
    let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(y, y);
    _mm256_blendv_ps(y, _mm256_set1_ps(NAN), nan)
}

/// Rounds a row to `T` and writes its first columns; a NaN is the canonical one.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn write<T: FloatValue>(y: [__m256; 2], out: &mut [T]) {
    if let Ok(out) = <&mut [T; COLUMNS]>::try_from(&mut *out) {
        store(y, out);
    } else {
        let mut whole = [T::default(); COLUMNS];
        store(y, &mut whole);
        out.copy_from_slice(&whole[..out.len()]);
    }
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn store<T: FloatValue>([low, high]: [__m256; 2], out: &mut [T; COLUMNS]) {
    let to = out.as_mut_ptr();
    // SAFETY: T is of the type, and `out` has 16 values.
    unsafe {
        match T::TYPE {
            FloatType::F32 => {
                _mm256_storeu_ps(to.cast(), low);
                _mm256_storeu_ps(to.add(COLUMNS / 2).cast(), high);
            }
            FloatType::F16 => {
                let low = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(low);
                let high = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(high);
                _mm256_storeu_si256(to.cast(), _mm256_set_m128i(high, low));
            }
            FloatType::Bf16 => {
                let [low, high] = [low, high].map(|y| {
                    // To nearest, ties to even: half a unit less one, and one if the unit is odd.
                    let bits = _mm256_castps_si256(y);
                    let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
                    let half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF));
                    _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, half))
                });
                // The pack takes halves of each in turn.
                let y = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(low, high));
                _mm256_storeu_si256(to.cast(), y);
            }
        }
    }
}
