//! `fp4 inspect`: what a checkpoint holds, and what its quantized layers look like.
//!
//! Headers are read once; codes and scales are read block by block to be counted. A layer that is
//! not whole (a tensor missing, of a wrong type or shape, an illegal scalar) is reported as a
//! problem and the rest is still shown; the exit code is then 2.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use fp4_core::ScaleType;

use quant_linear::checkpoint::byte_len;
use quant_linear::layout::Layer;
use quant_linear::model::inspect::{Inspection, format_name, metadata, problem};
use quant_linear::model::scales::Histogram;

use crate::args;
use crate::report::Page;
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

/// Runs the command.
///
/// # Errors
/// Bad input, layers that are not whole, or an I/O error.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let checkpoint = args.source.open(&args.path)?;
    let mut bar = None;
    let inspection = Inspection::new(&checkpoint, &args.source.options(), &mut |progress| {
        let bar = bar.get_or_insert_with(|| progress::bar(progress.total, args.json));
        progress::show(bar, progress.module);
        bar.set_position(progress.done);
    });
    let inspection = inspection.map_err(args::told)?;
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    if args.json {
        report::print_json(&inspection.document())?;
    } else {
        report::print(|page| text(page, &inspection))?;
    }
    let bad = &inspection.layers().bad;
    match bad.iter().next() {
        None => Ok(ExitCode::SUCCESS),
        Some((module, error)) => {
            let count = report::count(bad.len(), "layer");
            bail!("{count} not whole: {}", problem(module, error))
        }
    }
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

fn transform(layer: &Layer) -> String {
    match &layer.transform {
        None => "none".into(),
        Some(header) => format!("{:?} {}", header.stored, header.shape.float_type),
    }
}

fn text(page: &mut Page<'_>, inspection: &Inspection<'_>) -> io::Result<()> {
    let (checkpoint, layers) = (inspection.checkpoint(), inspection.layers());
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
    if !layers.good.is_empty() {
        page.line(format_args!(""))?;
        layer_table(page, inspection)?;
        let mut histograms = ScaleType::ALL.map(|ty| (ty, Histogram::default()));
        for (_, layer, counts) in inspection.counted() {
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
    page.line(format_args!("{}", report::count(layers.good.len(), "quantized layer")))?;
    layers.bad.iter().try_for_each(|(prefix, error)| {
        page.line(format_args!("problem: {}", problem(prefix, error)))
    })?;
    let mut notes = inspection.notes().into_iter();
    notes.try_for_each(|note| page.line(format_args!("note: {note}")))
}

fn layer_table(page: &mut Page<'_>, inspection: &Inspection<'_>) -> io::Result<()> {
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
        inspection.counted().map(|(prefix, layer, counts)| {
            let (shape, scalars) = (layer.shape, &layer.scalars);
            [
                prefix.to_string(),
                layer.layout.name().to_string(),
                format_name(layer).to_string(),
                layer.experts.map_or(String::new(), |experts| experts.to_string()),
                layer.out_features().to_string(),
                shape.k().to_string(),
                shape.group().to_string(),
                scalars.weight_global_scale.to_string(),
                optional(scalars.activation_global_scale),
                optional(scalars.activation_scale_scale),
                scalars.activations.to_string(),
                transform(layer),
                range(&counts.scales),
                counts.scales.nan.to_string(),
                counts.zero_groups.to_string(),
            ]
        })
    })
}
