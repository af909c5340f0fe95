//! The sizes of a llama-style decoder, from a GGUF header or a `config.json`.
//!
//! A field that changes the arithmetic and is not computed here is an error: another value would
//! give text that looks right and is not.

use anyhow::{Context, Result, bail, ensure};
use quant_linear::checkpoint::gguf::{Header, Value as Gguf};
use serde_json::Value;

use crate::attention::Heads;
use crate::math::LANES;

/// Which columns of a head turn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rope {
    /// 2 i and 2 i + 1: GGUF files of this architecture, whose rows are permuted for it.
    Neighbours,
    /// i and i + half: Hugging Face.
    Halves,
}

/// The sizes of a decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Number of blocks.
    pub blocks: usize,
    /// Width of a token's vector.
    pub hidden: usize,
    /// Width inside the feed-forward half of a block.
    pub intermediate: usize,
    /// Number of token ids.
    pub vocabulary: usize,
    /// Longest sequence.
    pub context: usize,
    /// Query heads of a block.
    pub query_heads: usize,
    /// Key-value heads of a block; divides `query_heads`.
    pub kv_heads: usize,
    /// Columns of a head.
    pub head_width: usize,
    /// Base of the angles of rotary embedding.
    pub rope_base: f64,
    /// How rotary embedding pairs columns.
    pub rope: Rope,
    /// Added to the mean square by every norm.
    pub epsilon: f32,
    /// Ids that end a text.
    pub ends: Vec<u32>,
}

impl Config {
    pub(crate) fn heads(&self) -> Heads {
        Heads { query: self.query_heads, kv: self.kv_heads, width: self.head_width }
    }

    /// From the header of a GGUF file.
    ///
    /// # Errors
    /// Another architecture than `llama`, a missing field, or one that is not computed here.
    pub fn of_gguf(header: &Header) -> Result<Self> {
        let architecture = header.get("general.architecture").and_then(Gguf::as_str);
        ensure!(
            architecture == Some("llama"),
            "the GGUF file has general.architecture = {}, this decoder computes \"llama\" only: \
             give it a model of the Llama family, as SmolLM2",
            architecture.map_or("(nothing)".to_owned(), |name| format!("{name:?}"))
        );
        let get = |key: &str| header.get(&format!("llama.{key}"));
        let shown = |value: Option<&Gguf>| value.map_or("(nothing)".into(), Gguf::to_string);
        let count = |key: &str| -> Result<usize> {
            let value = get(key).and_then(Gguf::as_u64).and_then(|v| usize::try_from(v).ok());
            value.filter(|&v| v > 0).with_context(|| {
                let given = shown(get(key));
                format!("the GGUF file has llama.{key} = {given}, expected a whole number above 0")
            })
        };
        let number = |key: &str| match get(key) {
            Some(Gguf::F32(value)) => Some(*value),
            _ => None,
        };
        for (key, harmless) in [
            ("rope.scaling.type", "none"),
            ("expert_count", "0"),
            ("attention.sliding_window", "0"),
            ("attention.causal", "true"),
        ] {
            let given = get(key);
            let fine = given.is_none() || shown(given).trim_matches('"') == harmless;
            ensure!(fine, "the GGUF file has llama.{key} = {}: not computed here", shown(given));
        }
        let (hidden, query_heads) = (count("embedding_length")?, count("attention.head_count")?);
        let head_width = match get("attention.key_length") {
            Some(_) => count("attention.key_length")?,
            None => hidden / query_heads,
        };
        for key in ["rope.dimension_count", "attention.value_length"] {
            if get(key).is_some() {
                let given = count(key)?;
                let same = given == head_width;
                ensure!(same, "the GGUF file has llama.{key} = {given}, heads of {head_width}");
            }
        }
        let kv_heads = match get("attention.head_count_kv") {
            Some(_) => count("attention.head_count_kv")?,
            None => query_heads,
        };
        let vocabulary = match header.get("tokenizer.ggml.tokens") {
            Some(Gguf::Array(tokens)) => usize::try_from(tokens.len())?,
            _ => count("vocab_size")?,
        };
        let end = |key: &str| {
            let id = header.get(&format!("tokenizer.ggml.{key}_token_id"))?.as_u64()?;
            u32::try_from(id).ok()
        };
        Config {
            blocks: count("block_count")?,
            hidden,
            intermediate: count("feed_forward_length")?,
            vocabulary,
            context: count("context_length")?,
            query_heads,
            kv_heads,
            head_width,
            rope_base: f64::from(number("rope.freq_base").unwrap_or(10_000.0)),
            rope: Rope::Neighbours,
            epsilon: number("attention.layer_norm_rms_epsilon")
                .context("the GGUF file has no number llama.attention.layer_norm_rms_epsilon")?,
            ends: ["eos", "eot"].into_iter().filter_map(end).collect(),
        }
        .checked()
    }

    /// From a `config.json`.
    ///
    /// # Errors
    /// As [`of_gguf`](Self::of_gguf).
    pub fn of_json(config: &Value) -> Result<Self> {
        let shown = |key: &str| config.get(key).map_or("(nothing)".into(), Value::to_string);
        let plain = |key: &str, fine: &[Value]| -> Result<()> {
            let given = config.get(key).unwrap_or(&Value::Null);
            let given_shown = shown(key);
            ensure!(
                fine.contains(given),
                "config.json has {key} = {given_shown}: not computed here, which is the plain \
                 Llama architecture"
            );
            Ok(())
        };
        plain("model_type", &["llama".into()])?;
        plain("hidden_act", &["silu".into()])?;
        plain("rope_scaling", &[Value::Null])?;
        for bias in ["attention_bias", "mlp_bias"] {
            plain(bias, &[Value::Null, false.into()])?;
        }
        let count = |key: &str| -> Result<usize> {
            let value = config.get(key).and_then(Value::as_u64);
            let value = value.and_then(|v| usize::try_from(v).ok()).filter(|&v| v > 0);
            value.with_context(|| {
                let given = shown(key);
                format!("config.json has {key} = {given}, expected a whole number above 0")
            })
        };
        let optional = |key: &str, or: usize| match config.get(key) {
            None | Some(Value::Null) => Ok(or),
            Some(_) => count(key),
        };
        let (hidden, query_heads) = (count("hidden_size")?, count("num_attention_heads")?);
        // Newer files keep it with the other parameters of the embedding.
        let rope = config.get("rope_parameters").unwrap_or(&Value::Null);
        let kind = rope.get("rope_type").and_then(Value::as_str).unwrap_or("default");
        ensure!(kind == "default", "config.json has the rope_type {kind:?}: not computed here");
        let base = config.get("rope_theta").or(rope.get("rope_theta")).and_then(Value::as_f64);
        let epsilon = config.get("rms_norm_eps").and_then(Value::as_f64);
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ends = match config.get("eos_token_id") {
            Some(Value::Array(ids)) => ids.iter().filter_map(id).collect(),
            Some(value) => id(value).into_iter().collect(),
            None => Vec::new(),
        };
        Config {
            blocks: count("num_hidden_layers")?,
            hidden,
            intermediate: count("intermediate_size")?,
            vocabulary: count("vocab_size")?,
            context: count("max_position_embeddings")?,
            query_heads,
            kv_heads: optional("num_key_value_heads", query_heads)?,
            head_width: optional("head_dim", hidden / query_heads)?,
            rope_base: base.unwrap_or(10_000.0),
            rope: Rope::Halves,
            epsilon: epsilon.context("config.json has no number rms_norm_eps")? as f32,
            ends,
        }
        .checked()
    }

    fn checked(self) -> Result<Self> {
        let Config { query_heads, kv_heads, head_width, rope_base, epsilon, .. } = self;
        if !query_heads.is_multiple_of(kv_heads) {
            bail!("{query_heads} query heads cannot share {kv_heads} key-value heads evenly");
        }
        ensure!(
            head_width > 0 && head_width.is_multiple_of(LANES),
            "heads of {head_width} columns: this decoder takes multiples of {LANES}"
        );
        ensure!(
            rope_base.is_finite() && rope_base > 0.0 && epsilon >= 0.0 && epsilon.is_finite(),
            "a rotary base of {rope_base} with an epsilon of {epsilon}: expected finite ones"
        );
        // Sizes are products of these; the tensors are checked against them.
        let sizes = [self.blocks, self.hidden, self.intermediate, self.vocabulary, query_heads];
        let small = sizes.iter().chain([&head_width]).all(|&n| n < 1 << 28);
        ensure!(small, "sizes of a model beyond 2^28: the file is damaged");
        Ok(self)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    /// A small model.
    pub(crate) fn small() -> Value {
        json!({"model_type": "llama", "hidden_act": "silu", "hidden_size": 64,
            "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 32, "max_position_embeddings": 64,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "eos_token_id": 2,
            "tie_word_embeddings": true})
    }

    #[test]
    fn what_is_not_computed_is_an_error_that_names_it() {
        assert_eq!(Config::of_json(&small()).unwrap().head_width, 16);
        for (key, value, said) in [
            ("model_type", json!("qwen2"), "model_type = \"qwen2\""),
            ("hidden_act", json!("gelu"), "hidden_act"),
            ("rope_scaling", json!({"type": "yarn"}), "rope_scaling"),
            ("rope_parameters", json!({"rope_type": "llama3"}), "llama3"),
            ("attention_bias", json!(true), "attention_bias"),
            ("hidden_size", json!(0), "hidden_size = 0"),
            ("hidden_size", json!(40), "multiples of 16"),
            ("num_key_value_heads", json!(3), "4 query heads cannot share 3"),
            ("num_key_value_heads", json!("x"), "num_key_value_heads = \"x\""),
            ("rms_norm_eps", json!("x"), "rms_norm_eps"),
            ("rope_theta", json!(-1.0), "rotary base of -1"),
            ("vocab_size", json!(1u64 << 40), "2^28"),
        ] {
            let mut config = small();
            config[key] = value;
            let text = format!("{:#}", Config::of_json(&config).unwrap_err());
            assert!(text.contains(said), "{key}: {text}");
        }
    }

    #[test]
    fn several_ends_and_defaults_are_read() {
        let mut config = small();
        config["eos_token_id"] = json!([2, 7]);
        config["head_dim"] = Value::Null;
        config.as_object_mut().unwrap().remove("rope_theta");
        config["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 5e5});
        let config = Config::of_json(&config).unwrap();
        assert_eq!((config.ends, config.rope_base), (vec![2, 7], 5e5));
    }
}
