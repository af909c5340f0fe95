//! `fp4 quantize`: a checkpoint in, the same checkpoint with FP4 linear layers out.
//!
//! ```text
//! open     headers only; decide what becomes of every tensor            (plan)
//! check    the output's place, names that would collide                 (output, plan)
//! write    per file: header, then every tensor at its own offset        (stream)
//!            dense    copied byte for byte
//!            linear   [read tile: transform, amax]  read tile: transform, quantize, write, measure
//! rename   the finished file or folder into its place
//! report   per tensor, worst first; totals                              (summary)
//! ```
//!
//! Memory: a few tiles of `--block-bytes` (8 MiB unless told otherwise) and one transform block,
//! whatever the size of the tensors.

mod plan;
mod stream;

mod summary;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use fp4_core::Format;
use quant_linear::atomic::{NewFile, NewFolder};
use quant_linear::{Backends, DenseOptions, StoredTransform};

use quant_linear::checkpoint::{Checkpoint, INDEX, Listing, list};
use quant_linear::model::tiles::DEFAULT_BLOCK_BYTES;

use crate::interrupt;
use crate::output::{self, Sink};
use crate::progress;
use plan::Plan;
use stream::Engine;
pub(crate) use stream::zero_groups;
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

Scales: a layer multiplies by weight global scale times activation global scale in f32, so that
  product must be finite and above 0. If the automatic NVFP4 scale, or that product with it, is 0 in
  f32 (tiny weights), the weight's global scale is 1, with a warning, as for weights that are all
  zero or not finite.";

/// Arguments of `fp4 quantize`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = SELECTION)]
pub(crate) struct Args {
    /// A .safetensors file, or a folder with model.safetensors or with shards and their index.
    input: PathBuf,
    /// Where to write: a file for a file, a folder for a folder.
    #[arg(short, long)]
    output: PathBuf,
    /// The format of the quantized weights.
    #[arg(short, long, value_enum)]
    format: FormatArg,
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
    /// Bytes of dense values in memory at a time.
    #[arg(long, hide = true, default_value_t = DEFAULT_BLOCK_BYTES)]
    block_bytes: usize,
}

/// `--format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum FormatArg {
    /// Groups of 32 with power-of-two scales.
    Mxfp4,
    /// Groups of 16 with 8-bit float scales.
    Nvfp4,
}

impl From<FormatArg> for Format {
    fn from(arg: FormatArg) -> Self {
        match arg {
            FormatArg::Mxfp4 => Format::MxFp4,
            FormatArg::Nvfp4 => Format::NvFp4,
        }
    }
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

/// Checks that a layer with these global scales can run: it multiplies by their product in f32.
///
/// # Errors
/// A product that is 0 or infinite.
fn check_product(weight: f32, activation: f32) -> Result<()> {
    let product = weight * activation;
    ensure!(
        product.is_finite() && product > 0.0,
        "the weight's global scale {weight:e} times the activations' {activation:e} is {product} in \
         f32, and no layer can run with that; change --global-scale or --activation-scale"
    );
    Ok(())
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

    fn dense_options(&self, block: Option<usize>) -> Result<DenseOptions> {
        let options = DenseOptions {
            transform: block.map(StoredTransform::hadamard).transpose()?,
            weight_global_scale: match self.global_scale {
                GlobalScale::Auto => None,
                GlobalScale::Value(value) => Some(value),
            },
            activation_global_scale: self.activation_scale,
            ..DenseOptions::new(self.format.into())
        };
        // Judged before anything is read; the amax does not matter to a given scale.
        let weight = options.weight_spec(1.0).context("--global-scale does not suit the format")?;
        let activation =
            options.activation_spec().context("--activation-scale does not suit the format")?;
        if !options.needs_amax() {
            check_product(weight.global_scale(), activation.global_scale())?;
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
    let plan = Plan::new(&input, &options, &args.include, &args.exclude, block)?;
    let others: u64 = listing.files.iter().map(|(_, len)| len).sum();
    let engine = Engine {
        backends,
        progress: progress::bar(plan.work(&input) + others, args.json),
        block_bytes: args.block_bytes,
        input: &input,
        options,
    };
    let mut summary = Summary::new(args, &input, &plan);
    for (path, _) in &listing.files {
        let stray = path.extension().is_some_and(|e| e == "safetensors");
        if stray && path.parent() == Some(Path::new("")) {
            let path = path.display();
            summary.warnings.push(format!("{path} is no part of the model and was only copied"));
        }
    }
    if input.is_folder() {
        write_folder(args, &engine, &plan, &listing, &mut summary)?;
    } else {
        write_file(args, &engine, &plan, &mut summary)?;
    }
    engine.progress.finish_and_clear();
    summary.print(args.json)?;
    Ok(ExitCode::SUCCESS)
}

/// One file to one file.
fn write_file(args: &Args, engine: &Engine<'_>, plan: &Plan, summary: &mut Summary) -> Result<()> {
    let told = |error| output::told(&args.output, error);
    let new = NewFile::create(&args.output).map_err(told)?;
    let layout = &plan.layouts[0];
    let sink = Sink::new(new.file(), &args.output, layout.file_len())?;
    engine.write(0, plan, &sink, summary)?;
    new.commit(args.force).map_err(told)
}

/// A folder to a folder: shards under their names, the index rewritten, all else copied.
fn write_folder(
    args: &Args,
    engine: &Engine<'_>,
    plan: &Plan,
    listing: &Listing,
    summary: &mut Summary,
) -> Result<()> {
    let told = |error| output::told(&args.output, error);
    let new = NewFolder::create(&args.output).map_err(told)?;
    let building = new.building();
    for (position, (name, _)) in engine.input.files().iter().enumerate() {
        let shown = args.output.join(name);
        let file = std::fs::File::create_new(building.join(name))
            .with_context(|| format!("writing {}; nothing is left behind", shown.display()))?;
        let sink = Sink::new(&file, &shown, plan.layouts[position].file_len())?;
        engine.write(position, plan, &sink, summary)?;
    }
    if let Some(index) = engine.input.index() {
        let text = index.rewritten(&plan.weight_map(engine.input), plan.data_len());
        std::fs::write(building.join(INDEX), text).with_context(|| {
            format!("writing {}; nothing is left behind", args.output.join(INDEX).display())
        })?;
    }
    for folder in &listing.folders {
        std::fs::create_dir(building.join(folder)).with_context(|| {
            format!("making {}; nothing is left behind", args.output.join(folder).display())
        })?;
    }
    for (file, len) in &listing.files {
        progress::show(&engine.progress, &file.to_string_lossy());
        output::copy(&args.input.join(file), &building.join(file))?;
        engine.progress.inc(*len);
    }
    new.commit(args.force).map_err(told)
}
