//! Exact sums: the matmul's accumulators, which never round until the end ([C6]).
//!
//! A term of a product is an integer times a power of two: doubled codes multiply to a quarter, an
//! MXINT8 element by a doubled code to 2^-7, and e8m0 scales add exponents of at least -127 each,
//! so every term is a multiple of 2^-261 below 2^260. [`ExactSum`] is a 640-bit two's complement
//! integer in units of 2^-264:
//!
//! ```text
//! limbs[0] bit 0 = 2^-264  ...  limbs[9] bit 62 = 2^374, bit 63 = sign
//! ```
//!
//! Sums of up to 2^114 terms cannot overflow, addition is exact, so any order and any split of K
//! gives the same integer; one rounding at the end gives the same bits. Rounding the parts first
//! and adding them would not: 2^24 + 1 + 2^-30 is a hair above a tie and must go up, but
//! `round(2^24 + 1) + 2^-30` goes down.
//!
//! [`FixedSum`] is the narrow form for NVFP4, whose terms are all multiples of 2^-20: an i64 in
//! units of 2^-20, enough for K <= 2^20, checked past that. [`ScaledSums`] are the same in units
//! that the caller chooses for each row and column: what a reduction over machines sends, see
//! [`reduction`](crate::reduction).
//!
//! The idea is Kulisch's long accumulator ("Computer Arithmetic and Validity", 2008).
//!
//! [C6]: crate::contract#c6

mod partials;
mod units;

use crate::error::{Buffer, Error};
use crate::float::NAN_F32;

pub use partials::{Partials, PartialsMut, finish};
pub use units::{FixedSum, ScaledSum, ScaledSums};

/// Exponent of the lowest bit.
const LOW: i32 = -264;
/// 64-bit limbs.
const LIMBS: usize = 10;
/// The bits of a word of [`ExactSum::to_words`].
const WORD: u64 = (1 << 48) - 1;

/// An exact sum of products, of any encodings and any scale, with a NaN flag.
///
/// Two sums are equal exactly when they hold the same real number and the same flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExactSum {
    limbs: [u64; LIMBS],
    nan: bool,
}

impl Default for ExactSum {
    fn default() -> Self {
        Self::ZERO
    }
}

impl ExactSum {
    /// The empty sum.
    pub const ZERO: ExactSum = ExactSum { limbs: [0; LIMBS], nan: false };

    /// Bytes of the serialized form.
    pub const BYTES: usize = 8 * LIMBS + 2;

    /// Version of the serialized form: its first byte. Version 1 had no such byte, and units of
    /// 2^-256.
    pub const VERSION: u8 = 2;

    /// Words of 48 bits that hold a sum, with room for carries.
    pub const WORDS: usize = 14;

    /// How many sums' words may be added before [`from_words`](Self::from_words) reads them:
    /// (2^15 - 1) * 2^48 is below 2^63.
    pub const MOST_ADDED: usize = (1 << 15) - 1;

    /// Adds `significand * 2^exponent`, exactly.
    ///
    /// # Errors
    /// [`Error::SumRange`] unless `exponent` is in -264..=254; the sum is unchanged.
    #[inline]
    pub fn add_scaled(&mut self, significand: i64, exponent: i32) -> Result<(), Error> {
        if !(LOW..=254).contains(&exponent) {
            return Err(Error::SumRange { exponent });
        }
        let position = (exponent - LOW) as usize;
        let (limb, shift) = (position / 64, position % 64);
        // 64 significant bits shifted by at most 63: fits, sign included.
        let term = i128::from(significand) << shift;
        let sign = (term >> 127) as u64;
        let mut carry = false;
        for (i, l) in self.limbs[limb..].iter_mut().enumerate() {
            let add = match i {
                0 => term as u64,
                1 => (term >> 64) as u64,
                // Only the sign and the carry are left; they cancel or there are none.
                _ if sign == 0 && !carry => return Ok(()),
                _ if sign == u64::MAX && carry => return Ok(()),
                _ => sign,
            };
            let (partial, c1) = l.overflowing_add(add);
            let (sum, c2) = partial.overflowing_add(u64::from(carry));
            (*l, carry) = (sum, c1 | c2);
        }
        Ok(())
    }

    /// Marks the sum as NaN: a scale in its range was NaN.
    pub fn set_nan(&mut self) {
        self.nan = true;
    }

    /// True if any part of the sum was NaN.
    pub const fn is_nan(&self) -> bool {
        self.nan
    }

    /// Adds another sum, exactly: sums of parts merge to the sum of the whole, in any order.
    pub fn merge(&mut self, other: &ExactSum) {
        let mut carry = false;
        for (l, &o) in self.limbs.iter_mut().zip(&other.limbs) {
            let (partial, c1) = l.overflowing_add(o);
            let (sum, c2) = partial.overflowing_add(u64::from(carry));
            (*l, carry) = (sum, c1 | c2);
        }
        self.nan |= other.nan;
    }

    /// The sum rounded once to f32, to nearest even: overflow gives infinity, subnormals are
    /// kept, zero is +0, a nonzero sum that rounds to zero keeps its sign, NaN is canonical.
    pub fn to_f32(&self) -> f32 {
        if self.nan {
            return f32::from_bits(NAN_F32);
        }
        // f32's last bits: 24 significant, none below 2^-149.
        let (negative, significand, low) = self.round(24, -149);
        let magnitude = if significand == 0 {
            0
        } else {
            // Both the implicit bit and a carry out of the rounding move the exponent field by
            // plain addition; a subnormal (below 2^23) has none of either.
            let bits = ((low + 149) as u64 * (1 << 23)) + significand;
            bits.min(0x7F80_0000) as u32
        };
        f32::from_bits(magnitude | (u32::from(negative) << 31))
    }

    /// The sum rounded once to f64, to nearest even: for error reports. Sums of FP4 products
    /// never leave f64's normal range.
    pub fn to_f64(&self) -> f64 {
        if self.nan {
            return f64::NAN;
        }
        let (negative, significand, low) = self.round(53, -1074);
        if significand == 0 {
            return 0.0;
        }
        let bits = (low + 1074) as u64 * (1 << 52) + significand;
        f64::from_bits(bits | (u64::from(negative) << 63))
    }

    /// Rounds the magnitude to `precision` bits or to units of 2^`floor`, whichever is coarser.
    /// Returns the sign, the significand (up to 2^precision, the carry included) and the exponent
    /// of its last bit.
    fn round(&self, precision: i32, floor: i32) -> (bool, u64, i32) {
        let negative = self.limbs[LIMBS - 1] >> 63 == 1;
        let mut magnitude = self.limbs;
        if negative {
            let mut carry = true;
            for l in &mut magnitude {
                (*l, carry) = (!*l).overflowing_add(u64::from(carry));
            }
        }
        let Some(top_limb) = magnitude.iter().rposition(|&l| l != 0) else {
            return (false, 0, floor);
        };
        let top = top_limb as i32 * 64 + 63 - magnitude[top_limb].leading_zeros() as i32;
        // Position of the last kept bit.
        let last = (top - (precision - 1)).max(floor - LOW);
        if last <= 0 {
            // Nothing below the last kept bit (f64 only): all bits are kept.
            return (negative, magnitude[0] << (-last), last + LOW);
        }
        let last = last as usize;
        let kept = bits_from(&magnitude, last);
        let half = bits_from(&magnitude, last - 1) & 1 == 1;
        let sticky = (0..last - 1).rev().step_by(64).any(|i| {
            // Bits i, i - 1, ..., of one 64-bit window.
            let low = (i + 1).saturating_sub(64);
            let width = i + 1 - low;
            let window = bits_from(&magnitude, low);
            (if width == 64 { window } else { window & ((1 << width) - 1) }) != 0
        });
        let up = half && (sticky || kept & 1 == 1);
        (negative, kept + u64::from(up), last as i32 + LOW)
    }

    /// The sum as bytes: [`VERSION`](Self::VERSION), the 640-bit two's complement integer in units
    /// of 2^-264, little-endian, then one byte that is 1 for NaN. For sending partial sums between
    /// machines.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0] = Self::VERSION;
        for (chunk, limb) in bytes[1..].chunks_exact_mut(8).zip(&self.limbs) {
            chunk.copy_from_slice(&limb.to_le_bytes());
        }
        bytes[Self::BYTES - 1] = u8::from(self.nan);
        bytes
    }

    /// The sum in [`WORDS`](Self::WORDS) words of 48 bits, the lowest first; the last has the sign,
    /// the others are not negative. Words of up to [`MOST_ADDED`](Self::MOST_ADDED) sums may be
    /// added one by one with no carry, in any order, by anything that adds integers: the result is
    /// what [`from_words`](Self::from_words) reads. The NaN flag is not among them.
    pub fn to_words(&self) -> [i64; Self::WORDS] {
        core::array::from_fn(|w| {
            let bits = bits_from(&self.limbs, 48 * w);
            // Of the last word's 48 bits there are 16, the sign's among them.
            if w + 1 < Self::WORDS { (bits & WORD) as i64 } else { i64::from(bits as u16 as i16) }
        })
    }

    /// The sum whose words, or sums of words, these are, modulo 2^640 units.
    pub fn from_words(words: &[i64; Self::WORDS]) -> Self {
        let mut sum = ExactSum::ZERO;
        let mut carry = 0;
        for (w, &word) in words.iter().enumerate() {
            // At most 2^63 - 2^48 of words, and 2^15 of carries.
            let total = word.wrapping_add(carry);
            carry = total >> 48;
            let digit = u128::from(total as u64 & WORD) << (48 * w % 64);
            for (limb, part) in sum.limbs.iter_mut().skip(48 * w / 64).zip([digit, digit >> 64]) {
                *limb |= part as u64;
            }
        }
        sum
    }

    /// The sum in units of `2^exponent`, if it is a whole number of them that an i64 holds. The NaN
    /// flag does not count.
    pub fn to_units(&self, exponent: i32) -> Option<i64> {
        let position = usize::try_from(exponent.checked_sub(LOW)?).ok()?;
        let (limb, shift) = (position / 64, position % 64);
        let sign = self.limbs[LIMBS - 1] as i64 >> 63;
        // Past the last limb there is nothing but the sign.
        let at = |limb: usize| self.limbs.get(limb).map_or(sign, |&l| l as i64);
        let units = match shift {
            0 => at(limb),
            _ => (at(limb) as u64 >> shift) as i64 | at(limb + 1) << (64 - shift),
        };
        let nothing_below = self.limbs.iter().take(limb).all(|&l| l == 0)
            && at(limb) as u64 & ((1 << shift) - 1) == 0;
        let nothing_above = units >> 63 == sign
            && at(limb + 1) >> shift == sign
            && self.limbs.iter().skip(limb + 2).all(|&l| l as i64 == sign);
        (nothing_below && nothing_above).then_some(units)
    }

    /// Reads [`to_bytes`](Self::to_bytes) back. Any nonzero flag byte means NaN.
    ///
    /// # Errors
    /// [`Error::Len`] unless there are [`BYTES`](Self::BYTES) bytes; [`Error::SumVersion`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let (expected, got) = (Self::BYTES, bytes.len());
        if got != expected {
            return Err(Error::Len { what: Buffer::SumBytes, expected, got });
        }
        if bytes[0] != Self::VERSION {
            return Err(Error::SumVersion { expected: Self::VERSION, got: bytes[0] });
        }
        let mut sum = ExactSum { limbs: [0; LIMBS], nan: bytes[Self::BYTES - 1] != 0 };
        for (limb, chunk) in sum.limbs.iter_mut().zip(bytes[1..].chunks_exact(8)) {
            let mut le = [0; 8];
            le.copy_from_slice(chunk);
            *limb = u64::from_le_bytes(le);
        }
        Ok(sum)
    }
}

/// The 64 bits of `limbs` from bit `position` up.
fn bits_from(limbs: &[u64; LIMBS], position: usize) -> u64 {
    let (limb, shift) = (position / 64, position % 64);
    // Not by index: no processor gets a path to a panic for it.
    let at = |limb: usize| limbs.get(limb).copied().unwrap_or(0);
    let (low, high) = (at(limb) >> shift, at(limb + 1));
    if shift == 0 { low } else { low | (high << (64 - shift)) }
}

/// `units * 2^exponent` rounded once to f32, as [`ExactSum::to_f32`], for an exponent that
/// [`ExactSum::add_scaled`] takes.
#[inline]
pub(crate) fn round_units(units: i64, exponent: i32) -> f32 {
    // Where nothing can be subnormal or infinite the conversion is the one rounding, and the power
    // of two exact.
    if (-126..=64).contains(&exponent) {
        // What many processors have an instruction for, and what they call a function for.
        let rounded = i32::try_from(units).map_or_else(|_| units as f32, |units| units as f32);
        return rounded * f32::from_bits(((exponent + 127) as u32) << 23);
    }
    let mut sum = ExactSum::ZERO;
    // The exponent is inside the range.
    let _ = sum.add_scaled(units, exponent);
    sum.to_f32()
}

/// Rounds a row of sums, `units * 2^(row + column)` with the exponent of each column, to `out`:
/// each as [`round_units`] does, in loops that vectorize.
#[cfg(feature = "alloc")]
pub(crate) fn round_row(units: &[i64], row: i32, columns: &[i32], out: &mut [f32]) {
    /// 2^52 + 2^51: with an integer of 52 bits and a sign added to its bits, its value plus that.
    const MIDDLE: f64 = 6_755_399_441_055_744.0;
    let sums = out.iter_mut().zip(units).zip(columns);
    let (least, most) =
        columns.iter().fold((i32::MAX, i32::MIN), |(l, m), &c| (l.min(c), m.max(c)));
    // Row and column are exponents of a few hundred each.
    if columns.is_empty() || row + least < -126 || row + most > 64 {
        return sums.for_each(|((to, &units), column)| *to = round_units(units, row + column));
    }
    let power = |column: i32| f32::from_bits(((row + column + 127) as u32) << 23);
    let beyond = units.iter().fold(0, |all, &units| all | (units as u64).wrapping_add(1 << 51));
    if beyond >> 52 != 0 {
        return sums.for_each(|((to, &units), &column)| *to = units as f32 * power(column));
    }
    // To f64 exactly, by what every processor has in vectors; then the one rounding.
    for ((to, &units), &column) in sums {
        let exact = f64::from_bits(MIDDLE.to_bits().wrapping_add(units as u64)) - MIDDLE;
        *to = exact as f32 * power(column);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(terms: &[(i64, i32)]) -> ExactSum {
        let mut sum = ExactSum::ZERO;
        for &(significand, exponent) in terms {
            sum.add_scaled(significand, exponent).unwrap();
        }
        sum
    }

    #[test]
    fn single_terms_round_like_f64_to_f32() {
        // f64 holds these terms exactly, so its conversion is the one rounding wanted.
        for significand in [1i64, 3, 0x00FF_FFFF, 0x0100_0001, 0x0180_0000_0001, -5, -0x0100_0003] {
            for exponent in -264..=200 {
                let got = sum(&[(significand, exponent)]);
                let exact = significand as f64 * 2f64.powi(exponent);
                assert_eq!(got.to_f64().to_bits(), exact.to_bits(), "{significand} 2^{exponent}");
                assert_eq!(
                    got.to_f32().to_bits(),
                    (exact as f32).to_bits(),
                    "{significand} 2^{exponent}"
                );
            }
        }
    }

    #[test]
    fn a_sticky_bit_far_below_a_tie_decides() {
        assert_eq!(sum(&[(1 << 24, 0), (1, 0)]).to_f32(), 16_777_216.0);
        for far in [-30, -100, -256, -264] {
            assert_eq!(sum(&[(1 << 24, 0), (1, 0), (1, far)]).to_f32(), 16_777_218.0, "{far}");
            assert_eq!(sum(&[(1 << 24, 0), (1, 0), (-1, far)]).to_f32(), 16_777_216.0, "{far}");
        }
    }

    #[test]
    fn cancellation_leaves_exactly_the_small_term() {
        let tiny = sum(&[(1, 254), (7, -149), (-1, 254)]);
        assert_eq!(tiny.to_f32().to_bits(), 7);
        let zero = sum(&[(1, 254), (-1, 254)]);
        assert_eq!((zero, zero.to_f32().to_bits()), (ExactSum::ZERO, 0));
    }

    #[test]
    fn underflow_keeps_the_sign_and_overflow_is_infinite() {
        assert_eq!(sum(&[(-1, -264)]).to_f32().to_bits(), 0x8000_0000);
        assert_eq!(sum(&[(-1, -150)]).to_f32().to_bits(), 0x8000_0000);
        assert_eq!(sum(&[(-3, -151)]).to_f32().to_bits(), 0x8000_0001);
        assert_eq!(sum(&[(1, 128)]).to_f32(), f32::INFINITY);
        // The largest finite f32 plus just under, and exactly, half of its last unit.
        assert_eq!(sum(&[(0x00FF_FFFF, 104), (1, 103), (-1, -264)]).to_f32(), f32::MAX);
        assert_eq!(sum(&[(-0x00FF_FFFF, 104), (-1, 103)]).to_f32(), f32::NEG_INFINITY);
    }

    #[test]
    fn subnormals_round_in_units_of_2_to_minus_149() {
        assert_eq!(sum(&[(1, -149)]).to_f32().to_bits(), 1);
        assert_eq!(sum(&[(3, -150)]).to_f32().to_bits(), 2);
        assert_eq!(sum(&[(5, -150)]).to_f32().to_bits(), 2);
        assert_eq!(sum(&[(0x00FF_FFFF, -150)]).to_f32().to_bits(), 0x0080_0000);
    }

    #[test]
    fn terms_outside_the_range_are_refused_and_change_nothing() {
        let mut s = sum(&[(5, 3)]);
        for exponent in [-265, 255, i32::MIN, i32::MAX] {
            assert_eq!(s.add_scaled(1, exponent), Err(Error::SumRange { exponent }));
        }
        assert_eq!(s, sum(&[(5, 3)]));
    }

    #[test]
    fn bytes_round_trip_and_wrong_lengths_are_errors() {
        let mut s = sum(&[(-12345, -200), (99, 250)]);
        assert_eq!(ExactSum::from_bytes(&s.to_bytes()), Ok(s));
        s.set_nan();
        assert_eq!(ExactSum::from_bytes(&s.to_bytes()), Ok(s));
        assert!(s.to_f32().is_nan());
        let what = Buffer::SumBytes;
        let short = ExactSum::from_bytes(&[0; 81]);
        assert_eq!(short, Err(Error::Len { what, expected: 82, got: 81 }));
        let old = ExactSum::from_bytes(&[1; 82]);
        assert_eq!(old, Err(Error::SumVersion { expected: 2, got: 1 }));
        // One unit, where it has always to be.
        let unit = sum(&[(1, -264)]).to_bytes();
        assert_eq!((unit[0], unit[1], unit.iter().filter(|b| **b == 0).count()), (2, 1, 80));
    }

    #[test]
    fn units_round_as_exact_sums_do_at_every_exponent() {
        for units in [0, 1, -1, 3, (1 << 24) + 1, -(1 << 24) - 3, i64::MAX, i64::MIN] {
            for exponent in LOW..=254 {
                let (got, expected) = (round_units(units, exponent), sum(&[(units, exponent)]));
                let expected = expected.to_f32();
                assert_eq!(got.to_bits(), expected.to_bits(), "{units} 2^{exponent}");
            }
        }
    }

    #[test]
    #[cfg(feature = "alloc")]
    fn rows_of_units_round_as_each_of_them_does() {
        let middle = [1i64 << 51, (1 << 51) - 1, (1 << 52) + 1, 1 << 24, (1 << 24) + 1, 0];
        let small =
            middle.iter().flat_map(|&u| [u, -u, u / 3, -u / 5]).filter(|u| u.abs() < 1 << 51);
        let small: Vec<i64> = small.chain([-(1 << 51)]).collect();
        let with = |units: i64| [&small[..], &[units]].concat();
        // Just past what has a fast way, and as far as it goes.
        let past = [1 << 51, (1 << 51) + (1 << 28), -(1 << 51) - 1, i64::MIN].map(with);
        let rows = [&[small.clone(), vec![]], &past[..]].concat();
        let mut compared = 0;
        for (units, row) in rows.iter().flat_map(|units| (LOW..=254).map(move |row| (units, row))) {
            for apart in [0, 1, 5] {
                let column = |j: usize| (j as i32 * apart % 11).min(254 - row);
                let columns: Vec<i32> = (0..units.len()).map(column).collect();
                let mut got = vec![0f32; units.len()];
                round_row(units, row, &columns, &mut got);
                for ((got, &units), column) in got.iter().zip(units).zip(&columns) {
                    let expected = sum(&[(units, row + column)]).to_f32();
                    assert_eq!(got.to_bits(), expected.to_bits(), "{units} 2^({row} + {column})");
                    compared += 1;
                }
            }
        }
        assert!(compared > 100_000, "{compared}");
    }

    #[test]
    fn fixed_sums_agree_with_exact_sums() {
        for units in [0, 1, -1, i64::MAX, i64::MIN, (1 << 44) + (1 << 20), -(1 << 24) - 1] {
            let fixed = FixedSum { units, nan: false };
            assert_eq!(fixed.to_f32().to_bits(), ExactSum::from(fixed).to_f32().to_bits());
        }
        let mut full = FixedSum { units: i64::MAX, nan: false };
        assert_eq!(full.add(1), Err(Error::PartialOverflow));
        assert_eq!(full.units, i64::MAX);
    }

    #[test]
    fn words_and_units_at_the_edges() {
        for terms in [&[][..], &[(1, -264)], &[(-1, -264)], &[(-1, 254)], &[(i64::MIN, 254)]] {
            let s = sum(terms);
            assert_eq!(ExactSum::from_words(&s.to_words()), s);
        }
        // As many of the largest words as may be added.
        let (most, each) = (ExactSum::MOST_ADDED as i64, sum(&[(-1, -264)]));
        let (words, mut all) = (each.to_words().map(|w| w * most), ExactSum::ZERO);
        all.add_scaled(-most, -264).unwrap();
        assert_eq!(ExactSum::from_words(&words), all);

        assert_eq!(sum(&[(i64::MAX, 3)]).to_units(3), Some(i64::MAX));
        assert_eq!(sum(&[(i64::MIN, 3)]).to_units(3), Some(i64::MIN));
        assert_eq!(sum(&[(i64::MAX, 3), (1, 3)]).to_units(3), None);
        assert_eq!(sum(&[(i64::MIN, 3), (-1, 3)]).to_units(3), None);
        assert_eq!(sum(&[(3, 3)]).to_units(4), None);
        assert_eq!(sum(&[(1, 254)]).to_units(-264), None);
        assert_eq!(sum(&[(-6, 2)]).to_units(3), Some(-3));
        for exponent in [-265, 376, i32::MIN, i32::MAX] {
            assert_eq!(sum(&[(1, 0)]).to_units(exponent), None, "{exponent}");
        }
    }

    #[test]
    fn scaled_sums_take_whole_units_that_fit() {
        let mut s = ScaledSum::zero(-3);
        s.add_scaled(5, -2).unwrap();
        s.add_scaled(4, -5).unwrap();
        assert_eq!(s, ScaledSum { units: 11, exponent: -3 });
        for (significand, exponent) in [(1, -4), (1, 61), (1, 60), (-1, 62), (1, -200), (3, 200)] {
            let before = s;
            let got = s.add_scaled(significand, exponent);
            assert_eq!(got, Err(Error::PartialOverflow), "{significand} 2^{exponent}");
            assert_eq!(s, before);
        }
        s.add_scaled(0, 250).unwrap();
        s.merge(&sum(&[(-11, -3)])).unwrap();
        assert_eq!(s, ScaledSum { units: 0, exponent: -3 });
        assert_eq!(s.merge(&sum(&[(1, -4)])), Err(Error::PartialOverflow));
    }

    #[test]
    fn scaled_sums_of_a_matrix_have_the_units_of_their_row_and_column() {
        let mut units = [0; 6];
        let mut sums = ScaledSums::new(&mut units, &[0, -2], &[0, 1, -1]).unwrap();
        sums.for_each(|[i, j], sum| sum.add_scaled(1 + i as i64, 1 + j as i32)).unwrap();
        assert_eq!(units, [2, 2, 16, 16, 16, 128]);
        let most = ScaledSums::MOST_EXPONENT;
        assert!(ScaledSums::new(&mut units, &[most, -most], &[most, 0, -most]).is_ok());
        for exponent in [most + 1, -most - 1, i32::MAX, i32::MIN] {
            let past = ScaledSums::new(&mut units, &[0, exponent], &[0; 3]).unwrap_err();
            assert_eq!(past, Error::SumRange { exponent });
        }
        let short = ScaledSums::new(&mut units, &[0], &[0, 1]).unwrap_err();
        assert_eq!(short, Error::Len { what: Buffer::Partials, expected: 2, got: 6 });

        let product = crate::Product::of(crate::Format::MxFp4);
        let sums = PartialsMut::Scaled(ScaledSums::new(&mut units, &[0, 0], &[0; 3]).unwrap());
        assert_eq!(sums.expect(product, [2, 3]), Ok(()));
        let other = Err(Error::Len { what: Buffer::Partials, expected: 3, got: 2 });
        assert_eq!(sums.expect(product, [3, 2]), other);
        let overflow = Error::ShapeOverflow { rows: usize::MAX, cols: 2 };
        assert_eq!(sums.expect(product, [usize::MAX, 2]), Err(overflow));
    }

    quickcheck::quickcheck! {
        fn words_of_any_parts_add_to_the_words_of_the_sum(parts: Vec<Vec<(i64, i16)>>) -> bool {
            let exponent = |e: i16| i32::from(e).rem_euclid(519) - 264;
            let parts: Vec<_> = parts.iter().map(|terms| {
                sum(&terms.iter().map(|&(s, e)| (s, exponent(e))).collect::<Vec<_>>())
            }).collect();
            let (mut whole, mut words) = (ExactSum::ZERO, [0; ExactSum::WORDS]);
            for part in &parts {
                whole.merge(part);
                words.iter_mut().zip(part.to_words()).for_each(|(to, word)| *to += word);
            }
            ExactSum::from_words(&words) == whole
        }

        fn units_are_the_sum_or_it_does_not_fit(terms: Vec<(i64, i8)>, to: i8) -> bool {
            let terms: Vec<_> = terms.iter().map(|&(s, e)| (s >> 20, i32::from(e))).collect();
            let s = sum(&terms);
            let exact = terms.iter().try_fold(0i128, |all, &(s, e)| {
                let e = e - i32::from(to);
                // Past 2^127 nothing is compared; below a unit nothing is whole, unless it is 0.
                if (0..80).contains(&e) { Some(all + (i128::from(s) << e)) } else { None }
            });
            match (exact, s.to_units(to.into())) {
                (Some(exact), got) => got == i64::try_from(exact).ok(),
                (None, None) => true,
                (None, Some(units)) => sum(&[(units, to.into())]) == s,
            }
        }

        fn any_split_and_order_gives_the_same_sum(terms: Vec<(i64, i16)>, cut: usize) -> bool {
            let terms: Vec<_> = terms.iter().map(|&(s, e)| (s, i32::from(e).rem_euclid(519) - 264)).collect();
            let whole = sum(&terms);
            let cut = if terms.is_empty() { 0 } else { cut % terms.len() };
            let (a, b) = terms.split_at(cut);
            let mut merged = sum(b);
            merged.merge(&sum(a));
            let mut reversed = terms.clone();
            reversed.reverse();
            merged == whole && sum(&reversed) == whole
        }

        fn rounding_is_to_the_nearest_of_the_two_neighbours(terms: Vec<(i64, i16)>) -> bool {
            // |value - rounded| <= |value - neighbour|, all exactly, on both sides.
            let terms: Vec<_> = terms.iter().map(|&(s, e)| (s, i32::from(e).rem_euclid(160) - 200)).collect();
            let value = sum(&terms);
            let rounded = value.to_f32();
            if !rounded.is_finite() || rounded == 0.0 {
                return true;
            }
            let distance = |to: f32| {
                // value - to as an exact sum; its magnitude by sign.
                let bits = to.to_bits();
                let (e, m) = ((bits >> 23 & 0xFF) as i32, i64::from(bits & 0x7F_FFFF));
                let (m, e) = if e == 0 { (m, -149) } else { (m | 1 << 23, e - 150) };
                let mut d = value;
                d.add_scaled(if to < 0.0 { m } else { -m }, e).unwrap();
                if d.limbs[LIMBS - 1] >> 63 == 1 {
                    let mut negated = ExactSum::ZERO;
                    let mut carry = true;
                    for (n, l) in negated.limbs.iter_mut().zip(&d.limbs) {
                        (*n, carry) = (!*l).overflowing_add(u64::from(carry));
                    }
                    d = negated;
                }
                d.limbs.iter().rev().copied().collect::<Vec<_>>()
            };
            let here = distance(rounded);
            [rounded.to_bits() - 1, rounded.to_bits() + 1].into_iter().map(f32::from_bits)
                .filter(|n| n.is_finite())
                .all(|n| match here.cmp(&distance(n)) {
                    core::cmp::Ordering::Less => true,
                    core::cmp::Ordering::Equal => rounded.to_bits() & 1 == 0,
                    core::cmp::Ordering::Greater => false,
                })
        }
    }
}
