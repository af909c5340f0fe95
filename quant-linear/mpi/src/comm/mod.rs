//! A communicator of MPI: the four operations that layers need, each with a time limit.
//!
//! ```text
//! operation    MPI                                        waits
//! max          MPI_Iallreduce, MPI_MAX of bytes           at once
//! gather       MPI_Iallgatherv of bytes                   at once
//! sum          MPI_Iallreduce or MPI_Ireduce_scatter,     in finish_sum; advance tests it
//!              MPI_SUM of 64-bit integers
//! ```
//!
//! Everything is started without waiting and then tested until a limit, so that a rank that does
//! not come is an error and no hang. [`Mpi::blocking`] uses MPI_Allreduce and MPI_Reduce_scatter
//! for sums instead, which have no limit, and for which libraries have other algorithms.

mod handle;
mod operation;
mod variable;

use std::time::{Duration, Instant};

use mpi::collective::SystemOperation;
use mpi::topology::SimpleCommunicator;
use quant_linear::sharded::{CommError, Communicator, Kept, Step};

pub use self::handle::return_errors;
use self::handle::{Handle, Raw};
use self::operation::{Pending, Refused};
pub use self::variable::control_variable;

/// How long a rank waits for the others, unless told otherwise.
const LIMIT: Duration = Duration::from_secs(120);

/// What is waited for in [`Communicator::finish_sum`].
const WAITED: &str = "a sum (MPI_Iallreduce or MPI_Ireduce_scatter)";

/// How long a rank looks all the time whether the others have come.
const SPIN: Duration = Duration::from_millis(20);

/// Ranks of an MPI communicator.
///
/// One thread of each process talks, the one that made this; another one's calls are errors. Layers
/// compute on as many threads as they like. After an operation that ended with an error all later
/// ones do too ([`CommError::OutOfStep`]).
pub struct Mpi {
    raw: Raw,
    limit: Duration,
    blocking: bool,
    step: Step,
}

/// A sum on its way.
pub struct Sum(Pending<i64>);

impl Mpi {
    /// The ranks of a communicator, on a duplicate of it. All of its ranks call it.
    pub fn new(comm: &SimpleCommunicator) -> Self {
        let (raw, step) = (Raw::duplicate(comm), Step::default());
        Mpi { raw, limit: LIMIT, blocking: false, step }
    }

    /// The same with another limit to how long a rank waits for the others.
    #[must_use]
    pub fn with_limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// The same with sums by MPI_Allreduce and MPI_Reduce_scatter, which wait, without a limit.
    #[must_use]
    pub fn blocking(mut self) -> Self {
        self.blocking = true;
        self
    }

    /// What MPI's library calls itself, with its version.
    pub fn library() -> String {
        handle::library()
    }

    /// MPI's handle, on the thread that may use it.
    fn handle(&self, what: &'static str) -> Result<Handle<'_>, CommError> {
        let another = || "it is called by another thread than made it".into();
        self.raw.handle().ok_or_else(|| self.failed(what, another()))
    }

    /// Adds f32 values of all ranks in the order that MPI likes, by the operation that adds words:
    /// what sums of rounded parts are. Not exact; for comparisons of time and bits.
    ///
    /// # Errors
    /// As [`Communicator::max`].
    pub fn sum_floats(&self, values: Vec<f32>) -> Result<Vec<f32>, CommError> {
        let (what, op) = ("a sum of floats", SystemOperation::sum());
        self.countable(values.len(), what)?;
        self.step.take(self.rank(), || {
            let started = operation::all_reduce(self.handle(what)?, values, op, self.blocking);
            self.brought(started.map_err(|refused| self.refused(what, &refused))?, what)
        })
    }

    fn failed(&self, what: &'static str, reason: String) -> CommError {
        CommError::Failed { rank: self.rank(), what, reason }
    }

    fn refused(&self, what: &'static str, refused: &Refused) -> CommError {
        let reason = match *refused {
            Refused::Code(code) => handle::explained(code),
            Refused::Count(len) => {
                format!("{len} values, and MPI counts to {}: take fewer rows", i32::MAX)
            }
            Refused::Ranks(lens) => {
                format!("{lens} lengths, expected one for each of {} ranks", self.size())
            }
            Refused::Lens(len) => format!("{len} values are not as many as the lengths say"),
        };
        self.failed(what, reason)
    }

    /// Refuses what MPI cannot count before anything is sent: on all ranks at once, which therefore
    /// stay in step.
    fn countable(&self, values: usize, what: &'static str) -> Result<(), CommError> {
        operation::countable(values).map_err(|refused| self.refused(what, &refused))
    }

    /// Whether an operation has ended.
    fn test<T: Copy + Default>(
        &self,
        pending: &mut Pending<T>,
        what: &'static str,
    ) -> Result<bool, CommError> {
        pending.test(self.handle(what)?).map_err(|refused| self.refused(what, &refused))
    }

    /// Tests an operation until it has ended or the limit is reached; what it brought.
    fn brought<T: Copy + Default>(
        &self,
        mut pending: Pending<T>,
        what: &'static str,
    ) -> Result<Vec<T>, CommError> {
        let begun = Instant::now();
        while !self.test(&mut pending, what)? {
            let waited = begun.elapsed();
            if waited > self.limit {
                let (rank, seconds) = (self.rank(), self.limit.as_secs());
                return Err(CommError::Timeout { rank, what, seconds });
            }
            // Where there are more ranks than cores, another one is to go on; and who has waited
            // for long is behind a slow one, which may need every core.
            match waited < SPIN {
                true => std::thread::yield_now(),
                false => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        // It has ended.
        pending.brought().ok_or_else(|| self.failed(what, "it brought nothing".into()))
    }
}

impl Communicator for Mpi {
    type Sum = Sum;

    fn rank(&self) -> usize {
        self.raw.rank()
    }

    fn size(&self) -> usize {
        self.raw.size()
    }

    fn max(&self, bytes: &mut [u8]) -> Result<(), CommError> {
        let what = "a maximum (MPI_Iallreduce)";
        self.countable(bytes.len(), what)?;
        self.step.take(self.rank(), || {
            let (own, op) = (bytes.to_vec(), SystemOperation::max());
            let started = operation::all_reduce(self.handle(what)?, own, op, false);
            let started = started.map_err(|refused| self.refused(what, &refused))?;
            bytes.copy_from_slice(&self.brought(started, what)?);
            Ok(())
        })
    }

    fn gather(&self, own: &[u8], lens: &[usize]) -> Result<Vec<u8>, CommError> {
        let what = "a gather (MPI_Iallgatherv)";
        self.countable(lens.iter().fold(0, |all, &len| all.saturating_add(len)), what)?;
        self.step.take(self.rank(), || {
            let started = operation::gather(self.handle(what)?, own, lens);
            self.brought(started.map_err(|refused| self.refused(what, &refused))?, what)
        })
    }

    fn start_sum(&self, words: Vec<i64>, kept: Kept<'_>) -> Result<Sum, CommError> {
        let (what, op) = ("a sum", SystemOperation::sum());
        self.countable(words.len(), what)?;
        self.step.take(self.rank(), || {
            let (handle, blocking) = (self.handle(what)?, self.blocking);
            let started = match kept {
                Kept::All => operation::all_reduce(handle, words, op, blocking),
                Kept::Own(lens) => operation::reduce_scatter(handle, words, lens, op, blocking),
            };
            started.map(Sum).map_err(|refused| self.refused(what, &refused))
        })
    }

    fn advance(&self, Sum(pending): &mut Sum) -> Result<(), CommError> {
        // Open MPI's immediate collectives go on inside of calls alone.
        self.step.take(self.rank(), || self.test(pending, WAITED).map(drop))
    }

    fn finish_sum(&self, Sum(pending): Sum) -> Result<Vec<i64>, CommError> {
        self.step.take(self.rank(), || self.brought(pending, WAITED))
    }
}

/// Ends the processes of all ranks at once, with an exit code: what a rank that cannot go on does,
/// so that the others do not wait for it. On another thread than made the communicator this process
/// alone is ended, which `mpirun` notices and ends the others.
pub fn abort(comm: &Mpi, code: i32) -> ! {
    if let Some(handle) = comm.raw.handle() {
        handle::abort(handle, code);
    }
    std::process::abort()
}
