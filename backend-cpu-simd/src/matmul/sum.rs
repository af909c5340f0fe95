//! What every matmul of this crate shares: the checks of a call, the exact sum of one output and
//! its one rounding, and partial sums (C6).
//!
//! *The rounding.* `units as f32` rounds once. The sum is `units * 2^e`; the product with the power
//! of two is exact if -126 <= e <= 63, since 1 <= |units| <= 2^63 then keeps it normal. Other
//! exponents go through [`ExactSum`].

use std::ops::Range;

use fp4_core::{Error, ExactSum, FixedSum, PackedShape, PartialsMut, Paths, ScaledSum, ScaledSums};

/// Groups after which a long range of 64-bit partial sums is cut, so that every NVFP4 sum is
/// narrow: 2^15 * 2304 * (448 * 512)^2 < 2^62.
pub(crate) const FIXED_GROUPS: usize = 1 << 15;

/// The exact sum of one output, NaN scales counted as zero.
pub(crate) enum Sum<'a> {
    /// `units * 2^exponent`.
    Narrow { units: i64, exponent: i32 },
    /// The full accumulator.
    Wide(&'a ExactSum),
}

/// Exponents of units for which a 63-bit sum is rounded by one conversion and one multiplication.
pub(crate) const PLAIN_EXPONENTS: std::ops::RangeInclusive<i32> = -126..=63;

/// 2^exponent, for one of [`PLAIN_EXPONENTS`].
#[inline(always)]
pub(crate) fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

impl Sum<'_> {
    /// The sum rounded once to f32.
    #[inline]
    pub(crate) fn to_f32(&self) -> f32 {
        match *self {
            Sum::Narrow { units, exponent } if PLAIN_EXPONENTS.contains(&exponent) => {
                units as f32 * power_of_two(exponent)
            }
            Sum::Narrow { units, exponent } => {
                let mut sum = ExactSum::ZERO;
                // Two live scales: the exponent is in -261..=252, with MXINT8 in A the least.
                let added = sum.add_scaled(units, exponent);
                debug_assert_eq!(added, Ok(()));
                sum.to_f32()
            }
            Sum::Wide(sum) => sum.to_f32(),
        }
    }

    /// The sum in units of 2^-20, for NVFP4: its exponents are at least -20.
    fn to_fixed(&self) -> Result<i64, Error> {
        match *self {
            Sum::Narrow { units, exponent } => {
                let factor = 1i64 << (exponent - FixedSum::EXPONENT);
                units.checked_mul(factor).ok_or(Error::PartialOverflow)
            }
            // Not reached: stretches of FIXED_GROUPS groups are narrow.
            Sum::Wide(_) => Err(Error::PartialOverflow),
        }
    }

    /// Adds the sum to one in units of `2^exponent`.
    pub(crate) fn add_to_units(&self, total: &mut i64, exponent: i32) -> Result<(), Error> {
        let mut scaled = ScaledSum { units: *total, exponent };
        match *self {
            Sum::Narrow { units, exponent } => scaled.add_scaled(units, exponent)?,
            Sum::Wide(sum) => scaled.merge(sum)?,
        }
        *total = scaled.units;
        Ok(())
    }

    fn add_to(&self, total: &mut ExactSum) -> Result<(), Error> {
        match *self {
            Sum::Narrow { units, exponent } => total.add_scaled(units, exponent),
            Sum::Wide(sum) => {
                total.merge(sum);
                Ok(())
            }
        }
    }
}

/// True if every sum of `live` groups' terms, each at most `dot * reach_a * reach_b` units, fits an
/// i64: `term * live <= 2^63 - 1`.
#[inline]
pub(crate) fn fits_63_bits(dot: u128, reach_a: u64, reach_b: u64, live: usize) -> bool {
    // Four factors below 2^16, 2^16, 2^16 and 2^15: the usual case, without long products.
    if (reach_a | reach_b) >> 16 == 0 && dot >> 16 == 0 && live >> 15 == 0 {
        return true;
    }
    // D < 2^16 and a reach that is not saturated is below 2^62, so this saturates only where the
    // bound fails anyway.
    let term = (u128::from(reach_a) * u128::from(reach_b)).saturating_mul(dot);
    term.saturating_mul(live as u128) <= i64::MAX as u128
}

/// Two operands whose exact sums over a range of groups can be computed.
pub(crate) trait ExactSums {
    /// The shapes of A and B.
    fn shapes(&self) -> [PackedShape; 2];

    /// Computes all sums over the groups `groups` of B and hands each to `emit` with its output and
    /// whether a scale in the range was NaN.
    fn sums<T: Send>(
        &self,
        groups: Range<usize>,
        out: &mut [T],
        emit: impl Fn(&mut T, bool, Sum<'_>) -> Result<(), Error> + Sync,
    ) -> Result<Paths, Error>;

    /// Adds all sums over the groups `groups` of B to `out`, which has the operands' shape.
    fn add_scaled(&self, groups: Range<usize>, out: ScaledSums<'_>) -> Result<Paths, Error>;
}

/// Adds the exact sums over the groups `groups` to `out`.
pub(crate) fn partial(
    operands: &impl ExactSums,
    groups: Range<usize>,
    out: PartialsMut<'_>,
) -> Result<(), Error> {
    let [a, b] = operands.shapes();
    let product = a.expect_product(&b)?;
    out.expect(product, [a.rows(), b.rows()])?;
    b.expect_groups(&groups)?;
    match out {
        PartialsMut::Fixed(out) => {
            for start in groups.clone().step_by(FIXED_GROUPS) {
                let stretch = start..groups.end.min(start + FIXED_GROUPS);
                operands.sums(stretch, out, |total: &mut FixedSum, nan, sum| {
                    total.nan |= nan;
                    total.add(sum.to_fixed()?)
                })?;
            }
            Ok(())
        }
        PartialsMut::Scaled(out) => operands.add_scaled(groups, out).map(|_| ()),
        PartialsMut::Exact(out) => operands
            .sums(groups, out, |total: &mut ExactSum, nan, sum| {
                if nan {
                    total.set_nan();
                }
                sum.add_to(total)
            })
            .map(|_| ()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_rounding_for_every_exponent() {
        let significands = [1, -1, 3, 0x0100_0001, 0x0180_0001, i64::MAX, -i64::MAX, 0];
        let mut compared = 0;
        for exponent in -261..=252 {
            for units in significands {
                let mut sum = ExactSum::ZERO;
                sum.add_scaled(units, exponent).unwrap();
                let got = Sum::Narrow { units, exponent }.to_f32();
                assert_eq!(got.to_bits(), sum.to_f32().to_bits(), "{units} * 2^{exponent}");
                compared += 1;
            }
        }
        assert!(compared > 4000);
    }

    #[test]
    fn the_63_bit_bound_is_where_the_docs_say() {
        assert!(fits_63_bits(4608, 1 << 40, 1, 1820));
        assert!(!fits_63_bits(4608, 1 << 40, 1, 1821));
        assert!(fits_63_bits(4608, 1 << 25, 1 << 25, 1));
        assert!(!fits_63_bits(4608, 1 << 25, 1 << 26, 1));
        assert!(!fits_63_bits(4608, u64::MAX, u64::MAX, 1));
        assert!(fits_63_bits(4608, u64::MAX, 0, 0));
        let reach = 448 * 512;
        assert!(fits_63_bits(2304, reach, reach, FIXED_GROUPS));
        assert!(fits_63_bits(2304, reach, reach, (1 << 20) / 16));
    }
}
