//! The matmul kernels against the reference, bit for bit: on each bound, one past it, and around
//! [C6].
//!
//! Needs a device, or the stand-in of `emulator/` in `LD_LIBRARY_PATH`: feature `emulated`.

#![cfg(feature = "emulated")]
#![allow(missing_docs)]

mod common;

use common::{Rng, operand, same_bits};
use fp4_backend_cuda::{Cuda, MatmulKernel};
use fp4_core::backend::{Resident, Sink, Source};
use fp4_core::{
    Error, ExactSum, FixedSum, Float, FloatType, Format, Matmul, PackedMatrix, PackedShape, Paths,
    QuantSpec, QuantizeInput, Transform, hadamard, reference,
};
use half::{bf16, f16};

fn each_kernel(test: impl Fn(&Cuda, MatmulKernel)) {
    for kernel in [MatmulKernel::Mma, MatmulKernel::Naive] {
        test(&Cuda::open(0).unwrap().with_matmul_kernel(kernel), kernel);
    }
}

/// The tensor-core kernel, whatever the shape.
fn mma() -> Cuda {
    Cuda::open(0).unwrap().with_matmul_kernel(MatmulKernel::Mma)
}

fn check<T: Float>(
    cuda: &Cuda,
    a: &PackedMatrix,
    b: &PackedMatrix,
    alpha: f32,
    case: &str,
) -> Paths {
    let outputs = a.shape().rows() * b.shape().rows();
    let (mut got, mut expected) = (vec![T::from_f32(7.0); outputs], vec![T::default(); outputs]);
    let weight = cuda.prepare(b.view()).unwrap();
    let paths = cuda.matmul(a.view(), &weight, alpha.into(), T::wrap_mut(&mut got)).unwrap();
    reference::matmul(a.view(), b.view(), alpha, T::wrap_mut(&mut expected)).unwrap();
    same_bits(&got, &expected, case);
    assert_eq!(paths.narrow + paths.planes + paths.wide, outputs as u64, "{case}");
    paths
}

/// MXFP4 rows whose live exponents span exactly `spread`, extremes of every sign and code included.
fn spanning(rng: &mut Rng, rows: usize, k: usize, spread: u8) -> PackedMatrix {
    let low = 100;
    let mut m = operand(rng, Format::MxFp4, rows, k, |rng| {
        [low, low + spread, low + (rng.next() % (u64::from(spread) + 1)) as u8][rng.below(3)]
    });
    // The largest codes under the largest scale, and both ends present in every row.
    let (shape, groups) = (m.shape(), m.shape().row_groups());
    let (mut codes, mut scales) =
        std::mem::replace(&mut m, PackedMatrix::zeros(shape)).into_parts();
    for row in 0..rows {
        scales[row * groups] = low;
        scales[row * groups + groups - 1] = low + spread;
        codes[row * k / 2 + 3] = 0x17;
        let last = (row + 1) * k / 2 - 16;
        codes[last..last + 16].fill(if row % 3 == 0 { 0xFF } else { 0x77 });
    }
    PackedMatrix::new(shape, codes, scales).unwrap()
}

#[test]
fn the_fold_holds_at_a_spread_of_3_and_hands_on_at_4() {
    let cuda = mma();
    let mut rng = Rng(1);
    for (spread_a, spread_b, folds) in [(3, 3, true), (4, 3, false), (3, 4, false), (0, 0, true)] {
        let (a, b) =
            (spanning(&mut rng, 70, 2080, spread_a), spanning(&mut rng, 66, 2080, spread_b));
        let paths = check::<f32>(&cuda, &a, &b, 1.0, &format!("{spread_a} {spread_b}"));
        let expected = if folds { (70 * 66, 0, 0) } else { (0, 70 * 66, 0) };
        assert_eq!((paths.narrow, paths.planes, paths.wide), expected, "{spread_a} {spread_b}");
    }
}

#[test]
fn one_wide_row_takes_only_its_own_tile_off_the_fold() {
    let cuda = mma();
    let mut rng = Rng(2);
    let mut a = spanning(&mut rng, 130, 256, 2);
    let wide = spanning(&mut rng, 1, 256, 9);
    let (shape, (mut codes, mut scales)) = (a.shape(), a.into_parts());
    codes[100 * 128..101 * 128].copy_from_slice(wide.codes());
    scales[100 * 8..101 * 8].copy_from_slice(wide.scales());
    a = PackedMatrix::new(shape, codes, scales).unwrap();
    let b = spanning(&mut rng, 10, 256, 1);
    let paths = check::<f32>(&cuda, &a, &b, -0.5, "one wide row");
    assert_eq!((paths.narrow, paths.planes), (66 * 10, 64 * 10));
}

#[test]
fn groups_that_are_not_live_do_not_widen_a_row() {
    let cuda = mma();
    let mut rng = Rng(3);
    let a = spanning(&mut rng, 5, 160, 3);
    let (shape, (mut codes, mut scales)) = (a.shape(), a.into_parts());
    // The second group of each row: a huge scale over zeros of both signs.
    for row in 0..5 {
        codes[row * 80 + 16..row * 80 + 32].fill(0x80);
        scales[row * 5 + 1] = [0, 254, 254, 0, 200][row];
    }
    let a = PackedMatrix::new(shape, codes, scales).unwrap();
    let paths = check::<f32>(&cuda, &a, &a.clone(), 1.0, "dead groups");
    assert_eq!(paths.narrow, 25);
}

/// The largest joint spread whose int64 sums fit: floor(log2((2^63 - 1) / (4608 * groups))), where
/// groups counts the padding too.
fn joint_limit(k: usize) -> u8 {
    let groups = k.next_multiple_of(128) as u64 / 32;
    (i64::MAX as u64 / (4608 * groups)).ilog2() as u8
}

/// MXFP4 rows of the largest codes, all of one sign, all but the first group under the largest
/// scale.
fn extreme(k: usize, spread: u8) -> PackedMatrix {
    let shape = PackedShape::of(Format::MxFp4, 2, k).unwrap();
    let mut scales = vec![100 + spread; shape.scales_len()];
    for row in 0..2 {
        scales[row * shape.row_groups()] = 100;
    }
    PackedMatrix::new(shape, vec![0x77; shape.codes_len()], scales).unwrap()
}

#[test]
fn the_largest_int64_sums_fit_on_the_joint_limit() {
    // With 60 groups, one step past the limit overflows.
    let (k, limit) = (1920, joint_limit(1920));
    assert!((59 * 4608u128) << (limit + 1) > i64::MAX as u128);
    each_kernel(|cuda, kernel| {
        for (total, wide) in [(limit, 0), (limit + 1, 4)] {
            let (a, b) = (extreme(k, 17), extreme(k, total - 17));
            let case = format!("{kernel:?} {total}");
            assert_eq!(check::<f32>(cuda, &a, &b, 1.0, &case).wide, wide, "{case}");
        }
    });
}

#[test]
fn int64_sums_hold_on_the_joint_limit_and_hand_on_past_it() {
    each_kernel(|cuda, kernel| {
        let mut rng = Rng(4);
        for k in [128, 2080] {
            let limit = joint_limit(k);
            for (spread_a, spread_b, wide) in [
                (18, limit - 18, false),
                (limit - 30, 30, false),
                (18, limit - 17, true),
                (limit - 29, 30, true),
            ] {
                let case = format!("{kernel:?} K {k}: {spread_a} + {spread_b} of {limit}");
                let a = spanning(&mut rng, 5, k, spread_a);
                let b = spanning(&mut rng, 3, k, spread_b);
                let paths = check::<f32>(cuda, &a, &b, 1.0, &case);
                let fits_factors =
                    kernel == MatmulKernel::Naive || (spread_a <= 18 && spread_b <= 30);
                let planes = if !wide && fits_factors { 15 } else { 0 };
                assert_eq!((paths.planes, paths.wide), (planes, 15 - planes), "{case}");
            }
        }
    });
}

#[test]
fn the_factors_hold_on_their_bounds_and_hand_on_past_them() {
    let cuda = mma();
    let mut rng = Rng(5);
    for (spread_a, spread_b, wide) in [(18, 5, false), (19, 5, true), (5, 30, false), (5, 31, true)]
    {
        let (a, b) = (spanning(&mut rng, 17, 256, spread_a), spanning(&mut rng, 9, 256, spread_b));
        let case = format!("{spread_a} {spread_b}");
        let paths = check::<f32>(&cuda, &a, &b, 1.0, &case);
        assert_eq!(paths.wide, if wide { 17 * 9 } else { 0 }, "{case}");
        assert_eq!(paths.planes, if wide { 0 } else { 17 * 9 }, "{case}");
    }
}

#[test]
fn the_fold_holds_on_its_largest_k_and_hands_on_past_it() {
    let cuda = mma();
    let largest = (i32::MAX as usize / (96 * 96)) / 128 * 128;
    for (k, folds) in [(largest, true), (largest + 128, false)] {
        // Every product is 96 * 96: one group has the low scale, all others the high one.
        let shape = PackedShape::of(Format::MxFp4, 1, k).unwrap();
        let mut scales = vec![103; shape.scales_len()];
        scales[0] = 100;
        let a = PackedMatrix::new(shape, vec![0x77; shape.codes_len()], scales).unwrap();
        let paths = check::<f32>(&cuda, &a, &a.clone(), 1.0, &format!("K = {k}"));
        assert_eq!((paths.narrow, paths.planes), (u64::from(folds), u64::from(!folds)), "K = {k}");
    }
}

#[test]
fn nvfp4_int64_holds_at_k_2_20_and_hands_on_past_it() {
    let cuda = mma();
    for (k, wide) in [(1 << 20, false), ((1 << 20) + 16, true)] {
        // The largest products there are: 6 * 448 squared, everywhere.
        let shape = PackedShape::of(Format::NvFp4, 1, k).unwrap();
        let a =
            PackedMatrix::new(shape, vec![0x77; shape.codes_len()], vec![0x7E; shape.scales_len()])
                .unwrap();
        let paths = check::<f32>(&cuda, &a, &a.clone(), 1.0, &format!("K = {k}"));
        assert_eq!((paths.planes, paths.wide), (u64::from(!wide), u64::from(wide)), "K = {k}");
    }
}

#[test]
fn ragged_shapes_every_output_type_and_full_range_scales() {
    each_kernel(|cuda, _| {
        let mut rng = Rng(6);
        let alphas = [1.0, -0.37, 1e-30, -1e-40, f32::NAN, f32::INFINITY, 0.0, 1e30];
        let (mut outputs, mut all) = (0, Paths::default());
        for format in Format::ALL {
            let group = format.group().get();
            for (m, n, k) in [
                (0, 3, group),
                (3, 0, group),
                (2, 3, 0),
                (1, 1, group),
                (1, 65, 5 * group),
                (65, 1, 3 * group),
                (17, 33, 160),
                (63, 64, 96),
            ] {
                for rare_nan in [false, true] {
                    let scale = |rng: &mut Rng| match rng.below(if rare_nan { 20 } else { 5 }) {
                        7 => 0xFF,
                        0 => rng.byte() & 0xFE,
                        _ => 0x70 + rng.byte() % 8,
                    };
                    let a = operand(&mut rng, format, m, k, scale);
                    let b = operand(&mut rng, format, n, k, scale);
                    let alpha = alphas[rng.below(alphas.len())];
                    let case = format!("{format} {m}x{n}x{k} alpha {alpha:e}");
                    all.merge(&match rng.below(3) {
                        0 => check::<f32>(cuda, &a, &b, alpha, &case),
                        1 => check::<f16>(cuda, &a, &b, alpha, &case),
                        _ => check::<bf16>(cuda, &a, &b, alpha, &case),
                    });
                    outputs += m * n;
                }
            }
        }
        println!("{outputs} outputs, {all:?}");
        assert!(all.planes > 1000 && all.wide > 500);
    });
}

#[test]
fn the_final_rounding_is_one_rounding() {
    // 2^24 + 1 + 2^-30: a tie to f64's eyes, above it in truth.
    each_kernel(|cuda, kernel| {
        let shape = PackedShape::of(Format::MxFp4, 1, 96).unwrap();
        let codes = |first: u8| {
            let mut codes = vec![0; 48];
            for group in 0..3 {
                codes[16 * group] = first;
            }
            codes
        };
        // The last term is 2^-30, 2^-60 and 2^-253: in the limb of the 640-bit sum that is rounded,
        // in the one below it, and in its lowest, of which only the sticky bit is left.
        for (far_a, far_b) in [(127 - 30, 127), (127 - 60, 127), (0, 1)] {
            // Codes 1 * 1 (2 is the value 1); the other groups give 2^24 and 1.
            let a = PackedMatrix::new(shape, codes(2), vec![127 + 24, 127, far_a]).unwrap();
            let b = PackedMatrix::new(shape, codes(2), vec![127, 127, far_b]).unwrap();
            let weight = cuda.prepare(b.view()).unwrap();
            let mut y = [0f32];
            cuda.matmul(a.view(), &weight, 1.0.into(), (&mut y[..]).into()).unwrap();
            assert_eq!(y[0], 16_777_218.0, "{kernel:?} {far_a} {far_b}");
        }
    });
}

#[test]
fn partial_sums_are_those_of_the_reference() {
    let cuda = Cuda::open(0).unwrap();
    let mut rng = Rng(7);
    for format in Format::ALL {
        let (m, n, k) = (5, 7, 480);
        let a = operand(
            &mut rng,
            format,
            m,
            k,
            |rng| if rng.below(60) == 0 { 0xFF } else { rng.byte() },
        );
        let b = operand(&mut rng, format, n, k, Rng::byte);
        let weight = cuda.prepare(b.view()).unwrap();
        let groups = k / format.group().get();
        for range in [0..groups, 0..3, 3..groups, 4..4] {
            let (mut got, mut expected) =
                (vec![ExactSum::ZERO; m * n], vec![ExactSum::ZERO; m * n]);
            // Sums are added to what is there.
            for sums in [&mut got, &mut expected] {
                sums[3].add_scaled(77, -5).unwrap();
            }
            let out = fp4_core::PartialsMut::Exact(&mut got);
            cuda.partial(a.view(), &weight, range.clone(), out).unwrap();
            let out = fp4_core::PartialsMut::Exact(&mut expected);
            reference::partial(a.view(), b.view(), range.clone(), out).unwrap();
            assert_eq!(got, expected, "{format} {range:?}");
        }
        let mut fixed = vec![FixedSum::ZERO; m * n];
        let into_fixed =
            cuda.partial(a.view(), &weight, 1..groups, fp4_core::PartialsMut::Fixed(&mut fixed));
        if format == Format::MxFp4 {
            assert_eq!(into_fixed, Err(Error::PartialKind));
        } else {
            let mut expected = vec![FixedSum::ZERO; m * n];
            let out = fp4_core::PartialsMut::Fixed(&mut expected);
            reference::partial(a.view(), b.view(), 1..groups, out).unwrap();
            assert_eq!((into_fixed, fixed), (Ok(()), expected));
        }
    }
}

#[test]
fn a_layer_on_the_device_has_the_bits_of_the_reference() {
    let cuda = Cuda::open(0).unwrap();
    let mut rng = Rng(8);
    let mut tensor = cuda.empty_tensor().unwrap();
    let mut operand_a = cuda.empty_operand().unwrap();
    let mut y = cuda.empty_tensor().unwrap();
    let mut outputs = 0;
    for format in Format::ALL {
        // The same buffers for every shape: they grow and are reused.
        for (m, n, k) in [(3, 20, 128), (66, 9, 160), (1, 70, 32), (0, 4, 64), (4, 5, 0)] {
            let spec = QuantSpec::usual(format);
            let x: Vec<f32> = (0..m * k).map(|_| rng.value()).collect();
            let b = operand(&mut rng, format, n, k, |rng| 0x30 + rng.byte() % 16);
            let mut h = vec![0f32; 32 * 32];
            hadamard(32, &mut h).unwrap();
            let t = Transform::shared(&h[..], 32).unwrap();
            let input = QuantizeInput::new(&x[..], m, k, &spec).unwrap();
            let input = input.with_transform(Some(t)).unwrap();
            let mut packed = PackedMatrix::zeros(input.shape());
            reference::quantize(&input, &mut packed.view_mut()).unwrap();
            let mut expected = vec![0f32; m * n];
            reference::matmul(packed.view(), b.view(), 0.3, (&mut expected[..]).into()).unwrap();

            let weight = cuda.prepare(b.view()).unwrap();
            let t = cuda.load_transform(&t, FloatType::F32).unwrap();
            cuda.upload((&x[..]).into(), &mut tensor).unwrap();
            let from = Source::Resident(&tensor);
            cuda.quantize_resident(from, [m, k], &spec, Some(&t), &mut operand_a, None).unwrap();
            let mut exported = PackedMatrix::zeros(input.shape());
            cuda.export(&operand_a, &mut exported.view_mut()).unwrap();
            assert_eq!(exported.view(), packed.view());
            let sink = Sink::Resident(&mut y, FloatType::F32);
            cuda.matmul_resident(&operand_a, &weight, 0.3.into(), sink).unwrap();
            let mut got = vec![1f32; m * n];
            cuda.download(&y, (&mut got[..]).into()).unwrap();
            outputs += same_bits(&got, &expected, &format!("{format} {m}x{n}x{k}"));
        }
    }
    let paths = cuda.paths().unwrap();
    assert_eq!(paths.narrow + paths.planes + paths.wide, outputs as u64);
}

#[test]
fn operands_of_another_opening_are_refused() {
    let (one, other) = (Cuda::open(0).unwrap(), Cuda::open(0).unwrap());
    let b = operand(&mut Rng(9), Format::NvFp4, 2, 16, |_| 0x38);
    let weight = other.prepare(b.view()).unwrap();
    let mut y = [0f32; 4];
    let refused = one.matmul(b.view(), &weight, 1.0.into(), (&mut y[..]).into());
    assert_eq!(refused, Err(Error::ForeignOperand));
    // The clones of one backend share its memory.
    let paths = other.clone().matmul(b.view(), &weight, 1.0.into(), (&mut y[..]).into());
    assert!(paths.is_ok());
}
