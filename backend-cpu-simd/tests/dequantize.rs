//! Packed values back to floats, against the reference, bit for bit [C4.4].

mod common;

use common::{Rng, backends, each_isa, same_bits, specs};
use fp4_backend_cpu_simd::CpuSimd;
use fp4_core::{Error, Float, GroupSize, PackedMatrix, QuantSpec, ScaleType, TieMode, reference};
use half::{bf16, f16};

/// Dequantizes to one type, and compares with the reference.
fn check_dequantized<T: Float>(on: &CpuSimd, packed: &PackedMatrix, gs: f32, case: &str) -> usize {
    let values = packed.shape().rows() * packed.shape().k();
    let one = T::from_f32(1.0);
    let (mut got, mut expected) = (vec![one; values], vec![T::default(); values]);
    on.dequantize(packed.view(), gs, T::wrap_mut(&mut got)).unwrap();
    reference::dequantize(packed.view(), gs, T::wrap_mut(&mut expected)).unwrap();
    same_bits(&got, &expected, &format!("{case} {}", T::TYPE))
}

fn check_all_dequantized(on: &CpuSimd, packed: &PackedMatrix, gs: f32, case: &str) -> usize {
    check_dequantized::<f32>(on, packed, gs, case)
        + check_dequantized::<f16>(on, packed, gs, case)
        + check_dequantized::<bf16>(on, packed, gs, case)
}

#[test]
fn dequantize_equals_the_reference() {
    each_isa(|on| {
        let (mut rng, backends) = (Rng(24), backends(on));
        let mut compared = 0;
        for spec in specs().into_iter().filter(|s| s.tie() == TieMode::Even) {
            for (rows, k) in [(0, 128), (2, 0), (1, 128), (3, 384), (65, 1152), (1, 65536)] {
                let shape = spec.shape(rows, k).unwrap();
                let codes = (0..shape.codes_len()).map(|_| rng.byte()).collect();
                let scales = (0..shape.scales_len()).map(|_| rng.byte()).collect();
                let packed = PackedMatrix::new(shape, codes, scales).unwrap();
                let (threads, backend) = &backends[rng.below(backends.len())];
                let gs = spec.global_scale();
                let case = format!("dequantize {spec:?} {rows}x{k} {threads}");
                compared += check_all_dequantized(backend, &packed, gs, &case);
                let mut long = vec![0f32; rows * k + 1];
                let error = backend.dequantize(packed.view(), gs, (&mut long[..]).into());
                assert!(matches!(error, Err(Error::Len { .. })));
                assert!(long.iter().all(|&x| x == 0.0));
                let out = (&mut long[..rows * k]).into();
                let error = backend.dequantize(packed.view(), f32::INFINITY, out);
                assert!(matches!(error, Err(Error::ScaleSetting { .. })));
            }
        }
        println!("compared {compared} values");
        assert!(compared > 5_000_000);
    });
}

#[test]
fn every_code_in_every_place_under_every_scale_byte_dequantizes_to_the_reference() {
    each_isa(|on| {
        let mut compared = 0;
        for ty in ScaleType::ALL {
            for group in GroupSize::ALL {
                // Ordinary values; f16 subnormals; f32 subnormals; overflow of f16 and of f32.
                let settings: [f32; 4] = match ty {
                    ScaleType::E8M0 => [1.0 / 3.0, 0.9 * 2f32.powi(-22), 1e-30, 1.9],
                    ScaleType::E4M3 => [0.1, 1.1e-7, 1e-40, 7.5e35],
                };
                for gs in settings {
                    // A row for each scale byte; every code goes through every place of 16.
                    let spec = QuantSpec::new(ty, group, gs, 1.0).unwrap();
                    let k = 256 * group.get() / 16;
                    let shape = spec.shape(256, k).unwrap();
                    let row_bytes = k / 2;
                    let code = |i: usize| ((i + i / 16) % 16) as u8;
                    let codes = (0..shape.codes_len())
                        .map(|i| i % row_bytes)
                        .map(|i| code(2 * i) | code(2 * i + 1) << 4)
                        .collect();
                    let row_groups = k / group.get();
                    let scales = (0..shape.scales_len()).map(|i| (i / row_groups) as u8).collect();
                    let packed = PackedMatrix::new(shape, codes, scales).unwrap();
                    let case = format!("{spec:?}");
                    compared += check_all_dequantized(on, &packed, gs, &case);
                }
            }
        }
        println!("compared {compared} values");
        assert_eq!(compared, 3 * 2 * 4 * 256 * (256 + 512 + 1024 + 2048));
    });
}
