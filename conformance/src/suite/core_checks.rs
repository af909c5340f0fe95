//! What has one home, in the core: the scale layout, padding, packing, conversions, fma.
//!
//! Each is compared with a rule of its own here, or with the oracle's. The layout's rule: padded to
//! 128 x 4 tiles, tiles row-major, byte (r, c) of a tile at (r % 32) * 16 + (r / 32) * 4 + c (C7).
//!
//! Worked example: of 129 x 5 scales, byte (128, 4) is byte (0, 0) of tile (1, 1) of 2 x 2: 3 *
//! 512.

use fp4_core::{
    E2m1, Encoding, FloatType, PackedMatrix, PackedShape, ScaleType, Swizzle, TieMode, fma, mxint8,
    pack, pad_k, padded_k, reference, unpack,
};

use super::case::{CoreCase, CoreCheck};
use super::outcome::{Comparison, Meaning, Outcome};
use crate::oracle::rules::{e2m1_value, scale_value};
use crate::oracle::{self, Oracle};
use crate::random::Random;
use crate::tensor::{bits_of, garbage};

pub(super) fn check(oracle: &Oracle, case: &CoreCase, id: &str) -> Outcome {
    let mut comparison = Comparison::default();
    let mut random = Random::of(id);
    let [rows, cols] = case.shape;
    let result = match case.check {
        CoreCheck::Swizzle => swizzle(&mut comparison, &mut random, rows, cols),
        CoreCheck::Pad => pad(&mut comparison, &mut random, rows, cols),
        CoreCheck::Pack => packing(&mut comparison, &mut random, cols),
        CoreCheck::Dequantize => dequantize(&mut comparison, &mut random, oracle, rows, cols),
        CoreCheck::Encode => {
            encode(&mut comparison, oracle);
            Ok(())
        }
        CoreCheck::Decode => {
            decode(&mut comparison);
            Ok(())
        }
        CoreCheck::Int8 => {
            int8(&mut comparison);
            Ok(())
        }
        CoreCheck::Fma => {
            multiply_add(&mut comparison, &mut random);
            Ok(())
        }
    };
    result.map_or_else(Outcome::from, |()| comparison.outcome())
}

fn bytes(random: &mut Random, len: usize) -> Vec<u8> {
    (0..len).map(|_| random.byte()).collect()
}

/// A matrix of scale bytes in 128 x 4 tiles, by the text of C7.
pub(crate) fn swizzled(scales: &[u8], rows: usize, cols: usize) -> Vec<u8> {
    let (tiles_down, tiles_across) = (rows.div_ceil(128), cols.div_ceil(4));
    let mut swizzled = vec![0; tiles_down * tiles_across * 512];
    for r in 0..rows {
        for c in 0..cols {
            let tile = (r / 128) * tiles_across + c / 4;
            let (r_in, c_in) = (r % 128, c % 4);
            swizzled[tile * 512 + (r_in % 32) * 16 + (r_in / 32) * 4 + c_in] = scales[r * cols + c];
        }
    }
    swizzled
}

fn swizzle(
    comparison: &mut Comparison,
    random: &mut Random,
    rows: usize,
    cols: usize,
) -> Result<(), fp4_core::Error> {
    let layout = Swizzle::new(rows, cols)?;
    let scales = bytes(random, rows * cols);
    let mut expected = swizzled(&scales, rows, cols);
    let mut got = vec![0xA5; layout.len()];
    layout.swizzle(&scales, &mut got)?;
    comparison.bytes("C7", "swizzled", Meaning::Integer, 512, &got, &expected);
    // Dirty padding comes off.
    let mut inside = vec![false; expected.len()];
    for (r, c) in (0..rows).flat_map(|r| (0..cols).map(move |c| (r, c))) {
        layout.offset(r, c).into_iter().for_each(|at| inside[at] = true);
    }
    expected.iter_mut().zip(inside).filter(|(_, i)| !i).for_each(|(b, _)| *b = 0xA5);
    let mut back = vec![0xA5; rows * cols];
    layout.unswizzle(&expected, &mut back)?;
    comparison.bytes("C7", "unswizzled", Meaning::Integer, cols, &back, &scales);
    Ok(())
}

fn pad(
    comparison: &mut Comparison,
    random: &mut Random,
    rows: usize,
    groups: usize,
) -> Result<(), fp4_core::Error> {
    for encoding in Encoding::ALL {
        let (group, per_byte) = (encoding.group().get(), encoding.element().per_byte());
        let k = groups * group;
        let shape = PackedShape::encoded(encoding, rows, k)?;
        let from = PackedMatrix::new(
            shape,
            bytes(random, shape.codes_len()),
            bytes(random, shape.scales_len()),
        )?;
        let wide = k.div_ceil(128) * 128;
        let got_k = padded_k(k)? as u32;
        comparison.compare("C8", "padded K", Meaning::Integer, 1, &[got_k], &[wide as u32]);
        let to = shape.resized(rows, wide)?;
        let dirty = (vec![0xA5; to.codes_len()], vec![0xA5; to.scales_len()]);
        let mut out = PackedMatrix::new(to, dirty.0, dirty.1)?;
        pad_k(from.view(), &mut out.view_mut())?;
        let widen = |bytes: &[u8], from: usize, to: usize| {
            let byte = |i: usize| {
                let (row, column) = (i / to.max(1), i % to.max(1));
                if column < from { bytes[row * from + column] } else { 0 }
            };
            (0..rows * to).map(byte).collect::<Vec<u8>>()
        };
        let columns = wide / per_byte;
        let codes = widen(from.codes(), k / per_byte, columns);
        let scales = widen(from.scales(), groups, wide / group);
        let meaning = if per_byte == 2 { Meaning::Codes } else { Meaning::Int8 };
        comparison.bytes("C8", "padded codes", meaning, columns, out.codes(), &codes);
        let columns = wide / group;
        comparison.bytes("C8", "padded scales", Meaning::Integer, columns, out.scales(), &scales);
    }
    Ok(())
}

fn packing(
    comparison: &mut Comparison,
    random: &mut Random,
    codes: usize,
) -> Result<(), fp4_core::Error> {
    let codes: Vec<u8> = (0..codes).map(|_| random.byte() & 15).collect();
    let expected: Vec<u8> = codes.chunks_exact(2).map(|c| c[0] + 16 * c[1]).collect();
    let mut packed = vec![0xA5; expected.len()];
    pack(&codes, &mut packed)?;
    comparison.bytes("C3", "packed", Meaning::Codes, 0, &packed, &expected);
    let mut unpacked = vec![0xA5; codes.len()];
    unpack(&expected, &mut unpacked)?;
    comparison.bytes("C3", "unpacked", Meaning::Integer, 0, &unpacked, &codes);
    Ok(())
}

fn dequantize(
    comparison: &mut Comparison,
    random: &mut Random,
    oracle: &Oracle,
    rows: usize,
    groups: usize,
) -> Result<(), fp4_core::Error> {
    for encoding in Encoding::ALL {
        let shape = PackedShape::encoded(encoding, rows, groups * encoding.group().get())?;
        let matrix = PackedMatrix::new(
            shape,
            bytes(random, shape.codes_len()),
            bytes(random, shape.scales_len()),
        )?;
        let (clause, settings): (_, &[f32]) = match encoding {
            Encoding::MxInt8 => ("C10", &[1.0]),
            _ => ("C4.4", &[1.0 / 3.0, 0.1, 1.0]),
        };
        for &gs in settings {
            for ty in FloatType::ALL {
                let mut out = garbage(ty, rows * shape.k());
                reference::dequantize(matrix.view(), gs, out.as_mut_slice())?;
                let (got, expected) =
                    (bits_of(out.as_slice()), oracle.dequantize(matrix.view(), gs, ty));
                let tensor = format!("{encoding} to {ty}, gs {gs}");
                let float = Meaning::Float(ty);
                comparison.compare(clause, &tensor, float, shape.k(), &got, &expected);
            }
        }
    }
    Ok(())
}

/// Every midpoint of a ladder with its neighbours, in both signs, and the special values.
fn inputs(midpoints: &[f64]) -> Vec<f32> {
    let ends = [0.0, f32::MIN_POSITIVE, 1e-45, 6.0, 6.5, 448.0, 464.0, 465.0, f32::MAX];
    let special = [f32::INFINITY, f32::NAN, f32::from_bits(0x7F80_0001)];
    let near = midpoints.iter().flat_map(|&m| {
        let bits = (m as f32).to_bits();
        [bits - 1, bits, bits + 1].map(f32::from_bits)
    });
    near.chain(ends).chain(special).flat_map(|x| [x, -x]).collect()
}

fn encode(comparison: &mut Comparison, oracle: &Oracle) {
    let rules = oracle.rules();
    let x = inputs(rules.e2m1_ladder().midpoints());
    for tie in TieMode::ALL {
        let got: Vec<u8> = x.iter().map(|&x| E2m1::from_f32_tie(x, tie).to_bits()).collect();
        let expected: Vec<u8> = x.iter().map(|&x| rules.e2m1(x, tie)).collect();
        let tensor = format!("f32 to e2m1, ties {tie:?}");
        comparison.bytes("C1", &tensor, Meaning::Codes, 0, &got, &expected);
    }
    for ty in [ScaleType::E8M0, ScaleType::E4M3] {
        let x = inputs(rules.scale_ladder(ty).midpoints());
        let got: Vec<u8> = x.iter().map(|&x| ty.encode(x)).collect();
        let expected: Vec<u8> = x.iter().map(|&x| rules.scale(ty, x)).collect();
        let tensor = format!("f32 to {ty}");
        comparison.bytes("C2", &tensor, Meaning::Scale(ty), 0, &got, &expected);
    }
}

fn decode(comparison: &mut Comparison) {
    let canonical = |x: f64| if x.is_nan() { 0x7FC0_0000 } else { (x as f32).to_bits() };
    let float = Meaning::Float(FloatType::F32);
    let got: Vec<u32> = (0..16).map(|c| E2m1::from_bits(c).to_f32().to_bits()).collect();
    let expected: Vec<u32> = (0..16).map(|c| canonical(e2m1_value(c))).collect();
    comparison.compare("C1", "e2m1 values", float, 0, &got, &expected);
    for ty in [ScaleType::E8M0, ScaleType::E4M3] {
        let got: Vec<u32> = (0..=255).map(|b| ty.decode(b).to_bits()).collect();
        let expected: Vec<u32> = (0..=255).map(|b| canonical(scale_value(ty, b))).collect();
        comparison.compare("C2", &format!("{ty} values"), float, 0, &got, &expected);
    }
}

/// MXINT8's scale of a largest magnitude, and elements around every midpoint, at every exponent.
fn int8(comparison: &mut Comparison) {
    let fractions = [0, 1, 0x40_0000, 0x7D_FFFF, 0x7E_0000, 0x7E_0001, 0x7F_0000, 0x7F_FFFF];
    let amaxes: Vec<f32> = (0..=255u32)
        .flat_map(|e| fractions.map(|fraction| f32::from_bits(e << 23 | fraction)))
        .collect();
    let got: Vec<u8> = amaxes.iter().map(|&amax| mxint8::scale(amax)).collect();
    let expected: Vec<u8> = amaxes.iter().map(|&x| oracle::mxint8::scale(&[x])).collect();
    let meaning = Meaning::Scale(ScaleType::E8M0);
    comparison.bytes("C10", "mxint8 scales", meaning, fractions.len(), &got, &expected);
    for scale in 0..=254u8 {
        let x: Vec<f32> = (0..=256u32)
            .flat_map(|half| {
                let near = (f64::from(half) / 2.0 * 2f64.powi(i32::from(scale) - 133)) as f32;
                let bits = near.to_bits();
                [bits.saturating_sub(1), bits, bits + 1].map(f32::from_bits)
            })
            .flat_map(|x| [x, -x])
            .filter(|x| !x.is_nan())
            .collect();
        let got: Vec<u8> = x.iter().map(|&x| mxint8::encode(x, scale) as u8).collect();
        let expected: Vec<u8> = x.iter().map(|&x| oracle::mxint8::element(x, scale)).collect();
        let tensor = format!("mxint8 elements under scale {scale}");
        comparison.bytes("C10", &tensor, Meaning::Int8, 6, &got, &expected);
    }
}

fn multiply_add(comparison: &mut Comparison, random: &mut Random) {
    // Near ties: a b is within 2^-40 of a power of two that is half an ulp of c.
    let near = |random: &mut Random| {
        let u = (1 + random.below(64)) as f32 * f32::EPSILON;
        let c = 16_777_216.0 + 2.0 * random.below(1000) as f32;
        let unit = 2f64.powi(random.range(-60, 60)) as f32;
        ((1.0 + u) * unit, (1.0 - u) * random.pick(&[1.0, -1.0]), c * unit)
    };
    let any = |random: &mut Random| {
        let mut bits = || f32::from_bits((random.next_u64() >> 9) as u32);
        (bits(), bits(), bits())
    };
    let known = [0x1A00_0001, 0x19FF_FFFE, 0x0040_0001].map(f32::from_bits);
    let mut terms = vec![(known[0], known[1], known[2])];
    for i in 0..20_000 {
        terms.push(if i % 2 == 0 { near(random) } else { any(random) });
    }
    let bits = |x: f32| if x.is_nan() { 0x7FC0_0000 } else { x.to_bits() };
    let got: Vec<u32> = terms.iter().map(|&(a, b, c)| bits(fma(a, b, c))).collect();
    let expected: Vec<u32> = terms.iter().map(|&(a, b, c)| bits(oracle::fma(a, b, c))).collect();
    comparison.compare("C5", "fma", Meaning::Float(FloatType::F32), 0, &got, &expected);
}
