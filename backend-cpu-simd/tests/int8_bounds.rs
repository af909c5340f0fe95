//! The bounds of the paths of MXINT8 activations, on each and one past it, against the reference
//! [C6, C10]. `Paths` tells which path the outputs took.
//!
//! ```text
//! D = 1536 * G, 49,152 for MXFP4 and 24,576 for NVFP4
//!
//! one plane of A      six octaves: scaled scales up to 32
//! planes of a row     five
//! 32-bit sums         chunks * 49,152 * max_a * max_b <= 2^31 - 1, else drained to 64 bits
//! sparse planes       64 chunks at a time, or as many as 32 bits hold
//! 64-bit sums         D * reach_a * reach_b * live <= 2^63 - 1, else wide
//! portable            D * reach_a * reach_b <= 2^53 too, else wide
//! plain exponents     -126 <= base_a + base_b - 7 <= 63
//! ```

mod common;

use common::{Rng, Scales, activations, each_isa, operand, same_bits};
use fp4_backend_cpu_simd::{CpuSimd, Isa};
use fp4_core::{Encoding, Format, Matmul, PackedMatrix, PackedShape, Paths, reference};

/// MXINT8 of one row for each list of groups, each (element, scale byte).
fn int8(rows: &[Vec<(i8, u8)>]) -> PackedMatrix {
    let shape = PackedShape::encoded(Encoding::MxInt8, rows.len(), 32 * rows[0].len()).unwrap();
    let groups = || rows.iter().flatten();
    let elements = groups().flat_map(|group| [group.0 as u8; 32]).collect();
    PackedMatrix::new(shape, elements, groups().map(|group| group.1).collect()).unwrap()
}

/// A weight of one row for each list of chunks of 32, each (code byte, scale byte).
fn weight(format: Format, rows: &[Vec<(u8, u8)>]) -> PackedMatrix {
    let shape = PackedShape::of(format, rows.len(), 32 * rows[0].len()).unwrap();
    let chunks = || rows.iter().flatten();
    let codes = chunks().flat_map(|chunk| [chunk.0; 16]).collect();
    let per = 32 / format.group().get();
    let scales = chunks().flat_map(|chunk| vec![chunk.1; per]).collect();
    PackedMatrix::new(shape, codes, scales).unwrap()
}

fn check(on: &CpuSimd, a: &PackedMatrix, b: &PackedMatrix, case: &str) -> Paths {
    let outputs = a.shape().rows() * b.shape().rows();
    let weight = on.prepare(b.view()).unwrap();
    let mut all = Paths::default();
    for alpha in [1.0, -0.37] {
        let (mut got, mut expected) = (vec![7f32; outputs], vec![0f32; outputs]);
        let paths = on.matmul(a.view(), &weight, alpha.into(), (&mut got[..]).into()).unwrap();
        reference::matmul(a.view(), b.view(), alpha, (&mut expected[..]).into()).unwrap();
        same_bits(&got, &expected, case);
        all = paths;
    }
    assert_eq!(all.narrow + all.planes + all.wide, outputs as u64, "{case}");
    all
}

/// True if MXFP4 has the fold form there: four octaves to a plane of the weight, not seven.
fn folds(on: &CpuSimd) -> bool {
    [Isa::Avx512Vnni, Isa::AvxVnni, Isa::NeonI8mm, Isa::NeonDotprod].contains(&on.isa())
}

/// The e4m3 byte of an integer of four bits times a power of two.
const fn e4m3(significand: u8, octave: u8) -> u8 {
    (octave + 3) << 3 | (significand - 8)
}

/// Scale bytes of a weight: the base, and one that is `times` it.
struct Top {
    format: Format,
    base: u8,
    top: u8,
    times: u64,
}

const fn mxfp4(octaves: u8) -> Top {
    Top { format: Format::MxFp4, base: 127, top: 127 + octaves, times: 1 << octaves }
}

const fn nvfp4(significand: u8, octave: u8) -> Top {
    let (base, top) = (e4m3(9, 0), e4m3(significand, octave));
    Top { format: Format::NvFp4, base, top, times: (significand as u64) << octave }
}

/// Weights whose two scales are in one plane wherever the format has the group form.
const TOPS: [Top; 6] = [mxfp4(0), mxfp4(3), mxfp4(6), nvfp4(9, 0), nvfp4(14, 3), nvfp4(15, 3)];

#[test]
fn stretches_on_the_bound_of_32_bits_and_one_chunk_past_it() {
    each_isa(|on| {
        let mut outputs = 0;
        for Top { format, base, top, times } in TOPS {
            for octaves in 0..6u8 {
                let most = (i32::MAX as u64 / ((49_152 * times) << octaves)) as usize;
                for chunks in [most - 1, most, most + 1, 2 * most, 2 * most + 1] {
                    // The largest products, of either sign, then what makes them large.
                    let mut a = vec![(-128, 120 + octaves); chunks];
                    a.push((1, 120));
                    let column = |code: u8| {
                        let mut b = vec![(code, top); chunks];
                        b.push((0x11, base));
                        b
                    };
                    let b = weight(format, &[column(0x77), column(0xFF)]);
                    for rows in if chunks < 1000 { 1..4 } else { 1..2 } {
                        let case = format!("{format} {times} << {octaves}, {chunks} x {rows}");
                        let a = int8(&vec![a.clone(); [1, 7, 26][rows - 1]]);
                        let paths = check(on, &a, &b, &case);
                        let all = 2 * a.shape().rows() as u64;
                        let past_fold = folds(on) && format == Format::MxFp4 && times > 8;
                        let expected = if past_fold { (0, all, 0) } else { (all, 0, 0) };
                        assert_eq!((paths.narrow, paths.planes, paths.wide), expected, "{case}");
                        outputs += all;
                    }
                }
            }
        }
        println!("compared {outputs} outputs twice");
        assert!(outputs > 6000);
    });
}

#[test]
fn six_octaves_of_activations_are_one_plane_and_a_seventh_takes_another() {
    each_isa(|on| {
        let tiled = on.isa() != Isa::Portable;
        let mut rng = Rng(91);
        // The last window of the weight that is one plane, and the first that is not.
        let windows =
            [(Format::MxFp4, if folds(on) { 3 } else { 6 }, 127), (Format::NvFp4, 3, e4m3(15, 0))];
        for (format, most, top) in windows {
            for (octaves_a, past_b) in [(5, false), (6, false), (5, true), (6, true)] {
                let group = |g: usize, rng: &mut Rng| {
                    (rng.byte() as i8 | 1, 100 + (g as u8 * 5) % (octaves_a + 1))
                };
                for rows in [1, 5, 27] {
                    let a: Vec<Vec<_>> =
                        (0..rows).map(|_| (0..40).map(|g| group(g, &mut rng)).collect()).collect();
                    let column: Vec<_> = (0..40u8)
                        .map(|g| {
                            let step =
                                if g.is_multiple_of(2) { most + u8::from(past_b) } else { 0 };
                            let scale = match format {
                                Format::MxFp4 => top + step,
                                // 9, and 15 or 16 times 2^3: 120 fits, 128 does not.
                                Format::NvFp4 if step == 0 => e4m3(9, 0),
                                Format::NvFp4 if past_b => e4m3(8, 4),
                                Format::NvFp4 => e4m3(15, 3),
                            };
                            (0x37 ^ g, scale)
                        })
                        .collect();
                    let case = format!("{format} {octaves_a} {past_b} {rows}");
                    let paths = check(on, &int8(&a), &weight(format, &vec![column; 19]), &case);
                    let all = rows as u64 * 19;
                    let planes = tiled && (octaves_a == 6 || past_b);
                    let expected = if planes { (0, all, 0) } else { (all, 0, 0) };
                    assert_eq!((paths.narrow, paths.planes, paths.wide), expected, "{case}");
                }
            }
        }
    });
}

#[test]
fn rows_of_five_planes_are_complete_and_of_six_are_wide() {
    each_isa(|on| {
        let tiled = on.isa() != Isa::Portable;
        for top in TOPS {
            // Windows side by side, filled; and lone octaves apart.
            for (windows, filled) in [(5u8, true), (6, true), (5, false), (6, false)] {
                let octaves: Vec<u8> = match filled {
                    true => (0..6 * (windows - 1) + if windows == 5 { 6 } else { 1 }).collect(),
                    false => (0..windows).map(|w| 7 * w).collect(),
                };
                let row: Vec<_> = (0..62usize)
                    .map(|g| ((g as i8 - 31) * 4 + 1, 90 + octaves[g % octaves.len()]))
                    .collect();
                let column: Vec<_> = (0..62u8).map(|g| (g ^ 0x37, top.base)).collect();
                // One such row among rows that are not.
                let mut rows = vec![vec![(5i8, 100u8); 62]; 9];
                rows[6] = row;
                let b = weight(top.format, &vec![column; 21]);
                let case = format!("{} {windows} {filled}", top.format);
                let paths = check(on, &int8(&rows), &b, &case);
                let wide = if tiled && windows == 6 { 21 } else { 0 };
                assert_eq!(paths.wide, wide, "{case}: {paths:?}");
                if tiled {
                    assert_eq!(paths.planes, 9 * 21 - wide, "{case}");
                }
            }
        }
    });
}

#[test]
fn sums_on_the_bound_of_63_bits_and_one_group_past_it() {
    each_isa(|on| {
        let portable = on.isa() == Isa::Portable;
        let mut seen = [0, 0];
        for Top { format, base, top, times } in TOPS {
            let group = format.group().get() as u128;
            let of_b = 32 / format.group().get();
            for octaves in [24u8, 30, 31, 36, 37, 38, 39, 40, 44, 45, 46, 47, 57, 58, 59] {
                let term = (1536 * group * u128::from(times)) << octaves;
                let most = (i64::MAX as u128 / term) as usize;
                // Live groups of the weight: one at the bottom of its scales, the rest at the top.
                for live in [most, most + 1] {
                    if !(5..6000).contains(&live) {
                        continue;
                    }
                    let chunks = live.div_ceil(of_b);
                    let mut a = vec![(-128, 60 + octaves); chunks];
                    a[chunks / 2] = (-128, 60);
                    let mut column = vec![(0xFF, top); chunks];
                    column[chunks / 3] = (0xFF, base);
                    let mut b = weight(format, &vec![column; 3]);
                    // Half a chunk of NVFP4 too many is dead.
                    if chunks * of_b > live {
                        (0..3).for_each(|j| b.view_mut().row(j).0[..8].fill(0));
                    }
                    let case = format!("{format} {times} << {octaves}, {live} of {most}");
                    let paths = check(on, &int8(&[a.clone(), a]), &b, &case);
                    let wide = live > most || portable && term > 1 << 53;
                    assert_eq!(paths.wide, if wide { 6 } else { 0 }, "{case}: {paths:?}");
                    seen[usize::from(wide)] += 1;
                }
                // Two groups beyond what any number of them may reach.
                let (a, column) =
                    (vec![(127, 60 + octaves), (1, 60)], vec![(0x7F, top), (1, base)]);
                let case = format!("{format} {times} << {octaves}, one of each");
                let paths = check(on, &int8(&[a]), &weight(format, &[column]), &case);
                let wide = 2 * of_b > most || portable && term > 1 << 53;
                assert_eq!(paths.wide, u64::from(wide), "{case}: {paths:?}");
            }
        }
        println!("{seen:?} cases narrow and wide");
        assert!(seen.iter().all(|&cases| cases > 5), "{seen:?}");
    });
}

#[test]
fn sparse_planes_are_summed_by_64_chunks_or_by_as_many_as_32_bits_hold() {
    each_isa(|on| {
        let tiled = on.isa() != Isa::Portable;
        for Top { format, base, top, .. } in TOPS {
            for sparse in [1, 10, 11, 12, 20, 21, 22, 23, 42, 43, 63, 64, 65, 128, 129] {
                // 150 chunks of plane 0, and so many of the largest in plane 1, spread among them.
                let plane = |g: usize| g % 2 == 1 && g / 2 < sparse;
                let groups = 300;
                let row: Vec<_> = (0..groups)
                    .map(|g| match plane(g) {
                        false => (3, 100),
                        true if g / 2 + 1 == sparse => (-128, 112),
                        true => (-128, 112 + 5),
                    })
                    .collect();
                let column = |code: u8| -> Vec<_> {
                    let at = |g| if g == 0 { (0x11, base) } else { (code, top) };
                    (0..groups).map(at).collect()
                };
                let b = weight(format, &[column(0x77), column(0xFF)]);
                for rows in [1, 9] {
                    let case = format!("{format} {top:#x} {sparse} x {rows}");
                    let paths = check(on, &int8(&vec![row.clone(); rows]), &b, &case);
                    let all = 2 * rows as u64;
                    let expected = if tiled { (0, all, 0) } else { (all, 0, 0) };
                    assert_eq!((paths.narrow, paths.planes, paths.wide), expected, "{case}");
                }
                // The same planes in the weight; and in both, at other chunks.
                if format == Format::MxFp4 {
                    let far = |g: usize| if plane(g) { (0x7F, 127 + 12) } else { (0x7F, 127) };
                    let b = weight(format, &[(0..groups).map(far).collect::<Vec<_>>()]);
                    let dense = (0..groups).map(|g| (-128, [100, 105][usize::from(g > 40)]));
                    let dense: Vec<_> = dense.collect();
                    let turned: Vec<_> = (0..groups).map(|g| row[(g + 2) % groups]).collect();
                    for a in [dense, turned] {
                        let case = format!("{format} both {sparse}");
                        let paths = check(on, &int8(&[a]), &b, &case);
                        assert_eq!((paths.planes, paths.wide), (u64::from(tiled), 0), "{case}");
                    }
                }
            }
        }
    });
}

#[test]
fn sums_of_every_exponent_are_rounded_once() {
    each_isa(|on| {
        let mut rng = Rng(92);
        for format in Format::ALL {
            // base_a + base_b: both ends, and around what is plain, -119 to 70.
            let sums = [-254, -253, -140, -121, -120, -119, -118, 0, 69, 70, 71, 72, 119, 248, 254];
            for sum in sums {
                let (base_b, scale_b) = match format {
                    Format::MxFp4 => (sum / 2, (sum / 2 + 127) as u8),
                    // 2^-6 to 2^8.
                    Format::NvFp4 => {
                        let base = (sum / 20).clamp(-6, 8);
                        (base, ((base + 7) as u8) << 3)
                    }
                };
                let base_a = sum - base_b;
                if !(-127..=127).contains(&base_a) {
                    continue;
                }
                // In 32 bits; drained (no stretch of these has more than 170 chunks); in planes.
                for (chunks, octaves) in [(1, 0), (3, 0), (200, 5), (9, 14)] {
                    let top = (base_a + 127 + octaves).min(254) as u8;
                    let mut a = activations(&mut rng, 3, 32 * chunks, Scales::Close);
                    let mut b = operand(&mut rng, format, 17, 32 * chunks, Scales::Close);
                    b.view_mut().buffers().1.fill(scale_b);
                    for i in 0..3 {
                        // All rows alike; or one an octave up, with nothing to spare at the ends.
                        let up = u8::from(i == 1 && chunks == 3 && base_a < 127);
                        let mut view = a.view_mut();
                        let (elements, scales) = view.row(i);
                        elements[0] |= 1;
                        scales.fill(top + up);
                        scales[0] = (base_a + 127) as u8 + up;
                    }
                    let case = format!("{format} 2^{sum}, {chunks} chunks, {octaves} octaves");
                    let paths = check(on, &a, &b, &case);
                    assert_eq!(paths.wide, 0, "{case}");
                }
            }
        }
    });
}

#[test]
fn every_tile_size_takes_the_path_that_its_data_makes_certain() {
    each_isa(|on| {
        let tiled = on.isa() != Isa::Portable;
        let limits = on.isa().limits();
        let around = |sizes: &[usize]| -> Vec<usize> {
            sizes.iter().flat_map(|&size| [size - 1, size, size + 1]).chain([1]).collect()
        };
        let mut rng = Rng(93);
        let (mut compared, mut turn) = (0, 0);
        for format in Format::ALL {
            for m in around(limits.rows) {
                for n in around(limits.columns) {
                    turn += 1;
                    let k = [32, 96, 1056][turn % 3];
                    let [mut a, mut b] = [
                        activations(&mut rng, m, k, Scales::Close),
                        operand(&mut rng, format, n, k, Scales::Close),
                    ];
                    // Four octaves of the weight, or e4m3 up to 15 * 2^3 of the least: one plane.
                    let mut view = b.view_mut();
                    let first = [125, e4m3(8, 0)][usize::from(format == Format::NvFp4)];
                    view.buffers().1.iter_mut().for_each(|s| *s = first + (*s & 3) * (*s & 1));
                    for kind in 0..3 {
                        let mut view = a.view_mut();
                        let (elements, scales) = view.buffers();
                        elements.iter_mut().for_each(|e| *e |= 1);
                        for (g, scale) in scales.iter_mut().enumerate() {
                            *scale = match kind {
                                0 => 120 + rng.byte() % 6,
                                // Two windows, if a row has two groups.
                                1 => [110, 122][g % (k / 32) % 2],
                                // The whole range, if it does.
                                _ => [0, 254][g % (k / 32) % 2],
                            };
                        }
                        let case = format!("{format} {m}x{n}x{k} kind {kind}");
                        let paths = check(on, &a, &b, &case);
                        let all = (m * n) as u64;
                        let expected = match kind {
                            1 if k > 32 && tiled => (0, all, 0),
                            2 if k > 32 => (0, 0, all),
                            _ => (all, 0, 0),
                        };
                        assert_eq!((paths.narrow, paths.planes, paths.wide), expected, "{case}");
                        compared += all;
                    }
                }
            }
        }
        println!("compared {compared} outputs twice");
        assert!(compared > 2000);
    });
}
