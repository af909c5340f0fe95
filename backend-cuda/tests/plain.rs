//! Quantization as most is done, by reciprocals and without counts, against the reference, bit for
//! bit [C4, C5]: `kernels/reciprocal.cuh` has the proof, and its limits are tested on and past
//! here.
//!
//! Needs a device, or the stand-in of `emulator/` in `LD_LIBRARY_PATH`: feature `emulated`.

#![cfg(feature = "emulated")]
#![allow(missing_docs)]

mod common;

use common::Rng;
use fp4_backend_cuda::{Cuda, MatmulKernel};
use fp4_core::backend::{Resident, Source};
use fp4_core::{
    Float, FloatType, Format, GroupSize, PackedMatrix, QuantSpec, QuantizeInput, ScaleType,
    Transform, bf16, f16, hadamard, reference,
};

/// Quantizes on the device, nothing counted, and compares codes and scale bytes; returns the number
/// of values.
fn check<T: Float>(
    cuda: &Cuda,
    x: &[T],
    [rows, k]: [usize; 2],
    spec: &QuantSpec,
    transform: Option<Transform<'_>>,
    case: &str,
) -> usize {
    let input = QuantizeInput::new(x, rows, k, spec).unwrap().with_transform(transform).unwrap();
    let [mut expected, mut got] = [(); 2].map(|()| PackedMatrix::zeros(input.shape()));
    let [mut expected_rows, mut got_rows] = [(); 2].map(|()| vec![0f32; rows]);
    let mut to = expected.view_mut().with_row_scales(&mut expected_rows).unwrap();
    reference::quantize(&input, &mut to).unwrap();
    let mut out = cuda.empty_operand().unwrap();
    let loaded = transform.map(|t| cuda.load_transform(&t, T::TYPE).unwrap());
    let from = Source::Host(x.into());
    cuda.quantize_resident(from, [rows, k], spec, loaded.as_ref(), &mut out, None).unwrap();
    cuda.export(&out, &mut got.view_mut().with_row_scales(&mut got_rows).unwrap()).unwrap();
    assert_eq!(got.scales(), expected.scales(), "{case}: scales");
    assert_eq!(got.codes(), expected.codes(), "{case}: codes");
    x.len()
}

/// Values at every boundary of a code under the unit `d`, and their neighbours, of both signs, in
/// groups that begin with six units.
fn at_boundaries(d: f32, group: usize) -> Vec<f32> {
    let mut x: Vec<f32> = Vec::new();
    for midpoint in [0.25f32, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 0.0] {
        let mut value = midpoint * d;
        (0..3).for_each(|_| value = value.next_down());
        for _ in 0..7 {
            for value in [value, -value] {
                if x.len().is_multiple_of(group) {
                    x.push(6.0 * d);
                }
                x.push(value);
            }
            value = value.next_up();
        }
    }
    x.resize(x.len().next_multiple_of(group), 0.0);
    x
}

/// Significands of units: the 42 that a quotient near a boundary could be mistaken under, ordinary
/// ones beside them, and drawn ones.
fn significands(rng: &mut Rng) -> Vec<u32> {
    let multiples = [2u32, 3, 4].map(|i| i << 22);
    let near = multiples.into_iter().flat_map(|at| at - 12..=at + 12);
    let mut all: Vec<u32> = near.filter(|b| (1 << 23..1 << 24).contains(b)).collect();
    all.extend((0..40).map(|_| 1 << 23 | rng.below(1 << 23) as u32));
    all
}

#[test]
fn every_boundary_under_every_unit_that_matters() {
    let (cuda, mut rng, mut values) = (Cuda::open(0).unwrap(), Rng(40), 0);
    // 2^-60 and 2^60 are the limits.
    let exponents = [0, -60, -61, 59, 60, -20, 37];
    for (scale, group) in [(ScaleType::E8M0, GroupSize::G32), (ScaleType::E4M3, GroupSize::G16)] {
        for significand in significands(&mut rng) {
            for exponent in &exponents[..if significand % 3 == 0 { 7 } else { 1 }] {
                let unit = significand as f32 / (1 << 23) as f32 * 2f32.powi(*exponent);
                // The exponent by the scale, where it has that many.
                let global =
                    if scale == ScaleType::E8M0 { unit / 2f32.powi(*exponent) } else { unit };
                let spec = QuantSpec::new(scale, group, global, 6.0).unwrap();
                let x = at_boundaries(unit, group.get());
                let case = format!("{scale} unit {unit:e} ({significand:#x})");
                values += check(&cuda, &x, [1, x.len()], &spec, None, &case);
            }
        }
    }
    println!("{values} values quantized");
    assert!(values > 30_000, "{values}");
}

#[test]
fn scales_by_a_reciprocal_at_every_rounding_boundary() {
    let (cuda, mut rng, mut values) = (Cuda::open(0).unwrap(), Rng(41), 0);
    for (scale, group) in [(ScaleType::E8M0, GroupSize::G32), (ScaleType::E4M3, GroupSize::G16)] {
        for (gs, ss) in
            [(0.1f32, 6.0f32), (1.0 / 3.0, 4.0), (0.999_999_94, 6.0), (1.0, 1.0), (7e-4, 5.3)]
        {
            let spec = QuantSpec::new(scale, group, gs, ss).unwrap();
            let divisor = ss * gs;
            let mut x = Vec::new();
            for byte in 0..=254u8 {
                let (here, next) = (scale.decode(byte), scale.decode(byte.saturating_add(1)));
                if here.is_nan() || next.is_nan() || here < 0.0 || next < here {
                    continue;
                }
                let middle = (here / 2.0 + next / 2.0) * divisor;
                for amax in [here * divisor, middle, middle.next_up(), middle.next_down()] {
                    x.push(if amax.is_finite() { amax } else { 1.0 });
                    x.extend(
                        (1..group.get())
                            .map(|_| (rng.below(201) as f32 / 100.0 - 1.0) * amax.min(1e30)),
                    );
                }
            }
            values += check(&cuda, &x, [1, x.len()], &spec, None, &format!("{scale} {gs} {ss}"));
        }
    }
    println!("{values} values quantized");
    assert!(values > 100_000, "{values}");
}

#[test]
fn on_and_one_past_each_limit() {
    let cuda = Cuda::open(0).unwrap();
    let (least, most) = (2f32.powi(-60), 2f32.powi(60));
    for (scale, group) in [(ScaleType::E8M0, GroupSize::G32), (ScaleType::E4M3, GroupSize::G16)] {
        // Of amax.
        let mut x = Vec::new();
        for amax in [least, least.next_down(), most, most.next_up(), 1e-45, f32::MAX, 0.0, -0.0] {
            x.extend((0..group.get()).map(|i| amax / (1 << (i % 5)) as f32 * [1.0, -1.0][i % 2]));
        }
        for odd in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            x.extend((0..group.get()).map(|i| if i == 5 { odd } else { i as f32 - 7.0 }));
        }
        // Of the global scale and the divisor.
        let one = 1.0f32;
        let gs = [one, least, least.next_down(), most, most.next_up(), one.next_down(), most / 6.0];
        for (gs, ss) in gs.into_iter().flat_map(|gs| [(gs, 1.0), (gs, 6.0)]) {
            let Ok(spec) = QuantSpec::new(scale, group, gs, ss) else { continue };
            let scaled: Vec<f32> = x.iter().map(|x| x * gs).collect();
            for x in [&x, &scaled] {
                let case = format!("{scale} gs {gs:e} ss {ss}");
                check(&cuda, x, [1, x.len()], &spec, None, &case);
            }
        }
    }
}

#[test]
fn shapes_types_and_transforms() {
    fn of_type<T: Float>(rng: &mut Rng) -> usize {
        let mut values = 0;
        let mut h = vec![0f32; 32 * 32];
        hadamard(32, &mut h).unwrap();
        let t = Transform::shared(&h[..], 32).unwrap();
        // Those of wgmma fold what they quantize.
        for kernel in [MatmulKernel::Mma, MatmulKernel::Wgmma] {
            let cuda = Cuda::open(0).unwrap().with_matmul_kernel(kernel);
            for format in Format::ALL {
                // One block, many; a row of a warp, of 1024 threads and more, of 256 and more.
                let many = if T::TYPE == FloatType::Bf16 { 2080 } else { 96 };
                for (rows, k) in [(1, 32), (3, 288), (67, 416), (2, 8192 + 32), (513, many)] {
                    let x: Vec<T> = (0..rows * k).map(|_| T::from_f32(rng.value())).collect();
                    for transform in [None, Some(t)] {
                        let spec = QuantSpec::usual(format);
                        let case = format!("{kernel:?} {format} {} {rows}x{k}", T::TYPE);
                        values += check(&cuda, &x, [rows, k], &spec, transform, &case);
                    }
                    if format == Format::NvFp4 {
                        let spec = QuantSpec::usual(format).with_row_scales().unwrap();
                        let case = format!("{kernel:?} {format} {} {rows}x{k} rows", T::TYPE);
                        values += check(&cuda, &x, [rows, k], &spec, None, &case);
                    }
                }
            }
        }
        values
    }
    let mut rng = Rng(42);
    let values = of_type::<f32>(&mut rng) + of_type::<f16>(&mut rng) + of_type::<bf16>(&mut rng);
    println!("{values} values quantized");
    assert!(values > 1_000_000, "{values}");
}
