//! `fp4 dequantize`: a quantized checkpoint of any layout in, the same with dense weights out.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use fp4_core::FloatType;
use quant_linear::atomic::{self, Kind};
use quant_linear::checkpoint::{TensorSource, list};
use quant_linear::layout::Layers;
use quant_linear::model::dequantize::{Options, Plan, Task};
use quant_linear::model::stream::{self, Contents, Event, Inputs};
use serde_json::json;

use crate::convert::{beside, one_file, stale};
use crate::{args, interrupt, output, progress, report};

/// Arguments of `fp4 dequantize`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A .safetensors or .gguf file, or a folder.
    input: PathBuf,
    /// Where to write: a file if it ends in .safetensors, else a folder.
    #[arg(short, long)]
    output: PathBuf,
    /// The type of the dense weights.
    #[arg(long, value_enum, default_value_t)]
    dtype: DtypeArg,
    /// The true shape of a layer that is stored padded: MODULE=OUTxIN.
    #[arg(long, value_name = "MODULE=OUTxIN", value_parser = parse_shape)]
    shape: Vec<(String, [usize; 2])>,
    #[command(flatten)]
    source: args::Source,
    #[command(flatten)]
    stream: args::Stream,
    /// Replace the output if it exists.
    #[arg(long)]
    force: bool,
    /// Print one JSON object instead of text, and no progress.
    #[arg(long)]
    json: bool,
}

/// `--dtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum DtypeArg {
    /// Exact: the values that the layout's own software computes in f32.
    #[default]
    F32,
    /// Rounded once.
    Bf16,
    /// Rounded once.
    F16,
}

fn parse_shape(text: &str) -> Result<(String, [usize; 2]), String> {
    let parsed = text.rsplit_once('=').and_then(|(module, shape)| {
        let (out, cols) = shape.split_once('x')?;
        Some((module.to_string(), [out.parse().ok()?, cols.parse().ok()?]))
    });
    parsed.ok_or_else(|| format!("`{text}` is no shape; give it as MODULE=OUTxIN"))
}

/// Runs the command.
///
/// # Errors
/// Bad input or an I/O error; the output is then as it was before.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let input = args.source.open(&args.input)?;
    let layers = args.source.layers(&input)?;
    let one_file = one_file(&args.output)?;
    let float_type = match args.dtype {
        DtypeArg::F32 => FloatType::F32,
        DtypeArg::Bf16 => FloatType::Bf16,
        DtypeArg::F16 => FloatType::F16,
    };
    let crop: BTreeMap<_, _> = args.shape.iter().cloned().collect();
    if args.output.extension().is_some_and(|e| e == "gguf") {
        bail!("dense weights are written as safetensors; give a .safetensors file or a folder");
    }
    interrupt::clean_up()?;
    let mut listing = match input.is_folder() {
        true => list(&args.input, &input.own_names())?,
        false => quant_linear::checkpoint::Listing::default(),
    };
    let kind = if one_file { Kind::File } else { Kind::Folder };
    output::check(&args.input, &listing.real, &args.output, kind, args.force)?;
    listing.files.retain(|(path, _)| !stale(path));
    let plan = Plan::new(&input, &layers, Options { float_type, crop }, one_file)?;
    let beside = if one_file { beside(&args.output, &plan.companions) } else { vec![] };
    for (path, _) in &beside {
        output::check_beside(path, input.config().paths(), args.force)?;
    }
    let memory = args.stream.memory();
    let tasks = plan.tasks(&input, memory);
    let work = tasks.iter().map(stream::Job::work).sum();
    let bar = progress::bar(work, args.json);
    let contents = Contents {
        files: plan
            .files
            .iter()
            .map(|(name, arranged)| (name.as_str(), arranged as &dyn stream::Layout))
            .collect(),
        carried: (!one_file && input.is_folder()).then(|| (input.path(), &listing)),
        generated: match one_file {
            true => vec![],
            false => {
                let companions = plan.companions.iter();
                companions.map(|(name, bytes)| (name.as_str(), bytes.clone())).collect()
            }
        },
    };
    let crops = args.shape.iter().map(|(module, shape)| format!("{module}={shape:?}"));
    let own = [
        ("--dtype".to_string(), float_type.to_string()),
        ("--shape".to_string(), crops.collect::<Vec<_>>().join(" ")),
    ];
    let settings = [own.to_vec(), args.source.settings()].concat();
    let to = stream::Output {
        path: &args.output,
        kind,
        replace: args.force,
        resume: args.stream.resume,
        settings,
    };
    let inputs = Inputs::of(&input, &listing)?;
    let mut on = |event: Event<'_, Task<'_>>| match event {
        Event::Working(name) => progress::show(&bar, name),
        Event::Bytes(more) => bar.inc(more),
        Event::Kept(bytes) => progress::skip(&bar, bytes),
        Event::Done(..) => {}
    };
    let written = stream::write(&contents, &tasks, &to, memory, &inputs, &mut on);
    written.map_err(|error| {
        output::told(error, plan.file_len(), args.stream.resume).unwrap_or_else(args::told)
    })?;
    bar.finish_and_clear();
    for (path, bytes) in beside {
        atomic::write_bytes(&path, bytes)?;
    }
    print(args, &layers, &plan, float_type)?;
    Ok(ExitCode::SUCCESS)
}

fn print(args: &Args, layers: &Layers, plan: &Plan<'_>, float_type: FloatType) -> Result<()> {
    let names = layers.good.values().map(|layer| {
        json!({ "name": layer.tensor, "layout": layer.layout.name(), "shape": layer.dense_shape() })
    });
    if args.json {
        return report::print_json(&json!({
            "command": "dequantize",
            "input": args.input.to_string_lossy(),
            "output": args.output.to_string_lossy(),
            "dtype": float_type.to_string(),
            "tensors": names.collect::<Vec<_>>(),
            "notes": plan.notes,
            "warnings": plan.warnings,
            "file_bytes_after": plan.file_len(),
        }));
    }
    report::print(|page| {
        page.line(format_args!(
            "{}: {} dense in {float_type}, {}",
            args.output.display(),
            report::count(layers.good.len(), "layer"),
            report::bytes(plan.file_len())
        ))?;
        plan.notes.iter().try_for_each(|note| page.line(format_args!("note: {note}")))?;
        let mut warnings = plan.warnings.iter();
        warnings.try_for_each(|warning| page.line(format_args!("warning: {warning}")))
    })
}
