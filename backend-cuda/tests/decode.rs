//! The decode kernel's folds: int32 over a range of K where rows of MXFP4 span at most three
//! exponents and rows of NVFP4 six, on and one past each limit, against the reference, bit for bit
//! [C6].
//!
//! Needs a device, or the stand-in of `emulator/` in `LD_LIBRARY_PATH`: feature `emulated`.

#![cfg(feature = "emulated")]
#![allow(missing_docs)]

mod common;

use common::{Rng, same_bits};
use fp4_backend_cuda::{Cuda, MatmulKernel};
use fp4_core::{Format, Matmul, PackedMatrix, PackedShape, reference};

/// A matrix of one row for each list of groups, each (code byte, scale byte).
fn matrix_of(format: Format, rows: &[Vec<(u8, u8)>]) -> PackedMatrix {
    let group = if format == Format::MxFp4 { 32 } else { 16 };
    let shape = PackedShape::of(format, rows.len(), group * rows[0].len()).unwrap();
    let groups = || rows.iter().flatten();
    let codes = groups().flat_map(|g| vec![g.0; group / 2]).collect();
    PackedMatrix::new(shape, codes, groups().map(|g| g.1).collect()).unwrap()
}

fn matrix(rows: &[Vec<(u8, u8)>]) -> PackedMatrix {
    matrix_of(Format::MxFp4, rows)
}

/// Multiplies in so many ranges, and compares every bit; all outputs are proved exact in 64 bits.
fn check(cuda: &Cuda, ranges: usize, a: &PackedMatrix, b: &PackedMatrix, case: &str) -> usize {
    let [m, n] = [a, b].map(|of| of.shape().rows());
    let (mut got, mut expected) = (vec![7f32; m * n], vec![0f32; m * n]);
    let cuda = cuda.clone().with_matmul_kernel(MatmulKernel::Decode { ranges });
    let weight = cuda.prepare(b.view()).unwrap();
    let paths = cuda.matmul(a.view(), &weight, 0.75.into(), (&mut got[..]).into()).unwrap();
    reference::matmul(a.view(), b.view(), 0.75, (&mut expected[..]).into()).unwrap();
    assert_eq!(paths.narrow, (m * n) as u64, "{case}: {paths:?}");
    same_bits(&got, &expected, case)
}

#[test]
fn spreads_of_three_and_of_four() {
    let cuda = Cuda::open(0).unwrap();
    for (spread_a, spread_b) in [(3, 3), (4, 3), (3, 4), (4, 4), (0, 3), (0, 0)] {
        for sign in [0x77, 0xFF] {
            // The largest codes at the top but for one group; groups that are not live have scales
            // far away.
            let row = |code: u8, spread: u8| -> Vec<(u8, u8)> {
                let mut groups = vec![(code, 100 + spread); 40];
                groups[20] = (0x11, 100);
                groups[7] = (0x88, 254);
                groups[8] = (0x00, 0);
                groups[9] = (0x80, 131);
                groups
            };
            for rows in [1, 9, 17] {
                let case = format!("{spread_a} {spread_b} {sign:x} {rows}");
                let a = matrix(&vec![row(0x77, spread_a); rows]);
                let b = matrix(&vec![row(sign, spread_b); 3]);
                check(&cuda, 2, &a, &b, &case);
                // One row of many, on either side, and not the first.
                let mut mixed = vec![row(0x77, 3); rows];
                *mixed.last_mut().unwrap() = row(0x77, spread_a);
                let mut weights = vec![row(sign, 2); 130];
                weights[129] = row(sign, spread_b);
                check(&cuda, 1, &matrix(&mixed), &matrix(&weights), &format!("{case} of many"));
            }
        }
    }
}

#[test]
fn the_longest_range_that_an_int32_holds_and_a_stage_more() {
    let cuda = Cuda::open(0).unwrap();
    // Nine rows: fewer are summed by groups.
    for (k, sign) in [(99_840, 0x77), (99_840, 0xFF), (100_096, 0xFF)] {
        // Every term is 96 * 96 but those of a group, which makes the rows span three exponents.
        let row = |code: u8| -> Vec<(u8, u8)> {
            let mut groups = vec![(code, 103); k / 32];
            groups[5].1 = 100;
            groups
        };
        let (a, b) = (matrix(&vec![row(0x77); 9]), matrix(&[row(sign)]));
        check(&cuda, 1, &a, &b, &format!("{k} {sign:x}"));
    }
}

/// Scales of a row's groups in turn; each group has other codes.
fn nvfp4(scales: &[u8], groups: usize, seed: usize) -> Vec<(u8, u8)> {
    let codes = [0x77, 0x7F, 0xF7, 0xFF, 0x12, 0x9C, 0x66, 0x35];
    (0..groups).map(|i| (codes[(i * seed + i / 3) % 8], scales[i % scales.len()])).collect()
}

#[test]
fn nvfp4_scales_of_every_kind() {
    let (cuda, mut compared) = (Cuda::open(0).unwrap(), 0);
    let cases: [(&str, &[u8]); 12] = [
        ("six exponents from the least normal one", &[8, 8 + 55, 20, 33]),
        ("seven", &[15, 8 + 56, 20]),
        ("six to the largest", &[0x7E, 0x7E - 54, 0x60]),
        ("seven to the largest", &[0x7E, 0x7E - 55, 0x60]),
        ("a subnormal one", &[7, 9, 12]),
        ("the largest and zeros of both signs", &[0x7E, 0x00, 0x7D, 0x80]),
        ("low ones and zeros of both signs", &[0x08, 0x80, 0x00, 0x0B]),
        ("the middle and zeros of both signs", &[0x48, 0x00, 0x80, 0x50]),
        ("nothing but zeros", &[0x00, 0x80]),
        ("a negative one", &[0x50, 0xD0, 0x51]),
        ("only negative ones", &[0xD0, 0xD1]),
        ("one mantissa after the other", &[0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47, 0x4F]),
    ];
    let ordinary: &[u8] = &[0x50, 0x57, 0x49];
    for (what, scales) in cases {
        for (of_a, of_b) in [(scales, ordinary), (ordinary, scales), (scales, scales)] {
            for rows in [9, 16] {
                let a: Vec<_> = (0..rows).map(|i| nvfp4(of_a, 72, i + 1)).collect();
                let mut b: Vec<_> = (0..19).map(|i| nvfp4(of_b, 72, 2 * i + 1)).collect();
                b[3] = nvfp4(ordinary, 72, 3);
                let [a, b] = [a, b].map(|rows| matrix_of(Format::NvFp4, &rows));
                compared += check(&cuda, 2, &a, &b, &format!("{what}, {rows} rows"));
            }
        }
    }
    println!("decode fold of NVFP4: {compared} outputs compared, 0 differ");
    assert!(compared > 10_000, "{compared}");
}

#[test]
fn nvfp4_digits_at_their_largest_over_the_longest_range_and_a_stage_more() {
    let cuda = Cuda::open(0).unwrap();
    for (k, sign) in [(33_024, 0x77), (33_024, 0xFF), (33_280, 0xFF)] {
        // 12 * 15 << 6, 90 of 128, and 12 * 13 << 3, whose low digit is 96; codes of 3 are
        // 6 * 13 << 6.
        let row = |code: u8| -> Vec<(u8, u8)> {
            let scales = [0x7F - 1, 0x7D, 0x7D - 24, 0x7E - 48];
            (0..k / 16).map(|i| (code, scales[i % 4])).collect()
        };
        let rows = vec![row(0x77); 9];
        let [a, b] =
            [rows, vec![row(sign), row(sign ^ 0x22)]].map(|r| matrix_of(Format::NvFp4, &r));
        check(&cuda, 1, &a, &b, &format!("{k} {sign:x}"));
    }
}

#[test]
fn any_rows_columns_and_splits() {
    let (cuda, mut rng, mut compared) = (Cuda::open(0).unwrap(), Rng(50), 0);
    for [m, n, k] in [[1, 1, 32], [2, 17, 288], [8, 129, 1056], [11, 140, 2080], [33, 16, 544]] {
        for ranges in [0, 1, 3] {
            for format in [Format::MxFp4, Format::NvFp4] {
                // Now and then a NaN among the scales of a row, which are of 4 or of 6 exponents.
                let scale = |rng: &mut Rng| match (rng.below(400), format) {
                    (0, _) => 255,
                    (_, Format::MxFp4) => 120 + rng.byte() % 4,
                    (_, Format::NvFp4) => 60 + rng.byte() % 48,
                };
                let a = common::operand(&mut rng, format, m, k, scale);
                let b = common::operand(&mut rng, format, n, k, scale);
                compared +=
                    check(&cuda, ranges, &a, &b, &format!("{format:?} {m}x{n}x{k} in {ranges}"));
            }
        }
    }
    println!("decode fold: {compared} outputs compared, 0 differ");
    assert!(compared > 18_000, "{compared}");
}
