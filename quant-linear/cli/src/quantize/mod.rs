//! `fp4 quantize`: a checkpoint in, the same checkpoint with FP4 linear layers out.
//!
//! ```text
//! open     headers only; decide what becomes of every tensor            (model::plan)
//! check    the output's place, names that would collide                 (output, model::plan)
//! write    the output, whole or not at all                              (model::quantize)
//! report   per tensor, worst first; totals                              (summary)
//! ```

mod summary;
mod told;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use fp4_core::Format;
use quant_linear::atomic::Kind;
use quant_linear::checkpoint::{Checkpoint, Listing, list};
use quant_linear::model::plan::Plan;
use quant_linear::model::quantize::{Engine, Event, check_product};
use quant_linear::model::stream;
use quant_linear::{Backends, DenseOptions, StoredTransform};

use crate::args;
use crate::interrupt;
use crate::output;
use crate::progress;
use summary::Summary;

/// `--help` of the selection.
const SELECTION: &str = "\
Which tensors are quantized:
  By default every tensor named `*.weight` of rank 2, type F32, F16 or BF16, whose K (the last
  dimension) is a multiple of the group (MXFP4 32, NVFP4 16) and of the transform block, except
  embeddings and output heads, by name:
    *embed*  *embd*  *wte*  *wpe*  *lm_head*  *output_projection*  *classifier*  cls.*
    output.weight  score.weight
  --include GLOB replaces the choice by name, embeddings and heads included (several add up);
  --exclude GLOB removes from either.
  Globs match full tensor names: `*` any characters, `?` one, `[ab]`, `{this,that}`.
  An --include with wildcards filters: of what it matches, tensors named `*.weight` of rank 2 are
  quantized, and the rest (biases, norms, other ranks) is copied. So `--include '*'` is every linear
  weight, and `--include 'encoder.layer.0.*'` those of one layer. It is an error if it matches
  nothing that can be quantized.
  A candidate that cannot be quantized (its type, its K) is copied and listed with the reason; one
  that --include gives by its full name, without wildcards, is an error.

What is written: `X.weight` becomes `X.e2m1` (U8), `X.scale_quant` (F8_E8M0 or F8_E4M3),
  `X.weight_global_scale`, `X.activation_global_scale`, `X.activation_scale_scale` (F32) and with a
  transform `X.transform` (F32). Everything else is copied byte for byte.
  A bias stays a separate tensor `X.bias`, as it was. A quantized layer applies it only if asked:
  load it with Bias::Apply (the layer adds the bias) or with Bias::Ignore (you do).

Scales: the automatic NVFP4 global scale of a weight is its largest magnitude / 2688; the smallest
  positive f32 if that underflows; 1, with a warning, if all its values are zero or one is not finite.
  A layer multiplies by weight global scale times activation global scale in f32, so that product must
  be finite and above 0: a weight for which it is not is an error that names it.";

/// Arguments of `fp4 quantize`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = SELECTION)]
pub(crate) struct Args {
    /// A .safetensors file, or a folder with model.safetensors or with shards and their index.
    input: PathBuf,
    /// Where to write: a file for a file, a folder for a folder.
    #[arg(short, long)]
    output: PathBuf,
    /// The format of the quantized weights: MXFP4 has groups of 32 with power-of-two scales, NVFP4
    /// groups of 16 with 8-bit float scales.
    #[arg(short, long, value_parser = args::formats())]
    format: Format,
    /// A block transform of weights and activations.
    #[arg(long, value_enum, default_value_t)]
    transform: TransformArg,
    /// Block size of the transform: 16, 32, 64 or 128 [default: 32].
    #[arg(long, value_parser = parse_block)]
    transform_block: Option<usize>,
    /// Quantize the linear weights whose names match this glob, instead of the default choice.
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// Do not quantize the tensors whose names match this glob.
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// Global scale of the weights: `auto` (MXFP4 1/3; NVFP4 largest magnitude / 2688) or a number.
    #[arg(long, value_name = "auto|VALUE", default_value = "auto", allow_hyphen_values = true)]
    global_scale: GlobalScale,
    /// Global scale of the activations, a stored constant [default: MXFP4 1/3, NVFP4 0.1].
    #[arg(long, value_name = "VALUE", value_parser = parse_scale, allow_hyphen_values = true)]
    activation_scale: Option<f32>,
    /// The backend that quantizes, by its name in `fp4 demo` [default: the fastest]. All give the
    /// same bytes.
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
    /// Replace the output if it exists: a file by a file, a folder by a folder. Links, named pipes
    /// and devices are never replaced.
    #[arg(long)]
    force: bool,
    /// Number of threads [default: all].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=MAX_THREADS))]
    threads: Option<u16>,
    /// Print one JSON object instead of tables, and no progress.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    stream: args::Stream,
}

/// `--transform`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum TransformArg {
    /// Weights and activations as they are.
    #[default]
    None,
    /// The orthonormal Hadamard matrix, one for all blocks.
    Hadamard,
}

/// `--global-scale`.
#[derive(Debug, Clone, Copy, PartialEq)]
enum GlobalScale {
    Auto,
    Value(f32),
}

impl FromStr for GlobalScale {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(GlobalScale::Auto);
        }
        parse_scale(text).map(GlobalScale::Value).map_err(|e| format!("{e}, or `auto`"))
    }
}

fn parse_scale(text: &str) -> Result<f32, String> {
    let value = text.parse::<f32>().ok().filter(|v| v.is_finite() && *v > 0.0);
    value.ok_or_else(|| format!("`{text}` is no scale; give a finite f32 number above 0"))
}

fn parse_block(text: &str) -> Result<usize, String> {
    let block = text.parse().ok().filter(|b| [16, 32, 64, 128].contains(b));
    block.ok_or_else(|| format!("`{text}` is no transform block; give 16, 32, 64 or 128"))
}

/// The most threads that can be asked for: more than any machine has, and few enough to start.
const MAX_THREADS: i64 = 1024;

/// Block of the transform if `--transform-block` is not given.
const DEFAULT_BLOCK: usize = 32;

impl Args {
    /// Block of the transform, if there is one.
    fn block(&self) -> Result<Option<usize>> {
        ensure!(
            self.transform != TransformArg::None || self.transform_block.is_none(),
            "--transform-block is given without --transform hadamard; add that, or leave it out"
        );
        let block = self.transform_block.unwrap_or(DEFAULT_BLOCK);
        Ok((self.transform == TransformArg::Hadamard).then_some(block))
    }

    /// What decides the bytes of the output beside the input and its plan.
    fn settings(&self, block: Option<usize>) -> stream::Settings {
        let bits = |scale: f32| format!("{scale:e}");
        let settings = [
            ("--format", self.format.name().to_string()),
            ("--transform", block.map_or("none".into(), |block| format!("hadamard {block}"))),
            (
                "--global-scale",
                match self.global_scale {
                    GlobalScale::Auto => "auto".into(),
                    GlobalScale::Value(value) => bits(value),
                },
            ),
            ("--activation-scale", self.activation_scale.map_or("default".into(), bits)),
        ];
        settings.map(|(name, value)| (name.to_string(), value)).to_vec()
    }

    fn dense_options(&self, block: Option<usize>) -> Result<DenseOptions> {
        let options = DenseOptions {
            transform: block.map(StoredTransform::hadamard).transpose()?,
            weight_global_scale: match self.global_scale {
                GlobalScale::Auto => None,
                GlobalScale::Value(value) => Some(value),
            },
            activation_global_scale: self.activation_scale,
            ..DenseOptions::new(self.format)
        };
        // Judged before anything is read; the amax does not matter to a given scale.
        let weight = options.weight_spec(1.0).context("--global-scale does not suit the format")?;
        let activation =
            options.activation_spec().context("--activation-scale does not suit the format")?;
        if !options.needs_amax() {
            check_product(weight.global_scale(), activation.global_scale())
                .map_err(|error| told::error(error.into()))?;
        }
        Ok(options)
    }
}

/// The backend of this name alone.
///
/// # Errors
/// A name that no backend has that quantizes here.
fn only(backends: &Backends, name: &str) -> Result<Backends> {
    if let Some((_, reason)) = backends.unavailable().iter().find(|(absent, _)| absent == name) {
        bail!("--backend {name} is not available: {reason}; leave it out to take the fastest");
    }
    let able: Vec<_> = backends.list().iter().filter(|b| b.quantizer().is_some()).collect();
    let chosen = able.iter().find(|b| b.name() == name).with_context(|| {
        let names: Vec<_> = able.iter().map(|b| b.name()).collect();
        format!("--backend {name} is unknown; there are {}", names.join(", "))
    })?;
    Ok(Backends::none().with((*chosen).clone()))
}

/// Runs the command.
///
/// # Errors
/// Bad arguments, bad input, or an I/O error; the output is then as it was before.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let block = args.block()?;
    let options = args.dense_options(block)?;
    let input = Checkpoint::open(&args.input)?;
    let mut backends = Backends::available();
    if let Some(name) = &args.backend {
        backends = only(&backends, name)?;
    }
    if let Some(threads) = args.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.into());
        pool.build_global().context("starting the threads of --threads")?;
    }
    let listing = match input.is_folder() {
        true => list(&args.input, &input.own_names())?,
        false => Listing::default(),
    };
    interrupt::clean_up()?;
    output::check(&args.input, &listing.real, &args.output, args.force)?;
    let plan = Plan::new(&input, &options, &args.include, &args.exclude).map_err(told::error)?;
    let others: u64 = listing.files.iter().map(|(_, len)| len).sum();
    let bar = progress::bar(plan.work(&input) + others, args.json);
    let mut summary = Summary::new(args, &input, &plan);
    for (path, _) in &listing.files {
        let stray = path.extension().is_some_and(|e| e == "safetensors");
        if stray && path.parent() == Some(Path::new("")) {
            let path = path.display();
            summary.warnings.push(format!("{path} is no part of the model and was only copied"));
        }
    }
    let (needs, resume) = (plan.file_len(), args.stream.resume);
    summary.warnings.extend(output::forgotten(&args.output, resume));
    let output = stream::Output {
        path: &args.output,
        kind: if input.is_folder() { Kind::Folder } else { Kind::File },
        replace: args.force,
        resume: resume.then(|| args.settings(block)),
    };
    let engine = Engine { input: &input, options, backends, memory: args.stream.memory() };
    let mut on = |event: Event<'_>| match event {
        Event::Working(name) => progress::show(&bar, name),
        Event::Bytes(more) => bar.inc(more),
        Event::Kept(bytes) => progress::skip(&bar, bytes),
        Event::Done(weight, layout, outcome) => summary.add(weight, layout, outcome),
    };
    let written = engine.write(&plan, &listing, &output, &mut on);
    written.map_err(|error| output::told(error, needs, resume).unwrap_or_else(told::error))?;
    bar.finish_and_clear();
    summary.print(args.json)?;
    Ok(ExitCode::SUCCESS)
}
