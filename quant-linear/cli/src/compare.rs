//! `fp4 compare`: how far two checkpoints are apart, tensor by tensor.
//!
//! ```text
//! dense     with dense       values, and bytes where the types agree
//! dense     with quantized   values; `X.weight` meets the layer `X`. If the layer has a transform,
//!                            the dense weight is transformed the same way first (C5)
//! quantized with quantized   values, and codes and scale bytes where the formats agree
//! anything else              bytes
//! ```
//!
//! A dense weight is taken as `fp4 quantize` takes it: GPT-2's layers and experts stored (in, out)
//! are turned, experts of three dimensions meet the layers `NAME.0`, `NAME.1`, .., and FP8 and a
//! GGUF's blocks have their values ([`items`](quant_linear::model::items)).
//!
//! The dense side is the reference that errors are relative to; between equals it is A. Pairs with
//! a value that is not finite on one side are counted and left out of the error; "exact" is said
//! only where no value differs at all ([`difference`](quant_linear::model::difference) lists the
//! cases). What cannot be compared (other shapes, other transforms, a layer that is not whole) is
//! reported as a problem after everything else has been compared; the exit code is then 2.

mod text;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail, ensure};
use serde::Serialize;
use serde_json::{Value, json};

use quant_linear::model::compare::{self, Pair, Side};
use quant_linear::model::difference::Difference;
use quant_linear::model::inspect::problem;
use quant_linear::model::items::{Item, Items, Whole};
use quant_linear::text::JsonList;

use crate::args;
use crate::{progress, report};

/// Arguments of `fp4 compare`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The reference: a .safetensors or .gguf file, or a folder, dense or quantized.
    a: PathBuf,
    /// The other one.
    b: PathBuf,
    /// Exit with 1 if anything differs: a value, a code, a scale, a scalar, a type, a missing
    /// tensor.
    #[arg(long)]
    exact: bool,
    /// Exit with 1 if a relative error is larger than this, or a tensor is missing on one side.
    #[arg(long, value_name = "ERROR", value_parser = parse_tolerance, allow_hyphen_values = true)]
    tolerance: Option<f64>,
    #[command(flatten)]
    source: args::Source,
    /// Print one JSON object instead of tables, and no progress.
    #[arg(long)]
    json: bool,
}

fn parse_tolerance(text: &str) -> Result<f64, String> {
    let value = text.parse::<f64>().ok().filter(|v| v.is_finite() && *v >= 0.0);
    value.ok_or_else(|| format!("`{text}` is no tolerance; give a number of at least 0"))
}

/// Everything that was found.
#[derive(Debug, Default)]
struct Findings<'a> {
    pairs: Vec<(Cow<'a, str>, Pair)>,
    only: [Vec<Cow<'a, str>>; 2],
    problems: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// Bad input, tensors that cannot be compared, or an I/O error.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let checkpoints = [args.source.open(&args.a)?, args.source.open(&args.b)?];
    let layers = [args.source.layers(&checkpoints[0])?, args.source.layers(&checkpoints[1])?];
    let mut findings = Findings::default();
    let [a, b] = [0, 1].map(|i| (&checkpoints[i], &layers[i]));
    let problems = &mut findings.problems;
    let items = [
        items(a, b, &args.a.display().to_string(), problems)?,
        items(b, a, &args.b.display().to_string(), problems)?,
    ];
    let work = items[0].iter().filter(|(name, _)| items[1].contains_key(*name));
    let bar = progress::bar(work.map(|(_, item)| item.byte_len()).sum(), args.json);
    for (name, a) in &items[0] {
        let Some(b) = items[1].get(name) else {
            findings.only[0].push(a.shown(name));
            continue;
        };
        progress::show(&bar, name);
        let sides =
            [Side { from: &checkpoints[0], item: a }, Side { from: &checkpoints[1], item: b }];
        match compare::compare(&sides)? {
            Ok(pair) => findings.pairs.push((name.clone(), pair)),
            Err(problem) => findings.problems.push(format!("`{name}`: {problem}")),
        }
        bar.inc(a.byte_len());
    }
    for (name, b) in &items[1] {
        if !items[0].contains_key(name) {
            findings.only[1].push(b.shown(name));
        }
    }
    bar.finish_and_clear();
    findings.pairs.sort_by(|(a_name, a), (b_name, b)| {
        b.rank().total_cmp(&a.rank()).then_with(|| a_name.cmp(b_name))
    });
    ensure!(
        !(findings.pairs.is_empty() && findings.problems.is_empty()),
        "{} and {} have no tensor in common; are they versions of one model? `fp4 inspect` lists \
         their tensors",
        args.a.display(),
        args.b.display()
    );
    let passed = findings.pass(args);
    if args.json {
        report::print_json(&findings.json(args, passed))?;
    } else {
        report::print(|page| text::text(page, args, &findings))?;
    }
    if let Some(problem) = findings.problems.first() {
        bail!(
            "{} could not be compared: {problem}",
            report::count(findings.problems.len(), "tensor")
        );
    }
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// What there is to compare on one side, as the other sees it.
fn items<'a>(
    side: Whole<'a>,
    other: Whole<'a>,
    label: &str,
    problems: &mut Vec<String>,
) -> Result<BTreeMap<Cow<'a, str>, Item<'a>>> {
    let bad = side.1.bad.iter();
    problems.extend(bad.map(|(p, e)| format!("{label}: {}", problem(p, e))));
    let items = Items::of(side, Some(other))?;
    problems.extend(items.twice.iter().map(|name| {
        format!(
            "{label} holds `{name}` both dense and quantized, only the quantized one was \
             compared; remove one of them"
        )
    }));
    Ok(items.by_name)
}

impl Findings<'_> {
    /// Do the findings satisfy `--exact` and `--tolerance`?
    fn pass(&self, args: &Args) -> bool {
        let complete = self.only.iter().all(Vec::is_empty) && self.problems.is_empty();
        let exact = complete && self.pairs.iter().all(|(_, pair)| pair.identical);
        let within = |tolerance: f64| {
            complete
                && self.pairs.iter().all(|(_, pair)| match &pair.difference {
                    Some(d) => d.relative() <= tolerance && d.not_finite() == 0,
                    None => pair.identical,
                })
        };
        (!args.exact || exact) && args.tolerance.is_none_or(within)
    }

    /// The error over all pairs with a quantized side.
    fn total(&self) -> Difference {
        let mut total = Difference::default();
        let quantized = self.pairs.iter().filter(|(_, pair)| pair.kind.is_quantized());
        quantized.filter_map(|(_, p)| p.difference.as_ref()).for_each(|d| total.merge(d));
        total
    }

    fn json<'s>(&'s self, args: &'s Args, passed: bool) -> impl Serialize + 's {
        let pairs = JsonList(|| {
            self.pairs.iter().map(|(name, pair)| {
                let mut pair_json = json!({
                    "name": name,
                    "kind": pair.kind.name(),
                    "shape": pair.shape,
                    "identical": pair.identical,
                    "domain": pair.domain(),
                    "in_out": pair.in_out,
                    "exact": pair.identical,
                    "codes_differ": pair.codes_differ,
                    "scales_differ": pair.scales_differ,
                    "bytes_differ": pair.bytes_differ,
                    "settings_differ": pair.settings_differ,
                    "nan_scales": pair.nan_scales,
                });
                let names = ["relative_error", "sqnr_db", "max_abs_error", "error_kind"];
                for name in names.iter().chain(&["values_differ", "not_finite"]) {
                    pair_json[*name] = Value::Null; // bytes have no values
                }
                if let Some(difference) = &pair.difference {
                    report::put_difference(&mut pair_json, "", difference);
                }
                pair_json
            })
        });
        let total = self.total();
        let identical = self.pairs.iter().filter(|(_, p)| p.identical).count();
        let mut totals = json!({ "compared": self.pairs.len(), "identical": identical });
        report::put_difference(&mut totals, "quantized_", &total);
        Report {
            a: args.a.to_string_lossy(),
            b: args.b.to_string_lossy(),
            command: "compare",
            exact: args.exact,
            only_in_a: &self.only[0],
            only_in_b: &self.only[1],
            passed,
            problems: &self.problems,
            tensors: pairs,
            tolerance: args.tolerance,
            totals,
        }
    }
}

/// The report as `--json` prints it.
#[derive(Serialize)]
struct Report<'a, T: Serialize> {
    a: Cow<'a, str>,
    b: Cow<'a, str>,
    command: &'static str,
    exact: bool,
    only_in_a: &'a [Cow<'a, str>],
    only_in_b: &'a [Cow<'a, str>],
    passed: bool,
    problems: &'a [String],
    tensors: T,
    tolerance: Option<f64>,
    totals: Value,
}
