//! The fused multiply-add of the block transform, in software ([C5]).
//!
//! `core` has no fused multiply-add, and the usual stand-in, `libm::fmaf`, corrects its f64
//! emulation at the ties of *normal* results only: where it runs in software, fma of the f32 bits
//! (0x1A000001, 0x19FFFFFE, 0x00400001) gives 0x00400002 instead of 0x00400001 (libm 0.2.16). So
//! the core has its own, the same on every target and under every feature.
//!
//! ```text
//! p = a * b                exact: 24 + 24 bits fit f64's 53, and 2^-298 is a normal f64
//! s + e = p + c            exact: Knuth's two-sum, s the rounded sum and e its error
//! s' = s rounded to odd    if e != 0 and the last bit of s is even: the neighbour on e's side
//! round_f32(s')            one rounding of the exact sum
//! ```
//!
//! Rounding to odd keeps, in the last bit, that something was cut off; f64 has more than two bits
//! below the last bit of any f32, subnormals included, so the final rounding sees on which side of
//! a tie the exact sum lies.
//!
//! Worked example: a = 1 + 2^-23, b = 1 - 2^-23, c = 2^24. The exact sum 2^24 + 1 - 2^-46 is just
//! under the tie 2^24 + 1. s = 2^24 + 1 exactly (even last bit), e = -2^-46 and s' is one f64 step
//! below, so the result is 2^24, as it is for the exact sum; s alone is a tie, and here it goes to
//! even and agrees, but with c = 2^24 + 2 the tie 2^24 + 3 would go up to 2^24 + 4 instead of down
//! to 2^24 + 2.
//!
//! Source: Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums: proved algorithms
//! using rounding to odd", IEEE Transactions on Computers 57(4), 2008.
//!
//! [C5]: crate::contract#c5

/// a * b + c with one rounding to f32, to nearest even: IEEE-754 fusedMultiplyAdd.
#[inline]
pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    let (product, c) = (f64::from(a) * f64::from(b), f64::from(c));
    let sum = product + c;
    let c_part = sum - product;
    let error = (product - (sum - c_part)) + (c - c_part);
    // An infinite or NaN sum has no error worth knowing (it is NaN), and no neighbours.
    if error == 0.0 || !sum.is_finite() || sum.to_bits() & 1 == 1 {
        return sum as f32;
    }
    // Inexact, so not zero: the bits of a larger magnitude are a larger integer.
    let outward = (error > 0.0) == (sum > 0.0);
    f64::from_bits(if outward { sum.to_bits() + 1 } else { sum.to_bits() - 1 }) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worked_example() {
        let step = f32::EPSILON; // 2^-23
        let c = 16_777_216f32; // 2^24
        assert_eq!(fma(1.0 + step, 1.0 - step, c), c);
        assert_eq!(fma(1.0 + step, 1.0 - step, c + 2.0), c + 2.0);
        let emulated = (f64::from(1.0 + step) * f64::from(1.0 - step) + f64::from(c + 2.0)) as f32;
        assert_eq!(emulated, c + 4.0, "what a plain f64 emulation gives");
    }

    #[test]
    fn a_subnormal_sum_is_rounded_once() {
        let bits = |a, b, c| fma(f32::from_bits(a), f32::from_bits(b), f32::from_bits(c)).to_bits();
        assert_eq!(bits(0x1A00_0001, 0x19FF_FFFE, 0x0040_0001), 0x0040_0001);
    }

    #[test]
    fn signs_of_zero_and_infinities() {
        assert_eq!(fma(0.0, -1.0, 0.0).to_bits(), 0);
        assert_eq!(fma(0.0, -1.0, -0.0).to_bits(), (-0f32).to_bits());
        assert_eq!(fma(1.0, 1.0, -1.0).to_bits(), 0);
        // A product that underflows keeps its sign.
        assert_eq!(fma(1e-30, -1e-30, 0.0).to_bits(), (-0f32).to_bits());
        assert_eq!(fma(f32::MAX, 2.0, f32::MIN), f32::MAX);
        assert_eq!(fma(f32::MAX, f32::MAX, f32::NEG_INFINITY), f32::NEG_INFINITY);
        assert!(fma(f32::INFINITY, 0.0, 1.0).is_nan());
    }
}
