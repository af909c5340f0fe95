//! What a dense tensor holds.

use std::collections::BTreeMap;

use serde::Serialize;

use super::pairs;

/// Counts over the values of a dense tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Values {
    /// Values in all.
    pub count: u64,
    /// The least finite value; NaN, `null` as JSON, where there is none.
    pub min: f32,
    /// The largest finite value.
    pub max: f32,
    /// The mean of the squares of the finite values.
    pub mean_square: f64,
    /// Zeros, of either sign.
    pub zero: u64,
    /// NaN and infinities.
    pub not_finite: u64,
    /// The others by the power of two at or below their magnitude.
    #[serde(serialize_with = "pairs")]
    pub exponents: BTreeMap<i32, u64>,
    #[serde(skip)]
    sum: f64,
}

impl Default for Values {
    fn default() -> Self {
        Values {
            count: 0,
            min: f32::NAN,
            max: f32::NAN,
            mean_square: 0.0,
            zero: 0,
            not_finite: 0,
            exponents: BTreeMap::new(),
            sum: 0.0,
        }
    }
}

impl Values {
    /// Adds values, in order.
    pub(super) fn add(&mut self, values: &[f32]) {
        // By the exponent field: subnormals by their own power of two, which is counted apart.
        let mut fields = [0u64; 256];
        for &value in values {
            if !value.is_finite() {
                self.not_finite += 1;
                continue;
            }
            (self.min, self.max) = (self.min.min(value), self.max.max(value));
            self.sum += f64::from(value) * f64::from(value);
            let magnitude = value.to_bits() & 0x7FFF_FFFF;
            match magnitude {
                0 => self.zero += 1,
                1..0x0080_0000 => {
                    *self.exponents.entry(magnitude.ilog2() as i32 - 149).or_default() += 1;
                }
                _ => fields[(magnitude >> 23) as usize] += 1,
            }
        }
        for (field, count) in fields.into_iter().enumerate().filter(|(_, count)| *count > 0) {
            *self.exponents.entry(field as i32 - 127).or_default() += count;
        }
        self.count += values.len() as u64;
        let finite = self.count - self.not_finite;
        self.mean_square = if finite == 0 { 0.0 } else { self.sum / finite as f64 };
    }
}
