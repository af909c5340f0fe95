//! `invariance`: the same prompts in other batches, chunks, on other threads and backends. The
//! digest of all logits is printed for each; with exact layers they are one, with a float GEMM they
//! are not.

use anyhow::{Result, ensure};
use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use quant_linear_models::decoder::{Decoder, Logits, Sequence, Step, TextTokenizer, argmax};
use quant_linear_models::linear::Encoding;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{Model, pool, runtime};

/// Of different lengths, so that a batch ends raggedly.
const PROMPTS: [&str; 8] = [
    "The capital of France is",
    "Once upon a time there was a little robot who lived at the edge of the sea and counted waves.",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "Water boils at 100 degrees Celsius, and it freezes at",
    "In 1969, two astronauts walked on the Moon while a third stayed in orbit. Their names were",
    "Rust",
    "To make bread you need flour, water, salt and yeast. First, mix the flour with the",
    "The sum of the angles of a triangle is 180 degrees; that of a square, however, is",
];

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: Model,
    /// The exact ones to show [default: mxfp4-fp4, nvfp4-mxint8]
    #[arg(long, value_name = "ENCODING,..", value_delimiter = ',')]
    encodings: Vec<Encoding>,
    /// Tokens that each prompt is continued by
    #[arg(long, value_name = "N", default_value_t = 8)]
    tokens: usize,
    /// Tokens that the scalar reference computes, which takes a third of a second for each
    #[arg(long, value_name = "N", default_value_t = 8)]
    reference_tokens: usize,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
}

/// How the prompts are run.
#[derive(Clone, Copy)]
struct Way {
    /// Prompts together.
    batch: usize,
    /// Tokens of each in one pass.
    chunk: usize,
    threads: usize,
}

const WHOLE: usize = usize::MAX;

/// The first is what the others are compared with.
const WAYS: [Way; 8] = [
    Way { batch: 1, chunk: WHOLE, threads: 1 },
    Way { batch: 3, chunk: WHOLE, threads: 1 },
    Way { batch: 8, chunk: WHOLE, threads: 1 },
    Way { batch: 1, chunk: 1, threads: 1 },
    Way { batch: 1, chunk: 7, threads: 1 },
    Way { batch: 8, chunk: 64, threads: 1 },
    Way { batch: 1, chunk: WHOLE, threads: 2 },
    Way { batch: 8, chunk: 7, threads: 2 },
];

/// What came out: of each prompt the logits of all its tokens, and the tokens after it.
#[derive(Clone)]
struct Outcome {
    logits: Vec<Vec<f32>>,
    tokens: Vec<Vec<u32>>,
}

#[derive(Serialize)]
struct Line {
    encoding: String,
    batch: usize,
    /// 0 is the whole prompt.
    chunk: usize,
    threads: usize,
    backend: String,
    /// What the others of its encoding are compared with.
    first: bool,
    digest: String,
    logits: usize,
    logits_differ: usize,
    tokens: usize,
    tokens_differ: usize,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut encodings = args.encodings.clone();
    if encodings.is_empty() {
        encodings = vec!["mxfp4-fp4".parse()?, "nvfp4-mxint8".parse()?];
    }
    let mut lines = Vec::new();
    for encoding in encodings.into_iter().chain([Encoding::F32]) {
        compare(args, encoding, &mut lines)?;
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&lines)?);
    } else {
        println!("{}", table(&lines));
    }
    let exact = |line: &&Line| line.encoding != Encoding::F32.to_string();
    let compared = lines.iter().filter(|line| !line.first);
    let (exact, float): (Vec<&Line>, Vec<&Line>) = compared.partition(exact);
    let differ = |lines: &[&Line]| -> usize { lines.iter().map(|l| l.logits_differ).sum() };
    let logits = |lines: &[&Line]| -> usize { lines.iter().map(|l| l.logits).sum() };
    println!(
        "exact: {} runs, {} logits compared, {} differ; f32: {} of {} differ",
        exact.len(),
        logits(&exact),
        differ(&exact),
        differ(&float),
        logits(&float)
    );
    ensure!(
        logits(&exact) > 0 && differ(&exact) == 0,
        "the logits depend on how they are computed"
    );
    let tokens: usize = exact.iter().map(|line| line.tokens_differ).sum();
    ensure!(tokens == 0, "{tokens} tokens depend on how they are computed");
    Ok(())
}

/// All ways of one encoding, and the reference on a part.
fn compare(args: &Args, encoding: Encoding, lines: &mut Vec<Line>) -> Result<()> {
    let mut decoder = args.model.open(Some(encoding))?;
    let tokenizer = TextTokenizer::of(decoder.checkpoint(), decoder.config().vocabulary)?;
    let prompts: Vec<Vec<u32>> =
        PROMPTS.iter().map(|text| tokenizer.encode(text)).collect::<Result<_>>()?;
    let backend = match encoding {
        Encoding::F32 => "faer",
        Encoding::Quantized { .. } => args.model.backend.as_deref().unwrap_or("the fastest"),
    };
    let mut first: Option<Outcome> = None;
    for way in WAYS {
        let outcome =
            pool(way.threads)?.install(|| run_all(&decoder, &prompts, way, args.tokens))?;
        let is_first = first.is_none();
        let first = first.get_or_insert_with(|| outcome.clone());
        lines.push(Line { first: is_first, ..line(encoding, way, backend, (first, &outcome)) });
    }
    if encoding == Encoding::F32 {
        return Ok(());
    }
    // The first tokens of a prompt, and the logits that they had before.
    let (Some(first), vocabulary) = (first, decoder.config().vocabulary) else { return Ok(()) };
    let longest = prompts.iter().enumerate().max_by_key(|(_, ids)| ids.len());
    let (index, ids) = longest.unwrap_or((0, &prompts[0]));
    let len = ids.len().min(args.reference_tokens);
    let before =
        Outcome { logits: vec![first.logits[index][..len * vocabulary].to_vec()], tokens: vec![] };
    decoder.set_runtime(&runtime("reference")?);
    let way = WAYS[0];
    let outcome = pool(1)?.install(|| run_all(&decoder, &[ids[..len].to_vec()], way, 0))?;
    let part = line(encoding, way, "the fastest, a part", (&before, &before));
    lines.push(Line { first: true, ..part });
    lines.push(line(encoding, way, "reference, that part", (&before, &outcome)));
    Ok(())
}

fn line(
    encoding: Encoding,
    way: Way,
    backend: &str,
    (first, outcome): (&Outcome, &Outcome),
) -> Line {
    let mut digest = Sha256::new();
    for logit in outcome.logits.iter().flatten() {
        digest.update(logit.to_bits().to_le_bytes());
    }
    let digest = digest.finalize()[..6].iter().map(|byte| format!("{byte:02x}")).collect();
    let pairs = first.logits.iter().flatten().zip(outcome.logits.iter().flatten());
    let tokens = first.tokens.iter().flatten().zip(outcome.tokens.iter().flatten());
    Line {
        encoding: encoding.to_string(),
        batch: way.batch,
        chunk: if way.chunk == WHOLE { 0 } else { way.chunk },
        threads: way.threads,
        backend: backend.to_owned(),
        first: false,
        digest,
        logits: outcome.logits.iter().map(Vec::len).sum(),
        logits_differ: pairs.filter(|(a, b)| a.to_bits() != b.to_bits()).count(),
        tokens: outcome.tokens.iter().map(Vec::len).sum(),
        tokens_differ: tokens.filter(|(a, b)| a != b).count(),
    }
}

/// Runs all prompts in batches, then continues each greedily, in the same batches.
fn run_all(decoder: &Decoder, prompts: &[Vec<u32>], way: Way, tokens: usize) -> Result<Outcome> {
    let vocabulary = decoder.config().vocabulary;
    let mut outcome = Outcome { logits: Vec::new(), tokens: Vec::new() };
    for batch in prompts.chunks(way.batch) {
        let mut sequences: Vec<Sequence> = batch.iter().map(|_| decoder.sequence()).collect();
        let mut all: Vec<Vec<f32>> = vec![Vec::new(); batch.len()];
        let longest = batch.iter().map(Vec::len).max().unwrap_or(0);
        let mut start = 0;
        while start < longest {
            let end = start.saturating_add(way.chunk);
            let tokens = |ids: &'_ Vec<u32>| start.min(ids.len())..end.min(ids.len());
            let going: Vec<usize> = (0..batch.len()).filter(|i| batch[*i].len() > start).collect();
            let mut steps: Vec<Step<'_>> = sequences
                .iter_mut()
                .zip(batch)
                .filter(|(_, ids)| ids.len() > start)
                .map(|(sequence, ids)| Step { sequence, tokens: &ids[tokens(ids)] })
                .collect();
            let logits = decoder.forward(&mut steps, Logits::All)?;
            let mut rest = &logits[..];
            for (step, i) in steps.iter().zip(&going) {
                let (own, later) = rest.split_at(step.tokens.len() * vocabulary);
                all[*i].extend_from_slice(own);
                rest = later;
            }
            start = end;
        }
        let mut next: Vec<Vec<u32>> = vec![Vec::new(); batch.len()];
        let mut last: Vec<Vec<f32>> =
            all.iter().map(|l| l[l.len().saturating_sub(vocabulary)..].to_vec()).collect();
        for _ in 0..tokens {
            for (ids, logits) in next.iter_mut().zip(&last) {
                ids.push(argmax(logits)?);
            }
            let mut steps: Vec<Step<'_>> = sequences
                .iter_mut()
                .zip(&next)
                .map(|(sequence, ids)| Step { sequence, tokens: &ids[ids.len() - 1..] })
                .collect();
            let logits = decoder.forward(&mut steps, Logits::Last)?;
            last = logits.chunks_exact(vocabulary).map(<[f32]>::to_vec).collect();
            all.iter_mut().zip(&last).for_each(|(all, last)| all.extend_from_slice(last));
        }
        outcome.logits.append(&mut all);
        outcome.tokens.append(&mut next);
    }
    Ok(outcome)
}

fn table(lines: &[Line]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header([
        "encoding", "batch", "chunk", "threads", "backend", "digest", "logits", "differ", "tokens",
        "differ",
    ]);
    for line in lines {
        table.add_row([
            line.encoding.clone(),
            line.batch.to_string(),
            if line.chunk == 0 { "whole".into() } else { line.chunk.to_string() },
            line.threads.to_string(),
            line.backend.clone(),
            line.digest.clone(),
            line.logits.to_string(),
            line.logits_differ.to_string(),
            line.tokens.to_string(),
            line.tokens_differ.to_string(),
        ]);
    }
    for column in [1, 3, 6, 7, 8, 9] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
