//! A progress bar over bytes, on stderr, where there is someone to look at it.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};
use quant_linear::text;

use crate::report;

/// A bar of `total` bytes; hidden when `quiet`, or when stderr is not a terminal.
pub(crate) fn bar(total: u64, quiet: bool) -> ProgressBar {
    if quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(total);
    let template = "{bar:30} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta} left \
                    {wide_msg}";
    // A template that does not parse would cost the looks of the bar, nothing else.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// A bar of `total` steps; hidden as [`bar`] is.
#[cfg(feature = "calibrate")]
pub(crate) fn steps(total: u64, quiet: bool) -> ProgressBar {
    let bar = bar(total, quiet);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {eta} left {wide_msg}") {
        bar.set_style(style);
    }
    bar
}

/// So many bytes were done by an earlier run: they count for neither the rate nor the time left.
pub(crate) fn skip(bar: &ProgressBar, bytes: u64) {
    bar.inc(bytes);
    bar.reset_eta();
}

/// Says beside the bar what is being worked on: a name from a file.
pub(crate) fn show(bar: &ProgressBar, name: &str) {
    // A long name would be a long line to measure at every redraw.
    bar.set_message(report::beginning(&text::printable(name)));
}
