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
//! most 144 * G and the -2 in the exponent undoes the doubling.
//!
//! Worked example, NVFP4: one group of codes 7 and 7 (6 * 6) in one element, scales 0x4A (5) and
//! 0x38 (1): dot = 144, significands 10 and 8 (times 2^-1 and 2^-3), so
//! S = 144 * 80 * 2^(-1 - 3 - 2) = 180 = 36 * 5.
//!
//! [C6]: crate::contract#c6

use core::ops::Range;

use crate::e2m1::DOUBLED;
use crate::environment::check_environment;
use crate::epilogue::Epilogue;
use crate::error::{Buffer, Error};
use crate::exact::{ExactSum, FixedSum, PartialsMut};
use crate::float::FloatSliceMut;
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

/// Writes round(f32(A * B^T) * alpha), or what else the epilogue says (an f32 is an alpha alone),
/// an (M, N) row-major matrix (C6).
///
/// # Errors
/// [`Error::FormatMismatch`], [`Error::NotAMatmulFormat`] or [`Error::ShapeMismatch`] if the
/// operands do not agree; [`Error::Len`] unless `out` has M * N values and the epilogue fits;
/// [`Error::Environment`].
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
    let groups = 0..a.shape().row_groups();
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

/// Adds the exact sums over a range of K groups to `out`, an (M, N) row-major matrix of partial
/// sums (C6). [`finish`](crate::finish) rounds merged partials once.
///
/// # Errors
/// As [`matmul`]; [`Error::Range`] if `groups` is outside the operands;
/// [`Error::PartialKind`] for 64-bit sums of MXFP4; [`Error::PartialOverflow`] if a 64-bit sum
/// overflows (`out` then holds the terms added so far).
pub fn partial(
    a: PackedView<'_>,
    b: PackedView<'_>,
    groups: Range<usize>,
    out: PartialsMut<'_>,
) -> Result<(), Error> {
    let format = a.shape().expect_product(&b.shape())?;
    out.expect(format, a.shape().rows() * b.shape().rows())?;
    a.shape().expect_groups(&groups)?;
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
    let scale_type = a.shape().scale_type();
    let bytes = a.shape().group().get() / 2;
    let codes = groups.start * bytes..groups.end * bytes;
    let codes_a = a.row_codes(i)[codes.clone()].chunks_exact(bytes);
    let codes_b = b.row_codes(j)[codes].chunks_exact(bytes);
    let scales = a.row_scales(i)[groups.clone()].iter().zip(&b.row_scales(j)[groups]);
    for ((codes_a, codes_b), (&sa, &sb)) in codes_a.zip(codes_b).zip(scales) {
        f(match (scale_type.parts(sa), scale_type.parts(sb)) {
            (Some(sa), Some(sb)) => Some((
                group_dot(codes_a, codes_b) * i64::from(sa.significand * sb.significand),
                sa.exponent + sb.exponent - 2,
            )),
            _ => None,
        })?;
    }
    Ok(())
}
