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

use std::collections::{BTreeMap, HashMap, HashSet};

use fp4_core::Format;
use serde_json::Value;

use crate::checkpoint::{Checkpoint, Config, TensorSource};
use crate::layout::names::Names;
use crate::layout::{ALL, At, Extra, Layer, Layers, Layout};
use crate::model::verify::{Finding, Severity};
use crate::text::short;

pub(super) fn check(checkpoint: &Checkpoint, layers: &Layers, findings: &mut Vec<Finding>) {
    let config = checkpoint.config();
    let (lists, groups) = (lists(config), [false, true].map(|f| Groups::new(config, f)));
    let extra = Extra::new(&config.quantization()["extra_config"]);
    unread(config, &lists, &extra, findings);
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
        if let Some(message) = format(config, &groups, &extra, layer) {
            said.entry(("config-format", message)).or_default().push(module);
        }
        if let Some(message) = ignored(&lists, module) {
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
            format: format.as_str().map(|name| short(name).to_ascii_lowercase()),
        }
    }

    /// What of it a layer of this format is not, in words.
    fn against(&self, format: Format) -> Option<String> {
        let group = format.group().get() as u64;
        let format = match format {
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
fn format(
    config: &Config,
    groups: &[Groups<'_>; 2],
    extra: &Extra<'_>,
    layer: &Layer,
) -> Option<String> {
    let wrong = wrong(config, groups, extra, layer)?;
    Some(format!(
        "the config says {wrong}: a loader that follows it fails or misreads the layer; give the \
         config that belongs to the tensors"
    ))
}

/// What all claims of a list say wrong of a format: one that holds excuses the others, which are
/// about other modules.
fn all_wrong(claims: &[&Claim], format: Format) -> Option<String> {
    let against: Option<Vec<_>> = claims.iter().map(|claim| claim.against(format)).collect();
    against?.into_iter().next()
}

fn wrong(
    config: &Config,
    groups: &[Groups<'_>; 2],
    extra: &Extra<'_>,
    layer: &Layer,
) -> Option<String> {
    let (block, model, module) = (config.quantization(), config.model(), layer.module.as_str());
    let format = layer.format()?;
    let one = |claim: Claim| all_wrong(&[&claim], format);
    match layer.layout.name() {
        "compressed-tensors" => groups[1].wrong(module, format),
        "modelopt" => {
            let of = |block: &Value| {
                let own = &block["quantized_layers"][module];
                let own = if own.is_object() { own } else { block };
                one(Claim::of(own, "group_size", "", &own["quant_algo"]))
            };
            let hf = &config.hf_quant()["quantization"];
            let mixed = !block["quantized_layers"].is_null() || !hf["quantized_layers"].is_null();
            let grouped = || groups[0].wrong(module, format).filter(|_| !mixed);
            of(block).or_else(|| of(hf)).or_else(grouped)
        }
        "auto-round" => {
            let extra = extra.of(module);
            let key = |key: &str| if extra[key].is_null() { &block[key] } else { &extra[key] };
            one(Claim {
                group: key("group_size").as_u64(),
                bits: key("bits").as_u64(),
                format: key("data_type").as_str().map(|name| short(name).to_ascii_lowercase()),
            })
        }
        "quark"
            if block["layer_quant_config"].as_object().is_none_or(serde_json::Map::is_empty) =>
        {
            let weight = &block["global_quant_config"]["weight"];
            one(Claim::of(weight, "group_size", "", &weight["dtype"]))
        }
        "fp-quant" => one(Claim::of(block, "", "", &block["forward_dtype"])),
        "mlx" => {
            let of = |block: &Value| {
                let own = &block[module];
                let own = if own.is_object() { own } else { block };
                one(Claim::of(own, "group_size", "bits", &own["mode"]))
            };
            of(&model["quantization"]).or_else(|| of(&model["quantization_config"]))
        }
        // At the top, or in the block, as newer files have it.
        "deepseek" => [model, block]
            .into_iter()
            .find_map(|at| one(Claim::of(&Value::Null, "", "", &at["expert_dtype"]))),
        _ => None,
    }
}

/// `config_groups`: there may be as many as layers, and as many modules in each.
struct Groups<'c> {
    claims: Vec<Claim>,
    /// The groups that name a module.
    named: HashMap<&'c str, Vec<usize>>,
    /// What all of them say wrong of each format.
    all: [(Format, Option<String>); 2],
}

impl<'c> Groups<'c> {
    /// Those of a config, whose formats are names of these if `formats`.
    fn new(config: &'c Config, formats: bool) -> Self {
        let block = config.quantization();
        let (mut claims, mut named) = (vec![], HashMap::<_, Vec<_>>::new());
        let groups = block["config_groups"].as_object();
        for (at, group) in groups.into_iter().flat_map(|groups| groups.values()).enumerate() {
            let of = if group["format"].is_null() { block } else { group };
            let format = if formats { &of["format"] } else { &Value::Null };
            claims.push(Claim::of(&group["weights"], "group_size", "num_bits", format));
            let targets = group["targets"].as_array().into_iter().flatten();
            for target in targets.filter_map(Value::as_str) {
                named.entry(target).or_default().push(at);
            }
        }
        let every: Vec<_> = claims.iter().collect();
        let all = Format::ALL.map(|format| (format, all_wrong(&every, format)));
        Groups { claims, named, all }
    }

    /// What the groups that name a module say wrong of its format, or else what all do.
    fn wrong(&self, module: &str, format: Format) -> Option<String> {
        match self.named.get(module) {
            Some(own) => {
                let own: Vec<_> = own.iter().map(|at| &self.claims[*at]).collect();
                all_wrong(&own, format)
            }
            None => self.all.iter().find(|(of, _)| *of == format)?.1.clone(),
        }
    }
}

/// The lists of dense modules, by their keys.
fn lists(config: &Config) -> Vec<(&'static str, Names<'_>)> {
    let block = config.quantization();
    let hf = &config.hf_quant()["quantization"];
    let lists = [
        (block, "ignore"),
        (block, "exclude"),
        (block, "exclude_modules"),
        (block, "modules_to_not_convert"),
        (hf, "exclude_modules"),
    ];
    let there = lists.into_iter().filter_map(|(block, key)| Some((key, block[key].as_array()?)));
    let names = there.map(|(key, list)| (key, Names::new(list.iter().filter_map(Value::as_str))));
    names.collect()
}

/// Expressions of the config that are not read, so that what they name is not known here.
fn unread(
    config: &Config,
    lists: &[(&'static str, Names<'_>)],
    extra: &Extra<'_>,
    findings: &mut Vec<Finding>,
) {
    let groups = config.quantization()["config_groups"].as_object().into_iter().flatten();
    let targets = groups.filter_map(|(_, group)| group["targets"].as_array()).flatten();
    let targets = Names::new(targets.filter_map(Value::as_str));
    let mut all: Vec<(&str, Vec<&str>)> = vec![("targets", targets.unread().collect())];
    all.extend(lists.iter().map(|(key, names)| (*key, names.unread().collect())));
    all.push(("extra_config", extra.unread().collect()));
    for (key, unread) in all {
        if let Some(first) = unread.first() {
            let (first, count) = (short(first), unread.len());
            let message = format!(
                "`{key}` has {count} regular expressions that are not read here, `{first}` first: \
                 they look around, refer back, are no expressions of Python's, or are many or \
                 large; what they name is not checked"
            );
            findings.push(Finding::of_all(Severity::Warning, "config-expression", message));
        }
    }
}

/// The entry of a list of dense modules that names a quantized one.
fn ignored(lists: &[(&'static str, Names<'_>)], module: &str) -> Option<String> {
    lists.iter().find_map(|(key, names)| {
        let entry = names.first(module)?;
        Some(format!(
            "the config has `{entry}` in `{key}`, so a loader takes the layer for dense, and it is \
             quantized; remove the entry, or put the dense weight back"
        ))
    })
}

/// What ComfyUI's list is called.
const HEADER: &str = "the header";

/// How many dots of a module are looked at.
const DEPTH: usize = 32;

/// What a module's name ends with, after each of its dots.
fn ends(module: &str) -> impl Iterator<Item = &str> {
    module.rmatch_indices('.').take(DEPTH).map(|(dot, _)| &module[dot + 1..])
}

/// Layers that header or config list, and that are not there.
fn absent<'l>(checkpoint: &'l Checkpoint, layers: &'l Layers, findings: &mut Vec<Finding>) {
    let config = checkpoint.config();
    // The header's names may lack a prefix that the tensors have.
    let listed = |end: &&str| config.header_layers().is_some_and(|l| l.contains_key(*end));
    let of = |modules: &mut dyn Iterator<Item = &'l str>| -> HashSet<&'l str> {
        match config.header_layers() {
            Some(_) => modules.flat_map(ends).filter(listed).collect(),
            None => HashSet::new(),
        }
    };
    let fp4_ends = of(&mut layers.good.keys().chain(layers.bad.keys()).map(String::as_str));
    let all = checkpoint.tensors().keys();
    let all_ends = of(&mut all.filter_map(|name| Some(name.rsplit_once('.')?.0)));
    let lists = [
        (
            "the config's `quantized_layers`",
            config.quantization()["quantized_layers"].as_object(),
            "quant_algo",
        ),
        (
            "`quantized_layers` of hf_quant_config.json",
            config.hf_quant()["quantization"]["quantized_layers"].as_object(),
            "quant_algo",
        ),
        (HEADER, config.header_layers(), "format"),
    ];
    for (list, entries, key) in lists {
        let is_end = |ends: &HashSet<&str>, module: &str| list == HEADER && ends.contains(module);
        for (module, entry) in entries.into_iter().flatten() {
            let format = entry[key].as_str().unwrap_or_default();
            let inside = format!("{module}.");
            let under = |name: &String| name.starts_with(&inside);
            let next = |names: Option<&String>| names.is_some_and(under);
            let quantized = layers.good.contains_key(module)
                || layers.bad.contains_key(module)
                || is_end(&fp4_ends, module)
                || next(layers.good.range(inside.clone()..).next().map(|(name, _)| name));
            let there = is_end(&all_ends, module)
                || next(checkpoint.tensors().range(inside.clone()..).next().map(|(n, _)| n));
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
