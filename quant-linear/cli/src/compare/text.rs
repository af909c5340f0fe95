//! The report of `fp4 compare` for people.

use std::fmt::Write;

use super::pairs::{Kind, Pair};
use super::{Args, Findings};
use crate::difference::Difference;
use crate::report;

/// The whole report.
pub(super) fn text(args: &Args, findings: &Findings) -> String {
    let mut text = format!("A: {}\nB: {}\n", args.a.display(), args.b.display());
    let different: Vec<_> = findings.pairs.iter().filter(|(_, p)| !p.identical).collect();
    if !different.is_empty() {
        let mut table = report::table(&[
            "tensor",
            "kind",
            "shape",
            ">relative error",
            ">SQNR dB",
            ">max abs error",
            "what differs",
        ]);
        for (name, pair) in &different {
            let figure =
                |f: &dyn Fn(&Difference) -> String| pair.difference.as_ref().map_or("-".into(), f);
            table.add_row([
                name.clone(),
                pair.kind.name().into(),
                report::shape(&pair.shape),
                figure(&|d| report::relative(d.relative())),
                figure(&|d| report::decibels(d.sqnr_db())),
                figure(&|d| format!("{:.3e}", d.max_abs())),
                what_differs(pair),
            ]);
        }
        text += &format!("\n{table}\n");
    }
    let mut say = |line: std::fmt::Arguments<'_>| {
        let _ = writeln!(text, "{line}"); // a String takes all
    };
    say(format_args!(""));
    let identical = findings.pairs.len() - different.len();
    say(format_args!(
        "{} compared: {identical} identical, {} differ",
        report::count(findings.pairs.len(), "tensor"),
        different.len()
    ));
    if findings.pairs.iter().any(|(_, pair)| pair.kind.is_quantized()) {
        let total = findings.total();
        say(format_args!(
            "quantized weights together: relative error {}, SQNR {} dB",
            report::relative(total.relative()),
            report::decibels(total.sqnr_db())
        ));
    }
    if findings.pairs.iter().any(|(_, p)| p.transformed && p.kind == Kind::DenseQuantized) {
        say(format_args!(
            "layers with a transform were compared with the dense weight transformed the same way"
        ));
    }
    for (side, names) in ["A", "B"].iter().zip(&findings.only) {
        for name in names {
            say(format_args!("only in {side}: {name}"));
        }
    }
    for problem in &findings.problems {
        say(format_args!("problem: {problem}"));
    }
    text
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
