//! Exact sums in 64 bits, in units of a power of two ([C6]).
//!
//! [C6]: crate::contract#c6

use super::ExactSum;
use crate::error::{Buffer, Error};
use crate::float::NAN_F32;

/// An exact sum of NVFP4 products: an i64 in units of 2^-20, with a NaN flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FixedSum {
    /// The sum in units of 2^-20.
    pub units: i64,
    /// True if a scale in the range was NaN.
    pub nan: bool,
}

impl FixedSum {
    /// Exponent of one unit.
    pub const EXPONENT: i32 = -20;

    /// The empty sum.
    pub const ZERO: FixedSum = FixedSum { units: 0, nan: false };

    /// Adds `units` units of 2^-20.
    ///
    /// # Errors
    /// [`Error::PartialOverflow`] past 63 bits, which takes K above 2^20; the sum is unchanged.
    pub fn add(&mut self, units: i64) -> Result<(), Error> {
        self.units = self.units.checked_add(units).ok_or(Error::PartialOverflow)?;
        Ok(())
    }

    /// Adds another sum.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn merge(&mut self, other: &FixedSum) -> Result<(), Error> {
        self.add(other.units)?;
        self.nan |= other.nan;
        Ok(())
    }

    /// The sum rounded once to f32, as [`ExactSum::to_f32`].
    pub fn to_f32(&self) -> f32 {
        if self.nan {
            return f32::from_bits(NAN_F32);
        }
        // The conversion rounds once, to nearest even; the power of two is exact, as a nonzero
        // result is at least 2^-20.
        self.units as f32 * (1.0 / (1 << 20) as f32)
    }
}

impl From<FixedSum> for ExactSum {
    fn from(fixed: FixedSum) -> Self {
        let mut sum = ExactSum { nan: fixed.nan, ..ExactSum::ZERO };
        // The exponent is inside the range.
        let _ = sum.add_scaled(fixed.units, FixedSum::EXPONENT);
        sum
    }
}

/// An exact sum in units of a power of two that whoever adds into it has chosen: one of
/// [`ScaledSums`].
///
/// Worked example: in units of 2^-3, 5 * 2^-2 are 10 units; 2^-4 is no whole number of them, an
/// error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScaledSum {
    /// The sum in units of 2^`exponent`.
    pub units: i64,
    /// Exponent of one unit.
    pub exponent: i32,
}

impl ScaledSum {
    /// The empty sum in units of `2^exponent`.
    pub const fn zero(exponent: i32) -> Self {
        ScaledSum { units: 0, exponent }
    }

    /// Adds `significand * 2^exponent`, exactly.
    ///
    /// # Errors
    /// [`Error::PartialOverflow`] unless that is a whole number of units and the sum fits 63 bits;
    /// the sum is unchanged.
    #[inline]
    pub fn add_scaled(&mut self, significand: i64, exponent: i32) -> Result<(), Error> {
        let shift = exponent.wrapping_sub(self.exponent);
        let units = match shift {
            0..64 => {
                let units = significand << shift;
                (units >> shift == significand).then_some(units)
            }
            -63..0 => {
                let units = significand >> -shift;
                (units << -shift == significand).then_some(units)
            }
            _ => (significand == 0).then_some(0),
        };
        let sum = units.and_then(|units| self.units.checked_add(units));
        self.units = sum.ok_or(Error::PartialOverflow)?;
        Ok(())
    }

    /// Adds another sum, of any kind, whose NaN flag does not count.
    ///
    /// # Errors
    /// As [`add_scaled`](Self::add_scaled).
    pub fn merge(&mut self, other: &ExactSum) -> Result<(), Error> {
        let units = other.to_units(self.exponent).ok_or(Error::PartialOverflow)?;
        self.add_scaled(units, self.exponent)
    }
}

/// Exact sums of an (M, N) product in 64 bits, row-major, to add into: that of row i and column j
/// in units of `2^(rows[i] + columns[j])`.
///
/// They have no NaN flags, and NaN scales add nothing: whoever chose the units has seen all scales.
#[derive(Debug)]
pub struct ScaledSums<'a> {
    units: &'a mut [i64],
    rows: &'a [i32],
    columns: &'a [i32],
}

impl<'a> ScaledSums<'a> {
    /// The largest magnitude of an exponent of a row or column, far past those of any product: sums
    /// and differences of exponents fit an `i32`.
    pub const MOST_EXPONENT: i32 = 1 << 16;

    /// These sums, with the exponents of M rows and N columns.
    ///
    /// # Errors
    /// [`Error::Len`] unless there are M * N sums; [`Error::SumRange`] for an exponent past
    /// +-[`MOST_EXPONENT`](Self::MOST_EXPONENT).
    pub fn new(units: &'a mut [i64], rows: &'a [i32], columns: &'a [i32]) -> Result<Self, Error> {
        let (expected, got) = (rows.len().saturating_mul(columns.len()), units.len());
        let past = |exponent: &&i32| exponent.unsigned_abs() > Self::MOST_EXPONENT.unsigned_abs();
        if let Some(&exponent) = rows.iter().chain(columns).find(past) {
            return Err(Error::SumRange { exponent });
        }
        match expected == got {
            true => Ok(ScaledSums { units, rows, columns }),
            false => Err(Error::Len { what: Buffer::Partials, expected, got }),
        }
    }

    /// M and N.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows.len(), self.columns.len()]
    }

    /// The sums, the exponents of the rows and those of the columns.
    pub fn into_parts(self) -> (&'a mut [i64], &'a [i32], &'a [i32]) {
        (self.units, self.rows, self.columns)
    }

    /// Hands each sum to `add`, with its row and column.
    ///
    /// # Errors
    /// The first of `add`, where it ends.
    pub fn for_each(
        &mut self,
        mut add: impl FnMut([usize; 2], &mut ScaledSum) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let rows = self.units.chunks_exact_mut(self.columns.len().max(1)).zip(self.rows);
        for (i, (units, row)) in rows.enumerate() {
            for (j, (units, column)) in units.iter_mut().zip(self.columns).enumerate() {
                let mut sum = ScaledSum { units: *units, exponent: row + column };
                add([i, j], &mut sum)?;
                *units = sum.units;
            }
        }
        Ok(())
    }
}
