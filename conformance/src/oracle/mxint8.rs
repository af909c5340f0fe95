//! The rules of MXINT8 (C10), a second time: whole numbers throughout, no floating point.
//!
//! A finite f32 is m * 2^e with whole m and e, so both rules compare and shift whole numbers:
//!
//! ```text
//! b   the least byte with m * 2^(e + 6) <= 127 * 2^(b - 127)       found by trying them all
//! i   m * 2^(e + 133 - b), the bits below 2^0 decide the rounding
//! ```
//!
//! Worked example: 1.99 is a little less than 255 * 2^-7, which is above 127 / 64, so b = 128 and
//! the element is 63.68, so 64.

/// A finite value as magnitude times a power of two.
fn parts(x: f32) -> (u128, i32) {
    let (field, fraction) = (x.to_bits() >> 23 & 0xFF, x.to_bits() & 0x7F_FFFF);
    let (m, e) =
        if field == 0 { (fraction, -149) } else { (fraction | 1 << 23, field as i32 - 150) };
    (m.into(), e)
}

/// The scale byte of a group.
pub fn scale(group: &[f32]) -> u8 {
    if group.iter().any(|x| x.is_nan()) {
        return 0xFF;
    }
    if group.iter().any(|x| x.is_infinite()) {
        return 254;
    }
    let fits = |b: u8, x: &f32| {
        let (m, e) = parts(*x);
        // m * 2^shift <= 127
        match e + 133 - i32::from(b) {
            shift if shift >= 7 => m == 0,
            shift if shift >= 0 => m << shift <= 127,
            // m has 24 bits.
            shift if shift <= -24 => true,
            shift => m <= 127 << -shift,
        }
    };
    (0..254).find(|&b| group.iter().all(|x| fits(b, x))).unwrap_or(254)
}

/// The element of a value under a scale byte of its group, in two's complement.
pub fn element(x: f32, scale: u8) -> u8 {
    if scale == 0xFF {
        return 0;
    }
    let (m, e) = parts(x);
    let magnitude = match e + 133 - i32::from(scale) {
        _ if x.is_infinite() => 127,
        shift if shift >= 7 => {
            if m == 0 {
                0
            } else {
                127
            }
        }
        shift if shift >= 0 => m << shift,
        shift if shift < -40 => 0,
        shift => {
            let (whole, rest) = (m >> -shift, m & ((1 << -shift) - 1));
            let half = 1u128 << (-shift - 1);
            whole + u128::from(rest > half || rest == half && whole % 2 == 1)
        }
    };
    let i = magnitude.min(127) as i8;
    (if x.is_sign_negative() { -i } else { i }) as u8
}

/// The value of an element under a scale byte: exact in f64, rounded once to f32; NaN canonical.
pub fn value(byte: u8, scale: u8) -> f32 {
    if scale == 0xFF {
        return f32::from_bits(super::rules::NAN);
    }
    // Both are powers of two in f64's range, and the element has 8 bits.
    (f64::from(byte as i8) * 2f64.powi(i32::from(scale) - 133)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worked_examples() {
        assert_eq!((scale(&[1.0, -0.5]), element(1.0, 127), element(-0.5, 127)), (127, 64, 0xE0));
        assert_eq!((scale(&[1.99]), element(1.99, 128)), (128, 64));
        assert_eq!((scale(&[127.0 / 64.0]), element(127.0 / 64.0, 127)), (127, 127));
        assert_eq!((scale(&[]), scale(&[0.0, -0.0]), element(-0.0, 0)), (0, 0, 0));
        assert_eq!(
            (scale(&[f32::MAX]), element(f32::MAX, 254), element(-f32::MAX, 254)),
            (254, 127, 0x81)
        );
        assert_eq!((scale(&[1.0, f32::INFINITY]), element(f32::NEG_INFINITY, 254)), (254, 0x81));
        assert_eq!((scale(&[f32::INFINITY, f32::NAN]), element(3.0, 0xFF)), (0xFF, 0));
        // Ties to even; the smallest subnormals.
        assert_eq!([0.5, 1.5, 2.5].map(|x| element(x, 133)), [0, 2, 2]);
        assert_eq!(
            (element(f32::from_bits(1 << 15), 0), element(f32::from_bits(3 << 14), 0)),
            (0, 1)
        );
        assert_eq!(
            (value(0x80, 254), value(0x81, 254)),
            (f32::NEG_INFINITY, -127.0 * 2f32.powi(121))
        );
    }
}
