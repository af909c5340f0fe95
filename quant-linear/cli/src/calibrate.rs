//! `fp4 calibrate`: what the inputs of a dense model's layers are like, for `fp4 quantize --calib`.
//!
//! ```text
//! text           the model is run over it, part by part                (quant-linear-models)
//! .safetensors   rows of inputs, by the names of their layers
//! each part      second moments, histograms, sample rows -> one file   (quant_linear::calibrate)
//! ```

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, bail, ensure};
use quant_linear::atomic::Kind;
use quant_linear::calibrate::{Observed, Recorder};
use quant_linear::checkpoint::{Checkpoint, list};
use quant_linear::model::values::Values;
use quant_linear_models::calibrate::{Runner, Sizes};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::{interrupt, output, progress, report};

/// `--help` of what is written.
const WRITTEN: &str = "\
Text: the model is run over it by the command itself, in f32: Llama-style decoders (a GGUF file or a
Hugging Face folder) in windows of --window tokens, and BERT encoders with each line a sentence.
Take text like the one that the model will see, and none that it is judged by later.

Activations: every tensor NAME of a .safetensors file, or NAME.input, is rows of the input of the
layer NAME.weight of the model, (.., K) in F32, F16 or BF16. Files may add rows to the same layer.

What is written: a folder of .safetensors files, one for each block of the model: for each input its
second moments (K (K + 1) / 2 values in F32), two histograms, the largest magnitude, and --rows
sample rows. It takes memory for one block at a time. Bytes do not depend on the number of threads;
they may between CPUs whose vectors are of other widths.";

/// Arguments of `fp4 calibrate`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = WRITTEN)]
pub(crate) struct Args {
    /// The dense model: a .gguf file or a folder that the built-in program can run over text, or
    /// any checkpoint where --data are activations.
    model: PathBuf,
    /// UTF-8 text files, or .safetensors files of activations.
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    data: Vec<PathBuf>,
    /// The folder to write.
    #[arg(short, long)]
    output: PathBuf,
    /// Tokens of text at the most.
    #[arg(long, default_value_t = 8192)]
    tokens: usize,
    /// Tokens of a window.
    #[arg(long, default_value_t = 512)]
    window: usize,
    /// Sample rows that are kept of each input, spread over all.
    #[arg(long, default_value_t = 512)]
    rows: usize,
    /// Number of threads [default: all].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Go on where a run with this option was killed or interrupted, or begin so that one can go
    /// on. Other data or settings than those it was begun with are refused.
    #[arg(long)]
    resume: bool,
    /// Replace the output if it exists.
    #[arg(long)]
    force: bool,
    /// Print one JSON object instead of a table, and no progress.
    #[arg(long)]
    json: bool,
}

/// What a run has come to.
#[derive(Default)]
struct Done {
    inputs: usize,
    layers: usize,
    rows: u64,
    /// Parts of the run that this one continued.
    kept: usize,
}

/// Runs the command.
///
/// # Errors
/// Bad arguments, bad input, or an I/O error; the output is then as it was before.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if let Some(threads) = args.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.into());
        pool.build_global().context("starting the threads of --threads")?;
    }
    ensure!(args.rows > 0, "--rows 0 keeps no sample row; give at least 1");
    let model = Checkpoint::open(&args.model)?;
    let folders = match model.is_folder() {
        true => list(&args.model, &model.own_names())?.real,
        false => vec![],
    };
    interrupt::clean_up()?;
    output::check(&args.model, &folders, &args.output, Kind::Folder, args.force)?;
    let is_tensors = |path: &&PathBuf| path.extension().is_some_and(|e| e == "safetensors");
    let done = match args.data.iter().filter(is_tensors).count() {
        0 => text(args, &model)?,
        n if n == args.data.len() => activations(args, &model)?,
        _ => bail!("--data has both text and .safetensors files; give one kind at a time"),
    };
    let Done { inputs, layers, rows, kept } = done;
    let shown = args.output.display();
    match args.json {
        true => report::print_json(&json!({
            "command": "calibrate",
            "model": args.model.to_string_lossy(),
            "output": args.output.to_string_lossy(),
            "inputs": inputs,
            "layers": layers,
            "rows": rows,
            "parts_kept": kept,
        })),
        false => report::print(|page| {
            page.line(format_args!("{shown}: {inputs} inputs of {layers} layers, {rows} rows"))?;
            if kept > 0 {
                page.line(format_args!("{kept} parts are of the run that this one went on with"))?;
            }
            let model = args.model.display();
            page.line(format_args!("next: fp4 quantize {model} --calib {shown} ..."))
        }),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// Settings that decide the bytes.
fn settings(args: &Args, model: &Checkpoint, digest: String) -> Result<Vec<(String, String)>> {
    let path = args.model.canonicalize().context("reading the model's path")?;
    // A model that was written anew has another length, or another time at least.
    let files = model.files().iter().map(|(name, file)| {
        let modified = file.modified().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        format!("{name} {} {}", file.file_len(), modified.map_or(0, |time| time.as_nanos()))
    });
    let files: Vec<String> = files.collect();
    let all = [
        ("model", path.to_string_lossy().into_owned()),
        ("model's files", files.join(", ")),
        ("--data", digest),
        ("--tokens", args.tokens.to_string()),
        ("--window", args.window.to_string()),
        ("--rows", args.rows.to_string()),
    ];
    Ok(all.map(|(name, value)| (name.to_string(), value)).to_vec())
}

fn hex(hasher: Sha256) -> String {
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Calibrates on text.
fn text(args: &Args, model: &Checkpoint) -> Result<Done> {
    let mut text = String::new();
    for path in &args.data {
        let more = std::fs::read_to_string(path).with_context(|| {
            format!("cannot read --data {}: give a UTF-8 text file", path.display())
        })?;
        text.push_str(&more);
        if !text.ends_with('\n') {
            text.push('\n');
        }
    }
    let sizes = Sizes { tokens: args.tokens, window: args.window };
    let mut runner = Runner::open(&args.model, &text, sizes)?;
    let (parts, rows) = (runner.parts(), runner.rows());
    let mut hasher = Sha256::new();
    hasher.update(&text);
    let settings = settings(args, model, hex(hasher))?;
    let recorder = Recorder::begin(&args.output, parts, &settings, args.resume, args.force)?;
    let bar = progress::steps(parts as u64, args.json);
    let mut done = Done { rows, ..Done::default() };
    for part in 0..parts {
        bar.set_message(format!("part {} of {parts}", part + 1));
        if recorder.has(part) {
            runner.run(&mut |_, _, _| Ok(()))?;
            done.kept += 1;
            bar.inc(1);
            continue;
        }
        let mut inputs: Vec<Observed> = Vec::new();
        runner.run(&mut |names, k, x| {
            let at = inputs.iter().position(|input| input.layers()[..] == names[..]);
            let at = at.unwrap_or_else(|| {
                inputs.push(Observed::new(names, k, rows, args.rows));
                inputs.len() - 1
            });
            Ok(inputs[at].add(x)?)
        })?;
        recorder.write(part, inputs)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    recorder.finish()?;
    count(&args.output, &mut done)?;
    Ok(done)
}

/// Calibrates on activations.
fn activations(args: &Args, model: &Checkpoint) -> Result<Done> {
    let files = args.data.iter().map(|path| Ok(Checkpoint::open(path)?));
    let files = files.collect::<Result<Vec<_>>>()?;
    let mut layers: BTreeMap<String, Vec<(usize, Values)>> = BTreeMap::new();
    let mut hasher = Sha256::new();
    for (index, file) in files.iter().enumerate() {
        for name in file.tensors().keys() {
            let layer = name.strip_suffix(".input").unwrap_or(name);
            let values = Values::find(file, name)?;
            let weight = model.tensors().get(&format!("{layer}.weight"));
            let weight = weight.with_context(|| {
                format!(
                    "{}: the model has no {layer}.weight; name each tensor as the layer whose \
                     input it is, or LAYER.input",
                    args.data[index].display()
                )
            })?;
            let (k, got) = (weight.shape().last().copied().unwrap_or(0), values.row_len());
            ensure!(
                k == got && k > 0,
                "{}: {name} has rows of {got} values, and {layer}.weight has {k} inputs",
                args.data[index].display()
            );
            layers.entry(layer.to_owned()).or_default().push((index, values));
        }
    }
    ensure!(!layers.is_empty(), "the files of --data hold no tensor");
    for path in &args.data {
        let mut file = std::fs::File::open(path).context("reading --data")?;
        let mut piece = vec![0; 1 << 20];
        loop {
            let len = file.read(&mut piece).context("reading --data")?;
            if len == 0 {
                break;
            }
            hasher.update(&piece[..len]);
        }
    }
    let settings = settings(args, model, hex(hasher))?;
    let parts = layers.len();
    let recorder = Recorder::begin(&args.output, parts, &settings, args.resume, args.force)?;
    let bar = progress::steps(parts as u64, args.json);
    let mut done = Done::default();
    for (part, (layer, sources)) in layers.iter().enumerate() {
        progress::show(&bar, layer);
        let rows: u64 = sources.iter().map(|(_, values)| values.rows() as u64).sum();
        done.rows = done.rows.max(rows);
        if recorder.has(part) {
            done.kept += 1;
            bar.inc(1);
            continue;
        }
        let k = sources[0].1.row_len();
        let mut input = Observed::new(&[layer], k, rows, args.rows);
        for (index, values) in sources {
            // A few thousand rows at a time.
            let step = ((8 << 20) / k).max(1);
            for first in (0..values.rows()).step_by(step) {
                let last = (first + step).min(values.rows());
                input.add(&values.read(&files[*index], first..last)?)?;
            }
        }
        recorder.write(part, vec![input])?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    recorder.finish()?;
    count(&args.output, &mut done)?;
    Ok(done)
}

/// Counts what was written.
fn count(path: &Path, done: &mut Done) -> Result<()> {
    let written = quant_linear::calibrate::Calibration::open(path)?;
    done.inputs = written.inputs().len();
    done.layers = written.inputs().iter().map(|input| input.layers.len()).sum();
    Ok(())
}
