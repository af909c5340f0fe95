//! `perplexity`: e to the mean of -ln p(token), over all tokens of a text but each window's first.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use quant_linear_models::decoder::{Decoder, Logits, Step, TextTokenizer};
use quant_linear_models::linear::Encoding;
use serde::Serialize;

use crate::Model;

/// Tokens in one pass: their logits are 200 kB each.
const CHUNK: usize = 128;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: Model,
    /// A UTF-8 text
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Only its first tokens
    #[arg(long, value_name = "N", default_value_t = 1024)]
    tokens: usize,
    /// Tokens that are predicted from one another; the next window starts anew
    #[arg(long, value_name = "N", default_value_t = 1024)]
    window: usize,
    /// Only these, or `stored` [default: f32 and all]
    #[arg(long, value_name = "ENCODING,..", value_delimiter = ',')]
    encodings: Vec<String>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Line {
    encoding: String,
    perplexity: f64,
    tokens: usize,
    tokens_per_second: f64,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(args.window >= 2, "windows of {} tokens: give at least 2", args.window);
    let text = std::fs::read_to_string(&args.text).with_context(|| {
        format!("cannot read --text {}: give a UTF-8 text file", args.text.display())
    })?;
    let encodings = match args.encodings.is_empty() {
        true => Encoding::all().into_iter().map(Some).collect(),
        false => {
            let parse = |name: &String| match name.as_str() {
                "stored" => Ok(None),
                name => name.parse().map(Some),
            };
            args.encodings.iter().map(parse).collect::<Result<Vec<_>>>()?
        }
    };
    let pool = args.model.threads()?;
    let mut lines = Vec::new();
    for encoding in encodings {
        let decoder = args.model.open(encoding)?;
        let tokenizer = TextTokenizer::of(decoder.checkpoint(), decoder.config().vocabulary)?;
        let mut ids = tokenizer.encode(&text)?;
        ids.truncate(args.tokens);
        ensure!(ids.len() >= 2, "the text has {} tokens: give one of at least 2", ids.len());
        let start = Instant::now();
        let (sum, count) = pool.install(|| loss(&decoder, &ids, args.window))?;
        let line = Line {
            encoding: encoding.map_or("stored".into(), |encoding| encoding.to_string()),
            perplexity: (sum / count as f64).exp(),
            tokens: count,
            tokens_per_second: ids.len() as f64 / start.elapsed().as_secs_f64(),
        };
        lines.push(line);
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&lines)?);
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(["encoding", "perplexity", "over the first", "tokens", "tokens/s"]);
    for line in &lines {
        table.add_row([
            line.encoding.clone(),
            format!("{:.3}", line.perplexity),
            format!("{:.3}", line.perplexity / lines[0].perplexity),
            line.tokens.to_string(),
            format!("{:.0}", line.tokens_per_second),
        ]);
    }
    table.column_iter_mut().skip(1).for_each(|c| c.set_cell_alignment(CellAlignment::Right));
    println!("{table}");
    Ok(())
}

/// The sum of -ln p of tokens after their predecessors, and their number.
fn loss(decoder: &Decoder, ids: &[u32], window: usize) -> Result<(f64, usize)> {
    let vocabulary = decoder.config().vocabulary;
    let (mut sum, mut count) = (0.0, 0);
    for window in ids.chunks(window).filter(|window| window.len() > 1) {
        let mut sequence = decoder.sequence();
        let (given, next) = (&window[..window.len() - 1], &window[1..]);
        for (tokens, next) in given.chunks(CHUNK).zip(next.chunks(CHUNK)) {
            let step = Step { sequence: &mut sequence, tokens };
            let logits = decoder.forward(&mut [step], Logits::All)?;
            for (logits, id) in logits.chunks_exact(vocabulary).zip(next) {
                sum += minus_ln_p(logits, *id as usize)?;
                count += 1;
            }
        }
    }
    Ok((sum, count))
}

/// `ln(sum(exp(logits))) - logits[id]`, in f64.
fn minus_ln_p(logits: &[f32], id: usize) -> Result<f64> {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|l| libm::exp(f64::from(*l) - largest)).sum();
    let loss = libm::log(sum) + largest - f64::from(logits[id]);
    ensure!(loss.is_finite(), "the logits are not finite: the model's weights are damaged");
    Ok(loss)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loss_is_that_of_softmax() {
        let loss = minus_ln_p(&[1000.0, 1000.0 + 3.0f32.ln(), f32::NEG_INFINITY], 1).unwrap();
        assert!((loss - (4.0f64 / 3.0).ln()).abs() < 1e-4, "{loss}");
        assert!(minus_ln_p(&[0.0, f32::NAN], 0).is_err());
    }
}
