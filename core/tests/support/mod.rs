//! The contract's rules written a second time, in f64 and integers, sharing no code with the core.
//!
//! Decoding is by formula. Encoding is by *ladders*: the ascending values of a format and the
//! midpoints between them, all exact in f64, so that rounding to nearest is one search among
//! midpoints and a rule for ties. Nothing here calls a conversion of the core or of `half`.

#![allow(dead_code, reason = "every test binary uses another part")]

use fp4_core::{FloatType, ScaleType, TieMode};

/// Canonical NaNs, by C9.
pub(crate) const NAN_F32: u32 = 0x7FC0_0000;
pub(crate) const NAN_F16: u16 = 0x7E00;
pub(crate) const NAN_BF16: u16 = 0x7FC0;

/// 2^e as an f64, for every e that the tests need.
pub(crate) fn power(e: i32) -> f64 {
    2f64.powi(e)
}

/// Twice the value of an e2m1 code: `s ee m`, bias 1, so that the values are halves.
pub(crate) fn e2m1_doubled(code: u8) -> i64 {
    let (negative, e, m) = (code >> 3 & 1 == 1, code >> 1 & 3, i64::from(code & 1));
    let magnitude = if e == 0 { m } else { (2 + m) << (e - 1) };
    if negative { -magnitude } else { magnitude }
}

/// The value of an e2m1 code; code 8 is -0.
pub(crate) fn e2m1_value(code: u8) -> f64 {
    let magnitude = e2m1_doubled(code & 7) as f64 / 2.0;
    if code & 8 != 0 { -magnitude } else { magnitude }
}

/// A scale byte as `significand * 2^exponent`; `None` for NaN. -0 has significand 0.
pub(crate) fn scale_parts(ty: ScaleType, byte: u8) -> Option<(i64, i32)> {
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

/// The value of a scale byte; NaN for NaN, -0 for the e4m3 byte 0x80.
pub(crate) fn scale_value(ty: ScaleType, byte: u8) -> f64 {
    let Some((significand, exponent)) = scale_parts(ty, byte) else { return f64::NAN };
    let magnitude = significand.unsigned_abs() as f64 * power(exponent);
    if ty == ScaleType::E4M3 && byte & 0x80 != 0 { -magnitude } else { magnitude }
}

/// The value of an f16 (10 mantissa bits, bias 15) or bf16 (7, 127) pattern without sign; the
/// pattern of infinity stands for the next power of two.
fn half_value(pattern: u16, mantissa_bits: u32, bias: i32) -> f64 {
    let e = i32::from(pattern >> mantissa_bits);
    let m = f64::from(pattern & ((1 << mantissa_bits) - 1));
    let one = f64::from(1u32 << mantissa_bits);
    if e == 0 { m / one * power(1 - bias) } else { (one + m) / one * power(e - bias) }
}

/// The value of an f16 or bf16 pattern, NaN and infinities included.
pub(crate) fn half_to_f64(ty: FloatType, bits: u16) -> f64 {
    let (mantissa_bits, bias, infinity) = half_parameters(ty);
    let pattern = bits & 0x7FFF;
    let magnitude = match pattern.cmp(&infinity) {
        core::cmp::Ordering::Less => half_value(pattern, mantissa_bits, bias),
        core::cmp::Ordering::Equal => f64::INFINITY,
        core::cmp::Ordering::Greater => f64::NAN,
    };
    if bits & 0x8000 != 0 { -magnitude } else { magnitude }
}

fn half_parameters(ty: FloatType) -> (u32, i32, u16) {
    match ty {
        FloatType::F16 => (10, 15, 0x7C00),
        FloatType::Bf16 => (7, 127, 0x7F80),
        FloatType::F32 => panic!("f32 is no half type"),
    }
}

/// Which way a tie between the codes `i` and `i + 1` goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tie {
    /// To the even code.
    Even,
    /// To `i + 1`.
    Up,
    /// To `i`.
    Down,
}

/// The ascending values of a format's codes 0, 1, 2, ..., by the midpoints between them.
#[derive(Debug, Clone)]
pub(crate) struct Ladder {
    midpoints: Vec<f64>,
}

impl Ladder {
    fn new(values: impl IntoIterator<Item = f64>) -> Self {
        let values: Vec<f64> = values.into_iter().collect();
        let midpoints: Vec<f64> = values.windows(2).map(|v| (v[0] + v[1]) / 2.0).collect();
        assert!(
            values.windows(2).zip(&midpoints).all(|(v, m)| v[0] < *m && *m - v[0] == v[1] - *m)
        );
        Ladder { midpoints }
    }

    /// The magnitudes of e2m1.
    pub(crate) fn e2m1() -> Self {
        Self::new((0..8).map(e2m1_value))
    }

    /// The non-negative scales of a type.
    pub(crate) fn scale(ty: ScaleType) -> Self {
        let last = if ty == ScaleType::E8M0 { 254 } else { 0x7E };
        Self::new((0..=last).map(|byte| scale_value(ty, byte)))
    }

    /// The magnitudes of f16 or bf16, with the next power of two in the place of infinity.
    pub(crate) fn half(ty: FloatType) -> Self {
        let (mantissa_bits, bias, infinity) = half_parameters(ty);
        Self::new((0..=infinity).map(|pattern| half_value(pattern, mantissa_bits, bias)))
    }

    /// The midpoints; all are exact in f32.
    pub(crate) fn midpoints(&self) -> &[f64] {
        &self.midpoints
    }

    /// The code of a tie at midpoint `i`.
    pub(crate) fn tie(i: usize, tie: Tie) -> usize {
        i + usize::from(match tie {
            Tie::Even => i % 2 == 1,
            Tie::Up => true,
            Tie::Down => false,
        })
    }

    /// The code nearest to a magnitude; beyond the last value it is the last code.
    pub(crate) fn nearest(&self, magnitude: f64, tie: Tie) -> usize {
        assert!(magnitude >= 0.0);
        let below = self.midpoints.partition_point(|&m| m < magnitude);
        if self.midpoints.get(below) == Some(&magnitude) { Self::tie(below, tie) } else { below }
    }
}

/// The tie rule for a magnitude of this sign under an e2m1 tie mode.
pub(crate) fn e2m1_tie(mode: TieMode, negative: bool) -> Tie {
    match (mode, negative) {
        (TieMode::Even, _) => Tie::Even,
        (TieMode::Zero, _) | (TieMode::Down, false) | (TieMode::Up, true) => Tie::Down,
        (TieMode::Down, true) | (TieMode::Up, false) => Tie::Up,
    }
}

/// All ladders, made once.
pub(crate) struct Rules {
    e2m1: Ladder,
    e8m0: Ladder,
    e4m3: Ladder,
    f16: Ladder,
    bf16: Ladder,
}

impl Rules {
    pub(crate) fn new() -> Self {
        Rules {
            e2m1: Ladder::e2m1(),
            e8m0: Ladder::scale(ScaleType::E8M0),
            e4m3: Ladder::scale(ScaleType::E4M3),
            f16: Ladder::half(FloatType::F16),
            bf16: Ladder::half(FloatType::Bf16),
        }
    }

    /// The magnitudes of e2m1.
    pub(crate) fn e2m1_ladder(&self) -> &Ladder {
        &self.e2m1
    }

    /// The non-negative scales of a type.
    pub(crate) fn scale_ladder(&self, ty: ScaleType) -> &Ladder {
        match ty {
            ScaleType::E8M0 => &self.e8m0,
            ScaleType::E4M3 => &self.e4m3,
        }
    }

    /// f32 to e2m1 (C1).
    pub(crate) fn e2m1(&self, x: f32, mode: TieMode) -> u8 {
        if x.is_nan() {
            return 7;
        }
        let negative = x.is_sign_negative();
        let code = self.e2m1.nearest(f64::from(x).abs(), e2m1_tie(mode, negative)) as u8;
        if negative { code | 8 } else { code }
    }

    /// f32 to a scale byte (C2).
    pub(crate) fn scale(&self, ty: ScaleType, s: f32) -> u8 {
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

    /// f32 to f16 or bf16, one rounding to nearest even, NaN canonical (C9).
    pub(crate) fn half(&self, ty: FloatType, x: f32) -> u16 {
        let (ladder, nan) = match ty {
            FloatType::F16 => (&self.f16, NAN_F16),
            FloatType::Bf16 => (&self.bf16, NAN_BF16),
            FloatType::F32 => panic!("f32 is no half type"),
        };
        if x.is_nan() {
            return nan;
        }
        let pattern = ladder.nearest(f64::from(x).abs(), Tie::Even) as u16;
        if x.is_sign_negative() { pattern | 0x8000 } else { pattern }
    }

    /// f32 rounded to a type and widened again, NaN canonical.
    pub(crate) fn through(&self, ty: FloatType, x: f32) -> f32 {
        match ty {
            FloatType::F32 => canonical(x),
            // Every half is an f32, so the conversion from f64 is exact.
            _ => canonical(half_to_f64(ty, self.half(ty, x)) as f32),
        }
    }
}

/// The same value, NaN canonical.
pub(crate) fn canonical(x: f32) -> f32 {
    if x.is_nan() { f32::from_bits(NAN_F32) } else { x }
}

/// A small random generator (splitmix64), the same on every run.
#[derive(Debug, Clone)]
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number in `0..below`.
    pub(crate) fn below(&mut self, below: usize) -> usize {
        (self.next() >> 16) as usize % below
    }

    /// True once in `n`.
    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.next() as u8
    }

    /// Any bit pattern.
    pub(crate) fn any_f32(&mut self) -> f32 {
        f32::from_bits((self.next() >> 11) as u32)
    }

    /// Roughly normal, around 1.
    pub(crate) fn normal(&mut self) -> f32 {
        let mut unit = || (self.next() >> 40) as f32 / (1u32 << 24) as f32;
        unit() + unit() + unit() + unit() - 2.0
    }
}

/// Counts what a test compared; the test prints and asserts it.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) compared: u64,
    pub(crate) differ: u64,
}

impl Tally {
    /// Counts one comparison; the first that differ are printed.
    pub(crate) fn check<T: PartialEq + core::fmt::Debug>(
        &mut self,
        got: T,
        expected: T,
        what: impl FnOnce() -> String,
    ) {
        self.compared += 1;
        if got != expected {
            self.differ += 1;
            if self.differ <= 5 {
                println!("{}: got {got:X?}, expected {expected:X?}", what());
            }
        }
    }

    /// Prints the counts and fails if anything differs, or if nothing was compared.
    pub(crate) fn finish(&self, name: &str) {
        println!("{name}: {} values compared, {} differ", self.compared, self.differ);
        assert!(self.compared > 0, "{name}: nothing was compared");
        assert_eq!(self.differ, 0, "{name}: {} of {} differ", self.differ, self.compared);
    }
}
