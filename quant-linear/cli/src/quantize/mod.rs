//! `fp4 quantize`: a checkpoint in, the same checkpoint with FP4 linear layers out.
//!
//! ```text
//! open     headers only; decide what becomes of every tensor            (model::plan)
//! check    the output's place, names that would collide                 (output, model::plan)
//! write    the output, whole or not at all                              (model::quantize)
//! report   per tensor, worst first; totals                              (summary)
//! ```

#[cfg(feature = "calibrate")]
mod calibrated;
mod help;
mod row;
mod summary;
mod told;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use fp4_core::{Format, ScaleRule, ScaleType};
use quant_linear::atomic::{self, Kind};
use quant_linear::checkpoint::{Checkpoint, Listing, TensorSource, list};
use quant_linear::model::pipeline::Pipeline;
use quant_linear::model::plan::Plan;
use quant_linear::model::quantize::{Engine, Event, check_product};
use quant_linear::model::recipe::{Recipe, RecipeRule};
use quant_linear::model::select::{Orientation, Request};
use quant_linear::model::stream;
use quant_linear::model::ties::Tie;
use quant_linear::sharded::Team;
use quant_linear::{ActivationEncoding, Backends, DenseOptions, StoredTransform};

use crate::args;
use crate::interrupt;
use crate::output;
use crate::progress;
use summary::Summary;

/// Arguments of `fp4 quantize`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = help::SELECTION)]
pub struct Args {
    /// A .safetensors file, or a folder with model.safetensors or with shards and their index.
    input: PathBuf,
    /// Where to write: a file for a file, a folder for a folder.
    #[arg(short, long, required_unless_present = "dry_run")]
    output: Option<PathBuf>,
    /// The format of the quantized weights: MXFP4 has groups of 32 with power-of-two scales, NVFP4
    /// groups of 16 with 8-bit float scales. With --recipe it may be left out: what no rule matches
    /// stays dense then.
    #[arg(short, long, value_parser = args::formats(), required_unless_present = "recipe")]
    format: Option<Format>,
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
    /// Formats and settings by name, from a TOML or JSON file.
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// Write the plan as a recipe (JSON), which repeats it tensor by tensor.
    #[arg(long, value_name = "FILE")]
    write_recipe: Option<PathBuf>,
    /// One global scale for weights that one product reads together: `qkv`, `gate-up` or both.
    #[arg(long, value_name = "WHAT", value_delimiter = ',', value_parser = parse_tie)]
    tie: Vec<Tie>,
    /// How tensors with one matrix for each expert are stored [default: as config.json tells].
    #[arg(long, value_enum)]
    experts: Option<ExpertsArg>,
    /// Fail if a weight that would be quantized cannot be, instead of copying it, and if a pattern
    /// matches no tensor.
    #[arg(long)]
    strict: bool,
    /// Report what would be quantized and how large it would be; write nothing.
    #[arg(long)]
    dry_run: bool,
    /// How the block scales of the weights are found: `search` by squared error, by a rule of the
    /// specifications, or as another library finds them, its ties included. See below.
    #[arg(long, value_name = "NAME", value_parser = args::scale_rules(),
        default_value = DenseOptions::SCALE_RULE.name())]
    scale_rule: ScaleRule,
    /// Global scale of the weights: `auto` (by the scale rule) or a number.
    #[arg(long, value_name = "auto|VALUE", default_value = "auto", allow_hyphen_values = true)]
    global_scale: GlobalScale,
    /// Global scale of the activations: a number, stored, or `row`: each row's own, from its
    /// largest magnitude (NVFP4), which fits uncalibrated; with --calib a rule for NVFP4: `amax`,
    /// `balanced` or `quantile:Q`, each with `*2` behind it for twice the room [default: MXFP4 1/3,
    /// NVFP4 0.1, with --calib `amax`].
    #[arg(long, value_name = "row|VALUE|RULE", allow_hyphen_values = true)]
    activation_scale: Option<ActivationScale>,
    /// How a layer quantizes its activations: in the format of its weight, or in MXINT8 (8 bits,
    /// next to no loss).
    #[arg(long, value_parser = args::activations(), default_value = ActivationEncoding::Own.name())]
    activations: ActivationEncoding,
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
    #[cfg(feature = "calibrate")]
    #[command(flatten)]
    calibrated: calibrated::Args,
    #[command(flatten)]
    stream: args::Stream,
}

/// `--transform`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum TransformArg {
    /// Weights and activations as they are.
    #[default]
    #[value(alias = "i")]
    None,
    /// The orthonormal Hadamard matrix, one for all blocks.
    #[value(alias = "h")]
    Hadamard,
    /// A random orthogonal matrix, one for all blocks.
    #[cfg(feature = "calibrate")]
    #[value(alias = "r")]
    Random,
    /// One matrix for each block, made of the second moments of weight and activations (--calib).
    #[cfg(feature = "calibrate")]
    Wush,
}

impl TransformArg {
    /// Its name.
    fn name(self) -> &'static str {
        match self {
            TransformArg::None => "none",
            TransformArg::Hadamard => "hadamard",
            #[cfg(feature = "calibrate")]
            TransformArg::Random => "random",
            #[cfg(feature = "calibrate")]
            TransformArg::Wush => "wush",
        }
    }
}

/// `--experts`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ExpertsArg {
    /// (experts, out, in), as linear layers are.
    OutIn,
    /// (experts, in, out), as gpt-oss and Llama 4 have them.
    InOut,
}

fn parse_tie(text: &str) -> Result<Tie, String> {
    let tie = Tie::ALL.into_iter().find(|tie| tie.name() == text);
    tie.ok_or_else(|| format!("`{text}` cannot be tied; give `qkv`, `gate-up` or both"))
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

/// `--activation-scale`.
#[derive(Debug, Clone, Copy, PartialEq)]
enum ActivationScale {
    Row,
    Value(f32),
    #[cfg(feature = "calibrate")]
    Rule(quant_linear::calibrate::ActivationScale),
}

impl FromStr for ActivationScale {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == args::ROW {
            return Ok(ActivationScale::Row);
        }
        #[cfg(feature = "calibrate")]
        if let Ok(rule) = text.parse() {
            return Ok(ActivationScale::Rule(rule));
        }
        let more = match cfg!(feature = "calibrate") {
            true => "`row`, or with --calib `amax`, `balanced` or `quantile:0.9999`",
            false => "`row`",
        };
        parse_scale(text).map(ActivationScale::Value).map_err(|e| format!("{e}, or {more}"))
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
            "--transform-block is given without --transform; add that, or leave it out"
        );
        let block = self.transform_block.unwrap_or(DEFAULT_BLOCK);
        Ok((self.transform != TransformArg::None).then_some(block))
    }

    /// How a calibration is used.
    #[cfg(feature = "calibrate")]
    fn pipeline(&self) -> Result<Option<Pipeline>> {
        let rule = match self.activation_scale {
            Some(ActivationScale::Rule(rule)) => Some(rule),
            Some(ActivationScale::Row | ActivationScale::Value(_)) => None,
            None => self.calibrated.calib.as_ref().map(|_| Default::default()),
        };
        let block = self.block()?.unwrap_or(DEFAULT_BLOCK);
        self.calibrated.pipeline(self.transform, block, rule)
    }

    #[cfg(not(feature = "calibrate"))]
    fn pipeline(&self) -> Result<Option<Pipeline>> {
        Ok(None)
    }

    /// How activations are quantized.
    fn encoding(&self) -> ActivationEncoding {
        match self.activation_scale {
            Some(ActivationScale::Row) => ActivationEncoding::OwnRowScales,
            _ => self.activations,
        }
    }

    /// What decides the bytes of the output beside the input and the headers of its files.
    fn settings(&self, plan: &Plan, request: &Request) -> stream::Settings {
        let bits = |scale: f32| format!("{scale:e}");
        let block = self.block().ok().flatten();
        let mut settings = vec![
            ("--format", self.format.map_or("none", Format::name).to_string()),
            (
                "--transform",
                block.map_or("none".into(), |b| format!("{} {b}", self.transform.name())),
            ),
            ("--scale-rule", self.scale_rule.to_string()),
            (
                "--global-scale",
                match self.global_scale {
                    GlobalScale::Auto => "auto".into(),
                    GlobalScale::Value(value) => bits(value),
                },
            ),
            (
                "--activation-scale",
                match self.activation_scale {
                    None => "default".into(),
                    Some(ActivationScale::Row) => args::ROW.into(),
                    Some(ActivationScale::Value(value)) => bits(value),
                    #[cfg(feature = "calibrate")]
                    Some(ActivationScale::Rule(rule)) => rule.to_string(),
                },
            ),
            ("--activations", self.activations.to_string()),
        ];
        // Of square matrices no header tells.
        let transposed = plan.weights.iter().filter(|weight| weight.is_transposed()).count();
        settings.push(("weights stored (in, out)", transposed.to_string()));
        if !request.ties.is_empty() {
            let ties: Vec<_> = request.ties.iter().map(|tie| tie.name()).collect();
            settings.push(("--tie", ties.join(",")));
        }
        if let Some(recipe) = &request.recipe {
            settings.push(("--recipe", recipe.to_json()));
        }
        let settings = settings.into_iter().map(|(name, value)| (name.to_string(), value));
        let pipeline = request.pipeline.as_ref().map(|pipeline| pipeline.settings());
        settings.chain(pipeline.into_iter().flatten()).collect()
    }

    fn dense_options(&self, block: Option<usize>) -> Result<DenseOptions> {
        // Without a format no weight is quantized by the options: any that the rule is for will do.
        let any = match self.scale_rule.is_for(ScaleType::E4M3) {
            true => Format::NvFp4,
            false => Format::MxFp4,
        };
        let format = self.format.unwrap_or(any);
        self.scale_rule
            .expect_for(format.scale_type())
            .with_context(|| format!("--scale-rule does not suit --format {format}"))?;
        let rows = self.encoding() == ActivationEncoding::OwnRowScales;
        ensure!(
            !rows || self.activations == ActivationEncoding::Own,
            "--activation-scale row is of fp4 activations, and --activations {} has no such scale; \
             leave one of the two out",
            self.activations
        );
        let options = DenseOptions {
            scale_rule: self.scale_rule,
            transform: block.map(StoredTransform::hadamard).transpose()?,
            weight_global_scale: match self.global_scale {
                GlobalScale::Auto => None,
                GlobalScale::Value(value) => Some(value),
            },
            activation_global_scale: match self.activation_scale {
                Some(ActivationScale::Value(value)) => Some(value),
                _ => None,
            },
            activations: self.encoding(),
            ..DenseOptions::new(format)
        };
        // Judged before anything is read; the amax does not matter to a given scale.
        let weight = options.weight_spec(1.0).context("--global-scale does not suit the format")?;
        let activation =
            options.activation_spec().context("--activation-scale does not suit the format")?;
        let by = self.encoding().spec(activation);
        by.context("--activation-scale row is for --format nvfp4")?;
        if !options.needs_amax() {
            check_product(weight.global_scale(), options.activation_factor()?)
                .map_err(|error| told::error(error.into()))?;
        }
        Ok(options)
    }

    /// What is asked of the library.
    fn request(&self) -> Result<Request> {
        let pipeline = self.pipeline()?;
        // A pipeline makes the transform itself.
        let fixed = if pipeline.is_some() { None } else { self.block()? };
        let options = self.dense_options(fixed)?;
        if let Some(pipeline) = &pipeline {
            pipeline.check(&options).map_err(told::error)?;
        }
        Ok(Request {
            pipeline: pipeline.map(Arc::new),
            include: self.include.clone(),
            exclude: self.exclude.clone(),
            recipe: self.recipe.as_ref().map(|path| self.read_recipe(path)).transpose()?,
            ties: self.tie.clone(),
            experts: self.experts.map(|experts| match experts {
                ExpertsArg::OutIn => Orientation::OutIn,
                ExpertsArg::InOut => Orientation::InOut,
            }),
            strict: self.strict,
            ..Request::new(options)
        })
    }

    fn read_recipe(&self, path: &Path) -> Result<Recipe> {
        let mut recipe = Recipe::read(path)?;
        if self.format.is_none() {
            let open = recipe.rules.iter().position(|rule| rule.format.is_none());
            if let Some(index) = open {
                let (rule, path) = (index + 1, path.display());
                bail!("rule {rule} of {path} has no format; give it one, or give --format");
            }
            ensure!(
                self.include.is_empty(),
                "--include is given without --format; add that, or put it into {}",
                path.display()
            );
            recipe.rules.push(RecipeRule::all_dense());
        }
        Ok(recipe)
    }

    /// Checks that a record may be written, before anything else is.
    fn check_record(&self, folders: &[PathBuf], calibrated: bool) -> Result<()> {
        let Some(path) = &self.write_recipe else { return Ok(()) };
        ensure!(
            !calibrated,
            "--write-recipe records no calibration, transform made for a layer or method; leave it \
             out, and keep the command"
        );
        output::check(&self.input, folders, path, Kind::File, self.force)
            .context("the record of --write-recipe")?;
        if let Some(output) = &self.output {
            let real = |path: &Path| {
                Some(
                    path.parent()
                        .map(|parent| match parent.as_os_str() {
                            empty if empty.is_empty() => Path::new("."),
                            _ => parent,
                        })?
                        .canonicalize()
                        .ok()?
                        .join(path.file_name()?),
                )
            };
            let inside = real(path).zip(real(output)).is_some_and(|(a, b)| a.starts_with(b));
            ensure!(
                !inside,
                "--write-recipe {} is the output, or lies inside it; give another path",
                path.display()
            );
        }
        Ok(())
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

/// Runs the command, by all ranks of a team together if there is one: the same bytes. Rank 0
/// reports.
///
/// # Errors
/// Bad arguments, bad input, or an I/O error; the output is then as it was before. A rank of a team
/// that ends with an error must end the others.
pub fn run_over(args: &Args, team: Option<&dyn Team>) -> Result<ExitCode> {
    // The first rank alone is heard, and writes what is not the output.
    let first = team.is_none_or(|team| team.rank() == 0);
    let request = args.request()?;
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
    args.check_record(&listing.real, request.pipeline.is_some())?;
    let output = args.output.as_deref().filter(|_| !args.dry_run);
    if let Some(output) = output {
        let kind = if input.is_folder() { Kind::Folder } else { Kind::File };
        output::check(&args.input, &listing.real, output, kind, args.force)?;
    }
    let plan = Plan::new(&input, &request).map_err(told::error)?;
    let mut summary = Summary::new(args, &input, &plan);
    summary.warn_of_strays(&listing);
    if let Some(output) = output {
        summary.warnings.extend(output::forgotten(output, args.stream.resume));
        let engine = Engine { input: &input, backends, memory: args.stream.memory() };
        let output = stream::Output {
            path: output,
            kind: if input.is_folder() { Kind::Folder } else { Kind::File },
            replace: args.force,
            resume: args.stream.resume,
            settings: args.settings(&plan, &request),
        };
        let run = Run { args, engine: &engine, plan: &plan, listing: &listing, team };
        run.write(&output, &mut summary)?;
    }
    summary.warnings.extend(input.config().problem().map(|problem| {
        format!("what the config says of the model is not known, for it cannot be read: {problem}")
    }));
    // The report is of what is there already, whatever becomes of the record.
    if !first {
        return Ok(ExitCode::SUCCESS);
    }
    let recorded = args.write_recipe.as_ref().map_or(Ok(()), |path| {
        let record = Recipe::record(&plan, &request);
        atomic::write_bytes(path, record.to_json().as_bytes())
    });
    summary.print(args.json)?;
    recorded?;
    Ok(ExitCode::SUCCESS)
}

/// What is written of what, and by whom.
struct Run<'r> {
    args: &'r Args,
    engine: &'r Engine<'r>,
    plan: &'r Plan,
    listing: &'r Listing,
    team: Option<&'r dyn Team>,
}

impl Run<'_> {
    /// Writes the output, telling the summary of each weight.
    fn write(&self, output: &stream::Output<'_>, summary: &mut Summary) -> Result<()> {
        let Run { args, engine, plan, listing, team } = *self;
        let others: u64 = listing.files.iter().map(|(_, len)| len).sum();
        // Of several ranks nobody sees all bytes.
        let quiet = args.json || team.is_some();
        let bar = progress::bar(plan.work(engine.input) + others, quiet);
        let mut on = |event: Event<'_>| match event {
            Event::Working(name) => progress::show(&bar, name),
            Event::Bytes(more) => bar.inc(more),
            Event::Kept(bytes) => progress::skip(&bar, bytes),
            Event::Done(weight, _, outcome) => summary.add(weight, *outcome),
        };
        let (needs, resume) = (plan.file_len(), args.stream.resume);
        let written = engine.write_over(plan, listing, output, team, &mut on);
        written.map_err(|error| output::told(error, needs, resume).unwrap_or_else(told::error))?;
        bar.finish_and_clear();
        Ok(())
    }
}
