//! Partial sums against the reference, over splits of K [C6].

mod common;

use common::{Rng, SCALES, Scales, backends, each_isa, operand, same_bits};
use fp4_core::{
    Error, ExactSum, FixedSum, Format, Matmul, Partials, PartialsMut, ScaledSums, finish, reference,
};

/// Cuts `0..groups` into up to four ranges, some of them empty.
fn splits(rng: &mut Rng, groups: usize) -> Vec<std::ops::Range<usize>> {
    let mut cuts: Vec<usize> = (0..3).map(|_| rng.below(groups + 1)).collect();
    cuts.extend([0, groups]);
    cuts.sort_unstable();
    cuts.windows(2).map(|w| w[0]..w[1]).collect()
}

#[test]
fn sums_of_parts_equal_the_references_and_finish_to_the_product() {
    each_isa(|on| {
        let (mut rng, mut compared) = (Rng(11), 0);
        let backends = backends(on);
        for format in Format::ALL {
            for (m, n, k) in [(1, 1, 64), (3, 17, 320), (5, 8, 0), (18, 40, 960)] {
                for scales in SCALES {
                    let a = operand(&mut rng, format, m, k, scales);
                    let other = SCALES[rng.below(SCALES.len())];
                    let b = operand(&mut rng, format, n, k, other);
                    let (a, b) = (a.view(), b.view());
                    let backend = &backends[rng.below(backends.len())].1;
                    let weight = backend.prepare(b).unwrap();
                    let case = format!("{format} {m}x{n}x{k} {scales:?}");
                    let (mut got, mut expected) = (vec![0f32; m * n], vec![0f32; m * n]);
                    reference::matmul(a, b, -0.7, (&mut expected[..]).into()).unwrap();

                    let mut exact = vec![ExactSum::ZERO; m * n];
                    let mut exact_ref = exact.clone();
                    let mut fixed = vec![FixedSum::ZERO; m * n];
                    let mut fixed_ref = fixed.clone();
                    for range in splits(&mut rng, a.shape().row_groups()) {
                        let out = PartialsMut::Exact(&mut exact);
                        backend.partial(a, &weight, range.clone(), out).unwrap();
                        let out = PartialsMut::Exact(&mut exact_ref);
                        reference::partial(a, b, range.clone(), out).unwrap();
                        // After every part, so that a flag set too early shows.
                        assert_eq!(exact, exact_ref, "{case} {range:?}");
                        if format == Format::NvFp4 {
                            let out = PartialsMut::Fixed(&mut fixed);
                            backend.partial(a, &weight, range.clone(), out).unwrap();
                            let out = PartialsMut::Fixed(&mut fixed_ref);
                            reference::partial(a, b, range.clone(), out).unwrap();
                            assert_eq!(fixed, fixed_ref, "{case} {range:?}");
                            compared += fixed.len();
                        }
                        compared += exact.len();
                    }
                    finish(Partials::Exact(&exact), [m, n], -0.7, (&mut got[..]).into()).unwrap();
                    compared += same_bits(&got, &expected, &case);
                    if format == Format::NvFp4 {
                        finish(Partials::Fixed(&fixed), [m, n], -0.7, (&mut got[..]).into())
                            .unwrap();
                        compared += same_bits(&got, &expected, &case);
                    }
                }
            }
        }
        println!("compared {compared} sums");
        assert!(compared > 20_000);
    });
}

#[test]
fn fixed_sums_past_2_to_the_20_are_right_or_an_error() {
    each_isa(|on| {
        let (backend, mut rng) = (on.clone(), Rng(12));
        let k = (1 << 20) + 4096;
        let a = operand(&mut rng, Format::NvFp4, 2, k, Scales::Full);
        let b = operand(&mut rng, Format::NvFp4, 2, k, Scales::Full);
        let weight = backend.prepare(b.view()).unwrap();
        let all = 0..a.shape().row_groups();
        let (mut got, mut expected) = (vec![FixedSum::ZERO; 4], vec![FixedSum::ZERO; 4]);
        backend.partial(a.view(), &weight, all.clone(), PartialsMut::Fixed(&mut got)).unwrap();
        let out = PartialsMut::Fixed(&mut expected);
        reference::partial(a.view(), b.view(), all.clone(), out).unwrap();
        assert_eq!(got, expected);

        let mut start = vec![FixedSum { units: i64::MAX, nan: false }; 4];
        let mut largest = a.clone();
        largest.view_mut().buffers().0.fill(0x77);
        largest.view_mut().buffers().1.fill(0x7E);
        let weight = backend.prepare(largest.view()).unwrap();
        let out = PartialsMut::Fixed(&mut start);
        let overflow = backend.partial(largest.view(), &weight, all, out);
        assert_eq!(overflow, Err(Error::PartialOverflow));
        println!("compared {} sums", got.len());
    });
}

#[test]
fn wrong_calls_are_the_references_errors() {
    each_isa(|on| {
        let (backend, mut rng) = (on.clone(), Rng(13));
        let mut checked = 0;
        for format in Format::ALL {
            let a = operand(&mut rng, format, 2, 64, Scales::Close);
            let b = operand(&mut rng, format, 3, 64, Scales::Close);
            let weight = backend.prepare(b.view()).unwrap();
            let groups = a.shape().row_groups();
            #[expect(clippy::reversed_empty_ranges)]
            for (range, len) in [(0..groups + 1, 6), (2..1, 6), (0..1, 5), (0..1, 6)] {
                let mut exact = vec![ExactSum::ZERO; len];
                let mut fixed = vec![FixedSum::ZERO; len];
                let got = backend.partial(
                    a.view(),
                    &weight,
                    range.clone(),
                    PartialsMut::Exact(&mut exact),
                );
                let out = PartialsMut::Exact(&mut exact);
                assert_eq!(got, reference::partial(a.view(), b.view(), range.clone(), out));
                let got = backend.partial(
                    a.view(),
                    &weight,
                    range.clone(),
                    PartialsMut::Fixed(&mut fixed),
                );
                let out = PartialsMut::Fixed(&mut fixed);
                assert_eq!(got, reference::partial(a.view(), b.view(), range, out));
                checked += 2;
            }
        }
        println!("checked {checked} results");
        assert_eq!(checked, 16);
    });
}

/// The units that hold every term of a row and column: what the least scales make.
fn least_exponents(matrix: fp4_core::PackedView<'_>) -> Vec<i32> {
    let ty = matrix.shape().scale_type();
    let of_row = |i: usize| {
        let scales = matrix.row_scales(i).iter();
        let least = scales.filter_map(|&s| ty.parts(s)).map(|s| s.exponent).min();
        least.map_or(0, i32::from)
    };
    (0..matrix.shape().rows()).map(of_row).collect()
}

#[test]
fn sums_in_units_of_rows_and_columns_are_the_references() {
    each_isa(|on| {
        let (mut rng, mut compared, mut refused) = (Rng(14), 0, 0);
        let backends = backends(on);
        for format in Format::ALL {
            for (m, n, k) in [(1, 1, 64), (3, 17, 320), (5, 8, 0), (26, 40, 960)] {
                for scales in SCALES {
                    let a = operand(&mut rng, format, m, k, scales);
                    let other = SCALES[rng.below(SCALES.len())];
                    let b = operand(&mut rng, format, n, k, other);
                    let (a, b) = (a.view(), b.view());
                    let backend = &backends[rng.below(backends.len())].1;
                    let weight = backend.prepare(b).unwrap();
                    // In units that hold all, in ones too large for some terms, and too small.
                    for off in [-2, -9, 1, -60] {
                        let rows: Vec<_> = least_exponents(a)
                            .iter()
                            .map(|e| e + off + rng.below(2) as i32)
                            .collect();
                        let columns = least_exponents(b);
                        let start = vec![[0, 5, i64::MAX][rng.below(3)]; m * n];
                        let (mut got, mut expected) = (start.clone(), start);
                        let groups = 0..a.shape().row_groups();
                        let out = ScaledSums::new(&mut got, &rows, &columns).unwrap();
                        let of_cpu =
                            backend.partial(a, &weight, groups.clone(), PartialsMut::Scaled(out));
                        let out = ScaledSums::new(&mut expected, &rows, &columns).unwrap();
                        let of_ref = reference::partial(a, b, groups, PartialsMut::Scaled(out));
                        let case = format!("{format} {m}x{n}x{k} {scales:?} {off}");
                        match of_ref {
                            Ok(()) => {
                                assert_eq!((of_cpu, got), (Ok(()), expected), "{case}");
                                compared += m * n;
                            }
                            // Terms that are no whole units could add to some that are, which the
                            // backend may take; none of these do.
                            Err(error) => {
                                assert_eq!(of_cpu, Err(error), "{case}");
                                refused += 1;
                            }
                        }
                    }
                }
            }
        }
        println!("compared {compared} sums, {refused} calls refused");
        assert!(compared > 5_000 && refused > 20, "{compared} {refused}");
    });
}

#[test]
fn a_sum_in_units_that_overflows_is_an_error_and_one_that_just_fits_is_not() {
    each_isa(|on| {
        let (backend, mut checked) = (on.clone(), 0);
        for format in Format::ALL {
            let mut a = operand(&mut Rng(15), format, 3, 64, Scales::Close);
            // Every code 6, every scale 1: the sum is 64 * 36.
            a.view_mut().buffers().0.fill(0x77);
            a.view_mut().buffers().1.fill(if format == Format::MxFp4 { 127 } else { 0x38 });
            let weight = backend.prepare(a.view()).unwrap();
            let groups = 0..a.shape().row_groups();
            // 2304 * 2^shift units, the last shift past 63 bits.
            for (shift, start, fits) in [
                (0, i64::MAX - 2304, true),
                (0, i64::MAX - 2303, false),
                (51, i64::MAX - (2304 << 51), true),
                (51, i64::MAX - (2304 << 51) + 1, false),
                (52, 0, false),
                (55, 0, false),
                (62, 0, false),
            ] {
                let mut units = [start; 9];
                let columns = [-shift; 3];
                let out = ScaledSums::new(&mut units, &[0; 3], &columns).unwrap();
                let got =
                    backend.partial(a.view(), &weight, groups.clone(), PartialsMut::Scaled(out));
                let case = format!("{format} {shift} {start}");
                assert_eq!(got.is_ok(), fits, "{case}");
                if fits {
                    assert_eq!(units, [start + (2304 << shift); 9], "{case}");
                } else {
                    assert_eq!(got, Err(Error::PartialOverflow), "{case}");
                }
                checked += 1;
            }
        }
        println!("checked {checked} results");
        assert_eq!(checked, 14);
    });
}
