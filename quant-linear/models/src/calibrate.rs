//! Runs a dense model over text for a calibration: part by part, showing what its layers are given.
//!
//! | model | text | parts |
//! |---|---|---|
//! | decoder: a GGUF file, or a folder of a Llama | windows of as many tokens, one after the other | blocks, and the head |
//! | encoder: a folder of a BERT | each line a sentence | layers |

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use quant_linear::checkpoint::{Checkpoint, TensorSource};

use crate::decoder::{Decoder, Options, Pass, TextTokenizer};
use crate::encoder::{Encoder, ModelFolder, tokenize};
use crate::linear::{Encoding, Observer, dense};

/// How much of a text is run.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Tokens at the most.
    pub tokens: usize,
    /// Tokens of a decoder's window.
    pub window: usize,
}

/// A model with its text.
pub struct Runner(Kind);

enum Kind {
    Decoder(Box<Pass>),
    Encoder { encoder: Box<Encoder>, sentences: Vec<Vec<u32>>, layers: usize, next: usize },
}

impl Runner {
    /// Opens a dense model and tokenizes a text.
    ///
    /// # Errors
    /// A model of another architecture, or one that is quantized already; a text that is shorter
    /// than a window, or without sentences.
    pub fn open(model: &Path, text: &str, sizes: Sizes) -> Result<Self> {
        ensure!(sizes.window > 0, "windows of no tokens: give at least 1");
        let checkpoint = Checkpoint::open(model)?;
        match checkpoint.config().model_type() {
            Some("bert") if checkpoint.gguf().is_none() => Self::encoder(model, text, sizes),
            _ => Self::decoder(model, text, sizes),
        }
    }

    fn decoder(model: &Path, text: &str, sizes: Sizes) -> Result<Self> {
        let options = Options { encoding: Some(Encoding::F32), head: None };
        let decoder = Decoder::open(model, options)?;
        let tokenizer = TextTokenizer::of(decoder.checkpoint(), decoder.config().vocabulary)?;
        let mut ids = tokenizer.encode(text)?;
        let Sizes { tokens, window } = sizes;
        ensure!(
            ids.len() >= window,
            "the text has {} tokens, and a window {window}: give more text, or a shorter --window",
            ids.len()
        );
        ensure!(
            tokens >= window,
            "{tokens} tokens are asked for, and a window has {window}: give more of the one, or \
             less of the other"
        );
        // Whole windows alone: the first tokens of a window are no usual ones.
        ids.truncate(tokens.min(ids.len()) / window * window);
        let windows = ids.chunks(window).map(<[u32]>::to_vec).collect();
        Ok(Self(Kind::Decoder(Box::new(Pass::new(decoder, windows)?))))
    }

    fn encoder(model: &Path, text: &str, sizes: Sizes) -> Result<Self> {
        let folder = ModelFolder::open(model)?;
        let encoder = Encoder::load(&folder.config, &folder.weights()?, &dense)?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let mut left = sizes.tokens;
        let mut sentences = tokenize(&folder, &lines.map(str::to_owned).collect::<Vec<_>>())?;
        sentences.retain(|ids| {
            let fits = ids.len() <= left;
            left -= if fits { ids.len() } else { 0 };
            fits
        });
        if sentences.is_empty() {
            bail!("the text has no line of at most {} tokens: give sentences", sizes.tokens);
        }
        let layers = folder.config.layers;
        Ok(Self(Kind::Encoder { encoder: Box::new(encoder), sentences, layers, next: 0 }))
    }

    /// Parts of the model.
    pub fn parts(&self) -> usize {
        match &self.0 {
            Kind::Decoder(pass) => pass.parts(),
            Kind::Encoder { layers, .. } => *layers,
        }
    }

    /// Rows that every input gets.
    pub fn rows(&self) -> u64 {
        match &self.0 {
            Kind::Decoder(pass) => pass.rows(),
            Kind::Encoder { sentences, .. } => sentences.iter().map(|ids| ids.len() as u64).sum(),
        }
    }

    /// Runs the next part; `observe` sees the inputs of its layers, the same ones in the same order
    /// for every number of threads.
    ///
    /// # Errors
    /// A layer that fails, or what `observe` refuses.
    pub fn run(&mut self, observe: &mut Observer<'_>) -> Result<()> {
        match &mut self.0 {
            Kind::Decoder(pass) => pass.run(observe),
            Kind::Encoder { encoder, sentences, next, .. } => {
                // All layers are run for each: the model is small, and its moments are not.
                let own = format!("encoder.layer.{next}.");
                *next += 1;
                let mut only = |names: &[&str], k: usize, rows: &[f32]| {
                    if names.iter().all(|name| name.starts_with(&own)) {
                        observe(names, k, rows)?;
                    }
                    Ok(())
                };
                let ran = crate::linear::alone(|| encoder.embed(sentences, &mut only));
                ran.map(|_| ()).context("while the text was run")
            }
        }
    }
}
