//! How the benches take time, and the cache that decides what is cold. Of time: other load on a machine only ever adds, so that the fastest of many
//! samples is the nearest to the work's own time.

#![allow(dead_code, unreachable_pub, reason = "each bench uses a part, and one is a library")]

use std::time::{Duration, Instant};

/// How time is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// The calling thread's processor time: other processes do not count. For one thread.
    Thread,
    /// The processor time of all threads of this process.
    Process,
    /// The wall's.
    Wall,
}

impl Clock {
    /// The thread's processor time where there is one thread, else the wall's.
    pub fn of(threads: usize) -> Self {
        if threads == 1 { Clock::Thread } else { Clock::Wall }
    }

    /// Seconds since some moment, which for the wall is `start`.
    pub fn now(self, start: Instant) -> f64 {
        #[cfg(unix)]
        if self != Clock::Wall {
            let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            let which = match self {
                Clock::Process => libc::CLOCK_PROCESS_CPUTIME_ID,
                _ => libc::CLOCK_THREAD_CPUTIME_ID,
            };
            // SAFETY: `time` is writable.
            let failed = unsafe { libc::clock_gettime(which, &mut time) };
            assert_eq!(failed, 0, "the processor's clock");
            return time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9;
        }
        start.elapsed().as_secs_f64()
    }
}

/// Seconds of one call in the fastest sample. There are at least five samples, unless they take ten
/// budgets; one has so many calls that reading the clock, a call of the system, is not seen.
pub fn fastest(clock: Clock, budget: Duration, mut f: impl FnMut()) -> f64 {
    const SAMPLE: f64 = 20e-6;
    let start = Instant::now();
    let time = |calls: usize, f: &mut dyn FnMut()| {
        let sample = clock.now(start);
        (0..calls).for_each(|_| f());
        (clock.now(start) - sample) / calls as f64
    };
    let first = time(1, &mut f);
    // The first call is slow: it says nothing of a short one.
    let call = if first < SAMPLE * 50.0 { time(1, &mut f) } else { first };
    let calls = (SAMPLE / call.max(1e-9)).ceil().clamp(1.0, 1000.0) as usize;
    let (start_samples, mut best, mut samples) = (Instant::now(), f64::INFINITY, 0);
    loop {
        best = best.min(time(calls, &mut f));
        samples += 1;
        let spent = start_samples.elapsed();
        if spent >= budget && (samples >= 5 || spent >= 10 * budget) {
            return best;
        }
    }
}

/// Bytes of the last-level cache, 32 MiB if the system does not say.
pub fn last_level_cache() -> usize {
    let read = |i: usize| {
        let path = format!("/sys/devices/system/cpu/cpu0/cache/index{i}/size");
        let size = std::fs::read_to_string(path).ok()?;
        Some(size.trim().strip_suffix('K')?.parse::<usize>().ok()? << 10)
    };
    (0..5).filter_map(read).max().unwrap_or(32 << 20)
}
