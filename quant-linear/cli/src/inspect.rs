//! `fp4 inspect`: what a checkpoint holds, and what its quantized layers look like.
//!
//! Headers are read once; codes and scales are read block by block to be counted. A layer that is
//! not whole (a tensor missing, of a wrong type or shape, an illegal scalar) is reported as a
//! problem and the rest is still shown; the exit code is then 2.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use fp4_core::ScaleType;
use serde::Serialize;
use serde_json::{Value, json};

use quant_linear::checkpoint::tiles::{DEFAULT_BLOCK_BYTES, tiles};
use quant_linear::checkpoint::{Checkpoint, TensorFile, byte_len, gguf};
use quant_linear::layout::{Layer, Layers};
use quant_linear::model::groups::zero_groups;
use quant_linear::model::scales::Histogram;

use crate::args;
use crate::report::{Page, Stream};
use crate::{progress, report};

/// Arguments of `fp4 inspect`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A .safetensors or .gguf file, or a folder with model.safetensors (or diffusers'
    /// diffusion_pytorch_model.safetensors) or with shards and their index.
    path: PathBuf,
    #[command(flatten)]
    source: args::Source,
    /// Print one JSON object instead of tables, and no progress.
    #[arg(long)]
    json: bool,
}

/// What the bytes of a layer hold.
#[derive(Debug, Clone)]
struct Counts {
    /// Its scales.
    scales: Histogram,
    /// Groups whose codes are all zero.
    zero_groups: u64,
}

/// Runs the command.
///
/// # Errors
/// Bad input, layers that are not whole, or an I/O error.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let checkpoint = args.source.open(&args.path)?;
    let layers = args.source.layers(&checkpoint)?;
    let work = layers.good.values().map(Layer::byte_len).sum();
    let bar = progress::bar(work, args.json);
    let mut counted = Vec::with_capacity(layers.good.len());
    for (prefix, layer) in &layers.good {
        progress::show(&bar, prefix);
        counted.push((prefix.as_str(), layer, count(&checkpoint, layer)?));
        bar.inc(layer.byte_len());
    }
    bar.finish_and_clear();
    if args.json {
        report::print_json(&json(&checkpoint, &layers, &counted))?;
    } else {
        report::print(|page| text(page, &checkpoint, &layers, &counted))?;
    }
    match layers.bad.iter().next() {
        None => Ok(ExitCode::SUCCESS),
        Some((prefix, error)) => {
            let problem = report::layer_problem(prefix, error);
            bail!("{} not whole: {problem}", report::count(layers.bad.len(), "layer"))
        }
    }
}

fn count(checkpoint: &Checkpoint, layer: &Layer) -> Result<Counts> {
    let (shape, mut zeros, mut bytes) = (layer.shape, 0, [0u64; 256]);
    // Codes are half a byte; one byte an element keeps the tiles below the limit.
    for tile in tiles(shape.rows(), shape.k(), 1, DEFAULT_BLOCK_BYTES) {
        let packed = layer.packed(checkpoint, &tile)?;
        for &scale in packed.scales() {
            bytes[usize::from(scale)] += 1;
        }
        zeros += zero_groups(packed.codes(), shape.group().get());
    }
    Ok(Counts { scales: Histogram::new(shape.scale_type(), &bytes), zero_groups: zeros })
}

fn histogram_json(h: &Histogram) -> Value {
    let exponents = h.exponents.iter();
    let exponents = exponents.map(|(e, n)| json!({ "exponent": e, "count": n }));
    json!({
        "total": h.total,
        "exponents": exponents.collect::<Vec<_>>(),
        "nan": h.nan,
        "zero": h.zero,
        "subnormal": h.subnormal,
        "negative": h.negative,
    })
}

/// `2^-9 to 2^3`.
fn range(h: &Histogram) -> String {
    match (h.exponents.keys().next(), h.exponents.keys().next_back()) {
        (Some(low), Some(high)) => format!("2^{low} to 2^{high}"),
        _ => "-".into(),
    }
}

fn histogram_text(page: &mut Page<'_>, h: &Histogram, scale_type: ScaleType) -> io::Result<()> {
    let most = h.exponents.values().max().copied().unwrap_or(1);
    let e4m3 = format!(", {} zero, {} subnormal, {} negative", h.zero, h.subnormal, h.negative);
    page.line(format_args!(
        "{scale_type} scales by power of two ({} groups, {} NaN{}):",
        h.total,
        h.nan,
        if scale_type == ScaleType::E4M3 { &e4m3 } else { "" }
    ))?;
    page.table([">scale", ">groups", "share"], || {
        h.exponents.iter().rev().map(|(e, &n)| {
            let bar = "#".repeat((40 * n).div_ceil(most) as usize);
            [format!("2^{e}"), n.to_string(), bar]
        })
    })
}

fn optional(value: Option<f32>) -> String {
    value.map_or("absent".into(), |v| v.to_string())
}

fn transform(layer: &Layer) -> (String, Value) {
    match &layer.transform {
        None => ("none".into(), Value::Null),
        Some(header) => {
            let (shape, ty) = (&header.stored, header.shape.float_type.to_string());
            (format!("{shape:?} {ty}"), json!({ "shape": shape, "dtype": ty }))
        }
    }
}

fn format_name(layer: &Layer) -> String {
    layer.shape.format().map_or("none".into(), |f| f.to_string())
}

/// What a file says of itself beside its tensors.
fn metadata(file: &TensorFile) -> impl Iterator<Item = (&str, Cow<'_, str>)> {
    let safetensors = file.metadata().iter().map(|(key, value)| (&**key, Cow::from(value)));
    let pairs = file.gguf().into_iter().flat_map(gguf::Header::pairs);
    safetensors.chain(pairs.map(|(key, value)| (&**key, Cow::from(value.to_string()))))
}

/// The report as `--json` prints it.
#[derive(Serialize)]
struct Report<'a, F: Serialize, L: Serialize, P: Serialize, T: Serialize> {
    command: &'static str,
    files: F,
    layers: L,
    notes: Vec<String>,
    path: Cow<'a, str>,
    problems: P,
    tensors: T,
}

fn json(
    checkpoint: &Checkpoint,
    layers: &Layers,
    counted: &[(&str, &Layer, Counts)],
) -> impl Serialize {
    let tensors = Stream(|| {
        checkpoint.tensors().iter().map(|(name, tensor)| {
            json!({
                "name": name,
                "dtype": tensor.type_name(),
                "shape": tensor.shape(),
                "bytes": byte_len(&tensor.info),
                "file": checkpoint.files()[tensor.file].0,
            })
        })
    });
    let described = Stream(|| {
        counted.iter().map(|(prefix, layer, counts)| {
            let (shape, scalars) = (layer.shape, &layer.scalars);
            json!({
                "name": prefix,
                "prefix": prefix,
                "layout": layer.layout.name(),
                "tensor": layer.tensor,
                "format": format_name(layer),
                "shape": [layer.out_features(), shape.k()],
                "experts": layer.experts,
                "weight_global_scales": layer.globals.iter().map(|g| g.multiplier())
                    .collect::<Vec<_>>(),
                "out_features": layer.out_features(),
                "in_features": shape.k(),
                "group_size": shape.group().get(),
                "scale_type": shape.scale_type().to_string(),
                "weight_global_scale": scalars.weight_global_scale,
                "activation_global_scale": scalars.activation_global_scale,
                "activation_scale_scale": scalars.activation_scale_scale,
                "activations": scalars.activations.name(),
                "activations_note": layer.note,
                "transform": transform(layer).1,
                "zero_groups": counts.zero_groups,
                "nan_scales": counts.scales.nan,
                "scales": histogram_json(&counts.scales),
            })
        })
    });
    #[derive(Serialize)]
    struct File<'a> {
        bytes: u64,
        metadata: BTreeMap<&'a str, Cow<'a, str>>,
        name: &'a str,
    }
    let files = Stream(|| {
        checkpoint.files().iter().map(|(name, file)| File {
            bytes: file.file_len(),
            metadata: metadata(file).collect(),
            name,
        })
    });
    let problems = Stream(|| {
        let problems = layers.bad.iter();
        problems.map(|(p, e)| json!({ "prefix": p, "problem": report::layer_problem(p, e) }))
    });
    let path = checkpoint.path().to_string_lossy();
    let notes = notes(checkpoint, layers);
    Report { command: "inspect", files, layers: described, notes, path, problems, tensors }
}

fn text(
    page: &mut Page<'_>,
    checkpoint: &Checkpoint,
    layers: &Layers,
    counted: &[(&str, &Layer, Counts)],
) -> io::Result<()> {
    for (name, file) in checkpoint.files() {
        let tensors = report::count(file.count(), "tensor");
        page.line(format_args!("{name}: {}, {tensors}", report::bytes(file.file_len())))?;
        for (key, value) in metadata(file) {
            let [key, value] = [key, &value].map(report::beginning);
            page.line(format_args!("  {key} = {value}"))?;
        }
    }
    page.line(format_args!(""))?;
    page.table(["tensor", "type", "shape", ">bytes"], || {
        checkpoint.tensors().iter().map(|(name, tensor)| {
            let info = &tensor.info;
            let bytes = report::bytes(byte_len(info) as u64);
            [name.clone(), tensor.type_name(), report::shape(&tensor.shape()), bytes]
        })
    })?;
    if !counted.is_empty() {
        page.line(format_args!(""))?;
        layer_table(page, counted)?;
        let mut histograms = ScaleType::ALL.map(|ty| (ty, Histogram::default()));
        for (_, layer, counts) in counted {
            let ty = layer.shape.scale_type();
            let of_type = histograms.iter_mut().filter(|(t, _)| *t == ty);
            of_type.for_each(|(_, h)| h.merge(&counts.scales));
        }
        for (ty, histogram) in histograms.iter().filter(|(_, h)| h.total > 0) {
            page.line(format_args!(""))?;
            histogram_text(page, histogram, *ty)?;
        }
    }
    page.line(format_args!(""))?;
    page.line(format_args!("{}", report::count(counted.len(), "quantized layer")))?;
    layers.bad.iter().try_for_each(|(prefix, error)| {
        page.line(format_args!("problem: {}", report::layer_problem(prefix, error)))
    })?;
    let mut notes = notes(checkpoint, layers).into_iter();
    notes.try_for_each(|note| page.line(format_args!("note: {note}")))
}

/// What could be layers, and is said to be none; what layers do otherwise than their config says.
fn notes(checkpoint: &Checkpoint, layers: &Layers) -> Vec<String> {
    let denied = layers.denial(checkpoint);
    let denied = denied.map(|(first, message)| format!("`{first}` the first: {message}"));
    denied.into_iter().chain(layers.notes()).collect()
}

fn layer_table(page: &mut Page<'_>, counted: &[(&str, &Layer, Counts)]) -> io::Result<()> {
    let columns = [
        "layer",
        "layout",
        "format",
        ">experts",
        ">out",
        ">in",
        ">group",
        ">weight gs",
        ">activation gs",
        ">activation ss",
        "activations",
        "transform",
        "scales",
        ">NaN scales",
        ">zero groups",
    ];
    page.table(columns, || {
        counted.iter().map(|(prefix, layer, counts)| {
            let (shape, scalars) = (layer.shape, &layer.scalars);
            [
                (*prefix).to_string(),
                layer.layout.name().to_string(),
                format_name(layer),
                layer.experts.map_or(String::new(), |experts| experts.to_string()),
                layer.out_features().to_string(),
                shape.k().to_string(),
                shape.group().to_string(),
                scalars.weight_global_scale.to_string(),
                optional(scalars.activation_global_scale),
                optional(scalars.activation_scale_scale),
                scalars.activations.to_string(),
                transform(layer).0,
                range(&counts.scales),
                counts.scales.nan.to_string(),
                counts.zero_groups.to_string(),
            ]
        })
    })
}
