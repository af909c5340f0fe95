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
//!     for each group: v = dot * significand_a * significand_b                  32 bits
//!                     t = exponent_a + exponent_b - (least of i + least of j)
//!     i32    S += v << t                              if the spans fit 31 bits
//!     i64    S += i64(v << min(t, h)) * i64(1 << t - min(t, h))    if they fit 63
//!     else   S is the reference's sum
//!     out = round(f32(S * 2^(least of i + least of j - 2)) * alpha), and so on
//! ```
//!
//! # The bounds
//!
//! A group's `dot` is at most `D`: 144 G of doubled codes, 1536 G with MXINT8 ([C10]), whose unit
//! is -7 for -2. A significand is at most `s`: 1 for e8m0, 15 for e4m3. With `n = K / G` groups,
//! the spans (largest less least exponent) `a` and `b` of the two rows, and `h` the largest with
//! `D s_a s_b 2^h < 2^31`:
//!
//! ```text
//! i32    n D s_a s_b 2^(a + b) < 2^31
//! i64    n D s_a s_b 2^(a + b) < 2^63 and a + b <= h + 30
//! ```
//!
//! One 32 x 32 -> 64 multiply-add is what a processor of 32 bits has; a shift of 64 bits is not.
//!
//! | product, K = 128 | i32 if a + b is at most | i64 if a + b is at most |
//! |---|---|---|
//! | MXFP4 by MXFP4 | 16 | 48 |
//! | NVFP4 by NVFP4 | 9 | 28, all that there is, up to K = 2^20 |
//! | MXINT8 by MXFP4 | 13 | 45 |
//! | MXINT8 by NVFP4 | 9 | 41 |
//!
//! Groups whose scale is +-0 do not count; those whose codes are all +-0 are left out where the row
//! does not fit with them (padding has scale 2^-127, [C8]). Their `dot` is 0, so their units may be
//! anything. The last step is one rounding: the sum is converted to f32 to nearest, and the power
//! of two is exact where no output can be subnormal or overflow; elsewhere the wide sum rounds.
//!
//! Worked example, MXFP4, K = 64: scales 2^0 and 2^3 of A (a = 3), 2^-1 twice of B (b = 0). D is
//! 4608 and 2 * 4608 * 2^3 is far below 2^31. Dots 4 and 144 give (4 << 0) + (144 << 3) = 1156 in
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
use crate::format::{Element, Encoding, Format, Product, ScaleType};
use crate::packed::{Packed, PackedMut, PackedShape, PackedView};
use crate::reference::{self, Reference, ReferenceWeight};
use crate::with_floats;

/// The doubled values of the two codes of a byte, in 16 bits each, the even index low: a processor
/// with a multiplication of halves loads both at once.
static PAIRS: [u32; 256] = {
    let mut pairs = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (even, odd) = (DOUBLED[byte & 0xF] as u16, DOUBLED[byte >> 4] as u16);
        pairs[byte] = even as u32 | ((odd as u32) << 16);
        byte += 1;
    }
    pairs
};

/// What [`PAIRS`] has of a byte.
#[inline(always)]
fn pair(byte: u8) -> [i32; 2] {
    let pair = PAIRS[usize::from(byte)];
    [i32::from(pair as i16), pair as i32 >> 16]
}

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

/// How wide the spans of two rows may be together; see the module's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Room {
    /// For a sum in i32.
    narrow: i32,
    /// For a sum in i64.
    double: i32,
    /// What one group may be shifted by in i32.
    group: i32,
    /// Exponent of the dot product's unit.
    unit: i32,
    product: Product,
}

/// The largest `s` with `count << s` at most `most`; -1 if there is none.
fn room(count: u64, most: u64) -> i32 {
    most.checked_div(count).and_then(u64::checked_ilog2).map_or(-1, |s| s as i32)
}

impl Room {
    /// For rows of this product, of so many groups of B.
    fn new(product: Product, groups: usize) -> Self {
        let (of_element, unit) = match product.a.element() {
            Element::E2m1 => (144, -2),
            Element::Int8 => (1536, -7),
        };
        let most = |ty| if ty == ScaleType::E8M0 { 1u64 } else { 15 };
        let significands = most(product.a.scale_type()) * most(product.b.scale_type());
        let one = of_element * product.b.group().get() as u64 * significands;
        // An empty sum needs as much as one group.
        let all = one.saturating_mul(groups.max(1) as u64);
        let group = room(one, i32::MAX as u64);
        Room {
            narrow: room(all, i32::MAX as u64),
            double: room(all, i64::MAX as u64).min(group + 30),
            group,
            unit,
            product,
        }
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
                let mut sum = Exact { sum: ExactSum::ZERO, unit: self.unit };
                self.add(a, b, &mut sum);
                sum.sum.to_f32()
            })
    }

    fn with_spans(
        &self,
        a: &Row<'_>,
        span_a: Span,
        b: &Row<'_>,
        span_b: Span,
        paths: &mut Paths,
    ) -> Option<f32> {
        let (low, width) = (span_a.low + span_b.low, span_a.width + span_b.width);
        let exponent = low + self.unit;
        if width <= self.narrow {
            let mut sum = Word { sum: 0, low };
            self.add(a, b, &mut sum);
            paths.narrow += 1;
            return Some(round_units(sum.sum.into(), exponent));
        }
        if width <= self.double {
            let mut sum = Long { sum: 0, low, most: self.group };
            self.add(a, b, &mut sum);
            paths.planes += 1;
            return Some(round_units(sum.sum, exponent));
        }
        None
    }

    /// Adds every group of two rows.
    #[inline(always)]
    fn add(&self, a: &Row<'_>, b: &Row<'_>, sum: &mut impl Sum) {
        match (self.product.a, self.product.b) {
            (Encoding::MxInt8, Format::MxFp4) => groups::<32, 16, 1, _>(a, b, MX, MX, sum),
            (Encoding::MxInt8, Format::NvFp4) => groups::<16, 8, 2, _>(a, b, MX, NV, sum),
            (_, Format::MxFp4) => groups::<16, 16, 1, _>(a, b, MX, MX, sum),
            (_, Format::NvFp4) => groups::<8, 8, 1, _>(a, b, NV, NV, sum),
        }
    }
}

const MX: ScaleType = ScaleType::E8M0;
const NV: ScaleType = ScaleType::E4M3;

/// A sum of groups in units of two to `low` plus the dot product's own.
trait Sum {
    /// Whether dot products are worth code of their own beside the sum.
    const IN_LINE: bool = true;

    /// Adds `value` 2^`exponent`.
    fn add(&mut self, value: i32, exponent: i32);
}

/// In 32 bits.
struct Word {
    sum: i32,
    low: i32,
}

impl Sum for Word {
    #[inline(always)]
    fn add(&mut self, value: i32, exponent: i32) {
        // Of groups that do not count the shift may be anything, and the value is 0.
        self.sum += value.wrapping_shl((exponent - self.low) as u32);
    }
}

/// In 64 bits.
struct Long {
    sum: i64,
    low: i32,
    /// What a value can be shifted by in 32 bits.
    most: i32,
}

impl Sum for Long {
    #[inline(always)]
    fn add(&mut self, value: i32, exponent: i32) {
        let shift = exponent - self.low;
        let first = shift.min(self.most);
        let rest = 1i32.wrapping_shl((shift - first) as u32);
        self.sum += i64::from(value.wrapping_shl(first as u32)) * i64::from(rest);
    }
}

/// In 640.
struct Exact {
    sum: ExactSum,
    unit: i32,
}

impl Sum for Exact {
    const IN_LINE: bool = false;

    fn add(&mut self, value: i32, exponent: i32) {
        // The exponents of two scales and of a unit are inside the range.
        let _ = self.sum.add_scaled(value.into(), exponent + self.unit);
    }
}

/// The magnitude of a scale's significand, and the exponent. NaN, which no caller has, is a number.
#[inline(always)]
fn significand(byte: u8, ty: ScaleType) -> (i32, i32) {
    let byte = i32::from(byte);
    match ty {
        ScaleType::E8M0 => (1, byte - 127),
        ScaleType::E4M3 => match ((byte >> 3) & 0xF, byte & 7) {
            (0, mantissa) => (mantissa, -9),
            (exponent, mantissa) => (mantissa | 8, exponent - 10),
        },
    }
}

/// Adds the groups of B, of B bytes; A bytes of the other row have as many elements, and a scale of
/// its serves S groups.
#[inline(always)]
fn groups<const A: usize, const B: usize, const S: usize, T: Sum>(
    a: &Row<'_>,
    b: &Row<'_>,
    of_a: ScaleType,
    of_b: ScaleType,
    sum: &mut T,
) {
    let codes_a = a.codes.as_chunks::<A>().0.as_chunks::<S>().0.iter();
    let codes_b = b.codes.as_chunks::<B>().0.as_chunks::<S>().0.iter();
    let scales = a.scales.iter().zip(b.scales.as_chunks::<S>().0);
    for ((a, b), (&scale_a, scales_b)) in codes_a.zip(codes_b).zip(scales) {
        let (significand_a, exponent_a) = significand(scale_a, of_a);
        for ((a, b), &scale_b) in a.iter().zip(b).zip(scales_b) {
            let (significand_b, exponent_b) = significand(scale_b, of_b);
            let dot = if T::IN_LINE { dot(a, b) } else { dot_called(a, b) };
            let value = dot * (significand_a * significand_b);
            // e8m0 has no sign.
            let signs = match (of_a, of_b) {
                (ScaleType::E8M0, ScaleType::E8M0) => 0,
                (ScaleType::E8M0, ScaleType::E4M3) => scale_b,
                (ScaleType::E4M3, ScaleType::E8M0) => scale_a,
                (ScaleType::E4M3, ScaleType::E4M3) => scale_a ^ scale_b,
            };
            let value = if signs & 0x80 == 0 { value } else { -value };
            sum.add(value, exponent_a + exponent_b);
        }
    }
}

/// The dot product of a group of codes and one of codes, in units of 1/4, or of MXINT8 elements,
/// twice the bytes, in units of 2^-7.
#[inline(always)]
fn dot<const A: usize, const B: usize>(a: &[u8; A], b: &[u8; B]) -> i32 {
    if A == B {
        return a.iter().zip(b).fold(0, |dot, (&a, &b)| {
            let ([a0, a1], [b0, b1]) = (pair(a), pair(b));
            dot + a0 * b0 + a1 * b1
        });
    }
    a.as_chunks::<2>().0.iter().zip(b).fold(0, |dot, (&[a0, a1], &b)| {
        let [b0, b1] = pair(b);
        dot + i32::from(a0 as i8) * b0 + i32::from(a1 as i8) * b1
    })
}

/// As [`dot`], as the reference computes it: for the sum that is slow anyway.
#[inline(never)]
fn dot_called(a: &[u8], b: &[u8]) -> i32 {
    let dot = if a.len() == b.len() {
        reference::group_dot(a, b)
    } else {
        reference::group_dot_int8(a, b)
    };
    dot as i32
}
