//! The quantizer, eight values at a time, under every tie mode: the fallback of the other sets for
//! ties other than to even and for other scale rules (C1, C4).
//!
//! There is no quotient: x is compared with the least magnitudes whose quotients have the codes 1
//! to 7. Let m be the midpoint below a code and h half a unit in its last place. x / d rounds to m
//! or above from d * (m - h) on, and above m past d * (m + h); which of the two it is, the tie mode
//! says. No f32 lies on either: m - h and m + h have odd significands of 25 bits, which would
//! divide that of x. So the threshold is that product rounded up to f32. It has at most 49 bits,
//! and is exact in f64, where d may be subnormal and the threshold infinite. Bits of non-negative
//! floats order as their values.
//!
//! Ties down and up differ by the sign of the quotient, so there are two sets of thresholds then.
//! The places ([`Places`]) are made by asking core how it rounds each midpoint.
//!
//! Worked example, ties to even, d = 3: 0.75 is the midpoint of codes 1 and 2, and its tie goes to
//! code 2. h is 2^-25, the product 2.25 - 3 * 2^-25, and the next f32 above it 2.25: 2.25 / 3 is
//! the tie, and the f32 below 2.25 has a quotient below 0.75.

use fp4_core::{E2m1, QuantSpec, ScaleRule, TieMode, reference};
use wide::{bytemuck, f32x8, i32x8};

use crate::counts::Groups;
use crate::quantize::{Encode, FloatValue, int8};

/// Largest magnitude of a group, NaN if any element is NaN (C4.1).
fn amax(y: &[f32]) -> f32 {
    let (mut largest, mut nan) = (f32x8::splat(0.0), f32x8::splat(0.0));
    for &y in y.as_chunks::<8>().0 {
        let y = f32x8::new(y);
        // With a NaN the maximum is unspecified, and not used.
        largest = largest.fast_max(y.abs());
        nan |= y.is_nan();
    }
    if nan.any() { f32::NAN } else { largest.to_array().into_iter().fold(0.0, f32::max) }
}

/// Quotients past which the codes are 1 to 7.
type Places = [f64; 7];

/// Rounding to codes under one tie mode (C1).
pub(crate) struct Encoder {
    /// Of positive quotients, and of negative ones.
    places: [Places; 2],
}

impl Encode for Encoder {
    fn run(
        &self,
        y: &[f32],
        spec: &QuantSpec,
        given: bool,
        scales: &mut [u8],
        codes: &mut [u8],
        groups: &mut Groups,
    ) {
        let group = spec.group().get();
        let encoded = y.chunks_exact(group).zip(codes.chunks_exact_mut(group / 2)).zip(scales);
        let known = groups.largest.iter_mut().zip(&mut groups.units);
        for (((y, codes), scale), (largest, unit)) in encoded.zip(known) {
            *largest = amax(y);
            if !given {
                *scale = match spec.rule() {
                    ScaleRule::Nearest => spec.encode_scale(*largest),
                    _ => reference::group_scale(y, spec),
                };
            }
            *unit = spec.unit(*scale);
            self.group(y, *unit, codes);
        }
        groups.look(y.len() / group);
    }

    fn largest(&self, y: &[f32]) -> u32 {
        amax(y).to_bits()
    }

    fn run_int8(&self, y: &[f32], scales: &mut [u8], elements: &mut [u8]) -> bool {
        int8::run(y, scales, elements)
    }

    fn chains<T: FloatValue>(&self, block: usize, x: &[f32], columns: &[f32], y: &mut [f32]) {
        let blocks = x.chunks_exact(block).zip(y.chunks_exact_mut(block));
        blocks.for_each(|(x, y)| T::chains(x, columns, y));
        for y in y {
            *y = T::from_f32(*y).to_f32();
        }
    }
}

impl Encoder {
    pub(crate) fn new(tie: TieMode) -> Self {
        let value = |code: usize| f64::from(E2m1::from_bits(code as u8).to_f32());
        let place = |lower: usize, sign: f32| {
            let midpoint = (value(lower) + value(lower + 1)) * 0.5;
            let bits = (midpoint as f32).to_bits();
            let code = E2m1::from_f32_tie((midpoint as f32).copysign(sign), tie).to_bits() & 7;
            // Towards the neighbour that rounds to the other code.
            let beside = if usize::from(code) > lower { bits - 1 } else { bits + 1 };
            (midpoint + f64::from(f32::from_bits(beside))) * 0.5
        };
        Encoder { places: [1.0, -1.0].map(|sign| std::array::from_fn(|i| place(i, sign))) }
    }

    /// Encodes one group whose unit is `d` (C4.3).
    #[inline]
    fn group(&self, y: &[f32], d: f32, codes: &mut [u8]) {
        let chunks = y.as_chunks::<8>().0.iter().zip(codes.as_chunks_mut::<4>().0);
        let [positive, negative] = &self.places;
        if d == 0.0 {
            for (&y, codes) in chunks {
                *codes = pack(sign_bits(bytemuck::cast(f32x8::new(y))));
            }
        } else if d.is_nan() {
            // So is every quotient, and NaN is +6 (C1).
            codes.fill(0x77);
        } else if positive == negative {
            let thresholds = thresholds(positive, d);
            for (&y, codes) in chunks {
                *codes = pack(encode(y, d, |_, i| i32x8::splat(thresholds[i])));
            }
        } else {
            let [positive, negative] = [thresholds(positive, d), thresholds(negative, d)];
            let select = |sign: i32x8, i: usize| {
                let differ = i32x8::splat(positive[i] ^ negative[i]);
                i32x8::splat(positive[i]) ^ (sign & differ)
            };
            for (&y, codes) in chunks {
                *codes = pack(encode(y, d, select));
            }
        }
    }
}

/// The bits that those of |x| must exceed to have the codes 1 to 7 under the unit `d`, no zero.
#[inline]
fn thresholds(places: &Places, d: f32) -> [i32; 7] {
    let d = f64::from(d.abs());
    places.map(|place| {
        let exact = d * place;
        let nearest = exact as f32;
        nearest.to_bits() as i32 - i32::from(f64::from(nearest) >= exact)
    })
}

/// The code of each value, by the thresholds for its quotient's sign, which is -1 or 0.
#[inline(always)]
fn encode(y: [f32; 8], d: f32, thresholds: impl Fn(i32x8, usize) -> i32x8) -> i32x8 {
    let bits: i32x8 = bytemuck::cast(f32x8::new(y));
    let bits = bits ^ i32x8::splat(d.to_bits() as i32 & i32::MIN);
    let (magnitude, sign) = (bits & i32x8::splat(i32::MAX), bits >> 31);
    let nan = magnitude.simd_gt(i32x8::splat(f32::INFINITY.to_bits() as i32));
    let mut code = i32x8::splat(0);
    for i in 0..7 {
        code -= magnitude.simd_gt(thresholds(sign, i));
    }
    // NaN is +6 whatever its sign (C1).
    ((code | sign_bits(bits)) & !nan) | (nan & i32x8::splat(7))
}

/// The sign of each value as bit 3 of a code.
#[inline]
fn sign_bits(bits: i32x8) -> i32x8 {
    (bits >> 28) & i32x8::splat(8)
}

/// Packs eight codes, low nibble first (C3).
#[inline]
fn pack(codes: i32x8) -> [u8; 4] {
    let codes = codes.to_array();
    std::array::from_fn(|i| (codes[2 * i] | codes[2 * i + 1] << 4) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_beside_every_threshold_are_those_of_the_quotient() {
        let mut compared = 0;
        let units = [1.0, 3.0, 0.1, -0.1, 7.3e-39, 1e-45, 3e38, f32::from_bits(0x3FFF_FFFF)];
        for tie in TieMode::ALL {
            let encoder = Encoder::new(tie);
            for d in units {
                let mut values = vec![0.0, f32::MIN_POSITIVE, f32::MAX, f32::INFINITY, f32::NAN];
                values.extend([1, 0x7F80_0001, 0x7FFF_FFFF].map(f32::from_bits));
                for midpoint in [0.25f32, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0] {
                    let near = (midpoint * d.abs()).to_bits();
                    values.extend((0..9).map(|u| f32::from_bits((near + u).saturating_sub(4))));
                }
                values.resize(values.len().next_multiple_of(8), 0.0);
                values.extend(values.clone().iter().map(|v| -v));
                let mut codes = vec![0; values.len() / 2];
                encoder.group(&values, d, &mut codes);
                for (i, &v) in values.iter().enumerate() {
                    let got = codes[i / 2] >> (i % 2 * 4) & 15;
                    let expected = E2m1::from_f32_tie(v / d, tie).to_bits();
                    assert_eq!(got, expected, "{v:e} / {d:e} {tie:?}");
                    compared += 1;
                }
            }
        }
        println!("compared {compared} codes");
        assert_eq!(compared, 4 * 8 * 144);
    }
}
