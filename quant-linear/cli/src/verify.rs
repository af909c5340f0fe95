//! `fp4 verify`: what is wrong with a quantized checkpoint, or looks wrong.
//!
//! Exit codes: 0 if nothing is wrong for certain (there may be warnings), 1 if something is, 2 if
//! the path cannot be read or is no checkpoint. A checkpoint that is cut short, lacks a shard or
//! disagrees with its index is a finding, and 1.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use quant_linear::model::verify::{self, Finding, Severity};

use crate::args;
use crate::report::Page;
use crate::{progress, report};

/// Arguments of `fp4 verify`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A .safetensors or .gguf file, or a folder with model.safetensors (or diffusers'
    /// diffusion_pytorch_model.safetensors) or with shards and their index.
    path: PathBuf,
    #[command(flatten)]
    source: args::Source,
    /// Print one JSON object instead of text, and no progress.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// A path that cannot be read or is no checkpoint.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let mut bar = None;
    let mut show = |progress: verify::Progress<'_>| {
        let bar = bar.get_or_insert_with(|| progress::bar(progress.total, args.json));
        progress::show(bar, progress.module);
        bar.set_position(progress.done);
    };
    let report =
        verify::path(&args.path, args.source.config.as_deref(), &args.source.options(), &mut show)?;
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let (errors, warnings) = (report.count(Severity::Error), report.count(Severity::Warning));
    if args.json {
        report::print_json(&report.document(&args.path))?;
    } else {
        report::print(|page| text(page, &report, errors, warnings))?;
    }
    Ok(if errors > 0 { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

fn text(
    page: &mut Page<'_>,
    report: &verify::Report,
    errors: usize,
    warnings: usize,
) -> io::Result<()> {
    for (layout, layers) in &report.layouts {
        page.line(format_args!("{layout}: {}", report::count(*layers, "layer")))?;
    }
    if !report.findings.is_empty() {
        let mut kinds: BTreeMap<(Severity, &str), Vec<&Finding>> = BTreeMap::new();
        for finding in &report.findings {
            kinds.entry((finding.severity, finding.kind)).or_default().push(finding);
        }
        page.line(format_args!(""))?;
        page.table(["severity", "kind", ">findings", "first"], || {
            kinds.iter().map(|((severity, kind), findings)| {
                let first = findings.first().and_then(|finding| finding.module.clone());
                let first = first.unwrap_or_else(|| "(the whole)".into());
                [severity.name().into(), (*kind).into(), findings.len().to_string(), first]
            })
        })?;
        page.line(format_args!(""))?;
        for Finding { severity, kind, module, message } in &report.findings {
            let module = module.as_ref().map(|module| format!("`{module}`: "));
            let module = module.unwrap_or_default();
            page.line(format_args!("{} {kind}: {module}{message}", severity.name()))?;
        }
        page.line(format_args!(""))?;
    }
    let [errors, warnings] =
        [(errors, "error"), (warnings, "warning")].map(|(n, what)| report::count(n, what));
    page.line(format_args!("{errors}, {warnings}"))
}
