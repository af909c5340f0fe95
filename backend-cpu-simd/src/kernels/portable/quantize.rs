//! The quantizer, eight values at a time, under every tie mode: the fallback of the other sets for
//! ties other than to even and for other scale rules (C1, C4).
//!
//! Rounding to a code compares the bits of |q| as an integer, which orders non-negative floats as
//! their values are ordered: `bits > m` is |q| > midpoint for m its bits, and |q| >= midpoint for
//! one less. So the tie mode is in the thresholds, except that `Down` and `Up` differ by sign:
//! there one is added to or taken from the bits of negative values. The thresholds are made by
//! asking core how it rounds each midpoint.
//!
//! Worked example, ties to even: q = -0.75 is the midpoint of codes 1 and 2. Core takes code 2, so
//! that threshold is one below the bits of 0.75; the thresholds of 0.25 and 0.75 are below, the
//! code is 2 and with the sign 0xA.

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

/// Rounding to codes under one tie mode (C1).
pub(crate) struct Encoder {
    /// Bits that |q| must exceed to reach codes 1 to 7, for positive q.
    thresholds: [i32; 7],
    /// Added to the bits of negative q.
    negative: i32,
}

impl Encode for Encoder {
    const VALUE_PS: u64 = 2000;

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
        let value = |code: usize| E2m1::from_bits(code as u8).to_f32();
        let midpoint = |lower: usize| (value(lower) + value(lower + 1)) * 0.5;
        // 1 if the tie goes to the code of larger magnitude.
        let up = |lower: usize, sign: f32| {
            let code = E2m1::from_f32_tie(midpoint(lower).copysign(sign), tie).to_bits() & 7;
            i32::from(code) - lower as i32
        };
        Encoder {
            thresholds: std::array::from_fn(|i| midpoint(i).to_bits() as i32 - up(i, 1.0)),
            negative: up(0, -1.0) - up(0, 1.0),
        }
    }

    /// Encodes one group whose unit is `d` (C4.3).
    #[inline]
    fn group(&self, y: &[f32], d: f32, codes: &mut [u8]) {
        let chunks = y.as_chunks::<8>().0.iter().zip(codes.as_chunks_mut::<4>().0);
        if d == 0.0 {
            for (&y, codes) in chunks {
                *codes = pack(sign_bits(bytemuck::cast(f32x8::new(y))));
            }
        } else {
            for (&y, codes) in chunks {
                *codes = pack(self.encode(f32x8::new(y) / f32x8::splat(d)));
            }
        }
    }

    #[inline]
    fn encode(&self, q: f32x8) -> i32x8 {
        let bits: i32x8 = bytemuck::cast(q);
        let magnitude = bits & i32x8::splat(i32::MAX);
        let nan = magnitude.simd_gt(i32x8::splat(f32::INFINITY.to_bits() as i32));
        let adjusted: i32x8 = magnitude + ((bits >> 31) & i32x8::splat(self.negative));
        let mut code = i32x8::splat(0);
        for threshold in self.thresholds {
            code -= adjusted.simd_gt(i32x8::splat(threshold));
        }
        // NaN is +6 whatever its sign (C1).
        ((code | sign_bits(bits)) & !nan) | (nan & i32x8::splat(7))
    }
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
    fn rounding_equals_core_around_every_threshold() {
        let mut compared = 0;
        for tie in TieMode::ALL {
            let encoder = Encoder::new(tie);
            let mut values = vec![0.0, f32::MIN_POSITIVE, 6.0, 1e9, f32::INFINITY, f32::NAN];
            values.extend([f32::from_bits(0x7FFF_FFFF), f32::from_bits(1), f32::MAX]);
            for midpoint in [0.25f32, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0] {
                values.extend((0..9).map(|u| f32::from_bits(midpoint.to_bits() - 4 + u)));
            }
            for v in values.into_iter().flat_map(|v| [v, -v]) {
                let got = encoder.encode(f32x8::splat(v)).to_array()[3];
                let expected = E2m1::from_f32_tie(v, tie).to_bits();
                assert_eq!(got, i32::from(expected), "{v:e} {tie:?}");
                compared += 1;
            }
        }
        println!("compared {compared} codes");
        assert!(compared > 500);
    }
}
