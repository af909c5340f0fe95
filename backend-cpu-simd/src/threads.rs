//! Which threads run the tasks of a call, and the check of each thread's environment (C9).
//!
//! A call is cut into tasks that write disjoint parts of the output; a task's result does not
//! depend on which thread runs it or when. One task runs where the call was made, without a pool.

use std::sync::Arc;

use fp4_core::{Error, Paths, check_environment};
use rayon::prelude::*;

/// A rayon pool: one of the caller's, or rayon's current one; or no thread but the one that calls.
#[derive(Debug, Clone, Default)]
pub(crate) struct TaskThreads {
    pool: Option<Arc<rayon::ThreadPool>>,
    alone: bool,
}

impl TaskThreads {
    /// The threads of `pool`.
    pub(crate) fn of_pool(pool: Arc<rayon::ThreadPool>) -> Self {
        TaskThreads { pool: Some(pool), alone: false }
    }

    /// The thread that calls and no other: for what runs inside of a task.
    pub(crate) const fn alone() -> Self {
        TaskThreads { pool: None, alone: true }
    }

    /// How many threads there are.
    pub(crate) fn count(&self) -> usize {
        match &self.pool {
            _ if self.alone => 1,
            Some(pool) => pool.current_num_threads(),
            None => rayon::current_num_threads(),
        }
    }

    /// Into how many tasks to cut work of `work` units, if a task of `least` units is worth a
    /// task: one, or enough to keep every thread busy to the end.
    pub(crate) fn tasks(&self, work: usize, least: usize) -> usize {
        let worth = work / least.max(1);
        if worth <= 1 {
            return 1;
        }
        let threads = self.count();
        if threads == 1 { 1 } else { worth.min(8 * threads) }
    }

    /// Runs `f` on every task, in any order, and returns the results in order, or an error.
    ///
    /// Checks the environment of every thread that runs a task, before the task.
    pub(crate) fn run<T: Send, R: Send>(
        &self,
        tasks: Vec<T>,
        f: impl Fn(T) -> Result<R, Error> + Sync + Send,
    ) -> Result<Vec<R>, Error> {
        let checked = |task| {
            check_environment()?;
            f(task)
        };
        if tasks.len() <= 1 || self.alone {
            return tasks.into_iter().map(checked).collect();
        }
        let all = || tasks.into_par_iter().map(checked).collect();
        match &self.pool {
            Some(pool) => pool.install(all),
            None => all(),
        }
    }

    /// Runs `f` on 0, 1, ..., `count` - 1, in any order, and merges the results; allocates nothing.
    ///
    /// Checks the environment of every thread that runs a task, before the task.
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
        count: usize,
        f: impl Fn(usize) -> Result<Paths, Error> + Sync + Send,
    ) -> Result<Paths, Error> {
        let checked = |task| {
            check_environment()?;
            f(task)
        };
        let merge = |mut all: Paths, paths: Paths| {
            all.merge(&paths);
            Ok(all)
        };
        if count <= 1 || self.alone {
            return (0..count).map(checked).try_fold(Paths::default(), |all, p| merge(all, p?));
        }
        let all = || (0..count).into_par_iter().map(checked).try_reduce(Paths::default, merge);
        match &self.pool {
            Some(pool) => pool.install(all),
            None => all(),
        }
    }

    /// Runs `f` on every item with its index; on other threads only if `worth`.
    ///
    /// Checks the environment of every thread that runs a task, before the task.
    pub(crate) fn run_mut<T: Send>(
        &self,
        items: &mut [T],
        worth: bool,
        f: impl Fn((usize, &mut T)) -> Result<(), Error> + Sync + Send,
    ) -> Result<(), Error> {
        if items.len() <= 1 || !worth || self.alone {
            return items.iter_mut().enumerate().try_for_each(f);
        }
        let checked = |item: (usize, &mut T)| {
            check_environment()?;
            f(item)
        };
        let mut all = move || items.par_iter_mut().enumerate().try_for_each(checked);
        match &self.pool {
            Some(pool) => pool.install(all),
            None => all(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_and_errors_come_out() {
        let mut all = vec![TaskThreads::default()];
        // WASM has no threads: rayon runs everything on the current one.
        if cfg!(not(target_family = "wasm")) {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
            all.push(TaskThreads::of_pool(Arc::new(pool)));
        }
        for threads in all {
            let squares = threads.run((0..100).collect(), |i: usize| Ok(i * i)).unwrap();
            assert!(squares.iter().enumerate().all(|(i, &s)| s == i * i));
            let failed: Result<Vec<()>, _> = threads
                .run(vec![1, 2, 3], |i| if i == 2 { Err(Error::PartialOverflow) } else { Ok(()) });
            assert_eq!(failed, Err(Error::PartialOverflow));
        }
    }

    #[test]
    #[cfg(not(target_family = "wasm"))]
    fn small_work_is_one_task() {
        let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap());
        let threads = TaskThreads::of_pool(pool);
        assert_eq!((threads.tasks(0, 10), threads.tasks(19, 10)), (1, 1));
        assert_eq!((threads.tasks(50, 10), threads.tasks(10_000, 10)), (5, 16));
    }
}
