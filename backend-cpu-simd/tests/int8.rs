//! MXINT8 activations by both weight formats against the reference, bit for bit [C6, C10].

mod common;

use common::{Rng, SCALES, Scales, activations, backends, each_isa, operand, same_bits, values};
use fp4_backend_cpu_simd::CpuSimd;
use fp4_core::{
    Encoding, Epilogue, Error, ExactSum, FixedSum, Float, Format, Matmul, PackedMatrix,
    PackedShape, PartialsMut, Paths, reference,
};
use half::{bf16, f16};

/// Compares a product with the reference's; how many outputs were compared, and by which paths.
fn check<T: Float>(
    on: &CpuSimd,
    a: &PackedMatrix,
    b: &PackedMatrix,
    epilogue: Epilogue<'_>,
    case: &str,
) -> (usize, Paths) {
    let outputs = a.shape().rows() * b.shape().rows();
    let garbage = T::from_f32(f32::from_bits(0xA5A5_A5A5));
    let (mut got, mut expected) = (vec![garbage; outputs], vec![garbage; outputs]);
    let weight = on.prepare(b.view()).unwrap();
    let paths = on.matmul(a.view(), &weight, epilogue, T::wrap_mut(&mut got)).unwrap();
    reference::matmul(a.view(), b.view(), epilogue, T::wrap_mut(&mut expected)).unwrap();
    (same_bits(&got, &expected, &format!("{case} {}", T::TYPE)), paths)
}

#[test]
fn products_and_partial_sums_equal_the_reference() {
    each_isa(|on| {
        let (mut rng, mut compared, mut all) = (Rng(81), 0, Paths::default());
        for format in Format::ALL {
            for [m, n, k] in [
                [0, 3, 32],
                [1, 1, 32],
                [1, 40, 96],
                [2, 17, 160],
                [5, 33, 480],
                [17, 20, 1056],
                [51, 16, 64],
                [4, 0, 64],
                [3, 5, 0],
            ] {
                for how in SCALES {
                    let a = activations(&mut rng, m, k, how);
                    let other = SCALES[rng.below(SCALES.len())];
                    let b = operand(&mut rng, format, n, k, other);
                    let weight = on.prepare(b.view()).unwrap();
                    let case = format!("{format} {m}x{n}x{k} {how:?} {other:?}");
                    let (mut got, mut expected) = (vec![7f32; m * n], vec![0f32; m * n]);
                    let out = (&mut got[..]).into();
                    let paths = on.matmul(a.view(), &weight, (-0.7).into(), out).unwrap();
                    all.merge(&paths);
                    let out = (&mut expected[..]).into();
                    reference::matmul(a.view(), b.view(), -0.7, out).unwrap();
                    compared += same_bits(&got, &expected, &case);
                    // An odd cut: half a scale of A where B is NVFP4.
                    let groups = b.shape().row_groups();
                    let cut = rng.below(groups + 1);
                    let (mut got, mut expected) =
                        (vec![ExactSum::ZERO; m * n], vec![ExactSum::ZERO; m * n]);
                    for range in [0..cut, cut..groups] {
                        let out = PartialsMut::Exact(&mut got);
                        on.partial(a.view(), &weight, range.clone(), out).unwrap();
                        let out = PartialsMut::Exact(&mut expected);
                        reference::partial(a.view(), b.view(), range, out).unwrap();
                        assert_eq!(got, expected, "{case} cut at {cut}");
                    }
                }
            }
        }
        println!("compared {compared} outputs, {all:?}");
        assert_eq!(compared, 2 * SCALES.len() * 1411);
        assert!(all.wide > 1000 && all.narrow + all.planes > 5000, "{all:?}");
    });
}

#[test]
fn the_largest_sums_of_long_rows_are_drained_in_time() {
    each_isa(|on| {
        for (format, code, scale) in [(Format::MxFp4, 0x77, 130), (Format::NvFp4, 0xFF, 0x7E)] {
            let k = 300_000 / 32 * 32;
            let shape = PackedShape::encoded(Encoding::MxInt8, 2, k).unwrap();
            let mut scales = vec![127 + 5; shape.scales_len()];
            scales[0] = 127;
            let a = PackedMatrix::new(shape, vec![0x80; shape.codes_len()], scales).unwrap();
            let shape = PackedShape::of(format, 2, k).unwrap();
            let scales = vec![scale; shape.scales_len()];
            let b = PackedMatrix::new(shape, vec![code; shape.codes_len()], scales).unwrap();
            let weight = on.prepare(b.view()).unwrap();
            let (mut got, mut expected) = (vec![0f32; 4], vec![0f32; 4]);
            on.matmul(a.view(), &weight, 1.0.into(), (&mut got[..]).into()).unwrap();
            reference::matmul(a.view(), b.view(), 1.0, (&mut expected[..]).into()).unwrap();
            assert_eq!(same_bits(&got, &expected, "long"), 4);
        }
    });
}

#[test]
fn every_element_by_every_code_at_every_place_of_a_group() {
    // Row i has the element i, column j the code j, at one place or at all.
    let places: Vec<_> = (0..32).map(Some).chain([None]).collect();
    each_isa(|on| {
        let mut compared = 0;
        for format in Format::ALL {
            for &place in &places {
                let (shape_a, shape_b) = (
                    PackedShape::encoded(Encoding::MxInt8, 256, 32).unwrap(),
                    PackedShape::of(format, 16, 32).unwrap(),
                );
                let (mut a, mut b) = (vec![0; shape_a.codes_len()], vec![0; shape_b.codes_len()]);
                let places = place.map_or(0..32, |place| place..place + 1);
                for k in places {
                    (0..256).for_each(|i| a[i * 32 + k] = i as u8);
                    (0..16).for_each(|j| b[j * 16 + k / 2] |= (j as u8) << (k % 2 * 4));
                }
                let scale = [130, 0x38][usize::from(format == Format::NvFp4)];
                let a = PackedMatrix::new(shape_a, a, vec![127; shape_a.scales_len()]).unwrap();
                let b = PackedMatrix::new(shape_b, b, vec![scale; shape_b.scales_len()]).unwrap();
                let case = format!("{format} at {place:?}");
                let (count, paths) = check::<f32>(on, &a, &b, 1.0.into(), &case);
                assert_eq!(paths, Paths::new(256 * 16, 0, 0), "{case}");
                compared += count;
            }
        }
        println!("compared {compared} outputs");
        assert_eq!(compared, 2 * 33 * 256 * 16);
    });
}

#[test]
fn every_pair_of_scale_bytes() {
    let bytes = || 0..=u8::MAX;
    let shape_a = PackedShape::encoded(Encoding::MxInt8, 256, 32).unwrap();
    each_isa(|on| {
        let mut compared = 0;
        for format in Format::ALL {
            let groups = 32 / format.group().get();
            let shape_b = PackedShape::of(format, 256, 32).unwrap();
            // In NVFP4 the second half has a scale of its own too.
            for second in [0, 0x5B] {
                let scales_b = bytes().flat_map(|b| [b, b ^ second].into_iter().take(groups));
                let scales_b: Vec<u8> = scales_b.collect();
                // The least, the largest, and some.
                for (element, code) in [(1u8, 0x01u8), (0x80, 0x77), (0x7F, 0xFF), (77, 0xB5)] {
                    let mut elements = vec![element; shape_a.codes_len()];
                    let mut codes = vec![code; shape_b.codes_len()];
                    if element == 1 {
                        let alone = |k: usize| k.is_multiple_of(16);
                        elements.iter_mut().enumerate().for_each(|(k, e)| *e *= u8::from(alone(k)));
                    } else if element == 77 {
                        for values in [&mut elements, &mut codes] {
                            let odd = |k: usize| k as u8 | 1;
                            let values = values.iter_mut().enumerate();
                            values.for_each(|(k, value)| *value = value.wrapping_mul(odd(k)));
                        }
                    }
                    let a = PackedMatrix::new(shape_a, elements, bytes().collect()).unwrap();
                    let b = PackedMatrix::new(shape_b, codes, scales_b.clone()).unwrap();
                    let case = format!("{format} {element:#x} {code:#x} {second:#x}");
                    compared += check::<f32>(on, &a, &b, 1.0.into(), &case).0;
                }
            }
        }
        println!("compared {compared} outputs");
        assert_eq!(compared, 2 * 2 * 4 * 65536);
    });
}

#[test]
fn rows_of_300_000_whose_scales_span_the_whole_range() {
    let k = 300_000;
    let groups = k / 32;
    each_isa(|on| {
        let (mut rng, mut compared, mut all) = (Rng(84), 0, Paths::default());
        let mut a = activations(&mut rng, 5, k, Scales::Full);
        for (i, element) in a.view_mut().buffers().0.iter_mut().enumerate() {
            // Rows 3 and 4: of the second half of K what cancels the first.
            if i >= 3 * k && i % k / 32 >= groups / 2 * 2 {
                *element = 3;
            }
        }
        for row in 0..5 {
            let mut view = a.view_mut();
            let (elements, scales) = view.row(row);
            match row {
                // Once through all of the range; and close together.
                0 => (0..groups).for_each(|g| scales[g] = (g * 255 / groups) as u8),
                1 => scales.iter_mut().for_each(|s| *s = 120 + *s % 6),
                3 | 4 => {
                    let half = groups / 2;
                    let (first, second) = elements.split_at_mut(half * 32);
                    for (x, y) in first.iter_mut().zip(second) {
                        *x = (*x as i8).max(-127) as u8;
                        *y = (*x as i8).wrapping_neg() as u8;
                    }
                    scales.copy_within(..half, half);
                    scales[2 * half..].fill(row as u8 % 3);
                }
                _ => {}
            }
        }
        for format in Format::ALL {
            let mut b = operand(&mut rng, format, 3, k, Scales::Full);
            for row in 1..3 {
                // The same in both halves; and close together.
                let mut view = b.view_mut();
                let (codes, scales) = view.row(row);
                let (half, per) = (groups / 2, 32 / format.group().get());
                codes.copy_within(..half * 16, half * 16);
                scales.copy_within(..half * per, half * per);
                if row == 2 {
                    let first = [125, 0x38][usize::from(format == Format::NvFp4)];
                    scales.iter_mut().for_each(|s| *s = first + *s % 4);
                }
            }
            for alpha in [1.0, 1e-30] {
                let case = format!("{format} alpha {alpha:e}");
                let (count, paths) = check::<f32>(on, &a, &b, alpha.into(), &case);
                compared += count;
                all.merge(&paths);
            }
        }
        println!("compared {compared} outputs, {all:?}");
        assert_eq!(compared, 4 * 15);
        // The close row by close columns, and by every NVFP4 column, is not wide; the rows that go
        // through the range are.
        assert_eq!(all.wide, 2 * (14 + 12), "{all:?}");
    });
}

#[test]
fn epilogues_of_every_kind_equal_the_reference() {
    each_isa(|on| {
        let (mut rng, mut compared) = (Rng(85), 0);
        for format in Format::ALL {
            for [m, n, k] in [[1, 17, 160], [4, 16, 64], [25, 33, 32], [3, 40, 352], [2, 9, 0]] {
                for how in SCALES {
                    let a = activations(&mut rng, m, k, how);
                    let b = operand(&mut rng, format, n, k, how);
                    let (rows, bias) = (values(&mut rng, m), values(&mut rng, n));
                    for with in 0..4 {
                        let alphas = [1.0, -0.37, 1e-30, -1e-40, f32::NAN, f32::INFINITY, 0.0];
                        let epilogue = Epilogue::new(alphas[rng.below(alphas.len())])
                            .with_row_scales((with & 1 != 0).then_some(&rows))
                            .with_bias((with & 2 != 0).then_some(&bias));
                        let alpha = epilogue.alpha;
                        let case = format!("{format} {m}x{n}x{k} {how:?} {alpha:e} with {with}");
                        compared += check::<f32>(on, &a, &b, epilogue, &case).0;
                        compared += check::<f16>(on, &a, &b, epilogue, &case).0;
                        compared += check::<bf16>(on, &a, &b, epilogue, &case).0;
                    }
                }
            }
        }
        println!("compared {compared} outputs");
        assert_eq!(compared, 2 * SCALES.len() * 4 * 3 * 1044);
    });
}

#[test]
fn threads_never_change_a_bit() {
    each_isa(|on| {
        let (mut rng, mut compared) = (Rng(86), 0);
        for format in Format::ALL {
            // Several tasks of columns; and more rows than are multiplied with a panel at a time.
            for [m, n, k] in [[49, 70, 544], [90, 17, 16_384]] {
                for how in [Scales::Close, Scales::Nan] {
                    let a = activations(&mut rng, m, k, how);
                    let b = operand(&mut rng, format, n, k, Scales::Close);
                    let bias = values(&mut rng, n);
                    let epilogue = Epilogue::new(0.7).with_bias(Some(&bias));
                    let mut expected = vec![0f32; m * n];
                    let out = (&mut expected[..]).into();
                    reference::matmul(a.view(), b.view(), epilogue, out).unwrap();
                    for (name, on) in backends(on) {
                        let weight = on.prepare(b.view()).unwrap();
                        let mut y = vec![0f32; m * n];
                        on.matmul(a.view(), &weight, epilogue, (&mut y[..]).into()).unwrap();
                        let case = format!("{format} {m}x{n}x{k} {how:?} {name}");
                        compared += same_bits(&y, &expected, &case);
                    }
                }
            }
        }
        println!("compared {compared} outputs");
        assert!(compared >= 8 * (49 * 70 + 90 * 17) / 2);
    });
}

#[test]
fn sums_in_64_bits_are_refused_and_nothing_is_written() {
    each_isa(|on| {
        let mut rng = Rng(87);
        for format in Format::ALL {
            let a = activations(&mut rng, 2, 64, Scales::Close);
            let b = operand(&mut rng, format, 3, 64, Scales::Close);
            let (weight, mut sums) = (on.prepare(b.view()).unwrap(), [FixedSum::default(); 6]);
            let out = PartialsMut::Fixed(&mut sums);
            let got = on.partial(a.view(), &weight, 0..2, out);
            assert_eq!(got, Err(Error::PartialKind));
            assert_eq!(sums, [FixedSum::default(); 6]);
        }
    });
}
