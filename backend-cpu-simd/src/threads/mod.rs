//! Which threads run the tasks of a call, and the check of each thread's environment (C9).
//!
//! A call is cut into tasks that write disjoint parts of the output; a task's result does not
//! depend on which thread runs it or when.
//!
//! ```text
//! cost of the call       estimated ([`Cost`])
//! below 2 * SHARE_NS     the thread that calls runs all of it; the pool is not touched
//! else                   it asks as many threads of the pool as have SHARE_NS each to help,
//!                        and starts at once; each takes the next tasks that are left
//! ```
//!
//! The calling thread always works, whether it is of the pool or not, and waits for nobody who has
//! not come yet ([`Region`]): in a pool whose threads are busy, or slow to wake up, a call takes as
//! long as on one thread. So do calls from inside of a pool's tasks when all are busy; their jobs
//! stay in the pool's queue, and are few: beyond [`MOST_WAITING`] none are made.
//!
//! Worked example: work of 100 us for a pool of 8 threads: 6 threads, the caller and 5 helpers.

mod region;

use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fp4_core::{Error, Paths, check_environment};

use self::region::Region;
use crate::cost::Cost;

/// Least work of a thread that is asked to help. Waking a thread that sleeps costs the caller 2 us
/// of a system call, and it starts 3 to 10 us later.
const SHARE_NS: u64 = 15_000;
/// Least work of a task: taking one costs some 0.1 us.
const TASK_NS: u64 = 4_000;
/// Most tasks for each thread: the last one to end has at most an eighth of its share to go.
const TASKS: usize = 8;

/// Longest that a helper looks for more work.
pub(crate) const MOST_AWAKE: Duration = Duration::from_millis(10);
/// Most jobs that wait for a thread: more would find none that is idle.
const MOST_WAITING: usize = 1024;

/// A rayon pool: one of the caller's, or rayon's current one; or no thread but the one that calls.
#[derive(Debug, Clone, Default)]
pub(crate) struct TaskThreads {
    pool: Option<Arc<rayon::ThreadPool>>,
    alone: bool,
    /// Jobs of this and its clones that wait for a thread.
    waiting: Arc<AtomicUsize>,
    /// How long a helper looks for more work before it sleeps, beyond what rayon's do.
    awake: Duration,
}

/// On how many threads a call runs, and into about how many tasks it is cut for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) threads: usize,
    pub(crate) tasks: usize,
}

impl Plan {
    /// The calling thread, and one task.
    pub(crate) const ONE: Plan = Plan { threads: 1, tasks: 1 };
}

impl TaskThreads {
    /// The threads of `pool`, with the same settings.
    pub(crate) fn on_pool(&self, pool: Arc<rayon::ThreadPool>) -> Self {
        TaskThreads { pool: Some(pool), awake: self.awake, ..Self::default() }
    }

    /// The thread that calls and no other: for what runs inside of a task.
    pub(crate) fn alone() -> Self {
        TaskThreads { alone: true, ..Self::default() }
    }

    /// The same threads, which look for work for so long after their last before they sleep.
    pub(crate) fn spinning(self, awake: Duration) -> Self {
        TaskThreads { awake: awake.min(MOST_AWAKE), ..self }
    }

    /// How many threads there are.
    pub(crate) fn count(&self) -> usize {
        match &self.pool {
            _ if self.alone => 1,
            Some(pool) => pool.current_num_threads(),
            None => rayon::current_num_threads(),
        }
    }

    /// How to run work of this cost.
    pub(crate) fn plan(&self, cost: Cost) -> Plan {
        let worth = usize::try_from(cost.ns() / SHARE_NS).unwrap_or(usize::MAX);
        // Rayon's pool is not even made for small work.
        let threads = if worth < 2 { 1 } else { worth.min(self.count()) };
        let tasks = if threads == 1 {
            1
        } else {
            // At least 3 for each thread, as SHARE_NS has so many TASK_NS.
            usize::try_from(cost.ns() / TASK_NS).map_or(usize::MAX, |t| t).min(TASKS * threads)
        };
        Plan { threads, tasks }
    }

    /// Runs `f` on every task, in any order, and returns the results in order, or an error.
    ///
    /// Checks the environment of every thread that runs a task, before it does.
    pub(crate) fn run<T, R: Send>(
        &self,
        plan: Plan,
        tasks: impl ExactSizeIterator<Item = T> + Send,
        f: impl Fn(T) -> Result<R, Error> + Sync,
    ) -> Result<Vec<R>, Error> {
        if plan.threads == 1 || tasks.len() <= 1 {
            check_environment()?;
            return tasks.map(f).collect();
        }
        let (count, tasks) = (tasks.len(), Mutex::new(tasks.enumerate()));
        let done = Mutex::new(Vec::with_capacity(count));
        self.share(plan.threads.min(count), |failed| {
            let mut mine = Vec::new();
            while !failed.load(Relaxed) {
                let task = tasks.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((i, task)) = task else { break };
                mine.push((i, f(task)?));
            }
            done.lock().unwrap_or_else(PoisonError::into_inner).append(&mut mine);
            Ok(())
        })?;
        let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        done.sort_unstable_by_key(|&(i, _)| i);
        Ok(done.into_iter().map(|(_, result)| result).collect())
    }

    /// Runs `f` on the units of work 0, 1, ..., `count` - 1, in any order and several at a time,
    /// on `threads` threads, and merges the results. The fewer are left, the fewer are taken at a
    /// time.
    ///
    /// Checks the environment of every thread that runs a task, before it does.
    #[cfg_attr(
        not(any(
            target_arch = "x86_64",
            target_arch = "aarch64",
            all(target_arch = "wasm32", target_feature = "simd128")
        )),
        allow(dead_code, reason = "no kernels plug into the tiles")
    )]
    pub(crate) fn for_each(
        &self,
        threads: usize,
        count: usize,
        f: impl Fn(Range<usize>) -> Result<Paths, Error> + Sync,
    ) -> Result<Paths, Error> {
        let threads = threads.min(count);
        if threads <= 1 {
            check_environment()?;
            return if count == 0 { Ok(Paths::default()) } else { f(0..count) };
        }
        let (next, all) = (AtomicUsize::new(0), Mutex::new(Paths::default()));
        self.share(threads, |failed| {
            let mut mine = Paths::default();
            while !failed.load(Relaxed) {
                let take = |next: usize| next + ((count - next) / (2 * threads)).max(1);
                let taken =
                    next.fetch_update(Relaxed, Relaxed, |next| (next < count).then(|| take(next)));
                let Ok(start) = taken else { break };
                mine.merge(&f(start..take(start))?);
            }
            all.lock().unwrap_or_else(PoisonError::into_inner).merge(&mine);
            Ok(())
        })?;
        Ok(all.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Calls `work` on the calling thread and on up to `threads` - 1 of the pool that are idle;
    /// returns an error if one did. `work` takes what is left to do until nothing is, or until the
    /// flag that it is given is set: another one failed.
    fn share(
        &self,
        threads: usize,
        work: impl Fn(&AtomicBool) -> Result<(), Error> + Sync,
    ) -> Result<(), Error> {
        let (failed, error) = (AtomicBool::new(false), Mutex::new(None));
        let checked = || {
            if let Err(e) = check_environment().and_then(|()| work(&failed)) {
                failed.store(true, Relaxed);
                error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
            }
        };
        Region::open(&checked, |region| self.ask(region, threads - 1));
        error.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// Asks `helpers` threads of the pool to work in a region.
    fn ask(&self, region: &Arc<Region>, helpers: usize) {
        for job in Job::halves(region, helpers, self.awake, &self.waiting) {
            match &self.pool {
                Some(pool) => pool.spawn(|| job.run()),
                None => rayon::spawn(|| job.run()),
            }
        }
    }
}

/// A thread is asked to work in a region, and to ask others to.
struct Job {
    region: Arc<Region>,
    /// How many others.
    helpers: usize,
    /// How long it looks for more work afterwards.
    awake: Duration,
    /// How many jobs wait for a thread.
    waiting: Arc<AtomicUsize>,
}

impl Job {
    /// Two jobs, or fewer, for `helpers` threads: each asks two others, so that no thread wakes
    /// many. None if so many jobs wait already that the pool must be busy.
    fn halves(
        region: &Arc<Region>,
        helpers: usize,
        awake: Duration,
        waiting: &Arc<AtomicUsize>,
    ) -> impl Iterator<Item = Job> {
        let halves = [helpers.div_ceil(2), helpers / 2].into_iter().filter(|&half| half > 0);
        halves.filter_map(move |half| {
            if waiting.fetch_add(1, Relaxed) >= MOST_WAITING {
                waiting.fetch_sub(1, Relaxed);
                return None;
            }
            let (region, waiting) = (region.clone(), waiting.clone());
            Some(Job { region, helpers: half - 1, awake, waiting })
        })
    }

    fn run(self) {
        self.waiting.fetch_sub(1, Relaxed);
        if self.region.is_open() {
            for job in Job::halves(&self.region, self.helpers, self.awake, &self.waiting) {
                rayon::spawn(|| job.run());
            }
            // One that came too late may have been run by a thread that waits for something else.
            if self.region.help() && !self.awake.is_zero() {
                look_for_work(self.awake);
            }
        }
    }
}

thread_local! {
    /// True while this thread of a pool looks for work.
    static AWAKE: Cell<bool> = const { Cell::new(false) };
}

/// Runs jobs of this thread's pool until there was none for so long, or for [`MOST_AWAKE`] in all.
fn look_for_work(awake: Duration) {
    // On WASM there is no clock everywhere.
    if cfg!(target_family = "wasm") || AWAKE.replace(true) {
        return; // the job that ended is one of those
    }
    let start = Instant::now();
    let mut last = start;
    while last.elapsed() < awake && start.elapsed() < MOST_AWAKE {
        match rayon::yield_now() {
            Some(rayon::Yield::Executed) => last = Instant::now(),
            _ => std::hint::spin_loop(),
        }
    }
    AWAKE.set(false);
}

#[cfg(not(target_family = "wasm"))] // it has no threads
#[cfg(test)]
mod tests {
    use super::*;

    fn pools() -> Vec<TaskThreads> {
        let of = |n: usize| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
        let pools = [1, 2, 3, 8].map(|n| TaskThreads::default().on_pool(Arc::new(of(n))));
        pools.into_iter().chain([TaskThreads::default(), TaskThreads::alone()]).collect()
    }

    const MANY: Plan = Plan { threads: 8, tasks: 64 };

    #[test]
    fn results_come_in_order_and_errors_come_out() {
        for threads in pools() {
            let squares = threads.run(MANY, 0..100, |i: usize| Ok(i * i)).unwrap();
            assert!(squares.iter().enumerate().all(|(i, &s)| s == i * i) && squares.len() == 100);
            let failed: Result<Vec<()>, _> =
                threads.run(
                    MANY,
                    1..4,
                    |i: i32| {
                        if i == 2 { Err(Error::PartialOverflow) } else { Ok(()) }
                    },
                );
            assert_eq!(failed, Err(Error::PartialOverflow));
            let failed = threads.for_each(8, 100, |units| {
                if units.contains(&99) { Err(Error::PartialOverflow) } else { Ok(Paths::default()) }
            });
            assert_eq!(failed, Err(Error::PartialOverflow));
        }
    }

    #[test]
    fn each_unit_is_run_once_whatever_the_number_of_threads() {
        for threads in pools() {
            for count in [0, 1, 2, 7, 64, 1000] {
                let runs: Vec<_> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                let paths = threads.for_each(8, count, |units| {
                    assert!(!units.is_empty());
                    for run in &runs[units.clone()] {
                        run.fetch_add(1, Relaxed);
                    }
                    Ok(Paths::new(units.len() as u64, 0, 0))
                });
                assert_eq!(paths.unwrap().narrow, count as u64);
                assert!(runs.iter().all(|run| run.load(Relaxed) == 1), "{count} units");
            }
        }
    }

    #[test]
    fn small_work_is_one_task_and_large_work_is_for_all_threads() {
        let threads = &pools()[3];
        let plan = |us: usize| {
            let Plan { threads, tasks } = threads.plan(Cost::quantize(us, 1_000_000));
            (threads, tasks)
        };
        assert_eq!([0, 1, 29].map(plan), [(1, 1); 3]);
        assert_eq!([30, 100, 119].map(plan), [(2, 7), (6, 25), (7, 29)]);
        assert_eq!([120, 1000, 1 << 40].map(plan), [(8, 30), (8, 64), (8, 64)]);
        let large = Cost::quantize(1 << 40, 1000);
        let of = |threads: &TaskThreads| threads.plan(large).threads;
        let all: Vec<_> = pools().iter().map(of).collect();
        assert_eq!((&all[..4], all[5]), (&[1, 2, 3, 8][..], 1));
        assert_eq!(all[4], rayon::current_num_threads());
    }

    #[test]
    fn a_helper_stays_awake_if_asked_to_and_for_a_bounded_time() {
        for awake in [Duration::ZERO, Duration::from_secs(3600)] {
            let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap());
            let threads = TaskThreads::default().on_pool(pool.clone()).spinning(awake);
            let any_awake = || pool.broadcast(|_| AWAKE.get()).contains(&true);
            // A helper comes, as each waits for the other.
            let seen = (0..100).any(|_| {
                let inside = AtomicUsize::new(0);
                let both = |_| {
                    inside.fetch_add(1, Relaxed);
                    while inside.load(Relaxed) < 2 {
                        std::hint::spin_loop();
                    }
                    Ok(Paths::default())
                };
                threads.for_each(2, 2, both).unwrap();
                any_awake()
            });
            assert_eq!(seen, !awake.is_zero());
            std::thread::sleep(20 * MOST_AWAKE);
            assert!(!any_awake(), "awake after {:?}", 20 * MOST_AWAKE);
        }
    }

    #[test]
    fn a_call_does_not_wait_for_a_pool_that_is_busy_and_leaves_few_jobs() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let threads = TaskThreads::default().on_pool(Arc::new(pool));
        let (busy, free) = (AtomicUsize::new(0), AtomicBool::new(false));
        let nested = |units: Range<usize>| Ok(Paths::new(units.len() as u64, 0, 0));
        std::thread::scope(|outside| {
            // Both threads of the pool, each with calls of its own inside.
            let hold = || {
                busy.fetch_add(1, Relaxed);
                for _ in 0..MOST_WAITING {
                    assert_eq!(threads.for_each(2, 8, nested).unwrap().narrow, 8);
                }
                while !free.load(Relaxed) {
                    std::hint::spin_loop();
                }
            };
            let pool = threads.pool.as_ref().unwrap();
            outside.spawn(move || pool.join(hold, hold));
            while busy.load(Relaxed) < 2 {
                std::hint::spin_loop();
            }
            for _ in 0..2 * MOST_WAITING {
                assert_eq!(threads.for_each(2, 8, nested).unwrap().narrow, 8);
            }
            assert!(threads.waiting.load(Relaxed) <= MOST_WAITING);
            free.store(true, Relaxed);
        });
        // The jobs find their regions closed.
        let pool = threads.pool.as_ref().unwrap();
        while threads.waiting.load(Relaxed) > 0 {
            pool.install(rayon::yield_now);
        }
    }
}
