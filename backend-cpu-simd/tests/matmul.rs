//! The matmul against the reference, bit for bit [C6].

mod common;

use common::{Rng, SCALES, Scales, backends, each_isa, operand, same_bits};
use fp4_backend_cpu_simd::{CpuSimd, Isa};
use fp4_core::{
    Error, Float, Format, Matmul, PackedMatrix, PackedShape, Paths, PreparedWeight, reference,
};
use half::{bf16, f16};

const ALPHAS: [f32; 8] = [1.0, -0.37, 1e-30, -1e-40, f32::NAN, f32::INFINITY, 0.0, 1e30];

/// One product compared with the reference: outputs compared, and paths.
fn check<T: Float>(
    backend: &CpuSimd,
    a: &PackedMatrix,
    b: &PackedMatrix,
    alpha: f32,
    case: &str,
) -> (usize, Paths) {
    let outputs = a.shape().rows() * b.shape().rows();
    let (mut got, mut expected) = (vec![T::from_f32(7.0); outputs], vec![T::default(); outputs]);
    let weight = backend.prepare(b.view()).unwrap();
    assert_eq!(weight.shape(), b.shape());
    let paths = backend.matmul(a.view(), &weight, alpha.into(), T::wrap_mut(&mut got)).unwrap();
    assert_eq!(paths.narrow + paths.wide + paths.planes, outputs as u64, "{case}");
    reference::matmul(a.view(), b.view(), alpha, T::wrap_mut(&mut expected)).unwrap();
    (same_bits(&got, &expected, case), paths)
}

#[test]
fn every_shape_and_scale_family_equals_the_reference() {
    each_isa(|on| {
        let (backend, mut rng) = (on.clone(), Rng(1));
        let (mut compared, mut paths) = (0, Paths::default());
        for format in Format::ALL {
            for m in [0, 1, 2, 3, 4, 15, 16, 17, 51] {
                for (n, k) in
                    [(1, 32), (7, 96), (8, 64), (9, 224), (33, 480), (0, 64), (5, 0), (20, 512)]
                {
                    for scales in SCALES {
                        let a = operand(&mut rng, format, m, k, scales);
                        let other = SCALES[rng.below(SCALES.len())];
                        let b = operand(&mut rng, format, n, k, other);
                        let alpha = ALPHAS[rng.below(ALPHAS.len())];
                        let case = format!("{format} {m}x{n}x{k} {scales:?} alpha {alpha:e}");
                        let (count, ran) = match rng.below(3) {
                            0 => check::<f32>(&backend, &a, &b, alpha, &case),
                            1 => check::<f16>(&backend, &a, &b, alpha, &case),
                            _ => check::<bf16>(&backend, &a, &b, alpha, &case),
                        };
                        compared += count;
                        paths.merge(&ran);
                    }
                }
            }
        }
        println!("compared {compared} outputs, {paths:?}");
        assert!(compared > 50_000 && paths.narrow + paths.planes > 10_000 && paths.wide > 5_000);
    });
}

#[test]
fn every_output_type_and_alpha_equals_the_reference() {
    each_isa(|on| {
        let (backend, mut rng) = (on.clone(), Rng(2));
        let mut compared = 0;
        for format in Format::ALL {
            for scales in SCALES {
                let a = operand(&mut rng, format, 5, 160, scales);
                let b = operand(&mut rng, format, 11, 160, scales);
                for alpha in ALPHAS {
                    let case = format!("{format} {scales:?} alpha {alpha:e}");
                    compared += check::<f32>(&backend, &a, &b, alpha, &case).0;
                    compared += check::<f16>(&backend, &a, &b, alpha, &case).0;
                    compared += check::<bf16>(&backend, &a, &b, alpha, &case).0;
                }
            }
        }
        println!("compared {compared} outputs");
        assert!(compared > 10_000);
    });
}

#[test]
fn thread_count_and_call_path_never_change_a_bit() {
    each_isa(|on| {
        let mut rng = Rng(3);
        let mut compared = 0;
        for format in Format::ALL {
            // Enough work for several tasks: one row, few rows, many rows.
            for (m, n) in [(1, 1003), (3, 200), (70, 99), (150, 40)] {
                for scales in [Scales::Close, Scales::Full, Scales::Nan] {
                    let a = operand(&mut rng, format, m, 2080, scales);
                    let b = operand(&mut rng, format, n, 2080, Scales::Close);
                    for (threads, backend) in backends(on) {
                        let case = format!("{format} {m}x{n} {scales:?} {threads}");
                        compared += check::<f32>(&backend, &a, &b, 0.5, &case).0;
                    }
                }
            }
        }
        println!("compared {compared} outputs");
        assert!(compared > 80_000);
    });
}

/// A row of groups, each (code byte, scale byte). A code byte with one nibble stands at the start
/// of its group, with zeros after it; others fill the group.
fn row(format: Format, groups: &[(u8, u8)]) -> PackedMatrix {
    let bytes = format.group().get() / 2;
    let shape = PackedShape::of(format, 1, 2 * bytes * groups.len()).unwrap();
    let group = |code: u8| {
        let mut group = vec![if code < 0x10 { 0 } else { code }; bytes];
        group[0] = code;
        group
    };
    let codes = groups.iter().flat_map(|g| group(g.0)).collect();
    PackedMatrix::new(shape, codes, groups.iter().map(|g| g.1).collect()).unwrap()
}

#[test]
fn mxfp4_spreads_on_the_bound_and_past_it() {
    each_isa(|on| {
        let backend = on.clone();
        let (mut compared, mut narrow, mut wide) = (0, 0, 0);
        for spread in [0u8, 20, 36, 37, 38, 39, 40, 41, 42, 60, 100] {
            for (base, split) in [(10, 0), (100, 3), (120, spread / 2)] {
                // All-12 codes: `big` groups at the top of the window, one single unit, and the big
                // ones again with the other sign, so that only the small one is left. Losing its
                // bits, or an overflow on the way, shows.
                for big in [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 200] {
                    let (top_a, top_b) = (base + split, base + spread - split);
                    let mut a = vec![(0x77, top_a); big];
                    let mut b = vec![(0x77, top_b); big];
                    a.push((0x01, base));
                    b.push((0x01, base));
                    a.extend(vec![(0xFF, top_a); big]);
                    b.extend(vec![(0x77, top_b); big]);
                    let case = format!("spread {spread} split {split} base {base}, {big} groups");
                    let (a, b) = (row(Format::MxFp4, &a), row(Format::MxFp4, &b));
                    let (count, paths) = check::<f32>(&backend, &a, &b, 1.0, &case);
                    compared += count;
                    narrow += paths.narrow + paths.planes;
                    wide += paths.wide;
                    // Portable sums also pass through f64.
                    let most = if on.isa() == Isa::Portable { 40 } else { 50 };
                    let term = 4608u128 << spread;
                    let fits = spread <= most && term * (2 * big as u128 + 1) <= i64::MAX as u128;
                    assert_eq!(paths.wide == 0, fits, "{case}");
                }
            }
        }
        println!("compared {compared} outputs, {narrow} narrow, {wide} wide");
        assert!(narrow > 100 && wide > 50);
    });
}

#[test]
fn mxfp4_lengths_on_the_63_bit_bound_and_past_it() {
    each_isa(|on| {
        let backend = on.clone();
        let mut compared = 0;
        // At a joint spread of 40 a term is at most 4608 * 2^40, and 1820 of them fit 63 bits.
        for (spread, most) in [(40u8, 1820usize), (39, 3640)] {
            for (live, narrow) in [(most, 1), (most + 1, 0), (most + 2, 0)] {
                for sign in [0x77u8, 0xFF] {
                    // The last live group sets the unit 2^spread below the others'.
                    let mut a = vec![(sign, 100 + spread); live - 1];
                    let mut b = vec![(0x77, 100); live];
                    a.push((0x11, 100));
                    // Groups of zeros, wherever their scales are, do not count.
                    a.extend([(0x08, 254), (0x80, 0), (0x88, 3)]);
                    b.extend([(0x77, 100), (0x77, 100), (0x00, 254)]);
                    let case = format!("spread {spread}, {live} live groups, sign {sign:#x}");
                    let (a, b) = (row(Format::MxFp4, &a), row(Format::MxFp4, &b));
                    let (count, paths) = check::<f32>(&backend, &a, &b, 1.0, &case);
                    compared += count;
                    assert_eq!(paths.narrow + paths.planes, narrow, "{case}");
                }
            }
        }
        println!("compared {compared} outputs");
        assert_eq!(compared, 12);
    });
}

#[test]
fn nvfp4_extremes_at_any_length() {
    each_isa(|on| {
        let backend = on.clone();
        let mut compared = 0;
        for groups in [1usize, 2, 63, 64, 65, 75, 76, 77, 78, 79, 130, 5000, 65536, 100_000] {
            for (top_a, top_b) in [(0x7E, 0x7E), (0xFE, 0x7E), (0xFE, 0xFE)] {
                // The largest terms, then one smallest, then most of the largest taken away again.
                let mut a = vec![(0x77, top_a); groups];
                let mut b = vec![(0x77, top_b); groups];
                a.push((0x01, 0x01));
                b.push((0x01, 0x81));
                for undo in [0, groups - 1, groups] {
                    let (mut a, mut b) = (a.clone(), b.clone());
                    a.extend(vec![(0xFF, top_a); undo]);
                    b.extend(vec![(0x77, top_b); undo]);
                    let case = format!("{groups} groups, {top_a:#x} {top_b:#x}, {undo} undone");
                    let narrow = a.len() <= 65537;
                    let (a, b) = (row(Format::NvFp4, &a), row(Format::NvFp4, &b));
                    let (count, paths) = check::<f32>(&backend, &a, &b, 1.0, &case);
                    compared += count;
                    assert!(!narrow || paths.wide == 0, "{case}: {paths:?}");
                }
            }
        }
        println!("compared {compared} outputs");
        assert!(compared > 100);
    });
}

#[test]
fn padding_stays_on_the_narrow_path() {
    each_isa(|on| {
        let (backend, mut rng) = (on.clone(), Rng(5));
        let mut compared = 0;
        for format in Format::ALL {
            let a = operand(&mut rng, format, 9, 160, Scales::Close);
            let b = operand(&mut rng, format, 10, 160, Scales::Close);
            let (pa, pb) = (a.padded_k().unwrap(), b.padded_k().unwrap());
            let (count, paths) = check::<f32>(&backend, &pa, &pb, 1.0, "padded");
            assert_eq!((paths.narrow + paths.planes, paths.wide), (90, 0), "{format}");
            let mut plain = vec![0f32; 90];
            let mut padded = vec![0f32; 90];
            let weight = backend.prepare(b.view()).unwrap();
            backend.matmul(a.view(), &weight, 1.0.into(), (&mut plain[..]).into()).unwrap();
            let weight = backend.prepare(pb.view()).unwrap();
            backend.matmul(pa.view(), &weight, 1.0.into(), (&mut padded[..]).into()).unwrap();
            compared += count + same_bits(&padded, &plain, "padding changes nothing");
        }
        println!("compared {compared} outputs");
        assert!(compared > 0);
    });
}

#[test]
fn a_nan_scale_makes_its_row_or_column_nan_and_no_other() {
    each_isa(|on| {
        let (backend, mut rng) = (on.clone(), Rng(6));
        let mut checked = 0;
        for format in Format::ALL {
            let nan_byte = format.scale_type().nan_byte();
            let (a, b) = (
                operand(&mut rng, format, 6, 64, Scales::Close),
                operand(&mut rng, format, 13, 64, Scales::Close),
            );
            let with_nan = |matrix: &PackedMatrix, row: usize| {
                let mut matrix = matrix.clone();
                matrix.view_mut().row(row).1[1] = nan_byte;
                matrix.view_mut().row(row).0.fill(0); // NaN even where all codes are zero
                matrix
            };
            let (a, b) = (with_nan(&a, 4), with_nan(&b, 9));
            let mut y = [f16::ZERO; 6 * 13];
            let weight = backend.prepare(b.view()).unwrap();
            backend.matmul(a.view(), &weight, 2.0.into(), (&mut y[..]).into()).unwrap();
            for (i, y) in y.iter().enumerate() {
                assert_eq!(y.to_bits() == 0x7E00, i / 13 == 4 || i % 13 == 9, "output {i}");
                checked += 1;
            }
        }
        println!("checked {checked} outputs");
        assert!(checked > 0);
    });
}

#[test]
fn operands_that_do_not_fit_are_the_references_errors() {
    each_isa(|on| {
        let (backend, mut rng) = (on.clone(), Rng(7));
        let a = operand(&mut rng, Format::MxFp4, 2, 64, Scales::Close);
        let mut checked = 0;
        for b in [
            operand(&mut rng, Format::NvFp4, 3, 64, Scales::Close),
            operand(&mut rng, Format::MxFp4, 3, 96, Scales::Close),
            operand(&mut rng, Format::MxFp4, 4, 64, Scales::Close),
        ] {
            let mut y = [5f32; 6];
            let weight = backend.prepare(b.view()).unwrap();
            let got =
                backend.matmul(a.view(), &weight, 1.0.into(), (&mut y[..]).into()).unwrap_err();
            let expected = reference::matmul(a.view(), b.view(), 1.0, (&mut y[..]).into());
            assert_eq!(Err(got), expected);
            assert_eq!(y, [5.0; 6]);
            checked += 1;
        }
        let group = fp4_core::GroupSize::G64;
        let shape = PackedShape::new(2, 64, fp4_core::ScaleType::E8M0, group).unwrap();
        let odd = PackedMatrix::zeros(shape);
        assert!(matches!(backend.prepare(odd.view()), Err(Error::NotAMatmulFormat { .. })));
        println!("checked {checked} errors");
        assert!(checked > 0);
    });
}
