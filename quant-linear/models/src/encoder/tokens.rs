//! Sentences to token ids, as sentence-transformers does it for this model.

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use tokenizers::{Tokenizer, TruncationParams};

use super::folder::{ModelFolder, read};

/// Tokenizes with the folder's `tokenizer.json`; returns ids, special tokens included.
///
/// The published `tokenizer.json` pads to 128 and cuts at 128 tokens. Both are replaced: the
/// encoder needs no padding, and sentence-transformers cuts at `max_seq_length` (256).
///
/// # Errors
/// If the tokenizer cannot be read or fails on a sentence.
pub fn tokenize(folder: &ModelFolder, sentences: &[String]) -> Result<Vec<Vec<u32>>> {
    let mut tokenizer = Tokenizer::from_bytes(read(&folder.path, "tokenizer.json")?)
        .map_err(|e| anyhow!("{e}"))
        .with_context(|| {
            format!(
                "{} is not a tokenizer that this example can run",
                folder.path.join("tokenizer.json").display()
            )
        })?;
    let truncation = TruncationParams { max_length: max_tokens(folder)?, ..Default::default() };
    tokenizer
        .with_padding(None)
        .with_truncation(Some(truncation))
        .map_err(|e| anyhow!("cannot set the tokenizer's maximum length: {e}"))?;
    sentences
        .iter()
        .map(|sentence| {
            let encoding = tokenizer
                .encode(sentence.as_str(), true)
                .map_err(|e| anyhow!("cannot tokenize {sentence:?}: {e}"))?;
            Ok(encoding.get_ids().to_vec())
        })
        .collect()
}

/// `max_seq_length` of `sentence_bert_config.json`, or all positions where the file is absent.
fn max_tokens(folder: &ModelFolder) -> Result<usize> {
    let positions = folder.config.positions;
    let file = "sentence_bert_config.json";
    let max = if folder.path.join(file).exists() {
        let bytes = read(&folder.path, file)?;
        let fields: Value =
            serde_json::from_slice(&bytes).with_context(|| format!("{file} is not valid JSON"))?;
        let given = fields.get("max_seq_length").and_then(Value::as_u64);
        let given = given.with_context(|| format!("{file} has no number max_seq_length"))?;
        usize::try_from(given).unwrap_or(usize::MAX).min(positions)
    } else {
        positions
    };
    // Two special tokens frame every sentence, so below three nothing of it is left.
    ensure!(max >= 3, "{file} allows {max} tokens a sentence, expected at least 3");
    Ok(max)
}
