//! Counting what a quantization did, at a few instructions a group (C4).
//!
//! Kernels tell of each group its largest magnitude and what a unit of a code is worth. That clears
//! nearly every group of everything that is counted:
//!
//! ```text
//! d is no NaN, and
//! amax = 0, or  2^-100 <= amax < 0.99 * (largest scale * ss * gs)     the scale was not clamped
//!               and 0.3 |d| <= amax <= 6.9 |d|                        none clipped, not all flushed
//! ```
//!
//! The margins are far wider than the roundings of the products here, and a NaN fails every
//! comparison. The groups that are left go to [`reference::count_group`], core's own rule.
//!
//! Where the scale byte is computed, and not given, amax alone clears nearly all of them before
//! that ([`Plain`]): the byte is the nearest to s = amax / (ss * gs), so amax / d is ss times
//!
//! ```text
//! e8m0, s >= 2^-126      0.75 to 1.5          half an octave
//! e4m3, s >= 2^-7        0.875 to 1.125       half a unit of 2^-9, or of 2^-3 of the octave
//! ```
//!
//! and if that is inside of 0.3 to 6.9 with a percent to spare, only the ends of the range of amax
//! are left to compare with.
//!
//! Worked example, NVFP4 with gs = 0.1 and ss = 6: amax 3 has d = 0.5, and 0.15 <= 3 <= 3.45:
//! cleared.

use fp4_core::{QuantCounts, QuantSpec, ScaleRule, ScaleType, reference};

/// Most groups of a run.
pub(crate) const GROUPS: usize = 32;

/// Magnitudes below this are not cleared: products with the margins are normal above it.
pub(crate) const LEAST: f32 = 1.0 / (1u128 << 100) as f32;
/// What clears a group of clipped elements: amax times this is at most |d|.
pub(crate) const NOT_CLIPPED: f32 = 1.0 / 6.9;
/// What clears a group of being flushed: amax times this is at least |d|.
pub(crate) const NOT_FLUSHED: f32 = 1.0 / 0.3;

/// Largest magnitudes, as bits, that clear a group whose scale byte was computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plain {
    /// The least, above zero.
    pub(crate) least: i32,
    /// The first past the largest.
    pub(crate) end: i32,
    /// Zero, which clears too, or what no magnitude is.
    pub(crate) zero: i32,
}

impl Plain {
    /// Clears nothing.
    const NONE: Plain = Plain { least: i32::MAX, end: 0, zero: -1 };

    fn new(spec: &QuantSpec, given: bool, top: f32) -> Self {
        let (ss, divisor) = (spec.scale_scale(), spec.scale_scale() * spec.global_scale());
        let (least, from, to) = match spec.scale_type() {
            ScaleType::E8M0 => (f32::MIN_POSITIVE, 0.75, 1.5),
            ScaleType::E4M3 => (1.0 / 128.0, 0.875, 1.125),
        };
        let inside = ss * from * 0.99 >= 0.3 && ss * to * 1.01 <= 6.9;
        // A subnormal divisor was rounded by more than the percent.
        if given || spec.rule() != ScaleRule::Nearest || !inside || divisor < LEAST {
            return Plain::NONE;
        }
        let least = (least * divisor * 1.01).max(LEAST);
        // Bits of non-negative floats order as their values.
        Plain { least: least.to_bits() as i32, end: top.to_bits() as i32, zero: 0 }
    }

    /// True if a largest magnitude is one of these.
    #[inline(always)]
    fn has(&self, amax: f32) -> bool {
        let bits = amax.to_bits() as i32;
        (bits >= self.least) & (bits < self.end) | (bits == self.zero)
    }
}

/// What is known of the groups of a run when it has been encoded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Groups {
    /// The largest magnitude, NaN if there is one.
    pub(crate) largest: [f32; GROUPS],
    /// What a unit of a code is worth.
    pub(crate) units: [f32; GROUPS],
    /// No scale of a group whose largest magnitude is below this was clamped.
    pub(crate) top: f32,
    /// What clears a group at once.
    pub(crate) plain: Plain,
    /// True if no group has anything to count.
    pub(crate) clear: bool,
}

impl Groups {
    /// For groups whose scale bytes are computed, or given.
    pub(crate) fn new(spec: &QuantSpec, given: bool) -> Self {
        // Infinite where no finite magnitude has so large a scale.
        let top = spec.scale_type().max() * (spec.scale_scale() * spec.global_scale()) * 0.99;
        let plain = Plain::new(spec, given, top);
        Groups { largest: [0.0; GROUPS], units: [0.0; GROUPS], top, plain, clear: true }
    }

    /// True if there is nothing to count in group `g`.
    #[inline(always)]
    fn clears(&self, g: usize) -> bool {
        let (amax, d) = (self.largest[g], self.units[g].abs());
        let inside = (amax >= LEAST) & (amax < self.top);
        let by_d = (amax * NOT_CLIPPED <= d) & (amax * NOT_FLUSHED >= d);
        ((amax == 0.0) & (d >= 0.0)) | (inside & by_d)
    }

    /// Looks at the first `count` groups, for kernels that have no vectors of them.
    #[inline(always)]
    pub(crate) fn look(&mut self, count: usize) {
        let plain = self.largest[..count].iter().fold(true, |all, &m| all & self.plain.has(m));
        self.clear = plain || (0..count).all(|g| self.clears(g));
    }
}

/// Counts the groups that are not clear.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counter<'a> {
    spec: &'a QuantSpec,
    given: bool,
}

impl<'a> Counter<'a> {
    pub(crate) fn new(spec: &'a QuantSpec, given: bool) -> Self {
        Counter { spec, given }
    }

    /// Counts a run of whole groups; elements and groups are counted elsewhere.
    #[inline]
    pub(crate) fn run(
        &self,
        y: &[f32],
        groups: &Groups,
        scales: &[u8],
        codes: &[u8],
        to: &mut QuantCounts,
    ) {
        if !groups.clear {
            self.not_clear(y, groups, scales, codes, to);
        }
    }

    #[cold]
    fn not_clear(
        &self,
        y: &[f32],
        groups: &Groups,
        scales: &[u8],
        codes: &[u8],
        to: &mut QuantCounts,
    ) {
        let group = self.spec.group().get();
        let encoded = y.chunks_exact(group).zip(codes.chunks_exact(group / 2)).zip(scales);
        for (g, ((y, codes), &scale)) in encoded.enumerate() {
            if !groups.clears(g) {
                let counts = reference::count_group(y, self.spec, scale, self.given, codes);
                to.clipped += counts.clipped;
                to.scale_max += counts.scale_max;
                to.flushed += counts.flushed;
                to.nan_groups += counts.nan_groups;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fp4_core::{Format, GroupSize};

    #[test]
    fn what_is_plain_clears_by_the_rule() {
        let (mut plain, mut checked) = (0, 0);
        for scale_type in ScaleType::ALL {
            for ss in [0.3, 0.41, 0.5, 1.0, 3.7, 4.0, 4.5, 4.6, 5.0, 6.0, 6.07, 6.08, 6.5, 12.0] {
                for gs in [1.0, 1.0 / 3.0, 0.1, 1e-3, 1e-30, 1e-38, 1e-40, 3e-45, 1e30] {
                    let Ok(spec) = QuantSpec::new(scale_type, GroupSize::G16, gs, ss) else {
                        continue;
                    };
                    let mut groups = Groups::new(&spec, false);
                    // Around the ends and around every place where a scale byte changes.
                    let bytes = (0..=255u8).map(|byte| spec.unit(byte).abs() * ss);
                    let ends =
                        [groups.plain.least, groups.plain.end].map(|e| f32::from_bits(e as u32));
                    let places = bytes.chain(ends).chain([0.0, LEAST]);
                    for place in
                        places.flat_map(|p| [1.0, 1.0625, 1.125, 1.25, 1.5, 0.75].map(|by| by * p))
                    {
                        for step in -2..=2 {
                            let amax = f32::from_bits(place.to_bits().saturating_add_signed(step));
                            groups.largest[0] = amax;
                            groups.units[0] = spec.unit(spec.encode_scale(amax));
                            checked += 1;
                            if groups.plain.has(amax) {
                                assert!(groups.clears(0), "{spec:?} {amax:e}");
                                plain += 1;
                            }
                        }
                    }
                }
            }
        }
        println!("{plain} of {checked} are plain");
        assert!(plain > 100_000 && plain < checked);
        // The usual settings have plain groups, given scale bytes never.
        for format in Format::ALL {
            let spec = QuantSpec::usual(format);
            assert!(Groups::new(&spec, false).plain.has(1.0));
            assert_eq!(Groups::new(&spec, true).plain, Plain::NONE);
        }
        assert!(!Plain::NONE.has(0.0) && !Plain::NONE.has(1.0) && !Plain::NONE.has(f32::NAN));
    }
}
