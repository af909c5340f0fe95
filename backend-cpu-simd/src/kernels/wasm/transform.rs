//! The transform's chains with simd128, which has no fused multiply-add but a relaxed one that may
//! round twice (C5, C9).
//!
//! ```text
//! for each output, i ascending:
//!     f16     acc = acc + x * t in f32            the product is exact
//!     bf16    acc = f32(acc + x * t) in f64       the product is exact; a sum near a tie of f32 is, too
//!     f32     s = acc + x * t in f64, acc = f32(s); the product is exact
//!             doubt, if s is not exact and lies on a tie of f32, or if 0 < |s| < 2^-125
//! f32: a block with a doubt is computed again, by the portable chain
//! ```
//!
//! # Why it is exact
//!
//! f16 and bf16: see `quantize::transform`, which takes the same steps.
//!
//! f32: let v be the exact sum and s = v rounded to f64. Rounding is monotonic, and every tie
//! between two neighbours in f32 is an f64. So if v lies strictly between two consecutive ties, s
//! lies between them or on one of them; if s is on none, s rounds to f32 as v does. Where |s| >=
//! 2^-126, the ties are those f64 whose last 29 bits are 1 and 28 zeros, the one between the
//! largest f32 and 2^128 included. Below, they are others, and the block is left to the portable
//! chain. A sum of zero is exact: products and sums are multiples of 2^-298, which f64 has. A tie
//! that is exact (sums of a Hadamard matrix often are) is rounded once, to even, as v is. It is
//! exact if s - acc is the product and s - product is acc: of the two differences, the one with the
//! term of larger magnitude has no rounding (Dekker's Fast2Sum).
//!
//! Worked example: acc = 1 + 2^-23 and x * t = 2^-24 - 2^-70. In f64 the sum is the tie 1 + 3 *
//! 2^-24, a doubt; rounded again it would go to the even 1 + 2^-22, but the exact sum is below the
//! tie: 1 + 2^-23.

use std::arch::wasm32::*;

use fp4_core::FloatType;

use crate::quantize::FloatValue;

/// The chains of one block: `y[j]` = fma chain over `x[i] * columns[i * x.len() + j]`.
pub(super) fn chains<T: FloatValue>(x: &[f32], columns: &[f32], y: &mut [f32]) {
    match T::TYPE {
        FloatType::F16 => singles(x, columns, y),
        FloatType::Bf16 => {
            doubles::<false>(x, columns, y);
        }
        FloatType::F32 => {
            if doubles::<true>(x, columns, y) {
                T::chains(x, columns, y);
            }
        }
    }
}

/// Sixteen outputs at a time, with an exact product and one rounding at the sum.
fn singles(x: &[f32], columns: &[f32], y: &mut [f32]) {
    for (v, y) in y.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let mut acc = [f32x4_splat(0.0); 4];
        for (&x, row) in x.iter().zip(columns.chunks_exact(x.len())) {
            let (x, row) = (f32x4_splat(x), row.as_chunks::<16>().0[v].as_ptr().cast::<v128>());
            for (i, acc) in acc.iter_mut().enumerate() {
                // SAFETY: a quarter of 16 values.
                let t = unsafe { v128_load(row.add(i)) };
                *acc = f32x4_add(*acc, f32x4_mul(x, t));
            }
        }
        for (i, acc) in acc.into_iter().enumerate() {
            // SAFETY: a quarter of 16 values.
            unsafe { v128_store(y.as_mut_ptr().cast::<v128>().add(i), acc) };
        }
    }
}

/// Eight outputs at a time, summed in f64 and rounded to f32 at each step. True if there is a
/// doubt, which is looked for if `CHECK`.
fn doubles<const CHECK: bool>(x: &[f32], columns: &[f32], y: &mut [f32]) -> bool {
    let mut doubt = u64x2_splat(0);
    for (v, y) in y.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let mut acc = [f64x2_splat(0.0); 4];
        for (&x, row) in x.iter().zip(columns.chunks_exact(x.len())) {
            let x = f64x2_splat(f64::from(x));
            let row = row.as_chunks::<8>().0[v].as_ptr().cast::<u64>();
            for (i, acc) in acc.iter_mut().enumerate() {
                // SAFETY: two of eight values.
                let t = f64x2_promote_low_f32x4(unsafe { v128_load64_zero(row.add(i)) });
                let product = f64x2_mul(x, t);
                let sum = f64x2_add(*acc, product);
                if CHECK {
                    let last = v128_and(sum, u64x2_splat((1 << 29) - 1));
                    let tie = i64x2_eq(last, u64x2_splat(1 << 28));
                    let exact = v128_and(
                        f64x2_eq(f64x2_sub(sum, *acc), product),
                        f64x2_eq(f64x2_sub(sum, product), *acc),
                    );
                    let tie = v128_andnot(tie, exact);
                    let small = f64x2_lt(f64x2_abs(sum), f64x2_splat(SMALL));
                    let small = v128_andnot(small, f64x2_eq(sum, f64x2_splat(0.0)));
                    doubt = v128_or(doubt, v128_or(tie, small));
                }
                *acc = f64x2_promote_low_f32x4(f32x4_demote_f64x2_zero(sum));
            }
        }
        for (i, acc) in acc.into_iter().enumerate() {
            let two = f32x4_demote_f64x2_zero(acc);
            // SAFETY: two of eight values.
            unsafe { v128_store64_lane::<0>(two, y.as_mut_ptr().cast::<u64>().add(i)) };
        }
    }
    v128_any_true(doubt)
}

/// Sums below this may be subnormal in f32.
const SMALL: f64 = 2.0 * f32::MIN_POSITIVE as f64;

#[cfg(test)]
mod tests {
    use fp4_core::fma;

    use super::*;

    /// The chain acc * 1 + x * t, in a block of 16 with zeros, by core's fused operation; whether
    /// `chains` gives the same; whether there was a doubt; and whether it was one: the sum in f64
    /// is another.
    fn check([x, t, acc]: [f32; 3]) -> (bool, bool) {
        let (mut xs, mut columns) = ([0f32; 16], [0f32; 256]);
        (xs[0], xs[1]) = (1.0, x);
        columns[..16].fill(acc);
        columns[16..32].fill(t);
        let (mut got, mut unchecked) = ([0f32; 16], [0f32; 16]);
        let doubt = doubles::<true>(&xs, &columns, &mut unchecked);
        chains::<f32>(&xs, &columns, &mut got);
        let terms = xs.iter().zip(columns.chunks(16));
        let expected = terms.fold(0f32, |sum, (&x, row)| fma(x, row[0], sum));
        let same = |a: f32| a.to_bits() == expected.to_bits() || a.is_nan() && expected.is_nan();
        for got in got {
            assert!(same(got), "{x:e} * {t:e} + {acc:e}: {got:e}, expected {expected:e}");
        }
        (doubt, !same(unchecked[0]))
    }

    #[test]
    fn sums_near_ties_are_rounded_once() {
        let ulps = |x: f32, ulps: i32| f32::from_bits(x.to_bits().wrapping_add_signed(ulps));
        let (mut cases, tiny) = (Vec::new(), f32::from_bits(1));
        cases.extend([
            [f32::MAX, 1.0, 2f32.powi(103)],
            [f32::MAX, 1.0, ulps(2f32.powi(103), -1)],
            [f32::INFINITY, 1.0, f32::NEG_INFINITY],
            [f32::INFINITY, 0.0, 1.0],
            [tiny, 0.5, tiny],
            [tiny, tiny, f32::from_bits(3)],
            [1.0, -1.0, 1.0],
            [0x1A00_0001, 0x19FF_FFFE, 0x0040_0001].map(f32::from_bits),
        ]);
        // Products of about half a unit in the last place of acc.
        let all = [1f32, 1.25, 1.75, 3.0, 1e-20, 1e30, f32::MIN_POSITIVE, 1e-36, 1e-39];
        for acc in all.into_iter().flat_map(|a| [-1, 0, 1, 2].map(|u| ulps(a, u))) {
            let half = (f64::from(ulps(acc, 1)) - f64::from(acc)) / 2.0;
            for near_one in (12..24).flat_map(|k| [1.0, 3.0].map(|c| c * 2f32.powi(-k))) {
                let x = 1.0 + near_one;
                for t in [1.0 - near_one, 1.0 + near_one, 1.0] {
                    let (x, t) = (x * 4.0, (f64::from(t) * half / 4.0) as f32);
                    cases.extend([[x, t, acc], [-x, t, acc], [x, t, -acc], [-x, t, -acc]]);
                }
            }
        }
        let checked: Vec<_> = cases.iter().map(|&case| check(case)).collect();
        let doubts = checked.iter().filter(|(doubt, _)| *doubt).count();
        let wrong = checked.iter().filter(|(_, wrong)| *wrong).count();
        println!("compared {} sums, {doubts} doubts, {wrong} of them justified", cases.len());
        assert!(wrong > 100 && doubts > wrong && doubts < cases.len());
        assert!(checked.iter().all(|(doubt, wrong)| *doubt || !wrong));
    }
}
