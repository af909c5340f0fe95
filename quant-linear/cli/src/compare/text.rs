//! The report of `fp4 compare` for people.

use std::io;

use quant_linear::model::compare::{Kind, Pair};
use quant_linear::model::difference::Difference;

use super::{Args, Findings};
use crate::report::{self, Page};

/// The whole report.
pub(super) fn text(page: &mut Page<'_>, args: &Args, findings: &Findings<'_>) -> io::Result<()> {
    page.line(format_args!("A: {}", args.a.display()))?;
    page.line(format_args!("B: {}", args.b.display()))?;
    let different = || findings.pairs.iter().filter(|(_, p)| !p.identical);
    let differ = different().count();
    if differ > 0 {
        page.line(format_args!(""))?;
        let columns = [
            "tensor",
            "kind",
            "shape",
            ">relative error",
            ">SQNR dB",
            ">max abs error",
            "what differs",
        ];
        page.table(columns, || {
            different().map(|(name, pair)| {
                let figure = |f: &dyn Fn(&Difference) -> String| {
                    pair.difference.as_ref().map_or("-".into(), f)
                };
                [
                    name.to_string(),
                    pair.kind.name().into(),
                    report::shape(&pair.shape),
                    figure(&|d| report::relative(d.relative())),
                    figure(&|d| report::decibels(d.sqnr_db())),
                    figure(&|d| format!("{:.3e}", d.max_abs())),
                    what_differs(pair),
                ]
            })
        })?;
    }
    page.line(format_args!(""))?;
    page.line(format_args!(
        "{} compared: {} identical, {differ} differ",
        report::count(findings.pairs.len(), "tensor"),
        findings.pairs.len() - differ
    ))?;
    if findings.pairs.iter().any(|(_, pair)| pair.kind.is_quantized()) {
        let total = findings.total();
        page.line(format_args!(
            "quantized weights together: relative error {}, SQNR {} dB",
            report::relative(total.relative()),
            report::decibels(total.sqnr_db())
        ))?;
    }
    if findings.pairs.iter().any(|(_, p)| p.transformed && p.kind == Kind::DenseQuantized) {
        page.line(format_args!(
            "layers with a transform were compared with the dense weight transformed the same way"
        ))?;
    }
    let turned = findings.pairs.iter().filter(|(_, pair)| pair.in_out).count();
    if turned > 0 {
        page.line(format_args!(
            "{} stored (in, out), and compared as (out, in)",
            report::count(turned, "dense weight")
        ))?;
    }
    for (side, names) in ["A", "B"].iter().zip(&findings.only) {
        for name in names {
            page.line(format_args!("only in {side}: {name}"))?;
        }
    }
    for problem in &findings.problems {
        page.line(format_args!("problem: {problem}"))?;
    }
    Ok(())
}

fn what_differs(pair: &Pair) -> String {
    let mut parts = vec![];
    for (what, count) in [
        ("codes", pair.codes_differ),
        ("scales", pair.scales_differ),
        ("bytes", pair.bytes_differ),
        ("values", pair.difference.as_ref().map(Difference::differ)),
        ("not finite", pair.difference.as_ref().map(Difference::not_finite)),
        ("NaN scales", Some(pair.nan_scales)),
    ] {
        if let Some(count) = count.filter(|count| *count > 0) {
            parts.push(format!("{count} {what}"));
        }
    }
    parts.extend(pair.settings_differ.iter().map(|name| (*name).to_string()));
    if parts.is_empty() { "type or format".into() } else { parts.join(", ") }
}
