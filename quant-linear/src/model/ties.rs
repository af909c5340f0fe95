//! Weights that one product reads together, and that may share a global scale.
//!
//! Engines fuse the projections of q, k and v, and of gate and up, into one matrix with one global
//! scale. Quantized each with its own, they would have to be requantized then; tied, all take the
//! scale of the largest magnitude among them.
//!
//! ```text
//! qkv       q_proj k_proj v_proj, query key value, to_q to_k to_v, wq wk wv, ... of one module
//! gate-up   gate_proj up_proj, w1 w3, wi_0 wi_1, ffn_gate ffn_up, ... of one module
//! ```
//!
//! In attention across two sequences q reads the one and k and v the other: only k and v are tied.

use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

use crate::layer::DenseOptions;
use crate::model::dense::DenseSource;

/// Weights that share a global scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tie {
    /// The projections of queries, keys and values.
    Qkv,
    /// The two projections into a gated MLP.
    GateUp,
}

impl Tie {
    /// All of them.
    pub const ALL: [Tie; 2] = [Tie::Qkv, Tie::GateUp];

    /// The name on the command line and in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            Tie::Qkv => "qkv",
            Tie::GateUp => "gate-up",
        }
    }

    /// The last parts of names that go together.
    pub(super) fn sets(self) -> &'static [&'static [&'static str]] {
        match self {
            Tie::Qkv => &[
                &["q_proj", "k_proj", "v_proj"],
                &["query", "key", "value"],
                &["q", "k", "v"],
                &["to_q", "to_k", "to_v"],
                &["wq", "wk", "wv"],
                &["attn_q", "attn_k", "attn_v"],
                &["add_q_proj", "add_k_proj", "add_v_proj"],
            ],
            Tie::GateUp => &[
                &["gate_proj", "up_proj"],
                &["w1", "w3"],
                &["wi_0", "wi_1"],
                &["ffn_gate", "ffn_up"],
                &["ffn_gate_exps", "ffn_up_exps"],
                &["ffn_gate_shexp", "ffn_up_shexp"],
            ],
        }
    }
}

/// Parts of names of attention across two sequences.
pub(super) const CROSS: [&str; 6] =
    ["EncDecAttention", "encoder_attn", "crossattention", "cross_attn", "cross_attention", "attn2"];

/// What weights have in common that are tied: the module and the set of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key<'n> {
    module: &'n str,
    set: &'static [&'static str],
}

impl<'n> Key<'n> {
    /// The key of a weight with this prefix, if any of `ties` is for it.
    pub(super) fn of(prefix: &'n str, ties: &[Tie]) -> Option<Self> {
        let (module, last) = prefix.rsplit_once('.').unwrap_or(("", prefix));
        let mut sets = ties.iter().flat_map(|tie| tie.sets());
        let set = *sets.find(|set| set.contains(&last))?;
        let alone =
            set.len() == 3 && set[0] == last && module.split('.').any(|p| CROSS.contains(&p));
        (!alone).then_some(Key { module, set })
    }
}

/// What decides the global scale of a weight, or of several.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    /// The largest magnitude; 0 where it does not count.
    pub(super) amax: f32,
    /// The global scale under which all values are exact, if there is one.
    pub(super) found: Option<f32>,
}

/// Weights that share a global scale.
#[derive(Debug)]
pub(crate) struct Tied {
    /// Where their values are.
    pub(super) sources: Vec<DenseSource>,
    /// What is known of the values of all, once it is.
    pub(super) known: OnceLock<Known>,
}

impl Tied {
    pub(super) fn new(sources: Vec<DenseSource>) -> Arc<Self> {
        Arc::new(Tied { sources, known: OnceLock::new() })
    }
}

/// Can weights with these options share a scale at all?
pub(super) fn can_tie(options: &DenseOptions) -> bool {
    options.needs_amax()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_reads_one_input_is_tied() {
        let key = |prefix| Key::of(prefix, &Tie::ALL);
        let q = key("model.layers.0.self_attn.q_proj");
        assert!(q.is_some());
        assert_eq!(q, key("model.layers.0.self_attn.v_proj"));
        assert_ne!(q, key("model.layers.1.self_attn.v_proj"));
        assert_ne!(key("mlp.gate_proj"), key("mlp.down_proj"));
        assert_eq!(key("mlp.gate_proj"), key("mlp.up_proj"));
        assert_eq!(key("experts.3.w1"), key("experts.3.w3"));
        assert_eq!(key("experts.3.w2"), None);
        assert_eq!(key("decoder.layers.0.encoder_attn.q_proj"), None);
        assert_eq!(
            key("decoder.layers.0.encoder_attn.k_proj"),
            key("decoder.layers.0.encoder_attn.v_proj")
        );
        assert_eq!(Key::of("mlp.gate_proj", &[Tie::Qkv]), None);
    }
}
