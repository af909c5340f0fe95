//! The quantizer of MXINT8: eight bits under a power of two (C10).
//!
//! ```text
//! for each group of 32:
//!     amax = the bits of the largest |x|, a NaN's above those of infinity
//!     b    = (amax + 0x1FFFF) >> 23               core's rule, where amax is plain
//!     i    = the last byte of x * 2^(133 - b) + 1.5 * 2^23
//! ```
//!
//! The loops are plain Rust, which each instruction set compiles for itself ([`run`]).
//!
//! # Why it is exact
//!
//! A group is *plain* if its amax is 0 or
//!
//! ```text
//! 1.984375 * 2^-122 < amax <= 1.984375 * 2^127 = 127 * 2^121
//! ```
//!
//! Then b is 6 to 254 and 2^(133 - b), 2^127 to 2^-121, is a normal f32. The product of an x with
//! it is at most 127, and exact unless it is subnormal; then both it and the true quotient are far
//! below a half and round to 0. The sum has the unit 1 (it is in [2^23, 2^24)), so it is rounded
//! once, to nearest even, and its last byte is that integer in two's complement. In a group of
//! zeros every factor gives 0.
//!
//! A plain group has nothing to count: it is not clamped, no quotient is beyond 127, and the
//! largest is above 63, so it is not flushed. All other groups (NaN, infinities, what is clamped,
//! and magnitudes down to the subnormal ones, whose factor no f32 is) go through core's own rules,
//! by [`by_core`].
//!
//! Worked example: amax = 1 has the bits 0x3F80_0000, b = 127 and the factor 2^6; 0.3 becomes 19.2,
//! the sum 12582931, whose last byte is 19.

use fp4_core::{QuantCounts, QuantSpec, mxint8, reference};

use super::RUN;

/// Elements of a group.
pub(crate) const GROUP: usize = 32;
/// The least bits of a plain amax above zero: the first under scale byte 6.
pub(crate) const LEAST: u32 = (5 << 23 | 0x7E_0000) + 1;
/// The largest bits of a plain amax: 127 * 2^121.
pub(crate) const MOST: u32 = 254 << 23 | 0x7E_0000;
/// No fraction bits are left beside it.
const ROUND: f32 = 1.5 * (1u32 << 23) as f32;

/// Writes the scale bytes and the elements of whole groups. False if one of them is not plain: what
/// was written is then of no use.
#[inline(always)]
pub(crate) fn run(y: &[f32], scales: &mut [u8], elements: &mut [u8]) -> bool {
    let groups = y.as_chunks::<GROUP>().0.iter().zip(elements.as_chunks_mut::<GROUP>().0);
    let mut plain = true;
    for ((y, elements), scale) in groups.zip(scales) {
        let mut amax = 0;
        for y in y {
            amax = amax.max(y.to_bits() & 0x7FFF_FFFF);
        }
        plain &= amax == 0 || (LEAST..=MOST).contains(&amax);
        let byte = (amax + 0x1_FFFF) >> 23;
        *scale = byte as u8;
        // 2^(133 - b) has the exponent field 260 - b.
        let factor = f32::from_bits((260 - byte.max(6)) << 23);
        for (element, y) in elements.iter_mut().zip(y) {
            *element = (y * factor + ROUND).to_bits() as u8;
        }
    }
    plain
}

/// The same for any groups, counted, by core's rules.
#[cold]
pub(super) fn by_core(
    y: &[f32],
    spec: &QuantSpec,
    scales: &mut [u8],
    elements: &mut [u8],
    counts: &mut QuantCounts,
) {
    debug_assert!(y.len() <= RUN);
    let groups = y.chunks_exact(GROUP).zip(elements.chunks_exact_mut(GROUP));
    for ((y, elements), scale) in groups.zip(scales) {
        *scale = reference::group_scale(y, spec);
        let is_nan = spec.scale_type().is_nan(*scale);
        for (element, &y) in elements.iter_mut().zip(y) {
            *element = if is_nan { 0 } else { mxint8::encode(y, *scale) as u8 };
        }
        let counted = reference::count_group(y, spec, *scale, false, elements);
        counts.clipped += counted.clipped;
        counts.scale_max += counted.scale_max;
        counts.flushed += counted.flushed;
        counts.nan_groups += counted.nan_groups;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_groups_are_those_under_the_bytes_6_to_254_that_are_not_clamped() {
        let plain = |bits: u32| {
            let mut y = [0f32; GROUP];
            y[17] = f32::from_bits(bits | 1 << 31);
            let (mut scales, mut elements) = ([0xA5], [0xA5; GROUP]);
            let plain = run(&y, &mut scales, &mut elements);
            if plain {
                let byte = mxint8::scale(y[17]);
                assert_eq!(scales, [byte], "{bits:#x}");
                assert_eq!(elements[17] as i8, mxint8::encode(y[17], byte), "{bits:#x}");
                assert_eq!(elements.iter().filter(|&&e| e != 0).count(), usize::from(bits != 0));
            }
            plain
        };
        assert!(plain(0) && plain(LEAST) && plain(MOST));
        assert_eq!((mxint8::scale(f32::from_bits(LEAST)), LEAST >> 23), (6, 5));
        for bits in [1, LEAST - 1, MOST + 1, 0x7F80_0000, 0x7F80_0001, 0x7FFF_FFFF] {
            assert!(!plain(bits), "{bits:#x}");
        }
        for exponent in 6..=254u32 {
            for fraction in [0, 1, 0x7D_FFFF, 0x7E_0000] {
                assert!(plain(exponent << 23 | fraction));
            }
        }
    }
}
