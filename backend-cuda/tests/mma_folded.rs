//! The mma.sync kernels on folded operands against the reference, bit for bit (C6): ragged shapes,
//! every kind of data, splits of K, every bound on it and one past it, and what is left.
//!
//! Needs a device, or the stand-in of `emulator/` in `LD_LIBRARY_PATH`: feature `emulated`.

#![cfg(feature = "emulated")]
#![allow(missing_docs)]

mod common;

use common::Rng;
use common::data::{DATA, Data, check, drawn, matrix};
use fp4_backend_cuda::{Cuda, MatmulKernel};
use fp4_core::{Encoding, Format, PackedMatrix, PackedShape};

/// Operands of the products that have these kernels.
const PRODUCTS: [(Encoding, Format); 3] = [
    (Encoding::MxFp4, Format::MxFp4),
    (Encoding::NvFp4, Format::NvFp4),
    (Encoding::MxInt8, Format::MxFp4),
];

fn on(ranges: usize) -> Cuda {
    Cuda::open(0).unwrap().with_matmul_kernel(MatmulKernel::MmaFolded { ranges })
}

#[test]
fn every_product_data_shape_and_split_has_the_references_bits() {
    let (mut rng, mut compared, mut levels) = (Rng(40), 0, 0);
    let shapes = [
        ([0, 5, 64], 0),
        ([3, 0, 64], 2),
        ([3, 5, 0], 0),
        ([1, 1, 32], 9),
        ([64, 128, 256], 1),
        ([65, 129, 416], 3),
        ([17, 130, 1056], 0),
        ([129, 33, 1056], 2),
    ];
    for (a, b) in PRODUCTS {
        for data in DATA.into_iter().chain([Data::HeavyTails]) {
            for ([m, n, k], ranges) in shapes {
                let cuda = on(ranges);
                let left = drawn(&mut rng, a, [m, k], data);
                // Outliers are the activations'.
                let of_b = if data == Data::Outliers { Data::Close } else { data };
                let right = drawn(&mut rng, b.into(), [n, k], of_b);
                let case = format!("{a:?} by {b} {data:?} {m}x{n}x{k} in {ranges} ranges");
                let paths = check(&cuda, &left, &right, &case);
                if data == Data::Close {
                    assert_eq!(paths.narrow, (m * n) as u64, "{case}: {paths:?}");
                }
                // Rows of few groups may agree on no base.
                if data == Data::Outliers && m * n * k > 0 && (b == Format::MxFp4 || k > 1000) {
                    assert_eq!(cuda.tiles_left().unwrap().0, 0, "{case}");
                    levels += paths.planes;
                }
                compared += m * n;
            }
        }
    }
    println!("folded: {compared} outputs compared, {levels} by several levels, 0 differ");
    assert_eq!(compared, 3 * 6 * (15 + 1 + 8192 + 8385 + 2210 + 4257));
    assert!(levels > 50_000, "{levels}");
}

#[test]
fn mxint8_by_nvfp4_goes_by_the_kernel_on_packed_operands() {
    let (mut rng, cuda) = (Rng(41), on(3));
    let a = drawn(&mut rng, Encoding::MxInt8, [70, 160], Data::Close);
    let b = drawn(&mut rng, Encoding::NvFp4, [9, 160], Data::Close);
    let paths = check(&cuda, &a, &b, "MXINT8 by NVFP4");
    assert_eq!((paths.narrow, paths.planes), (0, 630));
    assert_eq!(cuda.tiles_left().unwrap(), (0, 0));
}

#[test]
fn lists_longer_than_their_room_are_gone_through_in_parts() {
    // Two windows in half the steps of B and in some of A: levels of 12, 113 and 200 products, cut
    // at 192, and by ranges of K.
    let row = |far: fn(usize) -> bool| -> Vec<(u8, u8)> {
        (0..200).map(|g| (0x17 + (g % 7) as u8, if far(g) { 125 } else { 120 })).collect()
    };
    let a = [row(|g| g % 16 == 0), row(|g| g == 15), row(|_| false)];
    let b = [row(|g| g % 2 == 0 && g < 190), row(|_| false), row(|g| g % 4 == 2)];
    let (a, b) = (matrix(Encoding::MxFp4, &a), matrix(Encoding::MxFp4, &b));
    for ranges in [1, 4] {
        let cuda = on(ranges);
        let paths = check(&cuda, &a, &b, &format!("{ranges} ranges"));
        assert_eq!((paths.planes, cuda.tiles_left().unwrap()), (9, (0, 1)), "{ranges} ranges");
    }
}

/// Rows for the 32-bit bound, multiplied both ways; how many tiles were left.
fn left(a: (Encoding, &[(u8, u8)]), b: (Encoding, &[(u8, u8)]), case: &str) -> usize {
    let (a, b) = (matrix(a.0, &[a.1.to_vec()]), matrix(b.0, &[b.1.to_vec()]));
    let left = [1, 3].map(|ranges| {
        let cuda = on(ranges);
        check(&cuda, &a, &b, &format!("{case}, {ranges} ranges"));
        let (left, tiles) = cuda.tiles_left().unwrap();
        assert_eq!(tiles, 1, "{case}");
        left
    });
    assert_eq!(left[0], left[1], "{case}");
    left[0]
}

#[test]
fn mxfp4_levels_on_the_bound_and_one_past_it() {
    const MX: Encoding = Encoding::MxFp4;
    // 16^3 + 12 * 16^2 + 7 * 16 + 1 = 7281 steps in units of the lowest level: the most.
    for (lowest, expected) in [(1, 0), (2, 1)] {
        for sign in [0x77, 0xFF] {
            let mut a = vec![(0x77, 135); 1]; // window 3, shift 3
            a.extend(vec![(0x77, 131); 12]); // window 2, shift 3
            a.extend(vec![(0x77, 127); 7]); // window 1, shift 3
            a.extend(vec![(0x77, 120); lowest]); // window 0, whose shift 0 makes it the base
            let mut b = vec![(sign, 123); a.len()]; // shift 3 but for one
            b[3] = (0x77, 120);
            let case = format!("{lowest} steps of the lowest level, sign {sign:x}");
            assert_eq!(left((MX, &a), (MX, &b), &case), expected, "{case}");
            assert_eq!(left((MX, &b), (MX, &a), &case), expected, "{case}");
        }
    }
}

#[test]
fn nvfp4_levels_on_the_bound_and_one_past_it() {
    const NV: Encoding = Encoding::NvFp4;
    // Steps of two groups. 2 * 64^2 + 64 + 29 = 8285 in units of the lowest level: the most.
    let (top, high, low, base) = (0x67, 0x67, 0x37, 0x0F); // fields 12, 12, 6, 1, significand 15
    for (lowest, expected) in [(29, 0), (30, 1)] {
        for sign in [0x77, 0xFF] {
            let mut a = vec![(0x77, top); 2 * 2];
            a.extend(vec![(0x77, high); 2]);
            a.extend(vec![(0x77, low); 2 * lowest]);
            *a.last_mut().unwrap() = (0x77, base);
            let mut b = vec![(sign, top); 2 * 2];
            b.extend(vec![(sign, low); 2 + 2 * lowest]);
            *b.last_mut().unwrap() = (0x77, base);
            let case = format!("{lowest} steps of the lowest level, sign {sign:x}");
            assert_eq!(left((NV, &a), (NV, &b), &case), expected, "{case}");
            assert_eq!(left((NV, &b), (NV, &a), &case), expected, "{case}");
        }
    }
}

#[test]
fn mxint8_levels_on_the_bound_and_one_past_it() {
    // 16^3 + 26 * 16^2 + 10 * 16 + 10 = 10,922 steps in units of the lowest level: the most.
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
            let got = left((Encoding::MxInt8, &a), (Encoding::MxFp4, &b), &case);
            assert_eq!(got, expected, "{case}");
        }
    }
}

#[test]
fn every_pair_of_elements_under_every_shift_multiplies_alone() {
    // Sums of many hide what one gets wrong in both directions.
    let cuda = on(1);
    let codes: Vec<u8> = (0..16).map(|code| code | code << 4).collect();
    let alone = |bytes: &[u8], top: u8, low: u8, group: usize| -> Vec<Vec<(u8, u8)>> {
        let pad = 32 / group;
        let row = |&byte: &u8| [vec![(byte, top); pad], vec![(bytes[1], low); pad]].concat();
        bytes.iter().map(row).collect()
    };
    let elements: Vec<u8> = (0..=255).collect();
    for shift in 0..4 {
        let b = matrix(Encoding::MxFp4, &alone(&codes, 120 + shift, 120, 32));
        let a = matrix(Encoding::MxFp4, &alone(&codes, 123 - shift, 120, 32));
        assert_eq!(check(&cuda, &a, &b, &format!("MXFP4 {shift}")).narrow, 256);
        let a = matrix(Encoding::MxInt8, &alone(&elements, 120 + shift, 120, 32));
        assert_eq!(check(&cuda, &a, &b, &format!("MXINT8 {shift}")).narrow, 4096);
    }
    // All significands of e4m3 under every shift of a window, of both signs.
    for field in 1..=6u8 {
        for sign in [0, 0x80] {
            for significand in 0..8 {
                let scale = sign | field << 3 | significand;
                let a = matrix(Encoding::NvFp4, &alone(&codes, scale, 0x08, 16));
                let b = matrix(Encoding::NvFp4, &alone(&codes, 0x37, 0x08, 16));
                assert_eq!(check(&cuda, &a, &b, &format!("NVFP4 {scale:x}")).narrow, 256);
            }
        }
    }
    assert_eq!(cuda.tiles_left().unwrap().0, 0);
}

#[test]
fn only_the_tiles_that_cannot_be_proved_are_left_and_they_are_right() {
    let mut rng = Rng(42);
    for (a, b) in PRODUCTS {
        let (far, near) = match b {
            Format::MxFp4 => (146, 100),
            Format::NvFp4 => (0x78, 0x08),
        };
        let step = if b == Format::MxFp4 { 5 } else { 0x38 };
        // Many windows in every step of the first rows: no room for the extra blocks. The second
        // tile of A is plain; B has three.
        for (m, plain_from, expected) in [(130, 128, (3, 6)), (60, 0, (0, 3)), (50, 40, (3, 3))] {
            let shape = PackedShape::encoded(a, m, 512).unwrap();
            let codes = (0..shape.codes_len()).map(|_| rng.next() as u8 | 1).collect();
            let groups = shape.row_groups();
            let scales = (0..shape.scales_len())
                .map(|i| match rng.below(3) {
                    _ if i / groups >= plain_from => near,
                    0 => near,
                    1 => near + step,
                    _ => far,
                })
                .collect();
            let left = PackedMatrix::new(shape, codes, scales).unwrap();
            let right = drawn(&mut rng, b.into(), [300, 512], Data::Close);
            for ranges in [1, 2] {
                let cuda = on(ranges);
                let case = format!("{a:?} by {b} {m} rows {ranges} ranges");
                check(&cuda, &left, &right, &case);
                assert_eq!(cuda.tiles_left().unwrap(), expected, "{case}");
            }
        }
    }
}

#[test]
fn outputs_at_the_ends_of_the_short_way_of_rounding_and_past_them() {
    let cuda = on(1);
    // One group a row: 2^e is the unit of a sum, e the sum of the scale bytes less 256. From -126
    // to 82 outputs take one conversion; the ends of f32 lie past both.
    for e in [-256, -150, -149, -138, -127, -126, 0, 82, 83, 120, 127, 128, 252] {
        let of_a = (e + 256) / 2;
        let (of_a, of_b) = (of_a as u8, (e + 256 - of_a) as u8);
        for (x, y) in [(0x77, 0x77), (0x11, 0x11), (0x2B, 0x31), (0x00, 0x70)] {
            let a = matrix(Encoding::MxFp4, &[vec![(x, of_a)], vec![(y, of_a)]]);
            let b = matrix(Encoding::MxFp4, &[vec![(y, of_b)], vec![(0xFF, of_b)]]);
            check(&cuda, &a, &b, &format!("e = {e}, codes {x:x} {y:x}"));
        }
    }
    // Sums around a tie of f32, in the shape that two roundings get wrong: S = 2^24 + 1 + 2^-30.
    for base in [40u8, 54, 60, 64, 70, 100, 127, 180, 190, 200] {
        let row = |codes: [u8; 3], scales: [u8; 3]| -> Vec<(u8, u8)> {
            codes.into_iter().zip(scales).collect()
        };
        for codes in [[0x22, 0x22, 0x22], [0x22, 0xAA, 0x22], [0x23, 0x31, 0xA9], [0x77; 3]] {
            let top = base.saturating_add(25);
            let a = [row(codes, [top, base, base]), row(codes, [base; 3])];
            let b = [row([0x22; 3], [base, base, base - 30]), row(codes, [base; 3])];
            let (a, b) = (matrix(Encoding::MxFp4, &a), matrix(Encoding::MxFp4, &b));
            check(&cuda, &a, &b, &format!("{base} {codes:x?}"));
        }
    }
}

#[test]
fn rows_without_live_groups_count_nowhere_and_are_zeros() {
    // Rows and columns of zeros beside live ones at both ends of the short way of rounding and past
    // them, beside NaN, and alone. `None` is a row of zeros under the lowest scale or the highest.
    let (cuda, mut compared) = (on(1), 0);
    let kinds: [&[Option<u8>]; 6] = [
        &[Some(127), None],
        &[None],
        &[Some(1), Some(209), None],
        &[Some(1), Some(210), None],
        &[Some(255), None],
        &[Some(255), Some(127), None],
    ];
    for encoding in [Encoding::MxFp4, Encoding::MxInt8] {
        let side = |encoding: Encoding, kind: &[Option<u8>], rows: usize| {
            let row = |r: usize| match kind[r % kind.len()] {
                Some(scale) => vec![(0x52 + (r % 6) as u8, scale)],
                None => vec![(0, if r.is_multiple_of(2) { 0 } else { 254 })],
            };
            matrix(encoding, &(0..rows).map(row).collect::<Vec<_>>())
        };
        for of_a in kinds {
            for of_b in kinds {
                let a = side(encoding, of_a, 70);
                let b = side(Encoding::MxFp4, of_b, 130);
                check(&cuda, &a, &b, &format!("{encoding:?} {of_a:?} by {of_b:?}"));
                compared += 70 * 130;
            }
        }
    }
    println!("rows of zeros: {compared} outputs compared, 0 differ");
    assert_eq!(compared, 2 * 36 * 9100);
}
