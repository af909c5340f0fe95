//! The rounding of a tile's sums, 16 columns of a row at a time: [`Rounding`]'s operations in its
//! order. A mask of the columns that exist makes the last panel's stores as long as its rows.

use std::arch::x86_64::*;

use fp4_core::FloatType;

use crate::kernels::x86::NAN;
use crate::matmul::operand::{COLUMNS, MAX_ROWS};
use crate::matmul::rounding::Rounding;
use crate::matmul::{OutputTile, Sums, Units};
use crate::quantize::FloatValue;

/// See [`Kernels::round_sums`](crate::matmul::Kernels::round_sums).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn round_sums<T: FloatValue>(
    sums: &Sums,
    by: &Rounding<'_>,
    mut out: OutputTile<'_, T>,
) {
    let (columns, rows) = (Columns::new(by, out.columns()), out.rows());
    // Without reading again, row by row, what there is to do: stores might have changed it.
    if by.rows.alphas.is_none() && by.bias.is_none() && !by.nan {
        let ((to, stride), mask) = (out.as_ptr(), columns.mask);
        // Of a length that the compiler knows to be inside of all three.
        let rows = rows.min(MAX_ROWS);
        let (sums, corrections, factors) =
            (&sums[..rows], &by.corrections[..rows], &by.rows.rows[..rows]);
        for r in 0..rows {
            let (y, row) = (sums_of(&sums[r], corrections[r]), factors[r]);
            let y = _mm512_mul_ps(_mm512_mul_ps(y, columns.factors), _mm512_set1_ps(row));
            // SAFETY: row r has the columns of the mask.
            unsafe { store(y, mask, to.add(r * stride)) };
        }
        return;
    }
    for (r, sums) in sums.iter().enumerate().take(rows) {
        let y = columns.finish(sums_of(sums, by.corrections[r]), by, r);
        // SAFETY: row r has the columns of the mask.
        unsafe { store(y, columns.mask, out.row_ptr(r)) };
    }
}

/// A row of sums less what they are too large by, rounded to f32.
#[inline]
#[target_feature(enable = "avx512f")]
fn sums_of(sums: &[i32; COLUMNS], correction: i32) -> __m512 {
    // SAFETY: a row of sums is 64 readable bytes.
    let sums = unsafe { _mm512_loadu_si512(sums.as_ptr().cast()) };
    _mm512_cvtepi32_ps(_mm512_sub_epi32(sums, _mm512_set1_epi32(correction)))
}

/// See [`Kernels::round_units`](crate::matmul::Kernels::round_units).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn round_units<T: FloatValue>(
    units: &Units,
    by: &Rounding<'_>,
    mut out: OutputTile<'_, T>,
) {
    let columns = Columns::new(by, out.columns());
    for (r, units) in units.iter().enumerate().take(out.rows()) {
        let (low, high) = units.split_at(COLUMNS / 2);
        // SAFETY: a half is 64 readable bytes.
        let [low, high] = [low, high]
            .map(|half| unsafe { _mm512_cvtepi64_ps(_mm512_loadu_si512(half.as_ptr().cast())) });
        let sums = _mm512_insertf32x8::<1>(_mm512_castps256_ps512(low), high);
        let y = columns.finish(sums, by, r);
        // SAFETY: row r has the columns of the mask.
        unsafe { store(y, columns.mask, out.row_ptr(r)) };
    }
}

/// What all rows share.
struct Columns {
    factors: __m512,
    bias: Option<__m512>,
    /// Those that exist.
    mask: __mmask16,
}

impl Columns {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new(by: &Rounding<'_>, count: usize) -> Self {
        let mask = ((1u32 << count) - 1) as __mmask16;
        // SAFETY: 64 readable bytes each.
        unsafe {
            let factors = _mm512_loadu_ps(by.columns.as_ptr());
            let bias = by.bias.as_ref().map(|bias| _mm512_loadu_ps(bias.as_ptr()));
            Columns { factors, bias, mask }
        }
    }

    /// The outputs of row `r` for sums that are rounded to f32.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn finish(&self, sums: __m512, by: &Rounding<'_>, r: usize) -> __m512 {
        let y = _mm512_mul_ps(_mm512_mul_ps(sums, self.factors), _mm512_set1_ps(by.rows.rows[r]));
        let y = match &by.rows.alphas {
            Some(alphas) => _mm512_mul_ps(y, _mm512_set1_ps(alphas[r])),
            None => y,
        };
        let y = match self.bias {
            Some(bias) => _mm512_add_ps(y, bias),
            None => y,
        };
        if !by.nan {
            return y;
        }
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(y, y);
        _mm512_mask_mov_ps(y, nan, _mm512_set1_ps(NAN))
    }
}

/// Rounds to `T` and stores the columns of the mask; a NaN is the canonical one.
///
/// # Safety
/// The CPU has the features; `to` points to as many values as the mask has bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn store<T: FloatValue>(y: __m512, mask: __mmask16, to: *mut T) {
    // SAFETY: T is of the type, and the values are inside, by the caller.
    unsafe {
        match T::TYPE {
            FloatType::F32 => _mm512_mask_storeu_ps(to.cast(), mask, y),
            FloatType::F16 => {
                let y = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(y);
                _mm256_mask_storeu_epi16(to.cast(), mask, y);
            }
            FloatType::Bf16 => {
                // To nearest, ties to even: half a unit less one, and one if the unit is odd.
                let bits = _mm512_castps_si512(y);
                let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
                let half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF));
                let y = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, half));
                _mm256_mask_storeu_epi16(to.cast(), mask, _mm512_cvtepi32_epi16(y));
            }
        }
    }
}
