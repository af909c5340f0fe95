//! Partial sums of a product: which kinds there are, and the one rounding of them ([C6]).
//!
//! [C6]: crate::contract#c6

use core::fmt;

use super::{ExactSum, FixedSum, ScaledSums};
use crate::environment::check_environment;
use crate::epilogue::Epilogue;
use crate::error::{Buffer, Error};
use crate::float::FloatSliceMut;
use crate::format::Product;
use crate::with_floats;

/// Partial sums of an (M, N) product, row-major, to add into.
pub enum PartialsMut<'a> {
    /// 64-bit sums: NVFP4 by NVFP4 only.
    Fixed(&'a mut [FixedSum]),
    /// 64-bit sums in units of their own: any product whose terms and sums those hold.
    Scaled(ScaledSums<'a>),
    /// Exact sums: any product.
    Exact(&'a mut [ExactSum]),
}

/// Partial sums of an (M, N) product, row-major.
#[derive(Clone, Copy)]
pub enum Partials<'a> {
    /// 64-bit sums.
    Fixed(&'a [FixedSum]),
    /// Exact sums.
    Exact(&'a [ExactSum]),
}

/// Kind and number.
impl fmt::Debug for PartialsMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PartialsMut::Fixed(s) => write!(f, "Fixed[{}]", s.len()),
            PartialsMut::Scaled(s) => write!(f, "Scaled{:?}", s.shape()),
            PartialsMut::Exact(s) => write!(f, "Exact[{}]", s.len()),
        }
    }
}

/// Kind and number.
impl fmt::Debug for Partials<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Partials::Fixed(s) => write!(f, "Fixed[{}]", s.len()),
            Partials::Exact(s) => write!(f, "Exact[{}]", s.len()),
        }
    }
}

impl PartialsMut<'_> {
    /// Number of sums.
    pub fn len(&self) -> usize {
        match self {
            PartialsMut::Fixed(s) => s.len(),
            PartialsMut::Scaled(s) => s.shape().iter().product(),
            PartialsMut::Exact(s) => s.len(),
        }
    }

    /// True if there are no sums.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Checks that these sums can take an (m, n) product of these encodings.
    ///
    /// # Errors
    /// [`Error::Len`], of sums in units of their own for the rows too; [`Error::ShapeOverflow`];
    /// [`Error::PartialKind`] for sums in units of 2^-20 of another than NVFP4 by NVFP4.
    pub fn expect(&self, product: Product, [m, n]: [usize; 2]) -> Result<(), Error> {
        let outputs = m.checked_mul(n).ok_or(Error::ShapeOverflow { rows: m, cols: n })?;
        let what = Buffer::Partials;
        match self {
            _ if self.len() != outputs => {
                Err(Error::Len { what, expected: outputs, got: self.len() })
            }
            PartialsMut::Fixed(_) if !product.is_fixed() => Err(Error::PartialKind),
            // As many sums, but of other rows.
            PartialsMut::Scaled(s) if outputs > 0 && s.shape() != [m, n] => {
                Err(Error::Len { what, expected: m, got: s.shape()[0] })
            }
            _ => Ok(()),
        }
    }
}

/// Rounds the merged partial sums of an (m, n) product once and finishes them: the end of C6. An
/// f32 as epilogue is an alpha alone.
///
/// # Errors
/// [`Error::Len`] unless there are m * n sums, `out` has as many values and the epilogue fits;
/// [`Error::ShapeOverflow`]; [`Error::Environment`].
pub fn finish<'e>(
    partials: Partials<'_>,
    [m, n]: [usize; 2],
    epilogue: impl Into<Epilogue<'e>>,
    out: FloatSliceMut<'_>,
) -> Result<(), Error> {
    check_environment()?;
    let epilogue = epilogue.into();
    let expected = m.checked_mul(n).ok_or(Error::ShapeOverflow { rows: m, cols: n })?;
    let got = match partials {
        Partials::Fixed(s) => s.len(),
        Partials::Exact(s) => s.len(),
    };
    if got != expected {
        return Err(Error::Len { what: Buffer::Partials, expected, got });
    }
    out.as_ref().expect_len(Buffer::Output, expected)?;
    epilogue.expect(m, n)?;
    let at = |index: usize| (index / n, index % n);
    with_floats!(FloatSliceMut, out, out => match partials {
        Partials::Fixed(sums) => {
            for (index, (y, s)) in out.iter_mut().zip(sums).enumerate() {
                let (i, j) = at(index);
                *y = epilogue.apply(s.to_f32(), i, j);
            }
        }
        Partials::Exact(sums) => {
            for (index, (y, s)) in out.iter_mut().zip(sums).enumerate() {
                let (i, j) = at(index);
                *y = epilogue.apply(s.to_f32(), i, j);
            }
        }
    });
    Ok(())
}
