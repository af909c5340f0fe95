//! Probe of the thread's floating-point environment ([C9]).
//!
//! Flush-to-zero and a changed rounding mode are per thread, set by other libraries without
//! telling anyone, and change bits. The core cannot read the control register (that takes
//! `unsafe`), so it computes five sums whose results differ under every wrong setting:
//!
//! ```text
//! 2^-149 * 1           = 2^-149   0 if inputs are flushed
//! 2^-126 * 0.5         = 2^-127   0 if results are flushed
//! 1 + 2^-24            = 1        larger if rounding up
//! 1 + 1.5 * 2^-24      > 1        1 if rounding down or toward zero
//! -1 - 2^-24           = -1       smaller if rounding down
//! ```
//!
//! [`core::hint::black_box`] keeps the compiler from folding them.
//!
//! [C9]: crate::contract#c9

use core::hint::black_box;

use crate::error::{Error, FpEnvironment};

/// Checks that this thread computes IEEE-754 f32 with subnormals kept and rounding to nearest
/// even. Takes a few nanoseconds; every entry point of a backend calls it (C9).
///
/// # Errors
/// [`Error::Environment`] naming what is wrong.
pub fn check_environment() -> Result<(), Error> {
    let subnormal = black_box(f32::from_bits(1));
    let smallest_normal = black_box(f32::MIN_POSITIVE);
    let kept_input = subnormal * black_box(1.0);
    let kept_result = smallest_normal * black_box(0.5);
    if black_box(kept_input).to_bits() != 1 || black_box(kept_result).to_bits() != 0x0040_0000 {
        return Err(Error::Environment(FpEnvironment::FlushToZero));
    }
    let one = black_box(1.0f32);
    let half_unit = black_box(f32::from_bits(0x3380_0000)); // 2^-24
    let up = black_box(one + half_unit);
    let nearest = black_box(one + black_box(1.5) * half_unit);
    let down = black_box(-one - half_unit);
    if up != 1.0 || nearest == 1.0 || down != -1.0 {
        return Err(Error::Environment(FpEnvironment::RoundingMode));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_environment_passes() {
        assert_eq!(check_environment(), Ok(()));
    }
}
