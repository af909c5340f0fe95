//! The quantizer with simd128: sixteen values at a time, ties to even (C1, C4).
//!
//! ```text
//! amax    the largest |x| as an integer: the bits of non-negative floats order as their values,
//!         and a NaN's are above those of infinity
//! scale   core's rule, once a group
//! q       x / d, one IEEE division
//! code    of a = min(|q|, 6), NaN included, e = the exponent of max(a, 1), 0 to 2:
//!         sum = a + 2^(e + 22) + 6 * 2^(e - 1), whose unit is 2^(e - 1)
//!         code = the low bits of bits + (bits >> 22), where bits are those of the sum
//! ```
//!
//! The sum is below 2^(e + 23), so it is rounded to the distance of codes in the binade of a, which
//! below 1 is that of [1, 2). Its last bits are n + 6, where n is the nearest even of a / 2^(e -
//! 1); a code is even where n is, so ties agree. The code is n + 2 * e; and bits >> 22 is 2 * (e +
//! 149), so the two add up to n + 2 * e + 304, and 304 is a multiple of 16.
//!
//! Worked example: 3.5 is between codes 5 and 6, and e = 1. The unit of 2^23 + 6 + 3.5 is 1; the
//! nearest even is 2^23 + 10, so n = 4 and the code is 4 + 2 * 1 = 6, the even one.

use std::arch::wasm32::*;

use fp4_core::QuantSpec;

use super::{WasmSimd128, transform};
use crate::counts::Groups;
use crate::quantize::{Encode, FloatValue, int8};

impl Encode for WasmSimd128 {
    fn run(
        &self,
        y: &[f32],
        spec: &QuantSpec,
        given: bool,
        scales: &mut [u8],
        codes: &mut [u8],
        known: &mut Groups,
    ) {
        let group = spec.group().get();
        let groups = y.chunks_exact(group).zip(codes.chunks_exact_mut(group / 2));
        for ((y, scale), known) in
            y.chunks_exact(group).zip(scales.iter_mut()).zip(&mut known.largest)
        {
            *known = f32::from_bits(largest(y));
            if !given {
                *scale = spec.encode_scale(*known);
            }
        }
        for (((y, codes), &scale), unit) in groups.zip(&*scales).zip(&mut known.units) {
            let (y, codes) = (y.as_chunks::<16>().0, codes.as_chunks_mut::<8>().0);
            let d = spec.unit(scale);
            *unit = d;
            let dd = f32x4_splat(d);
            for (y, codes) in y.iter().zip(codes) {
                let y = load(y);
                *codes =
                    pack(if d == 0.0 { y.map(sign) } else { y.map(|y| encode(f32x4_div(y, dd))) });
            }
        }
        known.look(y.len() / group);
    }

    fn largest(&self, y: &[f32]) -> u32 {
        largest(y)
    }

    fn run_int8(&self, y: &[f32], scales: &mut [u8], elements: &mut [u8]) -> bool {
        int8::run(y, scales, elements)
    }

    fn chains<T: FloatValue>(&self, block: usize, x: &[f32], columns: &[f32], y: &mut [f32]) {
        let blocks = x.chunks_exact(block).zip(y.chunks_exact_mut(block));
        blocks.for_each(|(x, y)| transform::chains::<T>(x, columns, y));
        y.iter_mut().for_each(|y| *y = T::from_f32(*y).to_f32());
    }
}

/// Sixteen values.
#[inline(always)]
fn load(x: &[f32; 16]) -> [v128; 4] {
    let x: *const v128 = x.as_ptr().cast();
    // SAFETY: each is 16 readable bytes of the 64.
    unsafe { [v128_load(x), v128_load(x.add(1)), v128_load(x.add(2)), v128_load(x.add(3))] }
}

/// The bits of the largest magnitude of a group, a NaN's if there is one (C4.1).
#[inline(always)]
fn largest(y: &[f32]) -> u32 {
    let mut largest = [u32x4_splat(0); 4];
    for y in y.as_chunks::<16>().0 {
        for (largest, y) in largest.iter_mut().zip(load(y)) {
            *largest = u32x4_max(*largest, f32x4_abs(y));
        }
    }
    let [e, f, g, h] = largest;
    let all = u32x4_max(u32x4_max(e, f), u32x4_max(g, h));
    let two = u32x4_max(all, i32x4_shuffle::<2, 3, 0, 1>(all, all));
    u32x4_extract_lane::<0>(two).max(u32x4_extract_lane::<1>(two))
}

/// The sign of each value as bit 3 of a code.
#[inline(always)]
fn sign(bits: v128) -> v128 {
    v128_and(u32x4_shr(bits, 28), u32x4_splat(8))
}

/// The code of each value.
#[inline(always)]
fn encode(q: v128) -> v128 {
    // The second where it is less than the first, which a NaN is not.
    let a = f32x4_pmin(f32x4_splat(6.0), f32x4_abs(q));
    let exponent = v128_and(a, f32x4_splat(f32::INFINITY));
    // As integers: the bits of non-negative floats.
    let binade = i32x4_max(exponent, f32x4_splat(1.0));
    let sum = f32x4_add(a, i32x4_add(binade, i32x4_splat((22 << 23) + 6)));
    let magnitude = i32x4_add(sum, u32x4_shr(sum, 22));
    // NaN is +6 whatever its sign (C1).
    let number = v128_and(q, f32x4_eq(q, q));
    v128_bitselect(magnitude, u32x4_shr(number, 28), i32x4_splat(7))
}

/// Packs sixteen codes, low nibble first (C3).
#[inline(always)]
fn pack([e, f, g, h]: [v128; 4]) -> [u8; 8] {
    let bytes = u8x16_narrow_i16x8(i16x8_narrow_i32x4(e, f), i16x8_narrow_i32x4(g, h));
    let pairs = v128_and(v128_or(bytes, u16x8_shr(bytes, 4)), u16x8_splat(0xFF));
    u64x2_extract_lane::<0>(u8x16_narrow_i16x8(pairs, pairs)).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use fp4_core::E2m1;

    use super::*;

    #[test]
    fn vectors_of_codes_are_cores_codes_each_in_its_place() {
        // Every exponent, with mantissas around each place where rounding can turn.
        let mantissas =
            (0..16u32).flat_map(|step| [0, 1, 2, 0x3_FFFF, 0x7_FFFF].map(|m| step << 19 | m));
        let bits = mantissas.flat_map(|m| (0..256u32).map(move |e| e << 23 | m));
        let values: Vec<f32> = bits.flat_map(|m| [m, m | 1 << 31]).map(f32::from_bits).collect();
        let mut compared = 0;
        for q in values.as_chunks::<16>().0 {
            let expected = q.map(|q| E2m1::from_f32(q).to_bits());
            let expected: [u8; 8] =
                std::array::from_fn(|i| expected[2 * i] | expected[2 * i + 1] << 4);
            assert_eq!(pack(load(q).map(encode)), expected, "{q:?}");
            compared += q.len();
        }
        println!("compared {compared} codes");
        assert_eq!(compared, 2 * 256 * 80);
    }
}
