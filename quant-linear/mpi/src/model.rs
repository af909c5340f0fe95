//! `fp4-mpi model`: a whole model split over the ranks, beside one process and beside what a
//! reduction of rounded parts gives.
//!
//! Every rank reads the whole model and keeps its part: what is compared are bits, not memory.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, ensure};
use fp4_core::FloatType;
use fp4_mpi::Mpi;
use quant_linear::sharded::Communicator;
use quant_linear_models::decoder::{Decoder, Logits, Options, Step, TextTokenizer, argmax};
use quant_linear_models::encoder::{Encoder, ModelFolder, tokenize};
use quant_linear_models::linear::{Encoding, Linear};

use crate::split::{Changed, Rounded, Split, is_row_parallel};

/// Arguments of `fp4-mpi model`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A folder of the sentence encoder all-MiniLM-L6-v2, or a GGUF file or folder of a decoder.
    path: PathBuf,
    /// The layers' encoding.
    #[arg(long, default_value = "nvfp4-fp4")]
    encoding: Encoding,
    /// Tokens that a decoder appends to each prompt.
    #[arg(long, default_value_t = 24)]
    tokens: usize,
    /// Numbers of ranks to count the outputs of rounded parts for, in one process.
    #[arg(long, value_delimiter = ',', default_values_t = [2, 4, 8])]
    rounded: Vec<usize>,
}

const SENTENCES: [&str; 6] = [
    "The harbour froze over in January.",
    "Ice closed the port for three weeks, and nobody had seen that before.",
    "A good broth needs hours, not minutes.",
    "She tuned the cello a little flat.",
    "Interest rates rose again, while the price of bread did not.",
    "Tensor parallelism splits a matrix product over several devices and adds the parts.",
];

const PROMPTS: [&str; 6] = [
    "The capital of France is",
    "Once upon a time there was a",
    "To make bread you need flour, water and",
    "The sum of two and three is",
    "In the beginning of the twentieth century,",
    "Water boils at",
];

/// Values of one run, to be compared bit for bit.
struct Run {
    values: Vec<u32>,
    tokens: Vec<u32>,
}

impl Run {
    /// How many values and how many tokens differ.
    fn differ(&self, other: &Run) -> [usize; 2] {
        let count = |a: &[u32], b: &[u32]| {
            a.iter().zip(b).filter(|(a, b)| a != b).count() + a.len().abs_diff(b.len())
        };
        [count(&self.values, &other.values), count(&self.tokens, &other.tokens)]
    }
}

/// How the layers are made.
enum Way<'a> {
    Whole,
    Split(&'a Arc<Mpi>),
    Rounded(usize, FloatType, &'a Arc<Changed>),
}

impl Way<'_> {
    /// What stands for a quantized layer; `None` for itself.
    fn replace(&self, name: &str, layer: &dyn Linear) -> Result<Option<Box<dyn Linear>>> {
        let quantized = layer.quantized().context("the encoding f32 is not split; give another")?;
        Ok(match self {
            Way::Whole => None,
            Way::Split(comm) => Some(Box::new(Split::of(quantized, name, comm)?)),
            Way::Rounded(ranks, ty, changed) => match is_row_parallel(name) {
                true => Some(Box::new(Rounded::of(quantized, *ranks, *ty, changed)?)),
                false => None,
            },
        })
    }
}

fn encoder(args: &Args, way: &Way<'_>) -> Result<Run> {
    let folder = ModelFolder::open(&args.path)?;
    let weights = folder.weights()?;
    let tokens = tokenize(&folder, &SENTENCES.map(String::from))?;
    let made = Encoder::load(&folder.config, &weights, &|parts| {
        let layer = args.encoding.build(parts)?;
        Ok(way.replace(parts.name, &*layer)?.unwrap_or(layer))
    })?;
    let embeddings = made.embed(&tokens, &mut |_, _, _| Ok(()))?;
    let values = embeddings.iter().flatten().map(|v| v.to_bits()).collect();
    Ok(Run { values, tokens: Vec::new() })
}

struct Whole<'a>(&'a quant_linear::QuantLinear);

impl Linear for Whole<'_> {
    fn forward(&self, x: &[f32], rows: usize, y: &mut [f32]) -> Result<()> {
        Ok(self.0.forward_into(x.into(), rows, y.into())?)
    }

    fn quantized(&self) -> Option<&quant_linear::QuantLinear> {
        Some(self.0)
    }
}

/// Logits of the prompts and of each token that follows, greedily.
fn decoder(args: &Args, way: &Way<'_>) -> Result<Run> {
    let options = Options { encoding: Some(args.encoding), head: None };
    let mut decoder = Decoder::open(&args.path, options)?;
    if !matches!(way, Way::Whole) {
        decoder.replace_linears(|layer| {
            let quantized = layer.quantized().context("it is not quantized")?;
            way.replace(&layer.name, &Whole(quantized))
        })?;
    }
    let tokenizer = TextTokenizer::of(decoder.checkpoint(), decoder.config().vocabulary)?;
    let mut run = Run { values: Vec::new(), tokens: Vec::new() };
    for prompt in PROMPTS {
        let mut sequence = decoder.sequence();
        let mut next = tokenizer.encode(prompt)?;
        for _ in 0..args.tokens {
            let step = Step { sequence: &mut sequence, tokens: &next };
            let logits = decoder.forward(&mut [step], Logits::Last)?;
            let token = argmax(&logits)?;
            run.values.extend(logits.iter().map(|v| v.to_bits()));
            run.tokens.push(token);
            next = vec![token];
        }
    }
    Ok(run)
}

/// Runs the comparison; true if nothing differs.
pub(crate) fn run(comm: &Arc<Mpi>, args: &Args) -> Result<bool> {
    let is_encoder = args.path.join("vocab.txt").exists();
    let model = |way: &Way<'_>| match is_encoder {
        true => encoder(args, way),
        false => decoder(args, way),
    };
    let whole = model(&Way::Whole)?;
    let split = model(&Way::Split(comm))?;
    let [values, tokens] = whole.differ(&split);
    let sum = comm.start_sum(
        vec![values as i64, tokens as i64, whole.values.len() as i64, whole.tokens.len() as i64],
        quant_linear::sharded::Kept::All,
    )?;
    let all = comm.finish_sum(sum)?;
    ensure!(all.len() == 4, "the ranks counted {} numbers, expected 4", all.len());
    let what = if is_encoder { "embedding values" } else { "logits" };
    if comm.rank() == 0 {
        println!(
            "model: {} over {} ranks: {} {what} compared, {} differ; {} tokens compared, {} differ",
            args.encoding,
            comm.size(),
            all[2],
            all[0],
            all[3],
            all[1]
        );
        for ty in [FloatType::F32, FloatType::Bf16] {
            let one = model(&Way::Rounded(1, ty, &Arc::default()))?;
            for &ranks in &args.rounded {
                let changed = Arc::default();
                let parts = model(&Way::Rounded(ranks, ty, &changed))?;
                let [values, tokens] = one.differ(&parts);
                println!(
                    "rounded to {ty}: {} in {ranks} parts: {} of {} outputs of row-parallel layers \
                     differ, {values} of {} {what}, {tokens} of {} tokens",
                    args.encoding,
                    changed.differ.load(Ordering::Relaxed),
                    changed.outputs.load(Ordering::Relaxed),
                    one.values.len(),
                    one.tokens.len()
                );
            }
        }
    }
    Ok(all[2] > 0 && all[0] == 0 && all[1] == 0)
}
