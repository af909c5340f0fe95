//! Warnings that a call logs. The logger is global, so tests that read it take turns.

use std::sync::{Mutex, PoisonError};

static WARNINGS: Mutex<Vec<String>> = Mutex::new(Vec::new());
static TURN: Mutex<()> = Mutex::new(());

struct Collect;

impl log::Log for Collect {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if record.level() == log::Level::Warn {
            WARNINGS.lock().unwrap().push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

/// What is warned of while `f` runs, lesser messages left out.
pub(crate) fn warnings_of(f: impl FnOnce()) -> Vec<String> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = log::set_logger(&Collect);
    log::set_max_level(log::LevelFilter::Debug);
    WARNINGS.lock().unwrap().clear();
    f();
    WARNINGS.lock().unwrap().drain(..).collect()
}
