//! The block transform in front of the quantizer, eight outputs at a time (C5).
//!
//! ```text
//! columns[i][j] = T[j][i], rounded once to x's type          once per call
//! for each vector of outputs j:
//!     acc = +0
//!     for i ascending: acc = fma(x[i], columns[i][j], acc)   in f32
//!     y[j] = acc rounded to x's type, NaN canonical
//! ```
//!
//! The order of each output's chain is the contract's; only different outputs share a vector.
//!
//! # Why a Hadamard matrix gets no fast transform
//!
//! A butterfly of log2(Bt) levels adds pairs, then pairs of sums: it rounds other partial sums than
//! the chain does, which goes from left to right and rounds at every i, so the last bits differ. C5
//! fixes the chain because T may be any matrix. What chains do have in common is their beginnings:
//! rows of a Hadamard matrix of size Bt whose first p entries agree have the same sums up to there,
//! and of its rows only p differ in the first p entries. That is a third of all steps at most, and
//! it is not made use of.
//!
//! So the chains are made fast as they are: an FMA has a latency of four cycles and two start in
//! one, so that eight chains or more must be under way ([`Encode::chains`] takes several blocks),
//! and a vector of T is loaded once for several blocks.
//!
//! # How to be fused without an FMA unit
//!
//! `wide`'s `mul_add` is fused only where the build enables FMA ([`FUSED`]). Elsewhere each input
//! type takes the cheapest chain that gives the same bits:
//!
//! - f16: a product has at most 22 significant bits and an exponent in -48..=31, so f32 holds it
//!   exactly, and a separate multiply and add rounds once, at the add.
//! - bf16: f64 holds the product (16 bits). The sum is rounded to f64 and then to f32, which could
//!   go wrong only if the first rounding made a tie of two f32 that was none. A sum close to a tie,
//!   whichever of the addends (16 and 24 bits) is the larger, needs at most 50 bits, so f64 holds
//!   it exactly.
//! - f32: f64 holds the product (48 bits), not the sum. The sum is *rounded to odd*: if it is
//!   inexact, the neighbour with the odd significand is taken, which the error of the addition
//!   (Knuth's two-sum, exact) tells. A value rounded to odd with two extra bits or more rounds to
//!   the same f32 as the exact one (Boldo and Melquiond, "Emulation of FMA and correctly rounded
//!   sums", 2008), subnormals and overflow included; here there are 29 extra bits.
//!
//! Worked example of the last: acc = 1 + 2^-23, x * t = 2^-24 - 2^-70. The exact sum is below the
//! tie 1 + 1.5 * 2^-23, so fma gives 1 + 2^-23. In f64 the sum rounds to the tie itself, with an
//! even significand and error -2^-70; a second rounding would go to even, 1 + 2^-22. To odd it
//! becomes the tie less 2^-52, which rounds down as it should.

use fp4_core::{Float, FloatType, Transform, TransformShape, with_floats};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use wide::{bytemuck, f32x8, f64x8, u64x8};

use super::Encode;

/// True if `f32x8::mul_add` rounds once in this build.
const FUSED: bool =
    cfg!(any(target_feature = "fma", all(target_arch = "aarch64", target_feature = "neon")));

/// Outputs of one chain.
const LANES: usize = 8;

/// An input type with its widening and its exact chain step.
pub(crate) trait FloatValue: Float {
    /// The values widened: themselves, or written to the first of `to`.
    fn widened<'a>(from: &'a [Self], to: &'a mut [f32]) -> &'a [f32];

    /// The chains of one block: `y[j]` = fma chain over `x[i] * columns[i * x.len() + j]`.
    fn chains(x: &[f32], columns: &[f32], y: &mut [f32]);

    /// The values as f32, if that is their type.
    fn as_f32(_values: &mut [Self]) -> Option<&mut [f32]> {
        None
    }

    /// Rounds each value as [`Float::from_f32`].
    #[cfg_attr(
        not(any(
            target_arch = "x86_64",
            target_arch = "aarch64",
            all(target_arch = "wasm32", target_feature = "simd128")
        )),
        allow(dead_code, reason = "no kernels plug into the tiles")
    )]
    fn narrow(from: &[f32; 16], to: &mut [Self; 16]);
}

impl FloatValue for f32 {
    fn widened<'a>(from: &'a [Self], _to: &'a mut [f32]) -> &'a [f32] {
        from
    }

    fn chains(x: &[f32], columns: &[f32], y: &mut [f32]) {
        if FUSED {
            chains::<f32x8>(x, columns, y, f32x8::mul_add);
        } else {
            chains::<f64x8>(x, columns, y, |x, t, acc| to_f32_precision(add_to_odd(x * t, acc)));
        }
    }

    fn as_f32(values: &mut [Self]) -> Option<&mut [f32]> {
        Some(values)
    }

    #[inline(always)]
    fn narrow(from: &[f32; 16], to: &mut [Self; 16]) {
        *to = from.map(Float::from_f32);
    }
}

impl FloatValue for f16 {
    fn widened<'a>(from: &'a [Self], to: &'a mut [f32]) -> &'a [f32] {
        let to = &mut to[..from.len()];
        from.convert_to_f32_slice(to);
        to
    }

    fn chains(x: &[f32], columns: &[f32], y: &mut [f32]) {
        chains::<f32x8>(x, columns, y, |x, t, acc| x * t + acc);
    }

    #[inline(always)]
    fn narrow(from: &[f32; 16], to: &mut [Self; 16]) {
        to.convert_from_f32_slice(from);
        if from.iter().any(|x| x.is_nan()) {
            *to = from.map(Float::from_f32);
        }
    }
}

impl FloatValue for bf16 {
    fn widened<'a>(from: &'a [Self], to: &'a mut [f32]) -> &'a [f32] {
        let to = &mut to[..from.len()];
        from.convert_to_f32_slice(to);
        to
    }

    fn chains(x: &[f32], columns: &[f32], y: &mut [f32]) {
        if FUSED {
            chains::<f32x8>(x, columns, y, f32x8::mul_add);
        } else {
            chains::<f64x8>(x, columns, y, |x, t, acc| to_f32_precision(x * t + acc));
        }
    }

    #[inline(always)]
    fn narrow(from: &[f32; 16], to: &mut [Self; 16]) {
        *to = from.map(Float::from_f32);
    }
}

/// Eight values of a chain, in f32 or wider.
trait Lanes: Copy {
    fn from_f32s(values: [f32; LANES]) -> Self;
    /// The values, which are f32 values.
    fn to_f32s(self) -> [f32; LANES];
}

impl Lanes for f32x8 {
    #[inline(always)]
    fn from_f32s(values: [f32; LANES]) -> Self {
        f32x8::new(values)
    }

    #[inline(always)]
    fn to_f32s(self) -> [f32; LANES] {
        self.to_array()
    }
}

impl Lanes for f64x8 {
    #[inline(always)]
    fn from_f32s(values: [f32; LANES]) -> Self {
        f64x8::new(values.map(f64::from))
    }

    #[inline(always)]
    fn to_f32s(self) -> [f32; LANES] {
        self.to_array().map(|v| v as f32)
    }
}

/// The chains of one block with the given step.
#[inline(always)]
fn chains<L: Lanes>(x: &[f32], columns: &[f32], y: &mut [f32], step: impl Fn(L, L, L) -> L) {
    let block = x.len();
    for (v, y) in y.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let mut acc = L::from_f32s([0.0; LANES]);
        for (&x, row) in x.iter().zip(columns.chunks_exact(block)) {
            let t = row.as_chunks::<LANES>().0[v];
            acc = step(L::from_f32s([x; LANES]), L::from_f32s(t), acc);
        }
        *y = acc.to_f32s();
    }
}

/// Rounds each value once to f32.
#[inline(always)]
fn to_f32_precision(v: f64x8) -> f64x8 {
    f64x8::from_f32s(v.to_f32s())
}

/// a + b rounded to odd: exact, or else the neighbour whose significand is odd.
#[inline(always)]
fn add_to_odd(a: f64x8, b: f64x8) -> f64x8 {
    let sum = a + b;
    // Two-sum: the exact error, NaN if the sum is not finite.
    let b_part = sum - a;
    let a_part = sum - b_part;
    let error = (a - a_part) + (b - b_part);
    let bits: u64x8 = bytemuck::cast(sum);
    let error_bits: u64x8 = bytemuck::cast(error);
    let one = u64x8::splat(1);
    // Away from zero if the error has the sum's sign, else towards zero.
    let opposite = (bits ^ error_bits) >> 63;
    let towards = one - (opposite + opposite);
    let even = (bits & one) - one; // all ones if even
    let inexact: u64x8 = bytemuck::cast(error.abs().simd_gt(f64x8::splat(0.0)));
    bytemuck::cast(bits + (towards & even & inexact))
}

/// A transform made ready: transposed, and rounded to x's type.
#[derive(Debug, Clone)]
pub(crate) struct TransformColumns {
    shape: TransformShape,
    columns: Vec<f32>,
}

impl TransformColumns {
    /// Transposes the transform, and rounds it for inputs of type `x`.
    pub(crate) fn new(t: &Transform<'_>, x: FloatType) -> Self {
        let round: fn(f32) -> f32 = match x {
            FloatType::F32 => |t| t,
            FloatType::F16 => |t| <f16 as Float>::from_f32(t).to_f32(),
            FloatType::Bf16 => |t| <bf16 as Float>::from_f32(t).to_f32(),
        };
        let block = t.block();
        let mut columns = vec![0.0; t.values().len()];
        with_floats!(FloatSlice, t.values(), values => {
            let size = block * block;
            for (to, from) in columns.chunks_exact_mut(size).zip(values.chunks_exact(size)) {
                for (j, row) in from.chunks_exact(block).enumerate() {
                    for (i, &t) in row.iter().enumerate() {
                        to[i * block + j] = round(Float::to_f32(t));
                    }
                }
            }
        });
        TransformColumns { shape: TransformShape { float_type: x, ..t.shape() }, columns }
    }

    /// The transform's shape; its type is that of the inputs.
    pub(crate) fn shape(&self) -> TransformShape {
        self.shape
    }

    /// Rows and columns of a block.
    pub(super) fn block(&self) -> usize {
        self.shape.block.get()
    }

    /// Transforms whole blocks, the first of which is block `first` of the whole matrix, counted
    /// along its rows.
    pub(super) fn apply<T: FloatValue>(
        &self,
        encoder: &impl Encode,
        first: usize,
        x: &[f32],
        y: &mut [f32],
    ) {
        let size = self.block() * self.block();
        let count = self.columns.len() / size;
        if count == 1 {
            return encoder.chains::<T>(self.block(), x, &self.columns, y);
        }
        let blocks = x.chunks_exact(self.block()).zip(y.chunks_exact_mut(self.block()));
        for (b, (x, y)) in blocks.enumerate() {
            // A transform per block has K / block of them, so the count is a row's.
            let start = (first + b) % count * size;
            encoder.chains::<T>(self.block(), x, &self.columns[start..start + size], y);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lanes of x * t + acc by the odd rounding, compared with the platform's fused operation.
    fn check(cases: &[[f32; 3]]) -> usize {
        for case in cases.chunks(LANES) {
            let lane =
                |i: usize| f64x8::from_f32s(std::array::from_fn(|l| case[l % case.len()][i]));
            let got = to_f32_precision(add_to_odd(lane(0) * lane(1), lane(2))).to_f32s();
            for (&[x, t, acc], got) in case.iter().zip(got) {
                let expected = x.mul_add(t, acc);
                let same = got.to_bits() == expected.to_bits();
                assert!(
                    same || got.is_nan() && expected.is_nan(),
                    "{x:e} * {t:e} + {acc:e}: {got:e}"
                );
            }
        }
        cases.len()
    }

    fn ulps(x: f32, ulps: i32) -> f32 {
        f32::from_bits(x.to_bits().wrapping_add_signed(ulps))
    }

    #[test]
    fn rounding_to_odd_is_fused() {
        let tiny = f32::from_bits(1);
        let mut cases = vec![
            [2f32.powi(-12), 2f32.powi(-12) * (1.0 + 2f32.powi(-20)), 1.0],
            [-(2f32.powi(-12)), 2f32.powi(-12) * (1.0 + 2f32.powi(-20)), 1.0],
            [f32::INFINITY, 0.0, 1.0],
            [f32::INFINITY, 1.0, f32::NEG_INFINITY],
            [f32::MAX, f32::MAX, f32::NEG_INFINITY],
            [f32::MAX, 1.0, 2f32.powi(103)],
            [f32::MAX, 1.0, f32::from_bits((2f32.powi(103)).to_bits() - 1)],
            [tiny, 0.5, tiny],
            [tiny, -0.5, tiny],
            [tiny, tiny, f32::from_bits(3)],
            [-0.0, 1.0, 0.0],
            [1.0, -1.0, 1.0],
        ];
        // Products of about half a unit in the last place of acc: (1 + c)(1 - c) is less than
        // 1 by a part too small for f64 to hold beside acc, or of about its last bit.
        let all = [1f32, 1.25, 1.75, 3.0, 1e-20, 1e30, f32::MIN_POSITIVE, 1e-36];
        for acc in all.into_iter().flat_map(|a| [-1, 0, 1, 2].map(|u| ulps(a, u))) {
            let half = (f64::from(ulps(acc, 1)) - f64::from(acc)) / 2.0;
            for near_one in (12..24).flat_map(|k| [1.0, 3.0].map(|c| c * 2f32.powi(-k))) {
                let x = 1.0 + near_one;
                for t in [1.0 - near_one, 1.0 + near_one, 1.0] {
                    let (x, t) = (x * 4.0, (f64::from(t) * half / 4.0) as f32);
                    for (x, acc) in [(x, acc), (-x, acc), (x, -acc), (-x, -acc)] {
                        cases.push([x, t, acc]);
                    }
                }
            }
        }
        // Bit patterns with exponents close enough for ties and cancellation.
        let mut state = 1u64;
        let mut next = |span: u32| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let r = (state >> 32) as u32;
            let mantissa = if r & 0x300 == 0 { r & 3 } else { r & 0x7F_FFFF };
            let exponent = 127 - span / 2 + (r >> 9) % span;
            f32::from_bits((r & 0x8000_0000) | (exponent << 23) | mantissa)
        };
        for i in 0..400_000 {
            let span = [2, 30, 100, 252][i % 4];
            cases.push([next(span), next(span), next(span)]);
        }
        println!("compared {} sums", check(&cases));
    }
}
