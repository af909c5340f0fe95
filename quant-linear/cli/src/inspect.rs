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
use quant_linear::model::quantize::zero_groups;

use crate::args;
use crate::report::{Page, Stream};
use crate::{progress, report};

/// Arguments of `fp4 inspect`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A .safetensors or .gguf file, or a folder with model.safetensors or with shards and their
    /// index.
    path: PathBuf,
    #[command(flatten)]
    source: args::Source,
    /// Print one JSON object instead of tables, and no progress.
    #[arg(long)]
    json: bool,
}

/// What the bytes of a layer hold.
#[derive(Debug, Clone, Default)]
struct Counts {
    /// How often each scale byte occurs.
    bytes: BTreeMap<u8, u64>,
    /// Groups whose codes are all zero.
    zero_groups: u64,
}

/// A histogram of scales by the power of two below each.
#[derive(Debug, Clone, Default)]
struct Histogram {
    exponents: BTreeMap<i32, u64>,
    total: u64,
    nan: u64,
    zero: u64,
    subnormal: u64,
    negative: u64,
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
    let (shape, mut counts, mut bytes) = (layer.shape, Counts::default(), [0u64; 256]);
    // Codes are half a byte; one byte an element keeps the tiles below the limit.
    for tile in tiles(shape.rows(), shape.k(), 1, DEFAULT_BLOCK_BYTES) {
        let packed = layer.packed(checkpoint, &tile)?;
        for &scale in packed.scales() {
            bytes[usize::from(scale)] += 1;
        }
        counts.zero_groups += zero_groups(packed.codes(), shape.group().get());
    }
    counts.bytes = (0..=255u8).zip(bytes).filter(|(_, n)| *n > 0).collect();
    Ok(counts)
}

impl Histogram {
    fn new(scale_type: ScaleType, counts: &Counts) -> Self {
        let mut h = Histogram::default();
        for (&byte, &n) in &counts.bytes {
            h.total += n;
            let Some(parts) = scale_type.parts(byte) else {
                h.nan += n;
                continue;
            };
            let significand = parts.significand.unsigned_abs();
            match significand.checked_ilog2() {
                None => h.zero += n,
                Some(log) => *h.exponents.entry(parts.exponent + log as i32).or_default() += n,
            }
            h.subnormal += if scale_type == ScaleType::E4M3 && (1..8).contains(&(byte & 0x7F)) {
                n
            } else {
                0
            };
            // The sign bit, so that -0 counts too; e8m0 has none.
            h.negative += if scale_type == ScaleType::E4M3 && byte & 0x80 != 0 { n } else { 0 };
        }
        h
    }

    fn merge(&mut self, other: &Histogram) {
        for (e, n) in &other.exponents {
            *self.exponents.entry(*e).or_default() += n;
        }
        self.total += other.total;
        self.nan += other.nan;
        self.zero += other.zero;
        self.subnormal += other.subnormal;
        self.negative += other.negative;
    }

    fn json(&self) -> Value {
        let exponents = self.exponents.iter();
        let exponents = exponents.map(|(e, n)| json!({ "exponent": e, "count": n }));
        json!({
            "total": self.total,
            "exponents": exponents.collect::<Vec<_>>(),
            "nan": self.nan,
            "zero": self.zero,
            "subnormal": self.subnormal,
            "negative": self.negative,
        })
    }

    /// `2^-9 to 2^3`.
    fn range(&self) -> String {
        match (self.exponents.keys().next(), self.exponents.keys().next_back()) {
            (Some(low), Some(high)) => format!("2^{low} to 2^{high}"),
            _ => "-".into(),
        }
    }

    fn text(&self, page: &mut Page<'_>, scale_type: ScaleType) -> io::Result<()> {
        let most = self.exponents.values().max().copied().unwrap_or(1);
        let e4m3 = format!(
            ", {} zero, {} subnormal, {} negative",
            self.zero, self.subnormal, self.negative
        );
        page.line(format_args!(
            "{scale_type} scales by power of two ({} groups, {} NaN{}):",
            self.total,
            self.nan,
            if scale_type == ScaleType::E4M3 { &e4m3 } else { "" }
        ))?;
        page.table([">scale", ">groups", "share"], || {
            self.exponents.iter().rev().map(|(e, &n)| {
                let bar = "#".repeat((40 * n).div_ceil(most) as usize);
                [format!("2^{e}"), n.to_string(), bar]
            })
        })
    }
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
            let histogram = Histogram::new(shape.scale_type(), counts);
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
                "transform": transform(layer).1,
                "zero_groups": counts.zero_groups,
                "nan_scales": histogram.nan,
                "scales": histogram.json(),
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
    Report { command: "inspect", files, layers: described, path, problems, tensors }
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
            of_type.for_each(|(_, h)| h.merge(&Histogram::new(ty, counts)));
        }
        for (ty, histogram) in histograms.iter().filter(|(_, h)| h.total > 0) {
            page.line(format_args!(""))?;
            histogram.text(page, *ty)?;
        }
    }
    page.line(format_args!(""))?;
    page.line(format_args!("{}", report::count(counted.len(), "quantized layer")))?;
    layers.bad.iter().try_for_each(|(prefix, error)| {
        page.line(format_args!("problem: {}", report::layer_problem(prefix, error)))
    })
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
        "transform",
        "scales",
        ">NaN scales",
        ">zero groups",
    ];
    page.table(columns, || {
        counted.iter().map(|(prefix, layer, counts)| {
            let (shape, scalars) = (layer.shape, &layer.scalars);
            let histogram = Histogram::new(shape.scale_type(), counts);
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
                transform(layer).0,
                histogram.range(),
                histogram.nan.to_string(),
                counts.zero_groups.to_string(),
            ]
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_sorted_by_their_power_of_two() {
        // e4m3: 1, 1.875, -1, 7 * 2^-9, +0, -0, NaN.
        let bytes = [0x38, 0x3F, 0xB8, 0x07, 0x00, 0x80, 0x7F].map(|b| (b, 1)).into();
        let h = Histogram::new(ScaleType::E4M3, &Counts { bytes, zero_groups: 0 });
        assert_eq!(h.exponents, [(0, 3), (-7, 1)].into());
        assert_eq!((h.total, h.nan, h.zero, h.subnormal, h.negative), (7, 1, 2, 1, 2));
        let bytes = [0, 127, 254, 255].map(|b| (b, 2)).into();
        let h = Histogram::new(ScaleType::E8M0, &Counts { bytes, zero_groups: 0 });
        assert_eq!(h.exponents, [(-127, 2), (0, 2), (127, 2)].into());
        assert_eq!((h.total, h.nan, h.zero, h.subnormal, h.negative), (8, 2, 0, 0, 0));
    }
}
