//! What header and config say of layers, against what the layers are.
//!
//! | layout | where the config says a format | where it lists dense modules |
//! |---|---|---|
//! | compressed-tensors | `config_groups`: `format`, `weights` | `ignore` |
//! | ModelOpt | `quant_algo`, `quantized_layers`, `config_groups` | `ignore`, `exclude_modules` |
//! | AutoRound | `bits`, `group_size`, `data_type`; `extra_config` | |
//! | Quark | `global_quant_config` | `exclude` |
//! | FP-Quant | `forward_dtype` | `modules_to_not_convert` |
//! | MLX | `quantization`, with modules by name | |
//! | DeepSeek | `expert_dtype` | |

use std::collections::BTreeMap;

use fp4_core::Format;
use serde_json::Value;

use crate::checkpoint::{Checkpoint, Config, TensorSource};
use crate::layout::{ALL, At, Layer, Layers, Layout};
use crate::model::verify::{Finding, Severity};

pub(super) fn check(checkpoint: &Checkpoint, layers: &Layers, findings: &mut Vec<Finding>) {
    let config = checkpoint.config();
    if let Some(problem) = config.problem() {
        let message = problem.to_string();
        findings.push(Finding::of_all(Severity::Error, "config-unreadable", message));
    }
    // GGUF says what it is; a config beside it may be that of the model it was made of.
    if checkpoint.gguf().is_some() {
        return;
    }
    // One finding for all layers of which the same can be said.
    let mut said: BTreeMap<(&'static str, String), Vec<&str>> = BTreeMap::new();
    for (module, layer) in &layers.good {
        if let Some(message) = denied(checkpoint, layer) {
            said.entry(("config-layout", message)).or_default().push(module);
        }
        if let Some(message) = format(config, layer) {
            said.entry(("config-format", message)).or_default().push(module);
        }
        if let Some(message) = ignored(config, module) {
            said.entry(("config-ignored", message)).or_default().push(module);
        }
    }
    for ((kind, message), modules) in said {
        let more = match modules.len() {
            1 => message,
            n => format!("{message} (so for {n} layers; this is the first)"),
        };
        findings.push(Finding::error(kind, modules[0], more));
    }
    absent(checkpoint, layers, findings);
}

/// A layer that is read as one layout where header or config say another: as asked, or because its
/// tensors fit no other that they allow.
fn denied(checkpoint: &Checkpoint, layer: &Layer) -> Option<String> {
    let at = At { source: checkpoint, module: &layer.module };
    let says = layer.layout.says(&at);
    if says == Some(true) {
        return None;
    }
    let other = |other: &&&'static dyn Layout| other.name() != layer.layout.name();
    let sure = |other: &&&'static dyn Layout| other.could(&at) && other.says(&at) == Some(true);
    let sure = ALL.iter().filter(other).find(sure).map(|other| other.name());
    let method = checkpoint.config().quant_method();
    let named = method.as_deref().and_then(crate::layout::named);
    let named = named.filter(|named| other(&named)).map(Layout::name);
    match (sure.or(named), says) {
        (None, None) => None,
        (found, _) => Some(message(layer, found.unwrap_or("another layout"))),
    }
}

fn message(layer: &Layer, other: &str) -> String {
    format!(
        "it is read as {}, and header or config say {other}: nibbles, the order of scales or the \
         direction of the global scale may differ; leave the layout to the file, or give the \
         config that belongs to it",
        layer.layout.name()
    )
}

/// What a config says of a layer.
#[derive(Debug, Default)]
struct Claim {
    group: Option<u64>,
    bits: Option<u64>,
    /// A format by the config's name for it.
    format: Option<String>,
}

impl Claim {
    fn of(block: &Value, group: &str, bits: &str, format: &Value) -> Self {
        Claim {
            group: block[group].as_u64(),
            bits: block[bits].as_u64(),
            format: format.as_str().map(str::to_ascii_lowercase),
        }
    }

    /// What of it the layer is not, in words.
    fn against(&self, layer: &Layer) -> Option<String> {
        let group = layer.shape.group().get() as u64;
        let format = match layer.format()? {
            Format::MxFp4 => "mx",
            Format::NvFp4 => "nv",
        };
        let mut wrong = vec![];
        if let Some(said) = self.group.filter(|&said| said != group) {
            wrong.push(format!("groups of {said}, and they are of {group}"));
        }
        if let Some(said) = self.bits.filter(|&said| said != 4) {
            wrong.push(format!("{said} bits, and they have 4"));
        }
        let said = self.format.as_ref();
        let mixed = |said: &&String| said.contains("mix") || *said == "fp4";
        if let Some(said) = said.filter(|said| !said.contains(format) && !mixed(said)) {
            wrong.push(format!("`{said}`, and they are {format}fp4"));
        }
        (!wrong.is_empty()).then(|| wrong.join("; "))
    }
}

/// What the config says wrong of the format: each list must have a claim that holds.
fn format(config: &Config, layer: &Layer) -> Option<String> {
    let wrong = claims(config, layer).into_iter().find_map(|claims| {
        let against: Vec<_> = claims.iter().map(|claim| claim.against(layer)).collect();
        // A claim that holds excuses the others: they are about other modules.
        against.into_iter().collect::<Option<Vec<_>>>()?.into_iter().next()
    })?;
    Some(format!(
        "the config says {wrong}: a loader that follows it fails or misreads the layer; give the \
         config that belongs to the tensors"
    ))
}

fn claims(config: &Config, layer: &Layer) -> Vec<Vec<Claim>> {
    let (block, model, module) = (config.quantization(), config.model(), layer.module.as_str());
    match layer.layout.name() {
        "compressed-tensors" => vec![groups(block, module, true)],
        "modelopt" => {
            let of = |block: &Value| {
                let own = &block["quantized_layers"][module];
                let own = if own.is_object() { own } else { block };
                vec![Claim::of(own, "group_size", "", &own["quant_algo"])]
            };
            let hf = &config.hf_quant()["quantization"];
            let mut all = vec![of(block), of(hf)];
            if block["quantized_layers"].is_null() && hf["quantized_layers"].is_null() {
                all.push(groups(block, module, false));
            }
            all
        }
        "auto-round" => {
            let extra = &block["extra_config"][module];
            let one = |key: &str| if extra[key].is_null() { &block[key] } else { &extra[key] };
            vec![vec![Claim {
                group: one("group_size").as_u64(),
                bits: one("bits").as_u64(),
                format: one("data_type").as_str().map(str::to_ascii_lowercase),
            }]]
        }
        "quark"
            if block["layer_quant_config"].as_object().is_none_or(serde_json::Map::is_empty) =>
        {
            let weight = &block["global_quant_config"]["weight"];
            vec![vec![Claim::of(weight, "group_size", "", &weight["dtype"])]]
        }
        "fp-quant" => vec![vec![Claim::of(block, "", "", &block["forward_dtype"])]],
        "mlx" => {
            let blocks = [&model["quantization"], &model["quantization_config"]];
            let of = |block: &Value| {
                let own = &block[module];
                let own = if own.is_object() { own } else { block };
                vec![Claim::of(own, "group_size", "bits", &own["mode"])]
            };
            blocks.map(of).into()
        }
        "deepseek" => vec![vec![Claim::of(&Value::Null, "", "", &model["expert_dtype"])]],
        _ => vec![],
    }
}

/// The claims of `config_groups`: those of the groups that name the module, or of all.
fn groups(block: &Value, module: &str, formats: bool) -> Vec<Claim> {
    let Some(groups) = block["config_groups"].as_object() else { return vec![] };
    let names = |group: &&Value| {
        let targets = group["targets"].as_array().into_iter().flatten();
        targets.filter_map(Value::as_str).any(|target| target == module)
    };
    let own: Vec<_> = groups.values().filter(names).collect();
    let own = if own.is_empty() { groups.values().collect() } else { own };
    let of = |group: &Value| {
        let format = if group["format"].is_null() { &block["format"] } else { &group["format"] };
        let format = if formats { format } else { &Value::Null };
        Claim::of(&group["weights"], "group_size", "num_bits", format)
    };
    own.into_iter().map(of).collect()
}

/// The entry of a list of dense modules that names a quantized one.
fn ignored(config: &Config, module: &str) -> Option<String> {
    let block = config.quantization();
    let hf = &config.hf_quant()["quantization"];
    let lists = [
        (block, "ignore"),
        (block, "exclude"),
        (block, "exclude_modules"),
        (block, "modules_to_not_convert"),
        (hf, "exclude_modules"),
    ];
    lists.iter().find_map(|(block, key)| {
        let entries = block[*key].as_array()?.iter().filter_map(Value::as_str);
        let entry = entries.into_iter().find(|entry| names(entry, module))?;
        Some(format!(
            "the config has `{entry}` in `{key}`, so a loader takes the layer for dense, and it is \
             quantized; remove the entry, or put the dense weight back"
        ))
    })
}

/// Does the entry of such a list name the module? Regular expressions beyond `.*` are not judged.
fn names(entry: &str, module: &str) -> bool {
    let Some(regex) = entry.strip_prefix("re:") else {
        let inside = |prefix: &str, rest: &str| {
            rest.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let last = module.strip_suffix(entry).is_some_and(|rest| rest.ends_with('.'));
        return inside(entry, module) || last || entry.contains('*') && wild(entry, module);
    };
    let regex = regex.trim_start_matches('^');
    let (regex, whole) = match regex.strip_suffix('$') {
        Some(regex) => (regex, true),
        None => (regex, false),
    };
    let plain = regex.replace(".*", "*").replace("\\.", ".");
    let judged = !plain.contains(['[', ']', '(', ')', '{', '}', '|', '+', '?', '\\', '^', '$']);
    judged && wild(&if whole { plain } else { plain + "*" }, module)
}

/// Does a pattern with `*` match a whole text?
fn wild(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else {
        return false;
    };
    let mut last = None;
    for part in parts {
        // The part before was not the last: its first place leaves the most.
        if let Some(part) = last.replace(part) {
            match rest.find(part) {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
    }
    last.map_or(rest.is_empty(), |last: &str| rest.ends_with(last))
}

/// Layers that header or config list, and that are not there.
fn absent(checkpoint: &Checkpoint, layers: &Layers, findings: &mut Vec<Finding>) {
    let config = checkpoint.config();
    let marks = checkpoint.metadata("_quantization_metadata");
    let marks: Value = marks.and_then(|m| serde_json::from_str(m).ok()).unwrap_or(Value::Null);
    let lists = [
        (
            "the config's `quantized_layers`",
            &config.quantization()["quantized_layers"],
            "quant_algo",
        ),
        (
            "`quantized_layers` of hf_quant_config.json",
            &config.hf_quant()["quantization"]["quantized_layers"],
            "quant_algo",
        ),
        ("the header", &marks["layers"], "format"),
    ];
    for (list, entries, key) in lists {
        for (module, entry) in entries.as_object().into_iter().flatten() {
            let format = entry[key].as_str().unwrap_or_default();
            let inside = format!("{module}.");
            let under = |name: &String| name.starts_with(&inside);
            let next = |names: Option<&String>| names.is_some_and(under);
            let quantized = layers.good.contains_key(module)
                || layers.bad.contains_key(module)
                || next(layers.good.range(inside.clone()..).next().map(|(name, _)| name));
            let there = next(checkpoint.tensors().range(inside.clone()..).next().map(|(n, _)| n));
            let fp4 = format.to_ascii_lowercase().contains("fp4");
            let what = match (quantized, there) {
                (true, _) => continue,
                (false, false) => "there is no such module",
                (false, true) if fp4 => "it is no FP4 layer",
                (false, true) => continue,
            };
            let message = format!(
                "{list} names it as `{format}`, and {what}; give the config that belongs to the \
                 tensors, or the shard that is missing"
            );
            findings.push(Finding::error("config-absent", module, message));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_lists_name_modules_as_their_loaders_take_them() {
        for (entry, module, expected) in [
            ("lm_head", "lm_head", true),
            ("lm_head", "model.lm_head", true),
            ("lm_head", "lm_head2", false),
            ("model.layers.0", "model.layers.0.mlp.up_proj", true),
            ("model.layers.1", "model.layers.10.mlp.up_proj", false),
            ("model.layers.*.self_attn*", "model.layers.3.self_attn.q_proj", true),
            ("model.layers.*.self_attn*", "model.layers.3.mlp.up_proj", false),
            ("re:.*q_proj$", "model.layers.3.self_attn.q_proj", true),
            ("re:.*q_proj$", "model.layers.3.self_attn.q_proj.x", false),
            ("re:model\\.layers\\.0.*", "model.layers.0.mlp.up_proj", true),
            ("re:.*(q|k)_proj", "model.q_proj", false), // not judged
        ] {
            assert_eq!(names(entry, module), expected, "{entry} on {module}");
        }
        assert!(wild("a*b*c", "axxbxbc") && !wild("a*b*c", "axc") && wild("*", ""));
    }
}
