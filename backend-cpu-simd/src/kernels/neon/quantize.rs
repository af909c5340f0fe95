//! The quantizer on NEON: sixteen values at a time, ties to even (C1, C4, C5).
//!
//! ```text
//! amax    the largest |x| as an integer: the bits of non-negative floats order as their values,
//!         and a NaN's are above those of infinity
//! scale   core's rule, once a group
//! code    by the reciprocal of the group's unit ([`reciprocal`]), where the proof is; a cell's code
//!         is in a table of two registers
//! ```
//!
//! A group that has no reciprocal is divided: [`encode`] of q = x / d,
//!
//! ```text
//! of a = min(|q|, 6), NaN included:
//!         a < 1    the last bits of a + 2^22, whose unit is 1/2: nearest even of 2a, in 0..=2
//!         a >= 1   a's bits rounded to one bit of mantissa, ties to even, then moved so that 1 is code 2:
//!                  (bits + 0x1FFFFF + (bits >> 22 & 1) - (252 << 22)) >> 22
//! ```
//!
//! Worked example: 5 is 0x40A00000, between codes 6 and 7. Bit 22 is 0, so 0x1FFFFF is added, which
//! does not carry into bit 22: 0x40BFFFFF >> 22 = 258, less 252 is code 6, the even one.
//!
//! [`reciprocal`]: crate::quantize::reciprocal
//!
//! The transform's chains are real fused multiply-adds, sixteen outputs of four blocks at a time.

use std::arch::aarch64::*;

use fp4_core::QuantSpec;

use super::{Neon, NeonDotprod, NeonI8mm};
use crate::counts::Groups;
use crate::quantize::reciprocal::{
    CELL_LESS_ONE, CELL_SHIFT, CODES, FIRST, LAST_CELL, THIRD_ULP, reciprocal,
};
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

                fn chains<T: FloatValue>(
                    &self,
                    block: usize,
                    x: &[f32],
                    columns: &[f32],
                    y: &mut [f32],
                ) {
                    // SAFETY: the token proves NEON.
                    unsafe { chains(block, x, columns, y) }
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
    let known_groups = known.largest.iter().zip(&mut known.units);
    for (((y, codes), scale), (&largest, unit)) in groups.zip(scales).zip(known_groups) {
        let (y, codes) = (y.as_chunks::<16>().0, codes.as_chunks_mut::<8>().0);
        *unit = spec.unit(*scale);
        match reciprocal(*unit, largest) {
            Some(parts) => y.iter().zip(codes).for_each(|(y, to)| *to = multiplied(y, parts)),
            None => y.iter().zip(codes).for_each(|(y, to)| *to = divided(y, *unit)),
        }
    }
    known.look(y.len() / group);
}

/// The codes of sixteen values by the two parts of their group's reciprocal.
#[inline]
#[target_feature(enable = "neon")]
fn multiplied(y: &[f32; 16], [high, low]: [f32; 2]) -> [u8; 8] {
    let [e, f, g, h] = load(y).map(|y| {
        let q = vfmaq_n_f32(vmulq_n_f32(y, low), y, high);
        let to_even = vfmaq_n_f32(q, q, THIRD_ULP);
        let bits = vaddq_s32(vreinterpretq_s32_f32(to_even), vdupq_n_s32(CELL_LESS_ONE));
        vreinterpretq_u16_s32(bits)
    });
    // The upper halves.
    let words = [vuzp2q_u16(e, f), vuzp2q_u16(g, h)];
    let [low, high] = words.map(|words| {
        let from_first = vqsubq_u16(vshlq_n_u16::<1>(words), vdupq_n_u16(FIRST as u16));
        vqshrn_n_u16::<{ CELL_SHIFT as i32 }>(from_first)
    });
    let cells = vminq_u8(vcombine_u8(low, high), vdupq_n_u8(LAST_CELL));
    // SAFETY: 32 readable bytes.
    let table = unsafe {
        let at = CODES.as_ptr();
        uint8x16x2_t(vld1q_u8(at), vld1q_u8(at.add(16)))
    };
    let magnitude = vqtbl2q_u8(table, cells);
    let upper = vuzp2q_u8(vreinterpretq_u8_u16(words[0]), vreinterpretq_u8_u16(words[1]));
    let sign = vandq_u8(vshrq_n_u8::<4>(upper), vdupq_n_u8(8));
    let single = vreinterpretq_u16_u8(vorrq_u8(magnitude, sign));
    // The second of a pair beside the first, low nibble first (C3).
    let bytes = vmovn_u16(vsraq_n_u16::<4>(single, single));
    vget_lane_u64::<0>(vreinterpret_u64_u8(bytes)).to_le_bytes()
}

/// The codes of sixteen values by their quotients, or zeros with their signs if d is 0 (C4.3).
#[cold]
#[target_feature(enable = "neon")]
fn divided(y: &[f32; 16], d: f32) -> [u8; 8] {
    let dd = vdupq_n_f32(d);
    pack(load(y).map(|y| if d == 0.0 { sign(y) } else { encode(vdivq_f32(y, dd)) }))
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

/// The chains of whole blocks: in each, `y[j]` = fma chain over `x[i] * columns[i * block + j]`.
#[target_feature(enable = "neon")]
fn chains(block: usize, x: &[f32], columns: &[f32], y: &mut [f32]) {
    let fours = 4 * block * (x.len() / (4 * block));
    let ((four, one), (y_four, y_one)) = (x.split_at(fours), y.split_at_mut(fours));
    for first in (0..block).step_by(16) {
        let blocks = four.chunks_exact(4 * block).zip(y_four.chunks_exact_mut(4 * block));
        blocks.for_each(|(x, y)| outputs::<4>(block, x, columns, first, y));
        let blocks = one.chunks_exact(block).zip(y_one.chunks_exact_mut(block));
        blocks.for_each(|(x, y)| outputs::<1>(block, x, columns, first, y));
    }
}

/// The outputs `first..first + 16` of R blocks.
#[inline]
#[target_feature(enable = "neon")]
fn outputs<const R: usize>(block: usize, x: &[f32], columns: &[f32], first: usize, y: &mut [f32]) {
    let mut acc = [[vdupq_n_f32(0.0); 4]; R];
    let x: [&[f32]; R] = std::array::from_fn(|r| &x[r * block..(r + 1) * block]);
    for (i, row) in columns.chunks_exact(block).enumerate() {
        let t = load(&row[first..].as_chunks::<16>().0[0]);
        for (acc, x) in acc.iter_mut().zip(x) {
            for (acc, &t) in acc.iter_mut().zip(&t) {
                *acc = vfmaq_n_f32(*acc, t, x[i]);
            }
        }
    }
    for (y, acc) in y.chunks_exact_mut(block).zip(acc) {
        for (y, acc) in y[first..].as_chunks_mut::<4>().0.iter_mut().zip(acc) {
            // SAFETY: 16 writable bytes.
            unsafe { vst1q_f32(y.as_mut_ptr(), acc) };
        }
    }
}
