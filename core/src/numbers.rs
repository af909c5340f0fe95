//! `num-traits` of the element and the scale types, as `half` offers them (feature `num-traits`).
//!
//! `Bounded` is the least and the largest finite value, `ToPrimitive` goes by the exact f32, and
//! `FromPrimitive` rounds by the type's own rule (C1 ties to even, C2). Every f64, i64 or u64 is
//! first brought to an f32 by round to odd, so that there is one rounding in effect.

use num_traits::{Bounded, FromPrimitive, ToPrimitive};

use crate::e2m1::E2m1;
use crate::scale::{E4m3, E8m0};

/// The f32 toward zero of `x`, with its last bit set if that is not exact: whatever rounds to fewer
/// bits afterwards rounds as from `x` itself.
fn to_odd(x: f64) -> f32 {
    let near = x as f32;
    let wide = f64::from(near);
    if wide == x || x.is_nan() {
        return near;
    }
    // One step toward zero if the conversion went away from it; from infinity to the largest.
    let toward = if wide.abs() > x.abs() { near.to_bits() - 1 } else { near.to_bits() };
    f32::from_bits(toward | 1)
}

macro_rules! numbers {
    ($type:ident, $min:expr, $max:expr) => {
        impl Bounded for $type {
            fn min_value() -> Self {
                $min
            }

            fn max_value() -> Self {
                $max
            }
        }

        impl ToPrimitive for $type {
            fn to_i64(&self) -> Option<i64> {
                (*self).to_f32().to_i64()
            }

            fn to_u64(&self) -> Option<u64> {
                (*self).to_f32().to_u64()
            }

            fn to_i128(&self) -> Option<i128> {
                (*self).to_f32().to_i128()
            }

            fn to_u128(&self) -> Option<u128> {
                (*self).to_f32().to_u128()
            }

            fn to_f32(&self) -> Option<f32> {
                Some((*self).to_f32())
            }

            fn to_f64(&self) -> Option<f64> {
                Some(f64::from((*self).to_f32()))
            }
        }

        impl FromPrimitive for $type {
            fn from_i64(n: i64) -> Option<Self> {
                // Past 2^53 a tie of these types is far away, and odd keeps the side.
                Self::from_f64(n as f64)
            }

            fn from_u64(n: u64) -> Option<Self> {
                Self::from_f64(n as f64)
            }

            fn from_f32(n: f32) -> Option<Self> {
                Some($type::from_f32(n))
            }

            fn from_f64(n: f64) -> Option<Self> {
                Some($type::from_f32(to_odd(n)))
            }
        }
    };
}

numbers!(E2m1, E2m1::from_bits(0xF), E2m1::from_bits(0x7));
numbers!(E8m0, E8m0::from_bits(0), E8m0::MAX);
numbers!(E4m3, E4m3::from_bits(0xFE), E4m3::MAX);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_the_finite_extremes() {
        let value = |x: &dyn ToPrimitive| x.to_f64().unwrap();
        assert_eq!(value(&<E2m1 as Bounded>::min_value()), -6.0);
        assert_eq!(value(&<E2m1 as Bounded>::max_value()), 6.0);
        assert_eq!(value(&<E8m0 as Bounded>::min_value()), 2f64.powi(-127));
        assert_eq!(value(&<E8m0 as Bounded>::max_value()), 2f64.powi(127));
        assert_eq!(value(&<E4m3 as Bounded>::min_value()), -448.0);
        assert_eq!(value(&<E4m3 as Bounded>::max_value()), 448.0);
    }

    #[test]
    fn an_f64_beside_a_tie_is_rounded_once() {
        let beside = 2.5 + 2f64.powi(-50);
        assert_eq!(<E2m1 as FromPrimitive>::from_f64(2.5).map(E2m1::to_bits), Some(4));
        assert_eq!(<E2m1 as FromPrimitive>::from_f64(beside).map(E2m1::to_bits), Some(5));
        assert_eq!(<E8m0 as FromPrimitive>::from_f64(1.5 - 2f64.powi(-50)), Some(E8m0::ONE));
        let tie = 1.0625; // between 1 and 1.125
        assert_eq!(<E4m3 as FromPrimitive>::from_f64(tie), Some(E4m3::ONE));
        let above = <E4m3 as FromPrimitive>::from_f64(tie + 2f64.powi(-50));
        assert_eq!(above.map(E4m3::to_bits), Some(0x39));
    }

    #[test]
    fn numbers_saturate_and_nan_is_each_types_own() {
        assert_eq!(<E2m1 as FromPrimitive>::from_i64(-9), Some(E2m1::from_bits(0xF)));
        assert_eq!(<E4m3 as FromPrimitive>::from_u64(u64::MAX), Some(E4m3::MAX));
        assert_eq!(<E8m0 as FromPrimitive>::from_f64(1e300), Some(E8m0::MAX));
        assert_eq!(<E8m0 as FromPrimitive>::from_f64(f64::NAN), Some(E8m0::NAN));
        assert_eq!(E4m3::NAN.to_i64(), None);
        assert_eq!((E2m1::from_bits(5).to_i64(), E4m3::MAX.to_u64()), (Some(3), Some(448)));
    }
}
