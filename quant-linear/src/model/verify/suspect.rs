//! Bytes that are legal and improbable: what they suggest, and how strongly.
//!
//! | kind | evidence |
//! |---|---|
//! | `suspect-reciprocal-global-scale` | typical values outside 2^-17 to 2^3, inside with 1 / g |
//! | `suspect-missing-global-scale` | values so large, g = 1, scales up to e4m3's top |
//! | `suspect-e4m3-as-e8m0` | e8m0 bytes low or spread as no weight's powers of two are |
//! | `suspect-e8m0-as-e4m3` | e4m3 bytes as few and as near to the top as e8m0's around 2^-6 |
//! | `suspect-factor-four` | a layer 4 times as large or small as all others of its name |
//! | `suspect-swizzled-scales`, `suspect-row-major-scales` | see `order` |
//! | `suspect-swapped-nibbles` | see `pairs` |
//!
//! **What cannot be told.** Nibbles that are swapped in every layer that shares an input, where no
//! pair of layers in a row shows it; a factor of 4 in all layers of a name; the order of scales of
//! weights whose rows are all alike. A file without such suspicions is not proven right: compare it
//! to the dense checkpoint for that.

use std::collections::BTreeMap;

use fp4_core::ScaleType;

use crate::layout::{Activations, Layer};
use crate::model::verify::bytes::Seen;
use crate::model::verify::pairs::Pairs;
use crate::model::verify::structure::split;
use crate::model::verify::{Finding, Severity};

/// log2 of mean magnitudes of weights: real ones lie around 2^-6.
const PLAUSIBLE: std::ops::RangeInclusive<f64> = -17.0..=3.0;

/// Global scales of activations, as they multiply: 1 / 2688 of a largest value as a rule.
const INPUTS: std::ops::RangeInclusive<f32> = 1e-9..=1e3;

/// Fewest groups whose bytes are judged as a distribution.
const ENOUGH: u64 = 64;

/// The scale bytes as a distribution, without zeros and NaN.
struct Spread {
    median: usize,
    top: usize,
    /// Bits.
    entropy: f64,
    /// From the 5th to the 95th percentile.
    width: usize,
}

impl Spread {
    fn of(scale_type: ScaleType, bytes: &[u64; 256]) -> Option<Self> {
        let legal = |byte: &usize| *byte > 0 && scale_type.parts(*byte as u8).is_some();
        let some: Vec<_> = (0..256).filter(|b| bytes[*b] > 0).filter(legal).collect();
        let all: u64 = some.iter().map(|&byte| bytes[byte]).sum();
        if all < ENOUGH {
            return None;
        }
        let quantile = |share: f64| {
            let (mut below, at) = (0, (share * all as f64) as u64);
            let found = some.iter().find(|&&byte| {
                below += bytes[byte];
                below > at
            });
            found.copied().unwrap_or_default()
        };
        let entropy = some.iter().map(|&byte| bytes[byte] as f64 / all as f64);
        let entropy = entropy.map(|p| -p * p.log2()).sum();
        let (low, high) = (quantile(0.05), quantile(0.95));
        let top = some.last().copied()?;
        Some(Spread { median: quantile(0.5), top, entropy, width: high - low })
    }
}

/// What a layer suggests by itself.
pub(super) fn of_layer(layer: &Layer, seen: &Seen, findings: &mut Vec<Finding>) {
    let Some(typical) = seen.typical() else { return };
    let (ty, module) = (layer.shape.scale_type(), &layer.module);
    let spread = Spread::of(ty, &seen.bytes());
    let byte_type = spread.as_ref().and_then(|spread| byte_type(ty, spread, typical));
    if let Some((kind, message)) = byte_type {
        findings.push(Finding::warning(kind, module, message));
    } else if let Some((kind, message)) = magnitude(layer, spread.as_ref(), typical) {
        findings.push(Finding::warning(kind, module, message));
    } else {
        let largest = seen.largest();
        if !(1e-6..=1e4).contains(&largest) {
            let message = format!(
                "the largest value is {largest:e}, and a middling row has a mean of {}: look at \
                 the global scale {:e} and the largest scale byte",
                power(typical),
                layer.scalars.weight_global_scale
            );
            findings.push(Finding::warning("absurd-values", module, message));
        }
    }
    codes(layer, seen, findings);
    inputs(layer, findings);
}

/// Global scales of activations by which no network's values are divided.
fn inputs(layer: &Layer, findings: &mut Vec<Finding>) {
    let scales = layer.inputs.iter().flatten();
    let absurd = |input: &&crate::layout::Global| !INPUTS.contains(&input.multiplier());
    if let Some(input) = scales.filter(|_| layer.is_foreign()).find(absurd) {
        // How far eight bits, or another scheme, reach is not known here.
        let reach = match layer.meant() {
            Activations::Same => {
                let largest = 2688.0 * f64::from(input.multiplier());
                format!("activations up to {largest:e} would be quantized, and no network has such")
            }
            _ => "no network's activations need such".into(),
        };
        let message = format!(
            "the global scale of its input is {:e}, in the contract's sense {:e}: {reach}; is it \
             stored the other way round, or was it never calibrated?",
            input.value,
            input.multiplier()
        );
        findings.push(Finding::warning("absurd-scalar", &layer.module, message));
    }
}

/// Bytes that look like those of the other type.
fn byte_type(ty: ScaleType, spread: &Spread, typical: f64) -> Option<(&'static str, String)> {
    let Spread { median, top, entropy, width } = *spread;
    let shown = format!(
        "the median byte is {median}, 90% of them lie within {width} of each other, and their \
         entropy is {entropy:.1} bits"
    );
    let low = median < 110 && entropy > 2.5;
    let wide = entropy > 3.7 || width > 24;
    match ty {
        ScaleType::E8M0 if top <= 0x7E && (low || wide) => {
            let message = format!(
                "the scale bytes are read as e8m0, which makes a middling row's mean {}; {shown}, \
                 where real weights in e8m0 have a few powers of two around 120: strong evidence \
                 of e4m3 bytes; read them as e4m3 (`--scale-type`), or write the type that they \
                 are",
                power(typical)
            );
            Some(("suspect-e4m3-as-e8m0", message))
        }
        ScaleType::E4M3 if typical > 4.0 && entropy < 3.3 && (100..=0x7E).contains(&median) => {
            let message = format!(
                "the scale bytes are read as e4m3, which makes a middling row's mean {}; {shown}, \
                 as e8m0 bytes of real weights do: strong evidence; read them as e8m0 \
                 (`--scale-type`), or write the type that they are",
                power(typical)
            );
            Some(("suspect-e8m0-as-e4m3", message))
        }
        _ => None,
    }
}

/// Values too large or too small, and what would explain them.
fn magnitude(
    layer: &Layer,
    spread: Option<&Spread>,
    typical: f64,
) -> Option<(&'static str, String)> {
    if PLAUSIBLE.contains(&typical) {
        return None;
    }
    let stored = layer.globals.first().copied()?;
    let factor = f64::from(stored.multiplier());
    let otherwise = typical - 2.0 * factor.log2();
    let (is, should) = match stored.divides {
        true => ("divides", "multiplies"),
        false => ("multiplies", "divides"),
    };
    let e4m3 = layer.shape.scale_type() == ScaleType::E4M3;
    if factor != 1.0 && PLAUSIBLE.contains(&otherwise) {
        let message = format!(
            "a middling row's mean is {} under the global scale {:e}, which {is}; if it {should} \
             the mean is {}: strong evidence that it is stored the other way round; store its \
             reciprocal, or read the file by the layout that it has",
            power(typical),
            stored.value,
            power(otherwise)
        );
        return Some(("suspect-reciprocal-global-scale", message));
    }
    if e4m3 && factor == 1.0 && typical > 0.0 && spread.is_some_and(|spread| spread.top >= 0x70) {
        let message = format!(
            "a middling row's mean is {} under a global scale of 1 or none, and the scales reach \
             up to byte 0x{:02X}, as they do where a global scale was divided out: evidence that \
             it was lost; put it back, or quantize the layer again",
            power(typical),
            spread.map_or(0, |spread| spread.top)
        );
        return Some(("suspect-missing-global-scale", message));
    }
    let message = format!(
        "a middling row's mean is {}, far from any weight's (2^-17 to 2^3); look at the global \
         scale {:e} and at the type of the scale bytes",
        power(typical),
        stored.value
    );
    Some(("absurd-values", message))
}

/// Scales that do not fit their codes: a good one makes the largest code of a group 3, 4 or 6.
fn codes(layer: &Layer, seen: &Seen, findings: &mut Vec<Finding>) {
    let used = seen.groups() - seen.largest_codes[0];
    if used < ENOUGH {
        return;
    }
    let small: u64 = seen.largest_codes[1..4].iter().sum();
    if small as f64 > 0.9 * used as f64 {
        let message = format!(
            "in {small} of {used} groups no code is above 1.5 of 6, so the scales are at least 4 \
             times as large as the weights need: an exponent was applied twice, or the scales are \
             of another tensor; quantize the layer again"
        );
        findings.push(Finding::warning("unused-codes", &layer.module, message));
    }
    let saturated = seen.saturated();
    if saturated > 0.4 {
        let message = format!(
            "{:.0}% of the codes that are not zero are the largest, so the scales are too small \
             for the weights and cut them off, as where an exponent was applied twice; quantize \
             the layer again",
            100.0 * saturated
        );
        findings.push(Finding::warning("saturated-codes", &layer.module, message));
    }
}

/// A power of two for people.
fn power(log2: f64) -> String {
    format!("{:.1e}", log2.exp2())
}

/// What layers suggest together.
#[derive(Debug, Default)]
pub(super) struct All {
    /// log2 of the typical magnitude, by the last part of the name.
    sizes: BTreeMap<String, Vec<(String, f64)>>,
    pairs: Pairs,
}

/// Fewest layers of one name that say how large they are.
const FEW: usize = 5;

impl All {
    /// Takes a layer; they come sorted by name.
    pub(super) fn add(&mut self, layer: &Layer, seen: &Seen, findings: &mut Vec<Finding>) {
        if let Some(typical) = seen.typical() {
            let of_role = self.sizes.entry(split(&layer.module).1.to_string()).or_default();
            of_role.push((layer.module.clone(), typical));
        }
        self.pairs.add(layer, seen, findings);
    }

    /// Reports what needs all of them.
    pub(super) fn finish(self, findings: &mut Vec<Finding>) {
        self.pairs.finish(findings);
        for (role, sizes) in self.sizes.into_iter().filter(|(_, sizes)| sizes.len() >= FEW) {
            let middle = median(sizes.iter().map(|(_, size)| *size));
            let spread = median(sizes.iter().map(|(_, size)| (size - middle).abs()));
            for (module, size) in &sizes {
                let off = size - middle;
                if (off.abs() - 2.0).abs() > 0.4 || spread > 0.25 {
                    continue;
                }
                let message = format!(
                    "it is {:.1} times as {} as the median of {} layers named `{role}`, which are \
                     within a factor of {:.2} of it as a rule: some evidence that an exponent was \
                     applied twice, or not at all; compare the layer to the dense checkpoint",
                    off.abs().exp2(),
                    if off > 0.0 { "large" } else { "small" },
                    sizes.len(),
                    spread.exp2()
                );
                let (severity, kind) = (Severity::Warning, "suspect-factor-four");
                findings.push(Finding::new(severity, kind, module, message));
            }
        }
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
