//! The quantizer and the dequantizer of MXINT8 against the reference, bit for bit [C10].

mod common;

use std::ops::Range;

use common::{Rng, backends, each_isa, same_bits};
use fp4_backend_cpu_simd::CpuSimd;
use fp4_core::{
    Encoding, Float, FloatSlice, PackedMatrix, PackedShape, QuantCounts, QuantSpec, QuantizeInput,
    Quantizer, Transform, hadamard, reference,
};
use half::{bf16, f16};

const SPEC: QuantSpec = QuantSpec::mxint8();

/// Quantizes on the backend and by the reference; returns the counts.
fn check(
    backend: &CpuSimd,
    x: FloatSlice<'_>,
    [rows, k]: [usize; 2],
    transform: Option<Transform<'_>>,
    case: &str,
) -> QuantCounts {
    let input = QuantizeInput::new(x, rows, k, &SPEC).unwrap().with_transform(transform).unwrap();
    let (mut got, mut expected) =
        (PackedMatrix::zeros(input.shape()), PackedMatrix::zeros(input.shape()));
    got.view_mut().buffers().0.fill(0xA5);
    got.view_mut().buffers().1.fill(0xA5);
    let counts = backend.quantize(&input, &mut got.view_mut()).unwrap();
    let expected_counts = reference::quantize(&input, &mut expected.view_mut()).unwrap();
    assert_eq!(counts, expected_counts, "{case}");
    assert_eq!(got.scales(), expected.scales(), "{case}");
    for (i, (&g, &e)) in got.codes().iter().zip(expected.codes()).enumerate() {
        assert_eq!(g as i8, e as i8, "{case}: element {i} of {:?}", input.shape());
    }
    counts
}

/// Values of every kind of the quantizer's paths.
fn values(rng: &mut Rng, kind: usize, len: usize) -> Vec<f32> {
    let bits = |rng: &mut Rng, range: Range<u32>| {
        let magnitude = range.start + rng.below((range.end - range.start) as usize) as u32;
        f32::from_bits(magnitude | (rng.next() as u32 & 1 << 31))
    };
    (0..len)
        .map(|i| match kind {
            0 => rng.gauss(),
            1 => rng.gauss() * if i % 37 == 5 { 80.0 } else { 1.0 },
            // Subnormal: from what is flushed up.
            2 => bits(rng, 0..2 << (i / 32 % 24)),
            3 => bits(rng, 0..0x0500_0000),
            4 => rng.gauss() * 1e38,
            5 => [0.0, -0.0][rng.below(2)],
            6 => [f32::INFINITY, -f32::INFINITY, f32::NAN, -f32::NAN, 1.0][rng.below(60).min(4)],
            // Ties, under a largest element of 127 or below it.
            7 if i % 32 == 0 => 127.0,
            7 => (rng.below(253) as f32 - 126.0) * 0.5,
            // All scales at once.
            8 => bits(rng, 0..0x7F80_0000),
            _ => f32::from_bits(rng.next() as u32),
        })
        .collect()
}

#[test]
fn every_family_shape_and_type_equals_the_reference() {
    each_isa(|on| {
        let (mut rng, mut all) = (Rng(71), QuantCounts::default());
        for kind in 0..10 {
            for [rows, k] in [[1, 32], [1, 96], [3, 160], [5, 1024], [2, 0], [0, 128], [64, 512]] {
                let x = values(&mut rng, kind, rows * k);
                let case = format!("kind {kind} {rows}x{k}");
                all += check(on, (&x[..]).into(), [rows, k], None, &case);
                let h: Vec<f16> = x.iter().map(|&x| f16::from_f32(x)).collect();
                all += check(on, (&h[..]).into(), [rows, k], None, &case);
                let b: Vec<bf16> = x.iter().map(|&x| bf16::from_f32(x)).collect();
                all += check(on, (&b[..]).into(), [rows, k], None, &case);
            }
        }
        println!("{all:?}");
        let seen = [all.clipped, all.scale_max, all.flushed, all.nan_groups];
        assert!(all.elements > 300_000 && seen.iter().all(|&n| n > 20), "{all:?}");
    });
}

/// Every value of a 16-bit type, under largest elements that put it at every place of the range.
fn exhaustive<T: Float>(from_bits: impl Fn(u16) -> T) -> usize {
    let elements = std::cell::Cell::new(0);
    each_isa(|on| {
        // Beside 31 values one companion: none, at several magnitudes above, infinite or NaN.
        for companion in [0u32, 1, 9, 40, 0x7F80_0000, 0x7FC0_0000] {
            let companion = |x: f32| match companion {
                0 => 0.0,
                up @ 1..=99 => f32::from_bits(
                    (x.abs().to_bits().min(0x7F00_0000) + (up << 23) / 4 + 0x3_1234)
                        .min(0x7F7F_FFFF),
                ),
                special => f32::from_bits(special),
            };
            let mut x = Vec::new();
            for group in (0..=u16::MAX).collect::<Vec<_>>().chunks(31) {
                let start = x.len();
                x.extend(group.iter().map(|&bits| from_bits(bits)));
                let finite = |x: &&T| x.to_f32().is_finite();
                let largest = x[start..].iter().filter(finite);
                let largest = largest.map(|x| x.to_f32().abs()).fold(0f32, f32::max);
                x.push(T::from_f32(companion(largest)));
                x.resize(start + 32, T::from_f32(0.0));
            }
            let counts = check(on, T::wrap(&x), [1, x.len()], None, T::TYPE.name());
            elements.set(elements.get() + counts.elements as usize);
        }
    });
    println!("{} elements", elements.get());
    elements.get()
}

#[test]
fn every_f16_and_every_bf16_equals_the_reference() {
    let per_isa = 6 * (65536usize.div_ceil(31) * 32);
    let isas = fp4_backend_cpu_simd::Isa::available().count();
    assert_eq!(exhaustive(f16::from_bits), isas * per_isa);
    assert_eq!(exhaustive(bf16::from_bits), isas * per_isa);
}

#[test]
fn scales_on_their_bounds_equal_the_reference() {
    each_isa(|on| {
        let mut x = Vec::new();
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
        // Each alone, so that its neighbours do not decide which path it takes; and all together.
        for group in x.chunks(32) {
            check(on, group.into(), [1, 32], None, &format!("alone {:e}", group[0]));
        }
        x.resize(x.len().next_multiple_of(128), 0.0);
        let counts = check(on, (&x[..]).into(), [1, x.len()], None, "bounds");
        assert!(counts.groups >= 255 * 7 && counts.scale_max > 0 && counts.flushed > 0);
    });
}

#[test]
fn threads_and_transforms_equal_the_reference() {
    each_isa(|on| {
        let (mut rng, mut elements) = (Rng(72), 0);
        let mut h = vec![0f32; 64 * 64];
        hadamard(64, &mut h).unwrap();
        for transformed in [false, true] {
            let t = transformed.then(|| Transform::shared(&h[..], 64).unwrap());
            for kind in [0, 2, 6] {
                let x = values(&mut rng, kind, 40 * 2048);
                for (threads, backend) in backends(on) {
                    let case = format!("{threads} kind {kind}");
                    elements += check(&backend, (&x[..]).into(), [40, 2048], t, &case).elements;
                }
            }
        }
        assert!(elements > 400_000);
    });
}

#[test]
fn every_element_under_every_scale_dequantizes_to_the_reference() {
    let shape = PackedShape::encoded(Encoding::MxInt8, 256, 256).unwrap();
    let elements = (0..shape.codes_len()).map(|i| i as u8).collect();
    let scales = (0..shape.scales_len()).map(|i| (i / 8) as u8).collect();
    let packed = PackedMatrix::new(shape, elements, scales).unwrap();
    fn compare<T: Float>(on: &CpuSimd, packed: &PackedMatrix) -> usize {
        let (mut got, mut expected) = (vec![T::default(); 65536], vec![T::default(); 65536]);
        on.dequantize(packed.view(), 1.0, T::wrap_mut(&mut got)).unwrap();
        reference::dequantize(packed.view(), 1.0, T::wrap_mut(&mut expected)).unwrap();
        assert!(on.dequantize(packed.view(), 0.5, T::wrap_mut(&mut got)).is_err());
        same_bits(&got, &expected, "dequantized")
    }
    each_isa(|on| {
        for (_, on) in backends(on) {
            let compared = compare::<f32>(&on, &packed);
            assert_eq!(compared + compare::<f16>(&on, &packed), 2 * 65536);
            assert_eq!(compare::<bf16>(&on, &packed), 65536);
        }
    });
}
