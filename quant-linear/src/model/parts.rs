//! Ranges of the rows of a large weight: pieces of work for several processes.
//!
//! ```text
//! a weight of more than 32 MiB     as many even ranges of rows as make parts of at most that
//! a part                           finds the global scale, of all rows, once in each process;
//!                                  then quantizes its own rows
//! the first part                   writes the layer's settings too
//! ```
//!
//! Where the parts begin depends on the weight alone, so a run that is continued has the same ones,
//! by however many processes. The files have the bytes of one piece of work; of the error's figures
//! the last digits may differ, because the parts' sums are added.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use crate::error::Error;
use crate::model::plan::Weight;
use crate::model::ties::Known;
use crate::sharded::even;

/// Bytes of a part in the input, at most, unless a row has more.
pub(super) const PART_BYTES: u64 = 32 << 20;

/// Some rows of a weight.
pub(super) struct Part<'t> {
    pub(super) weight: &'t Weight,
    pub(super) rows: Range<usize>,
    /// What the first part of this process to need it has found, for the others.
    known: Arc<OnceLock<Known>>,
}

impl<'t> Part<'t> {
    /// The parts of a weight; none if it has at most so many bytes, or cannot be cut: what a
    /// calibration decides is decided for all rows at once.
    pub(super) fn cut(weight: &'t Weight, most: u64) -> Vec<Self> {
        let rows = weight.shape.rows();
        if weight.pipeline.is_some() || weight.byte_len() <= most || rows < 2 {
            return Vec::new();
        }
        let parts = weight.byte_len().div_ceil(most.max(1)).min(rows as u64) as usize;
        let known = Arc::new(OnceLock::new());
        let part = |at| Part { weight, rows: even(rows, 1, at, parts), known: known.clone() };
        (0..parts).map(part).collect()
    }

    /// True for the part with the last rows.
    pub(super) fn is_last(&self) -> bool {
        self.rows.end == self.weight.shape.rows()
    }

    /// Bytes of its rows in the input.
    pub(super) fn byte_len(&self) -> u64 {
        // Of the first so many rows, so that the parts' bytes are the weight's.
        let upto = |row: usize| {
            let share = u128::from(self.weight.byte_len()) * row as u128;
            (share / self.weight.shape.rows().max(1) as u128) as u64
        };
        upto(self.rows.end) - upto(self.rows.start)
    }

    /// What decides the global scale. Parts that begin at once may each look for it: none waits for
    /// another, which may be behind it on its own thread.
    pub(super) fn known(
        &self,
        find: impl FnOnce() -> Result<Known, Error>,
    ) -> Result<Known, Error> {
        match self.known.get() {
            Some(known) => Ok(*known),
            None => {
                let known = find()?;
                Ok(*self.known.get_or_init(|| known))
            }
        }
    }
}
