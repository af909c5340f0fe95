//! `fp4 report`: one page about a checkpoint, or about two, to be looked at.
//!
//! ```text
//! read    the losses of the run that made B, if they are given     (quant_linear::model::report)
//!         the numbers, tile by tile                                (quant_linear::model::report)
//! write   the page of web/dist, made by web/build.mjs, with the numbers in its place for them
//! ```
//!
//! The page is one file that asks no network for anything; its policy admits the script and the
//! styles that it was built with, by their hashes, and nothing else. The numbers are a JSON block
//! in which `<`, `>`, `&` and every hidden character are escapes, so that no name in it can end the
//! block; the script shows names as text.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use indicatif::ProgressBar;
use quant_linear::atomic::{self, Kind, New};
use quant_linear::checkpoint::{Checkpoint, TensorSource};
use quant_linear::model::quantize::LayerLoss;
use quant_linear::model::report::{Event, Losses, Report};
use quant_linear::text;
use serde::Serialize;

use crate::{args, interrupt, output, progress, report};

/// The page without numbers.
const PAGE: &str = include_str!("../web/dist/report.html");

/// Where they go.
const PLACE: &str = "@fp4-report@";

/// Arguments of `fp4 report`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The checkpoint to report on; with B the reference, dense or quantized. A .safetensors or
    /// .gguf file, or a folder.
    a: PathBuf,
    /// The checkpoint to measure against A.
    b: Option<PathBuf>,
    /// The page to write, a single HTML file.
    #[arg(short, long, required_unless_present = "json")]
    output: Option<PathBuf>,
    /// Replace the page if it exists.
    #[arg(long)]
    force: bool,
    /// What `fp4 quantize --calib .. --json` printed when it wrote the quantized checkpoint: the
    /// page shows what each layer lost, before (rounded to nearest) and after.
    #[arg(long, value_name = "FILE")]
    losses: Option<PathBuf>,
    #[command(flatten)]
    source: args::Source,
    /// Print the numbers as one JSON object, and no progress; the page is optional then.
    #[arg(long)]
    json: bool,
}

/// The numbers as the page and `--json` have them.
#[derive(Serialize)]
struct Numbers<'a> {
    command: &'static str,
    fp4_version: &'static str,
    #[serde(flatten)]
    report: &'a Report,
}

/// Runs the command.
///
/// # Errors
/// Bad input, something that could not be reported on, or an I/O error.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let a = args.source.open(&args.a)?;
    let b = args.b.as_deref().map(|b| args.source.open(b)).transpose()?;
    if let Some(output) = &args.output {
        interrupt::clean_up()?;
        for checkpoint in [Some(&a), b.as_ref()].into_iter().flatten() {
            check(checkpoint, output)?;
        }
        for file in [&args.source.config, &args.losses].into_iter().flatten() {
            output::check(file, &[], output, Kind::File, true)?;
        }
        output::check(&args.a, &[], output, Kind::File, args.force)?;
    }
    let losses = args.losses.as_deref().map(Losses::read).transpose()?;
    let mut bar = ProgressBar::hidden();
    let mut on = |event: Event<'_>| match event {
        Event::Work(bytes) => bar = progress::bar(bytes, args.json),
        Event::Working(name) => progress::show(&bar, name),
        Event::Bytes(bytes) => bar.inc(bytes),
    };
    let options = args.source.options();
    let report = Report::with_losses(&a, b.as_ref(), &options, losses.as_ref(), &mut on);
    let report = report.map_err(args::told)?;
    bar.finish_and_clear();
    let numbers =
        Numbers { command: "report", fp4_version: env!("CARGO_PKG_VERSION"), report: &report };
    if let Some(output) = &args.output {
        write(output, &numbers, args.force)?;
    }
    match &args.output {
        _ if args.json => report::print_json(&numbers)?,
        Some(output) => report::print(|page| page.line(format_args!("{}", said(output, &report))))?,
        None => {}
    }
    match report.problems.first.first() {
        None => Ok(ExitCode::SUCCESS),
        Some(problem) => {
            let count = report::count(report.problems.count(), "problem");
            bail!("{count}, and the report is on the rest: {problem}")
        }
    }
}

/// Checks that the page takes the place of no file that it is about: shards and parts, their
/// index, and what lies beside them and says what they mean.
fn check(checkpoint: &Checkpoint, output: &Path) -> Result<()> {
    let folder = match checkpoint.is_folder() {
        true => checkpoint.path(),
        false => atomic::parent(checkpoint.path()),
    };
    let own = checkpoint.own_names().into_iter().map(|name| folder.join(name));
    let own = own.filter(|path| path.exists());
    let files = own.chain([checkpoint.path().to_path_buf()].into_iter().filter(|p| p.is_file()));
    let mut all = files.chain(checkpoint.config().paths().map(Path::to_path_buf));
    all.try_for_each(|file| output::check(&file, &[], output, Kind::File, true))?;
    // A config that could not be read is in no list, and no other file of a model's folder is.
    let is = |extensions: &[&str]| {
        output.extension().is_some_and(|e| extensions.iter().any(|other| e == *other))
    };
    let theirs = match checkpoint.is_folder() {
        true => !is(&["html", "htm"]),
        false => is(&["json", "safetensors", "gguf"]),
    };
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    let within = real(output).is_some_and(|output| output.parent() == real(folder).as_deref());
    ensure!(
        !(theirs && within),
        "the output {} is a file of the input {}; choose another name, such as report.html",
        output.display(),
        checkpoint.path().display()
    );
    Ok(())
}

/// Writes the page, whole or not at all.
fn write(output: &Path, numbers: &Numbers<'_>, force: bool) -> Result<()> {
    let (before, after) = PAGE.split_once(PLACE).context("the page has no place for numbers")?;
    let fill = |place: &Path| {
        let mut file = BufWriter::new(File::create_new(place)?);
        file.write_all(before.as_bytes())?;
        report::write_html_json(&mut file, numbers)?;
        file.write_all(after.as_bytes())?;
        file.flush()
    };
    let written = New::begin(Kind::File, output).and_then(|new| {
        fill(new.building()).map_err(|source| {
            let path = output.to_path_buf();
            quant_linear::Error::Io { action: "writing", path, source }
        })?;
        new.commit(force)
    });
    match written {
        Ok(()) => Ok(()),
        Err(error) => Err(output::told(error, PAGE.len() as u64, false)?),
    }
}

/// What was written, in a line.
fn said(output: &Path, report: &Report) -> String {
    let layers = report::count(report.totals.layers as usize, "quantized layer");
    let error = report.totals.error.map(|e| format!(", {} dB", report::decibels(e.sqnr_db)));
    let left_out = match report.rows_left_out {
        0 => String::new(),
        n => format!("; {} not shown one by one", report::count(n, "row")),
    };
    let loss = report.losses.as_ref().map(|run| {
        let LayerLoss { layer, before, .. } = run.mean;
        format!(", mean loss {before:.3e} before, {layer:.3e} after")
    });
    let (path, error) = (text::path(output), error.unwrap_or_default());
    format!("{path}: {layers}{error}{}{left_out}", loss.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_one_place_for_numbers_and_admits_nothing_from_outside() {
        assert_eq!(PAGE.matches(PLACE).count(), 1);
        let policy = PAGE.split_once("Content-Security-Policy").unwrap().1;
        let policy = policy.split_once('>').unwrap().0;
        assert!(policy.contains("default-src 'none'; script-src 'sha256-"), "{policy}");
        assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
        for outside in [" src=", "<link", "@import", "url("] {
            assert!(!PAGE.contains(outside), "{outside}");
        }
        assert_eq!(PAGE.matches("<script").count(), 2);
        assert_eq!(PAGE.matches("</script").count(), 2);
        assert!(PAGE.contains("Permission is hereby granted"), "the licence of the library");
    }
}
