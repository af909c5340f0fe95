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

/// What is known of the groups of a run when it has been encoded.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Groups {
    /// The largest magnitude, NaN if there is one.
    pub(crate) largest: [f32; GROUPS],
    /// What a unit of a code is worth.
    pub(crate) units: [f32; GROUPS],
}

/// Clears groups under one spec, and counts the others.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counter<'a> {
    spec: &'a QuantSpec,
    given: bool,
    /// No scale of a group whose largest magnitude is below this was clamped.
    top: f32,
}

impl<'a> Counter<'a> {
    pub(crate) fn new(spec: &'a QuantSpec, given: bool) -> Self {
        // Infinite where no finite magnitude has so large a scale.
        let top = spec.scale_type().max() * (spec.scale_scale() * spec.global_scale()) * 0.99;
        Counter { spec, given, top }
    }

    /// True if there is nothing to count in a group.
    #[inline(always)]
    fn clears(&self, amax: f32, unit: f32) -> bool {
        let d = unit.abs();
        let inside = (amax >= 2f32.powi(-100)) & (amax < self.top);
        ((amax == 0.0) & (d >= 0.0))
            | (inside & (amax * (1.0 / 6.9) <= d) & (amax * (1.0 / 0.3) >= d))
    }

    /// Counts a run of whole groups.
    #[inline]
    pub(crate) fn run(
        &self,
        y: &[f32],
        groups: &Groups,
        scales: &[u8],
        codes: &[u8],
        to: &mut QuantCounts,
    ) {
        let known = || groups.largest.iter().zip(&groups.units).take(scales.len());
        to.elements += y.len() as u64;
        to.groups += scales.len() as u64;
        if known().fold(true, |all, (&amax, &unit)| all & self.clears(amax, unit)) {
            return;
        }
        let group = self.spec.group().get();
        let encoded = y.chunks_exact(group).zip(codes.chunks_exact(group / 2)).zip(scales);
        for (((y, codes), &scale), (&amax, &unit)) in encoded.zip(known()) {
            if !self.clears(amax, unit) {
                let counts = reference::count_group(y, self.spec, scale, self.given, codes);
                to.clipped += counts.clipped;
                to.scale_max += counts.scale_max;
                to.flushed += counts.flushed;
                to.nan_groups += counts.nan_groups;
            }
        }
    }
}
