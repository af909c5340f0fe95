//! The wgmma kernels' own ways, against the reference, bit for bit (C6): the two ends of a tile on
//! each limit of the fast one and past it, plain and listed tiles, and blocks that take many tiles.
//!
//! Needs a device, or the stand-in of `emulator/` in `LD_LIBRARY_PATH`: feature `emulated`.

#![cfg(feature = "emulated")]
#![allow(missing_docs)]

mod common;

use common::{Rng, operand, same_bits};
use fp4_backend_cuda::{Cuda, MatmulKernel};
use fp4_core::{
    Encoding, Epilogue, Float, Format, Matmul, PackedMatrix, PackedShape, Paths, Product, bf16,
    f16, reference,
};

/// Columns of a tile of MXFP4; a whole number of those of the others.
const COLUMNS: usize = 256;

fn cuda() -> Cuda {
    Cuda::open(0).unwrap().with_matmul_kernel(MatmulKernel::Wgmma)
}

/// Multiplies and compares every bit with the reference.
fn check<T: Float>(
    cuda: &Cuda,
    [a, b]: [&PackedMatrix; 2],
    epilogue: Epilogue<'_>,
    case: &str,
) -> Paths {
    let outputs = a.shape().rows() * b.shape().rows();
    let (mut got, mut expected) = (vec![T::from_f32(7.0); outputs], vec![T::default(); outputs]);
    let weight = cuda.prepare(b.view()).unwrap();
    let paths = cuda.matmul(a.view(), &weight, epilogue, T::wrap_mut(&mut got)).unwrap();
    reference::matmul(a.view(), b.view(), epilogue, T::wrap_mut(&mut expected)).unwrap();
    same_bits(&got, &expected, &format!("{case} to {}", T::TYPE));
    paths
}

/// The same for every type of output, with no tile left; returns how many outputs.
fn ends_right(cuda: &Cuda, pair: [&PackedMatrix; 2], epilogue: Epilogue<'_>, case: &str) -> usize {
    check::<f32>(cuda, pair, epilogue, case);
    check::<f16>(cuda, pair, epilogue, case);
    check::<bf16>(cuda, pair, epilogue, case);
    assert_eq!(cuda.tiles_left().unwrap().0, 0, "{case}");
    3 * pair[0].shape().rows() * pair[1].shape().rows()
}

/// Random codes under one scale for each row, with rows of zeros where it is `None`.
fn rows(rng: &mut Rng, encoding: Encoding, k: usize, scales: &[Option<u8>]) -> PackedMatrix {
    let shape = PackedShape::encoded(encoding, scales.len(), k).unwrap();
    let groups = shape.scales_len() / scales.len();
    let mut row_of_scale = (0..).map(|i| scales[i / groups]);
    let random =
        operand(rng, encoding, scales.len(), k, |_| row_of_scale.next().unwrap().unwrap_or(254));
    let (mut codes, bytes) = random.into_parts();
    let row_bytes = codes.len() / scales.len();
    for (row, scale) in codes.chunks_mut(row_bytes).zip(scales) {
        if scale.is_none() {
            row.fill(0);
        }
    }
    PackedMatrix::new(shape, codes, bytes).unwrap()
}

/// Exponents of MXFP4: a row of scale byte s has 2^(s - 128).
fn byte(exponent: i32) -> Option<u8> {
    Some(u8::try_from(exponent + 128).unwrap())
}

#[test]
fn the_fast_end_of_a_tile_is_right_on_every_limit_and_the_other_past_it() {
    let (cuda, mut rng, mut compared) = (cuda(), Rng(70), 0);
    let (up, down) = (2f32.powi(100), 2f32.powi(-100));
    // Exponents of the rows of A, of B's, alpha. 0.75 times the largest digits' sums stay finite.
    let cases: [(&[i32], [i32; 2], f32); 25] = [
        (&[0], [0, 0], 0.75),
        // min ea + min eb: -126, then past it.
        (&[-64, -60], [-62, -50], up),
        (&[-65, -60], [-62, -50], up),
        // max ea + max eb: 82, then past it; sums that would be infinite by one factor alone.
        (&[41, 0], [41, 0], down),
        (&[42, 0], [41, 0], down),
        (&[80], [80, 80], down),
        (&[80], [80, 80], 1.0),
        (&[80, -20], [-20, 80], down),
        // eb alone: -126, -127, 82, 83.
        (&[0], [-126, -126], up),
        (&[1], [-127, -127], up),
        (&[0], [82, 82], down),
        (&[-1], [83, 83], down),
        // ea alone: -126, -127, 126.
        (&[-126], [0, 0], up),
        (&[-127], [1, 1], up),
        (&[126], [-44, -44], down),
        // 2^ea alpha: one above 2^-126, itself, and rounded to it from below.
        (&[-26], [0, 0], down * (1.0 + f32::EPSILON)),
        (&[-26], [0, 0], down),
        (&[-26], [0, 0], down * (1.0 - f32::EPSILON / 2.0)),
        (&[-60], [90, 70], down * 1.9),
        // The largest that is finite, and infinity.
        (&[27], [-60, -60], 2f32.powi(100) * (2.0 - f32::EPSILON)),
        (&[28], [-60, -60], 2f32.powi(100)),
        // alpha a subnormal, a zero, no number.
        (&[20], [0, 10], 1e-41),
        (&[0], [0, 0], -0.0),
        (&[0], [0, 0], f32::NEG_INFINITY),
        (&[0], [0, 0], f32::NAN),
    ];
    for (of_a, of_b, alpha) in cases {
        let case = format!("2^{of_a:?} by 2^{of_b:?}, alpha {alpha:e}");
        let of_a: Vec<_> = of_a.iter().map(|&e| byte(e)).collect();
        let of_b: Vec<_> = (0..COLUMNS).map(|j| byte(of_b[usize::from(j % 100 == 7)])).collect();
        let a = rows(&mut rng, Encoding::MxFp4, 32, &of_a);
        let b = rows(&mut rng, Encoding::MxFp4, 32, &of_b);
        compared += ends_right(&cuda, [&a, &b], alpha.into(), &case);
    }
    println!("ends of tiles: {compared} outputs compared, 0 differ");
    assert!(compared >= 25 * 3 * COLUMNS);
}

/// A column for each half from 0 to 127.5, as a sum of codes, and a row of ones, under scales of
/// 2^exponent.
fn halves(exponents: [i32; 2]) -> [PackedMatrix; 2] {
    let matrix = |rows: &[Vec<u8>], exponent: i32| {
        let shape = PackedShape::of(Format::MxFp4, rows.len(), 32).unwrap();
        let codes = rows.iter().flat_map(|row| row.chunks(2).map(|two| two[0] | two[1] << 4));
        let scale = u8::try_from(exponent + 127).unwrap();
        PackedMatrix::new(shape, codes.collect(), vec![scale; rows.len()]).unwrap()
    };
    let sum = |mut halves: i32| -> Vec<u8> {
        let largest_first = [(12, 7), (8, 6), (6, 5), (4, 4), (3, 3), (2, 2), (1, 1), (0, 0)];
        (0..32)
            .map(|_| {
                let &(value, code) = largest_first.iter().find(|(v, _)| *v <= halves).unwrap();
                halves -= value;
                code
            })
            .collect()
    };
    let columns: Vec<_> = (0..COLUMNS as i32).map(sum).collect();
    [matrix(&vec![vec![2; 32]; 127], exponents[0]), matrix(&columns, exponents[1])]
}

#[test]
fn sixteen_bits_are_rounded_once_in_subnormals_and_on_ties() {
    // Outputs i j 2^-25 and i j 2^-134, in halves of the least f16 and of the least bf16.
    let (cuda, factors) = (cuda(), (1..128).map(|i| i as f32).collect::<Vec<_>>());
    for (exponents, alpha) in [([0, 0], 2f32.powi(-24)), ([20, -20], f32::from_bits(1 << 16))] {
        let [a, b] = halves(exponents);
        for bias in [None, Some(vec![0.0; COLUMNS])] {
            let epilogue = Epilogue::new(alpha).with_row_scales(Some(&factors));
            let epilogue = epilogue.with_bias(bias.as_deref());
            ends_right(&cuda, [&a, &b], epilogue, &format!("{exponents:?} {}", bias.is_some()));
        }
    }
}

#[test]
fn rows_of_zeros_nans_and_biases_do_not_disturb_their_tile() {
    let (cuda, mut rng, mut compared) = (cuda(), Rng(71), 0);
    for product in [Product::of(Format::MxFp4), Product::of(Format::NvFp4)] {
        let (near, nan) = if product.b == Format::MxFp4 { (120, 0xFF) } else { (0x38, 0x7F) };
        let ordinary = vec![Some(near); COLUMNS];
        let with = |at: usize, scale: Option<u8>| {
            let mut scales = ordinary.clone();
            scales[at] = scale;
            scales
        };
        let far = Some(if product.b == Format::MxFp4 { 250 } else { 0x7E });
        let bias = |odd: f32| -> Vec<f32> {
            (0..COLUMNS).map(|j| if j == 200 { odd } else { j as f32 - 100.5 }).collect()
        };
        let cases = [
            (&ordinary[..17], ordinary.clone(), None),
            (&ordinary[..17], ordinary.clone(), Some(bias(0.25))),
            (&ordinary[..17], ordinary.clone(), Some(bias(-f32::NAN))),
            (&ordinary[..17], ordinary.clone(), Some(bias(f32::NEG_INFINITY))),
            (&ordinary[..17], with(9, None), Some(bias(-0.0))),
            (&with(3, None)[..17], ordinary.clone(), None),
            (&with(3, far)[..17], with(255, far), None),
            (&with(16, Some(nan))[..17], ordinary.clone(), None),
            (&ordinary[..17], with(130, Some(nan)), Some(bias(1e30))),
        ];
        for (i, (of_a, of_b, bias)) in cases.into_iter().enumerate() {
            let a = rows(&mut rng, product.a, 160, of_a);
            let b = rows(&mut rng, product.b.into(), 160, &of_b);
            let scales: Vec<f32> = (0..17).map(|i| 1.0 - i as f32 / 8.0).collect();
            for row_scales in [None, Some(&scales[..])] {
                // Large enough that some outputs are infinite in f16, and some sums with a bias.
                let epilogue = Epilogue::new(1500.0).with_bias(bias.as_deref());
                let epilogue = epilogue.with_row_scales(row_scales);
                compared += ends_right(&cuda, [&a, &b], epilogue, &format!("{product:?} case {i}"));
            }
        }
    }
    println!("rows of a tile: {compared} outputs compared, 0 differ");
    assert_eq!(compared, 2 * 9 * 2 * 3 * 17 * COLUMNS);
}

/// Adds a slice of 128 to a matrix, of zeros but for its first group, of ones under `scale`.
fn with_slice(of: PackedMatrix, groups: usize, scale: u8) -> PackedMatrix {
    let (encoding, [rows, k]) =
        (of.shape().encoding().unwrap(), [of.shape().rows(), of.shape().k()]);
    let (codes, scales) = of.into_parts();
    let (code_row, scale_row) = (codes.len() / rows, scales.len() / rows);
    let shape = PackedShape::encoded(encoding, rows, k + 128).unwrap();
    let slice = [shape.codes_len() / rows - code_row, shape.scales_len() / rows - scale_row];
    let group = slice[0] / slice[1];
    let one = if encoding == Encoding::MxInt8 { 1 } else { 0x22 };
    let (mut all_codes, mut all_scales) = (Vec::new(), Vec::new());
    for row in 0..rows {
        all_codes.extend(&codes[row * code_row..][..code_row]);
        all_codes.extend((0..slice[0]).map(|i| if i < groups * group { one } else { 0 }));
        all_scales.extend(&scales[row * scale_row..][..scale_row]);
        all_scales.extend((0..slice[1]).map(|_| scale));
    }
    PackedMatrix::new(shape, all_codes, all_scales).unwrap()
}

#[test]
fn a_plain_tile_and_the_same_one_listed_have_the_same_outputs() {
    let (cuda, mut rng) = (cuda(), Rng(72));
    let mx_int8 = Product { a: Encoding::MxInt8, b: Format::MxFp4 };
    for product in [Product::of(Format::MxFp4), Product::of(Format::NvFp4), mx_int8] {
        let (near, far) = if product.b == Format::MxFp4 { (120, 127) } else { (0x38, 0x78) };
        let (m, n, k) = (130, COLUMNS + 4, 384);
        let a = operand(&mut rng, product.a, m, k, |rng| near + rng.byte() % 2);
        let b = operand(&mut rng, product.b, n, k, |rng| near + rng.byte() % 2);
        let paths = check::<f32>(&cuda, [&a, &b], 0.3.into(), &format!("{product:?} plain"));
        assert_eq!(paths.narrow, (m * n) as u64, "{product:?}");
        // A further slice in another window of A, where B is zeros: the same sums by a list.
        let (listed_a, no_b) = (with_slice(a, 1, far), with_slice(b, 0, near));
        let paths =
            check::<f32>(&cuda, [&listed_a, &no_b], 0.3.into(), &format!("{product:?} listed"));
        assert_eq!((paths.narrow, cuda.tiles_left().unwrap().0), ((m * n) as u64, 0));
        // And where B is not, two levels.
        let (a, b) = (listed_a, with_slice(no_b, 2, near));
        let a = with_slice(a, 1, far);
        let paths = check::<f32>(&cuda, [&a, &b], 0.3.into(), &format!("{product:?} levels"));
        assert_eq!((paths.planes, cuda.tiles_left().unwrap().0), ((m * n) as u64, 0));
        // Nothing meets anything: a list without products.
        let zeros = operand(&mut rng, product.b, n, a.shape().k(), |_| 0);
        let zeros = PackedMatrix::new(
            zeros.shape(),
            vec![0; zeros.shape().codes_len()],
            zeros.into_parts().1,
        );
        check::<f32>(&cuda, [&a, &zeros.unwrap()], (-1.0).into(), &format!("{product:?} zeros"));
    }
}

#[test]
fn blocks_that_take_many_tiles_of_every_kind_are_right() {
    let (cuda, mut rng) = (cuda(), Rng(73));
    // On few multiprocessors: plain, listed and left tiles follow each other in one block.
    for format in [Format::MxFp4, Format::NvFp4] {
        let (m, n, k) = (5 * 128 + 3, 3 * COLUMNS + 12, 288);
        let near = if format == Format::MxFp4 { 120 } else { 0x38 };
        let (mut at, groups) = (0, PackedShape::of(format, m, k).unwrap().row_groups());
        let a = operand(&mut rng, format, m, k, |rng| {
            let (tile, group) = (at / groups / 128, at % groups);
            at += 1;
            match (tile % 3, format) {
                (1, Format::MxFp4) if group == 1 => near + 6,
                (1, Format::NvFp4) if group == 1 => 0x78,
                (2, Format::MxFp4) => [near, near + 30][rng.below(2)],
                (2, Format::NvFp4) => [0x08, 0x38, 0x78][rng.below(3)],
                _ => near,
            }
        });
        let b = operand(&mut rng, format, n, k, |_| near);
        let paths = check::<bf16>(&cuda, [&a, &b], 0.01.into(), &format!("{format:?}"));
        let (left, tiles) = cuda.tiles_left().unwrap();
        println!("{format:?}: {left} of {tiles} tiles left, {paths:?}");
        assert!(paths.narrow > 0 && paths.planes > 0 && left > 0 && left * 3 < tiles * 2);
    }
}

#[test]
fn pairs_of_tiles_of_every_kind_follow_each_other_in_a_cluster() {
    // Rows of tiles, two a pair: both plain, which share B's stages; one listed; one left; a last
    // one that has no mate below it. The clusters meet them in many orders, and the last column of
    // tiles has but one of B's. Listed tiles have more stages than plain ones, so that the blocks
    // of a cluster are at different slots in between.
    let (cuda, mut rng) = (cuda(), Rng(76));
    let kinds = [0, 0, 1, 0, 0, 2, 0];
    let mx_int8 = Product { a: Encoding::MxInt8, b: Format::MxFp4 };
    for product in [Product::of(Format::MxFp4), Product::of(Format::NvFp4), mx_int8] {
        let (m, n, k) = (128 * kinds.len() - 100, 2 * COLUMNS + 12, 288);
        let (near, far, farther) =
            if product.b == Format::MxFp4 { (120, 126, 150) } else { (0x38, 0x78, 0x08) };
        let groups = PackedShape::encoded(product.a, m, k).unwrap().row_groups();
        let mut at = 0;
        let a = operand(&mut rng, product.a, m, k, |rng| {
            let (tile, group) = (at / groups / 128, at % groups);
            at += 1;
            match kinds[tile] {
                1 if group % 3 == 1 => far,
                2 => [near, far, farther][rng.below(3)],
                _ => near,
            }
        });
        let b = operand(&mut rng, product.b, n, k, |_| near);
        let paths = check::<f32>(&cuda, [&a, &b], 0.01.into(), &format!("{product:?}"));
        let across = n.div_ceil(if product == Product::of(Format::MxFp4) { COLUMNS } else { 128 });
        assert_eq!(cuda.tiles_left().unwrap(), (across, across * kinds.len()), "{product:?}");
        assert!(paths.narrow >= ((m - 256) * n) as u64, "{product:?}: {paths:?}");
        assert_eq!(paths.planes, (128 * n) as u64, "{product:?}");
    }
}

#[test]
fn a_list_of_products_is_full_at_1024_and_a_tile_with_more_is_left() {
    let cuda = cuda();
    // Two windows in every slice of A: two products a slice. MXINT8, whose bound has room for that:
    // 512 * 16 + 3 * 513 steps in units of the lowest level.
    for (slices, left) in [(512, 0), (513, 1)] {
        let row = |encoding: Encoding, far: u8| -> PackedMatrix {
            let shape = PackedShape::encoded(encoding, 1, 128 * slices).unwrap();
            let scales = (0..4 * slices).map(|g| if g % 4 == 1 && g < 4 * 512 { far } else { 120 });
            PackedMatrix::new(shape, vec![0x23; shape.codes_len()], scales.collect()).unwrap()
        };
        let (a, b) = (row(Encoding::MxInt8, 126), row(Encoding::MxFp4, 120));
        check::<f32>(&cuda, [&a, &b], 1.0.into(), &format!("{slices} slices"));
        assert_eq!(cuda.tiles_left().unwrap(), (left, 1), "{slices} slices");
    }
}

#[test]
fn tiles_that_are_left_between_others_keep_the_order_of_a_block() {
    // No consumer waits for the scales of a tile that is left, so its plan may be gone before the
    // warp that writes them has come to it, where warps go in any order: the third mode of CI's.
    let (cuda, mut rng, k) = (cuda(), Rng(75), 512);
    let (blocks, turns) = (4, 16);
    let shape = PackedShape::encoded(Encoding::MxFp4, blocks * turns * 128, k).unwrap();
    let groups = shape.row_groups();
    let b = rows(&mut rng, Encoding::MxFp4, k, &[byte(-20); 8]);
    for cycle in [2, 3, turns] {
        // Of the turns of a block the first of each cycle is not left.
        let codes = (0..shape.codes_len()).map(|_| rng.next() as u8 | 1).collect();
        let scales = (0..shape.scales_len())
            .map(|i| {
                let tile = i / groups / 128;
                // Another scale for each tile: those of a wrong turn show.
                match (tile / blocks % cycle, rng.below(3)) {
                    (0, _) | (_, 0) => 40 + tile as u8,
                    (_, 1) => 105,
                    _ => 146,
                }
            })
            .collect();
        let a = PackedMatrix::new(shape, codes, scales).unwrap();
        check::<f32>(&cuda, [&a, &b], 0.75.into(), &format!("cycles of {cycle} turns"));
        let (tiles, plain) = (blocks * turns, blocks * turns.div_ceil(cycle));
        assert_eq!(cuda.tiles_left().unwrap(), (tiles - plain, tiles));
    }
}
