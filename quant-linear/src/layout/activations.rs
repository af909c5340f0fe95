//! What a config says of the activations that a layer multiplies, and of the cache of keys and
//! values: what no tensor shows. And what a layer that is read here makes of it.
//!
//! | layout | where |
//! |---|---|
//! | compressed-tensors | `input_activations` of the group that takes the module; `kv_cache_scheme` |
//! | ModelOpt | `quant_algo`, of the module in `quantized_layers`; `kv_cache_quant_algo` |
//! | Quark | `input_tensors` of `global_quant_config`, of `layer_quant_config`; `kv_cache_group` |
//! | AutoRound | `act_bits`, of the module in `extra_config`; `static_kv_dtype` |
//! | FP-Quant | `forward_dtype`, which is that of both operands |
//! | DeepSeek | `activation_scheme`: what enters an FP4 expert is FP8, as elsewhere in the model |
//! | torchao | `act_quant_kwargs` of the weight, in the header |
//!
//! | what is meant | what a layer does here |
//! |---|---|
//! | [`Same`](Activations::Same) | the weight's own format, by the stored scale |
//! | [`Dense`](Activations::Dense), [`Other`](Activations::Other) | MXINT8 (C10), the nearest |
//! | the same, in rows that are no whole groups of 32 | the weight's own format |
//!
//! Worked example: a group with `"input_activations": {"num_bits": 8, "type": "float"}` is 4-bit
//! weights and 8-bit activations. Another layout's config must not make 4 bits of them.

use std::collections::HashMap;
use std::sync::Arc;

use fp4_core::Encoding;
use serde_json::Value;

use crate::checkpoint::{Config, TensorSource};
use crate::layer::ActivationEncoding;
use crate::layer::state::join;
use crate::layout::names::{Names, Regular, wild};
use crate::text::short;

/// How the activations of a layer are quantized.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Activations {
    /// The config says nothing: as the weight where a global scale of them is stored.
    #[default]
    Unsaid,
    /// Not at all.
    Dense,
    /// To the weight's own format.
    Same,
    /// In another way.
    Other {
        /// It in words.
        what: String,
        /// It in the words of compressed-tensors, if they are.
        scheme: Option<Arc<Value>>,
    },
}

/// The longest scheme that is carried: it is written once for each layer at most.
const MOST_SCHEME: usize = 2048;

/// What a config says, by module.
pub type Said<'c> = Box<dyn Fn(&str) -> Activations + 'c>;

impl Activations {
    /// What is meant by a config that says nothing.
    pub fn or_by_scale(self, stored: bool) -> Self {
        match (self, stored) {
            (Activations::Unsaid, true) => Activations::Same,
            (Activations::Unsaid, false) => Activations::Dense,
            (said, _) => said,
        }
    }

    /// How a layer with `k` input features quantizes activations that are meant so, and where that
    /// is not what is meant, both in words.
    pub(super) fn encoding(&self, k: usize) -> (ActivationEncoding, Option<String>) {
        let meant = match self {
            Activations::Same => return (ActivationEncoding::Own, None),
            Activations::Unsaid => "are not spoken of, and no scale of them is stored".into(),
            Activations::Dense => "are not quantized by their own software".into(),
            Activations::Other { what, .. } => format!("are quantized to {what} by their software"),
        };
        let group = Encoding::MxInt8.group().get();
        let (encoding, why) = match k.is_multiple_of(group) {
            true => (ActivationEncoding::MxInt8, "the nearest that there is".to_string()),
            false => {
                let why = format!("for {k} features are no whole groups of {group} for mxint8");
                (ActivationEncoding::Own, why)
            }
        };
        (encoding, Some(format!("{meant}: here they are quantized to {encoding}, {why}")))
    }

    /// As a scheme of a group has it.
    fn of_scheme(scheme: &Value, kept: bool) -> Self {
        let float = scheme["type"].as_str().is_none_or(|ty| ty == "float");
        match &scheme["num_bits"] {
            _ if scheme.is_null() => Activations::Dense,
            bits if bits.as_u64() == Some(4) && float => Activations::Same,
            _ => {
                let kept = kept && scheme.to_string().len() <= MOST_SCHEME;
                let scheme_kept = kept.then(|| Arc::new(scheme.clone()));
                Activations::Other { what: in_words(scheme), scheme: scheme_kept }
            }
        }
    }

    /// By an algorithm of ModelOpt's.
    fn of_algorithm(name: &str) -> Self {
        let name = short(name).to_ascii_uppercase();
        if name.contains("A16") {
            return Activations::Dense;
        }
        match name.contains("A8") {
            true => Activations::Other { what: format!("8 bits ({name})"), scheme: None },
            false => Activations::Same,
        }
    }
}

/// `8-bit float`.
fn in_words(scheme: &Value) -> String {
    let bits = scheme["num_bits"].as_u64().map_or("some".into(), |bits| bits.to_string());
    let ty = short(scheme["type"].as_str().unwrap_or("number"));
    let dynamic = if scheme["dynamic"] == false { ", static" } else { "" };
    format!("{bits}-bit {ty}{dynamic}")
}

/// What `config_groups` say; their schemes as they are if `kept`.
pub(super) fn by_groups(block: &Value, kept: bool) -> Said<'_> {
    let Some(groups) = block["config_groups"].as_object() else {
        return Box::new(|_| Activations::Unsaid);
    };
    let groups: Vec<_> = groups.values().collect();
    let said = |group: &&Value| Activations::of_scheme(&group["input_activations"], kept);
    let all: Vec<_> = groups.iter().map(said).collect();
    let alike = all.windows(2).all(|two| two[0] == two[1]);
    // As the library has it: a full name comes first, then expressions in the order of their text,
    // then a class; names that a loader puts others before, as parts of names, between the two.
    let (mut named, mut classes) = (vec![], None);
    for (at, group) in groups.iter().enumerate() {
        let targets = group["targets"].as_array().into_iter().flatten();
        for target in targets.filter_map(Value::as_str) {
            match target.starts_with(|c: char| c.is_ascii_uppercase()) && !target.contains('.') {
                true => _ = classes.get_or_insert(at),
                false => named.push((target, at)),
            }
        }
    }
    named.sort_by_key(|(target, _)| (!target.starts_with("re:"), *target));
    let of: Vec<_> = named.iter().map(|(_, at)| *at).collect();
    let full: HashMap<&str, usize> = named.iter().copied().collect();
    let names = Names::new(named.into_iter().map(|(target, _)| target));
    Box::new(move |module| {
        if alike {
            return all.first().cloned().unwrap_or_default();
        }
        let exact = full.get(module).copied();
        let group = exact.or_else(|| names.position(module).map(|at| of[at])).or(classes);
        group.map_or(Activations::Unsaid, |group| all[group].clone())
    })
}

/// What ModelOpt's two files say.
pub(super) fn of_modelopt(config: &Config) -> Said<'_> {
    let (block, hf) = (config.quantization(), &config.hf_quant()["quantization"]);
    let groups = by_groups(block, false);
    Box::new(move |module| {
        let own = |block: &Value| {
            let own = block["quantized_layers"][module]["quant_algo"].as_str();
            own.map(Activations::of_algorithm)
        };
        let whole = |block: &Value| {
            let name = block["quant_algo"].as_str().filter(|name| !name.contains("MIXED"));
            name.map(Activations::of_algorithm)
        };
        let named = own(block).or_else(|| own(hf)).or_else(|| whole(block));
        named.or_else(|| whole(hf)).unwrap_or_else(|| groups(module))
    })
}

/// What Quark's config says.
pub(super) fn of_quark(config: &Config) -> Said<'_> {
    let block = config.quantization();
    let of = |settings: &Value| match &settings["input_tensors"] {
        Value::Null => Activations::Dense,
        inputs if inputs["dtype"] == "fp4" => Activations::Same,
        inputs => {
            let what = short(inputs["dtype"].as_str().unwrap_or("another type")).to_string();
            Activations::Other { what, scheme: None }
        }
    };
    if !block["global_quant_config"].is_object() {
        return Box::new(|_| Activations::Unsaid);
    }
    let layers = &block["layer_quant_config"];
    let patterns = layers.as_object().into_iter().flatten().filter(|(name, _)| name.contains('*'));
    let patterns: Vec<_> = patterns.collect();
    // `Linear`, `nn.Linear`: the last part of the class's name.
    let mut types = block["layer_type_quant_config"].as_object().into_iter().flatten();
    let linear = |ty: &str| ty.trim_end_matches("'>").rsplit('.').next() == Some("Linear");
    let linear = types.find(|(ty, _)| linear(ty)).map(|(_, settings)| settings);
    let rest = linear.unwrap_or(&block["global_quant_config"]);
    Box::new(move |module| {
        let pattern = || patterns.iter().find(|(pattern, _)| wild(pattern, module));
        of(layers.get(module).or_else(|| pattern().map(|(_, settings)| *settings)).unwrap_or(rest))
    })
}

/// What AutoRound's config says.
pub(super) fn of_auto_round(config: &Config) -> Said<'_> {
    let block = config.quantization();
    if !block.is_object() {
        return Box::new(|_| Activations::Unsaid);
    }
    let extra = Extra::new(&block["extra_config"]);
    Box::new(move |module| {
        let extra = extra.of(module);
        let one = |key: &str| if extra[key].is_null() { &block[key] } else { &extra[key] };
        let ty = short(one("act_data_type").as_str().unwrap_or_default());
        match one("act_bits").as_u64() {
            None | Some(16..) => Activations::Dense,
            Some(4) if ty.is_empty() || ty.contains("fp") => Activations::Same,
            Some(bits) => {
                let what = format!("{bits} bits {ty}").trim_end().to_string();
                Activations::Other { what, scheme: None }
            }
        }
    })
}

/// AutoRound's `extra_config`: settings by a module's name, or by an expression that is found
/// anywhere in it; of several, by the first in the order of their text.
pub(crate) struct Extra<'c> {
    block: &'c Value,
    keys: Vec<&'c String>,
    settings: Vec<&'c Value>,
    expressions: Regular,
}

impl<'c> Extra<'c> {
    /// Of this block.
    pub(crate) fn new(block: &'c Value) -> Self {
        let odd = ['*', '+', '?', '^', '$', '(', ')', '[', ']', '{', '}', '|', '\\'];
        let all = block.as_object().into_iter().flatten();
        let all = all.filter(|(key, _)| key.contains(odd));
        let (keys, settings): (Vec<_>, Vec<_>) = all.unzip();
        let texts = keys.iter().map(|key| key.as_str()).enumerate();
        let expressions = Regular::new(texts, str::to_owned);
        Extra { block, keys, settings, expressions }
    }

    /// The expressions that name nothing because they are not read.
    pub(crate) fn unread(&self) -> impl Iterator<Item = &'c str> {
        self.expressions.unread().iter().map(|&at| self.keys[at].as_str())
    }

    /// What it says of a module.
    pub(crate) fn of(&self, module: &str) -> &'c Value {
        let found = || self.expressions.position(module).map(|at| self.settings[at]);
        self.block.get(module).or_else(found).unwrap_or(&Value::Null)
    }
}

/// What FP-Quant's config says: there is one type for both operands.
pub(super) fn of_fp_quant(config: &Config) -> Said<'_> {
    let some = config.quantization()["forward_dtype"].is_string();
    Box::new(move |_| if some { Activations::Same } else { Activations::Unsaid })
}

/// What DeepSeek's config says of all layers, those with FP8 weights and those with FP4.
pub(super) fn of_deepseek(config: &Config) -> Said<'_> {
    let scheme = config.quantization()["activation_scheme"].as_str().map(short);
    Box::new(move |_| match scheme {
        None => Activations::Unsaid,
        Some(scheme) => Activations::Other { what: format!("8-bit float, {scheme}"), scheme: None },
    })
}

/// What torchao's header says.
pub(super) fn of_torchao(source: &dyn TensorSource) -> Said<'_> {
    Box::new(move |module| {
        // Of a module's weight, or of a parameter that has the name itself.
        let described = source.metadata(&join(module, "weight"));
        let described = described.or_else(|| source.metadata(module));
        let described = described.and_then(|text| serde_json::from_str::<Value>(text).ok());
        let Some(described) = described else { return Activations::Unsaid };
        // An entry that is not there is none, as in the older files.
        let inputs = &described["_data"]["act_quant_kwargs"];
        let element = &inputs["_data"]["elem_dtype"];
        let element = element.as_str().or(element["_data"].as_str()).unwrap_or_default();
        match inputs["_type"].as_str() {
            _ if inputs.is_null() => Activations::Dense,
            Some(kind) if kind.contains("NVFP4") || element.contains("float4") => Activations::Same,
            kind => {
                let what =
                    if element.is_empty() { kind.unwrap_or("another type") } else { element };
                Activations::Other { what: short(what).into(), scheme: None }
            }
        }
    })
}

/// How the cache of keys and values is quantized.
#[derive(Debug, Clone, PartialEq)]
pub struct KvCache {
    /// Where the config says it, and what.
    pub what: String,
    /// It in the words of compressed-tensors, if they are.
    pub scheme: Option<Value>,
}

/// What a config says of the cache of keys and values.
pub fn kv_cache(config: &Config) -> Option<KvCache> {
    let (block, hf) = (config.quantization(), &config.hf_quant()["quantization"]);
    let said = |key: &str, what: &str| {
        let what = format!("`{key}`: {}", short(what));
        Some(KvCache { what, scheme: None })
    };
    let scheme = &block["kv_cache_scheme"];
    if scheme.is_object() {
        let what = format!("`kv_cache_scheme`: {}", in_words(scheme));
        return Some(KvCache { what, scheme: Some(scheme.clone()) });
    }
    for algorithm in [&block["kv_cache_quant_algo"], &hf["kv_cache_quant_algo"]] {
        if let Some(name) = algorithm.as_str() {
            let fp8 = name.eq_ignore_ascii_case("FP8").then(fp8_scheme);
            let what = format!("`kv_cache_quant_algo`: {}", short(name));
            return Some(KvCache { what, scheme: fp8 });
        }
    }
    let some = |value: &Value| match value {
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        other => !other.is_null(),
    };
    if some(&block["kv_cache_quant_config"]) || some(&block["export"]["kv_cache_group"]) {
        return said("kv_cache_quant_config", "a quantized cache");
    }
    said("static_kv_dtype", block["static_kv_dtype"].as_str()?)
}

/// Where a config says that outputs of layers are quantized, which no layout here keeps: as older
/// files have it, for their cache of keys and values.
pub fn outputs(config: &Config) -> Option<String> {
    let block = config.quantization();
    let own = [&block["global_quant_config"]].into_iter();
    let own =
        own.chain(block["layer_quant_config"].as_object().into_iter().flat_map(|m| m.values()));
    let groups = block["config_groups"].as_object().into_iter().flat_map(|m| m.values());
    let some = |found: bool, key: &str| found.then(|| format!("`{key}`"));
    some(groups.into_iter().any(|g| !g["output_activations"].is_null()), "output_activations")
        .or_else(|| some(own.into_iter().any(|s| !s["output_tensors"].is_null()), "output_tensors"))
}

/// FP8 with stored scales, in the words of compressed-tensors.
fn fp8_scheme() -> Value {
    serde_json::json!({
        "dynamic": false,
        "num_bits": 8,
        "strategy": "tensor",
        "symmetric": true,
        "type": "float",
    })
}

impl KvCache {
    /// Is it FP8 with stored scales?
    pub fn is_fp8(&self) -> bool {
        let scheme = self.scheme.as_ref();
        scheme.is_some_and(|s| s["num_bits"] == 8 && s["type"] == "float" && s["dynamic"] != true)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn scheme(bits: u64) -> Value {
        json!({ "num_bits": bits, "type": "float" })
    }

    #[test]
    fn a_name_or_a_pattern_comes_before_a_class() {
        let block = json!({ "config_groups": {
            "group_0": { "targets": ["Linear"], "input_activations": null },
            "group_1": { "targets": ["re:.*(q|k)_proj$"], "input_activations": scheme(4) },
            "group_2": { "targets": ["m.up_proj"], "input_activations": scheme(8) },
        } });
        let said = by_groups(&block, true);
        assert_eq!(said("m.down_proj"), Activations::Dense);
        assert_eq!(said("m.k_proj"), Activations::Same);
        let Activations::Other { what, scheme: Some(kept) } = said("m.up_proj") else { panic!() };
        assert_eq!((what.as_str(), &*kept), ("8-bit float", &scheme(8)));
    }

    #[test]
    fn a_full_name_comes_before_an_expression_of_a_group_before_it() {
        let block = json!({ "config_groups": {
            "group_0": { "targets": ["re:.*experts\\.\\d+\\..*"], "input_activations": scheme(4) },
            "group_1": { "targets": ["m.experts.0.up_proj"], "input_activations": null },
            "group_2": { "targets": ["re:.*[qk]_proj$", "Linear"], "input_activations": scheme(8) },
        } });
        let said = by_groups(&block, true);
        assert_eq!(said("m.experts.0.up_proj"), Activations::Dense);
        assert_eq!(said("m.experts.1.up_proj"), Activations::Same);
        for module in ["m.q_proj", "m.down_proj"] {
            assert!(matches!(said(module), Activations::Other { .. }), "{module}");
        }
    }

    #[test]
    fn each_tool_says_it_in_its_own_words() {
        let config = |block: Value| Config::of(json!({ "quantization_config": block }));
        let is_other = |a: Activations| matches!(a, Activations::Other { .. });
        let modelopt = config(json!({ "quant_algo": "MIXED_PRECISION", "quantized_layers": {
            "a": { "quant_algo": "W4A8_NVFP4_FP8" }, "b": { "quant_algo": "W4A16_NVFP4" },
            "c": { "quant_algo": "NVFP4" },
        } }));
        let said = of_modelopt(&modelopt);
        assert!(is_other(said("a")));
        assert_eq!([said("b"), said("c")], [Activations::Dense, Activations::Same]);
        let quark = config(json!({
            "global_quant_config": { "input_tensors": { "dtype": "fp8_e4m3" } },
            "layer_quant_config": { "*.k_proj": { "input_tensors": { "dtype": "fp4" } } },
        }));
        let said = of_quark(&quark);
        assert!(is_other(said("m.q_proj")));
        assert_eq!(said("m.k_proj"), Activations::Same);
        let typed = config(json!({
            "global_quant_config": { "input_tensors": { "dtype": "fp8_e4m3" } },
            "layer_type_quant_config": { "torch.nn.Linear": { "input_tensors": null } },
        }));
        assert_eq!(of_quark(&typed)("m"), Activations::Dense);
        let auto = config(json!({ "act_bits": 8, "act_data_type": "mx_fp", "extra_config": {
            "m": { "act_bits": 4 }, "n": { "act_bits": 16 },
            "layers\\.\\d+\\.(q|k)_proj": { "act_bits": 16 }, "layers.1.q_proj": { "act_bits": 4 },
        } }));
        let said = of_auto_round(&auto);
        assert!(is_other(said("x")));
        let of = ["model.layers.17.k_proj", "layers.1.q_proj"].map(&said);
        assert_eq!(of, [Activations::Dense, Activations::Same]);
        assert_eq!([said("m"), said("n")], [Activations::Same, Activations::Dense]);
    }

    /// A source with a header and no tensors.
    struct Header(Value);

    impl TensorSource for Header {
        fn header(&self, _name: &str) -> Option<(safetensors::Dtype, Vec<usize>)> {
            None
        }

        fn bytes(&self, name: &str) -> Result<std::borrow::Cow<'_, [u8]>, crate::error::Error> {
            Err(crate::error::Error::MissingTensor { name: name.into() })
        }

        fn metadata(&self, key: &str) -> Option<&str> {
            self.0[key].as_str()
        }
    }

    #[test]
    fn torchao_says_it_in_the_header_of_each_weight() {
        let weight = |inputs: Value| {
            json!({ "_type": "MXTensor", "_data": { "act_quant_kwargs": inputs } }).to_string()
        };
        let mx = |element: &str| {
            let element = json!({ "_type": "torch.dtype", "_data": element });
            json!({ "_type": "QuantizeTensorToMXKwargs", "_data": { "elem_dtype": element } })
        };
        let header = Header(json!({
            "none.weight": weight(Value::Null),
            "mx.weight": weight(mx("float4_e2m1fn_x2")),
            "nv.weight": weight(json!({ "_type": "QuantizeTensorToNVFP4Kwargs", "_data": {} })),
            "eight.weight": weight(mx("float8_e4m3fn")),
            "new.weight": weight(json!({ "_type": "Another" })),
            "broken.weight": "{",
        }));
        let said = of_torchao(&header);
        let other = |what: &str| Activations::Other { what: what.into(), scheme: None };
        for (module, expected) in [
            ("none", Activations::Dense),
            ("mx", Activations::Same),
            ("nv", Activations::Same),
            ("eight", other("float8_e4m3fn")),
            ("new", other("Another")),
            ("broken", Activations::Unsaid),
            ("absent", Activations::Unsaid),
        ] {
            assert_eq!(said(module), expected, "{module}");
        }
    }

    #[test]
    fn a_cache_is_found_wherever_a_tool_says_it() {
        let config = |block: Value| Config::of(json!({ "quantization_config": block }));
        let fp8 = kv_cache(&config(json!({ "kv_cache_scheme": scheme(8) }))).unwrap();
        assert!(fp8.is_fp8() && fp8.what.contains("8-bit float"), "{fp8:?}");
        let other = kv_cache(&config(json!({ "kv_cache_quant_algo": "NVFP4" }))).unwrap();
        assert!(!other.is_fp8() && other.what.contains("NVFP4"), "{other:?}");
        for block in [
            json!({ "export": { "kv_cache_group": ["*k_proj"] } }),
            json!({ "static_kv_dtype": "fp8" }),
        ] {
            assert!(kv_cache(&config(block.clone())).is_some(), "{block}");
        }
        let none = json!({ "kv_cache_scheme": null, "export": { "kv_cache_group": [] } });
        assert_eq!(kv_cache(&config(none)), None);
    }
}
