//! The wgmma kernel on packed weights, against the reference, bit for bit (C6, C10): every kind of
//! data, ragged shapes and ranges of K, both ends of a tile, and its limits, on each and past it.
//!
//! Needs a device, or the stand-in of `emulator/` in `LD_LIBRARY_PATH`: feature `emulated`.

#![cfg(feature = "emulated")]
#![allow(missing_docs)]

mod common;

use common::data::{DATA, Data, drawn, matrix};
use common::{Rng, passes_apart, same_bits};
use fp4_backend_cuda::{Cuda, MatmulKernel};
use fp4_core::backend::{Resident, Sink};
use fp4_core::{
    Encoding, Epilogue, Error, Float, FloatType, Format, Matmul, PackedMatrix, PackedShape, Paths,
    QuantSpec, QuantizeInput, bf16, f16, reference,
};

/// Rows of B of a block.
const ROWS: usize = 128;
/// Activations of MXFP4 and of MXINT8.
const OF_A: [Encoding; 2] = [Encoding::MxFp4, Encoding::MxInt8];

fn cuda(ranges: usize) -> Cuda {
    Cuda::open(0).unwrap().with_matmul_kernel(MatmulKernel::WgmmaRs { ranges })
}

/// Multiplies and compares every bit with the reference; counts its outputs by path.
fn check<T: Float>(
    cuda: &Cuda,
    [a, b]: [&PackedMatrix; 2],
    epilogue: Epilogue<'_>,
    case: &str,
) -> Paths {
    let outputs = a.shape().rows() * b.shape().rows();
    let (mut got, mut expected) = (vec![T::from_f32(7.0); outputs], vec![T::default(); outputs]);
    let weight = cuda.prepare(b.view()).unwrap();
    let paths = cuda.matmul(a.view(), &weight, epilogue, T::wrap_mut(&mut got)).unwrap();
    reference::matmul(a.view(), b.view(), epilogue, T::wrap_mut(&mut expected)).unwrap();
    same_bits(&got, &expected, &format!("{case} to {}", T::TYPE));
    assert_eq!(paths.narrow + paths.planes + paths.wide, outputs as u64, "{case}: {paths:?}");
    paths
}

#[test]
fn every_kind_of_data_and_shape_is_right_in_any_number_of_ranges() {
    let (mut rng, mut at, mut compared) = (Rng(90), 0, 0);
    // Each size of block, full, ragged and one row more; K of one group up to three ranges' worth.
    let shapes = [
        [1, 1, 32],
        [17, 130, 416],
        [32, 127, 128],
        [33, 128, 160],
        [64, 129, 544],
        [65, 131, 288],
        [129, 5, 1056],
    ];
    for of_a in OF_A {
        for [m, n, k] in shapes {
            for data in DATA {
                let ranges = [1, 2, 3, 0][at % 4];
                at += 1;
                // B is narrow but in every third case, so that not all goes to the other kernel.
                let of_b = if at % 3 == 0 { data } else { Data::Close };
                let a = drawn(&mut rng, of_a, [m, k], data);
                let b = drawn(&mut rng, Encoding::MxFp4, [n, k], of_b);
                let case = format!("{of_a:?} {m} x {n} x {k} {data:?} in {ranges}");
                check::<f32>(&cuda(ranges), [&a, &b], 0.75.into(), &case);
                compared += m * n;
            }
        }
    }
    println!("packed weights: {compared} outputs compared, 0 differ");
    assert!(compared > 100_000);
}

#[test]
fn ordinary_data_leaves_no_tile_and_outliers_of_activations_take_further_products() {
    let mut rng = Rng(91);
    for of_a in OF_A {
        let b = drawn(&mut rng, Encoding::MxFp4, [2 * ROWS, 640], Data::Close);
        for (data, ranges) in
            [(Data::Close, 1), (Data::Close, 3), (Data::Outliers, 1), (Data::Outliers, 3)]
        {
            let (cuda, a) = (cuda(ranges), drawn(&mut rng, of_a, [40, 640], data));
            let paths = check::<f32>(&cuda, [&a, &b], 1.0.into(), &format!("{of_a:?} {data:?}"));
            assert_eq!(cuda.tiles_left().unwrap(), (0, 2), "{of_a:?} {data:?}");
            let outputs = 40 * 2 * ROWS as u64;
            let expected = if data == Data::Close { [outputs, 0] } else { [0, outputs] };
            assert_eq!([paths.narrow, paths.planes], expected, "{of_a:?} {data:?}");
        }
    }
}

/// Standard normal values, and of one channel in 100 those times 30, quantized as usual.
fn outlier_channels(rng: &mut Rng, encoding: Encoding, [rows, k]: [usize; 2]) -> PackedMatrix {
    let x: Vec<_> = (0..rows * k)
        .map(|i| {
            let normal: f32 = (0..12).map(|_| (rng.next() >> 40) as f32 / (1 << 24) as f32).sum();
            bf16::from_f32((normal - 6.0) * if i % k % 100 == 7 { 30.0 } else { 1.0 })
        })
        .collect();
    let spec = QuantSpec::of(encoding);
    let input = QuantizeInput::new(&x[..], rows, k, &spec).unwrap();
    let mut packed = PackedMatrix::zeros(input.shape());
    reference::quantize(&input, &mut packed.view_mut()).unwrap();
    packed
}

#[test]
fn outlier_channels_leave_no_tile_to_another_kernel() {
    let mut rng = Rng(97);
    for of_a in OF_A {
        let a = outlier_channels(&mut rng, of_a, [64, 4096]);
        let b = drawn(&mut rng, Encoding::MxFp4, [9, 4096], Data::Close);
        for kernel in [
            MatmulKernel::WgmmaRs { ranges: 0 },
            MatmulKernel::Wgmma,
            MatmulKernel::MmaFolded { ranges: 0 },
        ] {
            let cuda = Cuda::open(0).unwrap().with_matmul_kernel(kernel);
            check::<f32>(&cuda, [&a, &b], 1.0.into(), &format!("{of_a:?} {kernel:?}"));
            assert_eq!(cuda.tiles_left().unwrap(), (0, 1), "{of_a:?} {kernel:?}");
        }
    }
}

#[test]
fn a_row_of_weights_may_span_four_exponents_and_not_five() {
    let cuda = cuda(2);
    for of_a in OF_A {
        let element = if of_a == Encoding::MxInt8 { 0x81 } else { 0xF7 };
        let a = matrix(of_a, &vec![vec![(element, 120); 8]; 3]);
        for (highest, left) in [(123, 0), (124, 1)] {
            // The one row that spans so much is the last of the second tile.
            let mut rows = vec![vec![(0x7F, 120); 8]; 2 * ROWS];
            rows[2 * ROWS - 1][7].1 = highest;
            let b = matrix(Encoding::MxFp4, &rows);
            check::<f32>(&cuda, [&a, &b], 1.0.into(), &format!("{of_a:?} up to {highest}"));
            assert_eq!(cuda.tiles_left().unwrap(), (left, 2), "{of_a:?} up to {highest}");
            // A group of zeros under any scale does not count.
            rows[2 * ROWS - 1][7].0 = 0x80;
            rows[2 * ROWS - 1][7].1 = 254;
            let b = matrix(Encoding::MxFp4, &rows);
            check::<f32>(&cuda, [&a, &b], 1.0.into(), &format!("{of_a:?} zeros"));
            assert_eq!(cuda.tiles_left().unwrap(), (0, 2), "{of_a:?} zeros");
        }
    }
}

#[test]
fn sums_are_right_on_their_bound_and_left_past_it() {
    // Groups of A in windows 3, 2, 1 and 0 count as 4096, 256, 16 and 1 steps.
    for (of_a, largest, most) in [(Encoding::MxFp4, 0x77, 7281), (Encoding::MxInt8, 0x78, 10922)] {
        for (steps, left) in [(most, 0), (most + 1, 1)] {
            // The lowest group is the base of A; all others are shifted by 3.
            let counts = [(steps & 15) + 16, (steps >> 4 & 15) - 1, steps >> 8 & 15, steps >> 12];
            let mut of_a_row = vec![(largest, 120)];
            for (window, count) in (0..).zip(counts) {
                let shifted =
                    vec![(largest, 120 + 4 * window + 3); count - usize::from(window == 0)];
                of_a_row.extend(shifted);
            }
            let of_b = |code: u8| -> Vec<_> {
                (0..of_a_row.len()).map(|g| (code, if g == 0 { 120 } else { 123 })).collect()
            };
            let b = matrix(Encoding::MxFp4, &[of_b(0x77), of_b(0xFF)]);
            let (a, cuda) = (matrix(of_a, &[of_a_row.clone()]), cuda(2));
            check::<f32>(&cuda, [&a, &b], 1.0.into(), &format!("{of_a:?} {steps} steps"));
            assert_eq!(cuda.tiles_left().unwrap(), (left, 1), "{of_a:?} {steps} steps");
        }
    }
}

#[test]
fn kernels_that_share_a_workspace_find_their_sums_zero() {
    let (cuda, mut rng) = (Cuda::open(0).unwrap(), Rng(98));
    let kernels = [
        MatmulKernel::WgmmaRs { ranges: 2 },
        MatmulKernel::Decode { ranges: 2 },
        MatmulKernel::WgmmaRs { ranges: 5 },
        MatmulKernel::MmaFolded { ranges: 2 },
        MatmulKernel::Wgmma,
    ];
    for i in 0..24 {
        // Each of them once at least, then as drawn.
        let kernel = kernels[if i < kernels.len() { i } else { rng.below(kernels.len()) }];
        let m = [1, 17, 32, 33, 64, 65, 128, 130][rng.below(8)];
        let [n, k] = [[1, 7, 128, 130][rng.below(4)], [32, 544, 1056][rng.below(3)]];
        let (of_a, data) = (OF_A[rng.below(2)], DATA[rng.below(DATA.len())]);
        let a = drawn(&mut rng, of_a, [m, k], data);
        let b = drawn(&mut rng, Encoding::MxFp4, [n, k], Data::Close);
        let case = format!("{i}: {kernel:?} {m} x {n} x {k} {of_a:?} {data:?}");
        check::<f32>(&cuda.clone().with_matmul_kernel(kernel), [&a, &b], 0.75.into(), &case);
    }
}

/// Random codes under one scale for each row, of 2^(exponent - 1) for halves of codes; NaN, or
/// zeros, where it is [`NAN`] or [`ZEROS`].
fn rows(rng: &mut Rng, exponents: &[i32], k: usize) -> PackedMatrix {
    let shape = PackedShape::of(Format::MxFp4, exponents.len(), k).unwrap();
    let groups = shape.row_groups();
    let scale = |exponent| match exponent {
        NAN => 0xFF,
        ZEROS => 200,
        exponent => u8::try_from(exponent + 128).unwrap(),
    };
    let scales = exponents.iter().flat_map(|&e| vec![scale(e); groups]).collect();
    let bytes = k / 2;
    let codes = exponents.iter().flat_map(|&exponent| {
        (0..bytes).map(|_| if exponent == ZEROS { 0x80 } else { rng.byte() }).collect::<Vec<_>>()
    });
    PackedMatrix::new(shape, codes.collect(), scales).unwrap()
}
const NAN: i32 = 1000;
const ZEROS: i32 = 1001;

#[test]
fn the_fast_end_of_a_tile_is_right_on_every_limit_and_the_other_past_it() {
    let (cuda, mut rng, mut compared) = (cuda(1), Rng(92), 0);
    let (up, down) = (2f32.powi(100), 2f32.powi(-100));
    // Exponents of rows of A, of most rows of B and of some, alpha.
    let cases: [(&[i32], [i32; 2], f32); 22] = [
        (&[0], [0, 0], 0.75),
        (&[-64, -60], [-62, -50], up),
        (&[-65, -60], [-62, -50], up),
        (&[41, 0], [41, 0], down),
        (&[42, 0], [41, 0], down),
        (&[80], [80, 80], down),
        (&[80], [80, 80], 1.0),
        (&[80, -20], [-20, 80], down),
        (&[0], [-126, -126], up),
        (&[1], [-127, -127], up),
        (&[0], [82, 82], down),
        (&[-1], [83, 83], down),
        (&[-126], [0, 0], up),
        (&[-127], [1, 1], up),
        (&[-26], [0, 0], down * (1.0 + f32::EPSILON)),
        (&[-26], [0, 0], down),
        (&[27], [-60, -60], up * (2.0 - f32::EPSILON)),
        (&[28], [-60, -60], up),
        (&[20], [0, 10], 1e-41),
        (&[0, NAN, ZEROS], [0, 1], -0.0),
        (&[0, 1, 2], [0, NAN], 1.5),
        (&[0, ZEROS, 2], [ZEROS, 3], f32::NEG_INFINITY),
    ];
    for (i, (of_a, of_b, alpha)) in cases.into_iter().enumerate() {
        let case = format!("2^{of_a:?} by 2^{of_b:?}, alpha {alpha:e}");
        let of_b: Vec<_> = (0..ROWS + 2).map(|j| of_b[usize::from(j % 100 == 7)]).collect();
        let (a, b) = (rows(&mut rng, of_a, 64), rows(&mut rng, &of_b, 64));
        let factors: Vec<_> = (0..of_a.len()).map(|i| 1.0 - i as f32 / 4.0).collect();
        let odd = [0.25, f32::NEG_INFINITY, -f32::NAN, -0.0][i % 4];
        let bias: Vec<_> =
            (0..of_b.len()).map(|j| if j == 9 { odd } else { j as f32 - 7.5 }).collect();
        for bias in [None, Some(&bias[..])] {
            let epilogue = Epilogue::new(alpha).with_row_scales(Some(&factors)).with_bias(bias);
            check::<f32>(&cuda, [&a, &b], epilogue, &case);
            check::<f16>(&cuda, [&a, &b], epilogue, &case);
            check::<bf16>(&cuda, [&a, &b], epilogue, &case);
            compared += 6 * of_a.len() * of_b.len() / 2;
        }
        assert_eq!(cuda.tiles_left().unwrap(), (0, 2), "{case}");
    }
    println!("ends of tiles: {compared} outputs compared, 0 differ");
    assert!(compared >= 22 * 6 * ROWS);
}

#[test]
fn few_rows_are_multiplied_so_where_weights_span_few_exponents() {
    let auto = Cuda::open(0).unwrap().with_folded_weights(false);
    let mut rng = Rng(93);
    let narrow = drawn(&mut rng, Encoding::MxFp4, [2 * ROWS, 1024], Data::Close);
    let wide = drawn(&mut rng, Encoding::MxFp4, [2 * ROWS, 1024], Data::Outliers);
    let a = |rng: &mut Rng, m, encoding| drawn(rng, encoding, [m, 1024], Data::Close);
    for (m, encoding, of_b, tiles) in [
        (16, Encoding::MxFp4, &narrow, 0),
        (17, Encoding::MxFp4, &narrow, 2),
        (17, Encoding::MxInt8, &narrow, 2),
        (128, Encoding::MxFp4, &narrow, 2),
        (17, Encoding::MxFp4, &wide, 0),
    ] {
        let a = a(&mut rng, m, encoding);
        auto.release_scratch().unwrap();
        check::<f32>(&auto, [&a, of_b], 0.5.into(), &format!("{m} rows of {encoding:?}"));
        assert_eq!(auto.tiles_left().unwrap(), (0, tiles), "{m} rows of {encoding:?}");
    }
}

#[test]
fn a_captured_product_of_ranges_is_right_again_and_leaves_its_sums_zero() {
    let (cuda, mut rng) = (cuda(3), Rng(94));
    let a = drawn(&mut rng, Encoding::MxFp4, [33, 544], Data::Close);
    let b = drawn(&mut rng, Encoding::MxFp4, [130, 544], Data::Close);
    let weight = cuda.prepare(b.view()).unwrap();
    let (mut on_device, mut out) = (cuda.empty_operand().unwrap(), cuda.empty_tensor().unwrap());
    cuda.import(a.view(), &mut on_device).unwrap();
    let mut product = || {
        let sink = Sink::Resident(&mut out, FloatType::F32);
        cuda.matmul_resident(&on_device, &weight, 0.5.into(), sink).map(drop)
    };
    product().unwrap();
    let graph = cuda.capture(&mut product).unwrap();
    let mut expected = vec![0f32; 33 * 130];
    reference::matmul(a.view(), b.view(), 0.5, (&mut expected[..]).into()).unwrap();
    for round in 0..3 {
        graph.replay().unwrap();
        let mut got = vec![7f32; 33 * 130];
        cuda.download(&out, (&mut got[..]).into()).unwrap();
        same_bits(&got, &expected, &format!("replay {round}"));
    }
    // Nothing is known of a graph's tiles.
    assert_eq!(cuda.tiles_left().unwrap(), (0, 0));
}

#[test]
#[ignore = "run by another in a process of its own"]
fn child_multiplies_with_what_memory_there_is() {
    let mut rng = Rng(95);
    let a = drawn(&mut rng, Encoding::MxFp4, [128, 160], Data::Close);
    let b = drawn(&mut rng, Encoding::MxFp4, [130, 160], Data::Close);
    let mut expected = vec![0f32; 128 * 130];
    reference::matmul(a.view(), b.view(), 0.5, (&mut expected[..]).into()).unwrap();
    let multiply = |cuda: &Cuda| -> Result<usize, Error> {
        let (weight, mut y) = (cuda.prepare(b.view())?, vec![7f32; 128 * 130]);
        cuda.matmul(a.view(), &weight, 0.5.into(), (&mut y[..]).into())?;
        same_bits(&y, &expected, "with little memory");
        Ok(cuda.tiles_left()?.1)
    };
    println!("in two ranges: {:?}", multiply(&cuda(2)));
    let auto = Cuda::open(0).unwrap().with_folded_weights(false);
    println!("as routed: {:?}", multiply(&auto));
}

#[test]
fn without_memory_for_sums_there_is_one_range_and_without_any_another_kernel() {
    // Of its buffers the sums are the largest, 128 KiB, then the folded activation, 96 KiB.
    let by = [("large:1000000", true, 2), ("large:100000", true, 2), ("large:90000", false, 0)];
    for (fail, forced, tiles) in by {
        let environment = [("FP4_EMULATOR_FAIL", fail)];
        let text = passes_apart("child_multiplies_with_what_memory_there_is", &environment);
        assert_eq!(text.contains("in two ranges: Ok(2)"), forced, "{fail}: {text}");
        assert_eq!(text.contains("in two ranges: Err(Device(OutOfMemory"), !forced, "{text}");
        assert!(text.contains(&format!("as routed: Ok({tiles})")), "{fail}: {text}");
    }
}
