//! What the Rust crates log during a call, for Python's `warnings` and `logging`.
//!
//! A record is kept on the thread that runs the call, without Python: whoever holds the interpreter
//! may be waiting for the call. It becomes a warning or a log line once the call is back.

use std::cell::RefCell;
use std::ffi::CString;

use log::{Level, LevelFilter, Log, Metadata, Record};
use pyo3::prelude::*;

use crate::error::Fp4Warning;

/// The most records that one call keeps.
const MOST: usize = 100;

thread_local! {
    /// One list for each call on this thread: a worker that waits may run another call meanwhile.
    static CALLS: RefCell<Vec<Vec<(Level, String)>>> = const { RefCell::new(Vec::new()) };
}

struct Keep;

impl Log for Keep {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Info
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        CALLS.with_borrow_mut(|calls| {
            if let Some(call) = calls.last_mut().filter(|call| call.len() < MOST) {
                call.push((record.level(), record.args().to_string()));
            }
        });
    }

    fn flush(&self) {}
}

/// Makes this the logger of the extension. A second call changes nothing.
pub(crate) fn install() {
    if log::set_logger(&Keep).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// Runs `f`, and gives what was logged meanwhile on this thread.
pub(crate) fn during<R>(f: impl FnOnce() -> R) -> (R, Vec<(Level, String)>) {
    /// Takes the list away also if `f` panics.
    struct Call;
    impl Drop for Call {
        fn drop(&mut self) {
            CALLS.with_borrow_mut(Vec::pop);
        }
    }
    CALLS.with_borrow_mut(|calls| calls.push(Vec::new()));
    let call = Call;
    let result = f();
    let said = CALLS.with_borrow_mut(|calls| calls.last_mut().map(std::mem::take));
    drop(call);
    (result, said.unwrap_or_default())
}

/// Warnings to `warnings.warn`, all else to `logging`.
///
/// # Errors
/// What a filter makes of a warning.
pub(crate) fn tell(py: Python<'_>, said: Vec<(Level, String)>) -> PyResult<()> {
    for (level, text) in said {
        if level <= Level::Warn {
            let text = CString::new(text.replace('\0', "\\0"))?;
            PyErr::warn(py, &py.get_type::<Fp4Warning>(), &text, 2)?;
        } else {
            let logger = py.import("logging")?.call_method1("getLogger", ("exact_fp4",))?;
            logger.call_method1("info", ("%s", text))?;
        }
    }
    Ok(())
}
