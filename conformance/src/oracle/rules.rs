//! The rules of single values, a second time: decoding by formula, encoding by ladders.
//!
//! A *ladder* is the ascending values of a format with the midpoints between them, all exact in
//! f64: rounding to nearest is one search among midpoints and a rule for ties. No conversion of
//! the core or of `half` is called.
//!
//! Worked example: e2m1 has the magnitudes 0, 0.5, 1, 1.5, 2, 3, 4, 6 and the midpoints 0.25, 0.75,
//! 1.25, 1.75, 2.5, 3.5, 5. 2.5 is a tie between codes 4 and 5; the even one is 4.

use fp4_core::{FloatType, ScaleType, TieMode};

/// The canonical f32 NaN (C9).
pub const NAN: u32 = 0x7FC0_0000;

/// Twice the value of an e2m1 code, an integer: `s ee m` with bias 1 (C1).
pub fn e2m1_doubled(code: u8) -> i64 {
    let (negative, e, m) = (code >> 3 & 1 == 1, code >> 1 & 3, i64::from(code & 1));
    let magnitude = if e == 0 { m } else { (2 + m) << (e - 1) };
    if negative { -magnitude } else { magnitude }
}

/// The value of an e2m1 code; code 8 is -0 (C1).
pub fn e2m1_value(code: u8) -> f64 {
    let magnitude = e2m1_doubled(code & 7) as f64 / 2.0;
    if code & 8 != 0 { -magnitude } else { magnitude }
}

/// A scale byte as `significand * 2^exponent`; `None` for NaN (C2).
pub fn scale_parts(ty: ScaleType, byte: u8) -> Option<(i64, i32)> {
    match ty {
        ScaleType::E8M0 if byte == 0xFF => None,
        ScaleType::E8M0 => Some((1, i32::from(byte) - 127)),
        ScaleType::E4M3 if byte & 0x7F == 0x7F => None,
        ScaleType::E4M3 => {
            let (e, m) = (i32::from(byte >> 3 & 15), i64::from(byte & 7));
            let (significand, exponent) = if e == 0 { (m, -9) } else { (8 + m, e - 10) };
            Some((if byte & 0x80 != 0 { -significand } else { significand }, exponent))
        }
    }
}

/// The value of a scale byte; exact in f32 too (C2).
pub fn scale_value(ty: ScaleType, byte: u8) -> f64 {
    let Some((significand, exponent)) = scale_parts(ty, byte) else { return f64::NAN };
    let magnitude = significand.unsigned_abs() as f64 * 2f64.powi(exponent);
    if ty == ScaleType::E4M3 && byte & 0x80 != 0 { -magnitude } else { magnitude }
}

/// Mantissa bits, bias, pattern of infinity and canonical NaN of f16 or bf16.
fn half_parameters(ty: FloatType) -> (u32, i32, u16, u16) {
    match ty {
        FloatType::F16 => (10, 15, 0x7C00, 0x7E00),
        FloatType::Bf16 => (7, 127, 0x7F80, 0x7FC0),
        FloatType::F32 => unreachable!("f32 is no half type"),
    }
}

/// The value of an f16 or bf16 pattern without sign; the pattern of infinity stands for the next
/// power of two.
fn half_magnitude(ty: FloatType, pattern: u16) -> f64 {
    let (mantissa_bits, bias, _, _) = half_parameters(ty);
    let e = i32::from(pattern >> mantissa_bits);
    let m = f64::from(pattern & ((1 << mantissa_bits) - 1));
    let one = f64::from(1u32 << mantissa_bits);
    if e == 0 { m / one * 2f64.powi(1 - bias) } else { (one + m) / one * 2f64.powi(e - bias) }
}

/// An f16 or bf16 pattern, or f32 bits, widened to f32.
pub fn widen(ty: FloatType, bits: u32) -> f32 {
    if ty == FloatType::F32 {
        return f32::from_bits(bits);
    }
    let (_, _, infinity, _) = half_parameters(ty);
    let pattern = bits as u16 & 0x7FFF;
    let magnitude = match pattern.cmp(&infinity) {
        std::cmp::Ordering::Less => half_magnitude(ty, pattern) as f32,
        std::cmp::Ordering::Equal => f32::INFINITY,
        std::cmp::Ordering::Greater => f32::NAN,
    };
    if bits & 0x8000 != 0 { -magnitude } else { magnitude }
}

/// Which way a tie between the codes `i` and `i + 1` goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tie {
    /// To the even code.
    Even,
    /// To `i + 1`.
    Up,
    /// To `i`.
    Down,
}

impl Tie {
    /// For a magnitude of this sign under an e2m1 tie mode.
    pub fn of_mode(mode: TieMode, negative: bool) -> Tie {
        match (mode, negative) {
            (TieMode::Even, _) => Tie::Even,
            (TieMode::Zero, _) | (TieMode::Down, false) | (TieMode::Up, true) => Tie::Down,
            (TieMode::Down, true) | (TieMode::Up, false) => Tie::Up,
        }
    }

    /// The code of a tie between `i` and `i + 1`.
    pub fn of(self, i: usize) -> usize {
        i + usize::from(match self {
            Tie::Even => i % 2 == 1,
            Tie::Up => true,
            Tie::Down => false,
        })
    }
}

/// The midpoints between the ascending values of the codes 0, 1, 2, ...
#[derive(Debug, Clone)]
pub struct Ladder {
    midpoints: Vec<f64>,
}

impl Ladder {
    fn new(values: impl IntoIterator<Item = f64>) -> Self {
        let values: Vec<f64> = values.into_iter().collect();
        Ladder { midpoints: values.windows(2).map(|v| (v[0] + v[1]) / 2.0).collect() }
    }

    /// The midpoints; all are exact in f32.
    pub fn midpoints(&self) -> &[f64] {
        &self.midpoints
    }

    fn nearest(&self, magnitude: f64, tie: Tie) -> usize {
        let below = self.midpoints.partition_point(|&m| m < magnitude);
        if self.midpoints.get(below) == Some(&magnitude) { tie.of(below) } else { below }
    }
}

/// All ladders.
#[derive(Debug, Clone)]
pub struct Rules {
    e2m1: Ladder,
    e8m0: Ladder,
    e4m3: Ladder,
    f16: Ladder,
    bf16: Ladder,
}

impl Default for Rules {
    fn default() -> Self {
        let scale = |ty, last: u8| Ladder::new((0..=last).map(|byte| scale_value(ty, byte)));
        let half = |ty| Ladder::new((0..=half_parameters(ty).2).map(|p| half_magnitude(ty, p)));
        Rules {
            e2m1: Ladder::new((0..8).map(e2m1_value)),
            e8m0: scale(ScaleType::E8M0, 0xFE),
            e4m3: scale(ScaleType::E4M3, 0x7E),
            f16: half(FloatType::F16),
            bf16: half(FloatType::Bf16),
        }
    }
}

impl Rules {
    /// The magnitudes of e2m1.
    pub fn e2m1_ladder(&self) -> &Ladder {
        &self.e2m1
    }

    /// The non-negative scales of a type.
    pub fn scale_ladder(&self, ty: ScaleType) -> &Ladder {
        match ty {
            ScaleType::E8M0 => &self.e8m0,
            ScaleType::E4M3 => &self.e4m3,
        }
    }

    /// The magnitudes of f16 or bf16, with the next power of two in the place of infinity; none of
    /// f32.
    pub fn half_ladder(&self, ty: FloatType) -> Option<&Ladder> {
        match ty {
            FloatType::F32 => None,
            FloatType::F16 => Some(&self.f16),
            FloatType::Bf16 => Some(&self.bf16),
        }
    }

    /// f32 to e2m1 (C1).
    pub fn e2m1(&self, x: f32, mode: TieMode) -> u8 {
        if x.is_nan() {
            return 7;
        }
        let negative = x.is_sign_negative();
        let tie = Tie::of_mode(mode, negative);
        let code = self.e2m1.nearest(f64::from(x).abs(), tie) as u8;
        if negative { code | 8 } else { code }
    }

    /// f32 to a scale byte (C2). Both types clamp: the search ends at the first and the last.
    pub fn scale(&self, ty: ScaleType, s: f32) -> u8 {
        let s = f64::from(s);
        match ty {
            ScaleType::E8M0 if s.is_nan() => 0xFF,
            ScaleType::E8M0 => self.e8m0.nearest(s.max(0.0), Tie::Up) as u8,
            ScaleType::E4M3 if s.is_nan() => 0x7F,
            ScaleType::E4M3 => {
                let byte = self.e4m3.nearest(s.abs(), Tie::Even) as u8;
                if s.is_sign_negative() { byte | 0x80 } else { byte }
            }
        }
    }

    /// f32 to the bits of a type: one rounding to nearest even, NaN canonical (C9).
    pub fn narrow(&self, ty: FloatType, x: f32) -> u32 {
        let ladder = match ty {
            FloatType::F32 if x.is_nan() => return NAN,
            FloatType::F32 => return x.to_bits(),
            FloatType::F16 => &self.f16,
            FloatType::Bf16 => &self.bf16,
        };
        if x.is_nan() {
            return half_parameters(ty).3.into();
        }
        let pattern = ladder.nearest(f64::from(x).abs(), Tie::Even) as u32;
        if x.is_sign_negative() { pattern | 0x8000 } else { pattern }
    }

    /// f32 rounded to a type and widened again.
    pub fn through(&self, ty: FloatType, x: f32) -> f32 {
        widen(ty, self.narrow(ty, x))
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    #[test]
    fn worked_examples() {
        let rules = Rules::default();
        assert_eq!(rules.e2m1(2.5, TieMode::Even), 4);
        assert_eq!(rules.e2m1(-2.5, TieMode::Up), 0xC);
        assert_eq!(rules.e2m1(-2.5, TieMode::Down), 0xD);
        assert_eq!(rules.e2m1(-0.0, TieMode::Up), 8);
        assert_eq!(rules.scale(ScaleType::E8M0, 1.5), 128);
        assert_eq!(rules.scale(ScaleType::E4M3, 5.0), 0x4A);
        assert_eq!(rules.scale(ScaleType::E4M3, f32::INFINITY), 0x7E);
    }

    #[test]
    fn halves_agree_with_the_half_crate() {
        let rules = Rules::default();
        for bits in 0..=u16::MAX {
            let (h, b) = (f16::from_bits(bits).to_f32(), bf16::from_bits(bits).to_f32());
            for (ty, x) in [(FloatType::F16, h), (FloatType::Bf16, b)] {
                let got = widen(ty, bits.into());
                assert!(got.to_bits() == x.to_bits() || got.is_nan() && x.is_nan());
            }
            let x = f32::from_bits(u32::from(bits) << 16 | 0x8000);
            if !x.is_nan() {
                assert_eq!(rules.narrow(FloatType::F16, x), u32::from(f16::from_f32(x).to_bits()));
                assert_eq!(
                    rules.narrow(FloatType::Bf16, x),
                    u32::from(bf16::from_f32(x).to_bits())
                );
            }
        }
    }
}
