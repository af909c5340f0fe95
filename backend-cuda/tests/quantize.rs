//! Quantization, dequantization and layouts against the reference, bit for bit [C1 to C5, C7].
//!
//! Needs a device, or the stand-in of `emulator/` in `LD_LIBRARY_PATH`: feature `emulated`.

#![cfg(feature = "emulated")]
#![allow(missing_docs)]

mod common;

use common::{Rng, same_bits};
use fp4_backend_cuda::{Cuda, MatmulKernel};
use fp4_core::backend::{Resident, Sink, Source};
use fp4_core::{
    Epilogue, Error, Float, FloatType, Format, GroupSize, Matmul, PackedMatrix, PackedMut,
    QuantCounts, QuantSpec, QuantizeInput, QuantizeQuery, Quantizer, ScaleRule, ScaleType, Swizzle,
    TieMode, Transform, Unsupported, bf16, f16, hadamard, reference,
};

/// Quantizes by both and compares; returns values quantized.
fn check<T: Float>(
    cuda: &Cuda,
    x: &[T],
    [rows, k]: [usize; 2],
    spec: &QuantSpec,
    transform: Option<Transform<'_>>,
    given: Option<&[u8]>,
    case: &str,
) -> usize {
    let mut input =
        QuantizeInput::new(x, rows, k, spec).unwrap().with_transform(transform).unwrap();
    if let Some(given) = given {
        input = input.with_scales(given).unwrap();
    }
    let (mut got, mut expected) =
        (PackedMatrix::zeros(input.shape()), PackedMatrix::zeros(input.shape()));
    // Garbage that nothing but row scales may overwrite.
    let [mut got_rows, mut expected_rows] = [(); 2].map(|()| vec![-7f32; rows]);
    let mut out = got.view_mut().with_row_scales(&mut got_rows).unwrap();
    let counts = cuda.quantize(&input, &mut out).unwrap();
    let mut out = expected.view_mut().with_row_scales(&mut expected_rows).unwrap();
    let expected_counts = reference::quantize(&input, &mut out).unwrap();
    same_bits(&got_rows, &expected_rows, &format!("{case}: row scales"));
    assert_eq!(got.scales(), expected.scales(), "{case}: scales");
    assert_eq!(got.codes(), expected.codes(), "{case}: codes");
    assert_eq!(counts, expected_counts, "{case}: counts");
    rows * k
}

fn specs(scale: ScaleType, group: GroupSize) -> Vec<QuantSpec> {
    let settings = match scale {
        ScaleType::E8M0 => [(1.0 / 3.0, 4.0), (1.0, 6.0), (1e-30, 1.0)],
        ScaleType::E4M3 => [(0.1, 6.0), (1.0, 6.0), (1e-6, 4.0)],
    };
    settings.iter().map(|&(gs, ss)| QuantSpec::new(scale, group, gs, ss).unwrap()).collect()
}

#[test]
fn every_setting_and_type_equals_the_reference() {
    fn of_type<T: Float>(cuda: &Cuda, rng: &mut Rng) -> usize {
        let mut values = 0;
        for scale in ScaleType::ALL {
            for group in GroupSize::ALL {
                for spec in specs(scale, group) {
                    let tie = TieMode::ALL[rng.below(4)];
                    let spec = spec.with_tie(tie);
                    for (rows, k) in [(1, group.get()), (3, 5 * group.get()), (2, 2176)] {
                        let x: Vec<T> = (0..rows * k).map(|_| T::from_f32(rng.value())).collect();
                        let given: Vec<u8> =
                            (0..rows * k / group.get()).map(|_| rng.byte()).collect();
                        let given = (rng.below(3) == 0).then_some(&given[..]);
                        let case = format!("{} {spec:?} {rows}x{k}", T::TYPE);
                        values += check(cuda, &x, [rows, k], &spec, None, given, &case);
                    }
                }
            }
        }
        values
    }
    let (cuda, mut rng) = (Cuda::open(0).unwrap(), Rng(20));
    let values = of_type::<f32>(&cuda, &mut rng)
        + of_type::<f16>(&cuda, &mut rng)
        + of_type::<bf16>(&cuda, &mut rng);
    println!("{values} values quantized");
    assert!(values > 300_000);
}

#[test]
fn every_tie_and_its_neighbours_in_every_mode() {
    let cuda = Cuda::open(0).unwrap();
    // A scale of 1 and gs = 1: the quotient is the value itself.
    let spec = QuantSpec::new(ScaleType::E8M0, GroupSize::G16, 1.0, 6.0).unwrap();
    let mut x = Vec::new();
    for midpoint in [0.25f32, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, 0.0, f32::MIN_POSITIVE, 1.0] {
        for bits in midpoint.to_bits().saturating_sub(2)..=midpoint.to_bits() + 2 {
            x.extend([f32::from_bits(bits), -f32::from_bits(bits)]);
        }
    }
    x.extend([f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
    x.resize(x.len().next_multiple_of(16), 0.0);
    let given = vec![127; x.len() / 16];
    for tie in TieMode::ALL {
        let (k, spec) = (x.len(), spec.with_tie(tie));
        check(&cuda, &x, [1, k], &spec, None, Some(&given), &format!("{tie:?}"));
    }
}

#[test]
fn scales_of_every_amax_near_a_rounding_boundary() {
    let cuda = Cuda::open(0).unwrap();
    for scale in ScaleType::ALL {
        let spec = QuantSpec::new(scale, GroupSize::G16, 1.0, 1.0).unwrap();
        // One group for each finite byte: its value, the midpoint to the next, and neighbours.
        let mut x = Vec::new();
        for byte in 0..=254u8 {
            let (here, next) = (scale.decode(byte), scale.decode(byte.saturating_add(1)));
            if here.is_nan() || next.is_nan() || here < 0.0 || next < here {
                continue;
            }
            let middle = here / 2.0 + next / 2.0;
            for amax in [here, middle, middle.next_up(), middle.next_down()] {
                x.push(amax);
                x.extend([0.0; 15]);
            }
        }
        let k = x.len();
        check(&cuda, &x, [1, k], &spec, None, None, &format!("{scale}"));
        assert!(k > 16 * 4 * 100);
    }
}

#[test]
fn transforms_shared_and_per_block_equal_the_reference() {
    fn of_type<T: Float>(cuda: &Cuda, rng: &mut Rng) -> usize {
        let mut values = 0;
        for block in [16, 32, 64, 128] {
            for group in GroupSize::ALL {
                let k = 3 * block.max(group.get());
                for per_block in [false, true] {
                    let blocks = if per_block { k / block } else { 1 };
                    let t: Vec<f32> = (0..blocks * block * block).map(|_| rng.value()).collect();
                    let t = match per_block {
                        true => Transform::per_block(&t[..], block, blocks),
                        false => Transform::shared(&t[..], block),
                    };
                    let rows = [1, 65][rng.below(2)];
                    let x: Vec<T> = (0..rows * k).map(|_| T::from_f32(rng.value())).collect();
                    let scale = ScaleType::ALL[rng.below(2)];
                    let spec = specs(scale, group)[rng.below(3)];
                    let case = format!("{} block {block} group {group} rows {rows}", T::TYPE);
                    values += check(cuda, &x, [rows, k], &spec, Some(t.unwrap()), None, &case);
                }
            }
        }
        values
    }
    let (cuda, mut rng) = (Cuda::open(0).unwrap(), Rng(21));
    let values = of_type::<f32>(&cuda, &mut rng)
        + of_type::<f16>(&cuda, &mut rng)
        + of_type::<bf16>(&cuda, &mut rng);
    println!("{values} values transformed");
}

/// Values whose quantization does everything that is counted.
fn counted_values(rng: &mut Rng, len: usize) -> Vec<f32> {
    let group = |rng: &mut Rng| -> [f32; 16] {
        let unit = [1.0, 1e-38, 1e-44, 0.0, 1e38][rng.below(5)];
        let odd = [f32::INFINITY, f32::NAN, 300.0, -0.0][rng.below(4)];
        let at = if rng.below(3) == 0 { rng.below(16) } else { 99 };
        std::array::from_fn(|i| if i == at { odd } else { rng.value() * unit })
    };
    (0..len / 16).flat_map(|_| group(rng)).collect()
}

#[test]
fn what_is_counted_is_what_the_reference_counts_from_the_host_and_on_the_device() {
    let (mut rng, mut all) = (Rng(24), QuantCounts::default());
    // Kernels that fold what they quantize, and those that do not.
    for kernel in [MatmulKernel::Wgmma, MatmulKernel::Mma] {
        let cuda = Cuda::open(0).unwrap().with_matmul_kernel(kernel);
        let (mut tensor, mut out) = (cuda.empty_tensor().unwrap(), cuda.empty_operand().unwrap());
        for format in Format::ALL {
            let mut h = vec![0f32; 32 * 32];
            hadamard(32, &mut h).unwrap();
            let t = Transform::shared(&h[..], 32).unwrap();
            for (rows, k) in [(1, 32), (67, 416), (130, 32), (0, 32), (3, 0)] {
                for transform in [None, Some(t)] {
                    let spec = QuantSpec::usual(format);
                    let x = counted_values(&mut rng, rows * k);
                    let case = format!("{kernel:?} {format} {rows}x{k} {}", transform.is_some());
                    let input = QuantizeInput::new(&x[..], rows, k, &spec).unwrap();
                    let input = input.with_transform(transform).unwrap();
                    let mut packed = PackedMatrix::zeros(input.shape());
                    let expected = reference::quantize(&input, &mut packed.view_mut()).unwrap();
                    let got = cuda.quantize(&input, &mut packed.view_mut()).unwrap();
                    assert_eq!(got, expected, "{case}: to the host");

                    let on_device =
                        transform.map(|t| cuda.load_transform(&t, FloatType::F32).unwrap());
                    cuda.upload((&x[..]).into(), &mut tensor).unwrap();
                    for from in [Source::Host((&x[..]).into()), Source::Resident(&tensor)] {
                        let mut counts = QuantCounts::default();
                        let (t, shape) = (on_device.as_ref(), [rows, k]);
                        let asked = Some(&mut counts);
                        cuda.quantize_resident(from, shape, &spec, t, &mut out, asked).unwrap();
                        assert_eq!(counts, expected, "{case}: on the device");
                    }
                    all += expected;
                }
            }
        }
    }
    println!("{all:?}");
    let each = [all.clipped, all.scale_max, all.flushed, all.nan_groups];
    assert!(each.iter().all(|&count| count > 50), "{all:?}");
}

/// NVFP4 with row scales.
fn row_spec() -> QuantSpec {
    QuantSpec::usual(Format::NvFp4).with_row_scales().unwrap()
}

/// Rows of different magnitudes below each other, some of zeros or of one kind alone, so that a row
/// under the scale of another shows.
fn unlike_rows<T: Float>(rng: &mut Rng, rows: usize, k: usize) -> Vec<T> {
    let row = |rng: &mut Rng, i: usize| -> Vec<T> {
        let unit = [1.0, 1e3, 1e-30, 1e-41, 1e30, 0.0][(i + rng.below(2)) % 6];
        let odd = [f32::INFINITY, f32::NAN, f32::from_bits(0xFF80_0001), -0.0][rng.below(4)];
        let at = if rng.below(4) == 0 { rng.below(k.max(1)) } else { k };
        let value = |i| if i == at { odd } else { (rng.below(2001) as f32 / 1e3 - 1.0) * unit };
        (0..k).map(value).map(T::from_f32).collect()
    };
    (0..rows).flat_map(|i| row(rng, i)).collect()
}

#[test]
fn row_scales_equal_the_reference() {
    fn of_type<T: Float>(cuda: &Cuda, rng: &mut Rng) -> usize {
        let mut values = 0;
        for tie in TieMode::ALL {
            let spec = row_spec().with_tie(tie);
            // Up to a warp a row, up to a block, and more than one step of a block.
            for (rows, k) in [(1, 16), (5, 96), (9, 272), (3, 2064), (2, 4112), (3, 0), (0, 32)] {
                let x: Vec<T> = unlike_rows(rng, rows, k);
                let given: Vec<u8> = (0..rows * k / 16).map(|_| rng.byte()).collect();
                for given in [None, Some(&given[..])] {
                    let case = format!("{} {tie:?} {rows}x{k}", T::TYPE);
                    values += check(cuda, &x, [rows, k], &spec, None, given, &case);
                }
            }
        }
        for block in [16, 32, 64, 128] {
            for blocks in [1, 3] {
                let (rows, k) = ([1, 7, 66][rng.below(3)], 3 * block);
                let t: Vec<f32> = (0..blocks * block * block).map(|_| rng.value()).collect();
                let t = match blocks {
                    1 => Transform::shared(&t[..], block),
                    _ => Transform::per_block(&t[..], block, blocks),
                };
                let x: Vec<T> = unlike_rows(rng, rows, k);
                let case = format!("{} block {block} x {blocks} rows {rows}", T::TYPE);
                values += check(cuda, &x, [rows, k], &row_spec(), Some(t.unwrap()), None, &case);
            }
        }
        values
    }
    let (cuda, mut rng) = (Cuda::open(0).unwrap(), Rng(25));
    let values = of_type::<f32>(&cuda, &mut rng)
        + of_type::<f16>(&cuda, &mut rng)
        + of_type::<bf16>(&cuda, &mut rng);
    println!("{values} values quantized");
    assert!(values > 300_000, "{values}");
    let x = [1f32; 32];
    let spec = row_spec();
    let input = QuantizeInput::new(&x[..], 2, 16, &spec).unwrap();
    let (mut codes, mut scales) = ([0xA5; 16], [0xA5; 2]);
    let mut out = PackedMut::new(input.shape(), &mut codes, &mut scales).unwrap();
    let what = fp4_core::Buffer::RowScales;
    assert_eq!(cuda.quantize(&input, &mut out), Err(Error::Len { what, expected: 2, got: 0 }));
    assert_eq!((codes, scales), ([0xA5; 16], [0xA5; 2]));
}

/// By kernels that fold what they quantize, and by those that do not: codes, scale bytes, row
/// scales, counts, and the product, which takes the operand's row scales.
#[test]
fn an_operand_keeps_its_row_scales_and_multiplies_by_them() {
    let (mut rng, mut compared) = (Rng(26), 0);
    let mut h = vec![0f32; 32 * 32];
    hadamard(32, &mut h).unwrap();
    let t = Transform::shared(&h[..], 32).unwrap();
    let (n, spec) = (19, row_spec());
    for kernel in [MatmulKernel::Wgmma, MatmulKernel::Mma, MatmulKernel::Auto] {
        let cuda = Cuda::open(0).unwrap().with_matmul_kernel(kernel);
        let (mut tensor, mut out) = (cuda.empty_tensor().unwrap(), cuda.empty_operand().unwrap());
        for (rows, k) in [(1, 32), (67, 416), (130, 64), (0, 32), (3, 0)] {
            let b = common::operand(&mut rng, Format::NvFp4, n, k, |rng| 0x30 + rng.byte() % 16);
            let weight = cuda.prepare(b.view()).unwrap();
            for transform in [None, Some(t)] {
                let x: Vec<f32> = unlike_rows(&mut rng, rows, k);
                let case = format!("{kernel:?} {rows}x{k} {}", transform.is_some());
                let input = QuantizeInput::new(&x[..], rows, k, &spec).unwrap();
                let input = input.with_transform(transform).unwrap();
                let (mut packed, mut scales) =
                    (PackedMatrix::zeros(input.shape()), vec![0f32; rows]);
                let mut to = packed.view_mut().with_row_scales(&mut scales).unwrap();
                let expected = reference::quantize(&input, &mut to).unwrap();
                let mut product = vec![0f32; rows * n];
                let epilogue = Epilogue::new(0.3).with_row_scales(Some(&scales));
                reference::matmul(packed.view(), b.view(), epilogue, (&mut product[..]).into())
                    .unwrap();

                let loaded = transform.map(|t| cuda.load_transform(&t, FloatType::F32).unwrap());
                let mut counts = QuantCounts::default();
                cuda.upload((&x[..]).into(), &mut tensor).unwrap();
                let (from, asked) = (Source::Resident(&tensor), Some(&mut counts));
                let loaded = loaded.as_ref();
                cuda.quantize_resident(from, [rows, k], &spec, loaded, &mut out, asked).unwrap();
                assert_eq!(counts, expected, "{case}");
                let (mut got, mut got_scales) =
                    (PackedMatrix::zeros(input.shape()), vec![-7f32; rows]);
                let mut to = got.view_mut().with_row_scales(&mut got_scales).unwrap();
                cuda.export(&out, &mut to).unwrap();
                assert!(got.view() == packed.view(), "{case}: codes or scales");
                compared += same_bits(&got_scales, &scales, &format!("{case}: row scales"));
                let mut y = vec![7f32; rows * n];
                let sink = Sink::Host((&mut y[..]).into());
                cuda.matmul_resident(&out, &weight, 0.3.into(), sink).unwrap();
                compared += same_bits(&y, &product, &case);
                let sink = Sink::Resident(&mut tensor, FloatType::F32);
                cuda.matmul_resident(&out, &weight, 0.3.into(), sink).unwrap();
                y.fill(7.0);
                cuda.download(&tensor, (&mut y[..]).into()).unwrap();
                compared += same_bits(&y, &product, &format!("{case} on the device"));
                // Those of an epilogue take their place, and an import has none.
                let ones = vec![1f32; rows];
                let own = Epilogue::new(0.3).with_row_scales(Some(&ones));
                cuda.matmul_resident(&out, &weight, own, Sink::Host((&mut y[..]).into())).unwrap();
                let mut plain = vec![0f32; rows * n];
                reference::matmul(packed.view(), b.view(), 0.3, (&mut plain[..]).into()).unwrap();
                compared += same_bits(&y, &plain, &format!("{case} by the epilogue"));
                cuda.import(packed.view(), &mut out).unwrap();
                let sink = Sink::Host((&mut y[..]).into());
                cuda.matmul_resident(&out, &weight, 0.3.into(), sink).unwrap();
                compared += same_bits(&y, &plain, &format!("{case} imported"));
            }
        }
    }
    println!("{compared} values compared");
    assert!(compared > 50_000, "{compared}");
}

#[test]
fn dequantized_values_equal_the_reference() {
    fn of_type<T: Float>(cuda: &Cuda, packed: &PackedMatrix, gs: f32) -> usize {
        let len = packed.shape().rows() * packed.shape().k();
        let (mut got, mut expected) = (vec![T::default(); len], vec![T::default(); len]);
        cuda.dequantize(packed.view(), gs, T::wrap_mut(&mut got)).unwrap();
        reference::dequantize(packed.view(), gs, T::wrap_mut(&mut expected)).unwrap();
        same_bits(&got, &expected, &format!("{:?}", packed.shape()))
    }
    let (cuda, mut rng, mut values) = (Cuda::open(0).unwrap(), Rng(22), 0);
    for scale in ScaleType::ALL {
        for group in GroupSize::ALL {
            let spec = QuantSpec::new(scale, group, 0.3, 4.0).unwrap();
            // Every code under every scale byte, in rows that need padding.
            let shape = spec.shape(3, 256 * group.get() + group.get()).unwrap();
            let codes = (0..shape.codes_len()).map(|_| rng.byte()).collect();
            let scales = (0..shape.scales_len()).map(|i| i as u8).collect();
            let packed = PackedMatrix::new(shape, codes, scales).unwrap();
            values += of_type::<f32>(&cuda, &packed, 0.3)
                + of_type::<f16>(&cuda, &packed, 1e-3)
                + of_type::<bf16>(&cuda, &packed, 1.0);
        }
    }
    println!("{values} values dequantized");
    let packed =
        PackedMatrix::zeros(QuantSpec::usual(fp4_core::Format::NvFp4).shape(1, 16).unwrap());
    let mut out = [0f32; 16];
    let refused = cuda.dequantize(packed.view(), f32::NAN, (&mut out[..]).into());
    assert!(matches!(refused, Err(Error::ScaleSetting { .. })), "{refused:?}");
    let refused = cuda.dequantize(packed.view(), 1.0, (&mut out[..15]).into());
    assert!(matches!(refused, Err(Error::Len { .. })), "{refused:?}");
}

#[test]
fn swizzling_equals_the_reference_both_ways() {
    let (cuda, mut rng) = (Cuda::open(0).unwrap(), Rng(23));
    for (rows, cols) in [(0, 4), (4, 0), (1, 1), (128, 4), (129, 5), (300, 9)] {
        let layout = Swizzle::new(rows, cols).unwrap();
        let scales: Vec<u8> = (0..rows * cols).map(|_| rng.byte()).collect();
        let (mut got, mut expected) = (vec![7; layout.len()], vec![0; layout.len()]);
        cuda.swizzle(&layout, &scales, &mut got).unwrap();
        layout.swizzle(&scales, &mut expected).unwrap();
        assert_eq!(got, expected, "{rows} x {cols}");
        // The padding is dropped, whatever is in it.
        let noise: Vec<u8> = (0..layout.len()).map(|_| rng.byte()).collect();
        let (mut got, mut expected) = (vec![7; rows * cols], vec![0; rows * cols]);
        cuda.unswizzle(&layout, &noise, &mut got).unwrap();
        layout.unswizzle(&noise, &mut expected).unwrap();
        assert_eq!(got, expected, "{rows} x {cols} back");
        assert!(cuda.swizzle(&layout, &[0; 7], &mut got).is_err());
    }
}

#[test]
fn scale_rules_that_no_kernel_has_are_refused_unless_the_scales_are_given() {
    let cuda = Cuda::open(0).unwrap();
    for rule in ScaleRule::ALL {
        for format in Format::ALL.into_iter().filter(|f| rule.is_for(f.scale_type())) {
            let spec = QuantSpec::usual(format).with_rule(rule).unwrap();
            let query = QuantizeQuery::new(spec.shape(2, 64).unwrap(), &spec, FloatType::F32);
            let refused = match rule {
                ScaleRule::Nearest => Ok(()),
                rule => Err(Unsupported::ScaleRule(rule)),
            };
            assert_eq!(cuda.supports_quantize(&query), refused, "{rule}");
            assert_eq!(cuda.supports_quantize(&query.with_given_scales(true)), Ok(()), "{rule}");
            let x = [0.75f32; 2 * 64];
            let input = QuantizeInput::new(&x[..], 2, 64, &spec).unwrap();
            let got = cuda.quantize(&input, &mut PackedMatrix::zeros(input.shape()).view_mut());
            assert_eq!(got.err(), refused.err().map(Error::from), "{rule}");
        }
    }
}
