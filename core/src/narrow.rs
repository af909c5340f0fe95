//! The matmul in 32 or 64 bits where a row's scales prove that enough: for processors without wide
//! registers ([C6]).
//!
//! The reference adds every group to a sum of 640 bits. Of most rows the scales lie close together,
//! and the whole sum is a small integer. This is the same product, bit for bit, with the narrowest
//! sum that is proved to hold it; the [reference](mod@crate::reference) stays what defines it.
//!
//! ```text
//! span(row) = the least and the largest exponent that its scales have           once a row
//! unit(scale) = significand * 2^(exponent - least of the row)                   31 bits
//! for each row i of A, column j (row of B):
//!     for each chunk of 256 of K:
//!         decode the chunk of A, unless it is the last one decoded: two elements a word
//!         for each group:
//!             i32    S += dot * unit_a * unit_b        if the spans fit 31 bits
//!             i64    S += i64(dot * unit_a) * unit_b   if they fit 63
//!             else   S is the reference's sum
//!     out = round(f32(S * 2^(least of i + least of j - 2)) * alpha), and so on
//! ```
//!
//! A multiplication of words is two of elements, and one table decodes two codes:
//!
//! ```text
//! (a0 + a1 2^16) (b1 + b0 2^16) = a0 b1 + (a0 b0 + a1 b1) 2^16     mod 2^32
//! ```
//!
//! Over 16 elements the first term is at most 8 * 128 * 12 and the dot product 16 * 128 * 12, less
//! than 2^15 both, so half a unit of 2^16 rounds the first away.
//!
//! # The bounds
//!
//! A group's `dot` is at most `D`: 144 G of doubled codes, 1536 G with MXINT8 ([C10]), whose unit
//! is -7 for -2. A significand is at most `s`: 1 for e8m0, 15 for e4m3. With `n = K / G` groups and
//! the spans (largest less least exponent) `a` and `b` of the two rows:
//!
//! ```text
//! i32    n D s_a s_b 2^(a + b) < 2^31
//! i64    n D s_a s_b 2^(a + b) < 2^63 and D s_a 2^a < 2^31 and s_b 2^b < 2^31
//! ```
//!
//! e4m3 has so few exponents that its rows are not looked at: they have a span of 14 above 2^-9.
//!
//! | product, K = 128 | i32 | i64 |
//! |---|---|---|
//! | MXFP4 by MXFP4 | `a + b <= 16` | `a <= 18`, `b <= 30` |
//! | NVFP4 by NVFP4 | never | always, up to K = 2^20 |
//! | MXINT8 by MXFP4 | `a + b <= 13` | `a <= 15`, `b <= 30` |
//! | MXINT8 by NVFP4 | never | `a <= 16` |
//!
//! Groups whose codes are all +-0 are left out of a span where the row does not fit with them
//! (padding has scale 2^-127, [C8]): their `dot` is 0, so their units may be anything. The last
//! step is one rounding: the sum is converted to f32 to nearest, and the power of two is exact where
//! no output can be subnormal or overflow; elsewhere the wide sum rounds.
//!
//! Worked example, MXFP4, K = 64: scales 2^0 and 2^3 of A (units 1 and 8), 2^-1 twice of B (units
//! 1). D is 4608 and 2 * 4608 * 2^3 is far below 2^31. Dots 4 and 144 give 4 * 1 + 144 * 8 = 1156
//! in units of 2^(0 - 1 - 2): 144.5.
//!
//! Nothing here indexes a slice: a release build has no path to a panic, which the firmware example
//! shows by linking without one.
//!
//! [C6]: crate::contract#c6
//! [C8]: crate::contract#c8
//! [C10]: crate::contract#c10

use core::ops::Range;

use crate::backend::{Matmul, MatmulQuery, Named, Paths, QuantizeInput, QuantizeQuery, Quantizer};
use crate::counts::QuantCounts;
use crate::e2m1::DOUBLED;
use crate::environment::check_environment;
use crate::epilogue::{Epilogue, finish_one};
use crate::error::{Buffer, Error, Unsupported};
use crate::exact::{ExactSum, PartialsMut, round_units};
use crate::float::{FloatSliceMut, NAN_F32};
use crate::format::{Element, Format, Product, ScaleType};
use crate::packed::{Packed, PackedMut, PackedShape, PackedView};
use crate::reference::{self, Reference, ReferenceWeight};
use crate::with_floats;

/// Elements of a chunk, a multiple of every group.
const CHUNK: usize = 256;
/// Elements of one dot product.
const STEP: usize = 16;
/// The exponent of a subnormal e4m3.
const E4M3_LOW: i32 = -9;

/// A table of the two codes of a byte: the doubled values of the even and of the odd index, each
/// times its place.
const fn pairs(even: u32, odd: u32) -> [u32; 256] {
    let mut pairs = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (low, high) = (DOUBLED[byte & 0xF] as u32, DOUBLED[byte >> 4] as u32);
        pairs[byte] = low.wrapping_mul(even).wrapping_add(high.wrapping_mul(odd));
        byte += 1;
    }
    pairs
}

/// Of A: the odd index is the upper.
static OF_A: [u32; 256] = pairs(1, 1 << 16);
/// Of B: the even index is.
static OF_B: [u32; 256] = pairs(1 << 16, 1);

/// As [`reference::matmul`], with the narrowest sum that is proved exact for each output. Returns
/// how many took which: `narrow` 32 bits, `planes` 64 (two words), `wide` the reference's sum.
///
/// # Errors
/// As [`reference::matmul`].
pub fn matmul<'e>(
    a: PackedView<'_>,
    b: PackedView<'_>,
    epilogue: impl Into<Epilogue<'e>>,
    out: FloatSliceMut<'_>,
) -> Result<Paths, Error> {
    check_environment()?;
    let epilogue = epilogue.into();
    let product = a.shape().expect_product(&b.shape())?;
    epilogue.expect(a.shape().rows(), b.shape().rows())?;
    out.as_ref().expect_len(Buffer::Output, a.shape().rows() * b.shape().rows())?;
    let room = Room::new(product, b.shape().row_groups());
    let mut paths = Paths::default();
    let mut chunk = Chunk::EMPTY;
    with_floats!(FloatSliceMut, out, out => {
        for (i, out) in out.chunks_exact_mut(b.shape().rows().max(1)).enumerate() {
            let row = Row::of(a, i);
            let row = Row { span: row.refined(), ..row };
            chunk.number = None;
            let scale = epilogue.row_scales.and_then(|scales| scales.get(i));
            let alpha = scale.map_or(epilogue.alpha, |scale| epilogue.alpha * scale);
            let codes = b.codes().chunks_exact(b.shape().row_bytes().max(1));
            let mut rows = codes.zip(b.scales().chunks_exact(b.shape().row_groups().max(1)));
            for (j, y) in out.iter_mut().enumerate() {
                // Without elements there are no chunks.
                let (codes, scales) = rows.next().unwrap_or((&[], &[]));
                let s32 = room.sum(&row, &mut chunk, Part { codes, scales }, b, &mut paths);
                *y = finish_one(s32, alpha, epilogue.bias.and_then(|bias| bias.get(j).copied()));
            }
        }
    });
    Ok(paths)
}

/// This product as a backend. It supports everything, with no allocator; what is no product, or a
/// partial sum, is the reference's.
#[derive(Debug, Clone, Copy, Default)]
pub struct Narrow;

impl Named for Narrow {
    fn name(&self) -> &str {
        "narrow"
    }
}

impl Quantizer for Narrow {
    fn supports_quantize(&self, _query: &QuantizeQuery) -> Result<(), Unsupported> {
        Ok(())
    }

    fn quantize(
        &self,
        input: &QuantizeInput<'_>,
        out: &mut PackedMut<'_>,
    ) -> Result<QuantCounts, Error> {
        reference::quantize(input, out)
    }
}

impl Matmul for Narrow {
    type Prepared<B: Packed> = ReferenceWeight<B>;

    fn supports_matmul(&self, _query: &MatmulQuery) -> Result<(), Unsupported> {
        Ok(())
    }

    fn supports_partial(&self, _query: &MatmulQuery) -> Result<(), Unsupported> {
        Ok(())
    }

    fn prepare<B: Packed>(&self, b: B) -> Result<Self::Prepared<B>, Error> {
        Reference.prepare(b)
    }

    fn matmul<B: Packed>(
        &self,
        a: PackedView<'_>,
        b: &Self::Prepared<B>,
        epilogue: Epilogue<'_>,
        out: FloatSliceMut<'_>,
    ) -> Result<Paths, Error> {
        matmul(a, b.0.view(), epilogue, out)
    }

    fn partial<B: Packed>(
        &self,
        a: PackedView<'_>,
        b: &Self::Prepared<B>,
        groups: Range<usize>,
        out: PartialsMut<'_>,
    ) -> Result<(), Error> {
        Reference.partial(a, b, groups, out)
    }

    fn export_weight<B: Packed>(
        &self,
        b: &Self::Prepared<B>,
        out: &mut PackedMut<'_>,
    ) -> Result<(), Error> {
        Reference.export_weight(b, out)
    }
}

/// One row of an operand.
#[derive(Clone, Copy)]
struct Row<'a> {
    codes: &'a [u8],
    scales: &'a [u8],
    shape: PackedShape,
    span: Span,
}

/// Part `number` of `all`, of `len` or what is left.
fn part<T>(all: &[T], number: usize, len: usize) -> &[T] {
    let rest = all.get(number * len..).unwrap_or(&[]);
    rest.get(..len).unwrap_or(rest)
}

impl<'a> Row<'a> {
    #[inline(always)]
    fn new(codes: &'a [u8], scales: &'a [u8], shape: PackedShape) -> Self {
        let span = Span::new(scales, shape.scale_type());
        Row { codes, scales, shape, span }
    }

    /// Row `i` of a matrix.
    fn of(matrix: PackedView<'a>, i: usize) -> Self {
        let shape = matrix.shape();
        let codes = part(matrix.codes(), i, shape.row_bytes());
        Row::new(codes, part(matrix.scales(), i, shape.row_groups()), shape)
    }

    /// The span without the groups whose codes are all +-0, of which a NaN counts nevertheless.
    #[inline(never)]
    fn refined(&self) -> Span {
        if self.shape.scale_type() == ScaleType::E4M3 {
            return self.span;
        }
        let magnitude = if self.shape.element() == Element::Int8 { 0xFF } else { 0x77 };
        let groups = self.codes.chunks_exact(self.shape.group_bytes().max(1)).zip(self.scales);
        let counts = groups.filter(|(codes, _)| codes.iter().any(|code| code & magnitude != 0));
        Span { nan: self.span.nan, ..Span::of_e8m0(counts.map(|(_, &scale)| scale)) }
    }
}

/// The exponents of some scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    /// The least.
    low: i32,
    /// The largest less the least.
    width: i32,
    /// One is NaN.
    nan: bool,
}

impl Span {
    #[inline(always)]
    fn new(scales: &[u8], ty: ScaleType) -> Self {
        match ty {
            ScaleType::E8M0 => Span::of_e8m0(scales.iter().copied()),
            ScaleType::E4M3 => Span::of_e4m3(scales),
        }
    }

    fn of_e8m0(scales: impl Iterator<Item = u8>) -> Self {
        let (mut least, mut largest) = (u32::MAX, 0);
        for scale in scales {
            (least, largest) = (least.min(scale.into()), largest.max(scale.into()));
        }
        let nan = largest == 0xFF;
        match least {
            u32::MAX => Span { low: 0, width: 0, nan },
            _ => Span { low: least as i32 - 127, width: (largest - least) as i32, nan },
        }
    }

    fn of_e4m3(scales: &[u8]) -> Self {
        // Without its sign a NaN is 0x7F, and one more sets the upper bit: four at a time.
        let carry = |four: u32| (four & 0x7F7F_7F7F).wrapping_add(0x0101_0101);
        let (fours, rest) = scales.as_chunks();
        let fours = fours.iter().map(|&four| carry(u32::from_le_bytes(four)));
        let rest = rest.iter().map(|&scale| carry(scale.into()));
        let seen = fours.chain(rest).fold(0, |seen, carried| seen | carried);
        Span { low: E4M3_LOW, width: 14, nan: seen & 0x8080_8080 != 0 }
    }
}

/// Every e4m3 byte in units of 2^-9.
static E4M3_UNITS: [i32; 256] = {
    let mut units = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        // NaN stays 0, and no caller has it.
        if let Some(parts) = ScaleType::E4M3.parts(byte as u8) {
            units[byte] = parts.significand << (parts.exponent - E4M3_LOW);
        }
        byte += 1;
    }
    units
};

/// A scale in units of two to `low`, which of e4m3 is its own. Of groups that do not count it may
/// be anything.
#[inline(always)]
fn unit(byte: u8, ty: ScaleType, low: i32) -> i32 {
    match ty {
        ScaleType::E8M0 => 1i32.wrapping_shl((i32::from(byte) - 127 - low) as u32),
        ScaleType::E4M3 => E4M3_UNITS[usize::from(byte)],
    }
}

/// A part of a row of A.
struct Chunk {
    /// Two elements, or doubled codes, a word, the odd index times 2^16.
    pairs: [[u32; STEP / 2]; CHUNK / STEP],
    /// The unit of the scale of each.
    units: [i32; CHUNK / STEP],
    /// Which of the row's it is; none of another row.
    number: Option<usize>,
}

impl Chunk {
    const EMPTY: Chunk =
        Chunk { pairs: [[0; STEP / 2]; CHUNK / STEP], units: [0; CHUNK / STEP], number: None };

    /// Decodes the chunk of this number. Seldom, so not in line.
    #[inline(never)]
    fn decode(&mut self, a: &Row<'_>, number: usize) {
        self.number = Some(number);
        let (group, element) = (a.shape.group().get(), a.shape.element());
        let codes = part(a.codes, number, CHUNK / element.per_byte());
        let pairs = self.pairs.as_flattened_mut().iter_mut();
        match element {
            Element::E2m1 => pairs.zip(codes).for_each(|(pair, &code)| {
                *pair = OF_A[usize::from(code)];
            }),
            Element::Int8 => pairs.zip(codes.as_chunks().0).for_each(|(pair, &[even, odd])| {
                *pair = (even as i8 as u32).wrapping_add((odd as i8 as u32) << 16);
            }),
        }
        let scales = part(a.scales, number, CHUNK / group);
        for (units, &scale) in self.units.chunks_mut((group / STEP).max(1)).zip(scales) {
            units.fill(unit(scale, a.shape.scale_type(), a.span.low));
        }
    }

    /// The sum of this chunk by one of NVFP4.
    #[inline(never)]
    fn by_nvfp4(&self, b: Part<'_>) -> i64 {
        let mut sum = 0;
        self.each::<1>(b, ScaleType::E4M3, 0, |x, y| sum += i64::from(x) * i64::from(y));
        sum
    }

    /// The sum of this chunk by one of MXFP4.
    #[inline(never)]
    fn by_mxfp4(&self, b: Part<'_>, low: i32) -> i64 {
        let mut sum = 0;
        self.each::<2>(b, ScaleType::E8M0, low, |x, y| sum += i64::from(x) * i64::from(y));
        sum
    }

    /// As [`by_mxfp4`](Self::by_mxfp4), where 32 bits hold it.
    #[inline(never)]
    fn by_mxfp4_narrow(&self, b: Part<'_>, low: i32) -> i32 {
        let mut sum = 0;
        self.each::<2>(b, ScaleType::E8M0, low, |x, y| sum += x * y);
        sum
    }

    /// Calls `add` with the dot product of every group of B, of S steps, times the unit of A, and
    /// with the unit of B.
    #[inline(always)]
    fn each<const S: usize>(
        &self,
        b: Part<'_>,
        ty: ScaleType,
        low: i32,
        mut add: impl FnMut(i32, i32),
    ) {
        let a = self.pairs.as_chunks::<S>().0.iter().zip(self.units.as_chunks::<S>().0);
        let codes = b.codes.as_chunks().0.as_chunks::<S>().0;
        for ((pairs, units), (codes, &scale)) in a.zip(codes.iter().zip(b.scales)) {
            let dot: i32 = pairs.iter().zip(codes).map(|(pairs, codes)| dot(pairs, codes)).sum();
            add(dot * units[0], unit(scale, ty, low));
        }
    }
}

/// The dot product of a step: see the module's text.
#[inline(always)]
fn dot(pairs: &[u32; STEP / 2], codes: &[u8; STEP / 2]) -> i32 {
    let products = pairs.iter().zip(codes).fold(1u32 << 15, |sum, (pair, &code)| {
        sum.wrapping_add(pair.wrapping_mul(OF_B[usize::from(code)]))
    });
    products as i32 >> 16
}

/// Codes and scales of a row of B, or of a chunk of it.
#[derive(Clone, Copy)]
struct Part<'a> {
    codes: &'a [u8],
    scales: &'a [u8],
}

impl<'a> Part<'a> {
    /// The row of this matrix that it is.
    fn of(self, b: PackedView<'_>) -> Row<'a> {
        Row::new(self.codes, self.scales, b.shape())
    }
}

/// How wide the spans of two rows may be; see the module's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Room {
    /// Together, for a sum in i32.
    narrow: i32,
    /// Together, for a sum in i64.
    double: i32,
    /// That of A, for a sum in i64.
    of_a: i32,
    /// That of B, for a sum in i64.
    of_b: i32,
    /// Exponent of the dot product's unit.
    unit: i32,
    product: Product,
}

/// The largest `s` with `count << s` at most `most`; -1 if there is none.
fn room(count: u64, most: u64) -> i32 {
    most.checked_div(count).and_then(u64::checked_ilog2).map_or(-1, |s| s as i32)
}

/// What a sum is held in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sum {
    Narrow,
    Double,
    Wide,
    /// Nothing: a scale is NaN.
    Nan,
}

impl Room {
    /// For rows of this product, of so many groups of B.
    fn new(product: Product, groups: usize) -> Self {
        let (of_element, unit) = match product.a.element() {
            Element::E2m1 => (144, -2),
            Element::Int8 => (1536, -7),
        };
        let most = |ty| if ty == ScaleType::E8M0 { 1u64 } else { 15 };
        let [of_a, of_b] = [product.a.scale_type(), product.b.scale_type()].map(most);
        let dot = of_element * product.b.group().get() as u64;
        // An empty sum needs as much as one group.
        let all = (dot * of_a * of_b).saturating_mul(groups.max(1) as u64);
        let (word, long) = (i32::MAX as u64, i64::MAX as u64);
        Room {
            narrow: room(all, word),
            double: room(all, long),
            of_a: room(dot * of_a, word),
            of_b: room(of_b, word),
            unit,
            product,
        }
    }

    /// What holds the sum of two rows of these spans.
    fn held(&self, a: Span, b: Span) -> Sum {
        let (both, alone) = (a.width + b.width, a.width <= self.of_a && b.width <= self.of_b);
        match () {
            () if a.nan || b.nan => Sum::Nan,
            () if both <= self.narrow => Sum::Narrow,
            () if both <= self.double && alone => Sum::Double,
            () => Sum::Wide,
        }
    }

    /// The sum of a row of A by `row` of B, rounded once to f32.
    #[inline(never)]
    fn sum(
        &self,
        a: &Row<'_>,
        chunk: &mut Chunk,
        row: Part<'_>,
        b: PackedView<'_>,
        paths: &mut Paths,
    ) -> f32 {
        let mut span = Span::new(row.scales, self.product.b.scale_type());
        let mut held = self.held(a.span, span);
        if held == Sum::Wide {
            span = row.of(b).refined();
            held = self.held(a.span, span);
        }
        match held {
            Sum::Narrow => paths.narrow += 1,
            Sum::Double => paths.planes += 1,
            Sum::Nan => {
                paths.narrow += 1;
                return f32::from_bits(NAN_F32);
            }
            Sum::Wide => {
                paths.wide += 1;
                return self.exactly(a, &row.of(b));
            }
        }
        let (bytes, groups) = (CHUNK / 2, CHUNK / self.product.b.group().get());
        let mut sum = 0;
        for (number, codes) in row.codes.chunks(bytes).enumerate() {
            if chunk.number != Some(number) {
                chunk.decode(a, number);
            }
            let b = Part { codes, scales: part(row.scales, number, groups) };
            sum += match (self.product.b, held) {
                // Never in 32 bits.
                (Format::NvFp4, _) => chunk.by_nvfp4(b),
                (Format::MxFp4, Sum::Narrow) => chunk.by_mxfp4_narrow(b, span.low).into(),
                (Format::MxFp4, _) => chunk.by_mxfp4(b, span.low),
            };
        }
        round_units(sum, a.span.low + span.low + self.unit)
    }

    /// One sum as the reference holds it.
    #[inline(never)]
    fn exactly(&self, a: &Row<'_>, b: &Row<'_>) -> f32 {
        let group = b.shape.group().get();
        let shared = (a.shape.group().get() / group).trailing_zeros();
        let codes_a = a.codes.chunks_exact((group / a.shape.element().per_byte()).max(1));
        let codes_b = b.codes.chunks_exact((group / 2).max(1));
        let mut sum = ExactSum::ZERO;
        for (g, ((codes_a, codes_b), &scale_b)) in codes_a.zip(codes_b).zip(b.scales).enumerate() {
            let scale_a = a.scales.get(g >> shared).copied().unwrap_or(0);
            let dot = match a.shape.element() {
                Element::E2m1 => reference::group_dot(codes_a, codes_b),
                Element::Int8 => reference::group_dot_int8(codes_a, codes_b),
            };
            let parts =
                [(a, scale_a), (b, scale_b)].map(|(row, s)| row.shape.scale_type().parts(s));
            if let [Some(x), Some(y)] = parts {
                let significand = dot * i64::from(x.significand * y.significand);
                // The exponents of two scales and of a unit are inside the range.
                let _ = sum.add_scaled(significand, x.exponent + y.exponent + self.unit);
            }
        }
        sum.to_f32()
    }
}
