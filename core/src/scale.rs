//! Scale bytes: e8m0 and e4m3 ([C2]).
//!
//! ```text
//! e8m0   byte b = 2^(b - 127); 0xFF = NaN; no sign, no zero
//! e4m3   s eeee mmm: (8 + m) * 2^(e - 10) for e > 0, m * 2^-9 for e = 0; 0x7F, 0xFF = NaN
//! ```
//!
//! Every finite scale is a small integer times a power of two, which is what makes the matmul
//! integer arithmetic: [`ScaleParts`] holds the two.
//!
//! Worked examples. e8m0: 1.5 lies halfway between 1 and 2; ties go up, so the byte is 128 (2).
//! e4m3: 0.0146 is 7.475 * 2^-9, below the smallest normal (8 * 2^-9), so it rounds to the
//! subnormal 7 * 2^-9, byte 0x07.
//!
//! Sources: OCP Microscaling Formats (MX) v1.0, section 5.4.1 (e8m0); OCP 8-bit Floating Point
//! Specification v1.0 (e4m3); the rounding and clamping rules are contract clause [C2].
//!
//! [C2]: crate::contract#c2

use crate::format::ScaleType;

/// One e8m0 byte: a power of two from 2^-127 to 2^127, or NaN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct E8m0(u8);

impl E8m0 {
    /// The NaN byte.
    pub const NAN: E8m0 = E8m0(0xFF);
    /// One.
    pub const ONE: E8m0 = E8m0(127);
    /// The largest finite scale, 2^127.
    pub const MAX: E8m0 = E8m0(254);

    /// The scale with this byte.
    pub const fn from_bits(bits: u8) -> Self {
        E8m0(bits)
    }

    /// The byte.
    pub const fn to_bits(self) -> u8 {
        self.0
    }

    /// True for 0xFF.
    pub const fn is_nan(self) -> bool {
        self.0 == 0xFF
    }

    /// The value; exact (byte 0 is the f32 subnormal 2^-127), NaN canonical.
    #[inline]
    pub const fn to_f32(self) -> f32 {
        f32::from_bits(match self.0 {
            0xFF => crate::float::NAN_F32,
            0 => 0x0040_0000,
            b => (b as u32) << 23,
        })
    }

    /// The nearest power of two on the linear scale, ties up, after clamping to
    /// [2^-127, 2^127]; NaN gives 0xFF (C2).
    #[inline]
    pub const fn from_f32(s: f32) -> Self {
        let bits = s.to_bits();
        if s.is_nan() {
            return Self::NAN;
        }
        if bits >> 31 != 0 {
            return E8m0(0); // clamped up to 2^-127
        }
        if bits < 0x0080_0000 {
            // Subnormal: 2^-127 is 0x0040_0000 and 1.5 * 2^-127, the tie, 0x0060_0000.
            return E8m0((bits >= 0x0060_0000) as u8);
        }
        // Half of an octave is mantissa 0x40_0000: adding it carries into the exponent
        // exactly when the value is at or above 1.5 * 2^e.
        let rounded = (bits + 0x0040_0000) >> 23;
        E8m0(if rounded > 254 { 254 } else { rounded as u8 })
    }
}

/// One e4m3 byte, the "fn" variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct E4m3(u8);

impl E4m3 {
    /// The NaN byte that encoding writes.
    pub const NAN: E4m3 = E4m3(0x7F);
    /// One.
    pub const ONE: E4m3 = E4m3(0x38);
    /// The largest finite scale, 448.
    pub const MAX: E4m3 = E4m3(0x7E);

    /// The scale with this byte.
    pub const fn from_bits(bits: u8) -> Self {
        E4m3(bits)
    }

    /// The byte.
    pub const fn to_bits(self) -> u8 {
        self.0
    }

    /// True for 0x7F and 0xFF.
    pub const fn is_nan(self) -> bool {
        self.0 & 0x7F == 0x7F
    }

    /// The value; exact, NaN canonical.
    #[inline]
    pub const fn to_f32(self) -> f32 {
        if self.is_nan() {
            return f32::from_bits(crate::float::NAN_F32);
        }
        let (exponent, mantissa) = (((self.0 >> 3) & 0xF) as u32, (self.0 & 7) as u32);
        let magnitude = if exponent == 0 {
            mantissa as f32 * (1.0 / 512.0)
        } else {
            f32::from_bits(((exponent + 120) << 23) | (mantissa << 20))
        };
        f32::from_bits(magnitude.to_bits() | ((self.0 as u32 >> 7) << 31))
    }

    /// Nearest even after clamping to [-448, 448], subnormals included; NaN gives 0x7F (C2).
    #[inline]
    pub const fn from_f32(s: f32) -> Self {
        if s.is_nan() {
            return Self::NAN;
        }
        let bits = s.to_bits();
        let (sign, magnitude) = ((bits >> 24) as u8 & 0x80, bits & 0x7FFF_FFFF);
        // 448 = 1.75 * 2^8.
        if magnitude >= 0x43E0_0000 {
            return E4m3(sign | Self::MAX.0);
        }
        // Units of the last kept bit: 2^-9 up to 2^-6, then 2^(e - 3) in the octave 2^e.
        let exponent = (magnitude >> 23) as i32 - 127;
        let (significand, shift, base) = if exponent < -6 {
            // value = significand * 2^(exponent - 23), wanted in units of 2^-9.
            let drop = 14 - exponent;
            if drop > 31 || magnitude < 0x0080_0000 {
                return E4m3(sign); // far below half of 2^-9
            }
            ((magnitude & 0x007F_FFFF) | 0x0080_0000, drop as u32, 0u32)
        } else {
            // The implicit bit stays out: the carry of the rounding moves the exponent by itself.
            (magnitude & 0x007F_FFFF, 20, (exponent as u32).wrapping_add(7) << 3)
        };
        let kept = significand >> shift;
        let rest = significand & ((1 << shift) - 1);
        let half = 1u32 << (shift - 1);
        let up = rest > half || (rest == half && kept & 1 == 1);
        E4m3(sign | (base + kept + up as u32) as u8)
    }
}

/// A finite scale as `significand * 2^exponent`: the significand is 1 for e8m0 and an integer in
/// -15..=15 for e4m3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ScaleParts {
    /// The signed significand.
    pub significand: i32,
    /// The exponent of two.
    pub exponent: i32,
}

impl ScaleType {
    /// Both types.
    pub const ALL: [ScaleType; 2] = [ScaleType::E8M0, ScaleType::E4M3];

    /// The value of the scale byte; exact.
    #[inline]
    pub const fn decode(self, byte: u8) -> f32 {
        match self {
            ScaleType::E8M0 => E8m0(byte).to_f32(),
            ScaleType::E4M3 => E4m3(byte).to_f32(),
        }
    }

    /// The scale byte of `s` by C2.
    #[inline]
    pub const fn encode(self, s: f32) -> u8 {
        match self {
            ScaleType::E8M0 => E8m0::from_f32(s).0,
            ScaleType::E4M3 => E4m3::from_f32(s).0,
        }
    }

    /// True if the byte is a NaN of this type.
    pub const fn is_nan(self, byte: u8) -> bool {
        match self {
            ScaleType::E8M0 => E8m0(byte).is_nan(),
            ScaleType::E4M3 => E4m3(byte).is_nan(),
        }
    }

    /// The NaN byte that encoding writes.
    pub const fn nan_byte(self) -> u8 {
        match self {
            ScaleType::E8M0 => E8m0::NAN.0,
            ScaleType::E4M3 => E4m3::NAN.0,
        }
    }

    /// The largest finite value.
    pub const fn max(self) -> f32 {
        match self {
            ScaleType::E8M0 => E8m0::MAX.to_f32(),
            ScaleType::E4M3 => E4m3::MAX.to_f32(),
        }
    }

    /// The scale as an integer times a power of two; `None` for NaN.
    pub const fn parts(self, byte: u8) -> Option<ScaleParts> {
        if self.is_nan(byte) {
            return None;
        }
        Some(match self {
            ScaleType::E8M0 => ScaleParts { significand: 1, exponent: byte as i32 - 127 },
            ScaleType::E4M3 => {
                let (e, m) = (((byte >> 3) & 0xF) as i32, (byte & 7) as i32);
                let (significand, exponent) = if e == 0 { (m, -9) } else { (8 + m, e - 10) };
                ScaleParts {
                    significand: if byte & 0x80 != 0 { -significand } else { significand },
                    exponent,
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_round_trips_and_equals_its_parts() {
        for ty in ScaleType::ALL {
            for byte in 0..=255u8 {
                let value = ty.decode(byte);
                let Some(parts) = ty.parts(byte) else {
                    assert!(value.is_nan() && ty.is_nan(byte));
                    assert_eq!(ty.encode(value), ty.nan_byte());
                    continue;
                };
                let exact = f64::from(parts.significand) * 2f64.powi(parts.exponent);
                assert_eq!(f64::from(value), exact, "{ty} {byte:#x}");
                assert_eq!(ty.encode(value), byte, "{ty} {byte:#x}");
            }
        }
    }

    #[test]
    fn e8m0_ties_go_up_and_out_of_range_clamps() {
        let encode = |s: f32| E8m0::from_f32(s).to_bits();
        assert_eq!(encode(1.5), 128);
        assert_eq!(encode(f32::from_bits(1.5f32.to_bits() - 1)), 127);
        assert_eq!(encode(f32::from_bits(0x005F_FFFF)), 0);
        assert_eq!(encode(f32::from_bits(0x0060_0000)), 1);
        for low in [0.0, -0.0, -1.0, f32::NEG_INFINITY, f32::from_bits(1)] {
            assert_eq!(encode(low), 0, "{low}");
        }
        for high in [f32::INFINITY, f32::MAX, 2f32.powi(127)] {
            assert_eq!(encode(high), 254, "{high}");
        }
        assert_eq!(encode(f32::NAN), 0xFF);
    }

    #[test]
    fn e4m3_subnormals_round_to_even() {
        let encode = |s: f32| E4m3::from_f32(s).to_bits();
        let unit = 1.0 / 512.0;
        assert_eq!(encode(0.5 * unit), 0x00);
        assert_eq!(encode(0.50001 * unit), 0x01);
        assert_eq!(encode(1.5 * unit), 0x02);
        assert_eq!(encode(2.5 * unit), 0x02);
        assert_eq!(encode(7.5 * unit), 0x08);
        assert_eq!(encode(-7.475 * unit), 0x87);
        assert_eq!(encode(-0.0), 0x80);
        assert_eq!(encode(f32::from_bits(1)), 0x00);
    }

    #[test]
    fn e4m3_saturates_at_448() {
        for (s, byte) in [(448.0, 0x7E), (1e30, 0x7E), (f32::NEG_INFINITY, 0xFE), (440.0, 0x7E)] {
            assert_eq!(E4m3::from_f32(s).to_bits(), byte, "{s}");
        }
        assert_eq!(E4m3::from_f32(-f32::NAN).to_bits(), 0x7F);
    }
}
