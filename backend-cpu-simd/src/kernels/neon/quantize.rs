//! The quantizer on NEON: sixteen values at a time, ties to even (C1, C4, C5).
//!
//! ```text
//! amax    the largest |x| as an integer: the bits of non-negative floats order as their values,
//!         and a NaN's are above those of infinity
//! scale   core's rule, once a group
//! q       x / d, one IEEE division
//! code    of a = min(|q|, 6), NaN included:
//!         a < 1    the last bits of a + 2^22, whose unit is 1/2: nearest even of 2a, in 0..=2
//!         a >= 1   a's bits rounded to one bit of mantissa, ties to even, then moved so that 1 is code 2:
//!                  (bits + 0x1FFFFF + (bits >> 22 & 1) - (252 << 22)) >> 22
//! ```
//!
//! Worked example: 5 is 0x40A00000, between codes 6 and 7. Bit 22 is 0, so 0x1FFFFF is added, which
//! does not carry into bit 22: 0x40BFFFFF >> 22 = 258, less 252 is code 6, the even one.
//!
//! The transform's chains are real fused multiply-adds, up to 32 outputs at a time.

use std::arch::aarch64::*;

use fp4_core::QuantSpec;

use super::{Neon, NeonDotprod, NeonI8mm};
use crate::counts::Groups;
use crate::quantize::{Encode, FloatValue, int8};

/// Ties to even: the same at every level.
macro_rules! encode {
    ($($level:ty),*) => {
        $(
            impl Encode for $level {
                fn run(
                    &self,
                    y: &[f32],
                    spec: &QuantSpec,
                    given: bool,
                    scales: &mut [u8],
                    codes: &mut [u8],
                    groups: &mut Groups,
                ) {
                    // SAFETY: the token proves NEON.
                    unsafe { run(y, spec, given, scales, codes, groups) }
                }

                fn largest(&self, y: &[f32]) -> u32 {
                    // SAFETY: the token proves NEON.
                    unsafe { largest(y) }
                }

                fn run_int8(
                    &self,
                    y: &[f32],
                    scales: &mut [u8],
                    elements: &mut [u8],
                ) -> bool {
                    int8::run(y, scales, elements)
                }

                fn chains<T: FloatValue>(&self, x: &[f32], columns: &[f32], y: &mut [f32]) {
                    // SAFETY: the token proves NEON.
                    unsafe { chains(x, columns, y) }
                    y.iter_mut().for_each(|y| *y = T::from_f32(*y).to_f32());
                }
            }
        )*
    };
}

encode!(Neon, NeonDotprod, NeonI8mm);

/// Sixteen values.
#[inline]
#[target_feature(enable = "neon")]
fn load(x: &[f32; 16]) -> [float32x4_t; 4] {
    // SAFETY: each is 16 readable bytes of the 64.
    unsafe {
        let x = x.as_ptr();
        [vld1q_f32(x), vld1q_f32(x.add(4)), vld1q_f32(x.add(8)), vld1q_f32(x.add(12))]
    }
}

/// The bits of the largest magnitude of whole groups, a NaN's if there is one.
#[target_feature(enable = "neon")]
fn largest(y: &[f32]) -> u32 {
    // Four chains, because a maximum waits for the one before.
    let mut all = [vdupq_n_u32(0); 4];
    for y in y.as_chunks::<16>().0 {
        for (all, y) in all.iter_mut().zip(load(y)) {
            *all = vmaxq_u32(*all, vreinterpretq_u32_f32(vabsq_f32(y)));
        }
    }
    let [a, b, c, d] = all;
    vmaxvq_u32(vmaxq_u32(vmaxq_u32(a, b), vmaxq_u32(c, d)))
}

#[target_feature(enable = "neon")]
fn run(
    y: &[f32],
    spec: &QuantSpec,
    given: bool,
    scales: &mut [u8],
    codes: &mut [u8],
    known: &mut Groups,
) {
    let group = spec.group().get();
    // All scales of the run first: one group's wait is filled by the others.
    for ((y, scale), known) in y.chunks_exact(group).zip(scales.iter_mut()).zip(&mut known.largest)
    {
        let mut largest = vdupq_n_u32(0);
        for y in y.as_chunks::<16>().0 {
            for y in load(y) {
                largest = vmaxq_u32(largest, vreinterpretq_u32_f32(vabsq_f32(y)));
            }
        }
        *known = f32::from_bits(vmaxvq_u32(largest));
        if !given {
            *scale = spec.encode_scale(*known);
        }
    }
    let groups = y.chunks_exact(group).zip(codes.chunks_exact_mut(group / 2));
    for (((y, codes), scale), unit) in groups.zip(scales).zip(&mut known.units) {
        let (y, codes) = (y.as_chunks::<16>().0, codes.as_chunks_mut::<8>().0);
        let d = spec.unit(*scale);
        *unit = d;
        let dd = vdupq_n_f32(d);
        for (y, codes) in y.iter().zip(codes) {
            let [e, f, g, h] = load(y);
            *codes = if d == 0.0 {
                pack([sign(e), sign(f), sign(g), sign(h)])
            } else {
                pack([
                    encode(vdivq_f32(e, dd)),
                    encode(vdivq_f32(f, dd)),
                    encode(vdivq_f32(g, dd)),
                    encode(vdivq_f32(h, dd)),
                ])
            };
        }
    }
    known.look(y.len() / group);
}

/// The sign of each value as bit 3 of a code.
#[inline]
#[target_feature(enable = "neon")]
fn sign(x: float32x4_t) -> uint32x4_t {
    vandq_u32(vshrq_n_u32::<28>(vreinterpretq_u32_f32(x)), vdupq_n_u32(8))
}

#[inline]
#[target_feature(enable = "neon")]
fn encode(q: float32x4_t) -> uint32x4_t {
    // The number, if the other is a NaN; a quotient's NaN is quiet.
    let a = vminnmq_f32(vabsq_f32(q), vdupq_n_f32(6.0));
    let unit = vdupq_n_f32(4_194_304.0);
    let halves = vreinterpretq_u32_f32(vaddq_f32(a, unit));
    let small = vsubq_u32(halves, vreinterpretq_u32_f32(unit));
    let bits = vreinterpretq_u32_f32(a);
    let odd = vandq_u32(vshrq_n_u32::<22>(bits), vdupq_n_u32(1));
    let offset = vdupq_n_u32(0x1F_FFFFu32.wrapping_sub(252 << 22));
    let large = vshrq_n_u32::<22>(vaddq_u32(vaddq_u32(bits, odd), offset));
    let code = vbslq_u32(vcltq_f32(a, vdupq_n_f32(1.0)), small, large);
    // NaN is +6 whatever its sign (C1).
    vorrq_u32(code, vandq_u32(sign(q), vceqq_f32(q, q)))
}

/// Packs sixteen codes, low nibble first (C3).
#[inline]
#[target_feature(enable = "neon")]
fn pack([e, f, g, h]: [uint32x4_t; 4]) -> [u8; 8] {
    let low = vcombine_u16(vmovn_u32(e), vmovn_u32(f));
    let high = vcombine_u16(vmovn_u32(g), vmovn_u32(h));
    // A pair of codes is two 16-bit lanes.
    let (even, odd) = (vuzp1q_u16(low, high), vuzp2q_u16(low, high));
    let bytes = vmovn_u16(vorrq_u16(even, vshlq_n_u16::<4>(odd)));
    vget_lane_u64::<0>(vreinterpret_u64_u8(bytes)).to_le_bytes()
}

/// The chains of one block: `y[j]` = fma chain over `x[i] * columns[i * x.len() + j]`.
#[target_feature(enable = "neon")]
fn chains(x: &[f32], columns: &[f32], y: &mut [f32]) {
    if x.len() == 16 {
        outputs::<1>(x, columns, 0, y);
    } else {
        (0..x.len()).step_by(32).for_each(|first| outputs::<2>(x, columns, first, y));
    }
}

/// The outputs `first..first + 16 * V` of a block.
#[inline]
#[target_feature(enable = "neon")]
fn outputs<const V: usize>(x: &[f32], columns: &[f32], first: usize, y: &mut [f32]) {
    let mut acc = [[vdupq_n_f32(0.0); 4]; V];
    for (&x, row) in x.iter().zip(columns.chunks_exact(x.len())) {
        let x = vdupq_n_f32(x);
        for (acc, t) in acc.iter_mut().zip(row[first..].as_chunks::<16>().0) {
            for (acc, t) in acc.iter_mut().zip(load(t)) {
                *acc = vfmaq_f32(*acc, x, t);
            }
        }
    }
    for (y, acc) in y[first..].as_chunks_mut::<4>().0.iter_mut().zip(acc.as_flattened()) {
        // SAFETY: 16 writable bytes.
        unsafe { vst1q_f32(y.as_mut_ptr(), *acc) };
    }
}
