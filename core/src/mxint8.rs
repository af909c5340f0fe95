//! MXINT8: 8-bit integer elements under e8m0 scales, for activations ([C10]).
//!
//! ```text
//! value(i, b) = i * 2^-6 * 2^(b - 127)            i a byte in two's complement
//! b           = the least byte with amax * 64 <= 127 * 2^(b - 127), at most 254
//! i           = x * 64 / 2^(b - 127), to nearest, ties to even, at most +-127
//! ```
//!
//! Both rules are on real numbers. Two things make that cheap: 127 / 64 is 1.984375, so `b` is the
//! exponent of amax, and one more where the fraction is above 0.984375; and the quotient by a power
//! of two is exact in f64 whatever the exponents, where f32 would lose bits below 2^-126.
//!
//! Worked example: amax = 1 has b = 127 and 1 becomes 64; amax = 1.99 is above 127 / 64, so b = 128
//! and 1.99 becomes 63.68, so 64.
//!
//! Source: OCP Microscaling Formats (MX) v1.0, sections 5.3.4 and 5.4.1, for the elements; the
//! choice of the scale and the rounding are contract clause [C10].
//!
//! [C10]: crate::contract#c10

/// Largest element that quantization gives.
pub const MAX: i8 = 127;

/// The scale byte of a group whose largest magnitude is `amax`: 0xFF for NaN, 0 for 0 (C10).
#[inline]
pub const fn scale(amax: f32) -> u8 {
    let bits = amax.to_bits() & 0x7FFF_FFFF;
    match bits {
        0x7F80_0001.. => 0xFF,
        // Subnormal: 127 / 64 * 2^-127 is 0x7F_0000 units of 2^-149.
        0..0x0080_0000 => (bits > 0x007F_0000) as u8,
        _ => {
            // 127 / 64 has the fraction 0x7E_0000: what is above it carries into the exponent.
            let byte = (bits + 0x0001_FFFF) >> 23;
            if byte > 254 { 254 } else { byte as u8 }
        }
    }
}

/// `x * 64 / 2^(scale - 127)` as it is, exact: the element before it is rounded. The scale is not
/// NaN.
#[inline]
pub fn quotient(x: f32, scale: u8) -> f64 {
    // 64 / 2^(scale - 127) = 2^(133 - scale), in f64's normal range for every byte.
    f64::from(x) * f64::from_bits((1023 + 133 - scale as u64) << 52)
}

/// The element of `x` under a scale byte, which is not NaN: nearest, ties to even, within +-127
/// (C10). A NaN `x` gives 0.
#[inline]
pub fn encode(x: f32, scale: u8) -> i8 {
    // Adding 1.5 * 2^52 leaves no fraction bits: one rounding, to nearest even.
    const ROUND: f64 = 1.5 * (1u64 << 52) as f64;
    let q = quotient(x, scale).clamp(-f64::from(MAX), f64::from(MAX));
    // A NaN passes clamp and becomes 0.
    ((q + ROUND) - ROUND) as i8
}

/// What an element is worth under a scale byte: one f32 product of `i * 2^-6`, exact, and the
/// scale (C10).
#[inline]
pub fn decode(i: i8, scale: f32) -> f32 {
    f32::from(i) * (1.0 / 64.0) * scale
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The least byte by the definition, in f64: every value there is exact.
    fn least(amax: f32) -> u8 {
        let fits = |b: &u8| f64::from(amax) * 64.0 <= 127.0 * 2f64.powi(i32::from(*b) - 127);
        (0..=254).find(fits).unwrap_or(254)
    }

    #[test]
    fn the_scale_is_the_least_that_fits() {
        let mut compared = 0;
        for exponent in 0..=255u32 {
            for fraction in [0, 1, 0x3F_FFFF, 0x40_0000, 0x7D_FFFF, 0x7E_0000, 0x7E_0001, 0x7E_FFFF]
                .into_iter()
                .chain([0x7F_0000, 0x7F_0001, 0x7F_FFFF])
            {
                let amax = f32::from_bits((exponent << 23) | fraction);
                let expected = if amax.is_nan() { 0xFF } else { least(amax) };
                assert_eq!(scale(amax), expected, "{amax:e}");
                assert_eq!(scale(-amax), expected, "-{amax:e}");
                compared += 1;
            }
        }
        assert_eq!(compared, 256 * 11);
        assert_eq!((scale(0.0), scale(f32::INFINITY), scale(f32::MAX)), (0, 254, 254));
    }

    #[test]
    fn elements_round_to_even_and_stop_at_127() {
        for (x, i) in [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (126.5, 126)] {
            assert_eq!(encode(x, 133), i, "{x}");
        }
        for (x, i) in [(127.5, 127), (1e30, 127), (f32::INFINITY, 127), (f32::NEG_INFINITY, -127)] {
            assert_eq!(encode(x, 133), i, "{x}");
        }
        assert_eq!(encode(f32::NAN, 133), 0);
    }

    #[test]
    fn what_underflows_in_f32_is_rounded_as_it_is() {
        // 2^-149 under the smallest scale is 2^-16 of an element; 2^-134 is half of one.
        assert_eq!(encode(f32::from_bits(1), 0), 0);
        assert_eq!(encode(f32::from_bits(1 << 15), 0), 0); // 0.5, a tie
        assert_eq!(encode(f32::from_bits((1 << 15) + 1), 0), 1);
        assert_eq!(encode(f32::from_bits(0x7F_0000), 0), 127);
        // Under the largest, anything below half a unit of 2^121 is 0.
        assert_eq!(encode(f32::from_bits((247 << 23) - 1), 254), 0);
        assert_eq!(encode(f32::from_bits((248 << 23) - 1), 254), 1);
    }

    #[test]
    fn every_element_decodes_exactly_but_minus_128_at_the_top() {
        for b in 0..=254u8 {
            let scale = crate::E8m0::from_bits(b).to_f32();
            for i in i8::MIN..=i8::MAX {
                let exact = f64::from(i) * 2f64.powi(i32::from(b) - 133);
                let expected = if (i, b) == (-128, 254) { f64::NEG_INFINITY } else { exact };
                assert_eq!(f64::from(decode(i, scale)), expected, "{i} {b}");
                if i != -128 {
                    assert_eq!(encode(decode(i, scale), b), i, "{i} {b}");
                }
            }
        }
    }
}
