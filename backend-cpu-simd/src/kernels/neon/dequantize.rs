//! Look-ups of dequantized values on NEON (C4.4); see the crate's `dequantize`. Not yet run on
//! hardware.
//!
//! ```text
//! codes = low and high nibbles of eight bytes, interleaved
//! plane[b][codes] for each byte b of a value, stored interleaved          tbl, st2 or st4
//! ```

use std::arch::aarch64::*;

use super::{Neon, NeonDotprod, NeonI8mm};
use crate::dequantize::{LookUp, PackedGroups, Table};

/// The same at every level.
macro_rules! look_up {
    ($($level:ty),*) => {
        $(impl LookUp for $level {
            const PLANES: bool = true;

            fn look_up<const B: usize>(self, groups: PackedGroups<'_, B>, out: &mut [u8]) {
                // SAFETY: the token proves NEON.
                unsafe { neon(groups, out) }
            }
        })*
    };
}

look_up!(Neon, NeonDotprod, NeonI8mm);

#[target_feature(enable = "neon")]
fn neon<const B: usize>(groups: PackedGroups<'_, B>, out: &mut [u8]) {
    groups.each(
        out,
        #[inline(always)]
        |table: &Table<B>, codes, out| {
            const { assert!(B == 2 || B == 4) };
            let out = out.as_mut_ptr().cast();
            // SAFETY: eight readable bytes; 16 of each of B planes; 16 * B writable bytes.
            unsafe {
                let codes = vld1_u8(codes.as_ptr());
                let (low, high) = (vand_u8(codes, vdup_n_u8(0xF)), vshr_n_u8::<4>(codes));
                let codes = vcombine_u8(vzip1_u8(low, high), vzip2_u8(low, high));
                let bytes = |b: usize| vqtbl1q_u8(vld1q_u8(table[b].as_ptr()), codes);
                if B == 2 {
                    vst2q_u8(out, uint8x16x2_t(bytes(0), bytes(1)));
                } else {
                    let all = uint8x16x4_t(bytes(0), bytes(1), bytes(B - 2), bytes(B - 1));
                    vst4q_u8(out, all);
                }
            }
        },
    );
}
