//! What all commands share on their way out: stdout, errors, tables and numbers.
//!
//! Names, paths and messages may come from a file, so whatever goes out goes through
//! [`text::printable`]: the lines and cells of a [`Page`], errors and log lines. JSON has escapes of
//! its own for the same characters. And a report is written while it is made: a header of a hundred
//! megabytes can name a million tensors.
//!
//! Writing to stdout goes through [`print()`] and not `println!`, which panics when the reader of a
//! pipe has gone away.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, BufWriter, Write};

use anyhow::{Context, Result};
use indicatif::BinaryBytes;
use quant_linear::model::difference::{Difference, Kind};
use quant_linear::text;
use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter};
use serde_json::{Value, json};
use unicode_width::UnicodeWidthStr;

/// Prints a page to stdout. A reader that has closed its pipe has seen what it wanted.
pub(crate) fn print(write: impl FnOnce(&mut Page<'_>) -> io::Result<()>) -> Result<()> {
    to_stdout(|out| write(&mut Page(out)))
}

/// Prints one JSON object to stdout. Numbers that JSON lacks (NaN, infinities) are `null`.
pub(crate) fn print_json(value: &impl Serialize) -> Result<()> {
    to_stdout(|out| {
        write_escaped(&mut *out, value, PrettyFormatter::new(), text::is_hidden)?;
        out.write_all(b"\n")
    })
}

/// Writes compact JSON that can stand inside an HTML element, whatever its strings hold.
pub(crate) fn write_html_json(out: impl Write, value: &impl Serialize) -> io::Result<()> {
    let escaped = |c| matches!(c, '<' | '>' | '&') || text::is_hidden(c);
    write_escaped(out, value, CompactFormatter, escaped)
}

/// Writes JSON in which `escaped` characters of strings are escapes.
fn write_escaped(
    out: impl Write,
    value: &impl Serialize,
    formatter: impl Formatter,
    escaped: fn(char) -> bool,
) -> io::Result<()> {
    let formatter = Escaping { formatter, escaped };
    let mut serializer = serde_json::Serializer::with_formatter(out, formatter);
    value.serialize(&mut serializer).map_err(io::Error::from)
}

fn to_stdout(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {
            let _ = out.into_parts(); // what is left must not be tried again
            Ok(())
        }
        other => other.context("writing the report to stdout"),
    }
}

/// Writes an error with its causes to stderr.
pub(crate) fn complain(error: &anyhow::Error) {
    // Nothing is left to tell anyone if even stderr is gone.
    let _ = writeln!(io::stderr(), "error: {}", text::printable(&format!("{error:#}")));
}

/// Starts the log, on stderr.
pub(crate) fn start_log() {
    let env = env_logger::Env::default().default_filter_or("warn");
    let mut builder = env_logger::Builder::from_env(env);
    builder.format(|out, record| {
        let (time, level) = (out.timestamp(), record.level());
        let message = record.args().to_string();
        writeln!(out, "[{time} {level:<5} {}] {}", record.target(), text::printable(&message))
    });
    builder.init();
}

/// Text for people, line by line.
pub(crate) struct Page<'a>(&'a mut dyn Write);

/// The most characters of a table's cell.
const CELL: usize = 100;

impl Page<'_> {
    /// One line, whatever is in it.
    pub(crate) fn line(&mut self, line: fmt::Arguments<'_>) -> io::Result<()> {
        let line = line.to_string();
        self.0.write_all(text::printable(&line).as_bytes())?;
        self.0.write_all(b"\n")
    }

    /// A table with these column titles; columns marked `>` are aligned to the right.
    ///
    /// `rows` is asked twice, for the widths and for the rows, and nothing is kept between. Cells
    /// of more than a hundred characters lose their middle: one name must not widen all rows.
    pub(crate) fn table<const N: usize, I: Iterator<Item = [String; N]>>(
        &mut self,
        columns: [&str; N],
        rows: impl Fn() -> I,
    ) -> io::Result<()> {
        let titles = columns.map(|title| title.trim_start_matches('>'));
        let mut widths = titles.map(UnicodeWidthStr::width);
        for row in rows() {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell_text(&cell).width().max(*width);
            }
        }
        self.row(titles.map(Cow::Borrowed), &columns, &widths)?;
        for width in widths {
            write!(self.0, "|{:-<1$}", "", width + 2)?;
        }
        self.0.write_all(b"|\n")?;
        for row in rows() {
            self.row(row.each_ref().map(|cell| cell_text(cell)), &columns, &widths)?;
        }
        Ok(())
    }

    fn row<const N: usize>(
        &mut self,
        cells: [Cow<'_, str>; N],
        columns: &[&str; N],
        widths: &[usize; N],
    ) -> io::Result<()> {
        for ((cell, title), width) in cells.iter().zip(columns).zip(widths) {
            let pad = width.saturating_sub(cell.width());
            let (left, right) = if title.starts_with('>') { (pad, 0) } else { (0, pad) };
            write!(self.0, "| {:left$}{cell}{:right$} ", "", "")?;
        }
        self.0.write_all(b"|\n")
    }
}

/// The text of a cell: escaped, and cut in the middle if it is long.
fn cell_text(cell: &str) -> Cow<'_, str> {
    let shown = text::printable(cell);
    if shown.len() <= CELL || shown.chars().count() <= CELL {
        return shown;
    }
    let (head, tail) = (3 * CELL / 5, 2 * CELL / 5 - 3);
    let mut cut: String = shown.chars().take(head).chain("...".chars()).collect();
    let from = shown.char_indices().rev().nth(tail - 1).map_or(0, |(at, _)| at);
    cut += &shown[from..];
    Cow::Owned(cut)
}

/// JSON with an escape for every character that is to be one, and not only for those below U+0020.
struct Escaping<F> {
    formatter: F,
    escaped: fn(char) -> bool,
}

impl<F: Formatter> Formatter for Escaping<F> {
    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(self.escaped) {
            let (plain, escaped) = rest.split_at(at);
            writer.write_all(plain.as_bytes())?;
            let mut chars = escaped.chars();
            if let Some(c) = chars.next() {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
            rest = chars.as_str();
        }
        writer.write_all(rest.as_bytes())
    }

    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.formatter.begin_array(writer)
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.formatter.end_array(writer)
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        self.formatter.begin_array_value(w, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.formatter.end_array_value(writer)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.formatter.begin_object(writer)
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.formatter.end_object(writer)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        self.formatter.begin_object_key(w, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.formatter.begin_object_value(writer)
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.formatter.end_object_value(writer)
    }
}

/// Puts the figures of a difference into a JSON object, with `prefix` before their names. JSON has
/// no infinities and no NaN, which are `null`: `error_kind` tells them apart.
pub(crate) fn put_difference(object: &mut Value, prefix: &str, difference: &Difference) {
    for (name, value) in [
        ("relative_error", json!(difference.relative())),
        ("sqnr_db", json!(difference.sqnr_db())),
        ("max_abs_error", json!(difference.max_abs())),
        ("exact", json!(difference.kind() == Kind::Exact)),
        ("error_kind", json!(difference.kind().name())),
        ("values_differ", json!(difference.differ())),
        ("not_finite", json!(difference.not_finite())),
    ] {
        object[format!("{prefix}{name}")] = value;
    }
}

/// A byte count for people.
pub(crate) fn bytes(count: u64) -> String {
    BinaryBytes(count).to_string()
}

/// A share of a whole; what is more than nothing is never `0%`.
pub(crate) fn percent(part: u64, whole: u64) -> String {
    match 100.0 * part as f64 / whole.max(1) as f64 {
        _ if part == 0 => "0%".into(),
        small if small < 0.1 => "<0.1%".into(),
        share => format!("{share:.1}%"),
    }
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

/// The beginning of a text that may be long.
pub(crate) fn beginning(text: &str) -> String {
    match text.char_indices().nth(200) {
        Some((cut, _)) => format!("{}...", &text[..cut]),
        None => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(write: impl FnOnce(&mut Page<'_>) -> io::Result<()>) -> String {
        let mut out = vec![];
        write(&mut Page(&mut out)).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_table_is_as_wide_as_its_cells_and_a_long_name_is_cut() {
        let long = format!("{}{}", "a".repeat(70_000), "z".repeat(40));
        let rows = || [["x".into(), "1".into()], [long.clone(), "漢\n".into()]].into_iter();
        let text = page(|page| page.table(["name", ">n"], rows));
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(lines.iter().all(|line| line.width() == 1 + 102 + 1 + 6 + 1), "{text}");
        let shown = format!("| {}...{} | 漢", "a".repeat(60), "z".repeat(37));
        assert!(lines[3].starts_with(&shown), "{text}");
        assert!(lines[2].ends_with("|    1 |") && lines[3].ends_with(r"| 漢\n |"), "{text}");
        assert_eq!(page(|p| p.line(format_args!("a\n\u{9b}"))), "a\\n\\u{9b}\n");
    }

    #[test]
    fn json_escapes_what_is_hidden_and_means_the_same() {
        let text = "a\u{1b}\u{7f}\u{9b}\u{202e}\u{e0041}\"\\漢";
        let value = serde_json::json!({ text: [text] });
        let mut out = vec![];
        write_escaped(&mut out, &value, PrettyFormatter::new(), text::is_hidden).unwrap();
        let json = String::from_utf8(out).unwrap();
        assert!(!json.replace('\n', "").contains(text::is_hidden), "{json}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap(), value);
    }

    #[test]
    fn json_in_html_holds_no_markup_and_means_the_same() {
        let text = "</script><!-- <script> --> ]]> &lt; \u{2028}\u{2029}\u{0}\u{feff}\"\\漢";
        let value = serde_json::json!({ text: [text] });
        let mut out = vec![];
        write_html_json(&mut out, &value).unwrap();
        let json = String::from_utf8(out).unwrap();
        assert!(!json.contains(['<', '>', '&']) && !json.contains(text::is_hidden), "{json}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap(), value);
    }
}
