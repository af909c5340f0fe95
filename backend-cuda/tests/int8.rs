//! MXINT8 activations by both weight formats on every kernel, against the reference, bit for bit
//! (C6, C10): every kind of data, every bound and one past it, and the quantizer.
//!
//! Needs a device, or the stand-in of `emulator/` in `LD_LIBRARY_PATH`: feature `emulated`.

#![cfg(feature = "emulated")]
#![allow(missing_docs)]

mod common;

use common::data::{DATA, Data, check, drawn, matrix};
use common::{Rng, same_bits};
use fp4_backend_cuda::{Cuda, MatmulKernel};
use fp4_core::backend::{Resident, Sink, Source};
use fp4_core::{
    Encoding, Error, ExactSum, Float, FloatType, Format, Matmul, MatmulQuery, PackedMatrix,
    PackedShape, PartialsMut, Paths, QuantCounts, QuantSpec, QuantizeInput, Quantizer, Transform,
    bf16, f16, hadamard, reference,
};

const DECODE: MatmulKernel = MatmulKernel::Decode { ranges: 0 };

fn on(kernel: MatmulKernel) -> Cuda {
    Cuda::open(0).unwrap().with_matmul_kernel(kernel)
}

/// Multiplies every kind of data in these shapes; both ways of the kernel must occur.
fn any_data(kernel: MatmulKernel, shapes: &[[usize; 3]]) {
    let (mut rng, mut compared) = (Rng(90), 0);
    let (cuda, mut all) = (on(kernel), Paths::default());
    for format in Format::ALL {
        for data in DATA {
            for &[m, n, k] in shapes {
                let a = drawn(&mut rng, Encoding::MxInt8, [m, k], data);
                // Outliers are the activations'.
                let of_b = if data == Data::Outliers { Data::Close } else { data };
                let b = drawn(&mut rng, format.into(), [n, k], of_b);
                let case = format!("{format} {kernel:?} {data:?} {m}x{n}x{k}");
                all.merge(&check(&cuda, &a, &b, &case));
                compared += m * n;
                if kernel == MatmulKernel::Wgmma && format == Format::NvFp4 {
                    assert_eq!(cuda.tiles_left().unwrap(), (0, 0), "{case}: by mma.sync");
                }
            }
        }
    }
    println!("{kernel:?}: {compared} outputs equal, {all:?}");
    assert_eq!(compared, 10 * shapes.iter().map(|[m, n, _]| m * n).sum::<usize>());
    assert!(all.wide > 30 && all.narrow + all.planes > 30, "{all:?}");
}

#[test]
fn the_readable_kernel_gives_the_references_bits() {
    any_data(MatmulKernel::Naive, &[[17, 33, 96], [2, 3, 480]]);
}

#[test]
fn the_tensor_core_kernel_gives_the_references_bits() {
    any_data(MatmulKernel::Mma, &[[65, 63, 160], [1, 1, 32], [33, 70, 1056]]);
}

#[test]
fn decode_gives_the_references_bits() {
    any_data(DECODE, &[[1, 100, 2080], [9, 130, 288], [17, 7, 96]]);
    any_data(MatmulKernel::Decode { ranges: 3 }, &[[3, 130, 2080]]);
}

#[test]
fn wgmma_gives_the_references_bits() {
    any_data(MatmulKernel::Wgmma, &[[1, 1, 32], [129, 131, 416], [17, 130, 1056]]);
}

#[test]
fn the_default_gives_the_references_bits() {
    let shapes =
        [[0, 3, 32], [3, 0, 32], [2, 3, 0], [16, 5, 64], [40, 5, 64], [130, 5, 64], [300, 3, 64]];
    any_data(MatmulKernel::Auto, &shapes);
}

#[test]
fn the_factors_and_the_joint_limit_hold_on_their_bounds_and_hand_on_past_them() {
    // Rows of live groups at the top but one, of elements -128 and codes 12, and the spreads that
    // the factors allow: 15 and 16 of A by DOT 2^31, 30 of B.
    let row = |top: (u8, u8), low: (u8, u8), live: usize, groups: usize| {
        let mut row = vec![top; live];
        row[live / 2] = low;
        row.resize(groups, (0, 254)); // not live, whatever the scale says
        row
    };
    for kernel in [MatmulKernel::Mma, DECODE] {
        let cuda = on(kernel);
        for (spread_a, spread_b, wide) in [(15, 0, 0), (16, 0, 9), (0, 30, 0), (0, 31, 9)] {
            for code in [0x77, 0xFF] {
                let a = row((0x80, 100 + spread_a), (1, 100), 20, 24);
                let b = row((code, 90 + spread_b), (0x11, 90), 20, 24);
                let a = matrix(Encoding::MxInt8, &vec![a; 3]);
                let b = matrix(Encoding::MxFp4, &vec![b; 3]);
                let case = format!("{kernel:?} MXFP4 {spread_a} {spread_b} {code:x}");
                assert_eq!(check(&cuda, &a, &b, &case).wide, wide, "{case}");
            }
        }
        for (spread_a, wide) in [(16, 0), (17, 9)] {
            for scale in [0x7E, 0xFE] {
                let a = row((0x80, 100 + spread_a), (1, 100), 20, 24);
                let a = matrix(Encoding::MxInt8, &vec![a; 3]);
                let b = matrix(Encoding::NvFp4, &vec![vec![(0x77, scale); 48]; 3]);
                let case = format!("{kernel:?} NVFP4 {spread_a} {scale:x}");
                assert_eq!(check(&cuda, &a, &b, &case).wide, wide, "{case}");
            }
        }
    }
    // 49,152 * 2^(15 + 30) * 5 is the last multiple below 2^63: decode counts live groups.
    for (live, wide) in [(5, 0), (6, 1)] {
        let a = matrix(Encoding::MxInt8, &[row((0x80, 115), (1, 100), live, 12)]);
        let b = matrix(Encoding::MxFp4, &[row((0x77, 130), (0x11, 100), live + 1, 12)]);
        let paths = check(&on(DECODE), &a, &b, &format!("{live} live"));
        assert_eq!(paths.wide, wide, "{live} live");
    }
    // The others count all groups of the padded row, and go by whole bits.
    let joint = |term: u64, groups: u64| (i64::MAX as u64 / (term * groups)).ilog2() as u8;
    for kernel in [MatmulKernel::Naive, MatmulKernel::Mma] {
        let (cuda, groups) = (on(kernel), 124);
        let limit = joint(49_152, groups as u64);
        for (past, wide) in [(0, 0), (1, 1)] {
            let (spread_a, spread_b) = (15, limit - 15 + past);
            let a = row((0x80, 100 + spread_a), (1, 100), groups, groups);
            let b = row((0x77, 90 + spread_b), (0x11, 90), groups, groups);
            let (a, b) = (matrix(Encoding::MxInt8, &[a]), matrix(Encoding::MxFp4, &[b]));
            let case = format!("{kernel:?} joint {}", limit + past);
            assert_eq!(check(&cuda, &a, &b, &case).wide, wide, "{case}");
        }
    }
    let limit = joint(24_576 * (15 << 14), 248);
    for (spread, wide) in [(limit, 0), (limit + 1, 1)] {
        let a = matrix(Encoding::MxInt8, &[row((0x80, 100 + spread), (1, 100), 124, 124)]);
        let b = matrix(Encoding::NvFp4, &[vec![(0x77, 0x7E); 248]]);
        let case = format!("naive NVFP4 joint {spread} of {limit}");
        assert_eq!(check(&on(MatmulKernel::Naive), &a, &b, &case).wide, wide, "{case}");
    }
}

#[test]
fn decode_takes_23_301_groups_of_the_largest_terms_of_nvfp4_and_not_one_more() {
    // 24,576 * 2^16 * 15 * 2^14 * 23,301 < 2^63.
    for (live, wide) in [(23_301, 0), (23_302, 1)] {
        let groups = 23_304;
        let mut a = vec![(0x80, 127); groups / 2];
        a[1] = (0x80, 127 - 16);
        let mut b = vec![(0x77, 0x7E); live];
        b.resize(groups, (0x77, 0x80)); // -0
        let (a, b) = (matrix(Encoding::MxInt8, &[a]), matrix(Encoding::NvFp4, &[b]));
        let paths = check(&on(DECODE), &a, &b, &format!("{live} groups"));
        assert_eq!(paths.wide, wide, "{live} groups");
    }
}

#[test]
fn the_largest_sums_of_rows_of_300_000_are_exact_and_so_are_those_of_every_exponent() {
    for (format, code, scale) in [(Format::MxFp4, 0x77, 130), (Format::NvFp4, 0xFF, 0x7E)] {
        let groups = 300_000 / 32;
        let mut a = vec![(0x80, 127 + 5); groups];
        a[0].1 = 127;
        // A row of all exponents of e8m0, in both directions.
        let all = |i: usize| ((i * 37) as u8, (if i < 255 { i } else { 509 - i } % 255) as u8);
        let a = matrix(Encoding::MxInt8, &[a, (0..groups).map(all).collect()]);
        let b = matrix(format.into(), &[vec![(code, scale); 300_000 / format.group().get()]]);
        for (kernel, wide) in [(MatmulKernel::Naive, 1), (DECODE, 1)] {
            let paths = check(&on(kernel), &a, &b, &format!("{format} {kernel:?}"));
            assert_eq!(paths.wide, wide, "{format} {kernel:?}");
        }
    }
    // As long as the emulator has time for on tiles.
    let groups = 8192 / 32;
    let all: Vec<_> = (0..groups).map(|i| ((i * 37) as u8, (i % 255) as u8)).collect();
    let a = matrix(Encoding::MxInt8, &[all.clone(), vec![(0x80, 254); groups], all]);
    let b: Vec<_> = (0..groups).map(|i| (0x77, (254 - i % 255) as u8)).collect();
    let b = matrix(Encoding::MxFp4, &[b, vec![(0xFF, 0); groups]]);
    for kernel in [MatmulKernel::Mma, MatmulKernel::Wgmma] {
        let paths = check(&on(kernel), &a, &b, &format!("{kernel:?}"));
        assert_eq!(paths.wide, 5, "{kernel:?} {paths:?}: all but one by one");
    }
}

#[test]
fn wgmma_levels_on_the_bound_and_one_past_it() {
    let cuda = on(MatmulKernel::Wgmma);
    // 16^3 + 26 * 16^2 + 10 * 16 + 10 = 10,922 steps in units of the lowest level: the most. Both
    // digits of 120, 8 and -8, are the largest there are.
    for (lowest, expected) in [(10, 0), (11, 1)] {
        for (element, code) in [(120, 0x77), (120, 0xFF), (0x80, 0x77)] {
            let mut a = vec![(element, 135); 1]; // window 3, shift 3
            a.extend(vec![(element, 131); 26]); // window 2, shift 3
            a.extend(vec![(element, 127); 10]); // window 1, shift 3
            a.extend(vec![(element, 123); lowest - 1]); // window 0, shift 3
            a.extend([(element, 120)]); // and 0, which makes it the base
            let mut b = vec![(code, 123); a.len()]; // shift 3 but for one
            b[3] = (0x77, 120);
            let case = format!("{lowest} steps of the lowest level, {element:x} {code:x}");
            let (a, b) = (matrix(Encoding::MxInt8, &[a]), matrix(Encoding::MxFp4, &[b]));
            check(&cuda, &a, &b, &case);
            assert_eq!(cuda.tiles_left().unwrap(), (expected, 1), "{case}");
        }
    }
}

#[test]
fn wgmma_multiplies_every_element_by_every_code_under_every_shift() {
    let cuda = on(MatmulKernel::Wgmma);
    // Row s of A: all elements, under shift s of a window that a last group makes.
    let a: Vec<Vec<(u8, u8)>> = (0..4)
        .map(|shift| {
            let elements = (0..=255).map(|element| (element, 120 + shift));
            elements.chain([(1, 120), (1, 120)]).collect()
        })
        .collect();
    let a = matrix(Encoding::MxInt8, &a);
    let b: Vec<_> = (0..16).map(|code| vec![(code | code << 4, 127); 258]).collect();
    let b = matrix(Encoding::MxFp4, &b);
    let paths = check(&cuda, &a, &b, "every pair");
    assert_eq!((paths.wide, cuda.tiles_left().unwrap()), (0, (0, 1)));
    // Each alone: sums of many hide what one gets wrong in both directions.
    let lone: Vec<_> = (0..=255).map(|element| vec![(element, 123), (1, 120)]).collect();
    let a = matrix(Encoding::MxInt8, &lone);
    let b: Vec<_> = (0..16).map(|code| vec![(code | code << 4, 127), (0, 127)]).collect();
    let paths = check(&cuda, &a, &matrix(Encoding::MxFp4, &b), "each pair");
    assert_eq!(paths.wide, 0);
}

#[test]
fn partial_sums_of_groups_of_b_equal_the_reference() {
    let (cuda, mut rng) = (on(MatmulKernel::Auto), Rng(91));
    for format in Format::ALL {
        for data in DATA {
            let (m, n, k) = (5, 7, 480);
            let a = drawn(&mut rng, Encoding::MxInt8, [m, k], data);
            let b = drawn(&mut rng, format.into(), [n, k], data);
            let weight = cuda.prepare(b.view()).unwrap();
            let groups = b.shape().row_groups();
            // An odd cut is half a group of A where B is NVFP4.
            let (mut got, mut expected) =
                (vec![ExactSum::ZERO; m * n], vec![ExactSum::ZERO; m * n]);
            for range in [0..7, 7..groups, 4..4] {
                let out = PartialsMut::Exact(&mut got);
                cuda.partial(a.view(), &weight, range.clone(), out).unwrap();
                let out = PartialsMut::Exact(&mut expected);
                reference::partial(a.view(), b.view(), range.clone(), out).unwrap();
                assert_eq!(got, expected, "{format} {data:?} {range:?}");
            }
            let past = 0..groups + 1;
            let refused = cuda.partial(a.view(), &weight, past, PartialsMut::Exact(&mut got));
            assert!(matches!(refused, Err(Error::Range { .. })), "{refused:?}");
        }
    }
    // The smallest terms there are lie in the lowest byte of the sum.
    let a = matrix(Encoding::MxInt8, &[vec![(0, 0)]]);
    let (shape, (mut elements, scales)) = (a.shape(), a.into_parts());
    elements[5] = 1;
    let a = PackedMatrix::new(shape, elements, scales).unwrap();
    let b = matrix(Encoding::MxFp4, &[vec![(0x11, 0)]]);
    let weight = cuda.prepare(b.view()).unwrap();
    let mut sum = [ExactSum::ZERO];
    cuda.partial(a.view(), &weight, 0..1, PartialsMut::Exact(&mut sum)).unwrap();
    let mut expected = ExactSum::ZERO;
    expected.add_scaled(1, -6 - 1 - 2 * 127).unwrap();
    assert_eq!(sum, [expected]);
}

/// Values of every kind of the quantizer's ways.
fn values(rng: &mut Rng, kind: usize, len: usize) -> Vec<f32> {
    let bits = |rng: &mut Rng, below: u32| {
        f32::from_bits(rng.below(below as usize) as u32 | (rng.next() as u32 & 1 << 31))
    };
    (0..len)
        .map(|i| match kind {
            0 => rng.value(),
            // Subnormal: from what is flushed up.
            1 => bits(rng, 2 << (i / 32 % 24)),
            2 => bits(rng, 0x0500_0000),
            3 => rng.value() * 1e38,
            4 => [0.0, -0.0][rng.below(2)],
            5 => [f32::INFINITY, -f32::INFINITY, f32::NAN, -f32::NAN, 1.0][rng.below(60).min(4)],
            // Ties, under a largest element of 127 or below it.
            6 if i % 32 == 0 => 127.0,
            6 => (rng.below(253) as f32 - 126.0) * 0.5,
            // All scales at once.
            7 => bits(rng, 0x7F80_0000),
            _ => f32::from_bits(rng.next() as u32),
        })
        .collect()
}

/// Quantizes by both, to the host and on the device, and compares.
fn quantized<T: Float>(
    cuda: &Cuda,
    x: &[T],
    [rows, k]: [usize; 2],
    transform: Option<Transform<'_>>,
    case: &str,
) -> QuantCounts {
    let spec = QuantSpec::mxint8();
    let input = QuantizeInput::new(x, rows, k, &spec).unwrap().with_transform(transform).unwrap();
    let (mut got, mut expected) =
        (PackedMatrix::zeros(input.shape()), PackedMatrix::zeros(input.shape()));
    got.view_mut().buffers().0.fill(0xA5);
    got.view_mut().buffers().1.fill(0xA5);
    let counts = cuda.quantize(&input, &mut got.view_mut()).unwrap();
    let expected_counts = reference::quantize(&input, &mut expected.view_mut()).unwrap();
    let same = |got: &PackedMatrix, counts: QuantCounts, way: &str| {
        assert_eq!(got.scales(), expected.scales(), "{case} {way}");
        for (i, (&g, &e)) in got.codes().iter().zip(expected.codes()).enumerate() {
            assert_eq!(g as i8, e as i8, "{case} {way}: element {i}");
        }
        assert_eq!(counts, expected_counts, "{case} {way}");
    };
    same(&got, counts, "to the host");
    let mut out = cuda.empty_operand().unwrap();
    let transform = transform.map(|t| cuda.load_transform(&t, T::TYPE).unwrap());
    let (from, mut counts) = (Source::Host(T::wrap(x)), QuantCounts::default());
    let (t, asked) = (transform.as_ref(), Some(&mut counts));
    cuda.quantize_resident(from, [rows, k], &spec, t, &mut out, asked).unwrap();
    cuda.export(&out, &mut got.view_mut()).unwrap();
    same(&got, counts, "on the device");
    counts
}

#[test]
fn every_kind_of_value_type_and_transform_is_quantized_as_by_the_reference() {
    let (mut rng, mut all) = (Rng(92), QuantCounts::default());
    let mut h = vec![0f32; 64 * 64];
    hadamard(64, &mut h).unwrap();
    let h = Transform::shared(&h[..], 64).unwrap();
    // Under it FP4 activations are folded as they are quantized, and MXINT8 is not.
    let cuda = on(MatmulKernel::Wgmma);
    for kind in 0..9 {
        for ([rows, k], t) in [
            ([1, 32], None),
            ([3, 160], None),
            ([2, 1024], None),
            ([0, 128], None),
            ([2, 0], None),
            ([65, 192], Some(h)),
            ([1, 2176], Some(h)),
        ] {
            let x = values(&mut rng, kind, rows * k);
            let case = format!("kind {kind} {rows}x{k} {}", t.is_some());
            all += quantized(&cuda, &x, [rows, k], t, &case);
            let half: Vec<f16> = x.iter().map(|&x| f16::from_f32(x)).collect();
            all += quantized(&cuda, &half, [rows, k], t, &case);
            let brain: Vec<bf16> = x.iter().map(|&x| bf16::from_f32(x)).collect();
            all += quantized(&cuda, &brain, [rows, k], t, &case);
        }
    }
    println!("{all:?}");
    let seen = [all.clipped, all.scale_max, all.flushed, all.nan_groups];
    assert!(all.elements > 300_000 && seen.iter().all(|&n| n > 20), "{all:?}");
}

#[test]
fn scales_on_their_bounds_and_halves_of_elements_under_each_are_the_references() {
    let (cuda, mut x) = (on(MatmulKernel::Auto), Vec::new());
    // 127 / 64 of each power of two, and beside it; and halves of an element there.
    for exponent in 0..=254u32 {
        for fraction in [0, 1, 0x3F_FFFF, 0x7D_FFFF, 0x7E_0000, 0x7E_0001, 0x7F_FFFF] {
            let amax = f32::from_bits(exponent << 23 | fraction);
            let mut y = [0f32; 32];
            y[exponent as usize % 32] = -amax;
            for (i, y) in y.iter_mut().enumerate().skip(exponent as usize % 32 + 1) {
                *y = amax * (i as f32 + 0.5) / 127.0;
            }
            x.extend(y);
        }
    }
    x.resize(x.len().next_multiple_of(128), 0.0);
    let counts = quantized(&cuda, &x, [1, x.len()], None, "bounds");
    assert!(counts.groups >= 255 * 7 && counts.scale_max > 0 && counts.flushed > 0);
}

#[test]
fn every_element_under_every_scale_dequantizes_to_the_reference() {
    let shape = PackedShape::encoded(Encoding::MxInt8, 256, 288).unwrap();
    let elements = (0..shape.codes_len()).map(|i| i as u8).collect();
    let scales = (0..shape.scales_len()).map(|i| (i / 9) as u8).collect();
    let packed = PackedMatrix::new(shape, elements, scales).unwrap();
    fn compare<T: Float>(cuda: &Cuda, packed: &PackedMatrix) -> usize {
        let len = packed.codes().len();
        let (mut got, mut expected) = (vec![T::default(); len], vec![T::default(); len]);
        cuda.dequantize(packed.view(), 1.0, T::wrap_mut(&mut got)).unwrap();
        reference::dequantize(packed.view(), 1.0, T::wrap_mut(&mut expected)).unwrap();
        let refused = cuda.dequantize(packed.view(), 0.5, T::wrap_mut(&mut got));
        assert_eq!(refused, Err(Error::NoGlobalScale { got: 0.5 }));
        same_bits(&got, &expected, T::TYPE.name())
    }
    let cuda = on(MatmulKernel::Auto);
    let compared = compare::<f32>(&cuda, &packed);
    assert_eq!(compared, 256 * 288);
    assert_eq!(compare::<f16>(&cuda, &packed) + compare::<bf16>(&cuda, &packed), 2 * compared);
}

#[test]
fn a_layer_on_the_device_has_the_bits_of_the_reference_eager_and_replayed() {
    let mut rng = Rng(93);
    let spec = QuantSpec::mxint8();
    for kernel in [MatmulKernel::Auto, MatmulKernel::MmaFolded { ranges: 2 }, MatmulKernel::Wgmma] {
        let cuda = on(kernel);
        let (mut tensor, mut y) = (cuda.empty_tensor().unwrap(), cuda.empty_tensor().unwrap());
        let mut resident = cuda.empty_operand().unwrap();
        for format in Format::ALL {
            for [m, n, k] in [[3, 20, 128], [130, 9, 160], [1, 70, 32], [0, 4, 64], [4, 5, 0]] {
                let x: Vec<f32> = (0..m * k).map(|_| rng.value()).collect();
                let b = drawn(&mut rng, format.into(), [n, k], Data::Close);
                let input = QuantizeInput::new(&x[..], m, k, &spec).unwrap();
                let mut packed = PackedMatrix::zeros(input.shape());
                reference::quantize(&input, &mut packed.view_mut()).unwrap();
                let mut expected = vec![0f32; m * n];
                let out = (&mut expected[..]).into();
                reference::matmul(packed.view(), b.view(), 0.3, out).unwrap();

                let weight = cuda.prepare(b.view()).unwrap();
                cuda.upload((&x[..]).into(), &mut tensor).unwrap();
                let mut layer = || {
                    let (from, shape) = (Source::Resident(&tensor), [m, k]);
                    cuda.quantize_resident(from, shape, &spec, None, &mut resident, None)?;
                    let sink = Sink::Resident(&mut y, FloatType::F32);
                    cuda.matmul_resident(&resident, &weight, 0.3.into(), sink).map(drop)
                };
                layer().unwrap();
                let case = format!("{kernel:?} {format} {m}x{n}x{k}");
                let mut got = vec![1f32; m * n];
                let graph = cuda.capture(&mut layer).unwrap();
                cuda.download(&y, (&mut got[..]).into()).unwrap();
                same_bits(&got, &expected, &case);
                cuda.upload((&vec![7f32; m * n][..]).into(), &mut y).unwrap();
                graph.replay().unwrap();
                cuda.download(&y, (&mut got[..]).into()).unwrap();
                same_bits(&got, &expected, &format!("{case} replayed"));
                drop(graph);
            }
        }
    }
}

#[test]
fn what_is_no_product_is_refused_and_said_beforehand() {
    let cuda = on(MatmulKernel::Auto);
    let query =
        |a, b| cuda.supports_matmul(&MatmulQuery::new(b, [1, 1, 32], FloatType::F32).with_a(a));
    for b in [Encoding::MxFp4, Encoding::NvFp4] {
        assert_eq!(query(Encoding::MxInt8, b), Ok(()));
        assert_eq!(query(b, b), Ok(()));
    }
    assert!(query(Encoding::MxFp4, Encoding::NvFp4).is_err());
    assert!(query(Encoding::MxFp4, Encoding::MxInt8).is_err());
    let int8 = matrix(Encoding::MxInt8, &[vec![(1, 127)]]);
    assert!(cuda.prepare(int8.view()).is_err());
    let weight = cuda.prepare(matrix(Encoding::MxFp4, &[vec![(0x22, 127); 2]])).unwrap();
    let refused = cuda.matmul(int8.view(), &weight, 1.0.into(), (&mut [0f32][..]).into());
    assert!(matches!(refused, Err(Error::ShapeMismatch { .. })), "{refused:?}");
}
