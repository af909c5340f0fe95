//! The report of `fp4 quantize`: per tensor, worst first; then totals.

use std::collections::BTreeSet;
use std::io;

use anyhow::Result;
use safetensors::Dtype;
use serde::Serialize;
use serde_json::{Value, json};

use quant_linear::Reason;
use quant_linear::model::difference::Difference;
use quant_linear::model::plan::{Plan, Weight};
use quant_linear::model::quantize::Outcome;

use super::{Args, GlobalScale, TransformArg, told};
use quant_linear::checkpoint::{Arrangement, Checkpoint, byte_len};
use quant_linear::layout::STATE_NAMES;

use crate::report::{self, Page, Stream};

/// Everything to be reported.
#[derive(Debug)]
pub(super) struct Summary {
    /// The run as a whole, for JSON.
    head: Value,
    title: String,
    domain: &'static str,
    skipped: Vec<(String, Reason)>,
    copied: usize,
    file_bytes: [u64; 2],
    rows: Vec<Row>,
    /// What the user should know.
    pub(super) warnings: Vec<String>,
}

#[derive(Debug)]
struct Row {
    name: String,
    prefix: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: [u64; 2],
    outcome: Outcome,
}

impl Summary {
    /// The report of a run that is about to start.
    pub(super) fn new(args: &Args, input: &Checkpoint, plan: &Plan) -> Self {
        let block = args.block().ok().flatten();
        let (transform, domain) = match args.transform {
            TransformArg::None => ("none", "weight"),
            TransformArg::Hadamard => ("hadamard", "transformed weight"),
        };
        let format = args.format;
        let head = json!({
            "command": "quantize",
            "input": args.input.to_string_lossy(),
            "output": args.output.to_string_lossy(),
            "format": format.name(),
            "transform": transform,
            "transform_block": block,
            "global_scale": match args.global_scale {
                GlobalScale::Auto => json!("auto"),
                GlobalScale::Value(value) => json!(value),
            },
            "error_domain": domain,
        });
        let with = block.map_or(String::new(), |b| format!(", {transform} blocks of {b}"));
        Summary {
            head,
            title: format!("{} -> {}: {format}{with}", args.input.display(), args.output.display()),
            domain,
            skipped: plan.skipped.clone(),
            copied: plan.copied,
            file_bytes: [
                input.files().iter().map(|(_, file)| file.file_len()).sum(),
                plan.layouts.iter().map(Arrangement::file_len).sum(),
            ],
            rows: vec![],
            warnings: vec![],
        }
    }

    /// Adds a quantized weight.
    pub(super) fn add(&mut self, weight: &Weight, layout: &Arrangement, outcome: Outcome) {
        let names = STATE_NAMES.map(|name| quant_linear::state::join(&weight.prefix, name));
        let infos = names.iter().filter_map(|name| layout.tensors().get(name));
        let after = infos.map(|info| byte_len(info) as u64).sum();
        let mut warn = |text: String| self.warnings.push(format!("{}: {text}", weight.name));
        if let Some(warning) = &outcome.warning {
            warn(warning.to_string());
        }
        if outcome.not_finite_weights > 0 {
            warn(format!(
                "{} of its weights are NaN or infinite; {} got a NaN scale, and the error leaves \
                 such weights out",
                outcome.not_finite_weights,
                report::count(outcome.nan_groups as usize, "group")
            ));
        }
        self.rows.push(Row {
            name: weight.name.clone(),
            prefix: weight.prefix.clone(),
            dtype: weight.tensor.info.dtype,
            shape: weight.tensor.info.shape.clone(),
            bytes: [byte_len(&weight.tensor.info) as u64, after],
            outcome,
        });
    }

    /// Prints the report.
    ///
    /// # Errors
    /// Stdout that cannot be written.
    pub(super) fn print(mut self, as_json: bool) -> Result<()> {
        self.rows.sort_by(|a, b| {
            let (x, y) = (a.outcome.difference.relative(), b.outcome.difference.relative());
            y.total_cmp(&x).then_with(|| a.name.cmp(&b.name))
        });
        match as_json {
            true => report::print_json(&self.json()),
            false => report::print(|page| self.text(page)),
        }
    }

    fn total(&self) -> (Difference, [u64; 2]) {
        let mut total = (Difference::default(), [0; 2]);
        for row in &self.rows {
            total.0.merge(&row.outcome.difference);
            total.1[0] += row.bytes[0];
            total.1[1] += row.bytes[1];
        }
        total
    }

    fn quantizers(&self) -> Vec<&str> {
        let names = self.rows.iter().map(|r| r.outcome.quantizer.as_str());
        names.filter(|name| !name.is_empty()).collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn json(&self) -> impl Serialize {
        let (difference, [before, after]) = self.total();
        let mut totals = json!({
            "tensors": self.rows.len(),
            "copied": self.copied,
            "bytes_before": before,
            "bytes_after": after,
            "file_bytes_before": self.file_bytes[0],
            "file_bytes_after": self.file_bytes[1],
        });
        report::put_difference(&mut totals, "", &difference);
        Report {
            head: &self.head,
            quantizers: self.quantizers(),
            skipped: Stream(|| {
                let skipped = self.skipped.iter();
                skipped
                    .map(|(name, reason)| json!({ "name": name, "reason": told::reason(reason) }))
            }),
            tensors: Stream(|| self.rows.iter().map(Row::json)),
            totals,
            warnings: &self.warnings,
        }
    }

    fn text(&self, page: &mut Page<'_>) -> io::Result<()> {
        let columns = [
            "tensor",
            "shape",
            "type",
            ">before",
            ">after",
            ">relative error",
            ">SQNR dB",
            ">NaN groups",
            ">zero groups",
        ];
        let line =
            |name: &str, shape, dtype, [before, after]: [u64; 2], d: &Difference, nan, zero| {
                [
                    name.to_string(),
                    shape,
                    dtype,
                    report::bytes(before),
                    report::bytes(after),
                    report::relative(d.relative()),
                    report::decibels(d.sqnr_db()),
                    nan,
                    zero,
                ]
            };
        let (difference, bytes) = self.total();
        let [nan, zero] = [|o: &Outcome| o.nan_groups, |o: &Outcome| o.zero_groups]
            .map(|f| self.rows.iter().map(|r| f(&r.outcome)).sum::<u64>().to_string());
        let name = format!("total of {}", self.rows.len());
        let total = line(&name, String::new(), String::new(), bytes, &difference, nan, zero);

        page.line(format_args!("{}", self.title))?;
        page.line(format_args!(""))?;
        page.table(columns, || {
            let rows = self.rows.iter().map(|row| {
                let o = &row.outcome;
                let (shape, dtype) = (report::shape(&row.shape), row.dtype.to_string());
                let (nan, zero) = (o.nan_groups.to_string(), o.zero_groups.to_string());
                line(&row.name, shape, dtype, row.bytes, &o.difference, nan, zero)
            });
            rows.chain([total.clone()])
        })?;
        page.line(format_args!(""))?;
        page.line(format_args!(
            "error: ||w - dequantized|| / ||w|| (Frobenius), w being the {}; worst first; \
             quantized by {}",
            self.domain,
            self.quantizers().join(", ")
        ))?;
        let [before, after] = self.file_bytes.map(report::bytes);
        page.line(format_args!(
            "{} quantized, {} copied as they are; safetensors files {before} -> {after}",
            report::count(self.rows.len(), "tensor"),
            self.copied
        ))?;
        for (name, reason) in &self.skipped {
            page.line(format_args!("not quantized: {name}: {}", told::reason(reason)))?;
        }
        for warning in &self.warnings {
            page.line(format_args!("warning: {warning}"))?;
        }
        Ok(())
    }
}

/// The report as `--json` prints it.
#[derive(Serialize)]
struct Report<'a, S: Serialize, T: Serialize> {
    #[serde(flatten)]
    head: &'a Value,
    quantizers: Vec<&'a str>,
    skipped: S,
    tensors: T,
    totals: Value,
    warnings: &'a [String],
}

impl Row {
    fn json(&self) -> Value {
        let o = &self.outcome;
        let mut json = json!({
            "name": self.name,
            "prefix": self.prefix,
            "dtype": self.dtype.to_string(),
            "shape": self.shape,
            "bytes_before": self.bytes[0],
            "bytes_after": self.bytes[1],
            "weight_global_scale": o.global_scale,
            "groups": o.groups,
            "nan_groups": o.nan_groups,
            "zero_groups": o.zero_groups,
            "not_finite_weights": o.not_finite_weights,
            "warning": o.warning.map(|warning| warning.to_string()),
        });
        report::put_difference(&mut json, "", &o.difference);
        json
    }
}
