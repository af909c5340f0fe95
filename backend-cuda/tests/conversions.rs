//! Conversions on the device between f32, f16 and bf16 [C9]: from every 16-bit pattern, to every
//! 16-bit pattern from the f32 on and beside its rounding boundaries, and to subnormal f32.
//!
//! Needs a device, or the stand-in of `emulator/` in `LD_LIBRARY_PATH`: feature `emulated`. All
//! 65,536 patterns of each type are checked with `FP4_CONVERSIONS=all` (a minute on the stand-in),
//! else one in 37, 1,771 of each.

#![cfg(feature = "emulated")]
#![allow(missing_docs)]

mod common;

use common::{Rng, operand, same_bits};
use fp4_backend_cuda::{Cuda, MatmulKernel};
use fp4_core::{
    Epilogue, Float, Format, Matmul, PackedMatrix, PackedShape, QuantSpec, QuantizeInput,
    Quantizer, Transform, bf16, f16, reference,
};

/// The patterns to check.
fn patterns() -> Vec<u16> {
    let step = match std::env::var("FP4_CONVERSIONS").as_deref() {
        Ok("all") => 1,
        Ok(other) => panic!("FP4_CONVERSIONS is {other:?}: expected all, or nothing"),
        Err(_) => 37,
    };
    (0..=u16::MAX).step_by(step).collect()
}

/// A 16-bit type.
trait Half: Float {
    fn of(bits: u16) -> Self;
    /// How many of its low mantissa bits an int8 element beside the whole does not show.
    const LOW: u16;
}

impl Half for f16 {
    fn of(bits: u16) -> Self {
        f16::from_bits(bits)
    }
    const LOW: u16 = 5;
}

impl Half for bf16 {
    fn of(bits: u16) -> Self {
        bf16::from_bits(bits)
    }
    const LOW: u16 = 3;
}

/// Quantizes rows of one block to MXINT8 by both; returns values compared.
fn quantized<T: Float>(cuda: &Cuda, x: &[T], transform: Option<Transform<'_>>) -> usize {
    let (rows, spec) = (x.len() / 32, QuantSpec::mxint8());
    let input = QuantizeInput::new(x, rows, 32, &spec).unwrap().with_transform(transform).unwrap();
    let (mut got, mut expected) =
        (PackedMatrix::zeros(input.shape()), PackedMatrix::zeros(input.shape()));
    cuda.quantize(&input, &mut got.view_mut()).unwrap();
    reference::quantize(&input, &mut expected.view_mut()).unwrap();
    let case = format!("{} {}", T::TYPE, transform.is_some());
    let rows_of = |of: &PackedMatrix| {
        let (codes, scales) = (of.codes().len() / rows, of.scales().len() / rows);
        (codes, scales)
    };
    let (codes, scales) = rows_of(&got);
    for row in 0..rows {
        let part = |of: &PackedMatrix| {
            let (c, s) = (&of.codes()[row * codes..], &of.scales()[row * scales..]);
            (c[..codes].to_vec(), s[..scales].to_vec())
        };
        assert_eq!(part(&got), part(&expected), "{case}: {:?}", &x[32 * row..32 * row + 2]);
    }
    rows * 32
}

/// An int8 element alone in its group shows the sign, the exponent and the highest bits of a value;
/// the rest shows as the difference from the value without it.
#[test]
fn every_16_bit_value_is_widened_as_by_the_reference() {
    fn of_type<T: Half>(cuda: &Cuda) -> usize {
        let (patterns, zero) = (patterns(), T::of(0));
        let mut alone = vec![zero; 32 * patterns.len()];
        let mut pairs = alone.clone();
        for (i, &bits) in patterns.iter().enumerate() {
            alone[32 * i] = T::of(bits);
            pairs[32 * i] = T::of(bits);
            pairs[32 * i + 1] = T::of((bits ^ 0x8000) >> T::LOW << T::LOW);
        }
        let mut sum = vec![0f32; 32 * 32];
        sum[..2].fill(1.0);
        let sum = Transform::shared(&sum[..], 32).unwrap();
        quantized(cuda, &alone, None) + quantized(cuda, &pairs, Some(sum))
    }
    let cuda = Cuda::open(0).unwrap();
    let values = of_type::<f16>(&cuda) + of_type::<bf16>(&cuda);
    println!("conversions: {values} values quantized, 0 differ");
    assert!(values >= 4 * 32 * 1771, "{values}");
}

/// The outputs are the bias, rounded: those of the type's values, and of the midpoint to the next
/// one and the f32 beside it.
#[test]
fn every_16_bit_value_is_rounded_to_as_by_the_reference() {
    fn of_type<T: Half>(cuda: &Cuda, rows: &[usize]) -> usize {
        let mut bias = Vec::new();
        for bits in patterns() {
            let [value, next] = [bits, bits.wrapping_add(1)].map(|b| T::of(b).to_f32());
            // Above the largest finite one lies infinity; its midpoint is that to 2^128 or 2^16.
            let next = if next.is_infinite() && value.is_finite() {
                let step = value - T::of(bits - 1).to_f32();
                f64::from(value) + f64::from(step)
            } else {
                f64::from(next)
            };
            let middle = ((f64::from(value) + next) / 2.0) as f32;
            let beside = [middle.to_bits().wrapping_sub(1), middle.to_bits().wrapping_add(1)];
            bias.extend([value, middle]);
            bias.extend(beside.map(f32::from_bits));
        }
        let shape = |rows| PackedShape::of(Format::MxFp4, rows, 32).unwrap();
        let b = PackedMatrix::zeros(shape(bias.len()));
        let epilogue = Epilogue::new(1.0).with_bias(Some(&bias));
        let mut compared = 0;
        for (&m, kernel) in rows.iter().zip([
            MatmulKernel::Naive,
            MatmulKernel::Decode { ranges: 1 },
            MatmulKernel::MmaFolded { ranges: 1 },
            MatmulKernel::Wgmma,
        ]) {
            let a = PackedMatrix::zeros(shape(m));
            let cuda = cuda.clone().with_matmul_kernel(kernel);
            let weight = cuda.prepare(b.view()).unwrap();
            let (mut got, mut expected) =
                (vec![T::of(7); m * bias.len()], vec![T::of(0); m * bias.len()]);
            cuda.matmul(a.view(), &weight, epilogue, T::wrap_mut(&mut got)).unwrap();
            reference::matmul(a.view(), b.view(), epilogue, T::wrap_mut(&mut expected)).unwrap();
            compared += same_bits(&got, &expected, &format!("{} {kernel:?}", T::TYPE));
        }
        compared
    }
    let cuda = Cuda::open(0).unwrap();
    let outputs = of_type::<f16>(&cuda, &[1, 1, 1, 1]) + of_type::<bf16>(&cuda, &[1, 1, 1, 1]);
    println!("conversions: {outputs} outputs rounded, 0 differ");
    assert!(outputs >= 2 * 4 * 4 * 1771, "{outputs}");
}

/// Sums that are subnormal, and products with alpha that are.
#[test]
fn subnormal_f32_outputs_equal_the_reference() {
    let (cuda, mut rng, mut subnormal) = (Cuda::open(0).unwrap(), Rng(70), 0);
    for (low, alphas) in [(40, [1.0, 0.75]), (90, [1e-20, -3e-25]), (100, [1e-38, 1e-45])] {
        // 2^(2 * low - 254) and up; alphas bring the larger ones down.
        let a = operand(&mut rng, Format::MxFp4, 9, 64, |rng| low + rng.byte() % 20);
        let b = operand(&mut rng, Format::MxFp4, 131, 64, |rng| low + rng.byte() % 30);
        for kernel in [
            MatmulKernel::Naive,
            MatmulKernel::Mma,
            MatmulKernel::Decode { ranges: 1 },
            MatmulKernel::MmaFolded { ranges: 1 },
            MatmulKernel::Wgmma,
        ] {
            let cuda = cuda.clone().with_matmul_kernel(kernel);
            let weight = cuda.prepare(b.view()).unwrap();
            for alpha in alphas {
                let (mut got, mut expected) = (vec![7f32; 9 * 131], vec![0f32; 9 * 131]);
                cuda.matmul(a.view(), &weight, alpha.into(), (&mut got[..]).into()).unwrap();
                reference::matmul(a.view(), b.view(), alpha, (&mut expected[..]).into()).unwrap();
                same_bits(&got, &expected, &format!("{kernel:?} from {low} by {alpha}"));
                subnormal += expected.iter().filter(|y| y.is_subnormal()).count();
            }
        }
    }
    println!("conversions: {subnormal} subnormal outputs, 0 differ");
    assert!(subnormal > 3000, "{subnormal}");
}
