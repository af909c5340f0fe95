//! Look-ups of dequantized values on AVX2 (C4.4); see the crate's `dequantize`.
//!
//! ```text
//! codes = low and high nibbles of eight bytes, interleaved
//! plane[b][codes] for each byte b of a value                       vpshufb
//! interleaved to values                                            vpunpck
//! ```

use std::arch::x86_64::*;

use super::Avx2;
use crate::dequantize::{LookUp, PackedGroups, Table};

impl LookUp for Avx2 {
    const PLANES: bool = true;

    fn look_up<const B: usize>(self, groups: PackedGroups<'_, B>, out: &mut [u8]) {
        // SAFETY: the token proves the features.
        unsafe { avx2(groups, out) }
    }
}

#[target_feature(enable = "avx2")]
fn avx2<const B: usize>(groups: PackedGroups<'_, B>, out: &mut [u8]) {
    groups.each(
        out,
        #[inline(always)]
        |table: &Table<B>, codes, out| {
            const { assert!(B == 2 || B == 4) };
            let out: *mut __m128i = out.as_mut_ptr().cast();
            // SAFETY: eight readable bytes; 16 of each of B planes; 16 * B writable bytes.
            unsafe {
                let codes = _mm_loadl_epi64(codes.as_ptr().cast());
                let mask = _mm_set1_epi8(0xF);
                let high = _mm_and_si128(_mm_srli_epi16::<4>(codes), mask);
                let codes = _mm_unpacklo_epi8(_mm_and_si128(codes, mask), high);
                let mut bytes = [_mm_setzero_si128(); B];
                for (bytes, plane) in bytes.iter_mut().zip(table) {
                    *bytes = _mm_shuffle_epi8(_mm_loadu_si128(plane.as_ptr().cast()), codes);
                }
                let low =
                    [_mm_unpacklo_epi8(bytes[0], bytes[1]), _mm_unpackhi_epi8(bytes[0], bytes[1])];
                if B == 2 {
                    _mm_storeu_si128(out, low[0]);
                    _mm_storeu_si128(out.add(1), low[1]);
                } else {
                    let (c, d) = (bytes[B - 2], bytes[B - 1]);
                    let high = [_mm_unpacklo_epi8(c, d), _mm_unpackhi_epi8(c, d)];
                    for (i, (low, high)) in low.into_iter().zip(high).enumerate() {
                        _mm_storeu_si128(out.add(2 * i), _mm_unpacklo_epi16(low, high));
                        _mm_storeu_si128(out.add(2 * i + 1), _mm_unpackhi_epi16(low, high));
                    }
                }
            }
        },
    );
}
