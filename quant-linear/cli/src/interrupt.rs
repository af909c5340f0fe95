//! Ctrl-C, and being asked to end: what is half-written is removed first.
//!
//! The exit code is 128 + the signal's number. A second signal ends the command at once. A signal
//! that whoever started the command has it ignore (`nohup`) stays ignored.

use anyhow::Result;

/// From now on SIGINT, SIGTERM and SIGHUP remove what is half-written before they end the process.
///
/// # Errors
/// The system's.
#[cfg(unix)]
pub(crate) fn clean_up() -> Result<()> {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use anyhow::Context;
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;

    let signals: Vec<_> = [SIGHUP, SIGINT, SIGTERM].into_iter().filter(|s| !ignored(*s)).collect();
    let ending = Arc::new(AtomicBool::new(false));
    let install = || {
        for &signal in &signals {
            let ending = Arc::clone(&ending);
            signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, ending)?;
        }
        Signals::new(&signals)
    };
    let mut received = install().context("preparing for signals")?;
    let end = move || {
        if let Some(signal) = received.forever().next() {
            ending.store(true, Ordering::SeqCst);
            quant_linear::atomic::abandon_all();
            // Not `std::process::exit`: other threads are at work in what that would tear down.
            signal_hook::low_level::exit(128 + signal);
        }
    };
    let thread = std::thread::Builder::new().name("signals".into());
    thread.spawn(end).context("starting the thread that waits for signals")?;
    Ok(())
}

/// Elsewhere the process ends as it is; the next run removes what it leaves.
///
/// # Errors
/// None.
#[cfg(not(unix))]
pub(crate) fn clean_up() -> Result<()> {
    Ok(())
}

/// True if the process was started to ignore the signal, as far as the system tells.
#[cfg(unix)]
fn ignored(signal: i32) -> bool {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return false };
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}
