//! When a layer warns of its activations: they saturate, or vanish.
//!
//! ```text
//! saturated   groups whose scale was clamped, of all groups, or elements clipped, of all elements:
//!             more than SATURATED_SHARE in a call
//!             of rows with scales of their own the elements alone: their largest group has the
//!             largest scale, and a rounding may clamp it, at no loss
//! flushed     groups that were not zeros and became zeros: more than FLUSHED_SHARE of all groups
//! ```
//!
//! A stored global scale gs reaches from about `gs * ss * 2^-10` to `gs * ss * 448` (NVFP4; of 0.1
//! and 6 that is 6e-4 to 268.8), whatever the model's activations are. What is above is written as
//! the largest, infinities too; a group that is wholly below becomes zeros. Good data does neither,
//! so the shares are small: one saturated value may be the one that a model is built around,
//! whereas a few groups of next to nothing are lost without harm.
//!
//! Both counts come with the quantization, so a call that has nothing to say does two comparisons.
//! Nothing is locked, and the values are looked at only for the one warning.

use fp4_core::{Float, FloatSlice, Format, QuantCounts, with_floats};

use crate::layer::{ActivationEncoding, Loaded};

/// A layer says that its activations saturate where more than this share of a call's groups, or of
/// its elements, does: one in a hundred thousand.
pub const SATURATED_SHARE: f64 = 1e-5;

/// A layer says that its activations vanish where more than this share of a call's groups became
/// zeros: one in a hundred.
pub const FLUSHED_SHARE: f64 = 1e-2;

/// A scale that reaches so far reaches all that a model has.
const ALL_OF_F32: f32 = 1e37;

/// What the counts of a call deserve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Saturation {
    pub(crate) saturated: bool,
    pub(crate) flushed: bool,
}

/// Whether `part` is more than a share of `whole`.
fn exceeds(part: u64, whole: u64, share: f64) -> bool {
    part > 0 && part as f64 > share * whole as f64
}

impl Saturation {
    pub(crate) fn of(counts: &QuantCounts, row_scales: bool) -> Self {
        let QuantCounts { elements, groups, clipped, scale_max, flushed, .. } = *counts;
        Saturation {
            saturated: !row_scales && exceeds(scale_max, groups, SATURATED_SHARE)
                || exceeds(clipped, elements, SATURATED_SHARE),
            flushed: exceeds(flushed, groups, FLUSHED_SHARE),
        }
    }

    /// The warning of a layer that saturates, without its name.
    pub(crate) fn told(counts: &QuantCounts, loaded: &Loaded, x: Option<FloatSlice<'_>>) -> String {
        let QuantCounts { elements, groups, clipped, scale_max, .. } = *counts;
        let share = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
        let largest = match x.map(largest_finite) {
            Some((largest, true)) => {
                format!(", the largest finite one {largest:.3e}, beside infinities")
            }
            Some((largest, false)) => format!(", the largest {largest:.3e}"),
            None => String::new(),
        };
        let turned = if loaded.transform.is_some() { " before the transform" } else { "" };
        let spec = &loaded.quantized_by;
        let reach = spec.global_scale() * spec.scale_scale() * spec.scale_type().max();
        let (reach, remedy) = match loaded.activations {
            ActivationEncoding::Own if reach < ALL_OF_F32 => (
                format!("the global scale {:e} reaches to {reach:.3e}", spec.global_scale()),
                remedy(loaded),
            ),
            other => (
                format!("{other} reaches to the end of f32, where they were"),
                "Look for what makes them in the layers before",
            ),
        };
        format!(
            "activations saturate: {clipped} of {elements} were clipped ({:.3} %), and {scale_max} \
             of {groups} groups have the largest scale ({:.3} %){largest}{}; {reach}. {remedy}; \
             this is said once, `set_counting` counts",
            share(clipped, elements),
            share(scale_max, groups),
            if largest.is_empty() { "" } else { turned },
        )
    }

    /// The warning of a layer whose activations vanish, without its name.
    pub(crate) fn told_flushed(counts: &QuantCounts, loaded: &Loaded) -> String {
        let QuantCounts { groups, flushed, .. } = *counts;
        let why = match loaded.activations {
            ActivationEncoding::Own => {
                format!("the global scale {:e} is too large for them", loaded.spec.global_scale())
            }
            other => format!("{other} does not reach so far below a row's largest value"),
        };
        format!(
            "activations vanish: {flushed} of {groups} groups became zeros ({:.3} %); {why}. {}; \
             this is said once, `set_counting` counts",
            100.0 * flushed as f64 / groups.max(1) as f64,
            remedy(loaded),
        )
    }
}

/// What mends it.
fn remedy(loaded: &Loaded) -> &'static str {
    let nvfp4 = loaded.spec.encoding().is_some_and(|e| e == Format::NvFp4.into());
    match (loaded.activations, nvfp4) {
        (ActivationEncoding::Own, true) => {
            "Calibrate the scale by `fp4 calibrate`, or give every row its own: quantize with \
             `--activation-scale row`, or set_activations(OwnRowScales)"
        }
        (ActivationEncoding::Own, false) => {
            "Calibrate the scale by `fp4 calibrate`, or quantize with `--activations mxint8`, or \
             set_activations(MxInt8)"
        }
        (ActivationEncoding::OwnRowScales, _) => {
            "Quantize with `--activations mxint8`, or set_activations(MxInt8)"
        }
        (ActivationEncoding::MxInt8, _) => "Look for what makes them in the layers before",
    }
}

/// The largest finite magnitude, and whether there is an infinity.
fn largest_finite(x: FloatSlice<'_>) -> (f32, bool) {
    with_floats!(FloatSlice, x, x => x.iter().fold((0f32, false), |(largest, infinite), x| {
        let magnitude = Float::to_f32(*x).abs();
        match magnitude.is_infinite() {
            true => (largest, true),
            false => (largest.max(magnitude), infinite), // max ignores a NaN
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_are_bounds_and_nothing_is_no_share() {
        let of = |[clipped, scale_max, flushed]: [u64; 3]| {
            let mut counts = QuantCounts::default();
            (counts.elements, counts.groups) = (1_600_000, 100_000);
            (counts.clipped, counts.scale_max, counts.flushed) = (clipped, scale_max, flushed);
            let Saturation { saturated, flushed } = Saturation::of(&counts, false);
            [saturated, flushed]
        };
        assert_eq!(of([0, 0, 0]), [false, false]);
        assert_eq!(of([16, 1, 1000]), [false, false]);
        assert_eq!(of([17, 1, 1000]), [true, false]);
        assert_eq!(of([16, 2, 1000]), [true, false]);
        assert_eq!(of([16, 1, 1001]), [false, true]);
        assert_eq!(
            Saturation::of(&QuantCounts::default(), false),
            Saturation { saturated: false, flushed: false }
        );
    }

    #[test]
    fn the_largest_finite_value_is_told_beside_infinities_and_nans() {
        assert_eq!(largest_finite((&[1f32, -3.0, f32::NAN, 2.0][..]).into()), (3.0, false));
        assert_eq!(largest_finite((&[1f32, f32::NEG_INFINITY][..]).into()), (1.0, true));
    }
}
