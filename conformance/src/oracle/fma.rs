//! The fused multiply-add (C5) in 128-bit integers: the same on every platform. WASM has no fused
//! instruction, and the software one that it links rounds some subnormal results twice.
//!
//! A z far below the product is replaced by its sign, [`GUARD`] places below the product's last: it
//! can only break a tie or an exact result, and any amount does so alike. A product far below z
//! changes nothing: z is an f32, and less than a quarter of its last place does not reach a tie.

/// Places kept below the product when z is far below.
const GUARD: u32 = 30;

/// `x * y + z`, rounded once to nearest, ties to even. A NaN is the canonical one.
pub fn fma(x: f32, y: f32, z: f32) -> f32 {
    if !(x.is_finite() && y.is_finite() && z.is_finite()) {
        // The product of finite values is finite in f64, so every case of IEEE-754 is in this line.
        let value = f64::from(x) * f64::from(y) + f64::from(z);
        return if value.is_nan() { f32::from_bits(super::rules::NAN) } else { value as f32 };
    }
    let ((mx, ex), (my, ey), (mz, ez)) = (parts(x), parts(y), parts(z));
    let (product, e) = (mx * my, ex + ey);
    if product == 0 || mz == 0 {
        // One of them is a zero, or both: f64 holds the product, signs of zeros are IEEE-754's.
        let value = f64::from(x) * f64::from(y);
        return if product == 0 { (value + f64::from(z)) as f32 } else { round(product, e) };
    }
    let (sum, unit) = match e - ez {
        // |z| < 2^(24 + ez) < 2^(e - GUARD).
        gap if gap > 60 => ((product << GUARD) + mz.signum(), e - GUARD as i32),
        gap if gap >= 0 => ((product << gap) + mz, ez),
        gap if gap >= -90 => (product + (mz << -gap), e),
        // |x y| < 2^(48 + e) < 2^(ez - 42).
        _ => return z,
    };
    // Terms that cancel give +0 when rounding to nearest.
    round(sum, unit)
}

/// A finite value as significand and exponent.
fn parts(x: f32) -> (i128, i32) {
    let (field, fraction) = (x.to_bits() >> 23 & 0xFF, x.to_bits() & 0x7F_FFFF);
    let (significand, exponent) =
        if field == 0 { (fraction, -149) } else { (fraction | 1 << 23, field as i32 - 150) };
    let significand = i128::from(significand);
    (if x.is_sign_negative() { -significand } else { significand }, exponent)
}

/// `value * 2^exponent` rounded once to f32; zero is +0.
fn round(value: i128, exponent: i32) -> f32 {
    let magnitude = value.unsigned_abs();
    if magnitude == 0 {
        return 0.0;
    }
    let top = 127 - magnitude.leading_zeros() as i32 + exponent;
    // The exponent of the last place kept.
    let last = (top - 23).max(-149);
    let kept = match last - exponent {
        // At most 24 bits, since the last place is below them.
        up if up <= 0 => magnitude << -up,
        down if down > 126 => 0,
        down => {
            let (kept, rest) = (magnitude >> down, magnitude & ((1 << down) - 1));
            let half = 1 << (down - 1);
            kept + u128::from(rest > half || rest == half && kept & 1 == 1)
        }
    };
    let field = (last + 149) as u32;
    let pattern = ((field << 23) + kept as u32).min(0x7F80_0000);
    f32::from_bits(pattern | u32::from(value < 0) << 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn canonical(x: f32) -> u32 {
        if x.is_nan() { 0x7FC0_0000 } else { x.to_bits() }
    }

    /// Where the platform has the instruction, IEEE-754 fixes it.
    #[cfg(not(target_family = "wasm"))]
    #[test]
    fn equals_the_platforms_instruction() {
        let edges = [
            0.0,
            -0.0,
            1.0,
            -1.0,
            1.5,
            f32::MIN_POSITIVE,
            f32::MAX,
            -f32::MAX,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
            f32::from_bits(1),
            f32::from_bits(0x807F_FFFF),
            f32::EPSILON,
        ];
        let mut random = Random::of("fma");
        let mut terms = vec![[0x1A00_0001, 0x19FF_FFFE, 0x0040_0001].map(f32::from_bits)];
        for x in edges {
            for y in edges {
                terms.extend(edges.map(|z| [x, y, z]));
            }
        }
        for i in 0..400_000 {
            let mut bits = || f32::from_bits(random.next_u64() as u32);
            let [x, y, z] = [bits(), bits(), bits()];
            // Products on a tie, of 13 and 12 odd bits; every distance between the product and z;
            // products that z nearly takes away.
            let odd = |bits: f32, places: u32| {
                let places = 23 - places;
                f32::from_bits((bits.to_bits() & 0xBFFF_FFFF | 1 << places) >> places << places)
            };
            let [x, y] = if i % 3 == 0 { [odd(x, 12), odd(y, 11)] } else { [x, y] };
            let z = match i % 4 {
                0 => z,
                1 => -(x * y),
                2 => x * y * f32::from_bits(((127 + i % 113 - 90) as u32) << 23),
                _ => f32::from_bits(z.to_bits() & 0x80FF_FFFF),
            };
            terms.push([x, y, z]);
        }
        for [x, y, z] in terms {
            let (got, expected) = (canonical(fma(x, y, z)), canonical(x.mul_add(y, z)));
            assert_eq!(
                got,
                expected,
                "{:08x} {:08x} {:08x}",
                x.to_bits(),
                y.to_bits(),
                z.to_bits()
            );
        }
    }

    #[test]
    fn worked_examples() {
        let f = |bits: [u32; 3]| {
            let [x, y, z] = bits.map(f32::from_bits);
            fma(x, y, z).to_bits()
        };
        // Software that rounds the subnormal sum twice gives 0x0040_0002.
        assert_eq!(f([0x1A00_0001, 0x19FF_FFFE, 0x0040_0001]), 0x0040_0001);
        // 1 + 2^-149 * 2^-149, and below one: the tie of 1 - 2^-25 breaks downward.
        assert_eq!(f([1, 1, 0x3F80_0000]), 0x3F80_0000);
        assert_eq!(f([0x8000_0001, 1, 0x3F80_0000]), 0x3F80_0000);
        assert_eq!(f([0xBF80_0000, 0x3F80_0000, 0x3F80_0000]), 0);
        assert_eq!(f([0x7F80_0000, 0, 0]), 0x7FC0_0000);
    }
}
