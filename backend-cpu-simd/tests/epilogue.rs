//! Row scales and bias after the product, against the reference, bit for bit [C6, C9].

mod common;

use common::{Rng, SCALES, Scales, backends, each_isa, operand, same_bits, values};
use fp4_backend_cpu_simd::{CpuSimd, CpuTensor};
use fp4_core::backend::{Resident, Sink};
use fp4_core::{
    Buffer, Epilogue, Error, Float, FloatType, Format, Matmul, MatmulQuery, PackedMatrix, reference,
};
use half::{bf16, f16};

/// Rows and columns around the kernels' 4, 8, 16 and 24, and K of odd numbers of groups.
const SHAPES: [[usize; 3]; 8] = [
    [1, 1, 32],
    [3, 5, 96],
    [1, 17, 160],
    [4, 16, 64],
    [25, 33, 32],
    [50, 40, 352],
    [7, 130, 1056],
    [2, 9, 0],
];

const ALPHAS: [f32; 7] = [1.0, -0.37, 1e-30, -1e-40, f32::NAN, f32::INFINITY, 0.0];

fn check<T: Float>(
    backend: &CpuSimd,
    a: &PackedMatrix,
    b: &PackedMatrix,
    epilogue: Epilogue<'_>,
    case: &str,
) -> usize {
    let outputs = a.shape().rows() * b.shape().rows();
    let garbage = T::from_f32(f32::from_bits(0xA5A5_A5A5));
    let (mut got, mut expected) = (vec![garbage; outputs], vec![garbage; outputs]);
    let weight = backend.prepare(b.view()).unwrap();
    backend.matmul(a.view(), &weight, epilogue, T::wrap_mut(&mut got)).unwrap();
    reference::matmul(a.view(), b.view(), epilogue, T::wrap_mut(&mut expected)).unwrap();
    let case = format!("{case} {}", T::TYPE);
    let mut compared = same_bits(&got, &expected, &case);
    // The same from an operand in the kernels' own form, to a tensor.
    let (mut operand, mut tensor): (_, CpuTensor) =
        (backend.empty_operand().unwrap(), backend.empty_tensor().unwrap());
    backend.import(a.view(), &mut operand).unwrap();
    let sink = Sink::Resident(&mut tensor, T::TYPE);
    backend.matmul_resident(&operand, &weight, epilogue, sink).unwrap();
    got.fill(garbage);
    backend.download(&tensor, T::wrap_mut(&mut got)).unwrap();
    compared += same_bits(&got, &expected, &case);
    compared
}

#[test]
fn row_scales_and_bias_of_every_kind_equal_the_reference() {
    each_isa(|on| {
        let (mut rng, mut compared) = (Rng(81), 0);
        for format in Format::ALL {
            for [m, n, k] in SHAPES {
                for how in SCALES {
                    let a = operand(&mut rng, format, m, k, how);
                    let b = operand(&mut rng, format, n, k, how);
                    let (rows, bias) = (values(&mut rng, m), values(&mut rng, n));
                    for with in 1..4 {
                        let epilogue = Epilogue::new(ALPHAS[rng.below(ALPHAS.len())])
                            .with_row_scales((with & 1 != 0).then_some(&rows))
                            .with_bias((with & 2 != 0).then_some(&bias));
                        let alpha = epilogue.alpha;
                        let case = format!("{format} {m}x{n}x{k} {how:?} {alpha:e} with {with}");
                        compared += check::<f32>(on, &a, &b, epilogue, &case);
                        compared += check::<f16>(on, &a, &b, epilogue, &case);
                        compared += check::<bf16>(on, &a, &b, epilogue, &case);
                    }
                }
            }
        }
        println!("compared {compared} outputs");
        assert!(compared > 500_000);
    });
}

#[test]
fn every_edge_of_a_tile_and_a_panel_equals_the_reference_in_every_type() {
    each_isa(|on| {
        let (mut rng, mut compared) = (Rng(84), 0);
        for format in Format::ALL {
            for (m, n) in (1..=29).flat_map(|m| (1..=18).chain([31, 32, 33]).map(move |n| (m, n))) {
                let k = if (m + n) % 3 == 0 { 96 } else { 32 };
                let a = operand(&mut rng, format, m, k, Scales::Close);
                let b = operand(&mut rng, format, n, k, Scales::Close);
                let (rows, bias) = (values(&mut rng, m), values(&mut rng, n));
                let with = (m + n) % 4;
                let epilogue = Epilogue::new(-0.37)
                    .with_row_scales((with & 1 != 0).then_some(&rows))
                    .with_bias((with & 2 != 0).then_some(&bias));
                let case = format!("{format} {m}x{n}x{k} with {with}");
                compared += check::<f32>(on, &a, &b, epilogue, &case);
                compared += check::<f16>(on, &a, &b, epilogue, &case);
                compared += check::<bf16>(on, &a, &b, epilogue, &case);
            }
        }
        println!("compared {compared} outputs");
        assert!(compared > 1_000_000);
    });
}

#[test]
fn scales_and_alphas_at_the_ends_of_their_types_equal_the_reference() {
    let lowest = [0, 1, 2, 60, 62, 63, 64, 66, 68, 124, 126, 127, 190, 191, 220, 250, 251];
    let lowest_e4m3 = [0x00, 0x01, 0x07, 0x08, 0x38, 0x70, 0x77, 0x80, 0x81, 0xF7];
    let alphas = [1.0, -0.0, 1e-38, f32::MIN_POSITIVE, -1e-45, f32::MAX, f32::INFINITY, f32::NAN];
    each_isa(|on| {
        let (mut rng, mut compared) = (Rng(85), 0);
        for format in Format::ALL {
            let lowest = if format == Format::MxFp4 { &lowest[..] } else { &lowest_e4m3 };
            for round in 0..600 {
                let (m, n) = (1 + rng.below(30), 1 + rng.below(40));
                let [a, b] = [m, n].map(|count| {
                    let mut packed = operand(&mut rng, format, count, 96, Scales::Close);
                    // One end for all rows or columns, for each panel, or for each of them.
                    let (together, mut least) = ([count, 16, 1][rng.below(3)], 0);
                    for i in 0..count {
                        if i % together == 0 {
                            least = lowest[rng.below(lowest.len())];
                        }
                        for scale in packed.view_mut().row(i).1 {
                            *scale = least + rng.byte() % 4;
                        }
                    }
                    packed
                });
                let (rows, bias) = (values(&mut rng, m), values(&mut rng, n));
                let epilogue = Epilogue::new(alphas[round % alphas.len()])
                    .with_row_scales((round % 3 == 0).then_some(&rows))
                    .with_bias((round % 5 == 0).then_some(&bias));
                let case = format!("{format} round {round}");
                compared += check::<f32>(on, &a, &b, epilogue, &case);
                compared += check::<bf16>(on, &a, &b, epilogue, &case);
            }
        }
        println!("compared {compared} outputs");
        assert!(compared > 500_000);
    });
}

#[test]
fn threads_and_rows_of_a_batch_never_change_a_bit_of_an_epilogue() {
    each_isa(|on| {
        let mut rng = Rng(82);
        for format in Format::ALL {
            let (m, n, k) = (49, 70, 544);
            let a = operand(&mut rng, format, m, k, Scales::Full);
            let b = operand(&mut rng, format, n, k, Scales::Close);
            let (rows, bias) = (values(&mut rng, m), values(&mut rng, n));
            let epilogue = Epilogue::new(0.7).with_bias(Some(&bias));
            let mut expected = vec![0f32; m * n];
            let all = epilogue.with_row_scales(Some(&rows));
            reference::matmul(a.view(), b.view(), all, (&mut expected[..]).into()).unwrap();
            for (name, backend) in backends(on) {
                let weight = backend.prepare(b.view()).unwrap();
                let mut y = vec![0f32; m * n];
                backend.matmul(a.view(), &weight, all, (&mut y[..]).into()).unwrap();
                same_bits(&y, &expected, &name);
            }
            let weight = on.prepare(b.view()).unwrap();
            for i in 0..m {
                let (row, mut y) = (a.view().rows_range(i..i + 1).unwrap(), vec![0f32; n]);
                let one = epilogue.with_row_scales(Some(&rows[i..=i]));
                on.matmul(row, &weight, one, (&mut y[..]).into()).unwrap();
                same_bits(&y, &expected[i * n..(i + 1) * n], "one row");
            }
        }
    });
}

#[test]
fn an_epilogue_of_a_wrong_length_is_an_error_and_writes_nothing() {
    each_isa(|on| {
        let mut rng = Rng(83);
        let (a, b) = (
            operand(&mut rng, Format::NvFp4, 3, 64, Scales::Close),
            operand(&mut rng, Format::NvFp4, 5, 64, Scales::Close),
        );
        let weight = on.prepare(b.view()).unwrap();
        let (three, five) = ([1f32; 3], [1f32; 5]);
        for (epilogue, what, expected, got) in [
            (Epilogue::new(1.0).with_row_scales(Some(&five)), Buffer::RowScales, 3, 5),
            (Epilogue::new(1.0).with_bias(Some(&three)), Buffer::Bias, 5, 3),
        ] {
            let mut y = [7f32; 15];
            let error = on.matmul(a.view(), &weight, epilogue, (&mut y[..]).into());
            assert_eq!(error, Err(Error::Len { what, expected, got }));
            assert_eq!(y, [7.0; 15]);
        }
        let query = MatmulQuery::new(Format::NvFp4, [3, 5, 64], FloatType::F32);
        let both = query.with_row_scales(true).with_bias(true);
        assert_eq!(Matmul::supports_matmul(on, &both), Ok(()));
    });
}
