//! What all commands share on their way out: stdout, errors, tables and numbers.
//!
//! Writing to stdout goes through [`print()`] and not `println!`, which panics when the reader of a
//! pipe has gone away.

use std::io::{self, Write};

use anyhow::{Context, Result};
use comfy_table::{Cell, CellAlignment, Table, presets};
use indicatif::BinaryBytes;
use serde_json::Value;

/// Prints text to stdout. A reader that has closed its pipe has seen what it wanted.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("writing the report to stdout"),
    }
}

/// Prints one JSON object to stdout. Numbers that JSON lacks (NaN, infinities) are `null`.
pub(crate) fn print_json(value: &Value) -> Result<()> {
    print(&format!("{value:#}\n"))
}

/// Writes an error with its causes to stderr.
pub(crate) fn complain(error: &anyhow::Error) {
    // Nothing is left to tell anyone if even stderr is gone.
    let _ = writeln!(io::stderr(), "error: {error:#}");
}

/// An empty table with these column titles; columns marked `>` are aligned to the right.
pub(crate) fn table(columns: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(columns.iter().map(|c| Cell::new(c.trim_start_matches('>'))));
    for (column, title) in table.column_iter_mut().zip(columns) {
        if title.starts_with('>') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// A byte count for people.
pub(crate) fn bytes(count: u64) -> String {
    BinaryBytes(count).to_string()
}

/// A shape as `[384, 1536]`.
pub(crate) fn shape(shape: &[usize]) -> String {
    format!("{shape:?}")
}

/// A relative error.
pub(crate) fn relative(x: f64) -> String {
    if x.is_nan() { "undefined".into() } else { format!("{x:.5}") }
}

/// A signal to noise ratio in decibels; infinite only where nothing differs.
pub(crate) fn decibels(x: f64) -> String {
    if x == f64::INFINITY {
        "exact".into()
    } else if x.is_nan() {
        "undefined".into()
    } else {
        format!("{x:.2}")
    }
}

/// `1 tensor`, `2 tensors`.
pub(crate) fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Text of a file on one line, without control characters, cut to a readable length.
pub(crate) fn one_line(text: &str) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if let Some((cut, _)) = line.char_indices().nth(200) {
        line.truncate(cut);
        line += "...";
    }
    line
}
