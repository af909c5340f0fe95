//! Finite domains, all of them: every f32 through every conversion, every code under every scale,
//! every pair of scales, every f16 and bf16 to MXINT8, every MXINT8 element by every code.
//!
//! The tests over all 2^32 f32 take minutes and are ignored by default; `.ci/steps/exhaustive` runs
//! them in release. The default run takes every 4,099th pattern and the neighbours of every
//! boundary instead.
//!
//! How the 2^32 are compared: between two neighbouring midpoints of a format the answer is
//! constant, so the independent rule is a list of runs `lo..=hi -> code` that covers all patterns
//! once; the conversion under test is still called on every single one.

mod tally;

use std::thread;

use fp4_conformance::oracle::mxint8;
use fp4_conformance::oracle::rules::{
    Ladder, NAN, Rules, Tie, e2m1_doubled, e2m1_value, scale_parts, scale_value, widen,
};
use fp4_core::{
    E2m1, E4m3, E8m0, Encoding, Float, FloatSlice, FloatType, Format, GroupSize, PackedMut,
    PackedShape, PackedView, QuantSpec, QuantizeInput, ScaleType, TieMode, reference,
};
use half::{bf16, f16};
use tally::{Tally, power};

/// One conversion from f32 with the rule that it must follow.
struct Conversion {
    name: String,
    /// The core's conversion, as a pattern.
    convert: fn(f32) -> u32,
    /// What it must give.
    runs: Vec<Run>,
}

/// All patterns `lo..=hi` convert to `code`.
#[derive(Debug, Clone, Copy)]
struct Run {
    lo: u32,
    hi: u32,
    code: u32,
}

/// The runs of a conversion: `code(negative, index)` for a magnitude nearest to value `index`, ties
/// by `tie(negative)`, and `nan`.
fn runs(
    ladder: &Ladder,
    tie: impl Fn(bool) -> Tie,
    code: impl Fn(bool, usize) -> u32,
    nan: u32,
) -> Vec<Run> {
    let mut runs = Vec::new();
    for negative in [false, true] {
        let sign = u32::from(negative) << 31;
        let mut start = 0u32;
        for (i, &midpoint) in ladder.midpoints().iter().enumerate() {
            let at = (midpoint as f32).to_bits();
            assert_eq!(f64::from(f32::from_bits(at)), midpoint, "midpoint {i} is exact");
            runs.push(Run { lo: sign | start, hi: sign | (at - 1), code: code(negative, i) });
            let tied = code(negative, tie(negative).of(i));
            runs.push(Run { lo: sign | at, hi: sign | at, code: tied });
            start = at + 1;
        }
        let last = code(negative, ladder.midpoints().len());
        runs.push(Run { lo: sign | start, hi: sign | 0x7F80_0000, code: last });
        runs.push(Run { lo: sign | 0x7F80_0001, hi: sign | 0x7FFF_FFFF, code: nan });
    }
    cover_all(&runs);
    runs
}

/// Asserts that the runs cover every pattern once, in order.
fn cover_all(runs: &[Run]) {
    assert_eq!((runs[0].lo, runs[runs.len() - 1].hi), (0, u32::MAX));
    assert!(runs.windows(2).all(|pair| pair[0].hi.checked_add(1) == Some(pair[1].lo)));
    assert!(runs.iter().all(|run| run.lo <= run.hi));
}

fn e2m1(mode: TieMode) -> Conversion {
    fn convert(mode: TieMode, x: f32) -> u32 {
        E2m1::from_f32_tie(x, mode).to_bits().into()
    }
    let code = |negative, index| index as u32 | u32::from(negative) << 3;
    Conversion {
        name: format!("e2m1 ties {mode:?}").to_lowercase(),
        convert: match mode {
            TieMode::Even => |x| convert(TieMode::Even, x),
            TieMode::Zero => |x| convert(TieMode::Zero, x),
            TieMode::Down => |x| convert(TieMode::Down, x),
            TieMode::Up => |x| convert(TieMode::Up, x),
        },
        runs: runs(
            Rules::default().e2m1_ladder(),
            |negative| Tie::of_mode(mode, negative),
            code,
            7,
        ),
    }
}

fn e8m0() -> Conversion {
    // Whatever is negative is clamped up to 2^-127, byte 0.
    let code = |negative, index| if negative { 0 } else { index as u32 };
    Conversion {
        name: "e8m0".into(),
        convert: |x| E8m0::from_f32(x).to_bits().into(),
        runs: runs(Rules::default().scale_ladder(ScaleType::E8M0), |_| Tie::Up, code, 0xFF),
    }
}

fn e4m3() -> Conversion {
    let code = |negative, index| index as u32 | u32::from(negative) << 7;
    Conversion {
        name: "e4m3".into(),
        convert: |x| E4m3::from_f32(x).to_bits().into(),
        runs: runs(Rules::default().scale_ladder(ScaleType::E4M3), |_| Tie::Even, code, 0x7F),
    }
}

fn narrow_f16() -> Conversion {
    let code = |negative, index| index as u32 | u32::from(negative) << 15;
    Conversion {
        name: "f16".into(),
        convert: |x| <f16 as Float>::from_f32(x).to_bits().into(),
        runs: runs(
            Rules::default().half_ladder(FloatType::F16).unwrap(),
            |_| Tie::Even,
            code,
            fp4_core::NAN_F16.into(),
        ),
    }
}

fn narrow_bf16() -> Conversion {
    let code = |negative, index| index as u32 | u32::from(negative) << 15;
    Conversion {
        name: "bf16".into(),
        convert: |x| <bf16 as Float>::from_f32(x).to_bits().into(),
        runs: runs(
            Rules::default().half_ladder(FloatType::Bf16).unwrap(),
            |_| Tie::Even,
            code,
            fp4_core::NAN_BF16.into(),
        ),
    }
}

/// The scale byte of a group of MXINT8 by its largest magnitude (C10): byte b holds up to 127 / 64
/// of 2^(b - 127).
fn mxint8_scale() -> Conversion {
    let mut runs = Vec::new();
    for sign in [0, 1 << 31] {
        let mut start = 0u32;
        for code in 0..254u32 {
            // Exact: seven bits, and 2^-133 has sixteen below it.
            let most = ((127.0 * power(code as i32 - 133)) as f32).to_bits();
            runs.push(Run { lo: sign | start, hi: sign | most, code });
            start = most + 1;
        }
        runs.push(Run { lo: sign | start, hi: sign | 0x7F80_0000, code: 254 });
        runs.push(Run { lo: sign | 0x7F80_0001, hi: sign | 0x7FFF_FFFF, code: 0xFF });
    }
    cover_all(&runs);
    Conversion { name: "mxint8 scale".into(), convert: |x| fp4_core::mxint8::scale(x).into(), runs }
}

/// The MXINT8 element under scale byte 133, whose unit is 1, in two's complement (C10); a NaN is 0.
fn mxint8_element() -> Conversion {
    let mut runs = Vec::new();
    for sign in [0, 1 << 31] {
        let code = |i: u32| if sign == 0 { i } else { i.wrapping_neg() & 0xFF };
        let mut start = 0u32;
        for i in 0..127u32 {
            // The tie between i and i + 1 goes to the even one.
            let tie = (i as f32 + 0.5).to_bits();
            let even = i.next_multiple_of(2);
            runs.push(Run { lo: sign | start, hi: sign | (tie - 1), code: code(i) });
            runs.push(Run { lo: sign | tie, hi: sign | tie, code: code(even) });
            start = tie + 1;
        }
        runs.push(Run { lo: sign | start, hi: sign | 0x7F80_0000, code: code(127) });
        runs.push(Run { lo: sign | 0x7F80_0001, hi: sign | 0x7FFF_FFFF, code: 0 });
    }
    cover_all(&runs);
    Conversion {
        name: "mxint8 element".into(),
        convert: |x| fp4_core::mxint8::encode(x, 133) as u8 as u32,
        runs,
    }
}

impl Conversion {
    /// Compares the patterns from `from` to `to`.
    fn compare(&self, from: u32, to: u32) -> Tally {
        let mut tally = Tally::default();
        for run in &self.runs {
            let (lo, hi) = (run.lo.max(from), run.hi.min(to));
            if lo > hi {
                continue;
            }
            let wrong = |bits: u32| u64::from((self.convert)(f32::from_bits(bits)) != run.code);
            let differ: u64 = (lo..=hi).map(wrong).sum();
            tally.compared += u64::from(hi - lo) + 1;
            tally.differ += differ;
            if differ > 0 && tally.differ == differ {
                let first = (lo..=hi).find(|&bits| wrong(bits) != 0).unwrap();
                let got = (self.convert)(f32::from_bits(first));
                println!("{} of {first:#010X}: got {got:#X}, expected {:#X}", self.name, run.code);
            }
        }
        tally
    }

    /// All 2^32 patterns, on two threads.
    fn compare_all(&self) {
        let halves = [(0, u32::MAX / 2), (u32::MAX / 2 + 1, u32::MAX)];
        let mut sum = Tally::default();
        thread::scope(|scope| {
            let threads = halves.map(|(from, to)| scope.spawn(move || self.compare(from, to)));
            for thread in threads {
                let part = thread.join().unwrap();
                sum.compared += part.compared;
                sum.differ += part.differ;
            }
        });
        assert_eq!(sum.compared, 1 << 32);
        sum.finish(&format!("exhaustive {}", self.name));
    }

    /// Every 4,099th pattern, and two on either side of every boundary.
    fn compare_some(&self) {
        let mut tally = Tally::default();
        let mut check = |bits: u32| {
            let at = self.runs.partition_point(|run| run.hi < bits);
            tally.check((self.convert)(f32::from_bits(bits)), self.runs[at].code, || {
                format!("{} of {bits:#010X}", self.name)
            });
        };
        (0..=u32::MAX).step_by(4_099).for_each(&mut check);
        for run in &self.runs {
            for offset in -2..=2 {
                check(run.lo.wrapping_add_signed(offset));
            }
        }
        tally.finish(&format!("strided {}", self.name));
    }
}

#[test]
fn some_f32_through_e2m1_in_four_tie_modes() {
    TieMode::ALL.into_iter().for_each(|mode| e2m1(mode).compare_some());
}

#[test]
fn some_f32_through_e8m0() {
    e8m0().compare_some();
}

#[test]
fn some_f32_through_e4m3() {
    e4m3().compare_some();
}

#[test]
fn some_f32_narrowed_to_f16_and_bf16() {
    narrow_f16().compare_some();
    narrow_bf16().compare_some();
}

#[test]
fn some_f32_to_the_scale_and_the_element_of_mxint8() {
    mxint8_scale().compare_some();
    mxint8_element().compare_some();
}

#[test]
#[ignore = "all 2^32 f32 four times: minutes; .ci/steps/exhaustive runs it in release"]
fn all_f32_through_e2m1_in_four_tie_modes() {
    TieMode::ALL.into_iter().for_each(|mode| e2m1(mode).compare_all());
}

#[test]
#[ignore = "all 2^32 f32: .ci/steps/exhaustive runs it in release"]
fn all_f32_through_e8m0() {
    e8m0().compare_all();
}

#[test]
#[ignore = "all 2^32 f32: .ci/steps/exhaustive runs it in release"]
fn all_f32_through_e4m3() {
    e4m3().compare_all();
}

#[test]
#[ignore = "all 2^32 f32: .ci/steps/exhaustive runs it in release"]
fn all_f32_narrowed_to_f16() {
    narrow_f16().compare_all();
}

#[test]
#[ignore = "all 2^32 f32: .ci/steps/exhaustive runs it in release"]
fn all_f32_narrowed_to_bf16() {
    narrow_bf16().compare_all();
}

#[test]
#[ignore = "all 2^32 f32: .ci/steps/exhaustive runs it in release"]
fn all_f32_to_the_scale_of_mxint8() {
    mxint8_scale().compare_all();
}

#[test]
#[ignore = "all 2^32 f32: .ci/steps/exhaustive runs it in release"]
fn all_f32_to_the_element_of_mxint8() {
    mxint8_element().compare_all();
}

#[test]
fn every_half_widens_to_its_value() {
    let mut tally = Tally::default();
    for bits in 0..=u16::MAX {
        let f16 = f64::from(Float::to_f32(f16::from_bits(bits)));
        let bf16 = f64::from(Float::to_f32(bf16::from_bits(bits)));
        for (ty, got) in [(FloatType::F16, f16), (FloatType::Bf16, bf16)] {
            let expected = f64::from(widen(ty, bits.into()));
            let same = (got.is_nan() && expected.is_nan()) || got.to_bits() == expected.to_bits();
            tally.check(same, true, || format!("{ty} {bits:#06X}: {got} for {expected}"));
        }
    }
    tally.finish("exhaustive widening");
}

#[test]
fn every_f32_nan_class_becomes_canonical() {
    let mut tally = Tally::default();
    let payloads = (0x7F80_0001..=0x7FFF_FFFFu32).step_by(4_097).chain([0x7FFF_FFFF]);
    for bits in payloads.flat_map(|bits| [bits, bits | 0x8000_0000]) {
        let got = <f32 as Float>::from_f32(f32::from_bits(bits)).to_bits();
        tally.check(got, NAN, || format!("{bits:#010X}"));
    }
    tally.finish("canonical f32 NaN");
}

#[test]
fn every_code_decodes_to_its_value() {
    let mut tally = Tally::default();
    for code in 0..16 {
        let (element, value) = (E2m1::from_bits(code), e2m1_value(code));
        tally.check(f64::from(element.to_f32()).to_bits(), value.to_bits(), || format!("{code}"));
        tally.check(i64::from(element.doubled()), e2m1_doubled(code), || format!("2 * {code}"));
    }
    for ty in ScaleType::ALL {
        for byte in 0..=u8::MAX {
            let what = || format!("{ty} {byte:#04X}");
            let (got, value) = (ty.decode(byte), scale_value(ty, byte));
            tally.check(ty.is_nan(byte), value.is_nan(), what);
            let parts = scale_parts(ty, byte);
            tally.check(ty.parts(byte).is_some(), parts.is_some(), what);
            let (Some(parts), Some(got_parts)) = (parts, ty.parts(byte)) else {
                tally.check(got.to_bits(), NAN, what);
                continue;
            };
            tally.check(f64::from(got).to_bits(), value.to_bits(), what);
            // Significand and exponent may be split otherwise; the product may not differ.
            let product = f64::from(got_parts.significand) * power(got_parts.exponent);
            tally.check(product, parts.0 as f64 * power(parts.1), what);
        }
    }
    tally.finish("exhaustive decode");
}

/// Every element under every scale byte, dequantized, for several global scales and three types:
/// `round(value * round(scale * gs))`, with each product exact in f64 before its one rounding.
#[test]
fn every_element_under_every_scale() {
    let rules = Rules::default();
    let mut tally = Tally::default();
    for ty in ScaleType::ALL {
        for group in GroupSize::ALL {
            let g = group.get();
            let shape = PackedShape::new(256, g, ty, group).unwrap();
            // Row = scale byte, element k = code k % 16.
            let codes: Vec<u8> = (0..256 * g / 2)
                .map(|i| (2 * i % 16) as u8 | (((2 * i + 1) % 16) as u8) << 4)
                .collect();
            let scales: Vec<u8> = (0..=u8::MAX).collect();
            let packed = PackedView::new(shape, &codes, &scales).unwrap();
            for gs in [1.0, 1.0 / 3.0, 0.1, 0.062_5, f32::from_bits(0x3F7F_FFFF), 1.5e-38] {
                let mut f32s = vec![0f32; 256 * g];
                let (mut f16s, mut bf16s) = (vec![f16::ZERO; 256 * g], vec![bf16::ZERO; 256 * g]);
                reference::dequantize(packed, gs, f32s.as_mut_slice().into()).unwrap();
                reference::dequantize(packed, gs, f16s.as_mut_slice().into()).unwrap();
                reference::dequantize(packed, gs, bf16s.as_mut_slice().into()).unwrap();
                for i in 0..256 * g {
                    let (byte, code) = ((i / g) as u8, (i % 16) as u8);
                    let unit = (scale_value(ty, byte) * f64::from(gs)) as f32;
                    let exact = tally::canonical((e2m1_value(code) * f64::from(unit)) as f32);
                    let what = || format!("{ty} {byte:#04X} code {code} gs {gs}");
                    tally.check(f32s[i].to_bits(), exact.to_bits(), what);
                    tally.check(
                        f16s[i].to_bits(),
                        rules.narrow(FloatType::F16, exact) as u16,
                        what,
                    );
                    tally.check(
                        bf16s[i].to_bits(),
                        rules.narrow(FloatType::Bf16, exact) as u16,
                        what,
                    );
                }
            }
        }
    }
    tally.finish("exhaustive element x scale");
}

/// Every pair of scale bytes under several groups of codes, through the matmul: the dot product is
/// a small integer, so the sum is exact in f64 and rounds once.
#[test]
fn every_pair_of_scales_through_the_matmul() {
    let mut tally = Tally::default();
    for format in Format::ALL {
        let (g, ty) = (format.group().get(), format.scale_type());
        let shape = PackedShape::of(format, 256, g).unwrap();
        let scales: Vec<u8> = (0..=u8::MAX).collect();
        // Codes of a group by index, of A and of B.
        type Codes = fn(usize) -> u8;
        let pairs: [(Codes, Codes); 7] = [
            (|k| if k == 0 { 1 } else { 0 }, |k| if k == 0 { 1 } else { 8 }),
            (|k| if k == 3 { 15 } else { 0 }, |_| 7),
            (|_| 7, |_| 7),
            (|_| 15, |_| 7),
            (|k| if k % 2 == 0 { 7 } else { 15 }, |_| 5),
            (|_| 8, |_| 15),
            (|k| (k * 7 % 16) as u8, |k| (k * 11 % 16) as u8),
        ];
        for (codes_a, codes_b) in pairs {
            let pack = |codes: Codes| -> Vec<u8> {
                (0..256 * g / 2).map(|i| codes(2 * i % g) | codes((2 * i + 1) % g) << 4).collect()
            };
            let (a, b) = (pack(codes_a), pack(codes_b));
            let a = PackedView::new(shape, &a, &scales).unwrap();
            let b = PackedView::new(shape, &b, &scales).unwrap();
            let mut out = vec![0f32; 256 * 256];
            reference::matmul(a, b, 1.0, out.as_mut_slice().into()).unwrap();
            let dot: i64 =
                (0..g).map(|k| e2m1_doubled(codes_a(k)) * e2m1_doubled(codes_b(k))).sum();
            for (i, y) in out.iter().enumerate() {
                let (sa, sb) = ((i / 256) as u8, (i % 256) as u8);
                let expected = match (scale_parts(ty, sa), scale_parts(ty, sb)) {
                    (Some(a), Some(b)) => {
                        // At most 24 bits, down to 2^-256: exact; 0 * 2^e is +0.
                        let integer = (dot * a.0 * b.0) as f64;
                        (integer * power(a.1 + b.1 - 2)) as f32
                    }
                    _ => f32::from_bits(NAN),
                };
                tally.check(y.to_bits(), expected.to_bits(), || {
                    format!("{format} scales {sa:#04X} {sb:#04X} dot {dot}/4")
                });
            }
        }
    }
    tally.finish("exhaustive scale pairs");
}

/// Every f16 and every bf16 to MXINT8 (C10): alone in its group, which decides its scale, and
/// beside larger elements that do, at every exponent that there is.
#[test]
fn every_half_becomes_the_mxint8_element_of_the_rule() {
    let mut tally = Tally::default();
    for ty in [FloatType::F16, FloatType::Bf16] {
        // Largest magnitudes: fractions on both sides of 127 / 64, up to infinity.
        let beside: Vec<u32> = match ty {
            FloatType::F16 => {
                (0..32).flat_map(|e| [0, 0x3F7, 0x3F9].map(|f| e << 10 | f)).collect()
            }
            _ => (0..=255).step_by(5).flat_map(|e| [0, 0x7E, 0x7F].map(|f| e << 7 | f)).collect(),
        };
        let beside: Vec<u32> = beside.into_iter().filter(|&x| !widen(ty, x).is_nan()).collect();
        for first in (0..=u16::MAX).step_by(31 * 64) {
            let some: Vec<u16> = (first..=first.saturating_add(31 * 64 - 1)).collect();
            for &largest in &beside {
                // 31 values and the one beside them; then each of the values on its own.
                let mut bits: Vec<u16> = some
                    .chunks(31)
                    .flat_map(|x| {
                        let zeros = std::iter::repeat_n(0, 31 - x.len());
                        x.iter().copied().chain(zeros).chain([largest as u16])
                    })
                    .collect();
                if largest == beside[0] {
                    bits.extend(
                        some.iter()
                            .flat_map(|&x| std::iter::once(x).chain(std::iter::repeat_n(0, 31))),
                    );
                }
                compare_mxint8(&mut tally, ty, &bits);
            }
        }
    }
    tally.finish("exhaustive f16 and bf16 to mxint8");
}

/// Every f16 and every bf16 as the largest of its group (C10), of either sign and at a place of its
/// own, beside 31 values that it decides about: halves of an element, where they tie, and others.
#[test]
fn every_half_as_the_largest_of_its_group_decides_what_the_others_become() {
    let mut tally = Tally::default();
    for ty in [FloatType::F16, FloatType::Bf16] {
        let narrow = |x: f32| match ty {
            FloatType::F16 => f16::from_f32(x).to_bits(),
            _ => bf16::from_f32(x).to_bits(),
        };
        for first in (0..=u16::MAX).step_by(256) {
            let mut bits = Vec::with_capacity(256 * 32);
            for largest in first..=first + 255 {
                let scale = mxint8::scale(&[widen(ty, largest.into())]);
                let magnitude = u32::from(largest & 0x7FFF);
                let group = (0..32u32).map(|k| match k {
                    _ if k == u32::from(largest) % 32 => largest,
                    _ if k % 2 == 0 && scale != 0xFF => {
                        // (j + 0.5) elements: eight bits, so exact unless it is subnormal.
                        let j = (u32::from(largest) * 7 + k * 4) % 127;
                        let tie = (f64::from(j) + 0.5) * power(i32::from(scale) - 133);
                        let tie = narrow(tie as f32);
                        if u32::from(tie) > magnitude { 0 } else { tie | (j as u16 & 1) << 15 }
                    }
                    // Any bits below: magnitudes are ordered as their bits are.
                    _ => {
                        let any = (u32::from(largest) * 31 + k).wrapping_mul(0x9E37_79B9) >> 4;
                        (any % (magnitude + 1)) as u16 | (any >> 20) as u16 & 0x8000
                    }
                });
                bits.extend(group);
            }
            compare_mxint8(&mut tally, ty, &bits);
        }
    }
    assert_eq!(tally.compared, 2 * 65536 * 33);
    tally.finish("exhaustive largest f16 and bf16 to mxint8");
}

/// Quantizes groups of 32 and compares scales and elements with the rule.
fn compare_mxint8(tally: &mut Tally, ty: FloatType, bits: &[u16]) {
    let rows = bits.len() / 32;
    let halves: Vec<f16> = bits.iter().map(|&b| f16::from_bits(b)).collect();
    let bf16s: Vec<bf16> = bits.iter().map(|&b| bf16::from_bits(b)).collect();
    let x = match ty {
        FloatType::F16 => FloatSlice::F16(&halves),
        _ => FloatSlice::Bf16(&bf16s),
    };
    let input = QuantizeInput::new(x, rows, 32, &QuantSpec::mxint8()).unwrap();
    let (mut codes, mut scales) = (vec![0xA5; bits.len()], vec![0xA5; rows]);
    let mut out = PackedMut::new(input.shape(), &mut codes, &mut scales).unwrap();
    reference::quantize(&input, &mut out).unwrap();
    for (row, bits) in bits.chunks_exact(32).enumerate() {
        let x: Vec<f32> = bits.iter().map(|&bits| widen(ty, bits.into())).collect();
        let scale = mxint8::scale(&x);
        tally.check(scales[row], scale, || format!("scale of {ty} {bits:04X?}"));
        for (k, &x) in x.iter().enumerate() {
            let got = codes[row * 32 + k];
            tally
                .check(got, mxint8::element(x, scale), || format!("{ty} {:#06X} {scale}", bits[k]));
        }
    }
}

/// Every MXINT8 element by every code, at both ends of the scales and between.
#[test]
fn every_mxint8_element_by_every_code() {
    let mut tally = Tally::default();
    for format in Format::ALL {
        let (ty, g) = (format.scale_type(), format.group().get());
        let shape_a = PackedShape::encoded(Encoding::MxInt8, 256, 32).unwrap();
        let shape_b = PackedShape::of(format, 16, 32).unwrap();
        // Row = element or code, in place 17 alone.
        let mut a = vec![0; 256 * 32];
        let mut b = vec![0x80; 16 * 16];
        (0..256).for_each(|i| a[i * 32 + 17] = i as u8);
        (0..16).for_each(|j| b[j * 16 + 8] = (j as u8) << 4);
        for (sa, sb) in (0..=254u8).step_by(2).zip((0..=0x7Eu8).chain(0x80..=0xFE)) {
            let scales_b = vec![sb; 16 * (32 / g)];
            let (pa, pb) = (ScaleType::E8M0, ty);
            let (Some(pa), Some(pb)) = (scale_parts(pa, sa), scale_parts(pb, sb)) else { continue };
            let scales_a = [sa; 256];
            let view_a = PackedView::new(shape_a, &a, &scales_a).unwrap();
            let view_b = PackedView::new(shape_b, &b, &scales_b).unwrap();
            let mut out = vec![0f32; 256 * 16];
            reference::matmul(view_a, view_b, 1.0, out.as_mut_slice().into()).unwrap();
            for (at, y) in out.iter().enumerate() {
                let (i, code) = ((at / 16) as u8 as i8, (at % 16) as u8);
                // Few bits: exact in f64, but for a zero's sign.
                let product = i64::from(i) * e2m1_doubled(code) * pa.0 * pb.0;
                let expected = (product as f64 * power(pa.1 + pb.1 - 7)) as f32;
                tally.check(y.to_bits(), expected.to_bits(), || {
                    format!("{i} by {code} of {format}, scales {sa} {sb}")
                });
            }
        }
    }
    tally.finish("exhaustive mxint8 elements by codes");
}

/// Every pair of scale bytes, of MXINT8 groups by those of either format.
#[test]
fn every_pair_of_scales_with_mxint8_activations() {
    let mut tally = Tally::default();
    for format in Format::ALL {
        let (ty, g) = (format.scale_type(), format.group().get());
        let scales_a: Vec<u8> = (0..=u8::MAX).collect();
        let scales_b: Vec<u8> = (0..=u8::MAX).flat_map(|b| vec![b; 32 / g]).collect();
        let shape_a = PackedShape::encoded(Encoding::MxInt8, 256, 32).unwrap();
        let shape_b = PackedShape::of(format, 256, 32).unwrap();
        for (element, code) in [(1i8, 0x1u8), (-128, 0x7), (127, 0xF), (77, 0x5)] {
            let (a, b) = (vec![element as u8; 256 * 32], vec![code | code << 4; 256 * 16]);
            let a = PackedView::new(shape_a, &a, &scales_a).unwrap();
            let b = PackedView::new(shape_b, &b, &scales_b).unwrap();
            let mut out = vec![0f32; 256 * 256];
            reference::matmul(a, b, 1.0, out.as_mut_slice().into()).unwrap();
            let dot = 32 * i64::from(element) * e2m1_doubled(code);
            for (at, y) in out.iter().enumerate() {
                let (sa, sb) = ((at / 256) as u8, (at % 256) as u8);
                let expected = match (scale_parts(ScaleType::E8M0, sa), scale_parts(ty, sb)) {
                    (Some(a), Some(b)) => ((dot * a.0 * b.0) as f64 * power(a.1 + b.1 - 7)) as f32,
                    _ => f32::from_bits(NAN),
                };
                tally.check(y.to_bits(), expected.to_bits(), || {
                    format!("{format} scales {sa:#04X} {sb:#04X} dot {dot}/128")
                });
            }
        }
    }
    tally.finish("exhaustive mxint8 scale pairs");
}
