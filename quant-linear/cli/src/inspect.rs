//! `fp4 inspect`: what a checkpoint holds, and what its quantized layers look like.
//!
//! Headers are read once; codes and scales are read block by block to be counted. A layer that is
//! not whole (a tensor missing, of a wrong type or shape, an illegal scalar) is reported as a problem
//! and the rest is still shown; the exit code is then 2.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use fp4_core::ScaleType;
use serde_json::{Value, json};

use crate::checkpoint::{Checkpoint, Layer, Layers, ScaleTypeArg, byte_len};
use crate::tiles::{DEFAULT_BLOCK_BYTES, tiles};
use crate::{progress, quantize, report};

/// Arguments of `fp4 inspect`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A .safetensors file, or a folder with model.safetensors or with shards and their index.
    path: PathBuf,
    /// What scale bytes stored as U8 are.
    #[arg(long, value_enum)]
    scale_type: Option<ScaleTypeArg>,
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
    let checkpoint = Checkpoint::open(&args.path)?;
    let layers = Layers::find(&checkpoint, args.scale_type.map(ScaleType::from));
    let work = layers.good.values().map(Layer::byte_len).sum();
    let bar = progress::bar(work, args.json);
    let mut counted = Vec::with_capacity(layers.good.len());
    for (prefix, layer) in &layers.good {
        bar.set_message(prefix.clone());
        counted.push((prefix.as_str(), layer, count(&checkpoint, layer)?));
        bar.inc(layer.byte_len());
    }
    bar.finish_and_clear();
    if args.json {
        report::print_json(&json(&checkpoint, &layers, &counted))?;
    } else {
        report::print(&text(&checkpoint, &layers, &counted))?;
    }
    match layers.bad.values().next() {
        None => Ok(ExitCode::SUCCESS),
        Some(error) => bail!("{} not whole: {error:#}", report::count(layers.bad.len(), "layer")),
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
        counts.zero_groups += quantize::zero_groups(packed.codes(), shape.group().get());
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

    fn text(&self, scale_type: ScaleType) -> String {
        let most = self.exponents.values().max().copied().unwrap_or(1);
        let mut table = report::table(&[">scale", ">groups", "share"]);
        for (e, &n) in self.exponents.iter().rev() {
            let bar = "#".repeat((40 * n).div_ceil(most) as usize);
            table.add_row([format!("2^{e}"), n.to_string(), bar]);
        }
        let e4m3 = format!(
            ", {} zero, {} subnormal, {} negative",
            self.zero, self.subnormal, self.negative
        );
        format!(
            "{scale_type} scales by power of two ({} groups, {} NaN{}):\n{table}\n",
            self.total,
            self.nan,
            if scale_type == ScaleType::E4M3 { &e4m3 } else { "" }
        )
    }
}

fn optional(value: Option<f32>) -> String {
    value.map_or("absent".into(), |v| v.to_string())
}

fn transform(layer: &Layer) -> (String, Value) {
    match &layer.parts.transform {
        None => ("none".into(), Value::Null),
        Some(t) => {
            let (shape, ty) = (t.shape(), t.values().float_type().to_string());
            (format!("{shape:?} {ty}"), json!({ "shape": shape, "dtype": ty }))
        }
    }
}

fn format_name(layer: &Layer) -> String {
    layer.shape.format().map_or("none".into(), |f| f.to_string())
}

fn json(checkpoint: &Checkpoint, layers: &Layers, counted: &[(&str, &Layer, Counts)]) -> Value {
    let tensors = checkpoint.tensors().iter().map(|(name, tensor)| {
        json!({
            "name": name,
            "dtype": tensor.info.dtype.to_string(),
            "shape": tensor.info.shape,
            "bytes": byte_len(&tensor.info),
            "file": checkpoint.files()[tensor.file].0,
        })
    });
    let described = counted.iter().map(|(prefix, layer, counts)| {
        let (shape, parts) = (layer.shape, &layer.parts);
        let histogram = Histogram::new(shape.scale_type(), counts);
        json!({
            "prefix": prefix,
            "format": format_name(layer),
            "out_features": shape.rows(),
            "in_features": shape.k(),
            "group_size": shape.group().get(),
            "scale_type": shape.scale_type().to_string(),
            "weight_global_scale": parts.weight_global_scale,
            "activation_global_scale": parts.activation_global_scale,
            "activation_scale_scale": parts.activation_scale_scale,
            "transform": transform(layer).1,
            "zero_groups": counts.zero_groups,
            "nan_scales": histogram.nan,
            "scales": histogram.json(),
        })
    });
    let files = checkpoint.files().iter();
    let files = files.map(
        |(name, file)| json!({ "name": name, "bytes": file.len(), "metadata": file.metadata() }),
    );
    let problems = layers.bad.iter();
    let problems = problems.map(|(p, e)| json!({ "prefix": p, "problem": format!("{e:#}") }));
    json!({
        "command": "inspect",
        "path": checkpoint.path().to_string_lossy(),
        "files": files.collect::<Vec<_>>(),
        "tensors": tensors.collect::<Vec<_>>(),
        "layers": described.collect::<Vec<_>>(),
        "problems": problems.collect::<Vec<_>>(),
    })
}

fn text(checkpoint: &Checkpoint, layers: &Layers, counted: &[(&str, &Layer, Counts)]) -> String {
    let mut text = String::new();
    for (name, file) in checkpoint.files() {
        let tensors = report::count(file.tensors().len(), "tensor");
        text += &format!("{name}: {}, {tensors}\n", report::bytes(file.len()));
        for (key, value) in file.metadata() {
            text += &format!("  {key} = {}\n", report::one_line(value));
        }
    }
    let mut table = report::table(&["tensor", "type", "shape", ">bytes"]);
    for (name, tensor) in checkpoint.tensors() {
        let info = &tensor.info;
        let bytes = report::bytes(byte_len(info) as u64);
        table.add_row([name.clone(), info.dtype.to_string(), report::shape(&info.shape), bytes]);
    }
    text += &format!("\n{table}\n");
    if !counted.is_empty() {
        text += &format!("\n{}\n", layer_table(counted));
        let mut histograms = ScaleType::ALL.map(|ty| (ty, Histogram::default()));
        for (_, layer, counts) in counted {
            let ty = layer.shape.scale_type();
            let of_type = histograms.iter_mut().filter(|(t, _)| *t == ty);
            of_type.for_each(|(_, h)| h.merge(&Histogram::new(ty, counts)));
        }
        for (ty, histogram) in histograms.iter().filter(|(_, h)| h.total > 0) {
            text += &format!("\n{}", histogram.text(*ty));
        }
    }
    text += &format!("\n{}\n", report::count(counted.len(), "quantized layer"));
    for error in layers.bad.values() {
        text += &format!("problem: {error:#}\n");
    }
    text
}

fn layer_table(counted: &[(&str, &Layer, Counts)]) -> comfy_table::Table {
    let mut table = report::table(&[
        "layer",
        "format",
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
    ]);
    for (prefix, layer, counts) in counted {
        let (shape, parts) = (layer.shape, &layer.parts);
        let histogram = Histogram::new(shape.scale_type(), counts);
        table.add_row([
            (*prefix).to_string(),
            format_name(layer),
            shape.rows().to_string(),
            shape.k().to_string(),
            shape.group().to_string(),
            parts.weight_global_scale.to_string(),
            optional(parts.activation_global_scale),
            optional(parts.activation_scale_scale),
            transform(layer).0,
            histogram.range(),
            histogram.nan.to_string(),
            counts.zero_groups.to_string(),
        ]);
    }
    table
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
