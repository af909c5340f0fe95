//! The quantizer, with and without the transform, against the reference, bit for bit [C1 to C5].

mod common;

use common::{Rng, backends, each_isa, same_bits, specs};
use fp4_backend_cpu_simd::{CpuSimd, Isa};
use fp4_core::{
    E2m1, Error, Float, FloatSlice, Format, GroupSize, PackedMatrix, QuantCounts, QuantSpec,
    QuantizeInput, Quantizer, ScaleRule, ScaleType, TieMode, Transform, hadamard, reference,
};
use half::{bf16, f16};

/// Families of data.
#[derive(Debug, Clone, Copy)]
enum Data {
    Gauss,
    Heavy,
    Outliers,
    Subnormal,
    Huge,
    Zeros,
    Special,
    Ties,
    Bits,
}

const DATA: [Data; 9] = [
    Data::Gauss,
    Data::Heavy,
    Data::Outliers,
    Data::Subnormal,
    Data::Huge,
    Data::Zeros,
    Data::Special,
    Data::Ties,
    Data::Bits,
];

fn values(rng: &mut Rng, data: Data, len: usize, spec: &QuantSpec) -> Vec<f32> {
    let mut unit = 1f32;
    (0..len)
        .map(|i| match data {
            Data::Gauss => rng.gauss(),
            Data::Heavy => rng.gauss() / rng.gauss().abs().max(1e-6),
            Data::Outliers => rng.gauss() * if i % 37 == 5 { 80.0 } else { 1.0 },
            Data::Subnormal => f32::from_bits(rng.next() as u32 & 0x80FF_FFFF),
            Data::Huge => rng.gauss() * 1e38,
            Data::Zeros => [0.0, -0.0][rng.below(2)],
            Data::Special => match rng.below(30) {
                0 => f32::INFINITY,
                1 => f32::NEG_INFINITY,
                2 => f32::NAN,
                3 => f32::from_bits(0xFFC0_0001),
                _ => rng.gauss(),
            },
            Data::Ties => {
                if i % spec.group().get() == 0 {
                    // A group of ties at some scale: its maximum, 6 units, sets the scale byte;
                    // the others are midpoints times the exact d, or one ulp beside.
                    let amax = rng.gauss().abs() + 0.1;
                    unit = spec.unit(spec.encode_scale(amax));
                    amax
                } else {
                    let midpoint = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0][rng.below(7)];
                    let x = f32::from_bits(
                        (midpoint * unit).to_bits().wrapping_add(rng.below(3) as u32) - 1,
                    );
                    if rng.below(2) == 0 { x } else { -x }
                }
            }
            Data::Bits => f32::from_bits(rng.next() as u32),
        })
        .collect()
}

fn check<T: Float>(backend: &CpuSimd, input: &QuantizeInput<'_>, case: &str) -> usize {
    let (mut got, mut expected) =
        (PackedMatrix::zeros(input.shape()), PackedMatrix::zeros(input.shape()));
    got.view_mut().buffers().0.fill(0xA5);
    got.view_mut().buffers().1.fill(0xA5);
    // Garbage that nothing but row scales may overwrite.
    let [mut rows, mut expected_rows] = [(); 2].map(|()| vec![-7f32; input.shape().rows()]);
    let mut out = got.view_mut().with_row_scales(&mut rows).unwrap();
    let counts = backend.quantize(input, &mut out).unwrap();
    let mut out = expected.view_mut().with_row_scales(&mut expected_rows).unwrap();
    let expected_counts = reference::quantize(input, &mut out).unwrap();
    let case = format!("{case} {}", T::TYPE);
    assert_eq!(counts, expected_counts, "{case}");
    same_bits(&rows, &expected_rows, &format!("{case}: row scales"));
    assert_eq!(got.scales(), expected.scales(), "{case}");
    for (i, (g, e)) in got.codes().iter().zip(expected.codes()).enumerate() {
        assert_eq!(g, e, "{case}: byte {i} is {g:#04x}, expected {e:#04x}");
    }
    got.scales().len() + 2 * got.codes().len()
}

#[test]
fn every_format_tie_mode_type_and_family_equals_the_reference() {
    each_isa(|on| {
        let (backend, mut rng) = (on.clone(), Rng(21));
        let mut compared = 0;
        for spec in specs() {
            for data in DATA {
                for (rows, k) in [(1, 128), (3, 256 + 128 * rng.below(2)), (2, 0), (0, 128)] {
                    let x = values(&mut rng, data, rows * k, &spec);
                    let case = format!("{spec:?} {data:?} {rows}x{k}");
                    compared += check_types(&backend, &x, [rows, k], &spec, &case, None);
                    // Every byte as a given scale: zero, negative and NaN ones included.
                    let scales: Vec<u8> =
                        (0..rows * k / spec.group().get()).map(|_| rng.byte()).collect();
                    compared += check_types(&backend, &x, [rows, k], &spec, &case, Some(&scales));
                }
            }
        }
        println!("compared {compared} codes and scales");
        assert!(compared > 2_000_000);
    });
}

/// The rules for weights: this backend has them all, by way of core.
#[test]
fn every_scale_rule_equals_the_reference_on_any_number_of_threads() {
    each_isa(|on| {
        let (mut rng, mut compared) = (Rng(22), 0);
        for rule in ScaleRule::ALL {
            for format in Format::ALL.into_iter().filter(|f| rule.is_for(f.scale_type())) {
                for data in DATA {
                    let spec = QuantSpec::by_rule(format, rule, 3.0).unwrap();
                    let x = values(&mut rng, data, 5 * 256, &spec);
                    let case = format!("{rule} {data:?}");
                    compared += check_types(on, &x, [5, 256], &spec, &case, None);
                }
            }
        }
        assert!(compared > 500_000, "{compared}");
        let spec = QuantSpec::by_rule(Format::NvFp4, ScaleRule::Search, 3.0).unwrap();
        let x = values(&mut rng, Data::Gauss, 64 * 1024, &spec);
        for (threads, backend) in backends(on) {
            check_types(&backend, &x, [64, 1024], &spec, &threads, None);
        }
    });
}

/// Groups on both sides of everything that is counted, and on it.
#[test]
fn counts_on_their_bounds_equal_the_reference() {
    each_isa(|on| {
        let mut all = QuantCounts::default();
        for spec in specs() {
            let (group, mut x, mut scales) = (spec.group().get(), Vec::new(), Vec::new());
            // One byte in five, and those about the ends of both scale types.
            let ends = [0x01, 0x7E, 0x7F, 0x80, 0xFE];
            for byte in (0..=255u8).filter(|byte| byte % 5 == 0 || ends.contains(byte)) {
                let d = spec.unit(byte);
                let top = spec.scale_type().max() * (spec.scale_scale() * spec.global_scale());
                for bound in [7.0 * d, 6.9 * d, 0.25 * d, 0.3 * d, top, 0.99 * top, 2f32.powi(-100)]
                {
                    for step in [-1, 0, 1] {
                        let near = f32::from_bits(bound.to_bits().wrapping_add_signed(step));
                        let mut y = vec![0.0; group];
                        y[usize::from(byte) % group] = near;
                        y[usize::from(byte / 2) % group] = -near;
                        x.extend(y);
                        scales.push(byte);
                    }
                }
            }
            let k = 128.max(group);
            let rows = x.len() / k;
            x.truncate(rows * k);
            scales.truncate(x.len() / group);
            let case = format!("{spec:?}");
            check_types(on, &x, [rows, k], &spec, &case, None);
            check_types(on, &x, [rows, k], &spec, &case, Some(&scales));
            for given in [None, Some(&scales[..])] {
                let mut input = QuantizeInput::new(&x[..], rows, k, &spec).unwrap();
                if let Some(given) = given {
                    input = input.with_scales(given).unwrap();
                }
                let mut out = PackedMatrix::zeros(input.shape());
                all += on.quantize(&input, &mut out.view_mut()).unwrap();
            }
        }
        println!("{all:?}");
        let seen = [all.clipped, all.scale_max, all.flushed, all.nan_groups];
        assert!(seen.iter().all(|&n| n > 1000 && n < all.groups), "{all:?}");
    });
}

/// Where d is 0 the sign of a NaN is the sign of its zero; elsewhere every NaN is +6 (C1, C4.3).
#[test]
fn under_a_zero_divisor_a_nan_keeps_its_sign() {
    each_isa(|on| {
        let mut compared = 0;
        for spec in specs() {
            let group = spec.group().get();
            let x: Vec<f32> =
                (0..group as u32).map(|i| f32::from_bits(0x7FC0_0001 | i << 31)).collect();
            for byte in 0..=255 {
                let given = [byte];
                let input = QuantizeInput::new(&x[..], 1, group, &spec).unwrap();
                let input = input.with_scales(&given).unwrap();
                let mut out = PackedMatrix::zeros(input.shape());
                on.quantize(&input, &mut out.view_mut()).unwrap();
                let expected = if spec.unit(byte) == 0.0 { 0x80 } else { 0x77 };
                assert!(out.codes().iter().all(|&b| b == expected), "{spec:?} {byte:#04x}");
                compared += usize::from(expected == 0x80);
            }
        }
        assert!(compared > 64, "{compared} groups with a zero divisor");
    });
}

/// The values in all three input types, with scales computed or given.
fn check_types(
    backend: &CpuSimd,
    x: &[f32],
    [rows, k]: [usize; 2],
    spec: &QuantSpec,
    case: &str,
    scales: Option<&[u8]>,
) -> usize {
    let half: Vec<f16> = x.iter().map(|&x| f16::from_f32(x)).collect();
    let brain: Vec<bf16> = x.iter().map(|&x| bf16::from_f32(x)).collect();
    let input = |x| {
        let input = QuantizeInput::new(x, rows, k, spec).unwrap();
        scales.map_or(input, |scales| input.with_scales(scales).unwrap())
    };
    let case = format!("{case} given {}", scales.is_some());
    check::<f32>(backend, &input(FloatSlice::F32(x)), &case)
        + check::<f16>(backend, &input(FloatSlice::F16(&half)), &case)
        + check::<bf16>(backend, &input(FloatSlice::Bf16(&brain)), &case)
}

#[test]
fn zero_and_negative_zero_scales_give_signed_zero_codes() {
    each_isa(|on| {
        let spec = QuantSpec::new(ScaleType::E4M3, GroupSize::G16, 0.1, 6.0).unwrap();
        let x: Vec<f32> = [1.0, -1.0, 0.0, -0.0, f32::NAN, -f32::NAN, f32::INFINITY, -1e-40]
            .into_iter()
            .cycle()
            .take(32)
            .collect();
        let input = QuantizeInput::new(&x[..], 1, 32, &spec).unwrap();
        let compared = check::<f32>(on, &input.with_scales(&[0x00, 0x80]).unwrap(), "");
        println!("compared {compared} codes and scales");
        assert!(compared > 0);
    });
}

#[test]
fn ties_are_exact_midpoints_in_every_mode() {
    each_isa(|on| {
        // d is a power of two here, so x / d hits each midpoint exactly.
        let (backend, mut compared) = (on.clone(), 0);
        for tie in TieMode::ALL {
            let spec =
                QuantSpec::new(ScaleType::E8M0, GroupSize::G16, 1.0, 4.0).unwrap().with_tie(tie);
            let mut x = Vec::new();
            for byte in [1u8, 100, 127, 200] {
                let d = spec.unit(byte);
                let mut group = vec![0f32; 16];
                for (i, midpoint) in [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0].into_iter().enumerate()
                {
                    (group[2 * i], group[2 * i + 1]) = (midpoint * d, -midpoint * d);
                }
                x.extend(group);
            }
            let input = QuantizeInput::new(&x[..], 1, 64, &spec).unwrap();
            let input = input.with_scales(&[1, 100, 127, 200]).unwrap();
            compared += check::<f32>(&backend, &input, "midpoints");
            let mut got = PackedMatrix::zeros(input.shape());
            backend.quantize(&input, &mut got.view_mut()).unwrap();
            let code = got.view().code(0, 16 + 2).unwrap();
            assert_eq!(code, E2m1::from_f32_tie(0.75, tie), "{tie:?}");
        }
        println!("compared {compared} codes and scales");
        assert!(compared > 0);
    });
}

/// A transform's values: a Hadamard, a rotation-like random one, or one of any bits.
fn transform_values(rng: &mut Rng, block: usize, blocks: usize, kind: usize) -> Vec<f32> {
    let mut values = vec![0f32; blocks * block * block];
    for t in values.chunks_exact_mut(block * block) {
        match kind {
            0 => hadamard(block, t).unwrap(),
            1 => t.iter_mut().for_each(|t| *t = rng.gauss() / (block as f32).sqrt()),
            _ => t.iter_mut().for_each(|t| {
                *t = match rng.below(200) {
                    0 => f32::INFINITY,
                    1 => f32::NAN,
                    2 => -0.0,
                    _ => rng.gauss() * 2f32.powi(rng.below(60) as i32 - 30),
                }
            }),
        }
    }
    values
}

#[test]
fn every_transform_equals_the_reference() {
    each_isa(|on| {
        let (backend, mut rng) = (on.clone(), Rng(22));
        let mut compared = 0;
        for block in [16, 32, 64, 128] {
            for group in GroupSize::ALL {
                for scale in ScaleType::ALL {
                    let gs = if scale == ScaleType::E8M0 { 1.0 / 3.0 } else { 0.1 };
                    let spec = QuantSpec::new(scale, group, gs, 5.0).unwrap();
                    for kind in 0..3 {
                        for shared in [true, false] {
                            let (rows, k) = (1 + rng.below(3), 128 * (1 + rng.below(3)));
                            let blocks = if shared { 1 } else { k / block };
                            let t = transform_values(&mut rng, block, blocks, kind);
                            let t16: Vec<f16> = t.iter().map(|&t| f16::from_f32(t)).collect();
                            let tb: Vec<bf16> = t.iter().map(|&t| bf16::from_f32(t)).collect();
                            let data = DATA[rng.below(DATA.len())];
                            let x = values(&mut rng, data, rows * k, &spec);
                            for stored in
                                [FloatSlice::F32(&t), FloatSlice::F16(&t16), FloatSlice::Bf16(&tb)]
                            {
                                let t = if shared {
                                    Transform::shared(stored, block).unwrap()
                                } else {
                                    Transform::per_block(stored, block, blocks).unwrap()
                                };
                                let case = format!(
                                    "block {block} x {blocks} {} kind {kind} {data:?} {spec:?}",
                                    stored.float_type()
                                );
                                compared +=
                                    check_transformed(&backend, &x, [rows, k], &spec, t, &case);
                            }
                        }
                    }
                }
            }
        }
        println!("compared {compared} codes and scales");
        assert!(compared > 500_000);
    });
}

#[test]
fn chains_round_once_at_every_step() {
    each_isa(|on| {
        // Every output is the chain over these pairs, and the code shows its last bit.
        fn codes<T: Float>(on: &CpuSimd, pairs: &[[f32; 2]], tie: TieMode) -> Vec<u8> {
            let spec =
                QuantSpec::new(ScaleType::E8M0, GroupSize::G16, 1.0, 4.0).unwrap().with_tie(tie);
            let (mut x, mut t) = (vec![T::default(); 16], vec![0f32; 256]);
            for (i, pair) in pairs.iter().enumerate() {
                x[i] = T::from_f32(pair[0]);
                t.iter_mut().skip(i).step_by(16).for_each(|t| *t = pair[1]);
            }
            let input = QuantizeInput::new(T::wrap(&x), 1, 16, &spec).unwrap();
            let t = Transform::shared(&t[..], 16).unwrap();
            let input = input.with_transform(Some(t)).unwrap().with_scales(&[127]).unwrap();
            check::<T>(on, &input, "chain");
            let mut packed = PackedMatrix::zeros(input.shape());
            on.quantize(&input, &mut packed.view_mut()).unwrap();
            packed.codes().to_vec()
        }
        // f32: one ulp below 1.25 plus almost half an ulp stays below, and is no tie of 1 and 1.5.
        let (below, k) = (f32::from_bits(1.25f32.to_bits() - 1), 2f32.powi(-23));
        let almost_half = [2f32.powi(-24) * (1.0 + k), 1.0 - k];
        let mut compared = 0;
        let got = codes::<f32>(on, &[[below, 1.0], almost_half], TieMode::Up);
        assert_eq!(got, [0x22; 8]);
        compared += got.len();
        // bf16: four quarters of an f32 ulp are lost one by one, and 1.25 + 2^-8 rounds to 1.25.
        let quarter = [2f32.powi(-25), 1.0];
        let pairs = [[1.25, 1.0], [2f32.powi(-8), 1.0], quarter, quarter, quarter, quarter];
        let got = codes::<bf16>(on, &pairs, TieMode::Even);
        assert_eq!(got, [0x22; 8]);
        compared += got.len();
        // f16: the same with f16 numbers: 1.25 + 2^-11 is the tie.
        let quarter = [2f32.powi(-13), 2f32.powi(-12)];
        let pairs = [[1.25, 1.0], [2f32.powi(-11), 1.0], quarter, quarter, quarter, quarter];
        let got = codes::<f16>(on, &pairs, TieMode::Even);
        assert_eq!(got, [0x22; 8]);
        compared += got.len();
        println!("compared {compared} bytes of codes");
        assert!(compared > 0);
    });
}

fn check_transformed(
    backend: &CpuSimd,
    x: &[f32],
    [rows, k]: [usize; 2],
    spec: &QuantSpec,
    t: Transform<'_>,
    case: &str,
) -> usize {
    let half: Vec<f16> = x.iter().map(|&x| f16::from_f32(x)).collect();
    let brain: Vec<bf16> = x.iter().map(|&x| bf16::from_f32(x)).collect();
    let with = |x| QuantizeInput::new(x, rows, k, spec).unwrap().with_transform(Some(t)).unwrap();
    let mut compared = check::<f32>(backend, &with(FloatSlice::F32(x)), case)
        + check::<f16>(backend, &with(FloatSlice::F16(&half)), case)
        + check::<bf16>(backend, &with(FloatSlice::Bf16(&brain)), case);
    // Scales given as zero show the sign of a transformed NaN, which must be canonical.
    if spec.scale_type() == ScaleType::E4M3 {
        let zeros = vec![0u8; rows * k / spec.group().get()];
        let input = with(FloatSlice::F32(x)).with_scales(&zeros).unwrap();
        compared += check::<f32>(backend, &input, case);
    }
    compared
}

/// NVFP4 with row scales, and other scale-scales and tie modes with them.
fn row_specs() -> Vec<QuantSpec> {
    let settings = [6.0, 5.0, 0.75, 1000.0].into_iter().flat_map(|ss| {
        let spec = QuantSpec::new(ScaleType::E4M3, GroupSize::G16, 0.1, ss).unwrap();
        TieMode::ALL.map(|tie| spec.with_tie(tie).with_row_scales().unwrap())
    });
    settings.collect()
}

/// Rows of different families and magnitudes below each other, so that a row under the scale of
/// another shows.
fn unlike_rows(rng: &mut Rng, [rows, k]: [usize; 2], spec: &QuantSpec) -> Vec<f32> {
    (0..rows)
        .flat_map(|i| {
            let by = [1.0, 1e3, 1e-30, 1e-41, 1e30][(i + rng.below(2)) % 5];
            let data = DATA[(i * 4 + rng.below(4)) % DATA.len()];
            values(rng, data, k, spec).into_iter().map(move |x| x * by).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn row_scales_equal_the_reference() {
    each_isa(|on| {
        let (mut rng, mut compared) = (Rng(25), 0);
        for spec in row_specs() {
            for shape in [[1, 16], [5, 48], [9, 128], [7, 144], [4, 1168], [3, 0], [0, 64]] {
                let [rows, k] = shape;
                let case = format!("{spec:?} {rows}x{k}");
                let x = unlike_rows(&mut rng, shape, &spec);
                compared += check_types(on, &x, shape, &spec, &case, None);
                // Given scale bytes take the row's scale too.
                let given: Vec<u8> = (0..rows * k / 16).map(|_| rng.byte()).collect();
                compared += check_types(on, &x, shape, &spec, &case, Some(&given));
            }
            // A family alone: rows of zeros, of NaNs and infinities, of subnormals.
            for data in DATA {
                let x = values(&mut rng, data, 6 * 80, &spec);
                let case = format!("{spec:?} {data:?}");
                compared += check_types(on, &x, [6, 80], &spec, &case, None);
            }
        }
        println!("compared {compared} codes and scales");
        assert!(compared > 300_000);
    });
}

#[test]
fn row_scales_are_of_the_transformed_row() {
    each_isa(|on| {
        let (mut rng, mut compared) = (Rng(26), 0);
        let spec = QuantSpec::usual(fp4_core::Format::NvFp4).with_row_scales().unwrap();
        for block in [16, 32, 64, 128] {
            for kind in 0..3 {
                for shared in [true, false] {
                    let shape @ [_, k] = [1 + rng.below(7), block * (1 + rng.below(9))];
                    let blocks = if shared { 1 } else { k / block };
                    let t = transform_values(&mut rng, block, blocks, kind);
                    let t = match shared {
                        true => Transform::shared(&t[..], block).unwrap(),
                        false => Transform::per_block(&t[..], block, blocks).unwrap(),
                    };
                    let x = unlike_rows(&mut rng, shape, &spec);
                    let case = format!("block {block} x {blocks} kind {kind} {shape:?}");
                    compared += check_transformed(on, &x, shape, &spec, t, &case);
                }
            }
        }
        println!("compared {compared} codes and scales");
        assert!(compared > 20_000);
    });
}

/// Plain and transformed, on any number of threads.
fn check_threads(
    on: &CpuSimd,
    rng: &mut Rng,
    x: &[f32],
    [rows, k]: [usize; 2],
    spec: &QuantSpec,
) -> usize {
    let t = transform_values(rng, 16, k / 16, 1);
    let t = Transform::per_block(&t[..], 16, k / 16).unwrap();
    let plain = QuantizeInput::new(x, rows, k, spec).unwrap();
    let transformed = plain.with_transform(Some(t)).unwrap();
    let both = |(threads, backend): (String, CpuSimd)| {
        check::<f32>(&backend, &plain, &threads) + check::<f32>(&backend, &transformed, &threads)
    };
    backends(on).into_iter().map(both).sum()
}

#[test]
fn row_scales_do_not_depend_on_threads_and_want_room() {
    each_isa(|on| {
        let (mut rng, mut compared) = (Rng(27), 0);
        let spec = QuantSpec::usual(fp4_core::Format::NvFp4).with_row_scales().unwrap();
        for shape @ [rows, k] in [[70, 1184], [1, 40_000], [3, 20_000]] {
            let x = unlike_rows(&mut rng, shape, &spec);
            compared += check_threads(on, &mut rng, &x, [rows, k], &spec);
        }
        println!("compared {compared} codes and scales");
        assert!(compared > 0);
        let x = [1f32; 64];
        let input = QuantizeInput::new(&x[..], 4, 16, &spec).unwrap();
        let mut out = PackedMatrix::zeros(input.shape());
        out.view_mut().buffers().0.fill(0xA5);
        let error = on.quantize(&input, &mut out.view_mut()).unwrap_err();
        let what = fp4_core::Buffer::RowScales;
        assert_eq!(error, Error::Len { what, expected: 4, got: 0 });
        assert!(out.codes().iter().all(|&byte| byte == 0xA5));
    });
}

#[test]
fn thread_count_never_changes_a_bit() {
    each_isa(|on| {
        let mut rng = Rng(23);
        let mut compared = 0;
        let (rows, k) = (70, 1184);
        for scale in ScaleType::ALL {
            let gs = if scale == ScaleType::E8M0 { 1.0 / 3.0 } else { 0.1 };
            let spec = QuantSpec::new(scale, GroupSize::G32, gs, 5.0).unwrap();
            let x = values(&mut rng, Data::Heavy, rows * k, &spec);
            compared += check_threads(on, &mut rng, &x, [rows, k], &spec);
        }
        println!("compared {compared} codes and scales");
        assert!(compared > 300_000);
    });
}

#[test]
fn a_wrong_output_shape_is_an_error_and_writes_nothing() {
    each_isa(|on| {
        let spec = QuantSpec::usual(fp4_core::Format::MxFp4);
        let x = [1f32; 64];
        let input = QuantizeInput::new(&x[..], 2, 32, &spec).unwrap();
        let mut out = PackedMatrix::zeros(spec.shape(1, 64).unwrap());
        let got = on.quantize(&input, &mut out.view_mut());
        assert_eq!(got, reference::quantize(&input, &mut out.view_mut()));
        assert!(matches!(got, Err(Error::ShapeMismatch { .. })));
        assert!(out.codes().iter().all(|&b| b == 0));
    });
}

#[test]
fn a_transform_alone_is_the_references_bit_for_bit() {
    fn check<T: Float>(
        on: &[(String, CpuSimd)],
        x: &[f32],
        k: usize,
        t: &Transform<'_>,
        case: &str,
    ) {
        let x: Vec<T> = x.iter().map(|&x| T::from_f32(x)).collect();
        let mut expected = x.clone();
        reference::apply_transform(T::wrap(&x), k, t, T::wrap_mut(&mut expected)).unwrap();
        for (name, backend) in on {
            let mut got = x.clone();
            backend.transform(T::wrap(&x), k, t, T::wrap_mut(&mut got)).unwrap();
            same_bits(&got, &expected, &format!("{name}, {case}"));
        }
    }
    let spec = QuantSpec::usual(fp4_core::Format::MxFp4);
    // Every instruction set on the global pool, one thread and three.
    let mut on = Vec::new();
    for isa in Isa::available() {
        println!("{isa}:");
        let pools = backends(&CpuSimd::with_isa(isa).unwrap());
        let some = pools.into_iter().enumerate().filter(|(i, _)| [0, 1, 3].contains(i));
        on.extend(some.map(|(_, (threads, backend))| (format!("{isa} on {threads}"), backend)));
    }
    let mut rng = Rng(7);
    for block in [16, 32, 64, 128] {
        for (rows, blocks) in [(0, 3), (1, 1), (3, 5), (19, 9)] {
            let k = blocks * block;
            let t: Vec<f32> = (0..k * block).map(|_| rng.gauss()).collect();
            for t in [
                Transform::shared(&t[..block * block], block).unwrap(),
                Transform::per_block(&t[..], block, blocks).unwrap(),
            ] {
                for data in [Data::Gauss, Data::Special, Data::Subnormal, Data::Huge] {
                    let x = values(&mut rng, data, rows * k, &spec);
                    let case = format!("{block} {rows} x {k} {data:?}");
                    check::<f32>(&on, &x, k, &t, &case);
                    check::<f16>(&on, &x, k, &t, &case);
                    check::<bf16>(&on, &x, k, &t, &case);
                }
            }
        }
    }
}

#[test]
fn a_transform_that_does_not_fit_is_an_error() {
    let backend = CpuSimd::new();
    let (x, t) = ([1f32; 96], [0f32; 1024]);
    let t = Transform::shared(&t[..], 32).unwrap();
    let mut out = [0f32; 96];
    let run = |x: &[f32], k, out: &mut [f32]| backend.transform(x.into(), k, &t, out.into());
    assert!(matches!(run(&x, 48, &mut out), Err(Error::TransformShape { k: 48, .. })));
    assert!(matches!(run(&x[..95], 32, &mut out), Err(Error::Len { .. })));
    assert!(matches!(run(&x, 32, &mut out[..64]), Err(Error::Len { .. })));
    let mut half = [f16::ZERO; 96];
    let wrong = backend.transform((&x[..]).into(), 32, &t, (&mut half[..]).into());
    assert!(matches!(wrong, Err(Error::Float { .. })));
}
