//! `generate`: continues a text, and prints it as it comes.

use std::io::{Write, stdout};

use anyhow::{Result, ensure};
use quant_linear_models::decoder::{Logits, Sampler, Sampling, Step, TextTokenizer};
use quant_linear_models::linear::Encoding;

use crate::Model;

/// Tokens of the prompt in one pass: it bounds the memory of long ones.
pub(crate) const CHUNK: usize = 256;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: Model,
    /// The text to continue
    #[arg(value_name = "PROMPT")]
    prompt: String,
    /// Take the prompt as a question, and answer it (models of ChatML)
    #[arg(long)]
    chat: bool,
    /// What a chat begins with
    #[arg(long, value_name = "TEXT", default_value = "You are a helpful assistant.")]
    system: String,
    /// f32, or weight-activations: mxfp4-fp4, nvfp4-mxint8, .. [default: as stored]
    #[arg(long, value_name = "ENCODING")]
    encoding: Option<Encoding>,
    /// At most so many new tokens
    #[arg(long, value_name = "N", default_value_t = 128)]
    tokens: usize,
    /// 0 takes the likeliest token, more draws
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Draw from so many of the likeliest; 0 is all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Draw from the likeliest that have this share together
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Of the draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let &Args { temperature, top_k, top_p, seed, .. } = args;
    let mut sampler = Sampler::new(Sampling { temperature, top_k, top_p, seed })?;
    ensure!(!args.prompt.is_empty(), "the prompt is empty: give some text");
    let pool = args.model.threads()?;
    let decoder = args.model.open(args.encoding)?;
    let tokenizer = TextTokenizer::of(decoder.checkpoint(), decoder.config().vocabulary)?;
    let mut ends = decoder.config().ends.clone();
    let prompt = match args.chat {
        true => {
            let (prompt, end) = tokenizer.chat(&args.system, &args.prompt)?;
            ends.push(end);
            prompt
        }
        false => args.prompt.clone(),
    };
    let ids = tokenizer.encode(&prompt)?;
    let context = decoder.config().context;
    ensure!(
        ids.len() < context,
        "a prompt of {} tokens, and the model's context is {context}: shorten it",
        ids.len()
    );
    let mut sequence = decoder.sequence();
    let mut logits = Vec::new();
    for tokens in ids.chunks(CHUNK) {
        let step = Step { sequence: &mut sequence, tokens };
        logits = pool.install(|| decoder.forward(&mut [step], Logits::Last))?;
    }
    let mut text = tokenizer.stream();
    let mut out = stdout();
    for _ in 0..args.tokens.min(context - ids.len()) {
        let id = sampler.next(&logits)?;
        if ends.contains(&id) {
            break;
        }
        if let Some(text) = text(id)? {
            // What a model says is no command to the terminal.
            let plain = |c: &char| !c.is_control() || matches!(c, '\n' | '\t');
            write!(out, "{}", text.chars().filter(plain).collect::<String>())?;
            out.flush()?;
        }
        let step = Step { sequence: &mut sequence, tokens: &[id] };
        logits = pool.install(|| decoder.forward(&mut [step], Logits::Last))?;
    }
    writeln!(out)?;
    Ok(())
}
