//! Families of packed operands, the inputs of the matmul.
//!
//! | family | what it is | which bug it finds |
//! |---|---|---|
//! | `near` | any codes, neighbouring scales | anything gross |
//! | `bytes` | every scale byte once (NaN in few rows) | decoding of scales |
//! | `full` | any code, any scale but NaN | spreads, signs |
//! | `negative` | negative scales and both zeros (e4m3), extremes (e8m0) | the sign of a scale |
//! | `nan` | a NaN scale in some rows | C6's NaN rule |
//! | `nan-zero` | a NaN scale over a group of zero codes | a skipped group |
//! | `sparse` | most groups zero codes or a zero scale, under extreme scales | live groups |
//! | `spread:S` | largest codes, joint exponent spread exactly S | each kernel's bound |
//! | `reach:S` | largest codes of one sign, largest scales but for one group S exponents below (joint) | sums that grow past a bound |
//! | `tie` | sums on an f32 tie, broken by one far smaller term or not | the rounding, sticky bits |
//! | `tie-half` | sums on an f16 or bf16 tie, broken below f32's last bit or not | double rounding in the contract's order |
//! | `tie-tiny` | sums on a tie of f32's subnormals, broken by a term past the 24th bit or not (MXFP4; NVFP4: as `tie`) | double rounding of subnormal results |
//! | `cancel` | large terms that cancel exactly, or up to a small one | f32 or f64 accumulation, sign of zero |
//! | `overflow` | sums around the largest f32 (MXFP4) | infinities |
//! | `tiny` | sums around the smallest subnormals (MXFP4) | underflow, sign of zero |
//!
//! A may be MXINT8: its elements take the place of codes, its scales are e8m0 whatever B's are.
//! What is said of MXFP4 then goes by B's format, and a term is an element of 1 by a code of 0.5.

use fp4_core::{Element, Encoding, Format, PackedMatrix, PackedShape, ScaleType};

use crate::oracle::rules::scale_parts;
use crate::random::Random;

/// The names of the families; `spread:S` and `reach:S` for any S.
pub const FAMILIES: [&str; 15] = [
    "near", "bytes", "full", "negative", "nan", "nan-zero", "sparse", "spread", "reach", "tie",
    "tie-half", "tie-tiny", "cancel", "overflow", "tiny",
];

/// Two operands of a family: A (m, k), in an encoding of its own, and B (n, k).
///
/// # Errors
/// A shape that the core refuses.
pub fn operands(
    family: &str,
    random: &mut Random,
    (encoding, format): (Encoding, Format),
    [m, n, k]: [usize; 3],
) -> Result<[PackedMatrix; 2], fp4_core::Error> {
    let mut a = Builder::new(encoding, m, k);
    let mut b = Builder::new(format.into(), n, k);
    match family {
        "tie" | "tie-half" | "tie-tiny" | "cancel" => crafted(family, random, &mut a, &mut b),
        _ => {
            for side in [&mut a, &mut b] {
                side.random_codes(random);
            }
            scales(family, random, &mut a, &mut b);
        }
    }
    Ok([a.finish()?, b.finish()?])
}

/// A packed matrix being filled.
struct Builder {
    encoding: Encoding,
    rows: usize,
    k: usize,
    groups: usize,
    codes: Vec<u8>,
    scales: Vec<u8>,
}

impl Builder {
    fn new(encoding: Encoding, rows: usize, k: usize) -> Self {
        let groups = k / encoding.group().get();
        let bytes = k / encoding.element().per_byte();
        let (codes, scales) = (vec![0; rows * bytes], vec![0; rows * groups]);
        Builder { encoding, rows, k, groups, codes, scales }
    }

    fn finish(self) -> Result<PackedMatrix, fp4_core::Error> {
        let shape = PackedShape::encoded(self.encoding, self.rows, self.k)?;
        PackedMatrix::new(shape, self.codes, self.scales)
    }

    fn scale_type(&self) -> ScaleType {
        self.encoding.scale_type()
    }

    fn is_int8(&self) -> bool {
        self.encoding.element() == Element::Int8
    }

    /// A byte of codes, or the MXINT8 element that stands in for it.
    fn byte(&self, codes: u8, element: i8) -> u8 {
        if self.is_int8() { element as u8 } else { codes }
    }

    /// A byte of the largest codes or elements, of one sign or both.
    fn largest(&self, random: &mut Random) -> u8 {
        match self.is_int8() {
            true => random.pick(&[127u8, 0x80, 0x81]),
            false => random.pick(&[0x77, 0xFF, 0x7F]),
        }
    }

    fn random_codes(&mut self, random: &mut Random) {
        self.codes.fill_with(|| random.byte());
    }

    fn group(&mut self, row: usize, group: usize) -> &mut [u8] {
        let bytes = self.encoding.group().get() / self.encoding.element().per_byte();
        let at = (row * self.groups + group) * bytes;
        &mut self.codes[at..at + bytes]
    }

    fn fill_scales(&mut self, mut byte: impl FnMut(usize) -> u8) {
        self.scales.iter_mut().enumerate().for_each(|(i, scale)| *scale = byte(i));
    }
}

fn not_nan(random: &mut Random, ty: ScaleType) -> u8 {
    loop {
        let byte = random.byte();
        if scale_parts(ty, byte).is_some() {
            return byte;
        }
    }
}

/// Neighbouring scales, around one.
fn near(random: &mut Random, ty: ScaleType) -> u8 {
    match ty {
        ScaleType::E8M0 => 125 + random.below(6) as u8,
        ScaleType::E4M3 => 0x30 + random.below(16) as u8,
    }
}

fn scales(family: &str, random: &mut Random, a: &mut Builder, b: &mut Builder) {
    let (ty_a, ty_b) = (a.scale_type(), b.scale_type());
    let (name, number) = family.split_once(':').unwrap_or((family, ""));
    let spread: i32 = number.parse().unwrap_or(0);
    match name {
        "bytes" => {
            let first = random.byte();
            a.fill_scales(|i| first.wrapping_add(i as u8));
            b.fill_scales(|_| near(random, ty_b));
        }
        "full" => {
            a.fill_scales(|_| not_nan(random, ty_a));
            b.fill_scales(|_| not_nan(random, ty_b));
        }
        "negative" => {
            for side in [a, b] {
                let ty = side.scale_type();
                side.fill_scales(|_| match ty {
                    ScaleType::E4M3 => random.pick(&[0x80, 0x00, 0xB8, 0xC1, 0x38, 0xFE, 0x81]),
                    ScaleType::E8M0 => random.pick(&[0x00, 0x01, 0x7F, 0xFE, 0x80]),
                });
            }
        }
        "sparse" => {
            for side in [a, b] {
                side.fill_scales(|_| random.pick(&[0x00, 0xFE, 0x7E, 0x01, 0x80]));
                for group in 0..side.groups * side.rows {
                    if !random.one_in(3) {
                        let zero = side.byte(random.pick(&[0x00, 0x80, 0x08, 0x88]), 0);
                        side.group(0, group).fill(zero);
                    }
                }
            }
        }
        "spread" => {
            // Each side takes a part of the spread; every row has both ends of its part.
            let part = random.range(0, spread);
            for (side, part) in [(a, part), (b, spread - part)] {
                spread_side(random, side, part);
            }
        }
        "reach" => {
            for (side, part) in [(a, (spread + 1) / 2), (b, spread / 2)] {
                reach_side(random, side, part);
            }
        }
        "overflow" => exponents(random, a, b, 122),
        "tiny" => exponents(random, a, b, -154),
        _ => {
            for side in [&mut *a, &mut *b] {
                let ty = side.scale_type();
                side.fill_scales(|_| near(random, ty));
            }
            if name.starts_with("nan") {
                nans(random, a, name == "nan-zero");
                nans(random, b, name == "nan-zero");
            }
        }
    }
}

/// A NaN scale in about one row of three, and in no row of few.
fn nans(random: &mut Random, side: &mut Builder, zero_codes: bool) {
    let ty = side.scale_type();
    for row in 0..side.rows {
        if side.groups == 0 || !random.one_in(3) {
            continue;
        }
        let group = random.below(side.groups);
        let nan = match ty {
            ScaleType::E8M0 => 0xFF,
            ScaleType::E4M3 => random.pick(&[0x7F, 0xFF]),
        };
        side.scales[row * side.groups + group] = nan;
        if zero_codes {
            let zero = side.byte(random.pick(&[0x00, 0x88]), 0);
            side.group(row, group).fill(zero);
        }
    }
}

/// Largest codes, with scale exponents in a window of exactly `spread`, both ends taken.
fn spread_side(random: &mut Random, side: &mut Builder, spread: i32) {
    let (lowest, highest) = exponent_range(side.scale_type());
    let spread = spread.min(highest - lowest);
    let base = random.range(lowest, highest - spread);
    let alike = random.one_in(2);
    for row in 0..side.rows {
        let order = random.order(side.groups);
        for (place, group) in order.into_iter().enumerate() {
            let e = base
                + match place {
                    0 => 0,
                    1 => spread,
                    _ => random.range(0, spread),
                };
            let scale = power_byte(side.scale_type(), e);
            side.scales[row * side.groups + group] = scale;
            let byte = if alike { side.byte(0x77, 127) } else { side.largest(random) };
            side.group(row, group).fill(byte);
        }
    }
}

/// Rows whose sums are as large as their spread allows: all codes of one sign and the largest, all
/// scales the largest but one, which is `spread` exponents below (e4m3: at most 13; its significand
/// is odd or a power of two, so that the unit of its row is its own last place or three above).
fn reach_side(random: &mut Random, side: &mut Builder, spread: i32) {
    let ty = side.scale_type();
    let (low, top) = match ty {
        ScaleType::E8M0 => {
            let low = 127 - spread.min(127) / 2;
            (low as u8, (low + spread.min(127)) as u8)
        }
        // Significand 15, exponent field 14; significand 8 below.
        ScaleType::E4M3 => (((14 - spread.min(13)) << 3) as u8, 0x77),
    };
    let low = match ty {
        ScaleType::E8M0 => low,
        ScaleType::E4M3 => low | random.pick(&[0, 1]),
    };
    for row in 0..side.rows {
        let lowest = random.below(side.groups.max(1));
        let (codes, element) = random.pick(&[(0x77, 127), (0xFF, -128)]);
        let codes = side.byte(codes, element);
        for group in 0..side.groups {
            side.scales[row * side.groups + group] = if group == lowest { low } else { top };
            side.group(row, group).fill(codes);
        }
    }
}

/// The scale byte of 2^e.
fn power_byte(ty: ScaleType, e: i32) -> u8 {
    match ty {
        ScaleType::E8M0 => (e + 127) as u8,
        // Bias 7; below 2^-6 the subnormals, in units of 2^-9.
        ScaleType::E4M3 if e >= -6 => ((e + 7) << 3) as u8,
        ScaleType::E4M3 => 1 << (e + 9),
    }
}

/// e8m0: exponents of A and B around a joint one; e4m3, which has no such exponents: the ends.
fn exponents(random: &mut Random, a: &mut Builder, b: &mut Builder, joint: i32) {
    let low = if b.scale_type() == ScaleType::E8M0 { joint / 2 } else { joint };
    for (side, e) in [(&mut *a, low), (&mut *b, joint - joint / 2)] {
        if side.scale_type() == ScaleType::E4M3 {
            let ends: &[u8] =
                if joint > 0 { &[0x7E, 0xFE, 0x7D] } else { &[0x01, 0x81, 0x02, 0x80] };
            side.fill_scales(|_| random.pick(ends));
        } else {
            side.fill_scales(|_| (e + random.range(-2, 2) + 127).clamp(0, 254) as u8);
        }
    }
    if joint < 0 && a.scale_type() == ScaleType::E8M0 {
        // One element a group, so that no sum of many hides the smallest.
        for side in [a, b] {
            for group in 0..side.rows * side.groups {
                let (code, element) = random.pick(&[(0x1, 1), (0x9, -1), (0x2, 2), (0x3, 3)]);
                let code = side.byte(code, element);
                let bytes = side.group(0, group);
                bytes.fill(0);
                bytes[0] = code;
            }
        }
    }
}

/// The exponents that a scale type has powers of two for.
fn exponent_range(ty: ScaleType) -> (i32, i32) {
    match ty {
        ScaleType::E8M0 => (-127, 127),
        ScaleType::E4M3 => (-9, 8),
    }
}

/// Sums of a few powers of two, chosen per row of A; rows of B have both signs. Each term is one
/// element of 0.5 times 0.5 in a group of its own, under scales whose exponents add up to two more;
/// or of 2^-6 times 0.5, and seven more.
fn crafted(family: &str, random: &mut Random, a: &mut Builder, b: &mut Builder) {
    let (int8, narrow) = (a.is_int8(), b.scale_type() == ScaleType::E4M3);
    let format = if narrow { Format::NvFp4 } else { Format::MxFp4 };
    let (lowest, highest) = match (format, int8) {
        (Format::MxFp4, _) => (-200, 127),
        (Format::NvFp4, false) => (-20, 14),
        (Format::NvFp4, true) => (-140, 120),
    };
    // A's groups; B's first group of each, where it has two.
    let of_b = b.groups.checked_div(a.groups).unwrap_or(1);
    let order = random.order(a.groups);
    // Exponents of the terms, the same for all rows: leading, its tie, one more bit, far below.
    let width = match family {
        "tie-half" => random.pick(&[11, 8]),
        _ => 24,
    };
    let top = match format {
        Format::MxFp4 if family == "tie-half" => random.range(0, 14),
        Format::MxFp4 if family == "tie-tiny" => random.range(-148, -127),
        Format::MxFp4 => random.range(-100, 120),
        Format::NvFp4 if family == "tie-half" => random.range(8, 14),
        Format::NvFp4 if int8 => random.range(-100, 110),
        Format::NvFp4 => random.range(5, 14),
    };
    // Below 2^-126 the last place of f32 is 2^-149 wherever the sum begins.
    let subnormal = family == "tie-tiny" && format == Format::MxFp4;
    let tie = if subnormal { -150 } else { top - width };
    let gap = if random.one_in(2) { random.range(1, 8) } else { random.range(1, 120) };
    let far = if subnormal { top - random.range(25, 40) } else { (tie - gap).max(lowest) };
    let terms = [top, tie, tie + 1, far, top.min(highest)];
    for (place, &group) in order.iter().enumerate().take(terms.len()) {
        let t = terms[place] + if int8 { 7 } else { 2 };
        let ((low_a, high_a), (low_b, high_b)) =
            (exponent_range(a.scale_type()), exponent_range(b.scale_type()));
        let eb = (t / 2).clamp(low_b, high_b);
        let ea = (t - eb).clamp(low_a, high_a);
        for row in 0..b.rows {
            b.scales[row * b.groups + group * of_b] = power_byte(b.scale_type(), eb);
            b.group(row, group * of_b)[0] = if row % 2 == 1 { 0x9 } else { 0x1 };
        }
        for row in 0..a.rows {
            a.scales[row * a.groups + group] = power_byte(a.scale_type(), ea);
            let present = match (family, place) {
                ("cancel", 1 | 2) => false,
                ("cancel", _) => place != 3 || row % 3 != 0,
                (_, 0 | 1) => true,
                (_, 4) => false,
                (_, 3) => far < tie && row % 4 != 0,
                _ => random.one_in(2),
            };
            // The last term of `cancel` takes the first away; the far one has either sign.
            let negative = match place {
                3 => row % 2 == 1,
                4 => true,
                _ => false,
            };
            let code = if negative { a.byte(0x9, -1) } else { 0x1 };
            a.group(row, group)[0] = if present { code } else { 0x0 };
        }
    }
}
