//! Scale bytes by the power of two below each.
//!
//! ```text
//! e8m0   byte b is 2^(b - 127)                                     exponent b - 127
//! e4m3   (significand) * 2^e, the significand an integer of 1..15  exponent e + floor(log2 of it)
//! ```
//!
//! Worked example, e4m3: 0x38 is 1 = 8 * 2^-3, exponent 0; 0x07 is 7 * 2^-9, a subnormal, exponent
//! -7.

use std::collections::BTreeMap;

use fp4_core::ScaleType;

/// A histogram of scales.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Histogram {
    /// How many scales have this power of two below or at their magnitude.
    pub exponents: BTreeMap<i32, u64>,
    /// Scales in all.
    pub total: u64,
    /// Those that are NaN.
    pub nan: u64,
    /// Those that are zero, of either sign.
    pub zero: u64,
    /// Those that are subnormal; e8m0 has none.
    pub subnormal: u64,
    /// Those with the sign bit, -0 included; e8m0 has none.
    pub negative: u64,
}

/// The power of two below or at a scale's magnitude; `None` for zero and NaN.
pub fn exponent(scale_type: ScaleType, byte: u8) -> Option<i32> {
    let parts = scale_type.parts(byte)?;
    let log = parts.significand.unsigned_abs().checked_ilog2()?;
    Some(parts.exponent + log as i32)
}

impl Histogram {
    /// Of scales of a type, by how often each byte occurs.
    pub fn new(scale_type: ScaleType, bytes: &[u64; 256]) -> Self {
        let mut h = Histogram::default();
        let e4m3 = scale_type == ScaleType::E4M3;
        for (byte, &n) in (0..=255u8).zip(bytes).filter(|(_, n)| **n > 0) {
            h.total += n;
            if scale_type.is_nan(byte) {
                h.nan += n;
                continue;
            }
            match exponent(scale_type, byte) {
                None => h.zero += n,
                Some(exponent) => *h.exponents.entry(exponent).or_default() += n,
            }
            h.subnormal += if e4m3 && (1..8).contains(&(byte & 0x7F)) { n } else { 0 };
            h.negative += if e4m3 && byte & 0x80 != 0 { n } else { 0 };
        }
        h
    }

    /// Adds the scales of another histogram.
    pub fn merge(&mut self, other: &Histogram) {
        for (e, n) in &other.exponents {
            *self.exponents.entry(*e).or_default() += n;
        }
        self.total += other.total;
        self.nan += other.nan;
        self.zero += other.zero;
        self.subnormal += other.subnormal;
        self.negative += other.negative;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A histogram of these bytes, each `n` times.
    fn of(scale_type: ScaleType, scales: &[u8], n: u64) -> Histogram {
        let mut bytes = [0; 256];
        scales.iter().for_each(|&b| bytes[usize::from(b)] += n);
        Histogram::new(scale_type, &bytes)
    }

    #[test]
    fn scales_are_sorted_by_their_power_of_two() {
        // e4m3: 1, 1.875, -1, 7 * 2^-9, +0, -0, NaN.
        let h = of(ScaleType::E4M3, &[0x38, 0x3F, 0xB8, 0x07, 0x00, 0x80, 0x7F], 1);
        assert_eq!(h.exponents, [(0, 3), (-7, 1)].into());
        assert_eq!((h.total, h.nan, h.zero, h.subnormal, h.negative), (7, 1, 2, 1, 2));
        let h = of(ScaleType::E8M0, &[0, 127, 254, 255], 2);
        assert_eq!(h.exponents, [(-127, 2), (0, 2), (127, 2)].into());
        assert_eq!((h.total, h.nan, h.zero, h.subnormal, h.negative), (8, 2, 0, 0, 0));
    }
}
