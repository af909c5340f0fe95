//! The decode kernel's fold of MXFP4: one int32 over a range of K where rows span at most three
//! exponents, on and one past each of its limits, against the reference, bit for bit [C6].
//!
//! Needs a device, or the stand-in of `emulator/` in `LD_LIBRARY_PATH`: feature `emulated`.

#![cfg(feature = "emulated")]
#![allow(missing_docs)]

mod common;

use common::{Rng, same_bits};
use fp4_backend_cuda::{Cuda, MatmulKernel};
use fp4_core::{Format, Matmul, PackedMatrix, PackedShape, reference};

/// A matrix of one row for each list of groups, each (code byte, scale byte).
fn matrix(rows: &[Vec<(u8, u8)>]) -> PackedMatrix {
    let shape = PackedShape::of(Format::MxFp4, rows.len(), 32 * rows[0].len()).unwrap();
    let groups = || rows.iter().flatten();
    let codes = groups().flat_map(|g| [g.0; 16]).collect();
    PackedMatrix::new(shape, codes, groups().map(|g| g.1).collect()).unwrap()
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
    for (k, sign) in [(232_960, 0x77), (232_960, 0xFF), (233_216, 0xFF)] {
        // Every term is 96 * 96 but those of a group, which makes the rows span three exponents.
        let row = |code: u8| -> Vec<(u8, u8)> {
            let mut groups = vec![(code, 103); k / 32];
            groups[5].1 = 100;
            groups
        };
        let (a, b) = (matrix(&[row(0x77)]), matrix(&[row(sign)]));
        check(&cuda, 1, &a, &b, &format!("{k} {sign:x}"));
    }
}

#[test]
fn any_rows_columns_and_splits() {
    let (cuda, mut rng, mut compared) = (Cuda::open(0).unwrap(), Rng(50), 0);
    for [m, n, k] in [[1, 1, 32], [2, 17, 288], [8, 129, 1056], [11, 140, 2080], [33, 16, 544]] {
        for ranges in [0, 1, 3] {
            // Now and then a NaN among the scales of a row.
            let scale = |rng: &mut Rng| match rng.below(400) {
                0 => 255,
                _ => 120 + rng.byte() % 4,
            };
            let a = common::operand(&mut rng, Format::MxFp4, m, k, scale);
            let b = common::operand(&mut rng, Format::MxFp4, n, k, scale);
            compared += check(&cuda, ranges, &a, &b, &format!("{m}x{n}x{k} in {ranges}"));
        }
    }
    println!("decode fold: {compared} outputs compared, 0 differ");
    assert!(compared > 9_000, "{compared}");
}
