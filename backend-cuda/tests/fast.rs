//! The kernels for few rows and for Hopper, against the reference, bit for bit (C6): ragged shapes,
//! every kind of data, splits of K, every bound on it and one past it, and forced fallbacks.
//!
//! Needs a device, or the stand-in of `emulator/` in `LD_LIBRARY_PATH`: feature `emulated`.

#![cfg(feature = "emulated")]
#![allow(missing_docs)]

use fp4_backend_cuda::{Cuda, MatmulKernel};
use fp4_core::{
    Format, Matmul, PackedMatrix, PackedShape, Paths, PreparedWeight, bf16, f16, reference,
};

const FORMATS: [Format; 2] = [Format::MxFp4, Format::NvFp4];
const DECODE: MatmulKernel = MatmulKernel::Decode { ranges: 0 };

/// splitmix64 (Steele, Lea and Flood, 2014).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// How the scales of a random operand are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Data {
    /// Two exponents, as of Gaussian values.
    Close,
    /// One group in eight is 16 to 32 times as large, the same groups in every row.
    Outliers,
    /// As of Student's t with few degrees of freedom.
    HeavyTails,
    /// Every finite byte, negative ones too.
    Full,
    /// NaN, but rarely.
    Nan,
    /// Zero scales and zero codes among others.
    Sparse,
}

const DATA: [Data; 6] =
    [Data::Close, Data::Outliers, Data::HeavyTails, Data::Full, Data::Nan, Data::Sparse];

fn operand(rng: &mut Rng, format: Format, [rows, k]: [usize; 2], data: Data) -> PackedMatrix {
    let shape = PackedShape::of(format, rows, k).unwrap();
    let mx = format == Format::MxFp4;
    let mut codes: Vec<u8> = (0..shape.codes_len()).map(|_| rng.next() as u8).collect();
    let groups = shape.row_groups().max(1);
    // The same groups for every operand of this K: outlier channels.
    let outlier = |g: usize| (g * 0x9E37).is_multiple_of(8);
    let scales: Vec<u8> = (0..shape.scales_len())
        .map(|i| {
            let (near, random) = (rng.below(2) as u8, rng.next() as u8);
            let one = if mx { 118 + near } else { 0x30 | random & 0xF };
            match data {
                Data::Close => one,
                Data::Outliers if outlier(i % groups) => one + if mx { 5 } else { 0x28 },
                Data::Outliers => one,
                Data::HeavyTails => {
                    let octaves = (rng.next() | 1 << 52).leading_zeros() as u8;
                    one + if mx { octaves } else { 8 * octaves.min(8) }
                }
                Data::Full if mx => random % 255,
                Data::Full => random & if random & 0x7F == 0x7F { 0x7E } else { 0xFF },
                Data::Nan if rng.below(500) == 0 => {
                    if mx {
                        0xFF
                    } else {
                        random | 0x7F
                    }
                }
                Data::Nan => one,
                Data::Sparse => [0, if mx { 118 } else { 0x80 }, one][rng.below(3) as usize],
            }
        })
        .collect();
    if data == Data::Sparse {
        for group in codes.chunks_mut(format.group().get() / 2) {
            if rng.below(3) > 0 {
                group.fill([0x00, 0x80, 0x08, 0x88][rng.below(4) as usize]);
            }
        }
    }
    PackedMatrix::new(shape, codes, scales).unwrap()
}

/// A matrix of one row for each list of groups, each (code byte, scale byte).
fn matrix(format: Format, rows: &[Vec<(u8, u8)>]) -> PackedMatrix {
    let bytes = format.group().get() / 2;
    let shape = PackedShape::of(format, rows.len(), 2 * bytes * rows[0].len()).unwrap();
    let groups = || rows.iter().flatten();
    let codes = groups().flat_map(|g| vec![g.0; bytes]).collect();
    PackedMatrix::new(shape, codes, groups().map(|g| g.1).collect()).unwrap()
}

fn cuda() -> Cuda {
    Cuda::open(0).unwrap()
}

/// Multiplies by a kernel and compares every bit with the reference.
fn check(
    cuda: &Cuda,
    kernel: MatmulKernel,
    a: &PackedMatrix,
    b: &PackedMatrix,
    case: &str,
) -> Paths {
    let outputs = a.shape().rows() * b.shape().rows();
    let (mut got, mut expected) = (vec![7f32; outputs], vec![0f32; outputs]);
    let cuda = cuda.clone().with_matmul_kernel(kernel);
    let weight = cuda.prepare(b.view()).unwrap();
    assert_eq!(weight.shape(), b.shape());
    let paths = cuda.matmul(a.view(), &weight, 0.75.into(), (&mut got[..]).into()).unwrap();
    reference::matmul(a.view(), b.view(), 0.75, (&mut expected[..]).into()).unwrap();
    let n = b.shape().rows();
    let wrong: Vec<_> =
        (0..outputs).filter(|&i| got[i].to_bits() != expected[i].to_bits()).collect();
    if let Some(&i) = wrong.first() {
        panic!(
            "{case}: {} of {outputs} outputs differ, the first ({}, {}) is {:e}, expected {:e}",
            wrong.len(),
            i / n,
            i % n,
            got[i],
            expected[i]
        );
    }
    assert_eq!(paths.narrow + paths.planes + paths.wide, outputs as u64, "{case}: {paths:?}");
    paths
}

#[test]
fn decode_gives_the_references_bits_for_any_rows_data_and_split() {
    let (cuda, mut rng, mut compared) = (cuda(), Rng(1), 0);
    let shapes = [
        ([0, 5, 64], 0),
        ([3, 0, 64], 0),
        ([3, 5, 0], 0),
        ([1, 100, 2080], 0),
        ([1, 17, 2080], 1),
        ([8, 130, 2080], 3),
        ([16, 40, 32], 2),
        ([17, 129, 1056], 9),
        ([128, 16, 96], 1),
    ];
    for format in FORMATS {
        for data in DATA {
            for ([m, n, k], ranges) in shapes {
                let a = operand(&mut rng, format, [m, k], data);
                let b = operand(&mut rng, format, [n, k], data);
                let case = format!("{format:?} {data:?} {m}x{n}x{k} in {ranges} ranges");
                let paths = check(&cuda, MatmulKernel::Decode { ranges }, &a, &b, &case);
                if format == Format::NvFp4 || data == Data::Close {
                    assert_eq!(paths.narrow, (m * n) as u64, "{case}: {paths:?}");
                }
                compared += m * n;
            }
        }
    }
    println!("decode: {compared} outputs compared, 0 differ");
    assert_eq!(compared, 2 * 6 * (15 + 100 + 17 + 1040 + 640 + 2193 + 2048));
}

#[test]
fn wgmma_gives_the_references_bits_for_any_rows_and_data() {
    let (cuda, mut rng, mut compared, mut levels) = (cuda(), Rng(2), 0, 0);
    let shapes = [
        [0, 5, 64],
        [3, 0, 64],
        [3, 5, 0],
        [1, 1, 32],
        [128, 256, 256],
        [129, 257, 416],
        [17, 130, 2080],
    ];
    for format in FORMATS {
        for data in DATA {
            for [m, n, k] in shapes {
                let a = operand(&mut rng, format, [m, k], data);
                // Outliers are the activations'.
                let of_b = if data == Data::Outliers { Data::Close } else { data };
                let b = operand(&mut rng, format, [n, k], of_b);
                let case = format!("{format:?} {data:?} {m}x{n}x{k}");
                let paths = check(&cuda, MatmulKernel::Wgmma, &a, &b, &case);
                if data == Data::Close {
                    assert_eq!(paths.narrow, (m * n) as u64, "{case}: {paths:?}");
                }
                if data == Data::Outliers && m * n * k > 0 {
                    assert_eq!(cuda.tiles_left().unwrap().0, 0, "{case}");
                    levels += paths.planes;
                }
                compared += m * n;
            }
        }
    }
    println!("wgmma: {compared} outputs compared, {levels} by several levels, 0 differ");
    assert_eq!(compared, 2 * 6 * (15 + 1 + 32_768 + 33_153 + 2210));
    assert!(levels > 60_000);
}

#[test]
fn the_default_takes_decode_wgmma_and_mma_by_shape() {
    let (cuda, mut rng) = (cuda(), Rng(3));
    for format in FORMATS {
        for m in [1, 16, 17, 300] {
            let a = operand(&mut rng, format, [m, 160], Data::Close);
            let b = operand(&mut rng, format, [33, 160], Data::Close);
            check(&cuda, MatmulKernel::default(), &a, &b, &format!("{format:?} m = {m}"));
        }
    }
    assert_eq!(MatmulKernel::default(), MatmulKernel::Auto);
}

#[test]
fn half_precision_outputs_round_once_more() {
    let (cuda, mut rng) = (cuda(), Rng(4));
    for format in FORMATS {
        let a = operand(&mut rng, format, [7, 96], Data::Close);
        let b = operand(&mut rng, format, [131, 96], Data::Close);
        for kernel in [DECODE, MatmulKernel::Wgmma] {
            let cuda = cuda.clone().with_matmul_kernel(kernel);
            let weight = cuda.prepare(b.view()).unwrap();
            let (mut got, mut expected) = (vec![f16::ZERO; 7 * 131], vec![f16::ONE; 7 * 131]);
            cuda.matmul(a.view(), &weight, 0.3.into(), (&mut got[..]).into()).unwrap();
            reference::matmul(a.view(), b.view(), 0.3, (&mut expected[..]).into()).unwrap();
            assert!(got.iter().zip(&expected).all(|(g, e)| g.to_bits() == e.to_bits()));
            let (mut got, mut expected) = (vec![bf16::ZERO; 7 * 131], vec![bf16::ONE; 7 * 131]);
            cuda.matmul(a.view(), &weight, 0.3.into(), (&mut got[..]).into()).unwrap();
            reference::matmul(a.view(), b.view(), 0.3, (&mut expected[..]).into()).unwrap();
            assert!(got.iter().zip(&expected).all(|(g, e)| g.to_bits() == e.to_bits()));
        }
    }
}

#[test]
fn decode_mxfp4_spreads_on_and_past_each_bound() {
    let cuda = cuda();
    // (spread of A, spread of B, live groups, narrow): 18 and 30 are the most of one side;
    // 4608 * 2^48 * 7 is the last multiple below 2^63.
    let cases = [
        (18, 0, 40, true),
        (19, 0, 40, false),
        (0, 30, 40, true),
        (0, 31, 40, false),
        (18, 30, 7, true),
        (18, 30, 8, false),
    ];
    for (spread_a, spread_b, live, narrow) in cases {
        for sign in [0x77, 0xFF] {
            // All at the top but one group; the groups that are not live are far away.
            let row = |code: u8, spread: u8| -> Vec<(u8, u8)> {
                let mut groups = vec![(code, 100 + spread); live];
                groups[live / 2] = (0x11, 100);
                groups.resize(64, (0x88, 254));
                groups
            };
            for rows in [1, 9] {
                let a = matrix(Format::MxFp4, &vec![row(0x77, spread_a); rows]);
                let b = matrix(Format::MxFp4, &vec![row(sign, spread_b); 3]);
                let case = format!("{spread_a} {spread_b} {live} {sign:x} {rows}");
                let paths = check(&cuda, MatmulKernel::Decode { ranges: 2 }, &a, &b, &case);
                assert_eq!(paths.wide, if narrow { 0 } else { 3 * rows as u64 }, "{case}");
            }
        }
    }
}

#[test]
fn decode_nvfp4_takes_65536_groups_of_the_largest_terms_and_not_one_more() {
    let cuda = cuda();
    for (groups, sign) in [(65_536, 0x77), (65_544, 0xFF)] {
        let a = matrix(Format::NvFp4, &[vec![(0x77, 0x7E); groups]]);
        let b = matrix(Format::NvFp4, &[vec![(sign, 0x7E); groups]]);
        let paths = check(&cuda, DECODE, &a, &b, &format!("{groups} {sign:x}"));
        assert_eq!(paths.wide, u64::from(groups > 65_536));
    }
}

/// Rows for the 32-bit bound of wgmma, and how many tiles were left.
fn left(cuda: &Cuda, format: Format, a: &[(u8, u8)], b: &[(u8, u8)], case: &str) -> usize {
    let (a, b) = (matrix(format, &[a.to_vec()]), matrix(format, &[b.to_vec()]));
    check(cuda, MatmulKernel::Wgmma, &a, &b, case);
    let (left, tiles) = cuda.tiles_left().unwrap();
    assert_eq!(tiles, 1);
    left
}

#[test]
fn wgmma_mxfp4_levels_on_the_bound_and_one_past_it() {
    let cuda = cuda();
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
            assert_eq!(left(&cuda, Format::MxFp4, &a, &b, &case), expected, "{case}");
            assert_eq!(left(&cuda, Format::MxFp4, &b, &a, &case), expected, "{case}");
        }
    }
}

#[test]
fn wgmma_nvfp4_levels_on_the_bound_and_one_past_it() {
    let cuda = cuda();
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
            assert_eq!(left(&cuda, Format::NvFp4, &a, &b, &case), expected, "{case}");
            assert_eq!(left(&cuda, Format::NvFp4, &b, &a, &case), expected, "{case}");
        }
    }
}

#[test]
fn tiles_without_a_folded_form_are_left_and_right() {
    let (cuda, mut rng) = (cuda(), Rng(5));
    for format in FORMATS {
        let (far, near, k) = match format {
            Format::MxFp4 => (146, 100, 512),
            Format::NvFp4 => (0x78, 0x08, 512),
        };
        // Many windows in every step: no room for the extra blocks. One tile of A, the other is
        // plain.
        let shape = PackedShape::of(format, 130, k).unwrap();
        let codes = (0..shape.codes_len()).map(|_| rng.next() as u8 | 1).collect();
        let groups = shape.row_groups();
        let scales = (0..shape.scales_len())
            .map(|i| match (i / groups, rng.below(3)) {
                (128.., _) | (_, 0) => near,
                (_, 1) => near + if format == Format::MxFp4 { 5 } else { 0x38 },
                _ => far,
            })
            .collect();
        let a = PackedMatrix::new(shape, codes, scales).unwrap();
        let b = operand(&mut rng, format, [20, k], Data::Close);
        check(&cuda, MatmulKernel::Wgmma, &a, &b, &format!("{format:?}"));
        assert_eq!(cuda.tiles_left().unwrap(), (1, 2), "{format:?}");
    }
}

#[test]
fn rounding_is_single_in_subnormals_ties_and_past_the_largest() {
    let cuda = cuda();
    // Sums of one large and two small terms around a tie of f32, at exponents from the bottom of
    // the subnormals to overflow: S = 2^24 + 1 + 2^-30 is the shape that two roundings get wrong.
    for kernel in [DECODE, MatmulKernel::Wgmma] {
        for base in [40u8, 54, 60, 64, 70, 100, 127, 180, 190, 200] {
            let row = |codes: [u8; 3], scales: [u8; 3]| -> Vec<(u8, u8)> {
                codes.into_iter().zip(scales).collect()
            };
            for codes in [[0x22, 0x22, 0x22], [0x22, 0xAA, 0x22], [0x23, 0x31, 0xA9], [0x77; 3]] {
                let top = base.saturating_add(25);
                let a =
                    matrix(Format::MxFp4, &[row(codes, [top, base, base]), row(codes, [base; 3])]);
                let b = matrix(
                    Format::MxFp4,
                    &[row([0x22; 3], [base, base, base - 30]), row(codes, [base; 3])],
                );
                check(&cuda, kernel, &a, &b, &format!("{kernel:?} {base} {codes:x?}"));
            }
        }
    }
}
