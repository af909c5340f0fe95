//! Layers split over ranks (processes, threads, machines), with the bits of one ([C6]).
//!
//! ```text
//! ColumnParallel   rank r has some rows of W       all x      ->  its outputs   -> gathered, or kept
//! RowParallel      rank r has some groups of K     its x      ->  exact sums    -> reduced, rounded once
//! ```
//!
//! A row-parallel layer's sums are integers ([`fp4_core::reduction`]): whatever adds them, in
//! whatever order, gives the sums of one process. What is added is one 64-bit word an output
//! where the scales of all ranks prove that it holds the sum, and [`fp4_core::ExactSum::WORDS`]
//! elsewhere. The epilogue, with the bias, comes once, after the sum.
//!
//! What ranks talk through is a [`Communicator`]: four operations that add, compare and copy
//! integers. [`InProcess`] is one between threads; the package `fp4-mpi` has one of MPI.
//!
//! # A row-parallel forward
//!
//! ```text
//! agree      operation, rows, type, form, and the reach of each row's scales: a maximum, 3 bytes a row
//! for each block of columns:
//!     words = this rank's sums                       while the block before is being reduced
//!     start the reduction; with the last one goes how many ranks have failed
//!     finish the reduction of the block before: round, epilogue, write
//! ```
//!
//! # What can go wrong
//!
//! Layers are compared when they are built: every rank sends what it thinks that the layer is, and
//! all find the same difference ([`ShardError::Disagree`]). An input that does not fit on one rank
//! is an error on all, and so are ranks in different calls. A rank that is gone ends the wait of
//! the others ([`CommError`]).
//!
//! An error of a backend in the middle of a call is one rank's. It goes on with zeros and a flag
//! that is added with them, so that the call is an error on all ([`ShardError::PeerFailed`]) and
//! the next one works. After an error of the communicator itself nobody knows where the others are:
//! all of its later operations, of every layer, are [`CommError::OutOfStep`], and the other ranks
//! wait for this one until their limit. End all ranks then (`fp4-mpi` has `abort` for it).
//!
//! Shards that were cut from one layer carry its digest, so that ranks with other weights of the
//! same shape find out; those made by hand have none, and go with any.
//!
//! [C6]: fp4_core::contract#c6

mod card;
mod column;
mod error;
mod finish;
mod in_process;
mod row;
mod shard;
mod step;
mod team;

pub use column::ColumnParallel;
pub use error::{CommError, ShardError};
pub use in_process::InProcess;
pub use row::{Reduced, RowParallel};
pub use shard::{ColumnShard, RowShard, even, unit};
pub use step::Step;
pub use team::Team;

/// Which sums a rank keeps of a reduction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept<'a> {
    /// All of them, every rank: an all-reduce.
    All,
    /// Its own: so many words each, in the order of the ranks: a reduce-scatter.
    Own(&'a [usize]),
}

/// Ranks that add, compare and copy integers together.
///
/// All ranks call the same operations in the same order, with as many values. Any of them may end
/// with an error, on one rank or on all; all later ones of that rank must then end with one too and
/// send nothing, for which there is [`Step`]. Only what all ranks refuse alike, before anything is
/// sent (more values than the transport can count), leaves them in step.
pub trait Communicator {
    /// A reduction on its way. Dropped before it has ended, it must not free what is still sent.
    type Sum;

    /// This rank, below [`size`](Self::size).
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn size(&self) -> usize;

    /// Makes each byte the largest that a rank has there.
    ///
    /// # Errors
    /// [`CommError`].
    fn max(&self, bytes: &mut [u8]) -> Result<(), CommError>;

    /// The bytes of all ranks, one after the other; `lens` says how many each has.
    ///
    /// # Errors
    /// [`CommError`].
    fn gather(&self, own: &[u8], lens: &[usize]) -> Result<Vec<u8>, CommError>;

    /// Begins to add the words of all ranks, one by one, modulo 2^64.
    ///
    /// # Errors
    /// [`CommError`].
    fn start_sum(&self, words: Vec<i64>, kept: Kept<'_>) -> Result<Self::Sum, CommError>;

    /// Lets a sum on its way go on, without waiting: some libraries do nothing between calls. It is
    /// called now and then by a rank that computes meanwhile; by default nothing is done.
    ///
    /// # Errors
    /// [`CommError`].
    fn advance(&self, sum: &mut Self::Sum) -> Result<(), CommError> {
        let _ = sum;
        Ok(())
    }

    /// Waits for the sums that this rank keeps.
    ///
    /// # Errors
    /// [`CommError`].
    fn finish_sum(&self, sum: Self::Sum) -> Result<Vec<i64>, CommError>;
}

/// A pointer to a communicator is one.
macro_rules! by_pointer {
    ($($pointer:ty),*) => {$(
        impl<C: Communicator + ?Sized> Communicator for $pointer {
            type Sum = C::Sum;

            fn rank(&self) -> usize {
                (**self).rank()
            }

            fn size(&self) -> usize {
                (**self).size()
            }

            fn max(&self, bytes: &mut [u8]) -> Result<(), CommError> {
                (**self).max(bytes)
            }

            fn gather(&self, own: &[u8], lens: &[usize]) -> Result<Vec<u8>, CommError> {
                (**self).gather(own, lens)
            }

            fn start_sum(&self, words: Vec<i64>, kept: Kept<'_>) -> Result<Self::Sum, CommError> {
                (**self).start_sum(words, kept)
            }

            fn advance(&self, sum: &mut Self::Sum) -> Result<(), CommError> {
                (**self).advance(sum)
            }

            fn finish_sum(&self, sum: Self::Sum) -> Result<Vec<i64>, CommError> {
                (**self).finish_sum(sum)
            }
        }
    )*};
}

by_pointer!(&C, std::sync::Arc<C>);
