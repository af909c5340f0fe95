//! The model folder on disk: `config.json` as numbers, `model.safetensors` as f32 tensors.
//!
//! Every tensor is asked for by name *and* shape, and the shape comes from the configuration, so
//! a folder whose two files do not belong together is found here and not as a strange embedding.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use quant_linear::safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// The sizes of a BERT encoder, as `config.json` gives them.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Width of a token's vector.
    pub hidden: usize,
    /// Number of encoder layers.
    pub layers: usize,
    /// Attention heads per layer; divides `hidden`.
    pub heads: usize,
    /// Width inside the feed-forward half of a layer.
    pub intermediate: usize,
    /// Number of token ids.
    pub vocabulary: usize,
    /// Longest sequence that has position embeddings.
    pub positions: usize,
    /// Number of segment kinds; a lone sentence uses kind 0.
    pub segments: usize,
    /// Added to the variance by every LayerNorm.
    pub epsilon: f32,
}

impl Config {
    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// If a field is missing, or asks for a model that this encoder does not compute.
    pub fn parse(json: &str) -> Result<Self> {
        let fields: Value = serde_json::from_str(json).context("config.json is not valid JSON")?;
        // Each of these changes the arithmetic, so another value would give wrong embeddings.
        for (key, wanted) in [
            ("model_type", "bert"),
            ("hidden_act", "gelu"),
            ("position_embedding_type", "absolute"),
        ] {
            let given = fields.get(key);
            // Older files leave the position embedding out, and mean absolute.
            let absent_is_fine = given.is_none() && key == "position_embedding_type";
            ensure!(
                absent_is_fine || given.and_then(Value::as_str) == Some(wanted),
                "config.json has {key} = {}, this example computes \"{wanted}\" only: give it a \
                 folder of all-MiniLM-L6-v2 or of another plain BERT encoder",
                shown(given)
            );
        }
        let count = |key: &str| -> Result<usize> {
            let given = fields.get(key).and_then(Value::as_u64);
            let value = given.and_then(|v| usize::try_from(v).ok()).filter(|&v| v > 0);
            value.with_context(|| {
                let given = shown(fields.get(key));
                format!("config.json has {key} = {given}, expected a whole number above 0")
            })
        };
        let epsilon = fields.get("layer_norm_eps").and_then(Value::as_f64);
        let config = Self {
            hidden: count("hidden_size")?,
            layers: count("num_hidden_layers")?,
            heads: count("num_attention_heads")?,
            intermediate: count("intermediate_size")?,
            vocabulary: count("vocab_size")?,
            positions: count("max_position_embeddings")?,
            segments: count("type_vocab_size")?,
            epsilon: epsilon.context("config.json has no number layer_norm_eps")? as f32,
        };
        ensure!(
            config.hidden.is_multiple_of(config.heads),
            "config.json has hidden_size {} and num_attention_heads {}: the first must be a \
             multiple of the second",
            config.hidden,
            config.heads
        );
        Ok(config)
    }
}

/// A JSON value for a message, where a missing one must not read as `null`.
fn shown(value: Option<&Value>) -> String {
    value.map_or_else(|| "(nothing)".to_owned(), Value::to_string)
}

/// A model folder, read and not yet interpreted.
pub struct ModelFolder {
    /// Where it was read from.
    pub path: PathBuf,
    /// Its sizes.
    pub config: Config,
    weights: Vec<u8>,
}

impl ModelFolder {
    /// Reads `config.json` and `model.safetensors` in `path`.
    ///
    /// # Errors
    /// If the folder or one of the files is missing or is not what its name says.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            bail!(
                "--model {} is not a folder: give the folder that holds model.safetensors, \
                 tokenizer.json and config.json",
                path.display()
            );
        }
        let config = String::from_utf8(read(path, "config.json")?)
            .context("config.json is not UTF-8")
            .and_then(|text| Config::parse(&text))
            .with_context(|| format!("in the model folder {}", path.display()))?;
        let weights = read(path, "model.safetensors")?;
        Ok(Self { path: path.to_owned(), config, weights })
    }

    /// The tensors of `model.safetensors`.
    ///
    /// # Errors
    /// If the file is not a safetensors file.
    pub fn weights(&self) -> Result<Weights<'_>> {
        let tensors = SafeTensors::deserialize(&self.weights).with_context(|| {
            format!(
                "{} is not a valid safetensors file ({} bytes): fetch it again",
                self.path.join("model.safetensors").display(),
                self.weights.len()
            )
        })?;
        Ok(Weights::new(tensors))
    }
}

/// Reads one file of a model folder.
///
/// # Errors
/// If it cannot be read; the message names the three files that a folder holds.
pub(super) fn read(folder: &Path, name: &str) -> Result<Vec<u8>> {
    std::fs::read(folder.join(name)).with_context(|| {
        format!(
            "cannot read {}: the folder given with --model must hold model.safetensors, \
             tokenizer.json and config.json",
            folder.join(name).display()
        )
    })
}

/// The tensors of a checkpoint, looked up by name and expected shape.
pub struct Weights<'a> {
    tensors: SafeTensors<'a>,
}

impl<'a> Weights<'a> {
    /// Looks tensors up in `tensors`.
    pub(super) fn new(tensors: SafeTensors<'a>) -> Self {
        Self { tensors }
    }

    /// Copies out the f32 tensor `name`, row-major.
    ///
    /// # Errors
    /// If it is missing, has another shape than `shape`, or is not F32.
    pub fn f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let tensor = self.tensors.tensor(name).ok().with_context(|| {
            format!(
                "model.safetensors has {} tensors and none is named {name}: expected the names \
                 of sentence-transformers/all-MiniLM-L6-v2",
                self.tensors.len()
            )
        })?;
        ensure!(
            tensor.shape() == shape,
            "{name} has shape {:?} and config.json asks for {shape:?}: the two files do not \
             belong to one model",
            tensor.shape()
        );
        ensure!(
            tensor.dtype() == Dtype::F32,
            "{name} is stored as {:?} and this example reads F32: convert the checkpoint first",
            tensor.dtype()
        );
        let (words, _) = tensor.data().as_chunks::<4>();
        Ok(words.iter().map(|&word| f32::from_le_bytes(word)).collect())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use quant_linear::safetensors::tensor::{TensorView, serialize};

    /// The published configuration, without the fields that nothing reads.
    pub(crate) const CONFIG: &str = r#"{"model_type": "bert", "hidden_act": "gelu", "hidden_size": 384,
        "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536,
        "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2,
        "layer_norm_eps": 1e-12}"#;

    fn message(result: Result<impl Sized>) -> String {
        result.err().map_or_else(String::new, |e| format!("{e:#}"))
    }

    #[test]
    fn config_of_minilm_is_read() {
        let config = Config::parse(CONFIG).unwrap();
        assert_eq!((config.hidden, config.heads, config.layers), (384, 12, 6));
        assert_eq!(config.epsilon, 1e-12);
    }

    #[test]
    fn config_that_would_be_computed_wrongly_is_an_error() {
        for (from, to, said) in [
            ("\"gelu\"", "\"relu\"", "hidden_act"),
            ("\"bert\"", "\"roberta\"", "model_type"),
            ("\"type_vocab_size\"", "\"position_embedding_type\": \"rotary\", \"x\"", "rotary"),
            ("_heads\": 12", "_heads\": 7", "multiple"),
            ("_heads\": 12", "_heads\": 0", "num_attention_heads"),
            ("layer_norm_eps", "eps", "layer_norm_eps"),
            ("{", "", "JSON"),
        ] {
            let text = message(Config::parse(&CONFIG.replacen(from, to, 1)));
            assert!(text.contains(said), "{from} -> {to} said: {text}");
        }
    }

    #[test]
    fn tensor_is_found_by_name_shape_and_dtype() {
        let bytes: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let wide = TensorView::new(Dtype::F32, vec![1, 2], &bytes).unwrap();
        let half = TensorView::new(Dtype::F16, vec![2, 2], &bytes).unwrap();
        let file = serialize([("w", wide), ("h", half)], None).unwrap();
        let weights = Weights::new(SafeTensors::deserialize(&file).unwrap());
        assert_eq!(weights.f32("w", &[1, 2]).unwrap(), [1.5, -2.0]);
        assert!(message(weights.f32("v", &[1, 2])).contains("none is named v"));
        assert!(message(weights.f32("w", &[2])).contains("[1, 2] and config.json asks for [2]"));
        assert!(message(weights.f32("h", &[2, 2])).contains("F16"));
    }

    #[test]
    fn folder_that_is_not_there_says_what_to_give() {
        let text = message(ModelFolder::open(Path::new("no such folder")));
        assert!(text.contains("no such folder") && text.contains("tokenizer.json"), "{text}");
    }
}
