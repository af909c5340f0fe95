//! Reference matmul: the exact dot product, rounded once ([C6]).
//!
//! ```text
//! for each row i of A, column j (row of B):
//!     S = 0
//!     for each group g:
//!         S += dot(codes) * (sig_a * sig_b) * 2^(e_a + e_b - 2)     exact
//!     out = round(f32(S) * alpha)                           or with row scales and bias
//! ```
//!
//! The dot product of a group is over doubled codes, integers up to 12 in magnitude, so it is at
//! most 144 * G and the -2 in the exponent undoes the doubling. With MXINT8 activations ([C10]) it
//! is over elements and doubled codes, at most 128 * 12 * G, and the exponent takes -7: the groups
//! are those of B, two to one scale of A where B is NVFP4.
//!
//! Worked example, NVFP4: one group of codes 7 and 7 (6 * 6) in one element, scales 0x4A (5) and
//! 0x38 (1): dot = 144, significands 10 and 8 (times 2^-1 and 2^-3), so
//! S = 144 * 80 * 2^(-1 - 3 - 2) = 180 = 36 * 5.
//!
//! [C6]: crate::contract#c6
//! [C10]: crate::contract#c10

use core::ops::Range;

use crate::e2m1::DOUBLED;
use crate::environment::check_environment;
use crate::epilogue::Epilogue;
use crate::error::{Buffer, Error};
use crate::exact::{ExactSum, FixedSum, PartialsMut};
use crate::float::FloatSliceMut;
use crate::format::Element;
use crate::packed::PackedView;
use crate::with_floats;

/// The dot product of two groups of packed codes, in units of 1/4 (the codes are doubled).
/// The shorter slice decides the length. At most 144 times the number of elements.
#[inline]
pub fn group_dot(a: &[u8], b: &[u8]) -> i64 {
    a.iter().zip(b).fold(0, |dot, (&a, &b)| {
        let value = |nibble: u8| i64::from(DOUBLED[usize::from(nibble & 0xF)]);
        dot + value(a) * value(b) + value(a >> 4) * value(b >> 4)
    })
}

/// The dot product of a group of MXINT8 elements and a group of packed codes, in units of 2^-7 (the
/// codes are doubled). The shorter slice decides the length. At most 1536 times the number of
/// elements.
#[inline]
pub fn group_dot_int8(a: &[u8], b: &[u8]) -> i64 {
    a.chunks_exact(2).zip(b).fold(0, |dot, (a, &b)| {
        let value = |nibble: u8| i64::from(DOUBLED[usize::from(nibble & 0xF)]);
        dot + i64::from(a[0] as i8) * value(b) + i64::from(a[1] as i8) * value(b >> 4)
    })
}

/// Writes round(f32(A * B^T) * alpha), or what else the epilogue says (an f32 is an alpha alone),
/// an (M, N) row-major matrix (C6).
///
/// # Errors
/// [`Error::FormatMismatch`], [`Error::ElementMismatch`], [`Error::NotAMatmulFormat`] or
/// [`Error::ShapeMismatch`] if the operands do not agree; [`Error::Len`] unless `out` has M * N
/// values and the epilogue fits; [`Error::Environment`].
pub fn matmul<'e>(
    a: PackedView<'_>,
    b: PackedView<'_>,
    epilogue: impl Into<Epilogue<'e>>,
    out: FloatSliceMut<'_>,
) -> Result<(), Error> {
    check_environment()?;
    let epilogue = epilogue.into();
    a.shape().expect_product(&b.shape())?;
    epilogue.expect(a.shape().rows(), b.shape().rows())?;
    out.as_ref().expect_len(Buffer::Output, a.shape().rows() * b.shape().rows())?;
    let n = b.shape().rows().max(1);
    let groups = 0..b.shape().row_groups();
    with_floats!(FloatSliceMut, out, out => {
        for (i, row) in out.chunks_exact_mut(n).enumerate() {
            for (j, y) in row.iter_mut().enumerate() {
                let mut sum = ExactSum::ZERO;
                for_each_group(a, i, b, j, groups.clone(), |term| add_term(&mut sum, term))?;
                *y = epilogue.apply(sum.to_f32(), i, j);
            }
        }
    });
    Ok(())
}

/// Adds the exact sums over a range of the weight's groups along K to `out`, an (M, N) row-major
/// matrix of partial sums (C6). [`finish`](crate::finish) rounds merged partials once.
///
/// # Errors
/// As [`matmul`]; [`Error::Range`] if `groups` is outside the operands;
/// [`Error::PartialKind`] for 64-bit sums of another than NVFP4 by NVFP4;
/// [`Error::PartialOverflow`] if a 64-bit sum overflows, or a term is no whole number of its units
/// (`out` then holds the terms added so far).
pub fn partial(
    a: PackedView<'_>,
    b: PackedView<'_>,
    groups: Range<usize>,
    out: PartialsMut<'_>,
) -> Result<(), Error> {
    let product = a.shape().expect_product(&b.shape())?;
    out.expect(product, [a.shape().rows(), b.shape().rows()])?;
    b.shape().expect_groups(&groups)?;
    let n = b.shape().rows().max(1);
    match out {
        PartialsMut::Fixed(out) => {
            for (index, sum) in out.iter_mut().enumerate() {
                for_each_group(a, index / n, b, index % n, groups.clone(), |term| match term {
                    None => {
                        sum.nan = true;
                        Ok(())
                    }
                    // NVFP4 exponents are at least -9 each, so the shift is not negative.
                    Some((dot, exponent)) => sum.add(dot << (exponent - FixedSum::EXPONENT)),
                })?;
            }
        }
        PartialsMut::Scaled(mut out) => out.for_each(|[i, j], sum| {
            for_each_group(a, i, b, j, groups.clone(), |term| match term {
                None => Ok(()),
                Some((dot, exponent)) => sum.add_scaled(dot, exponent),
            })
        })?,
        PartialsMut::Exact(out) => {
            for (index, sum) in out.iter_mut().enumerate() {
                for_each_group(a, index / n, b, index % n, groups.clone(), |term| {
                    add_term(sum, term)
                })?;
            }
        }
    }
    Ok(())
}

/// The contribution of one group: `significand * 2^exponent`, or `None` for a NaN scale.
type Term = Option<(i64, i32)>;

fn add_term(sum: &mut ExactSum, term: Term) -> Result<(), Error> {
    match term {
        None => {
            sum.set_nan();
            Ok(())
        }
        Some((significand, exponent)) => sum.add_scaled(significand, exponent),
    }
}

fn for_each_group(
    a: PackedView<'_>,
    i: usize,
    b: PackedView<'_>,
    j: usize,
    groups: Range<usize>,
    mut f: impl FnMut(Term) -> Result<(), Error>,
) -> Result<(), Error> {
    let (types, element) = ((a.shape().scale_type(), b.shape().scale_type()), a.shape().element());
    // The groups are B's. Of A's scales each serves one of them, or two.
    let group = b.shape().group().get();
    let of_a = a.shape().group().get() / group;
    let (bytes_a, bytes_b) = (group / element.per_byte(), group / 2);
    let codes_a = a.row_codes(i).chunks_exact(bytes_a);
    let codes_b = b.row_codes(j).chunks_exact(bytes_b);
    let scales = a.row_scales(i).iter().flat_map(|s| core::iter::repeat_n(s, of_a));
    let scales = scales.zip(b.row_scales(j));
    let groups = codes_a.zip(codes_b).zip(scales).skip(groups.start).take(groups.len());
    for ((codes_a, codes_b), (&sa, &sb)) in groups {
        f(match (types.0.parts(sa), types.1.parts(sb)) {
            (Some(sa), Some(sb)) => {
                let (dot, unit) = match element {
                    Element::E2m1 => (group_dot(codes_a, codes_b), -2),
                    Element::Int8 => (group_dot_int8(codes_a, codes_b), -7),
                };
                let significand = i64::from(sa.significand * sb.significand);
                Some((dot * significand, sa.exponent + sb.exponent + unit))
            }
            _ => None,
        })?;
    }
    Ok(())
}
