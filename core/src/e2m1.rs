//! e2m1, the 4-bit element ([C1]): one sign bit, two exponent bits, one mantissa bit.
//!
//! ```text
//! code      0  1    2  3    4  5  6  7      8..15: the same, negative
//! value     0  0.5  1  1.5  2  3  4  6
//! midpoint    .25 .75 1.25 1.75 2.5 3.5 5
//! ```
//!
//! No infinities and no NaN. Encoding rounds to nearest; a value on a midpoint goes by the
//! [`TieMode`]. Worked example: 0.75 lies between 0.5 (code 1) and 1 (code 2); `Even` gives code 2,
//! `Zero` and `Down` give 1, `Up` gives 2; for -0.75 `Down` gives -1 and `Up` gives -0.5.
//!
//! Source: OCP Microscaling Formats (MX) v1.0, section 5.3.3; contract clause [C1].
//!
//! [C1]: crate::contract#c1

/// How a value exactly between two codes is rounded (C1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TieMode {
    /// To the even code: the default, and what hardware does.
    #[default]
    Even,
    /// Toward zero.
    Zero,
    /// Toward negative infinity.
    Down,
    /// Toward positive infinity.
    Up,
}

impl TieMode {
    /// All four modes.
    pub const ALL: [TieMode; 4] = [TieMode::Even, TieMode::Zero, TieMode::Down, TieMode::Up];
}

/// One e2m1 code, 0..=15.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct E2m1(u8);

/// The magnitudes of codes 0..=7, and negated of 8..=15.
const VALUES: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Twice the value, an integer for every code.
pub(crate) const DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Midpoints between neighbouring magnitudes; exact in f32.
const MIDPOINTS: [f32; 7] = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0];

impl E2m1 {
    /// The largest magnitude, 6.
    pub const MAX: f32 = 6.0;

    /// The code in the low four bits of `bits`; the high four are dropped.
    pub const fn from_bits(bits: u8) -> Self {
        E2m1(bits & 0xF)
    }

    /// The code, 0..=15.
    pub const fn to_bits(self) -> u8 {
        self.0
    }

    /// The value; exact.
    pub const fn to_f32(self) -> f32 {
        VALUES[self.0 as usize]
    }

    /// Twice the value, an integer in -12..=12: what integer kernels multiply.
    pub const fn doubled(self) -> i8 {
        DOUBLED[self.0 as usize]
    }

    /// Encodes `x` with ties to the even code.
    pub fn from_f32(x: f32) -> Self {
        Self::from_f32_tie(x, TieMode::Even)
    }

    /// Encodes `x`, rounding to nearest and ties by `tie`. Above 6 saturates, NaN gives 0x7,
    /// a zero result keeps the sign of `x`.
    pub fn from_f32_tie(x: f32, tie: TieMode) -> Self {
        if x.is_nan() {
            return E2m1(0x7);
        }
        let negative = x.is_sign_negative();
        let magnitude = x.abs();
        let mut code = 0u8;
        for (lower, midpoint) in MIDPOINTS.into_iter().enumerate() {
            // Of the codes `lower` and `lower + 1`, does a tie take the upper one?
            let tie_up = match tie {
                TieMode::Even => lower % 2 == 1,
                TieMode::Zero => false,
                TieMode::Down => negative,
                TieMode::Up => !negative,
            };
            code += u8::from(magnitude > midpoint || (tie_up && magnitude == midpoint));
        }
        E2m1(code | (u8::from(negative) << 3))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_round_trips_in_every_tie_mode() {
        for bits in 0..16 {
            let code = E2m1::from_bits(bits);
            assert_eq!(f32::from(code.doubled()), 2.0 * code.to_f32());
            for tie in TieMode::ALL {
                assert_eq!(E2m1::from_f32_tie(code.to_f32(), tie), code, "code {bits} {tie:?}");
            }
        }
    }

    #[test]
    fn tie_at_0_75_follows_the_mode() {
        let encode = |x, tie| E2m1::from_f32_tie(x, tie).to_f32();
        assert_eq!(encode(0.75, TieMode::Even), 1.0);
        assert_eq!(encode(0.75, TieMode::Zero), 0.5);
        assert_eq!(encode(0.75, TieMode::Down), 0.5);
        assert_eq!(encode(0.75, TieMode::Up), 1.0);
        assert_eq!(encode(-0.75, TieMode::Down), -1.0);
        assert_eq!(encode(-0.75, TieMode::Up), -0.5);
    }

    #[test]
    fn a_zero_result_keeps_the_sign() {
        for (x, code) in [(0.0, 0x0), (-0.0, 0x8), (1e-40, 0x0), (-1e-40, 0x8), (-0.25, 0x8)] {
            assert_eq!(E2m1::from_f32(x).to_bits(), code, "{x}");
        }
        assert_eq!(E2m1::from_f32_tie(-0.25, TieMode::Down).to_bits(), 0x9);
    }

    #[test]
    fn nan_of_either_sign_is_0x7_and_infinities_saturate() {
        assert_eq!(E2m1::from_f32(f32::NAN).to_bits(), 0x7);
        assert_eq!(E2m1::from_f32(-f32::NAN).to_bits(), 0x7);
        assert_eq!(E2m1::from_f32(f32::INFINITY).to_bits(), 0x7);
        assert_eq!(E2m1::from_f32(f32::NEG_INFINITY).to_bits(), 0xF);
    }
}
