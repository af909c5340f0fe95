//! A wide integer for exact sums: 32-bit digits with deferred carries, in units of 2^-264.
//!
//! ```text
//! value = 2^-264 * sum over d of digit[d] * 2^(32 d)     digits are i64 and may overlap
//! add:     a term is cut at digit boundaries and added to up to three digits
//! resolve: one pass of carries gives sign and magnitude
//! round:   keep 24 bits, look at the next one and at everything below it
//! ```
//!
//! A digit takes 2^31 terms before it could overflow; K is far below that.
//!
//! Worked example: 2^24 + 1 + 2^-30 is just above the tie between 2^24 and 2^24 + 2: the kept bits
//! end at 2^1, the bit 2^0 is set and 2^-30 is below it, so it rounds up to 2^24 + 2.

/// Exponent of one unit.
const UNIT: i32 = -264;
/// Number of digits: 672 bits, 2^-264 to beyond 2^407.
const DIGITS: usize = 21;

/// An exact sum, or NaN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wide {
    digits: [i64; DIGITS],
    nan: bool,
}

impl Wide {
    /// The empty sum.
    pub const ZERO: Wide = Wide { digits: [0; DIGITS], nan: false };

    /// NaN.
    pub const NAN: Wide = Wide { digits: [0; DIGITS], nan: true };

    /// Adds `significand * 2^exponent`.
    ///
    /// # Panics
    /// If the exponent is below -264: no product of operands has one below -261.
    pub fn add(&mut self, significand: i64, exponent: i32) {
        assert!(exponent >= UNIT, "exponent {exponent}");
        let place = (exponent - UNIT) as usize;
        let value = i128::from(significand) << (place % 32);
        let digits = &mut self.digits[place / 32..place / 32 + 3];
        digits[0] += (value & 0xFFFF_FFFF) as i64;
        digits[1] += (value >> 32 & 0xFFFF_FFFF) as i64;
        digits[2] += (value >> 64) as i64;
    }

    /// True if the sum is NaN.
    pub fn is_nan(&self) -> bool {
        self.nan
    }

    /// The two's complement integer, digit by digit from the lowest.
    pub fn twos_complement(&self) -> [u32; DIGITS] {
        let mut carry = 0;
        self.digits.map(|digit| {
            let sum = digit + carry;
            carry = sum >> 32;
            sum as u32
        })
    }

    /// Sign and magnitude.
    pub fn sign_and_magnitude(&self) -> (bool, [u32; DIGITS]) {
        let digits = self.twos_complement();
        let negative = digits[DIGITS - 1] >> 31 == 1;
        if !negative {
            return (false, digits);
        }
        let mut carry = true;
        let magnitude = digits.map(|digit| {
            let (sum, over) = (!digit).overflowing_add(u32::from(carry));
            carry = over;
            sum
        });
        (true, magnitude)
    }

    /// The sum rounded once to f32: to nearest, ties to even; zero is +0, NaN canonical.
    pub fn to_f32_bits(&self) -> u32 {
        if self.nan {
            return 0x7FC0_0000;
        }
        let (negative, magnitude) = self.sign_and_magnitude();
        let bit = |i: usize| magnitude[i / 32] >> (i % 32) & 1;
        let Some(top) = (0..32 * DIGITS).rev().find(|&i| bit(i) == 1) else { return 0 };
        // The lowest bit kept: 24 bits, or down to the last subnormal bit, 2^-149.
        let last = (top as i32 - 23).max(-149 - UNIT) as usize;
        let kept = (last..=top.max(last)).rev().fold(0, |kept, i| kept << 1 | bit(i));
        let below = (0..last - 1).any(|i| bit(i) == 1);
        let up = bit(last - 1) == 1 && (below || kept & 1 == 1);
        // Numbered from the smallest subnormal: the exponent field counts how far `last` is above
        // it, and a carry out of the rounding goes where it belongs.
        let field = last as u32 - (-149 - UNIT) as u32;
        let pattern = (field << 23) + kept + u32::from(up);
        pattern.min(0x7F80_0000) | u32::from(negative) << 31
    }

    /// The sum as an f64, with a relative error below 2^-50: for error bounds, not for bits.
    pub fn to_f64(&self) -> f64 {
        let (negative, magnitude) = self.sign_and_magnitude();
        let value =
            magnitude.iter().enumerate().rev().fold(0.0, |sum, (d, &digit)| {
                sum + f64::from(digit) * 2f64.powi(UNIT + 32 * d as i32)
            });
        if negative { -value } else { value }
    }
}

#[cfg(test)]
mod tests {
    use num_bigint::{BigInt, Sign};

    use super::*;
    use crate::random::Random;

    fn sum(terms: &[(i64, i32)]) -> Wide {
        let mut sum = Wide::ZERO;
        for &(significand, exponent) in terms {
            sum.add(significand, exponent);
        }
        sum
    }

    #[test]
    fn worked_examples() {
        let f = |terms: &[(i64, i32)]| sum(terms).to_f32_bits();
        assert_eq!(f(&[(1, 24), (1, 0), (1, -30)]), 16_777_218f32.to_bits());
        assert_eq!(f(&[(1, 24), (1, 0)]), 16_777_216f32.to_bits());
        assert_eq!(f(&[(-1, 24), (-1, 0), (-1, -264)]), (-16_777_218f32).to_bits());
        assert_eq!(f(&[(1, 128)]), 0x7F80_0000);
        assert_eq!(f(&[(1, 128), (-1, 103)]), 0x7F80_0000);
        assert_eq!(f(&[(1, 128), (-1, 103), (-1, -264)]), 0x7F7F_FFFF);
        assert_eq!(f(&[(-1, -150)]), 0x8000_0000);
        assert_eq!(f(&[(1, -150), (1, -264)]), 1);
        assert_eq!(f(&[(1, 250), (-1, 250)]), 0);
        assert_eq!(f(&[(1, -126)]), 0x0080_0000);
    }

    #[test]
    fn integers_equal_big_integers_and_round_as_f64_does() {
        let mut random = Random::of("wide");
        for _ in 0..20_000 {
            let terms: Vec<_> = (0..random.below(6))
                .map(|_| (random.next_u64() as i64 >> random.below(63), random.range(-264, 250)))
                .collect();
            let got = sum(&terms);
            let exact: BigInt =
                terms.iter().map(|&(s, e)| BigInt::from(s) << (e + 264) as usize).sum();
            let (negative, magnitude) = got.sign_and_magnitude();
            assert_eq!(negative, exact.sign() == Sign::Minus);
            assert_eq!(exact.magnitude(), &num_bigint::BigUint::from_slice(&magnitude));
            // One term of at most 53 bits is an f64; its conversion is the one rounding wanted.
            let significand = random.next_u64() as i64 >> (11 + random.below(50));
            let exponent = random.range(-264, 140);
            let value = significand as f64 * 2f64.powi(exponent);
            let expected = if significand == 0 { 0 } else { (value as f32).to_bits() };
            assert_eq!(sum(&[(significand, exponent)]).to_f32_bits(), expected);
        }
    }
}
