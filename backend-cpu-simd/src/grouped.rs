//! Several products in one call: which run whole, which are cut, and which threads run them (C6).
//!
//! ```text
//! share = work of all / (SHARES * threads)
//! one thread, or too little work for more:  each product after the other
//! else                                      products above a share: A packed, cut into tasks
//!                                           the others: whole, A packed by whoever runs it
//! in one parallel region:  each thread walks the list, the largest product first:
//!                          takes the tasks of a cut product that are left, or a whole product
//! ```
//!
//! So experts with a few rows each share the threads evenly without being cut, and one with
//! thousands is cut for all threads. Threads that come to a product that is taken go on to the
//! next; the last ones are the smallest. Where consecutive products have the same A (q, k and v of
//! one input), it is packed once, or once by each thread that runs some of them whole.
//!
//! No sum is ever split between tasks, so that the bits are those of each product alone.
//!
//! Worked example: 2 threads, 64 experts with 25 rows each, N and K alike: 64 products of 1 / 64 of
//! the work, a share is 1 / 16: all whole, 32 for each thread. One with 1600 rows beside them has
//! half of the work and is cut into 8 shares.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock, PoisonError};

use fp4_core::{Epilogue, Error, FloatSliceMut, GroupedError, PackedView, Paths};

use crate::cost::Cost;
use crate::matmul::{CutCall, ReusedTiles, TileScratch};
use crate::threads::{Plan, TaskThreads};
use crate::weight::Weight;

/// Into how many shares for each thread the work of a call is thought to be cut: what is larger
/// than one is cut indeed.
const SHARES: usize = 8;
/// Multiply-adds that an output costs at least: rounding and writing it, if K is small.
const OUTPUT_MACS: usize = 64;
/// Packed bytes of an A that several threads pack together; smaller ones are packed side by side,
/// if there are enough for the threads.
const LARGE_BYTES: usize = 1 << 20;

/// One product of a call, its operands checked.
pub(crate) struct GroupedCall<'a> {
    pub(crate) weight: &'a Weight,
    pub(crate) a: PackedView<'a>,
    pub(crate) epilogue: Epilogue<'a>,
    pub(crate) out: FloatSliceMut<'a>,
}

impl<'a> GroupedCall<'a> {
    fn cost(&self) -> Cost {
        // An expert without rows reads no weight.
        if self.out.is_empty() {
            return Cost::NONE;
        }
        let (a, b) = (self.a.shape(), self.weight.shape());
        Cost::matmul(self.weight.isa(), [a.rows(), b.rows(), a.k()])
    }

    /// What the product costs beside others, in multiply-adds.
    fn work(&self) -> usize {
        self.out.len().saturating_mul(self.a.shape().k().max(OUTPUT_MACS))
    }

    fn run(self, threads: &TaskThreads, rows: &mut ReusedTiles<'a>) -> Result<Paths, Error> {
        self.weight.matmul_reusing(threads, rows, self.a, self.epilogue, self.out)
    }
}

/// Computes all products and returns the paths of each.
pub(crate) fn run(
    by: (&TaskThreads, &TileScratch),
    calls: Vec<GroupedCall<'_>>,
) -> Result<Vec<Paths>, GroupedError> {
    let threads = by.0;
    let work = calls.iter().fold(0usize, |all, call| all.saturating_add(call.work()));
    let plan = threads.plan(calls.iter().map(GroupedCall::cost).fold(Cost::NONE, Cost::and));
    if calls.len() == 1 || plan.threads == 1 {
        one_by_one(by, calls)
    } else {
        in_one_region(by, calls, plan, work / (SHARES * plan.threads))
    }
}

/// As a loop of products would be, except that the same A is not packed again.
fn one_by_one<'a>(
    (threads, scratch): (&TaskThreads, &TileScratch),
    calls: Vec<GroupedCall<'a>>,
) -> Result<Vec<Paths>, GroupedError> {
    let mut rows = ReusedTiles::of(scratch.take());
    let run = |(i, call): (usize, GroupedCall<'a>)| {
        call.run(threads, &mut rows).map_err(|error| GroupedError::of(i, error))
    };
    let each = calls.into_iter().enumerate().map(run).collect();
    scratch.give(rows.into_tiles());
    each
}

/// What is left to do of a product.
enum Left<'a> {
    /// Tasks that any threads take.
    Cut(Box<dyn CutCall + 'a>),
    /// All of it, for the thread that takes it; the lock is held to take it.
    Whole(Mutex<Option<GroupedCall<'a>>>),
}

/// A product in the list that the threads walk.
struct Job<'a> {
    /// Index of the product.
    product: usize,
    left: Left<'a>,
    paths: [AtomicU64; 3],
}

impl<'a> Job<'a> {
    fn new(product: usize, left: Left<'a>) -> Self {
        Job { product, left, paths: Default::default() }
    }

    /// Runs what no other thread has taken, tasks of a cut product until none is left.
    fn run(&self, alone: &TaskThreads, rows: &mut ReusedTiles<'a>) -> Result<(), GroupedError> {
        let add = |paths: Result<Paths, Error>| {
            let Paths { narrow, planes, wide, .. } =
                paths.map_err(|error| GroupedError::of(self.product, error))?;
            for (all, n) in self.paths.iter().zip([narrow, planes, wide]) {
                all.fetch_add(n, Relaxed);
            }
            Ok(())
        };
        match &self.left {
            Left::Cut(call) => std::iter::from_fn(|| call.run_next()).try_for_each(add),
            Left::Whole(call) => {
                let call = call.lock().unwrap_or_else(PoisonError::into_inner).take();
                call.map_or(Ok(()), |call| add(call.run(alone, rows)))
            }
        }
    }

    /// The paths of what has run.
    fn paths(&self) -> Paths {
        let [narrow, planes, wide] = self.paths.each_ref().map(|n| n.load(Relaxed));
        Paths::new(narrow, planes, wide)
    }
}

/// All products at once; those of more work than `share` in several tasks.
fn in_one_region(
    (threads, scratch): (&TaskThreads, &TileScratch),
    calls: Vec<GroupedCall<'_>>,
    plan: Plan,
    share: usize,
) -> Result<Vec<Paths>, GroupedError> {
    let mut each = vec![Paths::default(); calls.len()];
    let alone = TaskThreads::alone();
    let calls = calls.into_iter().enumerate().filter(|(_, call)| !call.out.is_empty());
    let (mut large, mut whole): (Vec<_>, Vec<_>) =
        calls.partition(|(_, call)| call.work() > share && call.weight.is_tiled());
    // Stable: products of one A and one shape stay neighbours.
    large.sort_by_key(|(_, call)| std::cmp::Reverse(call.work()));
    whole.sort_by_key(|(_, call)| std::cmp::Reverse(call.work()));

    let mut packed: Vec<(ReusedTiles<'_>, &GroupedCall<'_>)> = Vec::new();
    let mut packed_of = Vec::with_capacity(large.len());
    for (_, call) in &large {
        let has =
            |(_, of): &(_, &GroupedCall<'_>)| call.weight.shares_tiles(call.a, of.weight, of.a);
        let at = packed.iter().position(has).unwrap_or(packed.len());
        if at == packed.len() {
            packed.push((ReusedTiles::of(scratch.take()), call));
        }
        packed_of.push(at);
    }
    let few = packed.len() < plan.threads;
    let together = |of: &GroupedCall<'_>| few || of.a.codes().len() > LARGE_BYTES;
    for (tiles, of) in packed.iter_mut().filter(|(_, of)| together(of)) {
        of.weight.pack(threads, tiles, of.a)?;
    }
    // What is packed already is not packed again.
    let side_by_side = if few { Plan::ONE } else { plan };
    threads
        .run(side_by_side, packed.iter_mut(), |(tiles, of)| of.weight.pack(&alone, tiles, of.a))?;
    let packed: Vec<ReusedTiles<'_>> = packed.into_iter().map(|(tiles, _)| tiles).collect();

    let cut = large.into_iter().zip(&packed_of).filter_map(|((product, call), &at)| {
        let tasks = call.work().div_ceil(share.max(1));
        let GroupedCall { weight, a, epilogue, out } = call;
        let cut = weight.cut(&alone, (a, packed[at].tiles()), epilogue, out, tasks)?;
        Some(Job::new(product, Left::Cut(cut)))
    });
    let whole = whole
        .into_iter()
        .map(|(product, call)| Job::new(product, Left::Whole(Mutex::new(Some(call)))));
    let jobs: Vec<Job<'_>> = cut.chain(whole).collect();

    let failed = OnceLock::new();
    let walked = threads.for_each(plan.threads, plan.threads, |_| {
        let mut rows = ReusedTiles::of(scratch.take());
        for job in jobs.iter().take_while(|_| failed.get().is_none()) {
            if let Err(error) = job.run(&alone, &mut rows) {
                // The first one is told.
                let _ = failed.set(error);
            }
        }
        scratch.give(rows.into_tiles());
        Ok(Paths::default())
    });
    jobs.iter().for_each(|job| each[job.product] = job.paths());
    drop(jobs);
    packed.into_iter().for_each(|tiles| scratch.give(tiles.into_tiles()));
    walked?;
    failed.into_inner().map_or(Ok(each), Err)
}
