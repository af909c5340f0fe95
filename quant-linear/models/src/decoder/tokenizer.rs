//! Text to token ids and back: the tokenizer in a GGUF file's header, or `tokenizer.json`.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use quant_linear::checkpoint::Checkpoint;
use quant_linear::checkpoint::gguf::{Header, Kind, Value};
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, Tokenizer};

/// The kind of token in a GGUF file that text never contains: `<|im_start|>`.
const CONTROL: i32 = 3;

/// A model's tokenizer.
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    /// A token that every text starts with.
    start: Option<u32>,
}

impl TextTokenizer {
    /// The tokenizer that belongs to a checkpoint.
    ///
    /// # Errors
    /// If there is none, it is of an unknown kind, or it has not `vocabulary` tokens at most.
    pub fn of(checkpoint: &Checkpoint, vocabulary: usize) -> Result<Self> {
        let found = match checkpoint.gguf() {
            Some(header) => of_gguf(header),
            None => of_folder(checkpoint.path()),
        };
        let found = found.context("the model's tokenizer")?;
        let tokens = found.tokenizer.get_vocab_size(true);
        ensure!(
            tokens <= vocabulary,
            "the tokenizer has {tokens} tokens and the model {vocabulary}: they do not belong \
             together"
        );
        Ok(found)
    }

    /// The ids of a text, control tokens in it included.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode(text, false);
        let encoding = encoding.map_err(|e| anyhow!("cannot tokenize the text: {e}"))?;
        Ok(self.start.into_iter().chain(encoding.get_ids().iter().copied()).collect())
    }

    /// The text of ids, without control tokens.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let text = self.tokenizer.decode(ids, true);
        text.map_err(|e| anyhow!("cannot turn {} tokens into text: {e}", ids.len()))
    }

    /// Decodes as tokens come: each call hands over `id` and gets what text is complete with it.
    ///
    /// # Errors
    /// The function fails if the tokenizer does.
    pub fn stream(&self) -> impl FnMut(u32) -> Result<Option<String>> + '_ {
        let mut stream = self.tokenizer.decode_stream(true);
        move |id| stream.step(id).map_err(|e| anyhow!("cannot turn token {id} into text: {e}"))
    }

    /// A question as a chat model expects it, in the form of ChatML; with it, the id that ends the
    /// answer.
    ///
    /// # Errors
    /// If the tokenizer does not know the form.
    pub fn chat(&self, system: &str, question: &str) -> Result<(String, u32)> {
        let (start, end) = ("<|im_start|>", "<|im_end|>");
        let known = (self.tokenizer.token_to_id(start), self.tokenizer.token_to_id(end));
        let (Some(_), Some(id)) = known else {
            bail!("the tokenizer does not know {start} and {end}: give the whole prompt yourself");
        };
        let turn = |who: &str, text: &str| format!("{start}{who}\n{text}{end}\n");
        let text = [turn("system", system), turn("user", question)].concat();
        Ok((format!("{text}{start}assistant\n"), id))
    }
}

/// The `tokenizer.json` of a folder, or beside a file.
fn of_folder(path: &Path) -> Result<TextTokenizer> {
    let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) };
    let file = folder.join("tokenizer.json");
    let tokenizer = Tokenizer::from_file(&file).map_err(|e| anyhow!("{e}"));
    let tokenizer = tokenizer.with_context(|| format!("cannot read {}", file.display()))?;
    Ok(TextTokenizer { tokenizer, start: None })
}

/// The strings of an array.
fn strings<'a>(header: &'a Header, key: &str) -> Result<Vec<&'a str>> {
    let Some(Value::Array(array)) = header.get(key) else { bail!("the header has no list {key}") };
    let strings = array.strings().with_context(|| format!("{key} is no list of strings"))?;
    let text = |bytes| std::str::from_utf8(bytes).with_context(|| format!("{key} is not UTF-8"));
    strings.map(text).collect()
}

/// Byte-level BPE of a header.
fn of_gguf(header: &Header) -> Result<TextTokenizer> {
    let text = |key: &str| header.get(key).and_then(Value::as_str).unwrap_or("(nothing)");
    let (model, pre) = (text("tokenizer.ggml.model"), text("tokenizer.ggml.pre"));
    // How text is cut before merging; llama.cpp knows dozens by name.
    let cut = match (model, pre) {
        ("gpt2", "smollm") => PreTokenizerWrapper::Sequence(Sequence::new(vec![
            PreTokenizerWrapper::Digits(Digits::new(true)),
            PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, true)),
        ])),
        ("gpt2", "gpt-2") => PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, true)),
        _ => bail!(
            "the GGUF file has tokenizer.ggml.model = {model:?} and tokenizer.ggml.pre = {pre:?}, \
             known are \"gpt2\" with \"smollm\" or \"gpt-2\": give a Hugging Face folder with a \
             tokenizer.json"
        ),
    };
    let tokens = strings(header, "tokenizer.ggml.tokens")?;
    let merges = strings(header, "tokenizer.ggml.merges")?.into_iter().map(|merge| {
        let parts = merge.split_once(' ');
        let parts = parts.with_context(|| format!("the merge {merge:?} is not two tokens"))?;
        Ok((parts.0.to_owned(), parts.1.to_owned()))
    });
    let merges = merges.collect::<Result<Vec<_>>>()?;
    let kinds = match header.get("tokenizer.ggml.token_type") {
        Some(Value::Array(array)) if array.kind() == Kind::I32 => {
            let (words, _) = array.bytes().as_chunks::<4>();
            words.iter().map(|word| i32::from_le_bytes(*word)).collect()
        }
        None => vec![1; tokens.len()],
        Some(_) => bail!("tokenizer.ggml.token_type is no list of i32"),
    };
    ensure!(
        kinds.len() == tokens.len(),
        "{} tokens and {} types of tokens: the file is damaged",
        tokens.len(),
        kinds.len()
    );
    let ids = |token: &&str| (*token).to_owned();
    let vocabulary = tokens.iter().map(ids).zip(0u32..);
    let vocabulary = vocabulary.collect::<tokenizers::models::bpe::Vocab>();
    ensure!(
        vocabulary.len() == tokens.len(),
        "{} of {} tokens are there twice: the file is damaged",
        tokens.len() - vocabulary.len(),
        tokens.len()
    );
    let bpe = BPE::builder().vocab_and_merges(vocabulary, merges).build();
    let bpe = bpe.map_err(|e| anyhow!("the merges do not fit the tokens: {e}"))?;
    let mut tokenizer = Tokenizer::new(bpe);
    tokenizer.with_pre_tokenizer(Some(cut));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    let control = tokens.iter().zip(&kinds).filter(|(_, kind)| **kind == CONTROL);
    let control = control.map(|(token, _)| AddedToken::from(*token, true));
    let added = tokenizer.add_special_tokens(control);
    added.map_err(|e| anyhow!("the control tokens cannot be added: {e}"))?;
    let starts = matches!(header.get("tokenizer.ggml.add_bos_token"), Some(Value::Bool(true)));
    let id = header.get("tokenizer.ggml.bos_token_id").and_then(Value::as_u64);
    let start = id.and_then(|id| u32::try_from(id).ok()).filter(|_| starts);
    Ok(TextTokenizer { tokenizer, start })
}
