//! What a code under a scale byte is worth, as the software of a layout computes it.
//!
//! The formats agree on e2m1 and disagree on nearly all else: which way the global scale goes, in
//! which order the three factors are multiplied, what the top scale byte means. A group's scale is
//! one byte and a code four bits, so under one global scale all there is to know is a table of 256
//! x 16 values:
//!
//! | order | value | who |
//! |---|---|---|
//! | [`Order::ScaleTimes`] | e2m1 * (scale * g) | the contract (C4.4), ModelOpt, torchao, ComfyUI |
//! | [`Order::ScaleOver`] | e2m1 * (scale / g) | compressed-tensors, FP-Quant |
//! | [`Order::ReciprocalFirst`] | (e2m1 * (1 / g)) * scale | AutoRound |
//! | [`Order::ProductTimes`] | (e2m1 * scale) * g | GGUF |
//!
//! Each operation is one in f32. Whether a conversion keeps every value is then a matter of
//! comparing two tables where the weight has entries ([`Usage`]).
//!
//! Worked example: code 0x7 (6), byte 0x38 (1 in e4m3), g = 3: `ScaleTimes` 18, `ScaleOver`
//! 6 * (1 / 3) = 2.0000002 (0x40000001), for 1 / 3 rounds up; `ReciprocalFirst` the same.

use fp4_core::{E2m1, ScaleType};

/// The order of the factors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// e2m1 * (scale * g).
    ScaleTimes,
    /// e2m1 * (scale / g).
    ScaleOver,
    /// (e2m1 * (1 / g)) * scale.
    ReciprocalFirst,
    /// (e2m1 * scale) * g.
    ProductTimes,
}

impl Order {
    /// True if the stored global scale is the reciprocal of the contract's.
    pub fn divides(self) -> bool {
        matches!(self, Order::ScaleOver | Order::ReciprocalFirst)
    }
}

/// What the scale bytes are worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleBytes {
    /// e8m0, 0xFF is NaN (OCP, the contract).
    E8m0,
    /// e8m0, 0xFF is infinite: 0 times it is NaN.
    E8m0Inf,
    /// e8m0, 0xFF is 2^128, which no f32 is and half of which is one.
    E8m0Ldexp,
    /// e4m3.
    E4m3,
    /// e4m3 without its sign: 0x80..=0xFE read as 0x00..=0x7E, 0x7F is 0, 0xFF 480 (ggml).
    Ue4m3,
}

impl ScaleBytes {
    /// The contract's type of these bytes.
    pub fn scale_type(self) -> ScaleType {
        match self {
            ScaleBytes::E8m0 | ScaleBytes::E8m0Inf | ScaleBytes::E8m0Ldexp => ScaleType::E8M0,
            ScaleBytes::E4m3 | ScaleBytes::Ue4m3 => ScaleType::E4M3,
        }
    }

    fn decode(self, byte: u8) -> f32 {
        match (self, byte) {
            (ScaleBytes::E8m0Inf, 0xFF) => f32::INFINITY,
            (ScaleBytes::Ue4m3, 0x7F) => 0.0,
            (ScaleBytes::Ue4m3, 0xFF) => 480.0,
            (ScaleBytes::Ue4m3, _) => ScaleType::E4M3.decode(byte & 0x7F),
            _ => self.scale_type().decode(byte),
        }
    }
}

/// What code 8 is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zero {
    /// -0.
    Signed,
    /// +0, for the library drops the sign as it dequantizes (ModelOpt's own dequantizer).
    Dropped,
    /// +0 by the format, whose quantizers never write it (ggml).
    Unsigned,
}

/// How a layout's software computes a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arithmetic {
    /// The order of the factors.
    pub order: Order,
    /// The scale bytes.
    pub scale: ScaleBytes,
    /// Code 8.
    pub zero: Zero,
}

/// Values by scale byte and code: entry `16 * byte + code`.
pub type Table = Box<[f32]>;

impl Arithmetic {
    /// The usual one of an order.
    pub const fn new(order: Order, scale: ScaleBytes) -> Self {
        Arithmetic { order, scale, zero: Zero::Signed }
    }

    /// The contract's (C4.4).
    pub const fn contract(scale_type: ScaleType) -> Self {
        let scale = match scale_type {
            ScaleType::E8M0 => ScaleBytes::E8m0,
            ScaleType::E4M3 => ScaleBytes::E4m3,
        };
        Self::new(Order::ScaleTimes, scale)
    }

    /// All values under a global scale, as this layout stores it.
    pub fn table(&self, global: f32) -> Table {
        (0..=255u8).flat_map(|b| (0..16u8).map(move |c| self.value(c, b, global))).collect()
    }

    fn value(&self, code: u8, byte: u8, global: f32) -> f32 {
        let e2m1 = match code {
            8 if self.zero != Zero::Signed => 0.0,
            code => E2m1::from_bits(code).to_f32(),
        };
        if self.scale == ScaleBytes::E8m0Ldexp && byte == 0xFF {
            return (f64::from(e2m1) * 2f64.powi(128)) as f32 * global;
        }
        let scale = self.scale.decode(byte);
        let value = match self.order {
            Order::ScaleTimes => e2m1 * (scale * global),
            Order::ScaleOver => e2m1 * (scale / global),
            Order::ReciprocalFirst => (e2m1 * (1.0 / global)) * scale,
            Order::ProductTimes => (e2m1 * scale) * global,
        };
        if value.is_nan() { f32::NAN } else { value }
    }
}

/// A table, and what it says of code 8.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The values.
    pub table: &'a [f32],
    /// Code 8.
    pub zero: Zero,
}

/// How often a weight has each code under each scale byte, and where first.
#[derive(Debug, Clone)]
pub struct Usage {
    /// How often: entry `16 * byte + code`.
    pub counts: Box<[u64]>,
    /// The first element with that entry, in row-major order.
    first: Box<[u64]>,
}

impl Default for Usage {
    fn default() -> Self {
        Usage { counts: vec![0; 4096].into(), first: vec![u64::MAX; 4096].into() }
    }
}

/// How the values of one weight differ between two tables.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Deviation {
    /// Values that differ, signs of zero apart.
    pub values_differ: u64,
    /// Zeros that differ in their sign.
    pub zero_signs: u64,
    /// The largest distance between two that differ, in units in the last place.
    pub ulps: u32,
    /// Values in all.
    pub values: u64,
}

/// The most units in the last place by which two orders of the same three factors differ: each
/// rounds at most three times.
const MAX_ULPS: u32 = 4;

/// A value that would mean something else.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Changed {
    /// The code.
    pub code: u8,
    /// The scale byte.
    pub byte: u8,
    /// Index of the first element, row-major.
    pub element: u64,
    /// How many elements have this code under this byte.
    pub count: u64,
    /// What it is worth to the source's reader, and to the target's.
    pub values: [f32; 2],
}

impl Usage {
    /// Counts packed groups, the first of whose elements has index `start`.
    pub fn add(&mut self, codes: &[u8], scales: &[u8], group: usize, start: u64) {
        for (g, (codes, &byte)) in codes.chunks_exact(group / 2).zip(scales).enumerate() {
            let entry = usize::from(byte) * 16;
            let at = start + (g * group) as u64;
            for (i, &pair) in codes.iter().enumerate() {
                for (half, code) in [pair & 15, pair >> 4].into_iter().enumerate() {
                    let entry = entry + usize::from(code);
                    if self.counts[entry] == 0 {
                        self.first[entry] = at + (2 * i + half) as u64;
                    }
                    self.counts[entry] += 1;
                }
            }
        }
    }

    /// Adds what another part of the same weight has.
    pub fn merge(&mut self, other: &Usage) {
        for (into, from) in self.counts.iter_mut().zip(&other.counts) {
            *into += from;
        }
        for (into, from) in self.first.iter_mut().zip(&other.first) {
            *into = (*into).min(*from);
        }
    }

    /// Compares two tables where there are elements: the deviation, and what is further apart than
    /// rounding can put it, the first element first. Signs of zeros count where a format has none.
    pub fn compare(&self, source: View<'_>, target: View<'_>) -> (Deviation, Vec<Changed>) {
        let (mut deviation, mut changed) = (Deviation::default(), vec![]);
        let signs = (source.zero == Zero::Unsigned) != (target.zero == Zero::Unsigned);
        for (entry, (&count, &element)) in self.counts.iter().zip(&self.first).enumerate() {
            deviation.values += count;
            let values = [source.table[entry], target.table[entry]];
            let [a, b] = values;
            if count == 0 || a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan() {
                continue;
            }
            if a == 0.0 && b == 0.0 && !signs {
                deviation.zero_signs += count;
                continue;
            }
            deviation.values_differ += count;
            match distance(a, b) {
                Some(ulps) if ulps <= MAX_ULPS => deviation.ulps = deviation.ulps.max(ulps),
                _ => {
                    let (code, byte) = ((entry % 16) as u8, (entry / 16) as u8);
                    changed.push(Changed { code, byte, element, count, values });
                }
            }
        }
        changed.sort_by_key(|changed| changed.element);
        (deviation, changed)
    }
}

/// Units in the last place between two finite values of one sign.
fn distance(a: f32, b: f32) -> Option<u32> {
    let comparable = a.is_finite() && b.is_finite() && a.is_sign_negative() == b.is_sign_negative();
    comparable.then(|| a.to_bits().abs_diff(b.to_bits()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worked_example() {
        let value = |order| Arithmetic::new(order, ScaleBytes::E4m3).table(3.0)[16 * 0x38 + 7];
        assert_eq!(value(Order::ScaleTimes), 18.0);
        assert_eq!(value(Order::ProductTimes), 18.0);
        assert_eq!(
            value(Order::ScaleOver).to_bits(),
            0x4000_0000 + u32::from(1f32 / 3.0 * 6.0 > 2.0)
        );
        assert_eq!(value(Order::ScaleOver), value(Order::ReciprocalFirst));
    }

    #[test]
    fn the_top_scale_byte_by_reader() {
        let top = |scale| {
            let table = Arithmetic::new(Order::ScaleTimes, scale).table(1.0);
            [0, 1, 2, 9].map(|code| table[16 * 0xFF + code])
        };
        assert!(top(ScaleBytes::E8m0).iter().all(|v| v.is_nan()));
        let inf = top(ScaleBytes::E8m0Inf);
        assert!(inf[0].is_nan());
        assert_eq!(inf[1..], [f32::INFINITY, f32::INFINITY, f32::NEG_INFINITY]);
        let half = 2f32.powi(127);
        assert_eq!(top(ScaleBytes::E8m0Ldexp), [0.0, half, f32::INFINITY, -half]);
        assert_eq!(top(ScaleBytes::Ue4m3), [0.0, 240.0, 480.0, -240.0]);
    }

    #[test]
    fn tables_are_compared_where_there_are_elements() {
        let contract = Arithmetic::contract(ScaleType::E4M3);
        let gguf = Arithmetic {
            zero: Zero::Unsigned,
            ..Arithmetic::new(Order::ProductTimes, ScaleBytes::Ue4m3)
        };
        let tables = [contract, gguf].map(|arithmetic| arithmetic.table(1.0));
        let [contract, gguf] = [(0, Zero::Signed), (1, Zero::Unsigned)]
            .map(|(i, zero)| View { table: &tables[i], zero });
        let mut usage = Usage::default();
        usage.add(&[0x21; 8], &[0x38], 16, 32);
        assert_eq!(
            usage.compare(contract, gguf).0,
            Deviation { values: 16, ..Deviation::default() }
        );
        // Code 8 at element 51, and a negative scale.
        usage.add(&[0x11, 0x81, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11], &[0x38], 16, 48);
        usage.add(&[0x11; 8], &[0xB8], 16, 64);
        let (_, changed) = usage.compare(contract, gguf);
        let found: Vec<_> = changed.iter().map(|c| (c.element, c.code, c.byte, c.count)).collect();
        assert_eq!(found, [(51, 8, 0x38, 1), (64, 1, 0xB8, 16)]);
        assert_eq!(changed[1].values, [-0.5, 0.5]);
    }

    #[test]
    fn the_distance_counts_values_between() {
        assert_eq!(distance(1.0, 1.0 + f32::EPSILON), Some(1));
        assert_eq!(distance(0.0, -0.0), None);
        assert_eq!(distance(f32::MAX, f32::INFINITY), None);
    }
}
