//! What a quantization did to the values: counts that every backend agrees on.
//!
//! ```text
//! clipped      elements with |x / d| > 7, infinities included: more than half a step past 6;
//!              of MXINT8 those whose quotient is beyond 127.5
//! scale_max    groups whose computed scale was clamped to the largest finite one
//! flushed      groups with amax > 0 and all codes +-0, or all elements 0
//! nan_groups   groups whose scale is NaN
//! ```
//!
//! A quotient between 6 and 7 is no loss that a user would call clipping: the rounding of the
//! block scale alone takes an element there.

use core::ops::{Add, AddAssign};

/// What a quantization did to the values, equal over backends.
#[non_exhaustive]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QuantCounts {
    /// Elements quantized.
    pub elements: u64,
    /// Groups quantized.
    pub groups: u64,
    /// Elements whose quotient x / d was beyond +-7, infinities included: they became +-6. Of
    /// MXINT8, beyond +-127.5: they became +-127.
    pub clipped: u64,
    /// Groups whose computed scale was clamped to the largest finite scale. A given scale (C4.2)
    /// is not computed and does not count.
    pub scale_max: u64,
    /// Groups with a nonzero element and none that is NaN, all of whose codes or elements are
    /// +-0.
    pub flushed: u64,
    /// Groups whose scale is NaN.
    pub nan_groups: u64,
}

impl AddAssign for QuantCounts {
    fn add_assign(&mut self, other: QuantCounts) {
        self.elements += other.elements;
        self.groups += other.groups;
        self.clipped += other.clipped;
        self.scale_max += other.scale_max;
        self.flushed += other.flushed;
        self.nan_groups += other.nan_groups;
    }
}

impl Add for QuantCounts {
    type Output = QuantCounts;

    fn add(mut self, other: QuantCounts) -> QuantCounts {
        self += other;
        self
    }
}

impl core::iter::Sum for QuantCounts {
    fn sum<I: Iterator<Item = QuantCounts>>(counts: I) -> QuantCounts {
        counts.fold(QuantCounts::default(), Add::add)
    }
}
