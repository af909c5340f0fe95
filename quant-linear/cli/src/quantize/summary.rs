//! The report of `fp4 quantize`: per tensor, worst first; what stays dense; totals. A dry run has
//! the same rows without what only a run can know.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use anyhow::Result;
use fp4_core::Format;
use serde::Serialize;
use serde_json::{Value, json};

use quant_linear::Reason;
use quant_linear::checkpoint::{Arrangement, Checkpoint, Listing, byte_len};
use quant_linear::layout::STATE_NAMES;
use quant_linear::model::difference::Difference;
use quant_linear::model::groups::{Counts, Figures, Groups};
use quant_linear::model::plan::{Plan, Skipped, UsedUp, Weight};
use quant_linear::model::quantize::{LayerLoss, Outcome};
use quant_linear::text::JsonList;

use super::row::{Row, loss_json, loss_line, mean};
use super::{Args, GlobalScale, TransformArg, told};

use crate::report::{self, Page};

/// Everything to be reported.
#[derive(Debug)]
pub(super) struct Summary {
    /// The run as a whole, for JSON.
    head: Value,
    title: String,
    domain: &'static str,
    dry: bool,
    skipped: Vec<Skipped>,
    used_up: Vec<UsedUp>,
    copied: usize,
    /// Bytes of all tensors of the input.
    data_bytes: u64,
    file_bytes: [u64; 2],
    /// One for each tensor, by name.
    rows: Vec<Row>,
    groups: Groups,
    quantizers: BTreeSet<String>,
    /// What the user should know.
    pub(super) warnings: Vec<String>,
}

impl Summary {
    /// The report of a run that is about to start.
    pub(super) fn new(args: &Args, input: &Checkpoint, plan: &Plan) -> Self {
        let block = args.block().ok().flatten();
        let transform = args.transform.name();
        let domain = match args.transform {
            TransformArg::None => "weight",
            _ => "transformed weight",
        };
        let format = args.format.map(Format::name);
        let output = args.output.as_ref().filter(|_| !args.dry_run);
        let head = json!({
            "command": "quantize",
            "dry_run": args.dry_run,
            "input": args.input.to_string_lossy(),
            "output": output.map(|output| output.to_string_lossy()),
            "format": format,
            "recipe": args.recipe.as_ref().map(|recipe| recipe.to_string_lossy()),
            "transform": transform,
            "transform_block": block,
            "scale_rule": args.scale_rule.name(),
            "activations": args.encoding().name(),
            "global_scale": match args.global_scale {
                GlobalScale::Auto => json!("auto"),
                GlobalScale::Value(value) => json!(value),
            },
            "error_domain": domain,
        });
        let with = block.map_or(String::new(), |b| format!(", {transform} blocks of {b}"));
        let to = output.map_or("(dry run)".into(), |output| output.display().to_string());
        let by = match (&args.recipe, format) {
            (Some(recipe), None) => recipe.display().to_string(),
            (Some(recipe), Some(format)) => format!("{format}{with} and {}", recipe.display()),
            (None, format) => format!("{}{with}", format.unwrap_or_default()),
        };
        Summary {
            head,
            title: format!("{} -> {to}: {by}", args.input.display()),
            domain,
            dry: args.dry_run,
            skipped: plan.skipped.clone(),
            used_up: plan.used_up.clone(),
            copied: plan.copied,
            data_bytes: input.tensors().values().map(|t| byte_len(&t.info) as u64).sum(),
            file_bytes: [
                input.files().iter().map(|(_, file)| file.file_len()).sum(),
                plan.layouts.iter().map(Arrangement::file_len).sum(),
            ],
            rows: rows(plan),
            groups: Groups::default(),
            quantizers: BTreeSet::new(),
            warnings: plan.unmatched.iter().map(unmatched).collect(),
        }
    }

    /// Warns of safetensors files in a folder that are no part of its model.
    pub(super) fn warn_of_strays(&mut self, listing: &Listing) {
        for (path, _) in &listing.files {
            let stray = path.extension().is_some_and(|e| e == "safetensors");
            if stray && path.parent() == Some(Path::new("")) {
                let path = path.display();
                self.warnings.push(format!("{path} is no part of the model and was only copied"));
            }
        }
    }

    /// Adds a quantized weight.
    pub(super) fn add(&mut self, weight: &Weight, outcome: Outcome) {
        let shown = match weight.expert {
            Some(expert) => format!("{}[{expert}]", weight.name),
            None => weight.name.clone(),
        };
        let mut warn = |text: String| self.warnings.push(format!("{shown}: {text}"));
        if let Some(warning) = &outcome.warning {
            warn(warning.to_string());
        }
        let counts = outcome.groups.counts();
        if outcome.not_finite_weights > 0 {
            warn(format!(
                "{} of its weights are NaN or infinite; {} got a NaN scale, and the error leaves \
                 such weights out",
                outcome.not_finite_weights,
                report::count(counts.nan as usize, "group")
            ));
        }
        self.groups.merge(&outcome.groups);
        if !outcome.quantizer.is_empty() && !self.quantizers.contains(&outcome.quantizer) {
            self.quantizers.insert(outcome.quantizer.clone());
        }
        let row = self.rows.binary_search_by(|row| row.name.as_str().cmp(&weight.name));
        let Some(row) = row.ok().and_then(|at| self.rows.get_mut(at)) else { return };
        row.add(weight.expert, outcome);
        if let Some(warning) = row.warning() {
            self.warnings.push(format!("{}: {warning}", row.name));
        }
    }

    /// Prints the report.
    ///
    /// # Errors
    /// Stdout that cannot be written.
    pub(super) fn print(mut self, as_json: bool) -> Result<()> {
        if !self.dry {
            self.rows.sort_by(|a, b| {
                let (x, y) = (a.difference().relative(), b.difference().relative());
                y.total_cmp(&x).then_with(|| a.name.cmp(&b.name))
            });
        }
        self.warnings.sort();
        match as_json {
            true => report::print_json(&self.json()),
            false => report::print(|page| self.text(page)),
        }
    }

    fn total(&self) -> (Difference, [u64; 2]) {
        let mut total = (Difference::default(), [0; 2]);
        for row in &self.rows {
            total.0.merge(&row.difference());
            total.1[0] += row.bytes[0];
            total.1[1] += row.bytes[1];
        }
        total
    }

    /// Bytes of what stays dense, of two or more dimensions.
    fn dense_bytes(&self) -> u64 {
        let dense = |s: &&Skipped| !matches!(s.reason, Reason::ScalesOf(_));
        self.skipped.iter().filter(dense).map(|s| s.bytes).sum()
    }

    fn json(&self) -> impl Serialize {
        let (difference, [before, after]) = self.total();
        let mut totals = json!({
            "tensors": self.rows.len(),
            "copied": self.copied,
            "skipped_bytes": self.dense_bytes(),
            "data_bytes": self.data_bytes,
            "bytes_before": before,
            "bytes_after": after,
            "file_bytes_before": self.file_bytes[0],
            "file_bytes_after": self.file_bytes[1],
        });
        if !self.dry {
            report::put_difference(&mut totals, "", &difference);
            put_figures(&mut totals, &self.groups.figures());
            if let Some(loss) = self.mean_loss() {
                totals["mean_loss"] = loss_json(loss);
            }
        }
        Report {
            head: &self.head,
            quantizers: self.quantizers.iter().map(String::as_str).collect(),
            skipped: JsonList(|| self.skipped.iter().map(skipped)),
            tensors: JsonList(|| self.rows.iter().map(Row::json)),
            totals,
            used_up: JsonList(|| self.used_up.iter().map(used_up)),
            warnings: &self.warnings,
        }
    }

    fn text(&self, page: &mut Page<'_>) -> io::Result<()> {
        page.line(format_args!("{}", self.title))?;
        page.line(format_args!(""))?;
        if self.dry {
            self.plan_table(page)?;
        } else {
            self.sizes_table(page)?;
            page.line(format_args!(""))?;
            self.groups_table(page)?;
            page.line(format_args!(""))?;
            self.losses_table(page)?;
            page.line(format_args!(
                "error: ||w - dequantized|| / ||w|| (Frobenius), w being the {}; worst first; \
                 quantized by {}",
                self.domain,
                self.quantizers.iter().cloned().collect::<Vec<_>>().join(", ")
            ))?;
        }
        let [before, after] = self.file_bytes.map(report::bytes);
        page.line(format_args!(
            "{} quantized, {} copied as they are; safetensors files {before} -> {after}",
            report::count(self.rows.len(), "tensor"),
            self.copied
        ))?;
        let dense = self.dense_bytes();
        page.line(format_args!(
            "not quantized, of two or more dimensions: {}, {} ({} of the input)",
            report::count(self.skipped.len(), "tensor"),
            report::bytes(dense),
            self.share(dense)
        ))?;
        for Skipped { name, reason, bytes } in &self.skipped {
            page.line(format_args!(
                "not quantized: {name}: {} ({}, {})",
                told::short_reason(reason),
                report::bytes(*bytes),
                self.share(*bytes)
            ))?;
        }
        // Those of more dimensions are in the list above.
        let listed = |name: &str| self.skipped.binary_search_by(|s| s.name.as_str().cmp(name));
        for UsedUp { name, weight, .. } in &self.used_up {
            if listed(name).is_err() {
                page.line(format_args!(
                    "not written: {name}: a scale of the FP8 bytes of {weight}"
                ))?;
            }
        }
        let kept = |s: &Skipped| match &s.reason {
            Reason::Kept(kept) => Some(format!("{}: {}", kept.why, kept.source)),
            _ => None,
        };
        let kept: BTreeSet<_> = self.skipped.iter().filter_map(kept).collect();
        if !kept.is_empty() {
            page.line(format_args!("kept by role; --include quantizes what it matches:"))?;
        }
        for line in kept {
            page.line(format_args!("  {line}"))?;
        }
        for warning in &self.warnings {
            page.line(format_args!("warning: {warning}"))?;
        }
        Ok(())
    }

    fn share(&self, bytes: u64) -> String {
        report::percent(bytes, self.data_bytes)
    }

    fn plan_table(&self, page: &mut Page<'_>) -> io::Result<()> {
        let columns = ["tensor", "shape", "type", "to", ">before", ">after"];
        let (_, [before, after]) = self.total();
        page.table(columns, || {
            let rows = self.rows.iter().map(Row::planned);
            let name = format!("total of {}", self.rows.len());
            let [before, after] = [before, after].map(report::bytes);
            rows.chain([[name, String::new(), String::new(), String::new(), before, after]])
        })?;
        page.line(format_args!(""))
    }

    fn sizes_table(&self, page: &mut Page<'_>) -> io::Result<()> {
        let columns =
            ["tensor", "shape", "type", ">before", ">after", ">relative error", ">SQNR dB"];
        let (difference, bytes) = self.total();
        page.table(columns, || {
            let rows = self.rows.iter().map(Row::sizes);
            let name = format!("total of {}", self.rows.len());
            let [before, after] = bytes.map(report::bytes);
            let (relative, db) = (difference.relative(), difference.sqnr_db());
            let (relative, db) = (report::relative(relative), report::decibels(db));
            let none = String::new;
            rows.chain([[name, none(), none(), before, after, relative, db]])
        })
    }

    fn mean_loss(&self) -> Option<LayerLoss> {
        mean(self.rows.iter().flat_map(|row| row.losses.values()))
    }

    /// What layers lose on the sample rows of a calibration, where there is one.
    fn losses_table(&self, page: &mut Page<'_>) -> io::Result<()> {
        let Some(all) = self.mean_loss() else { return Ok(()) };
        let columns = ["tensor", ">loss, weight", ">weight + activations", ">before", ">of before"];
        page.table(columns, || {
            let total = loss_line("mean", all);
            self.rows.iter().filter_map(Row::losses).chain([total])
        })?;
        page.line(format_args!(
            "loss: ||x W^T - y||^2 / ||x W^T||^2 over the sample rows of the calibration; before: \
             rounded to nearest, with no transform"
        ))?;
        page.line(format_args!(""))
    }

    fn groups_table(&self, page: &mut Page<'_>) -> io::Result<()> {
        let columns = [
            "tensor",
            ">groups",
            ">NaN",
            ">zero",
            ">lost",
            ">weights flushed",
            ">saturated",
            ">dB min",
            ">5%",
            ">median",
        ];
        page.table(columns, || {
            let name = format!("total of {}", self.rows.len());
            let total = figures_line(&name, &self.groups.figures());
            self.rows.iter().map(|row| figures_line(&row.name, &row.figures)).chain([total])
        })
    }
}

/// The tensors of a plan, by name.
fn rows(plan: &Plan) -> Vec<Row> {
    let mut rows: Vec<Row> = vec![];
    for weight in &plan.weights {
        let layout = &plan.layouts[weight.tensor.file];
        let names = STATE_NAMES.map(|name| quant_linear::state::join(&weight.prefix, name));
        let infos = names.iter().filter_map(|name| layout.tensors().get(name));
        let after: u64 = infos.map(|info| byte_len(info) as u64).sum();
        match rows.last_mut() {
            Some(row) if row.name == weight.name => row.plan(weight, after),
            _ => rows.push(Row::new(weight, after)),
        }
    }
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    rows
}

fn unmatched(glob: &String) -> String {
    format!(
        "'{glob}' of --exclude or --recipe matches no tensor, so it keeps none dense; `fp4 inspect` \
         lists their names"
    )
}

fn skipped(skipped: &Skipped) -> Value {
    let Skipped { name, reason, bytes } = skipped;
    json!({ "name": name, "reason": told::reason(reason), "bytes": bytes })
}

fn used_up(UsedUp { name, weight, bytes }: &UsedUp) -> Value {
    json!({ "name": name, "weight": weight, "bytes": bytes })
}

fn figures_line(name: &str, figures: &Figures) -> [String; 10] {
    let Counts { groups, zero, lost, nan, weights, flushed, saturated } = figures.counts;
    let db = |db: Option<f64>| db.map_or("-".into(), report::decibels);
    [
        name.to_string(),
        groups.to_string(),
        nan.to_string(),
        zero.to_string(),
        lost.to_string(),
        report::percent(flushed, weights),
        report::percent(saturated, weights),
        db(figures.min_db),
        db(figures.p5_db),
        db(figures.median_db),
    ]
}

/// Puts what became of groups into a JSON object. An SQNR is `null` where there is none, and where
/// nothing differs; `lost_groups` and `zero_groups` tell the two apart.
pub(super) fn put_figures(object: &mut Value, figures: &Figures) {
    let Counts { groups, zero, lost, nan, weights, flushed, saturated } = figures.counts;
    let share = |n: u64| if weights == 0 { 0.0 } else { n as f64 / weights as f64 };
    for (name, value) in [
        ("groups", json!(groups)),
        ("nan_groups", json!(nan)),
        ("zero_groups", json!(zero)),
        ("lost_groups", json!(lost)),
        ("flushed", json!(flushed)),
        ("flushed_share", json!(share(flushed))),
        ("saturated", json!(saturated)),
        ("saturated_share", json!(share(saturated))),
        (
            "group_sqnr_db",
            json!({ "min": figures.min_db, "p5": figures.p5_db, "median": figures.median_db }),
        ),
        ("groups_at_0_db_share", json!(figures.share_at_0_db)),
    ] {
        object[name] = value;
    }
}

/// The report as `--json` prints it.
#[derive(Serialize)]
struct Report<'a, S: Serialize, T: Serialize, U: Serialize> {
    #[serde(flatten)]
    head: &'a Value,
    quantizers: Vec<&'a str>,
    skipped: S,
    tensors: T,
    totals: Value,
    used_up: U,
    warnings: &'a [String],
}
