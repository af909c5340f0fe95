//! Codes without a division: by the reciprocal of the unit in two parts (C4.3).
//!
//! ```text
//! once a group, in f32:
//!     y = 1 / d, or the f32 below: the largest that is not above  one division
//!     r = fma(-d, y, 1)                                          exact, not negative
//!     l = fma(r * y, r, r * y)                                   y + l is 1 / d to twice the bits
//! for each x:
//!     q = fma(x, y, x * l)            not always x / d rounded, but on its side of every boundary
//!     bits = those of fma(q, third, q), plus 2^21 - 1
//!     cell = bits / 2^21, counted from 0.25 and clamped
//!     code = a table's
//! ```
//!
//! # Why the codes are those of x / d
//!
//! Let z be the exact quotient; C4.3 rounds it to f32, and that to a code, ties to even. The code
//! is past a midpoint m where z rounds to m or above (0.75, 1.75, 3.5, whose upper code is even) or
//! above m (0.25, 1.25, 2.5, 5). That turns half a unit in the last place below m, or above; call
//! the place c. It is a power of two times M = 2^22 * m' - 1 or + 1, for an m' of 4 to 7: odd, of
//! 25 bits.
//!
//! *Nothing lies on a boundary.* If x = c * d, M divides the significand of x, of 24 bits.
//!
//! *The sum is close.* 0 <= r < 2^-23, and l is r / d but for two roundings and a factor of 1 -
//! r^2: so y + l is within 2^-46 of 1 / d, relatively, and x * l is rounded by 2^-24 of what is
//! 2^-23 of z. What the last operation rounds is within 1.5 * 2^-46 of z. Rounding is monotonic, so
//! q is on the side of c where z is, unless z is that close to c. The distance of z and c,
//! relatively, is that of A * 2^k and B * M, where A and B are the significands of x and d as
//! integers of 24 bits, and k >= 22. Both are below 7/4 * 2^48, and integers: they would have to
//! differ by 10 or less. Modulo 2^22 they differ by B or -B. So B is within 10 of a multiple of
//! 2^22, which leaves 42 significands of d to look at. A test looks at every boundary under all
//! 2^23. One goes wrong, the largest, at 0.25; it has no reciprocal here. (Of the values beside a
//! boundary the product x * y alone gets 4% wrong, with the nearest y.)
//!
//! *Exponents do not matter* where nothing is subnormal or infinite: powers of two pass through
//! every operation. So d is to be in [2^-60, 2^60], and no |x| above 2^60 ([`LEAST_UNIT`],
//! [`MOST_UNIT`], [`LARGEST`]). r is 0 or at least 2^-47, a unit in the last place of the product;
//! so y and l are normal, and x * l too, where x is near a boundary. Where x * l is subnormal q is
//! far below 2^-60, and the code a zero. q is at most 2^120.
//!
//! *The sign of a zero* is that of x, because neither y nor l is negative. A group of zeros, or
//! with d = 0, takes 0 for both. All others are divided: negative units, NaNs, infinities.
//!
//! # Ties, and the table
//!
//! Cells of 2^21 in the bits of a float are quarters of a binade, and all midpoints are between
//! two. Where bit 22 of a midpoint is 1 a tie goes up, where it is 0 it goes down. Adding bit 22 to
//! the bits, and taking 1 from them, makes all ties go up: a plain shift finds the cell. The first
//! is one operation: a third of a unit in the last place, for the significand 1, is half a unit for
//! 1.5; so adding q times 2^-23 / 3, rounded up ([`THIRD_ULP`]), rounds to one unit more from 1.5
//! on. The 1 is taken together with a cell's 2^21, because there is nothing to take it from in a
//! zero.
//!
//! | cell, 1 from 0.25 on | 0 | 1 to 6 | 7 to 9 | 10, 11 | 12, 13 | 14, 15 | 16, 17 | 18 and more |
//! |---|---|---|---|---|---|---|---|---|
//! | code | 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 |
//!
//! Only the upper 16 bits are left to look at then, and after a shift that drops the sign and a
//! subtraction that saturates, 8.
//!
//! Worked example: d = 3 has y = 0x3EAAAAAA, r = 2^-24 and l = 2^-24 * y * (1 + 2^-24). x = 2.25
//! has x * y = 0.75 - 3/4 * 2^-24, and x * l is what it lacks: q = 0.75, 0x3F400000. Bit 22 is 1,
//! so that is 0x3F400001, and with 0x1FFFFF 0x3F600000, which is 0xE00000 past 0.25, cell 7: code
//! 2, the even one.

#![cfg_attr(
    not(any(target_arch = "x86_64", target_arch = "aarch64")),
    allow(dead_code, reason = "for kernels with a fused multiply-add")
)]

/// The least unit that has a reciprocal.
pub(crate) const LEAST_UNIT: f32 = 1.0 / (1u64 << 60) as f32;
/// The largest unit that has a reciprocal.
pub(crate) const MOST_UNIT: f32 = (1u64 << 60) as f32;
/// The largest magnitude that is multiplied.
pub(crate) const LARGEST: f32 = (1u64 << 60) as f32;
/// The significand, as bits, that has no reciprocal.
pub(crate) const LAST_SIGNIFICAND: u32 = 0x7F_FFFF;
/// 2^-23 / 3, rounded up.
pub(crate) const THIRD_ULP: f32 = f32::from_bits(0x3EAA_AAAB) / (1u32 << 23) as f32;
/// A cell's size, less the unit that makes ties go up.
pub(crate) const CELL_LESS_ONE: i32 = (1 << 21) - 1;
/// The upper half of the bits of 0.25, without the sign.
pub(crate) const FIRST: i16 = 0x3E80 << 1;
/// A cell is this much of what is left of the upper half, as a shift.
pub(crate) const CELL_SHIFT: u32 = 6;
/// The last cell: past 5.
pub(crate) const LAST_CELL: u8 = 18;

/// The codes of the cells 0 to 31, without the sign.
pub(crate) const CODES: [u8; 32] = {
    let first = [1, 7, 10, 12, 14, 16, LAST_CELL as usize];
    let mut codes = [0; 32];
    let mut cell = 0;
    while cell < 32 {
        let mut boundary = 0;
        while boundary < 7 {
            codes[cell] += (cell >= first[boundary]) as u8;
            boundary += 1;
        }
        cell += 1;
    }
    codes
};

/// The reciprocal of a group's unit `d`, in two parts, the larger first; `None` if the group is to
/// be divided. `amax` is its largest magnitude.
#[cfg_attr(
    not(target_arch = "aarch64"),
    allow(dead_code, reason = "kernels for x86 have those of eight groups at a time")
)]
#[inline(always)]
pub(crate) fn reciprocal(d: f32, amax: f32) -> Option<[f32; 2]> {
    if amax.is_nan() || amax > LARGEST {
        return None;
    }
    if d == 0.0 || amax == 0.0 && d > 0.0 {
        return Some([0.0; 2]);
    }
    let is_last = d.to_bits() & LAST_SIGNIFICAND == LAST_SIGNIFICAND;
    if !(LEAST_UNIT..=MOST_UNIT).contains(&d) || is_last {
        return None;
    }
    let nearest = 1.0 / d;
    let above = (-d).mul_add(nearest, 1.0) < 0.0;
    let high = f32::from_bits(nearest.to_bits() - u32::from(above));
    let rest = (-d).mul_add(high, 1.0);
    let low = rest * high;
    Some([high, low.mul_add(rest, low)])
}
