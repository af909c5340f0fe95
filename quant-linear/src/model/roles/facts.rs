//! What a checkpoint's config.json and the names in it say about all its tensors.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::checkpoint::Tensor;
use crate::model::select::Orientation;

/// Parts of a config that describe the language model of a larger one.
const NESTED: [&str; 5] =
    ["/text_config", "/llm_config", "/language_config", "/thinker_config/text_config", "/decoder"];

/// Names of the inner size of an expert.
const INNER: [&str; 5] = [
    "/moe_intermediate_size",
    "/expert_intermediate_size",
    "/expert_ffn_hidden_size",
    "/ffn_dim",
    "/intermediate_size",
];

/// How many parts of a name are looked at for the layer that it is in.
const DEPTH: usize = 16;

/// GPT-2's layers that may be stored [in, out].
pub(super) const CONV1D: [&str; 4] = ["c_attn", "c_fc", "c_proj", "q_attn"];

/// What is known of a checkpoint as a whole.
#[derive(Debug, Clone)]
pub struct Facts {
    /// `model_type` of the config and its parts, or `_class_name`.
    pub(super) types: BTreeSet<String>,
    /// Hidden size.
    pub(super) hidden: Option<usize>,
    /// Sizes that an expert's inner dimension may have.
    pub(super) inner: BTreeSet<usize>,
    /// Rows of the vocabulary.
    pub(super) vocabulary: Option<usize>,
    /// Number of experts.
    pub(super) experts: Option<usize>,
    /// Blocks of block FP8.
    pub(crate) fp8_block: [usize; 2],
    /// Prefixes, with their dots, of layers that only predict further tokens.
    pub(super) mtp: BTreeSet<String>,
    /// How GPT-2's layers are stored, by their shapes.
    pub(super) conv1d: Option<Orientation>,
}

impl Facts {
    /// Gathers the facts from a config, if there is one, and the tensors.
    pub fn new(config: Option<&Value>, tensors: &BTreeMap<String, Tensor>) -> Self {
        let absent = Value::Null;
        let config = config.unwrap_or(&absent);
        let nested = NESTED.iter().filter_map(|path| config.pointer(path));
        let parts: Vec<_> = [config].into_iter().chain(nested).collect();
        let number = |paths: &[&str]| {
            let found = parts.iter().find_map(|part| {
                paths.iter().find_map(|path| part.pointer(path).and_then(Value::as_u64))
            });
            found.and_then(|n| usize::try_from(n).ok())
        };
        let words = parts.iter().flat_map(|part| {
            ["/model_type", "/_class_name"]
                .into_iter()
                .filter_map(|path| part.pointer(path)?.as_str())
        });
        let inner = parts.iter().flat_map(|part| {
            INNER.iter().filter_map(|path| usize::try_from(part.pointer(path)?.as_u64()?).ok())
        });
        let layers = number(&["/num_hidden_layers", "/num_layers", "/n_layer"]);
        let next = number(&["/num_nextn_predict_layers", "/num_mtp_modules"]);
        Facts {
            types: words.map(String::from).collect(),
            hidden: number(&["/hidden_size", "/d_model", "/n_embd"]),
            inner: inner.collect(),
            vocabulary: number(&["/vocab_size"]),
            experts: number(&[
                "/num_experts",
                "/num_local_experts",
                "/n_routed_experts",
                "/moe_num_experts",
            ]),
            fp8_block: fp8_block(config),
            mtp: mtp(tensors, layers.filter(|_| next.is_some_and(|n| n > 0))),
            conv1d: conv1d(tensors),
        }
    }
}

impl Facts {
    /// Is the tensor of a layer that only predicts further tokens?
    pub(super) fn is_mtp(&self, name: &str) -> bool {
        // A layer is a few parts deep; a name may have as many dots as it likes.
        let dots = name.match_indices('.').take(DEPTH);
        !self.mtp.is_empty() && dots.into_iter().any(|(dot, _)| self.mtp.contains(&name[..=dot]))
    }
}

/// `weight_block_size` of the config, or 128 x 128.
pub(crate) fn fp8_block(config: &Value) -> [usize; 2] {
    let given = config.pointer("/quantization_config/weight_block_size");
    let given = given.and_then(Value::as_array).map(Vec::as_slice);
    let side = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
    match given {
        Some([rows, cols]) => [side(rows).unwrap_or(128), side(cols).unwrap_or(128)],
        _ => [128, 128],
    }
}

/// Layers past the last of `layers`, and any that holds the `eh_proj` of DeepSeek's extra layers.
fn mtp(tensors: &BTreeMap<String, Tensor>, layers: Option<usize>) -> BTreeSet<String> {
    let mut prefixes = BTreeSet::new();
    for name in tensors.keys() {
        if let Some(prefix) = name.strip_suffix("eh_proj.weight") {
            // llama.cpp puts it one part deeper than the layer's other weights.
            let prefix = prefix.strip_suffix("nextn.").unwrap_or(prefix);
            prefixes.insert(prefix.to_string());
        }
        let Some(last) = layers else { continue };
        if let Some((before, after)) = name.split_once("layers.")
            && let Some((number, _)) = after.split_once('.')
            && ["", "model.", "language_model.model.", "model.language_model."].contains(&before)
            && number.parse::<usize>().is_ok_and(|n| n >= last)
        {
            prefixes.insert(format!("{before}layers.{number}."));
        }
    }
    prefixes.retain(|prefix| !prefix.is_empty());
    prefixes
}

/// GPT-2's `c_attn` has three times as many outputs as inputs and `c_fc` more outputs than inputs.
fn conv1d(tensors: &BTreeMap<String, Tensor>) -> Option<Orientation> {
    let telling = tensors.iter().filter_map(|(name, tensor)| {
        let wide = name.ends_with(".c_attn.weight") || name.ends_with(".c_fc.weight");
        match tensor.info.shape[..] {
            [a, b] if wide && a != b => Some((a, b)),
            _ => None,
        }
    });
    let mut ways = telling.map(|(a, b)| match a < b {
        true => Orientation::InOut,
        false => Orientation::OutIn,
    });
    // Two models in one file may differ: then nothing tells.
    let first = ways.next()?;
    ways.all(|way| way == first).then_some(first)
}
