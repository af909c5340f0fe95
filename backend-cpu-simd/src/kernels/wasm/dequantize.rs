//! Look-ups of dequantized values with simd128 (C4.4); see the crate's `dequantize`.
//!
//! ```text
//! codes = low and high nibbles of eight bytes, interleaved
//! plane[b][codes] for each byte b of a value                   i8x16.swizzle
//! interleaved to values                                        i8x16.shuffle
//! ```

use std::arch::wasm32::*;

use super::WasmSimd128;
use crate::dequantize::{LookUp, PackedGroups, Table};

impl LookUp for WasmSimd128 {
    const PLANES: bool = true;

    fn look_up<const B: usize>(self, groups: PackedGroups<'_, B>, out: &mut [u8]) {
        groups.each(out, |table: &Table<B>, codes, out| {
            const { assert!(B == 2 || B == 4) };
            let out: *mut v128 = out.as_mut_ptr().cast();
            // SAFETY: eight readable bytes; 16 of each of B planes; 16 * B writable bytes.
            unsafe {
                let codes = v128_load64_zero(codes.as_ptr().cast());
                let (low, high) = (v128_and(codes, u8x16_splat(0xF)), u8x16_shr(codes, 4));
                let codes = bytes_low(low, high);
                let bytes = |b: usize| i8x16_swizzle(v128_load(table[b].as_ptr().cast()), codes);
                let (a, b) = (bytes(0), bytes(1));
                let first = [bytes_low(a, b), bytes_high(a, b)];
                if B == 2 {
                    v128_store(out, first[0]);
                    v128_store(out.add(1), first[1]);
                } else {
                    let (c, d) = (bytes(B - 2), bytes(B - 1));
                    let second = [bytes_low(c, d), bytes_high(c, d)];
                    for (i, (a, b)) in first.into_iter().zip(second).enumerate() {
                        let low = i16x8_shuffle::<0, 8, 1, 9, 2, 10, 3, 11>(a, b);
                        let high = i16x8_shuffle::<4, 12, 5, 13, 6, 14, 7, 15>(a, b);
                        v128_store(out.add(2 * i), low);
                        v128_store(out.add(2 * i + 1), high);
                    }
                }
            }
        });
    }
}

/// The low halves' bytes in turn.
#[inline(always)]
fn bytes_low(a: v128, b: v128) -> v128 {
    i8x16_shuffle::<0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23>(a, b)
}

/// The high halves' bytes in turn.
#[inline(always)]
fn bytes_high(a: v128, b: v128) -> v128 {
    i8x16_shuffle::<8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31>(a, b)
}
