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
//! Worked example, NVFP4 with gs = 0.1 and ss = 6: amax 3 has d = 0.5, and 0.15 <= 3 <= 3.45:
//! cleared.

use fp4_core::{QuantCounts, QuantSpec, reference};

/// Most groups of a run.
pub(crate) const GROUPS: usize = 8;

/// Magnitudes below this are not cleared: products with the margins are normal above it.
pub(crate) const LEAST: f32 = 1.0 / (1u128 << 100) as f32;
/// What clears a group of clipped elements: amax times this is at most |d|.
pub(crate) const NOT_CLIPPED: f32 = 1.0 / 6.9;
/// What clears a group of being flushed: amax times this is at least |d|.
pub(crate) const NOT_FLUSHED: f32 = 1.0 / 0.3;

/// What is known of the groups of a run when it has been encoded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Groups {
    /// The largest magnitude, NaN if there is one.
    pub(crate) largest: [f32; GROUPS],
    /// What a unit of a code is worth.
    pub(crate) units: [f32; GROUPS],
    /// No scale of a group whose largest magnitude is below this was clamped.
    pub(crate) top: f32,
    /// True if no group has anything to count.
    pub(crate) clear: bool,
}

impl Groups {
    pub(crate) fn new(spec: &QuantSpec) -> Self {
        // Infinite where no finite magnitude has so large a scale.
        let top = spec.scale_type().max() * (spec.scale_scale() * spec.global_scale()) * 0.99;
        Groups { largest: [0.0; GROUPS], units: [0.0; GROUPS], top, clear: true }
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
        self.clear = (0..count).fold(true, |all, g| all & self.clears(g));
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
