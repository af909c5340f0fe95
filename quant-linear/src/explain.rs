//! The numbers of the formats, one at a time: what a value becomes and what lies beside it, and a
//! dot product term by term. For people who want to see it; everything is computed by
//! [`fp4_core`].
//!
//! ```
//! use quant_linear::explain::{self, Kind};
//!
//! // 0.75 lies between the codes 1 (0.5) and 2 (1): a tie, which goes to the even code.
//! let e = explain::number(0.75, Kind::E2m1);
//! assert_eq!((e.code, e.value, e.below, e.is_tie), (2, Some(1.0), Some(0.5), true));
//! assert_eq!((e.bits.as_str(), e.tie_below, e.tie_above), ("0010", Some(0.75), Some(1.25)));
//! ```

use std::str::FromStr;

use fp4_core::{E2m1, Element, ExactSum, PackedView, ScaleType, finish_one};
use serde::Serialize;

use crate::error::Error;

/// A type of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The 4-bit element (C1), ties to even.
    E2m1,
    /// A scale byte (C2).
    Scale(ScaleType),
}

impl Kind {
    /// All types.
    pub const ALL: [Kind; 3] =
        [Kind::E2m1, Kind::Scale(ScaleType::E8M0), Kind::Scale(ScaleType::E4M3)];

    /// The name.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::E2m1 => "e2m1",
            Kind::Scale(scale) => scale.name(),
        }
    }

    /// The code that a value is encoded to.
    pub fn encode(self, x: f32) -> u8 {
        match self {
            Kind::E2m1 => E2m1::from_f32(x).to_bits(),
            Kind::Scale(scale) => scale.encode(x),
        }
    }

    /// The value of a code; `None` for a NaN.
    pub fn decode(self, code: u8) -> Option<f32> {
        let value = match self {
            Kind::E2m1 => E2m1::from_bits(code).to_f32(),
            Kind::Scale(scale) => scale.decode(code),
        };
        (!value.is_nan()).then_some(value)
    }

    /// Every code with its bits and its value.
    pub fn codes(self) -> Vec<Code> {
        let last = if self == Kind::E2m1 { 15 } else { 255 };
        let code = |code| Code { code, bits: self.bits(code), value: self.decode(code) };
        (0..=last).map(code).collect()
    }

    fn bits(self, code: u8) -> String {
        match self {
            Kind::E2m1 => format!("{code:04b}"),
            Kind::Scale(_) => format!("{code:08b}"),
        }
    }
}

/// A name that is no [`Kind`]'s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is no type of numbers; give e2m1, e8m0 or e4m3")]
pub struct ParseKindError;

impl FromStr for Kind {
    type Err = ParseKindError;

    fn from_str(name: &str) -> Result<Self, ParseKindError> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name).ok_or(ParseKindError)
    }
}

/// A code.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Code {
    /// The code.
    pub code: u8,
    /// Its bits, the highest first.
    pub bits: String,
    /// Its value; `None` for a NaN.
    pub value: Option<f32>,
}

/// What a value becomes in a type, and what lies beside that.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Number {
    /// The value that was given.
    pub x: f32,
    /// Its code.
    pub code: u8,
    /// The code's bits, the highest first.
    pub bits: String,
    /// The code's value; `None` for a NaN.
    pub value: Option<f32>,
    /// The next smaller value of the type.
    pub below: Option<f32>,
    /// The next larger.
    pub above: Option<f32>,
    /// Half way to the next smaller.
    pub tie_below: Option<f64>,
    /// Half way to the next larger.
    pub tie_above: Option<f64>,
    /// Is the given value half way between two?
    pub is_tie: bool,
}

/// What a value becomes in a type.
pub fn number(x: f32, kind: Kind) -> Number {
    let code = kind.encode(x);
    let value = kind.decode(code);
    let all = || kind.codes().into_iter().filter_map(|code| code.value);
    let below = value.and_then(|v| all().filter(|other| *other < v).reduce(f32::max));
    let above = value.and_then(|v| all().filter(|other| *other > v).reduce(f32::min));
    // Sums of two neighbours are exact in f64, and so is the half.
    let half = |other: Option<f32>| Some((f64::from(value?) + f64::from(other?)) / 2.0);
    let (tie_below, tie_above) = (half(below), half(above));
    let is_tie = [tie_below, tie_above].contains(&Some(f64::from(x)));
    let bits = kind.bits(code);
    Number { x, code, bits, value, below, above, tie_below, tie_above, is_tie }
}

/// A dot product, term by term.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Dot {
    /// The terms in order.
    pub steps: Vec<Step>,
    /// The exact sum, in decimal.
    pub exact: String,
    /// The sum rounded once to f32; `None` where it is NaN.
    pub rounded: Option<f32>,
    /// What it is multiplied by.
    pub alpha: f32,
    /// The result: rounded times alpha, rounded.
    pub result: Option<f32>,
    /// What a sum in f32 in order would be, every product and every sum rounded.
    pub in_f32: Option<f32>,
    /// That times alpha, rounded.
    pub result_in_f32: Option<f32>,
}

/// A term.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// The codes; of an MXINT8 operand the byte.
    pub codes: [u8; 2],
    /// The elements that they are.
    pub elements: [f32; 2],
    /// The scales of their groups; `None` for a NaN.
    pub scales: [Option<f32>; 2],
    /// The product of all four, exactly; `None` under a NaN scale.
    pub product: Option<String>,
    /// The exact sum so far; `None` once there was a NaN scale.
    pub sum: Option<String>,
    /// The sum so far in f32, every product and every sum rounded.
    pub sum_in_f32: Option<f32>,
}

/// The dot product of row `i` of A and row `j` of B (C6), term by term: up to a kilobyte of digits
/// for each.
///
/// # Errors
/// Operands whose product there is not, and rows that they do not have.
pub fn dot(
    (a, i): (PackedView<'_>, usize),
    (b, j): (PackedView<'_>, usize),
    alpha: f32,
) -> Result<Dot, Error> {
    a.shape().expect_product(&b.shape())?;
    let (a, b) = (a.rows_range(i..i.saturating_add(1))?, b.rows_range(j..j.saturating_add(1))?);
    let int8 = a.shape().element() == Element::Int8;
    let scale = |of: &PackedView<'_>, k: usize| {
        let byte = of.row_scales(0).get(k / of.shape().group().get()).copied().unwrap_or(0);
        let ty = of.shape().scale_type();
        (ty.parts(byte), ty.decode(byte))
    };
    let (mut sum, mut float, mut steps) = (ExactSum::ZERO, 0f32, vec![]);
    for k in 0..b.shape().k() {
        let of_b = b.code(0, k).unwrap_or(E2m1::from_bits(0));
        // MXINT8 elements are in units of 2^-6, and doubled codes in halves.
        let (code, element, whole, unit) = match int8 {
            true => {
                let element = a.int8(0, k).unwrap_or(0);
                (element.cast_unsigned(), f32::from(element) / 64.0, i64::from(element), -7)
            }
            false => {
                let code = a.code(0, k).unwrap_or(E2m1::from_bits(0));
                (code.to_bits(), code.to_f32(), i64::from(code.doubled()), -2)
            }
        };
        let ((parts_a, scale_a), (parts_b, scale_b)) = (scale(&a, k), scale(&b, k));
        let product = match (parts_a, parts_b) {
            (Some(pa), Some(pb)) => {
                let significand =
                    whole * i64::from(of_b.doubled()) * i64::from(pa.significand * pb.significand);
                let exponent = pa.exponent + pb.exponent + unit;
                sum.add_scaled(significand, exponent)?;
                let mut alone = ExactSum::ZERO;
                alone.add_scaled(significand, exponent)?;
                Some(decimal(&alone))
            }
            _ => {
                sum.set_nan();
                None
            }
        };
        float += (element * scale_a) * (of_b.to_f32() * scale_b);
        steps.push(Step {
            codes: [code, of_b.to_bits()],
            elements: [element, of_b.to_f32()],
            scales: [number_of(scale_a), number_of(scale_b)],
            product,
            sum: (!sum.is_nan()).then(|| decimal(&sum)),
            sum_in_f32: number_of(float),
        });
    }
    let rounded = sum.to_f32();
    Ok(Dot {
        steps,
        exact: decimal(&sum),
        rounded: number_of(rounded),
        alpha,
        result: number_of(finish_one::<f32>(rounded, alpha, None)),
        in_f32: number_of(float),
        result_in_f32: number_of(float * alpha),
    })
}

fn number_of(x: f32) -> Option<f32> {
    (!x.is_nan()).then_some(x)
}

/// The fraction bits of [`ExactSum::to_bytes`].
const FRACTION: usize = 264;

/// An exact sum in decimal, all of its digits; `NaN` if it is none.
///
/// ```
/// use fp4_core::ExactSum;
///
/// let mut sum = ExactSum::ZERO;
/// sum.add_scaled(-3, -2)?;
/// assert_eq!(quant_linear::explain::decimal(&sum), "-0.75");
/// # Ok::<(), fp4_core::Error>(())
/// ```
pub fn decimal(sum: &ExactSum) -> String {
    if sum.is_nan() {
        return "NaN".into();
    }
    // After the version, before the flag.
    let bytes = sum.to_bytes();
    let mut digits: Vec<u8> = bytes[1..bytes.len() - 1].to_vec();
    let negative = digits.last().is_some_and(|top| top >> 7 == 1);
    if negative {
        let mut carry = true;
        for digit in &mut digits {
            (*digit, carry) = (!*digit).overflowing_add(u8::from(carry));
        }
    }
    let fraction = digits[..FRACTION / 8].to_vec();
    let mut out = whole(digits[FRACTION / 8..].to_vec());
    if negative {
        out.insert(0, '-');
    }
    let after = after_the_point(fraction);
    if !after.is_empty() {
        out.push('.');
        out += &after;
    }
    out
}

/// A little-endian number in decimal.
fn whole(mut number: Vec<u8>) -> String {
    let mut out = vec![];
    while number.iter().any(|byte| *byte != 0) {
        let mut rest = 0u32;
        for byte in number.iter_mut().rev() {
            let all = rest << 8 | u32::from(*byte);
            (*byte, rest) = ((all / 10) as u8, all % 10);
        }
        out.push(b'0' + rest as u8);
    }
    if out.is_empty() {
        out.push(b'0');
    }
    out.into_iter().rev().map(char::from).collect()
}

/// The digits of a little-endian fraction of 1.
fn after_the_point(mut fraction: Vec<u8>) -> String {
    let mut out = String::new();
    while fraction.iter().any(|byte| *byte != 0) {
        let mut carry = 0u32;
        for byte in &mut fraction {
            let all = u32::from(*byte) * 10 + carry;
            (*byte, carry) = (all as u8, all >> 8);
        }
        out.push(char::from(b'0' + carry as u8));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use fp4_core::{Encoding, PackedMatrix, PackedShape, TieMode, reference};

    #[test]
    fn neighbours_enclose_every_code_and_ties_are_where_encoding_turns() {
        for kind in Kind::ALL {
            let mut values: Vec<_> =
                kind.codes().into_iter().filter_map(|code| code.value).collect();
            values.sort_by(f32::total_cmp);
            values.dedup();
            for window in values.windows(3) {
                let e = number(window[1], kind);
                assert_eq!(
                    (e.below, e.value, e.above),
                    (Some(window[0]), Some(window[1]), Some(window[2]))
                );
                assert!(!e.is_tie);
                let tie = e.tie_above.unwrap() as f32;
                if f64::from(tie) == e.tie_above.unwrap() {
                    assert!(number(tie, kind).is_tie, "{tie} {}", kind.name());
                    let next = f32::from_bits(if tie < 0.0 {
                        tie.to_bits() - 1
                    } else {
                        tie.to_bits() + 1
                    });
                    assert_eq!(number(next, kind).value, Some(window[2]), "{next} {}", kind.name());
                }
            }
            assert_eq!(number(f32::MAX, kind).above, None);
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        assert_eq!(number(f32::NAN, Kind::Scale(ScaleType::E4M3)).value, None);
        assert!("fp8".parse::<Kind>().is_err());
        assert_eq!(
            E2m1::from_f32_tie(0.75, TieMode::Even).to_bits(),
            number(0.75, Kind::E2m1).code
        );
    }

    #[test]
    fn decimals_are_exact_at_both_ends() {
        let text = |significand, exponent| {
            let mut sum = ExactSum::ZERO;
            sum.add_scaled(significand, exponent).unwrap();
            decimal(&sum)
        };
        assert_eq!(text(0, 0), "0");
        assert_eq!(text(180, 0), "180");
        assert_eq!(text(-1, -3), "-0.125");
        assert_eq!(text(1, 64), "18446744073709551616");
        // 5^264, to the last digit.
        let smallest = text(1, -264);
        assert!(smallest.starts_with("0.000") && smallest.ends_with("25"), "{smallest}");
        assert_eq!(smallest.len(), 2 + 264);
    }

    #[test]
    fn the_steps_end_in_what_the_matmul_gives() {
        let mut compared = 0;
        for (encoding, of_b) in [
            (Encoding::NvFp4, Encoding::NvFp4),
            (Encoding::MxFp4, Encoding::MxFp4),
            (Encoding::MxInt8, Encoding::NvFp4),
            (Encoding::MxInt8, Encoding::MxFp4),
        ] {
            let matrix = |encoding, seed: usize| {
                let shape = PackedShape::encoded(encoding, 2, 64).unwrap();
                let codes = (0..shape.codes_len()).map(|i| ((i * 37 + seed * 11) % 251) as u8);
                let scales = (0..shape.scales_len()).map(|i| (90 + (i * 5 + seed) % 32) as u8);
                PackedMatrix::new(shape, codes.collect(), scales.collect()).unwrap()
            };
            let (a, b) = (matrix(encoding, 1), matrix(of_b, 2));
            let mut y = [0f32; 4];
            reference::matmul(a.view(), b.view(), 0.3, (&mut y[..]).into()).unwrap();
            for (at, y) in y.iter().enumerate() {
                let dot = dot((a.view(), at / 2), (b.view(), at % 2), 0.3).unwrap();
                assert_eq!(dot.result.map(f32::to_bits), Some(y.to_bits()), "{encoding} {at}");
                assert_eq!(dot.steps.len(), 64);
                assert_eq!(dot.steps.last().unwrap().sum.as_ref(), Some(&dot.exact));
                compared += 1;
            }
            assert!(dot((a.view(), 2), (b.view(), 0), 1.0).is_err());
        }
        assert_eq!(compared, 16);
    }

    #[test]
    fn a_nan_scale_shows_from_its_step_on() {
        let shape = PackedShape::encoded(Encoding::NvFp4, 1, 32).unwrap();
        let with = |scales| PackedMatrix::new(shape, vec![0x22; 16], scales).unwrap();
        let (a, b) = (with(vec![0x38, 0x7F]), with(vec![0x38, 0x38]));
        let dot = dot((a.view(), 0), (b.view(), 0), 1.0).unwrap();
        assert_eq!((dot.steps[15].sum.as_deref(), &dot.steps[16].sum), (Some("16"), &None));
        assert_eq!((dot.exact.as_str(), dot.result), ("NaN", None));
    }
}
