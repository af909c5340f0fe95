//! What can go wrong between ranks.

use crate::error::Error;
use crate::text::printable;

/// An operation of a communicator that did not end well.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommError {
    /// The other ranks did not come in time.
    #[error(
        "rank {rank} waited {seconds} s for the other ranks in {what}: one of them has ended, is \
         stuck, or does something else; look at what the others say, and start all of them again"
    )]
    Timeout {
        /// Who waited.
        rank: usize,
        /// For what.
        what: &'static str,
        /// How long.
        seconds: u64,
    },
    /// Another rank has ended.
    #[error(
        "rank {gone} has ended, and rank {rank} waits for it in {what}: look at what that one said, \
         and start all of them again"
    )]
    Gone {
        /// Who waited.
        rank: usize,
        /// Who has ended.
        gone: usize,
        /// For what.
        what: &'static str,
    },
    /// An earlier operation of this communicator has ended with an error.
    #[error(
        "rank {rank}: an earlier operation of its communicator ended with an error ({}), and the \
         other ranks are not where it is: end all of them, and start again",
        printable(.first)
    )]
    OutOfStep {
        /// Where.
        rank: usize,
        /// The earlier error.
        first: String,
    },
    /// The library refused, or the transport failed.
    #[error("rank {rank}: {what} failed: {}", printable(.reason))]
    Failed {
        /// Where.
        rank: usize,
        /// What.
        what: &'static str,
        /// The library's reason.
        reason: String,
    },
}

/// An error of a layer that is split over ranks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShardError {
    /// This rank's own.
    #[error(transparent)]
    Layer(#[from] Error),
    /// Between the ranks.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// Another rank refused.
    #[error("rank {rank} cannot go on: {}", printable(.message))]
    Peer {
        /// Which.
        rank: usize,
        /// What it said.
        message: String,
    },
    /// Some rank refused what it was given in this call.
    #[error(
        "another rank refuses its input of this call, and says why: give each rank its own columns \
         of the same rows"
    )]
    PeerInput,
    /// Some rank could not compute its part of this call.
    #[error(
        "another rank could not compute its part of this call, and says why: the outputs are none; \
         the next call goes on as if this one had not been"
    )]
    PeerFailed,
    /// Ranks differ in what must be the same.
    #[error(
        "the ranks do not have one layer: {what} is `{}` on rank {of} and `{}` on rank {rank}; start \
         all of them with the same model, settings and version",
        printable(.first),
        printable(.other)
    )]
    Disagree {
        /// What differs.
        what: String,
        /// The first rank that has it.
        of: usize,
        /// Its.
        first: String,
        /// The first rank with another.
        rank: usize,
        /// Its.
        other: String,
    },
    /// Shards that are not the whole, each part once.
    #[error(
        "rank {rank} has {what} {got:?}, expected them to begin at {start} and all ranks' to end at \
         {whole}: cut the layer by the same ranges on every rank"
    )]
    Ranges {
        /// The rank.
        rank: usize,
        /// Rows or columns.
        what: &'static str,
        /// Its range.
        got: std::ops::Range<usize>,
        /// Where it should begin.
        start: usize,
        /// Where all of them end.
        whole: usize,
    },
    /// A shard that cuts through a group or a block of the transform.
    #[error(
        "the columns {got:?} are no whole multiples of {unit}, the larger of group and transform \
         block: cut there"
    )]
    Cut {
        /// The range.
        got: std::ops::Range<usize>,
        /// What it must be a multiple of.
        unit: usize,
    },
    /// More ranks than words leave room for.
    #[error("{ranks} ranks, and the sums of at most {most} can be added: split over fewer")]
    Ranks {
        /// Ranks.
        ranks: usize,
        /// The most.
        most: usize,
    },
    /// Ranks that are in different calls.
    #[error(
        "the ranks are in different calls: this one multiplies {rows} rows ({mode}), and another \
         does something else; call the same operation on every rank, with the same number of rows, \
         type of outputs and form of sums"
    )]
    Calls {
        /// Rows here.
        rows: usize,
        /// All outputs, or its own.
        mode: &'static str,
    },
}

impl From<fp4_core::Error> for ShardError {
    fn from(error: fp4_core::Error) -> Self {
        ShardError::Layer(error.into())
    }
}
