//! Ranges of the rows of a large weight: pieces of work for several processes.
//!
//! ```text
//! a weight of more than 32 MiB, and   as many even ranges of rows as make parts of at most that
//! of more than 1/128 of all
//! a part                              finds the global scale, of all rows, once in each process,
//!                                     with the threads that have other parts of the weight; then
//!                                     quantizes its own rows
//! the first part                      writes the layer's settings too
//! ```
//!
//! A weight that is little of the whole is left uncut: the shares of up to some tens of processes
//! are even without that, and only one of them looks for its largest magnitude.
//!
//! Where the parts begin depends on the weights alone, so a run that is continued has the same
//! ones, by however many processes. The files have the bytes of one piece of work; of the error's
//! figures the last digits may differ, because the parts' sums are added.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use crate::error::Error;
use crate::model::plan::Weight;
use crate::model::ties::Known;
use crate::sharded::even;
use crate::transform::larger_amax;

/// Bytes of a part in the input, unless [`SHARE`] allows more, or a row has more.
const PART_BYTES: u64 = 32 << 20;

/// The share of all bytes that a part may always have: 1 in so many.
const SHARE: u64 = 128;

/// The most bytes of a part where weights have so many bytes together.
pub(super) fn part_bytes(all: u64) -> u64 {
    PART_BYTES.max(all / SHARE)
}

/// The largest magnitudes of the tiles of a matrix, as far as some thread has found them.
#[derive(Default)]
pub(super) struct Seen {
    tiles: OnceLock<Vec<OnceLock<f32>>>,
    /// The first tile that no thread has begun.
    next: AtomicUsize,
}

impl Seen {
    fn tiles(&self, tiles: usize) -> &[OnceLock<f32>] {
        self.tiles.get_or_init(|| vec![OnceLock::new(); tiles])
    }

    /// Notes what a tile of so many has.
    pub(super) fn note(&self, tile: usize, tiles: usize, amax: f32) {
        self.tiles(tiles)[tile].get_or_init(|| amax);
    }

    /// The largest of all of so many tiles. Threads that ask at once share the tiles; for one that
    /// another has begun none waits, which may be behind it on its own thread: it is found twice.
    ///
    /// # Errors
    /// Those of `find`, which looks at a tile.
    pub(super) fn largest(
        &self,
        tiles: usize,
        mut find: impl FnMut(usize) -> Result<f32, Error>,
    ) -> Result<f32, Error> {
        let all = self.tiles(tiles);
        let mut once = |tile: usize| match all[tile].get() {
            Some(_) => Ok(()),
            None => find(tile).map(|amax| self.note(tile, tiles, amax)),
        };
        let begin = || Some(self.next.fetch_add(1, Ordering::Relaxed)).filter(|&at| at < tiles);
        while let Some(tile) = begin() {
            once(tile)?;
        }
        // The last ones were begun last.
        (0..tiles).rev().try_for_each(once)?;
        Ok(all.iter().filter_map(OnceLock::get).copied().fold(0.0, larger_amax))
    }
}

/// Some rows of a weight.
pub(super) struct Part<'t> {
    pub(super) weight: &'t Weight,
    pub(super) rows: Range<usize>,
    /// What parts of this process have found, for the others.
    found: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    known: OnceLock<Known>,
    seen: Seen,
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
        let found = Arc::new(Shared::default());
        let part = |at| Part { weight, rows: even(rows, 1, at, parts), found: found.clone() };
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

    /// What decides the global scale; parts that begin at once look for it together.
    ///
    /// # Errors
    /// Those of `find`.
    pub(super) fn known(
        &self,
        find: impl FnOnce(&Seen) -> Result<Known, Error>,
    ) -> Result<Known, Error> {
        let Shared { known, seen } = &*self.found;
        match known.get() {
            Some(known) => Ok(*known),
            None => {
                let own = find(seen)?;
                Ok(*known.get_or_init(|| own))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tile_is_looked_at_once_unless_who_began_it_has_not_ended() {
        let values = [1.0f32, 7.0, 3.0, 9.0, 2.0];
        let seen = Seen::default();
        seen.note(2, 5, values[2]);
        // Another thread has begun the first two and has not ended.
        seen.next.store(2, Ordering::Relaxed);
        let mut looked = Vec::new();
        let mut find = |tile: usize| {
            looked.push(tile);
            Ok(values[tile])
        };
        assert_eq!(seen.largest(5, &mut find).unwrap(), 9.0);
        assert_eq!(seen.largest(5, &mut find).unwrap(), 9.0);
        assert_eq!(looked, [3, 4, 1, 0]);
        let nan = |tile: usize| Ok([f32::NAN, 1.0][tile]);
        assert!(Seen::default().largest(2, nan).unwrap().is_nan());
        assert_eq!(Seen::default().largest(0, nan).unwrap(), 0.0);
        let fails = |_| Err(Error::MissingTensor { name: "w".into() });
        assert!(Seen::default().largest(1, fails).is_err());
    }

    #[test]
    fn threads_that_look_at_once_find_the_same() {
        let seen = Seen::default();
        let largest = || seen.largest(1000, |tile| Ok((tile * 7 % 1000) as f32)).unwrap();
        std::thread::scope(|scope| {
            let threads = [(); 8].map(|()| scope.spawn(largest));
            for thread in threads {
                assert_eq!(thread.join().unwrap(), 999.0);
            }
        });
    }

    #[test]
    fn a_part_may_have_a_small_share_of_a_large_model() {
        assert_eq!(part_bytes(41 << 20), 32 << 20);
        assert_eq!(part_bytes(128 << 30), 1 << 30);
    }
}
