//! Every bound of the tiled paths, on it and one past it, against the reference [C6].

mod common;

use common::{Rng, Scales, each_isa, operand, same_bits};
use fp4_backend_cpu_simd::{CpuSimd, Isa};
use fp4_core::{
    ExactSum, Format, Matmul, PackedMatrix, PackedShape, PartialsMut, Paths, reference,
};

/// A matrix of one row for each list of groups, each (code byte, scale byte).
fn matrix(format: Format, rows: &[Vec<(u8, u8)>]) -> PackedMatrix {
    let bytes = format.group().get() / 2;
    let shape = PackedShape::of(format, rows.len(), 2 * bytes * rows[0].len()).unwrap();
    let groups = || rows.iter().flatten();
    let codes = groups().flat_map(|g| vec![g.0; bytes]).collect();
    PackedMatrix::new(shape, codes, groups().map(|g| g.1).collect()).unwrap()
}

fn check(on: &CpuSimd, a: &PackedMatrix, b: &PackedMatrix, case: &str) -> (usize, Paths) {
    let outputs = a.shape().rows() * b.shape().rows();
    let (mut got, mut expected) = (vec![0f32; outputs], vec![0f32; outputs]);
    let weight = on.prepare(b.view()).unwrap();
    let paths = on.matmul(a.view(), &weight, 1.0.into(), (&mut got[..]).into()).unwrap();
    reference::matmul(a.view(), b.view(), 1.0, (&mut expected[..]).into()).unwrap();
    (same_bits(&got, &expected, case), paths)
}

#[test]
fn fold_sums_of_7281_chunks_fit_32_bits_and_of_7282_are_drained() {
    each_isa(|on| {
        let mut compared = 0;
        for chunks in [7280, 7281, 7282, 14562, 14563] {
            // Products of 96 and 96, the largest: scales three octaves above one small group's.
            for (sign, rows) in [(0x77, 1), (0xFF, 1), (0x77, 26), (0xFF, 26)] {
                // The small group comes last, so that the first stretch is all of the largest.
                let mut a = vec![(0x77, 130); chunks];
                let mut b = vec![(sign, 130); chunks];
                a.push((0x11, 127));
                b.push((0x11, 127));
                let full = (vec![(0x77, 130); chunks], vec![(sign, 130); chunks]);
                for (a, b) in [(a, b), full] {
                    let case = format!("{chunks} chunks, sign {sign:#x}, {rows} rows");
                    let a = matrix(Format::MxFp4, &vec![a; rows]);
                    let (count, paths) = check(on, &a, &matrix(Format::MxFp4, &[b]), &case);
                    assert_eq!(paths.wide, 0, "{case}");
                    compared += count;
                }
            }
        }
        println!("compared {compared} outputs");
        assert_eq!(compared, 5 * 2 * 54);
    });
}

#[test]
fn windows_hold_four_octaves_and_a_fifth_takes_a_plane() {
    each_isa(|on| {
        let mut compared = 0;
        for (side, spread) in [(0, 3), (0, 4), (1, 3), (1, 4), (2, 3), (2, 4)] {
            let groups = |wide: bool| -> Vec<_> {
                (0..40u8)
                    .map(|g| (0x77 ^ g, 120 + if wide { g % (spread + 1) } else { 0 }))
                    .collect()
            };
            for rows in [1, 5, 27] {
                let a = matrix(Format::MxFp4, &vec![groups(side != 1); rows]);
                let b = matrix(Format::MxFp4, &vec![groups(side != 0); 19]);
                let case = format!("side {side} spread {spread} rows {rows}");
                let (count, paths) = check(on, &a, &b, &case);
                let folds = [Isa::Avx512Vnni, Isa::AvxVnni, Isa::NeonI8mm, Isa::NeonDotprod];
                if folds.contains(&on.isa()) {
                    assert_eq!(paths.planes > 0, spread == 4, "{case}: {paths:?}");
                }
                assert_eq!(paths.wide, 0, "{case}");
                compared += count;
            }
        }
        println!("compared {compared} outputs");
    });
}

#[test]
fn the_scale_of_a_dead_group_widens_no_window() {
    each_isa(|on| {
        let mut compared = 0;
        // The dead scale at an end of its type; or within the limit of a window, but outside of the
        // one of the live scales.
        for (format, least, spread, scales) in [
            (Format::MxFp4, 120, 4, &[0, 254][..]),
            (Format::MxFp4, 120, 2, &[118, 119, 122, 123]),
            (Format::NvFp4, 0x38, 4, &[0x01, 0x7E]),
            (Format::NvFp4, 0x38, 2, &[0x28, 0x31, 0x3F, 0x48, 0xB1]),
        ] {
            for (dead, zeros) in scales.iter().flat_map(|&end| [(end, 0x00), (end, 0x80)]) {
                let groups: Vec<_> = (0..12u8)
                    .map(|g| if g == 7 { (zeros, dead) } else { (0x71 ^ g, least + g % spread) })
                    .collect();
                for rows in [1, 2, 5, 27] {
                    let a = matrix(format, &vec![groups.clone(); rows]);
                    let b = matrix(format, &vec![groups.clone(); 19]);
                    let case = format!("{format}: {dead:#x}, {rows} rows");
                    let (count, paths) = check(on, &a, &b, &case);
                    assert_eq!((paths.planes, paths.wide), (0, 0), "{case}");
                    compared += count;
                }
            }
        }
        println!("compared {compared} outputs");
        assert_eq!(compared, 2 * 13 * 35 * 19);
    });
}

#[test]
fn scaled_scales_on_the_limits_and_past_them() {
    // In units of the smallest: 15 * 2^3 = 120 and 15 * 2^4 = 240 are the largest products of a
    // significand and a power of two below 127 and 258; 2^7 = 128 and 9 * 2^5 = 288 the first past.
    let scale = |significand: u8, octave: u8| (octave + 3) << 3 | (significand - 8);
    each_isa(|on| {
        let (mut compared, mut planes) = (0, 0);
        for top_a in [scale(15, 3), scale(8, 4), scale(15, 4), scale(8, 5), scale(9, 5), 0x7E] {
            for top_b in [scale(15, 3), scale(8, 4), scale(9, 4), 0xFE] {
                let low = scale(9, 0);
                for groups in [2, 27, 28, 29, 30, 31, 57, 301] {
                    let row = |top: u8, code: u8| {
                        let mut row = vec![(code, top); groups];
                        row[groups / 2] = (0x11, low);
                        row
                    };
                    let b = matrix(Format::NvFp4, &[row(top_b, 0x77), row(top_b, 0xFF)]);
                    for (rows, code) in [(1, 0x77), (1, 0xFF), (7, 0x77)] {
                        let a = matrix(Format::NvFp4, &vec![row(top_a, code); rows]);
                        let case = format!("{rows} {top_a:#x} {top_b:#x} {groups} groups");
                        let (count, paths) = check(on, &a, &b, &case);
                        assert_eq!(paths.wide, 0, "{case}");
                        planes += paths.planes;
                        compared += count;
                    }
                }
            }
        }
        println!("compared {compared} outputs, {planes} in planes");
        assert!(compared > 3000 && (planes > 0) == (on.isa() != Isa::Portable));
    });
}

#[test]
fn planes_meet_only_where_both_have_the_group() {
    each_isa(|on| {
        let (mut rng, mut compared, mut all) = (Rng(31), 0, Paths::default());
        for format in Format::ALL {
            for round in 0..60 {
                let (m, n) = (1 + rng.below(40), 1 + rng.below(40));
                let k = 32 * (1 + rng.below(90));
                let [mut a, mut b] =
                    [m, n].map(|rows| operand(&mut rng, format, rows, k, Scales::Close));
                for matrix in [&mut a, &mut b] {
                    let mut view = matrix.view_mut();
                    let scales = view.buffers().1;
                    for _ in 0..scales.len() / 7 {
                        let at = rng.below(scales.len());
                        scales[at] = match format {
                            Format::MxFp4 => 100 + rng.byte() % 60,
                            Format::NvFp4 => rng.byte() & 0xFE,
                        };
                    }
                }
                let (count, paths) = check(on, &a, &b, &format!("{format} round {round}"));
                compared += count;
                all.merge(&paths);
            }
        }
        println!("compared {compared} outputs, {all:?}");
        assert!(compared > 20_000);
    });
}

#[test]
fn a_row_past_the_planes_costs_only_its_own_outputs_the_wide_path() {
    each_isa(|on| {
        let mut rng = Rng(32);
        let mut a = operand(&mut rng, Format::MxFp4, 9, 640, Scales::Close);
        let b = operand(&mut rng, Format::MxFp4, 21, 640, Scales::Close);
        for (g, scale) in a.view_mut().row(4).1.iter_mut().enumerate() {
            *scale = 12 * g as u8;
        }
        let (count, paths) = check(on, &a, &b, "one wild row");
        println!("compared {count} outputs, {paths:?}");
        assert_eq!(paths.wide, 21);
    });
}

#[test]
fn a_weight_has_the_references_bits_on_a_backend_of_any_instruction_set() {
    let (mut rng, mut compared, mut pairs) = (Rng(33), 0, 0);
    for format in Format::ALL {
        for how in [Scales::Close, Scales::Nan, Scales::Window(45), Scales::Sparse] {
            let [m, n, k] = [5, 19, 96];
            let [a, b] = [m, n].map(|rows| operand(&mut rng, format, rows, k, how));
            let mut expected = vec![0f32; m * n];
            reference::matmul(a.view(), b.view(), 0.3, (&mut expected[..]).into()).unwrap();
            // Over a part of K.
            let groups = 1..a.shape().row_groups();
            let mut exact = vec![ExactSum::ZERO; m * n];
            let out = PartialsMut::Exact(&mut exact);
            reference::partial(a.view(), b.view(), groups.clone(), out).unwrap();
            for from in Isa::available() {
                let weight = CpuSimd::with_isa(from).unwrap().prepare(b.view()).unwrap();
                for to in Isa::available() {
                    let on = CpuSimd::with_isa(to).unwrap();
                    let case = format!("{format} {how:?} {from}'s weight on {to}");
                    let mut y = vec![0f32; m * n];
                    on.matmul(a.view(), &weight, 0.3.into(), (&mut y[..]).into()).unwrap();
                    compared += same_bits(&y, &expected, &case);
                    let mut sums = vec![ExactSum::ZERO; m * n];
                    let out = PartialsMut::Exact(&mut sums);
                    on.partial(a.view(), &weight, groups.clone(), out).unwrap();
                    assert!(sums == exact, "{case}");
                    let mut packed = PackedMatrix::zeros(b.shape());
                    on.export_weight(&weight, &mut packed.view_mut()).unwrap();
                    assert!(packed == b, "{case}");
                    pairs += 1;
                }
            }
        }
    }
    println!("compared {compared} outputs of {pairs} pairs");
    let sets = Isa::available().count();
    assert_eq!((pairs, compared), (8 * sets * sets, 8 * sets * sets * 95));
}

#[test]
fn the_first_instruction_set_is_chosen_and_a_missing_one_is_an_error() {
    assert_eq!(Isa::available().next(), Some(Isa::best()));
    assert_eq!(CpuSimd::new().isa(), Isa::best());
    for isa in Isa::ALL {
        let got = CpuSimd::with_isa(isa);
        assert_eq!(got.is_ok(), Isa::available().any(|i| i == isa), "{isa}");
        if let Ok(got) = got {
            assert_eq!(got.isa(), isa);
        }
    }
}
