//! The matmul in 32 or 64 bits where a row's scales prove that enough: for processors without wide
//! registers ([C6]).
//!
//! The reference adds every group to a sum of 640 bits. Of most rows the scales lie close together,
//! and the whole sum is a small integer. This is the same product, bit for bit, with the narrowest
//! sum that is proved to hold it; the [reference](mod@crate::reference) stays what defines it.
//!
//! ```text
//! span(row) = the least and the largest exponent of the scales that count     (once a row)
//! for each row i of A, column j (row of B):
//!     x, y = units of the scales: significand << (exponent - least of the row)
//!     i32    S += dot * x * y                         if the spans fit 31 bits
//!     i64    S += i64(dot * x) * i64(y)               if they fit 63, dot * x and y 31
//!     else   S is the reference's sum
//!     out = round(f32(S * 2^(least of i + least of j - 2)) * alpha), and so on
//! ```
//!
//! # The bounds
//!
//! A group's `dot` is at most `D`: 144 G of doubled codes, 1536 G with MXINT8 ([C10]), whose unit
//! is -7 for -2. A significand is at most `s`: 1 for e8m0, 15 for e4m3. With `n = K / G` groups and
//! the spans (largest less least exponent) `a` and `b` of the two rows:
//!
//! ```text
//! i32    n D s_a s_b 2^(a + b) < 2^31
//! i64    n D s_a s_b 2^(a + b) < 2^63, and (x, y) are (a, b) or (b, a) with
//!        D s_x 2^x < 2^31 and s_y 2^y < 2^31
//! ```
//!
//! | product, K = 128 | i32 if a + b is at most | i64 if a + b is at most | and one of them at most |
//! |---|---|---|---|
//! | MXFP4 by MXFP4 | 16 | 48 | 18 |
//! | NVFP4 by NVFP4 | 9 | always, up to K = 2^20 | always |
//! | MXINT8 by MXFP4 | 13 | 45 | 15 |
//! | MXINT8 by NVFP4 | 9 | 41 | 16 (A), 12 (B) |
//!
//! Groups whose scale is +-0 do not count; those whose codes are all +-0 are left out where the row
//! does not fit with them (padding has scale 2^-127, [C8]). Their `dot` is 0, so their units may be
//! anything. The last step is one rounding: the sum is converted to f32 to nearest, and the power
//! of two is exact where no output can be subnormal or overflow; elsewhere the wide sum rounds.
//!
//! Worked example, MXFP4, K = 64: scales 2^0 and 2^3 of A (a = 3), 2^-1 twice of B (b = 0). D is
//! 4608 and 2 * 4608 * 8 is far below 2^31. Dots 4 and 144 give 4 * 1 * 1 + 144 * 8 * 1 = 1156 in
//! units of 2^(0 - 1 - 2): 144.5.
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
use crate::format::{Element, GroupSize, ScaleType};
use crate::packed::{Packed, PackedMut, PackedShape, PackedView};
use crate::reference::{self, Reference, ReferenceWeight};
use crate::with_floats;

/// The doubled values of the two codes of a byte, the even index first.
static PAIRS: [[i16; 2]; 256] = {
    let mut pairs = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [DOUBLED[byte & 0xF] as i16, DOUBLED[byte >> 4] as i16];
        byte += 1;
    }
    pairs
};

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
    a.shape().expect_product(&b.shape())?;
    epilogue.expect(a.shape().rows(), b.shape().rows())?;
    out.as_ref().expect_len(Buffer::Output, a.shape().rows() * b.shape().rows())?;
    let room = Room::new(&a.shape(), &b.shape());
    let mut paths = Paths::default();
    with_floats!(FloatSliceMut, out, out => {
        for (i, out) in out.chunks_exact_mut(b.shape().rows().max(1)).enumerate() {
            let row = Row::new(a, i);
            let scale = epilogue.row_scales.and_then(|scales| scales.get(i));
            let alpha = scale.map_or(epilogue.alpha, |scale| epilogue.alpha * scale);
            for (j, y) in out.iter_mut().enumerate() {
                let s32 = room.sum(&row, &Row::new(b, j), &mut paths);
                let bias = epilogue.bias.and_then(|bias| bias.get(j).copied());
                *y = finish_one(s32, alpha, bias);
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

impl<'a> Row<'a> {
    fn new(matrix: PackedView<'a>, i: usize) -> Self {
        let shape = matrix.shape();
        let part = |all: &'a [u8], len: usize| all.get(i * len..(i + 1) * len).unwrap_or(&[]);
        let (codes, scales) =
            (part(matrix.codes(), shape.row_bytes()), part(matrix.scales(), shape.row_groups()));
        let span = Span::new(scales.iter().copied(), shape.scale_type());
        Row { codes, scales, shape, span }
    }

    /// The span without the groups whose codes are all +-0.
    fn refined(&self) -> Span {
        let magnitude = if self.shape.element() == Element::Int8 { 0xFF } else { 0x77 };
        let groups = self.codes.chunks_exact(self.shape.group_bytes().max(1)).zip(self.scales);
        let counts = groups.filter(|(codes, _)| codes.iter().any(|code| code & magnitude != 0));
        Span::new(counts.map(|(_, &scale)| scale), self.shape.scale_type())
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
    fn new(scales: impl Iterator<Item = u8>, ty: ScaleType) -> Self {
        // Bytes without their sign are in the order of their magnitudes, NaN last, and so are their
        // exponents. A zero, which only e4m3 has, moves past all.
        let (mask, zero) = match ty {
            ScaleType::E8M0 => (0xFFu32, 0),
            ScaleType::E4M3 => (0x7F, 1),
        };
        let (mut least, mut largest) = (u32::MAX, 0);
        for scale in scales {
            let key = u32::from(scale) & mask;
            largest = largest.max(key);
            least = least.min(key.wrapping_sub(zero));
        }
        let exponent = |key: u32| match ty {
            ScaleType::E8M0 => key as i32 - 127,
            ScaleType::E4M3 => (key >> 3).max(1) as i32 - 10,
        };
        let nan = largest == mask;
        if least == u32::MAX {
            return Span { low: 0, width: 0, nan };
        }
        let low = exponent(least + zero);
        Span { low, width: exponent(largest) - low, nan }
    }
}

/// The units of a row's scales: integers, in units of two to the least exponent.
#[derive(Clone, Copy)]
struct Units<'a> {
    scales: &'a [u8],
    ty: ScaleType,
    low: i32,
    /// log2 of the groups of a sum that one scale serves.
    shared: u32,
}

impl Units<'_> {
    #[inline(always)]
    fn of(&self, group: usize) -> i32 {
        let byte = i32::from(self.scales.get(group >> self.shared).copied().unwrap_or(0));
        let shift = |exponent: i32| (exponent - self.low) as u32;
        // Of groups that do not count the shift may be anything, and the dot product is 0.
        match self.ty {
            ScaleType::E8M0 => 1i32.wrapping_shl(shift(byte - 127)),
            ScaleType::E4M3 => {
                let (exponent, mantissa) = ((byte >> 3) & 0xF, byte & 7);
                let magnitude = mantissa + if exponent == 0 { 0 } else { 8 };
                let magnitude = magnitude.wrapping_shl(shift(exponent.max(1) - 10));
                if byte & 0x80 == 0 { magnitude } else { magnitude.wrapping_neg() }
            }
        }
    }
}

/// How wide the spans of two rows may be together and alone; see the module's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Room {
    /// For a sum in i32.
    narrow: i32,
    /// For a sum in i64.
    double: i32,
    /// For the factor of the dot product, of A and of B.
    first: [i32; 2],
    /// For the other factor, of A and of B.
    second: [i32; 2],
    /// Exponent of the dot product's unit.
    unit: i32,
    element: Element,
    group: GroupSize,
}

/// The largest `s` with `count << s` at most `most`; -1 if there is none.
fn room(count: u64, most: u64) -> i32 {
    most.checked_div(count).and_then(u64::checked_ilog2).map_or(-1, |s| s as i32)
}

impl Room {
    fn new(a: &PackedShape, b: &PackedShape) -> Self {
        let (of_element, unit) = match a.element() {
            Element::E2m1 => (144, -2),
            Element::Int8 => (1536, -7),
        };
        let most = |ty| if ty == ScaleType::E8M0 { 1u64 } else { 15 };
        let significands = [a, b].map(|shape| most(shape.scale_type()));
        let dot = of_element * b.group().get() as u64;
        // An empty sum needs as much as one group.
        let groups = b.row_groups().max(1) as u64;
        let all = groups.saturating_mul(dot * significands[0] * significands[1]);
        let (word, long) = (i32::MAX as u64, i64::MAX as u64);
        Room {
            narrow: room(all, word),
            double: room(all, long),
            first: significands.map(|s| room(dot * s, word)),
            second: significands.map(|s| room(s, word)),
            unit,
            element: a.element(),
            group: b.group(),
        }
    }

    fn fits_narrow(&self, a: Span, b: Span) -> bool {
        a.width + b.width <= self.narrow
    }

    /// Whether a sum in i64 holds it, and then if A's units are the dot product's factor.
    fn fits_double(&self, a: Span, b: Span) -> Option<bool> {
        let fits = |first: usize, x: Span, y: Span| {
            x.width <= self.first[first] && y.width <= self.second[1 - first]
        };
        let ways = [(true, fits(0, a, b)), (false, fits(1, b, a))];
        let (a_first, _) = ways.into_iter().find(|&(_, fits)| fits)?;
        (a.width + b.width <= self.double).then_some(a_first)
    }

    /// The sum of two rows, rounded once to f32.
    fn sum(&self, a: &Row<'_>, b: &Row<'_>, paths: &mut Paths) -> f32 {
        if a.span.nan || b.span.nan {
            paths.narrow += 1;
            return f32::from_bits(NAN_F32);
        }
        self.with_spans(a, a.span, b, b.span, paths)
            .or_else(|| self.with_spans(a, a.refined(), b, b.refined(), paths))
            .unwrap_or_else(|| {
                paths.wide += 1;
                self.wide(a, b)
            })
    }

    fn with_spans<'a>(
        &self,
        a: &Row<'a>,
        span_a: Span,
        b: &Row<'a>,
        span_b: Span,
        paths: &mut Paths,
    ) -> Option<f32> {
        let exponent = span_a.low + span_b.low + self.unit;
        let shared = (a.shape.group().get() / self.group.get()).trailing_zeros();
        let units = |row: &Row<'a>, span: Span, shared| Units {
            scales: row.scales,
            ty: row.shape.scale_type(),
            low: span.low,
            shared,
        };
        let (of_a, of_b) = (units(a, span_a, shared), units(b, span_b, 0));
        if self.fits_narrow(span_a, span_b) {
            let mut sum = 0i32;
            self.for_each_group(a, b, |group, dot| sum += dot * of_a.of(group) * of_b.of(group));
            paths.narrow += 1;
            return Some(round_units(sum.into(), exponent));
        }
        let a_first = self.fits_double(span_a, span_b)?;
        let (x, y) = if a_first { (of_a, of_b) } else { (of_b, of_a) };
        let mut sum = 0i64;
        self.for_each_group(a, b, |group, dot| {
            sum += i64::from(dot * x.of(group)) * i64::from(y.of(group));
        });
        paths.planes += 1;
        Some(round_units(sum, exponent))
    }

    fn wide(&self, a: &Row<'_>, b: &Row<'_>) -> f32 {
        let mut sum = ExactSum::ZERO;
        let shared = (a.shape.group().get() / self.group.get()).trailing_zeros();
        self.for_each_group(a, b, |group, dot| {
            let parts = |row: &Row<'_>, group: usize| {
                row.scales.get(group).and_then(|&byte| row.shape.scale_type().parts(byte))
            };
            if let (Some(x), Some(y)) = (parts(a, group >> shared), parts(b, group)) {
                let significand = i64::from(dot) * i64::from(x.significand * y.significand);
                // The exponent of two scales and a unit is inside the sum's range.
                let _ = sum.add_scaled(significand, x.exponent + y.exponent + self.unit);
            }
        });
        sum.to_f32()
    }

    /// Calls `f` with every group of B and its dot product.
    #[inline(always)]
    fn for_each_group(&self, a: &Row<'_>, b: &Row<'_>, f: impl FnMut(usize, i32)) {
        match (self.element, self.group) {
            (Element::E2m1, GroupSize::G16) => each::<8, 8>(a.codes, b.codes, dot_codes, f),
            (Element::E2m1, _) => each::<16, 16>(a.codes, b.codes, dot_codes, f),
            (Element::Int8, GroupSize::G16) => each::<16, 8>(a.codes, b.codes, dot_int8, f),
            (Element::Int8, _) => each::<32, 16>(a.codes, b.codes, dot_int8, f),
        }
    }
}

/// Calls `f` with the number and the dot product of every group: A bytes of one row, B of the other.
#[inline(always)]
fn each<const A: usize, const B: usize>(
    a: &[u8],
    b: &[u8],
    dot: impl Fn(&[u8; A], &[u8; B]) -> i32,
    mut f: impl FnMut(usize, i32),
) {
    for (group, (a, b)) in a.as_chunks().0.iter().zip(b.as_chunks().0).enumerate() {
        f(group, dot(a, b));
    }
}

/// The dot product of groups of codes, in units of 1/4.
#[inline(always)]
fn dot_codes<const N: usize>(a: &[u8; N], b: &[u8; N]) -> i32 {
    a.iter().zip(b).fold(0, |dot, (&a, &b)| {
        let ([a0, a1], [b0, b1]) = (PAIRS[usize::from(a)], PAIRS[usize::from(b)]);
        dot + i32::from(a0) * i32::from(b0) + i32::from(a1) * i32::from(b1)
    })
}

/// The dot product of a group of MXINT8 elements and one of codes, in units of 2^-7.
#[inline(always)]
fn dot_int8<const A: usize, const B: usize>(a: &[u8; A], b: &[u8; B]) -> i32 {
    a.as_chunks::<2>().0.iter().zip(b).fold(0, |dot, (&[a0, a1], &b)| {
        let [b0, b1] = PAIRS[usize::from(b)];
        dot + i32::from(a0 as i8) * i32::from(b0) + i32::from(a1 as i8) * i32::from(b1)
    })
}
