//! What happens around a call: progress, cancelling, warnings, panics.
//!
//! A function of the caller's that throws stops the call: what it threw is kept, every read after
//! that is an error, and when the call is back that is what it throws. So a caller cancels by
//! throwing from `progress`, and nothing is left half done.

use std::cell::RefCell;

use js_sys::Function;
use log::{LevelFilter, Log, Metadata, Record};
use wasm_bindgen::prelude::*;

thread_local! {
    /// What a function of the caller's threw during this call.
    static THROWN: RefCell<Option<JsValue>> = const { RefCell::new(None) };
}

/// What stopped a call.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl Failure {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Failure(text.into())
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure(error.to_string())
    }
}

/// What a call gives JavaScript.
pub(crate) type Answer<T> = Result<T, JsValue>;

/// Runs a call.
pub(crate) fn run<T>(call: impl FnOnce() -> Result<T, Failure>) -> Answer<T> {
    THROWN.with_borrow_mut(Option::take);
    let result = call();
    match (THROWN.with_borrow_mut(Option::take), result) {
        (Some(thrown), _) => Err(thrown),
        (None, result) => result.map_err(|Failure(text)| js_sys::Error::new(&text).into()),
    }
}

/// Keeps what a function threw; the first counts.
pub(crate) fn thrown(value: JsValue) {
    THROWN.with_borrow_mut(|thrown| _ = thrown.get_or_insert(value));
}

/// True once a function threw.
pub(crate) fn stopped() -> bool {
    THROWN.with_borrow(Option::is_some)
}

/// Tells a function of the caller's how far a call is.
pub(crate) struct Progress(Option<Function>);

impl Progress {
    /// A function, or nobody.
    ///
    /// # Errors
    /// Anything else.
    pub(crate) fn of(value: &JsValue) -> Result<Self, Failure> {
        if value.is_undefined() || value.is_null() {
            return Ok(Progress(None));
        }
        match value.dyn_ref::<Function>() {
            Some(function) => Ok(Progress(Some(function.clone()))),
            None => Err(Failure::new("progress is no function; give one, or leave it out")),
        }
    }

    /// Tells it.
    pub(crate) fn tell(&self, done: u64, total: u64, name: &str) {
        let Some(function) = self.0.as_ref().filter(|_| !stopped()) else { return };
        let (done, total) = (JsValue::from(done as f64), JsValue::from(total as f64));
        if let Err(value) = function.call3(&JsValue::UNDEFINED, &done, &total, &name.into()) {
            thrown(value);
        }
    }
}

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_namespace = console, js_name = warn)]
    fn console_warn(text: &str);
}

/// What the crates warn of, on the console.
struct Console;

impl Log for Console {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let text = format!("exact-fp4: {}", record.args());
            console_warn(&quant_linear::text::printable(&text));
        }
    }

    fn flush(&self) {}
}

/// Sets up what calls need. A second call changes nothing.
pub(crate) fn install() {
    if log::set_logger(&Console).is_ok() {
        log::set_max_level(LevelFilter::Warn);
    }
    // The last resort: what was meant to be an error and is a panic still has a message.
    std::panic::set_hook(Box::new(|panic| {
        let text = format!("exact-fp4 has a bug ({panic}); please report it, and load it anew");
        wasm_bindgen::throw_str(&text);
    }));
}
