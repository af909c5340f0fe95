//! Look-ups of dequantized values on AVX-512 and AVX2 (C4.4); see the crate's `dequantize`.
//!
//! ```text
//! AVX-512, eight bytes of codes:
//!     f32        8 lanes of 64 bits, byte | byte << 28: 16 lanes with a code in their low four bits    vpermps
//!     16 bits    8 lanes of 32 bits, byte | byte << 12                                                 vpermw
//! AVX2, eight bytes of codes:
//!     codes = low and high nibbles interleaved
//!     plane[b][codes] for each byte b of a value                                                       vpshufb
//!     interleaved to values                                                                            vpunpck
//! ```
//!
//! Worked example, f32: byte 0x5A is codes 10 and 5. 0x5A | 0x5A << 28 is 0x5_A000005A: the low half ends in
//! 10, the high half is 5, and the permutes read the low four bits only.

use std::arch::x86_64::*;

use super::{Avx2, Avx512, AvxVnni};
use crate::dequantize::{Groups, LookUp, Table};

impl LookUp for Avx512 {
    const PLANES: bool = false;

    fn look_up<const B: usize>(self, groups: Groups<'_, B>, out: &mut [u8]) {
        // SAFETY: the token proves the features.
        unsafe { avx512(groups, out) }
    }
}

impl LookUp for Avx2 {
    const PLANES: bool = true;

    fn look_up<const B: usize>(self, groups: Groups<'_, B>, out: &mut [u8]) {
        // SAFETY: the token proves the features.
        unsafe { avx2(groups, out) }
    }
}

impl LookUp for AvxVnni {
    const PLANES: bool = Avx2::PLANES;

    fn look_up<const B: usize>(self, groups: Groups<'_, B>, out: &mut [u8]) {
        self.avx2().look_up(groups, out);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn avx512<const B: usize>(groups: Groups<'_, B>, out: &mut [u8]) {
    groups.each(
        out,
        #[inline(always)]
        |table, codes, out| {
            const { assert!(B == 2 || B == 4) };
            let (table, out) = (table.as_ptr(), out.as_mut_ptr());
            // SAFETY: eight readable bytes; 16 * B of the table, and writable ones.
            unsafe {
                let codes = _mm_loadl_epi64(codes.as_ptr().cast());
                if B == 4 {
                    let codes = _mm512_cvtepu8_epi64(codes);
                    let codes = _mm512_or_si512(codes, _mm512_slli_epi64::<28>(codes));
                    let table = _mm512_loadu_ps(table.cast());
                    _mm512_storeu_ps(out.cast(), _mm512_permutexvar_ps(codes, table));
                } else {
                    let codes = _mm256_cvtepu8_epi32(codes);
                    let codes = _mm256_or_si256(codes, _mm256_slli_epi32::<12>(codes));
                    let table = _mm256_loadu_si256(table.cast());
                    _mm256_storeu_si256(out.cast(), _mm256_permutexvar_epi16(codes, table));
                }
            }
        },
    );
}

#[target_feature(enable = "avx2")]
fn avx2<const B: usize>(groups: Groups<'_, B>, out: &mut [u8]) {
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
