//! What follows the exact sums, on every kernel: row scales, alpha, bias, the one rounding (C6).
//!
//! Needs a device, or the stand-in of `emulator/` in `LD_LIBRARY_PATH`: feature `emulated`.

#![cfg(feature = "emulated")]
#![allow(missing_docs)]

mod common;

use common::{Rng, operand, same_bits};
use fp4_backend_cuda::{Cuda, MatmulKernel};
use fp4_core::backend::{Resident, Sink};
use fp4_core::{
    Buffer, Epilogue, Error, Float, FloatType, Format, Matmul, PackedMatrix, Product, bf16, f16,
    reference,
};

/// Every kernel, by each of its ways to an output, with shapes on and around its tiles. Decode's
/// ranges need a K of more than one stage.
const CASES: [(MatmulKernel, [usize; 3]); 13] = [
    (MatmulKernel::Naive, [17, 33, 96]),
    (MatmulKernel::Mma, [65, 63, 160]),
    (MatmulKernel::Mma, [1, 1, 32]),
    (MatmulKernel::Decode { ranges: 1 }, [3, 131, 96]),
    (MatmulKernel::Decode { ranges: 3 }, [9, 5, 800]),
    (MatmulKernel::MmaFolded { ranges: 1 }, [129, 131, 64]),
    (MatmulKernel::MmaFolded { ranges: 2 }, [5, 130, 288]),
    (MatmulKernel::Wgmma, [129, 131, 64]),
    (MatmulKernel::Wgmma, [5, 259, 64]),
    (MatmulKernel::WgmmaRs { ranges: 1 }, [33, 131, 64]),
    (MatmulKernel::WgmmaRs { ranges: 2 }, [5, 129, 288]),
    (MatmulKernel::Auto, [0, 3, 32]),
    (MatmulKernel::Auto, [3, 0, 32]),
];

/// Any f32: of ordinary size, or one of those that go wrong.
fn any(rng: &mut Rng) -> f32 {
    let odd = [
        0.0,
        -0.0,
        1.0,
        f32::NAN,
        -f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::MAX,
        f32::MIN_POSITIVE,
        1e-41,
        -1e-45,
        1e30,
    ];
    match rng.below(3) {
        0 => odd[rng.below(odd.len())],
        _ => (rng.next() as i32) as f32 / 1e9,
    }
}

/// The outputs of both, compared; returns how many, and how many of them are NaN.
fn check<T: Float>(
    cuda: &Cuda,
    a: &PackedMatrix,
    b: &PackedMatrix,
    epilogue: Epilogue<'_>,
    case: &str,
) -> (usize, usize) {
    let outputs = a.shape().rows() * b.shape().rows();
    let (mut got, mut expected) = (vec![T::from_f32(7.0); outputs], vec![T::default(); outputs]);
    let weight = cuda.prepare(b.view()).unwrap();
    cuda.matmul(a.view(), &weight, epilogue, T::wrap_mut(&mut got)).unwrap();
    reference::matmul(a.view(), b.view(), epilogue, T::wrap_mut(&mut expected)).unwrap();
    let nan = expected.iter().filter(|y| y.to_f32().is_nan()).count();
    (same_bits(&got, &expected, &format!("{case} to {}", T::TYPE)), nan)
}

#[test]
fn every_kernel_ends_a_product_as_the_reference_does() {
    let (cuda, mut rng) = (Cuda::open(0).unwrap(), Rng(60));
    let (mut compared, mut nan, mut left, mut tiles) = (0, 0, 0, 0);
    for product in Product::ALL {
        for (kernel, [m, n, k]) in CASES {
            // Near scales, and some rows of scales so far apart that other kernels clean up.
            for wide in [false, true] {
                let scale = |rng: &mut Rng| match rng.below(if wide { 8 } else { 40 }) {
                    0 if wide => rng.byte() & 0xFE,
                    1 if rng.below(10) == 0 => 0xFF,
                    _ => 0x70 + rng.byte() % 4,
                };
                let a = operand(&mut rng, product.a, m, k, scale);
                let b = operand(&mut rng, product.b, n, k, scale);
                let row_scales: Vec<f32> = (0..m).map(|_| any(&mut rng)).collect();
                let bias: Vec<f32> = (0..n).map(|_| any(&mut rng)).collect();
                let cuda = cuda.clone().with_matmul_kernel(kernel);
                for part in 0..4 {
                    let alpha = if rng.below(4) == 0 { any(&mut rng) } else { 0.37 };
                    let epilogue = Epilogue::new(alpha)
                        .with_row_scales((part & 1 != 0).then_some(&row_scales[..]))
                        .with_bias((part & 2 != 0).then_some(&bias[..]));
                    let case = format!("{product:?} {kernel:?} {m}x{n}x{k} {wide} part {part}");
                    let types = if part == 3 && !wide { 0..3 } else { part..part + 1 };
                    for ty in types {
                        let (outputs, nans) = match ty % 3 {
                            0 => check::<f32>(&cuda, &a, &b, epilogue, &case),
                            1 => check::<f16>(&cuda, &a, &b, epilogue, &case),
                            _ => check::<bf16>(&cuda, &a, &b, epilogue, &case),
                        };
                        compared += outputs;
                        nan += nans;
                    }
                }
                if kernel == MatmulKernel::Wgmma {
                    let (here, of) = cuda.tiles_left().unwrap();
                    left += here;
                    tiles += of;
                }
            }
        }
    }
    println!("{compared} outputs equal, {nan} NaN, {left} of {tiles} tiles cleaned up");
    assert!(compared > 300_000 && nan > 1000 && nan < compared / 2);
    assert!(left > 0 && left < tiles, "both ways of the wgmma kernels");
}

#[test]
fn a_row_scale_is_multiplied_into_alpha_first_and_a_bias_added_before_the_rounding() {
    // Values that tell each order of steps apart, on every kernel.
    let cuda = Cuda::open(0).unwrap();
    let one = operand(&mut Rng(61), Format::NvFp4, 1, 16, |_| 0x38);
    let (_, scales) = one.into_parts();
    let matrix = |code: u8| {
        let mut codes = vec![0; 8];
        codes[0] = code;
        let shape = fp4_core::PackedShape::of(Format::NvFp4, 1, 16).unwrap();
        PackedMatrix::new(shape, codes, scales.clone()).unwrap()
    };
    let (one, three) = (matrix(2), matrix(5));
    let step = 1.0 + f32::EPSILON;
    for kernel in [
        MatmulKernel::Naive,
        MatmulKernel::Mma,
        MatmulKernel::MmaFolded { ranges: 0 },
        MatmulKernel::Decode { ranges: 0 },
        MatmulKernel::Wgmma,
        MatmulKernel::WgmmaRs { ranges: 0 },
    ] {
        let cuda = cuda.clone().with_matmul_kernel(kernel);
        let weight = cuda.prepare(one.view()).unwrap();
        let y = |epilogue| {
            let mut y = [0f32];
            cuda.matmul(three.view(), &weight, epilogue, (&mut y[..]).into()).unwrap();
            y[0]
        };
        let (scales, bias) = ([step], [1e-8]);
        let scaled = y(Epilogue::new(step).with_row_scales(Some(&scales)));
        assert_eq!(scaled.to_bits(), (3.0 * (step * step)).to_bits(), "{kernel:?}");
        assert_ne!(scaled.to_bits(), (3.0 * step * step).to_bits());
        // 2049 is a tie in f16 that the bias decides: rounded first it would be lost.
        let mut y = [f16::ZERO];
        let epilogue = Epilogue::new(683.0).with_bias(Some(&bias));
        cuda.matmul(three.view(), &weight, epilogue, (&mut y[..]).into()).unwrap();
        let expected = f16::from_f32(683.0 * 3.0 + 1e-8);
        assert_eq!(y[0].to_bits(), expected.to_bits(), "{kernel:?}");
        // No bias is not a bias of 0.
        let mut y = [0f32; 2];
        for (y, bias) in y.iter_mut().zip([None, Some(&[0f32][..])]) {
            let out = (std::slice::from_mut(y)).into();
            let epilogue = Epilogue::new(-0.0).with_bias(bias);
            cuda.matmul(three.view(), &weight, epilogue, out).unwrap();
        }
        assert_eq!(y.map(f32::to_bits), [0x8000_0000, 0], "{kernel:?}");
    }
}

#[test]
fn wrong_lengths_are_errors_that_leave_the_output_alone() {
    let cuda = Cuda::open(0).unwrap();
    let b = operand(&mut Rng(62), Format::MxFp4, 2, 32, |_| 127);
    let weight = cuda.prepare(b.view()).unwrap();
    let (three, mut y) = ([1f32; 3], [7f32; 4]);
    for (epilogue, what) in [
        (Epilogue::new(1.0).with_row_scales(Some(&three)), Buffer::RowScales),
        (Epilogue::new(1.0).with_bias(Some(&three)), Buffer::Bias),
    ] {
        let refused = cuda.matmul(b.view(), &weight, epilogue, (&mut y[..]).into());
        assert_eq!(refused, Err(Error::Len { what, expected: 2, got: 3 }));
        let mut a = cuda.empty_operand().unwrap();
        cuda.import(b.view(), &mut a).unwrap();
        let sink = Sink::Host((&mut y[..]).into());
        let refused = cuda.matmul_resident(&a, &weight, epilogue, sink);
        assert_eq!(refused, Err(Error::Len { what, expected: 2, got: 3 }));
    }
    assert_eq!(y, [7.0; 4]);
}

#[test]
fn a_resident_product_takes_another_bias_and_other_row_scales_in_every_call() {
    let (cuda, mut rng) = (Cuda::open(0).unwrap(), Rng(63));
    let (m, n, k) = (5, 70, 160);
    let a = operand(&mut rng, Format::NvFp4, m, k, |_| 0x38);
    let b = operand(&mut rng, Format::NvFp4, n, k, |_| 0x38);
    let weight = cuda.prepare(b.view()).unwrap();
    let (mut on_device, mut out) = (cuda.empty_operand().unwrap(), cuda.empty_tensor().unwrap());
    cuda.import(a.view(), &mut on_device).unwrap();
    let mut values = |len| -> Vec<f32> { (0..len).map(|_| any(&mut rng)).collect() };
    let biases = [values(n), values(n)];
    let mut expected = vec![0f32; m * n];
    let mut product = |epilogue: Epilogue<'_>, case: &str| {
        let sink = Sink::Resident(&mut out, FloatType::F32);
        cuda.matmul_resident(&on_device, &weight, epilogue, sink).unwrap();
        let mut got = vec![7f32; m * n];
        cuda.download(&out, (&mut got[..]).into()).unwrap();
        reference::matmul(a.view(), b.view(), epilogue, (&mut expected[..]).into()).unwrap();
        same_bits(&got, &expected, case);
    };
    for round in 0..4 {
        let scales = values(m);
        // The bias of the last round, or the other one, or none.
        let bias = [Some(&biases[0][..]), Some(&biases[0]), Some(&biases[1]), None][round];
        let epilogue = Epilogue::new(0.3).with_bias(bias);
        product(epilogue, &format!("round {round}"));
        product(epilogue.with_row_scales(Some(&scales)), &format!("round {round}, row scales"));
    }
}

#[test]
fn a_product_with_a_bias_is_captured_and_one_with_row_scales_is_refused() {
    let (cuda, mut rng) = (Cuda::open(0).unwrap(), Rng(64));
    let (m, n, k) = (3, 33, 96);
    let a = operand(&mut rng, Format::MxFp4, m, k, |_| 127);
    let b = operand(&mut rng, Format::MxFp4, n, k, |_| 127);
    let weight = cuda.prepare(b.view()).unwrap();
    let (mut on_device, mut out) = (cuda.empty_operand().unwrap(), cuda.empty_tensor().unwrap());
    cuda.import(a.view(), &mut on_device).unwrap();
    let bias: Vec<f32> = (0..n).map(|i| i as f32 - 7.5).collect();
    let scales = vec![2f32; m];
    let mut product = |epilogue: Epilogue<'_>| {
        let sink = Sink::Resident(&mut out, FloatType::F32);
        cuda.matmul_resident(&on_device, &weight, epilogue, sink).map(drop)
    };
    let epilogue = Epilogue::new(0.3).with_bias(Some(&bias));
    product(epilogue).unwrap();
    let refused = cuda.capture(|| product(epilogue.with_row_scales(Some(&scales))));
    assert!(matches!(refused, Err(Error::Unsupported(_))), "{refused:?}");
    let graph = cuda.capture(|| product(epilogue)).unwrap();
    // Another bias replaces the weight's; the graph goes on with its own.
    product(Epilogue::new(0.3).with_bias(Some(&vec![0.0; n]))).unwrap();
    graph.replay().unwrap();
    let (mut got, mut expected) = (vec![7f32; m * n], vec![0f32; m * n]);
    cuda.download(&out, (&mut got[..]).into()).unwrap();
    reference::matmul(a.view(), b.view(), epilogue, (&mut expected[..]).into()).unwrap();
    same_bits(&got, &expected, "replayed");
}
