//! `bench`: tokens a second of a prompt and of its continuation, and memory.
//!
//! Every repetition runs all encodings and numbers of threads once, in turn, so that a machine that
//! slows down slows all of them; medians are printed. The prompt is a fixed sequence of ids: what
//! they are does not change the time.

use std::time::Instant;

use anyhow::{Result, ensure};
use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use quant_linear_models::decoder::{Decoder, Logits, Step, argmax};
use quant_linear_models::linear::Encoding;
use serde::Serialize;

use crate::{Model, pool};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: Model,
    /// Those to run [default: mxfp4-fp4, nvfp4-fp4, nvfp4-mxint8, f32]
    #[arg(long, value_name = "ENCODING,..", value_delimiter = ',')]
    encodings: Vec<Encoding>,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 512)]
    prefill: usize,
    /// Tokens after it
    #[arg(long, value_name = "N", default_value_t = 128)]
    decode: usize,
    /// Repetitions
    #[arg(long, value_name = "N", default_value_t = 3)]
    runs: usize,
    /// Print a line of JSON for each run instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Run {
    encoding: String,
    threads: usize,
    /// Tokens a second.
    prefill: f64,
    decode: f64,
    weight_bytes: usize,
    cache_bytes: usize,
    /// Bytes of memory after the run, and the most so far.
    resident: Option<u64>,
    peak: Option<u64>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(
        args.prefill > 0 && args.decode > 0 && args.runs > 0,
        "nothing to run: give more than 0"
    );
    let mut encodings = args.encodings.clone();
    if encodings.is_empty() {
        for name in ["mxfp4-fp4", "nvfp4-fp4", "nvfp4-mxint8", "f32"] {
            encodings.push(name.parse()?);
        }
    }
    let mut decoders = Vec::new();
    for encoding in &encodings {
        decoders.push((encoding.to_string(), args.model.open(Some(*encoding))?));
    }
    let threads = match args.model.threads {
        Some(n) => vec![n],
        None => vec![1, 2],
    };
    let mut runs = Vec::new();
    for _ in 0..args.runs {
        for &threads in &threads {
            let pool = pool(threads)?;
            for (name, decoder) in &decoders {
                let run = pool.install(|| once(decoder, name, threads, args))?;
                if args.json {
                    println!("{}", serde_json::to_string(&run)?);
                }
                runs.push(run);
            }
        }
    }
    if !args.json {
        println!("{}", table(&runs, &encodings, &threads));
    }
    Ok(())
}

fn once(decoder: &Decoder, name: &str, threads: usize, args: &Args) -> Result<Run> {
    let vocabulary = decoder.config().vocabulary;
    let ids: Vec<u32> = (0..args.prefill).map(|i| ((i * 7919 + 13) % vocabulary) as u32).collect();
    let mut sequence = decoder.sequence();
    let start = Instant::now();
    let step = Step { sequence: &mut sequence, tokens: &ids };
    let mut logits = decoder.forward(&mut [step], Logits::Last)?;
    let prefill = args.prefill as f64 / start.elapsed().as_secs_f64();
    let start = Instant::now();
    for _ in 0..args.decode {
        let step = Step { sequence: &mut sequence, tokens: &[argmax(&logits)?] };
        logits = decoder.forward(&mut [step], Logits::Last)?;
    }
    let decode = args.decode as f64 / start.elapsed().as_secs_f64();
    let (resident, peak) = (memory("VmRSS:"), memory("VmHWM:"));
    let (weight_bytes, cache_bytes) = (decoder.weight_bytes(), sequence.bytes());
    let encoding = name.to_owned();
    Ok(Run { encoding, threads, prefill, decode, weight_bytes, cache_bytes, resident, peak })
}

/// Bytes of a line of the process's status; `None` where the system does not tell.
fn memory(key: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? << 10)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn table(runs: &[Run], encodings: &[Encoding], threads: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header([
        "encoding",
        "threads",
        "prefill tok/s",
        "decode tok/s",
        "weights MB",
        "cache MB",
    ]);
    for encoding in encodings {
        for &threads in threads {
            let name = encoding.to_string();
            let of: Vec<&Run> =
                runs.iter().filter(|r| r.encoding == name && r.threads == threads).collect();
            let Some(any) = of.first() else { continue };
            table.add_row([
                name,
                threads.to_string(),
                format!("{:.0}", median(of.iter().map(|r| r.prefill).collect())),
                format!("{:.1}", median(of.iter().map(|r| r.decode).collect())),
                format!("{:.1}", any.weight_bytes as f64 / 1e6),
                format!("{:.1}", any.cache_bytes as f64 / 1e6),
            ]);
        }
    }
    table.column_iter_mut().skip(1).for_each(|c| c.set_cell_alignment(CellAlignment::Right));
    table
}
