//! The scale rules: the one place that computes them. What each is, and whose, is the text of
//! [`rule`](crate::rule).
//!
//! The search over e4m3 bytes gives what a search over all 127 would, and looks at about ten. Why:
//!
//! ```text
//! u = the least byte under which amax is not clipped, d its unit
//! below u        amax is clipped, and its error alone grows as the byte falls: stop when it is
//!                more than the best
//! u to u + 7     all significands: looked at
//! above          doubles of those. What 2d can write up to amax, d can, so no error under 2d is
//!                less than that under d, and of equals the least byte is taken
//! ```
//!
//! That d takes the nearest of its values holds in f32 too. A quotient that rounds to a tie takes
//! the even code, which 2d has as well, with the same error. Any other is 2^-24 of itself or more
//! from the tie, so the two errors are 2^-23 apart or more, and values of odd codes (1.5, 3, 6
//! times d) are rounded by less. Sums are in the same order, and rounding is monotone.
//!
//! Doubles are doubles where nothing is subnormal or overflows; elsewhere all bytes are looked at.
//! Subnormal bytes have fewer significands: of the 15 below 0x10 none is passed over.
//!
//! Worked example: of a group with amax 6 under gs = 1, u is 0x38 (1). If the rest are whole codes,
//! its error is 0, and no clipped byte has that: 0x37 is looked at no further than 6 - 0.9375 * 6.

use crate::format::{Element, ScaleType};
use crate::reference::quantize::amax;
use crate::rule::ScaleRule;
use crate::scale::{E4m3, E8m0};
use crate::spec::QuantSpec;

/// The largest finite e4m3 byte.
const LAST: u8 = E4m3::MAX.to_bits();
/// What carries any mantissa but 0 into the exponent.
const UP: u32 = (1 << 23) - 1;

/// The scale byte of a group of values, f32 after the transform, by the spec's rule (C4.1, C4.2):
/// the one place that knows the rules. Backends call it for rules that they have no faster way for.
pub fn group_scale(y: &[f32], spec: &QuantSpec) -> u8 {
    let largest = amax(y);
    if spec.element() == Element::Int8 {
        return spec.encode_scale(largest);
    }
    let gs = spec.global_scale();
    let (e8m0, sixth) = (spec.scale_type() == ScaleType::E8M0, largest / 6.0);
    match spec.rule() {
        ScaleRule::Nearest => spec.encode_scale(largest),
        ScaleRule::Floor => of_exponent(exponent(largest / gs, 0).saturating_sub(2)),
        ScaleRule::Even => even(largest / gs),
        ScaleRule::CompressedTensors if e8m0 => even(largest / gs),
        ScaleRule::Rceil => of_exponent(exponent(sixth / gs, UP)),
        ScaleRule::ModelOpt if e8m0 => modelopt_e8m0(sixth / gs),
        ScaleRule::Ggml if e8m0 => ggml_e8m0(largest / gs),
        ScaleRule::Mlx if e8m0 && sixth / gs == 0.0 => E8m0::ONE.to_bits(),
        ScaleRule::Mlx if e8m0 => of_exponent(exponent(sixth / gs, UP)),
        ScaleRule::ModelOpt => {
            let s = largest / (6.0 * gs);
            E4m3::from_f32(if s == 0.0 { 1.0 } else { at_least(s, 1.0 / 512.0) }).to_bits()
        }
        ScaleRule::CompressedTensors => match E4m3::from_f32((1.0 / gs) * sixth).to_bits() {
            0 => 0x20,
            byte => byte,
        },
        ScaleRule::Ggml => ggml_e4m3(sixth / gs),
        ScaleRule::Mlx => E4m3::from_f32(sixth / gs).to_bits(),
        _ if !largest.is_finite() => spec.scale_type().encode(largest / (6.0 * gs)),
        ScaleRule::Search if e8m0 => search_e8m0(y, largest, spec),
        ScaleRule::Search => search_e4m3(y, largest, spec),
        ScaleRule::FourSixMse | ScaleRule::FourSixMse448 => four_six(y, largest, spec, square),
        ScaleRule::FourSixMae | ScaleRule::FourSixMae448 => four_six(y, largest, spec, f64::abs),
    }
}

/// The larger, NaN if the first is.
fn at_least(s: f32, least: f32) -> f32 {
    if s < least { least } else { s }
}

/// What a rule makes of a magnitude: an exponent, or the special values that no rule scales.
#[derive(Clone, Copy)]
enum Exponent {
    /// A power of two, not clamped.
    Of(i32),
    /// Infinite.
    Largest,
    /// Not a number.
    Nan,
}

impl Exponent {
    fn saturating_sub(self, less: i32) -> Self {
        match self {
            Exponent::Of(e) => Exponent::Of(e - less),
            other => other,
        }
    }
}

/// The exponent of the power of two at most `s`, after `carry` was added to its mantissa: 0 rounds
/// down, 2^23 - 1 up, what is between by its size. That of 0 is below all.
fn exponent(s: f32, carry: u32) -> Exponent {
    if s.is_nan() {
        return Exponent::Nan;
    }
    if s.is_infinite() {
        return Exponent::Largest;
    }
    let (significand, scale) = normal(s);
    if significand == 0.0 {
        return Exponent::Of(i32::MIN / 2);
    }
    let bits = significand.to_bits() + carry;
    Exponent::Of((bits >> 23) as i32 - 127 + scale)
}

/// A non-negative number as `significand * 2^scale` with a normal significand, or (0, 0).
fn normal(s: f32) -> (f32, i32) {
    // 2^64 makes every subnormal normal.
    if s < f32::MIN_POSITIVE { (s * f32::from_bits(191 << 23), -64) } else { (s, 0) }
}

/// The byte of a power of two, clamped to what e8m0 has.
fn of_exponent(exponent: Exponent) -> u8 {
    match exponent {
        Exponent::Of(e) => (e.clamp(-127, 127) + 127) as u8,
        Exponent::Largest => E8m0::MAX.to_bits(),
        Exponent::Nan => E8m0::NAN.to_bits(),
    }
}

/// The rule even: a quarter of the next octave counts to it.
fn even(s: f32) -> u8 {
    of_exponent(exponent(s, 1 << 21).saturating_sub(2))
}

/// log2 of `m * 2^k`, rounded to f32, for m within 2^-9 of 1: the series there is exact to f64's
/// last bits.
fn log2_near(k: i32, m: f64) -> f32 {
    let t = m - 1.0;
    let log = (t - t * t / 2.0 + t * t * t / 3.0) * core::f64::consts::LOG2_E;
    (f64::from(k) + log) as f32
}

/// The exponent and the mantissa, in [1, 2), of a finite positive number.
fn split(s: f32) -> (i32, f64) {
    let (s, scale) = normal(s);
    let k = (s.to_bits() >> 23) as i32 - 127;
    (k + scale, f64::from(f32::from_bits((s.to_bits() & 0x007F_FFFF) | 0x3F80_0000)))
}

/// ModelOpt's MXFP4: ceil of the logarithm, which may round down to a whole number.
fn modelopt_e8m0(s: f32) -> u8 {
    if s == 0.0 || !s.is_finite() {
        return E8m0::from_f32(s).to_bits();
    }
    let (k, m) = split(s);
    let whole = m == 1.0 || (m < 1.0 + 1.0 / 1024.0 && log2_near(k, m) == k as f32);
    of_exponent(Exponent::Of(k + i32::from(!whole)))
}

/// ggml's MXFP4: floor of the logarithm, which may round up to a whole number.
fn ggml_e8m0(s: f32) -> u8 {
    if s == 0.0 || !s.is_finite() {
        return E8m0::from_f32(s).to_bits();
    }
    let (k, m) = split(s);
    let up = m > 2.0 - 1.0 / 512.0 && log2_near(k + 1, m / 2.0) == (k + 1) as f32;
    of_exponent(Exponent::Of(k + i32::from(up) - 2))
}

/// ggml's e4m3 of a non-negative number.
fn ggml_e4m3(s: f32) -> u8 {
    if s.is_nan() {
        return E4m3::NAN.to_bits();
    }
    if s >= 256.0 {
        return LAST;
    }
    if s < 1.0 / 64.0 {
        // In units of 2^-9; 7 is the most, though 7.5 is nearer to 8.
        return ((s * 512.0 + 0.5) as u8).min(7);
    }
    // The exponent's bias moves from 127 to 7; half of the last kept bit carries.
    let byte = (s.to_bits() + (1 << 19)) >> 20;
    ((byte - (120 << 3)) as u8).min(LAST)
}

/// The nearest magnitude of e2m1 to a magnitude, ties to even (C1): that of the code of
/// `E2m1::from_f32`, without a branch.
#[inline(always)]
fn nearest_magnitude(q: f32) -> f32 {
    // 0.5 up to 2, 1 up to 4, then 2: adding 1.5 * 2^23 steps rounds to whole steps, ties to even,
    // and an odd number of steps is an odd code.
    let step = if q < 2.0 {
        0.5
    } else if q < 4.0 {
        1.0
    } else {
        2.0
    };
    let rounder = 12_582_912.0 * step;
    let rounded = (q + rounder) - rounder;
    if rounded < 6.0 { rounded } else { 6.0 }
}

fn square(error: f64) -> f64 {
    error * error
}

/// The error of a finite group under a unit, `of` each element's, summed in four lanes.
#[inline(always)]
fn error(y: &[f32], d: f32, of: impl Fn(f64) -> f64) -> f64 {
    let mut lanes = [0f64; 4];
    for y in y.as_chunks::<4>().0 {
        // Under d = 0 every value is 0. Four at a time, so that the compiler has vectors.
        let y = y.map(f32::abs);
        let values = if d == 0.0 { [0.0; 4] } else { y.map(|y| nearest_magnitude(y / d) * d) };
        for lane in 0..4 {
            lanes[lane] += of(f64::from(y[lane] - values[lane]));
        }
    }
    (lanes[0] + lanes[1]) + (lanes[2] + lanes[3])
}

/// Of floor's byte, the one below and the one above, that of the least squared error.
fn search_e8m0(y: &[f32], largest: f32, spec: &QuantSpec) -> u8 {
    if largest == 0.0 {
        return 0;
    }
    let middle = of_exponent(exponent(largest / spec.global_scale(), 0).saturating_sub(2));
    let bytes = middle.saturating_sub(1)..=(middle + 1).min(E8m0::MAX.to_bits());
    let mut best = (f64::INFINITY, middle);
    for byte in bytes {
        let error = error(y, spec.unit(byte), square);
        if error < best.0 {
            best = (error, byte);
        }
    }
    best.1
}

/// Of the e4m3 bytes that take the largest magnitude to 6 and to 4, that of the lesser error.
fn four_six(y: &[f32], largest: f32, spec: &QuantSpec, of: impl Fn(f64) -> f64) -> u8 {
    let s = largest / (6.0 * spec.global_scale());
    let [six, four] = [s, 1.5 * s].map(|s| E4m3::from_f32(s).to_bits());
    let [error_six, error_four] = [six, four].map(|byte| error(y, spec.unit(byte), &of));
    if error_four < error_six { four } else { six }
}

/// The e4m3 byte of the least squared error, the least of equals.
fn search_e4m3(y: &[f32], largest: f32, spec: &QuantSpec) -> u8 {
    if largest == 0.0 {
        return 0;
    }
    let unit = |byte: u8| spec.unit(byte);
    // Twice a unit is exactly that, and nothing overflows.
    let exact = unit(1) >= f32::MIN_POSITIVE * 4.0 && (12.0 * unit(LAST)).is_finite();
    if !exact {
        return search_all(y, spec);
    }
    let mut first = E4m3::from_f32(largest / (6.0 * spec.global_scale())).to_bits();
    while first < LAST && 6.0 * unit(first) < largest {
        first += 1;
    }
    while first > 0 && 6.0 * unit(first - 1) >= largest {
        first -= 1;
    }
    let mut best = (f64::INFINITY, first);
    let look = |byte: u8, best: &mut (f64, u8)| {
        let error = error(y, unit(byte), square);
        if error < best.0 || (error == best.0 && byte < best.1) {
            *best = (error, byte);
        }
    };
    for byte in first..=first.saturating_add(7).clamp(0x0F, LAST) {
        look(byte, &mut best);
    }
    for byte in (0..first).rev() {
        if square(f64::from(largest - 6.0 * unit(byte))) > best.0 {
            break;
        }
        look(byte, &mut best);
    }
    best.1
}

/// As [`search_e4m3`], by looking at all bytes.
fn search_all(y: &[f32], spec: &QuantSpec) -> u8 {
    let mut best = (f64::INFINITY, 0);
    for byte in 0..=LAST {
        let error = error(y, spec.unit(byte), square);
        if error < best.0 {
            best = (error, byte);
        }
    }
    best.1
}
