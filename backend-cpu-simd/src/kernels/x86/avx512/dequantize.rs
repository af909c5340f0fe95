//! Look-ups of dequantized values on AVX-512 (C4.4); see the crate's `dequantize`.
//!
//! ```text
//! f32        8 lanes of 64 bits, byte | byte << 28: 16 lanes with a code in their low four bits    vpermps
//! 16 bits    8 lanes of 32 bits, byte | byte << 12                                                 vpermw
//! ```
//!
//! Worked example, f32: byte 0x5A is codes 10 and 5. 0x5A | 0x5A << 28 is 0x5_A000005A: the low
//! half ends in 10, the high half is 5, and the permutes read the low four bits only.

use std::arch::x86_64::*;

use super::Avx512;
use crate::dequantize::{LookUp, PackedGroups};

impl LookUp for Avx512 {
    const PLANES: bool = false;

    fn look_up<const B: usize>(self, groups: PackedGroups<'_, B>, out: &mut [u8]) {
        // SAFETY: the token proves the features.
        unsafe { avx512(groups, out) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn avx512<const B: usize>(groups: PackedGroups<'_, B>, out: &mut [u8]) {
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
