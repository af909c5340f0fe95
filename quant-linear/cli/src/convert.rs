//! `fp4 convert`: a checkpoint of any layout in, the same weights in another layout out.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, anyhow, ensure};
use fp4_core::Format;
use quant_linear::atomic::{self, Kind};
use quant_linear::checkpoint::{Listing, TensorSource, list};
use quant_linear::layout::{Layout, Native};
use quant_linear::model::ModelError;
use quant_linear::model::convert::{self, Event, Options, Outcome, Plan, Shape};
use quant_linear::model::stream;
use quant_linear::{ActivationEncoding, LoadOptions};
use serde_json::{Value, json};

use crate::{args, interrupt, output, progress, report};

/// `--help` of the results.
const RESULTS: &str = "\
No code and no scale byte changes (unless --format asks for another format, which is then exact).
What a value is worth may: software multiplies e2m1, block scale and global scale in its own order.
For each weight the report says
  bit-exact        every value is the same bits to the target's software as to the source's (but for
                   the sign of zeros, where one of the two drops it: then it says of how many)
  within N ulp     some are apart by roundings; --exact refuses that
A byte that means something else to the target (a 0xFF scale, a negative one, code 8 in GGUF) is an
error with tensor and coordinate; --allow-changed takes it.

3-D experts become one matrix each (NAME.0, NAME.1, ...) in layouts without 3-D tensors, and 3-D
again in those that have them (gpt-oss, mlx, gguf). What the config says of activations and of the
cache of keys and values goes along, or a note says that it does not. Native states quantize the
activations of the source's layers to mxint8 where the source does not quantize them to FP4, unless
--activations or --activation-scale row asks for another encoding. A folder keeps its other files,
its config.json gets the block that the target's loader needs; beside a single OUT.safetensors it is
OUT.config.json.";

/// Arguments of `fp4 convert`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = RESULTS)]
pub(crate) struct Args {
    /// A .safetensors or .gguf file, or a folder.
    input: PathBuf,
    /// Where to write: a file if it ends in .safetensors or .gguf, else a folder.
    output: PathBuf,
    /// The layout to be written.
    #[arg(long, value_parser = args::layouts(), value_name = "LAYOUT")]
    to: &'static dyn Layout,
    /// Write all weights in this format, where every value stays: MXFP4 as NVFP4, or back.
    #[arg(long, value_parser = args::formats())]
    format: Option<Format>,
    /// How layers quantize their activations, for --to native: it is part of their state
    /// [default: as the source means it].
    #[arg(long, value_parser = args::activations())]
    activations: Option<ActivationEncoding>,
    /// Give each row of the activations its own global scale, for NVFP4 and --to native.
    #[arg(long, value_name = "row", value_parser = [args::ROW], conflicts_with = "activations")]
    activation_scale: Option<String>,
    /// Refuse values that differ by roundings.
    #[arg(long)]
    exact: bool,
    /// Take bytes that mean something else to the target's software.
    #[arg(long)]
    allow_changed: bool,
    #[command(flatten)]
    source: args::Source,
    #[command(flatten)]
    stream: args::Stream,
    /// Replace the output if it exists.
    #[arg(long)]
    force: bool,
    /// Print one JSON object instead of tables, and no progress.
    #[arg(long)]
    json: bool,
}

/// Is the output one file?
///
/// # Errors
/// A file of a kind that is not written.
pub(crate) fn one_file(output: &Path) -> Result<bool> {
    match output.extension().and_then(|extension| extension.to_str()) {
        Some("safetensors" | "gguf") => Ok(true),
        _ => Ok(false),
    }
}

/// Files of a folder that speak of the old tensors.
pub(crate) fn stale(path: &Path) -> bool {
    ["hf_quant_config.json", "quantization_config.json"].iter().any(|name| path == Path::new(name))
}

fn told(error: quant_linear::Error) -> anyhow::Error {
    match error {
        quant_linear::Error::Model(error @ ModelError::Changed { .. }) => {
            anyhow!("{error}; pass --allow-changed to write it all the same")
        }
        quant_linear::Error::Model(error @ ModelError::Inexact { .. }) => {
            anyhow!("{error}; leave --exact out to take that")
        }
        error => args::told(error),
    }
}

/// Runs the command.
///
/// # Errors
/// Bad input, what the target cannot hold, or an I/O error; the output is then as it was before.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let input = args.source.open(&args.input)?;
    let activations = match args.activation_scale {
        Some(_) => Some(ActivationEncoding::OwnRowScales),
        None => args.activations,
    };
    ensure!(
        activations.is_none() || args.to.name() == Native.name(),
        "--{} is for --to native: what layers of {} do is what the config of the source \
         says; convert without it",
        if args.activation_scale.is_some() { "activation-scale" } else { "activations" },
        args.to.name()
    );
    let asked = LoadOptions { activations, ..args.source.options() };
    let layers = args::find(&input, &asked)?;
    let one_file = one_file(&args.output)?;
    let gguf = args.to.name() == "gguf";
    let is = |extension: &str| args.output.extension().is_some_and(|e| e == extension);
    ensure!(
        !(gguf && is("safetensors") || !gguf && is("gguf")),
        "the output {} has another kind of name than {} files have; rename it",
        args.output.display(),
        args.to.name()
    );
    interrupt::clean_up()?;
    let mut listing = match input.is_folder() {
        true => list(&args.input, &input.own_names())?,
        false => Listing::default(),
    };
    let kind = if one_file { Kind::File } else { Kind::Folder };
    output::check(&args.input, &listing.real, &args.output, kind, args.force)?;
    listing.files.retain(|(path, _)| !stale(path));
    let options = Options {
        target: args.to,
        format: args.format,
        exact: args.exact,
        changed: args.allow_changed,
    };
    let shape = if one_file { Shape::File } else { Shape::Folder };
    let plan = Plan::new(&input, &layers, options, shape).map_err(told)?;
    let beside = match one_file && !gguf {
        true => beside(&args.output, &plan.companions),
        false => vec![],
    };
    for (path, _) in &beside {
        output::check_beside(path, input.config().paths(), args.force)?;
    }
    let bar = progress::bar(plan.work(&input), args.json);
    let to = stream::Output {
        path: &args.output,
        kind,
        replace: args.force,
        resume: args.stream.resume,
        settings: settings(args),
    };
    let mut rows: Vec<(String, Vec<usize>, Outcome)> = vec![];
    let mut on = |event: Event<'_, '_>| match event {
        stream::Event::Working(name) => progress::show(&bar, name),
        stream::Event::Bytes(more) => bar.inc(more),
        stream::Event::Kept(bytes) => progress::skip(&bar, bytes),
        stream::Event::Done(task, Some(outcome)) => {
            rows.push((stream::Job::name(task).to_string(), task.shape(), outcome));
        }
        stream::Event::Done(_, None) => {}
    };
    let memory = args.stream.memory();
    let written = convert::write(&input, &plan, &listing, &to, memory, &mut on);
    written.map_err(|error| {
        output::told(error, plan.file_len(), args.stream.resume).unwrap_or_else(told)
    })?;
    bar.finish_and_clear();
    for (path, bytes) in beside {
        atomic::write_bytes(&path, bytes)?;
    }
    let from: std::collections::BTreeSet<_> =
        layers.good.values().map(|layer| layer.layout.name()).collect();
    print(args, &from.into_iter().collect::<Vec<_>>(), &plan, &rows)?;
    Ok(ExitCode::SUCCESS)
}

fn settings(args: &Args) -> stream::Settings {
    let format = args.format.map_or("as it is".to_string(), |format| format.to_string());
    let activations = args.activations.map_or("as they are", ActivationEncoding::name);
    let all = [
        ("--to", args.to.name().to_string()),
        ("--format", format),
        ("--activations", activations.to_string()),
        ("--activation-scale", args.activation_scale.as_deref().unwrap_or("as it is").to_string()),
        ("--exact", args.exact.to_string()),
        ("--allow-changed", args.allow_changed.to_string()),
    ];
    let all = all.map(|(name, value)| (name.to_string(), value)).to_vec();
    [all, args.source.settings()].concat()
}

/// Where files that go with a single output file are, and what is in them.
pub(crate) fn beside<'b>(
    output: &Path,
    companions: &'b [(String, Vec<u8>)],
) -> Vec<(PathBuf, &'b [u8])> {
    let configs = companions.iter().filter(|(name, _)| !name.contains("index"));
    configs.map(|(name, bytes)| (output.with_extension(name), &bytes[..])).collect()
}

/// `bit-exact`, or how far apart.
fn verdict(outcome: &Outcome) -> String {
    let Outcome { values_differ, ulps, changed, zero_signs, .. } = *outcome;
    let mut text = match values_differ {
        0 => "values bit-exact".to_string(),
        n => format!("codes exact, {n} values within {ulps} ulp"),
    };
    if zero_signs > 0 {
        text += &format!(", but for the sign of {zero_signs} zeros");
    }
    if changed > 0 {
        text += &format!(", {changed} values CHANGED");
    }
    text
}

fn print(
    args: &Args,
    from: &[&str],
    plan: &Plan<'_>,
    rows: &[(String, Vec<usize>, Outcome)],
) -> Result<()> {
    let mut total = Outcome::default();
    rows.iter().for_each(|(.., outcome)| total.add(outcome.clone()));
    let json = |outcome: &Outcome| {
        json!({
            "values": outcome.values,
            "values_differ": outcome.values_differ,
            "ulps": outcome.ulps,
            "zero_signs": outcome.zero_signs,
            "changed": outcome.changed,
            "bit_exact": outcome.values_differ == 0 && outcome.changed == 0,
        })
    };
    if args.json {
        let tensors = rows.iter().map(|(name, shape, outcome)| {
            let mut value = json(outcome);
            value["name"] = json!(name);
            value["shape"] = json!(shape);
            value
        });
        return report::print_json(&json!({
            "command": "convert",
            "input": args.input.to_string_lossy(),
            "output": args.output.to_string_lossy(),
            "from": from,
            "to": args.to.name(),
            "tensors": tensors.collect::<Vec<Value>>(),
            "totals": json(&total),
            "copied": plan.copied.len(),
            "notes": plan.notes,
            "file_bytes_after": plan.file_len(),
        }));
    }
    report::print(|page| {
        page.table(["tensor", "shape", ">values", "result"], || {
            rows.iter().map(|(name, shape, outcome)| {
                let values = outcome.values.to_string();
                [name.clone(), report::shape(shape), values, verdict(outcome)]
            })
        })?;
        page.line(format_args!(""))?;
        page.line(format_args!(
            "{} from {} to {}: {}; {} carried along; {}",
            report::count(rows.len(), "weight"),
            from.join(", "),
            args.to.name(),
            verdict(&total),
            report::count(plan.copied.len(), "tensor"),
            report::bytes(plan.file_len())
        ))?;
        plan.notes.iter().try_for_each(|note| page.line(format_args!("note: {note}")))
    })
}
