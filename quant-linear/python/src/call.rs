//! Calls without the interpreter's lock, on threads of our own, that survive a fork.
//!
//! ```text
//! run(f)       the pool, under the lock  ->  lock released  ->  f on the pool  ->  lock taken
//! before fork  wait until no call runs; none begins
//! in the child the threads are gone: a new pool at the next call
//! ```

use std::cell::RefCell;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use fp4_backend_cpu_simd::{ThreadPool, ThreadPoolBuilder};
use pyo3::prelude::*;

use crate::error::Failure;
use crate::said;

/// The most threads that can be asked for.
const MOST_THREADS: usize = 1024;

/// Number of threads asked for (0: all), and the pool once there is one. Locked only by who holds
/// the interpreter's lock, so that it is free whenever a process forks.
static POOL: Mutex<(usize, Option<Arc<ThreadPool>>)> = Mutex::new((0, None));

/// Number of calls that run.
static RUNNING: Mutex<usize> = Mutex::new(0);
/// Told when a call ends.
static ENDED: Condvar = Condvar::new();

thread_local! {
    /// Held from before a fork until after it.
    static FORKING: RefCell<Option<MutexGuard<'static, usize>>> = const { RefCell::new(None) };
}

fn lock<T>(mutex: &'static Mutex<T>) -> MutexGuard<'static, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A call that runs.
struct Running;

impl Running {
    fn begin() -> Self {
        *lock(&RUNNING) += 1;
        Running
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        *lock(&RUNNING) -= 1;
        ENDED.notify_all();
    }
}

/// The pool of all calls, made at the first.
fn pool(_py: Python<'_>) -> Result<Arc<ThreadPool>, Failure> {
    let mut pool = lock(&POOL);
    if let Some(pool) = &pool.1 {
        return Ok(pool.clone());
    }
    // Threads begin in the floating-point environment of the one that makes them.
    fp4_core::check_environment()?;
    let made = ThreadPoolBuilder::new().num_threads(pool.0).build()?;
    let made = Arc::new(made);
    pool.1 = Some(made.clone());
    Ok(made)
}

/// Runs `f` on the pool, without the interpreter's lock. What it logs becomes warnings.
///
/// # Errors
/// Those of `f`; a warning that a filter makes an error.
pub(crate) fn run<R: Send>(
    py: Python<'_>,
    f: impl FnOnce() -> Result<R, Failure> + Send,
) -> PyResult<R> {
    let pool = pool(py)?;
    let (result, said) = py.detach(move || {
        let running = Running::begin();
        let result = pool.install(|| said::during(f));
        drop(running);
        result
    });
    let result = result?;
    said::tell(py, said)?;
    Ok(result)
}

/// Sets the number of threads that calls run on; the bits are the same with any. Calls that run
/// already keep theirs.
///
/// Args: threads: 1 to 1024, or 0 for one for each core.
///
/// Raises: Fp4Error: another number.
#[pyfunction]
pub(crate) fn set_threads(py: Python<'_>, threads: usize) -> PyResult<()> {
    if threads > MOST_THREADS {
        let text = format!("{threads} threads; give 1 to {MOST_THREADS}, or 0 for all cores");
        return Err(Failure::new(text).into());
    }
    *lock(&POOL) = (threads, None);
    pool(py)?;
    Ok(())
}

/// The number of threads that calls run on.
#[pyfunction]
pub(crate) fn threads(py: Python<'_>) -> PyResult<usize> {
    Ok(pool(py)?.current_num_threads())
}

/// For `os.register_at_fork`: waits until no call runs.
#[pyfunction]
pub(crate) fn _before_fork(_py: Python<'_>) {
    let mut running = lock(&RUNNING);
    while *running > 0 {
        running = ENDED.wait(running).unwrap_or_else(PoisonError::into_inner);
    }
    FORKING.set(Some(running));
}

/// For `os.register_at_fork`: lets calls begin again.
#[pyfunction]
pub(crate) fn _after_fork_in_parent(_py: Python<'_>) {
    FORKING.set(None);
}

/// For `os.register_at_fork`: as in the parent, and forgets the threads, which no fork copies.
#[pyfunction]
pub(crate) fn _after_fork_in_child(_py: Python<'_>) {
    FORKING.set(None);
    let gone = lock(&POOL).1.take();
    std::mem::forget(gone);
}
