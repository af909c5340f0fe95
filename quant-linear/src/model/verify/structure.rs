//! What the headers show: layers that are not whole, parts of none, empty tensors, and global
//! scales of projections that engines fuse.

use std::collections::BTreeMap;

use fp4_core::Format;
use safetensors::Dtype;

use crate::checkpoint::{Checkpoint, TensorSource};
use crate::layout::{ALL, At, Global, Layers};
use crate::model::ties::{CROSS, Tie};
use crate::model::verify::{Finding, Severity};

/// Projections that read the same input, and that engines fuse into one product, by the last part
/// of their names.
pub(super) fn fused_sets() -> impl Iterator<Item = &'static [&'static str]> {
    Tie::ALL.into_iter().flat_map(|tie| tie.sets().iter().copied())
}

/// A module's name as its parent and its last part.
pub(super) fn split(module: &str) -> (&str, &str) {
    module.rsplit_once('.').unwrap_or(("", module))
}

pub(super) fn check(checkpoint: &Checkpoint, layers: &Layers, findings: &mut Vec<Finding>) {
    for (module, error) in &layers.bad {
        findings.push(Finding::error("broken-layer", module, error.to_string()));
    }
    if layers.good.is_empty() && layers.bad.is_empty() {
        let message = format!(
            "none of {} tensors belongs to an FP4 layer of a layout that is known here; is it a \
             dense checkpoint, or one of another quantization?",
            checkpoint.tensors().len()
        );
        findings.push(Finding::of_all(Severity::Warning, "no-layers", message));
    }
    if let Some((first, message)) = layers.denial(checkpoint) {
        findings.push(Finding::error("config-layout", first, message));
    }
    strays(checkpoint, layers, findings);
    for (name, tensor) in checkpoint.tensors() {
        if tensor.info.shape.contains(&0) {
            let message = format!("its shape is {:?}: it holds nothing", tensor.info.shape);
            findings.push(Finding::warning("empty-tensor", name, message));
        }
    }
    fused(layers, findings);
}

/// Tensors named like a part of a quantized layer that belong to none, by module.
fn strays(checkpoint: &Checkpoint, layers: &Layers, findings: &mut Vec<Finding>) {
    const MODULE: &str = "m";
    let parts: Vec<String> = ALL.iter().flat_map(|layout| layout.tensors(MODULE)).collect();
    // A dense tensor has one of these two, and means nothing by it.
    let suffixes = parts.iter().filter_map(|part| part.strip_prefix(MODULE));
    let suffixes: std::collections::BTreeSet<&str> =
        suffixes.filter(|part| !["", ".weight"].contains(part)).collect();
    let mut strays: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for name in checkpoint.tensors().keys().filter(|name| !layers.tensors.contains(*name)) {
        let modules = suffixes.iter().filter_map(|s| Some((name.strip_suffix(s)?, *s)));
        // `m_scales` and `m.scales` differ in their modules: the longest part of a name wins.
        let Some((module, suffix)) = modules.min_by_key(|(module, _)| module.len()) else {
            continue;
        };
        if !layers.denied.contains_key(module) && !is_other(checkpoint, module, suffix, name) {
            strays.entry(module).or_default().push(name);
        }
    }
    for (module, names) in strays {
        let has = match checkpoint.header(&format!("{module}.weight")) {
            Some((dtype, _)) => format!("its `weight` is {dtype}"),
            None => "it has no `weight`".into(),
        };
        let message = format!(
            "{} look{} like parts of a quantized layer and belong to none ({has}): were codes or \
             scales left out when the file was written? export it again, or remove them",
            names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
            if names.len() == 1 { "s" } else { "" },
        );
        findings.push(Finding::warning("stray-tensor", module, message));
    }
}

/// Does the tensor belong to another kind of quantization, or to none?
fn is_other(checkpoint: &Checkpoint, module: &str, suffix: &str, name: &str) -> bool {
    let dtype = |name: &str| checkpoint.header(name).map(|(dtype, _)| dtype);
    let of = |suffix: &str| dtype(&format!("{module}.{suffix}"));
    let byte = matches!(dtype(name), Some(Dtype::U8 | Dtype::F8_E8M0 | Dtype::F8_E4M3));
    let integers = |dtype| matches!(dtype, Some(Dtype::I8 | Dtype::I32 | Dtype::I64));
    // Experts that are one parameter have no `.weight`.
    let weights = [of("weight"), dtype(module)];
    let eight_bits =
        weights.iter().any(|dtype| matches!(dtype, Some(Dtype::F8_E4M3 | Dtype::F8_E5M2)));
    // Too common a name to mean anything but as bytes.
    let common = [".scale", ".scales", "_scales", ".transform"].contains(&suffix) && !byte;
    let ours = ["weight", "weight_packed", "qweight"];
    // A block of ggml's holds its scales itself.
    let blocks = checkpoint.ggml_type(&format!("{module}.weight")).is_some();
    // MLX has words and scale bytes for eight bits too, and says so.
    let at = At { source: checkpoint, module };
    let mlx = of("weight") == Some(Dtype::U32)
        && crate::layout::named("mlx").is_some_and(|mlx| mlx.says(&at) == Some(false));
    eight_bits
        || blocks
        || mlx
        || common
        || ours.iter().any(|name| integers(of(name)))
        || ["biases", "qzeros", "g_idx"].iter().any(|name| of(name).is_some())
}

/// Global scales of one product that differ.
fn fused(layers: &Layers, findings: &mut Vec<Finding>) {
    let mut parents: BTreeMap<&str, Vec<(&str, &crate::layout::Layer)>> = BTreeMap::new();
    for (module, layer) in &layers.good {
        let (parent, role) = split(module);
        parents.entry(parent).or_default().push((role, layer));
    }
    for (parent, of_parent) in parents {
        for roles in fused_sets() {
            // Queries of attention across two sequences read the other one.
            let across = roles.len() == 3 && parent.split('.').any(|part| CROSS.contains(&part));
            let roles = if across { &roles[1..] } else { roles };
            let of = |role: &&str| {
                let found = of_parent.iter().find(|(other, _)| other == role);
                found.filter(|(_, layer)| layer.format() == Some(Format::NvFp4)).copied()
            };
            let members: Vec<_> = roles.iter().filter_map(of).collect();
            let scales = |pick: &dyn Fn(&crate::layout::Layer) -> Option<Global>| {
                let each = members.iter().filter_map(|(role, layer)| Some((*role, pick(layer)?)));
                each.map(|(role, global)| (role, global.value)).collect::<Vec<_>>()
            };
            let weights = scales(&|layer| layer.globals.first().copied());
            let inputs = scales(&|layer| layer.inputs.as_ref()?.first().copied());
            for (what, scales) in [("weight", weights), ("input", inputs)] {
                if scales.windows(2).all(|pair| pair[0].1 == pair[1].1) {
                    continue;
                }
                let each: Vec<_> =
                    scales.iter().map(|(role, scale)| format!("{role} {scale:e}")).collect();
                let message = format!(
                    "the {what} global scales of one product differ ({}): an engine that fuses \
                     these layers takes one scale for all, and is wrong by the ratio in the \
                     others; quantize them with one (`--tie`)",
                    each.join(", ")
                );
                findings.push(Finding::warning("fused-scales", parent, message));
            }
        }
    }
}
