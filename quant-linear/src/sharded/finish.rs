//! What becomes of added words: sums, each rounded once, and outputs ([C6]).
//!
//! ```text
//! rows of a block     cut into parts of some thousand outputs, which the threads of the caller's
//!                     rayon pool take in turns
//! a row               rounded in vectors, then the epilogue, then written to its columns
//! ```
//!
//! Between the parts the sums that are on their way may go on.
//!
//! [C6]: fp4_core::contract#c6

use std::ops::Range;

use fp4_core::reduction::BlockPlan;
use fp4_core::{Epilogue, Error, Float, FloatSliceMut, check_environment, with_floats};

use crate::sharded::{CommError, ShardError};

/// Outputs that are rounded at a time by a thread: tens of microseconds.
const PART: usize = 1 << 14;

/// A block whose sums are on their way: its plan, and the first of its columns.
pub(super) struct Planned {
    pub(super) plan: BlockPlan,
    pub(super) first: usize,
}

/// Where outputs go, and what is done to each.
pub(super) struct Finish<'a> {
    pub(super) epilogue: Epilogue<'a>,
    /// All columns.
    pub(super) n: usize,
    /// The rows that are kept.
    pub(super) out: FloatSliceMut<'a>,
}

impl Finish<'_> {
    /// Writes the outputs of blocks whose words of the rows `rows` have been added, and calls
    /// `advance` now and then.
    pub(super) fn blocks(
        &mut self,
        blocks: &[Planned],
        rows: Range<usize>,
        words: &[i64],
        mut advance: impl FnMut() -> Result<(), CommError>,
    ) -> Result<(), ShardError> {
        let mut rest = words;
        for block in blocks {
            let (own, others) = rest.split_at(block.plan.words(rows.clone()).min(rest.len()));
            rest = others;
            let Finish { epilogue, n, out } = self;
            with_floats!(FloatSliceMut, out.reborrow(), out => {
                rounded(block, rows.clone(), own, epilogue, *n, out, &mut advance)
            })?;
        }
        Ok(())
    }
}

/// A part of the rows of a block.
struct Part<'a, T> {
    rows: Range<usize>,
    words: &'a [i64],
    out: &'a mut [T],
}

fn rounded<T: Float + Send>(
    block: &Planned,
    rows: Range<usize>,
    words: &[i64],
    epilogue: &Epilogue<'_>,
    n: usize,
    out: &mut [T],
    advance: &mut impl FnMut() -> Result<(), CommError>,
) -> Result<(), ShardError> {
    let plan = &block.plan;
    let of_part = (PART / plan.columns().max(1)).max(1);
    let (mut words, mut parts) = (words, Vec::new());
    for (first, out) in rows.clone().step_by(of_part).zip(out.chunks_mut(of_part * n)) {
        let rows = first..rows.end.min(first + of_part);
        let (own, others) = words.split_at(plan.words(rows.clone()).min(words.len()));
        words = others;
        parts.push(Part { rows, words: own, out });
    }
    let write = |Part { rows, words, out }: &mut Part<'_, T>| {
        let start = rows.start;
        plan.rounded(rows.clone(), words, |i, sums| {
            let at = (i - start) * n + block.first;
            epilogue.apply_row(sums, i, block.first, &mut out[at..at + sums.len()]);
        })
    };
    let threads = if parts.len() == 1 { 1 } else { rayon::current_num_threads() };
    for parts in parts.chunks_mut(threads) {
        match parts {
            [part] => write(part)?,
            parts => on_threads(parts, write)?,
        }
        advance()?;
    }
    Ok(())
}

/// Does `f` for all parts at once.
fn on_threads<P: Send>(
    parts: &mut [P],
    f: impl Fn(&mut P) -> Result<(), Error> + Sync,
) -> Result<(), Error> {
    use rayon::prelude::*;
    parts.par_iter_mut().try_for_each(|part| {
        // Rounding is a thread's own (C9).
        check_environment()?;
        f(part)
    })
}
