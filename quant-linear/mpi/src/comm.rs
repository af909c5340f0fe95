//! A communicator of MPI: the four operations that layers need, each with a time limit.
//!
//! ```text
//! operation    MPI                                        waits
//! max          MPI_Iallreduce, MPI_MAX of bytes           at once
//! gather       MPI_Iallgatherv of bytes                   at once
//! sum          MPI_Iallreduce or MPI_Ireduce_scatter,     in finish_sum
//!              MPI_SUM of 64-bit integers
//! ```
//!
//! Everything is started without waiting and then tested until a limit, so that a rank that does
//! not come is an error and no hang. [`Mpi::blocking`] uses MPI_Allreduce and MPI_Reduce_scatter
//! for sums instead, which have no limit, and for which libraries have other algorithms.
//!
//! The buffers of what has been started live until it has ended: where the limit is reached, or a
//! sum is dropped, they are leaked, because MPI may still write to them.

#![allow(unsafe_code, reason = "MPI's own interface; each block says what holds")]

use std::ffi::{c_int, c_void};
use std::mem::ManuallyDrop;
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use mpi::collective::SystemOperation;
use mpi::ffi;
use mpi::raw::AsRaw;
use mpi::topology::{Communicator as _, SimpleCommunicator};
use mpi::traits::Equivalence;
use quant_linear::sharded::{CommError, Communicator, Kept};

/// How long a rank waits for the others, unless told otherwise.
const LIMIT: Duration = Duration::from_secs(120);

/// What is waited for in [`Communicator::finish_sum`].
const WAITED: &str = "a sum (MPI_Iallreduce or MPI_Ireduce_scatter)";

/// How long a rank looks all the time whether the others have come.
const SPIN: Duration = Duration::from_millis(20);

/// Ranks of an MPI communicator.
///
/// One thread of each process talks, the one that made this; another one's calls are errors. Layers
/// compute on as many threads as they like.
pub struct Mpi {
    /// A duplicate: nothing else is received on it. Taken only to be leaked.
    comm: ManuallyDrop<SimpleCommunicator>,
    home: ThreadId,
    rank: usize,
    size: usize,
    limit: Duration,
    blocking: bool,
}

// SAFETY: the communicator is read by nothing but `handle`, and let go by nothing but `drop`; both
// do so on the thread that made it alone; all other fields are plain values.
unsafe impl Send for Mpi {}
// SAFETY: as above.
unsafe impl Sync for Mpi {}

impl Drop for Mpi {
    fn drop(&mut self) {
        // Elsewhere it is leaked: MPI frees it when it ends.
        if std::thread::current().id() == self.home {
            // SAFETY: nothing uses it any more, and it is dropped once.
            unsafe { ManuallyDrop::drop(&mut self.comm) }
        }
    }
}

/// A sum on its way.
pub struct Sum {
    request: ffi::MPI_Request,
    words: Vec<i64>,
    sums: Vec<i64>,
    counts: Vec<c_int>,
    /// Nothing of it is in use by MPI.
    ended: bool,
}

impl Drop for Sum {
    fn drop(&mut self) {
        if !self.ended {
            std::mem::forget(std::mem::take(&mut self.words));
            std::mem::forget(std::mem::take(&mut self.sums));
            std::mem::forget(std::mem::take(&mut self.counts));
        }
    }
}

/// A buffer with an address of its own, however long: that of an empty `Vec<u8>` is 1, which Open
/// MPI takes for MPI_IN_PLACE.
fn buffer<T: Copy + Default>(from: &[T], len: usize) -> Vec<T> {
    let mut buffer = Vec::with_capacity(len.max(1));
    buffer.extend_from_slice(from);
    buffer.resize(len, T::default());
    buffer
}

/// What MPI says of an error.
fn explained(code: c_int) -> String {
    // Longer than any library's MPI_MAX_ERROR_STRING.
    let (mut text, mut len) = ([0u8; 8192], 0);
    // SAFETY: the text has room for the longest message; any code may be asked for.
    let known = unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast(), &mut len) } == 0;
    let said = String::from_utf8_lossy(&text[..(len.max(0) as usize).min(text.len())]);
    format!("MPI error {code}{}{}", if known { ": " } else { "" }, said.trim())
}

impl Mpi {
    /// The ranks of a communicator, on a duplicate of it. All of its ranks call it.
    pub fn new(comm: &SimpleCommunicator) -> Self {
        let comm = ManuallyDrop::new(comm.duplicate());
        let [rank, size] = [comm.rank() as usize, comm.size() as usize];
        let home = std::thread::current().id();
        return_errors(&comm);
        Mpi { comm, home, rank, size, limit: LIMIT, blocking: false }
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

    /// MPI's handle, on the thread that may use it.
    fn handle(&self, what: &'static str) -> Result<ffi::MPI_Comm, CommError> {
        match std::thread::current().id() == self.home {
            true => Ok(self.comm.as_raw()),
            false => Err(self.failed(what, "it is called by another thread than made it".into())),
        }
    }

    /// Adds f32 values of all ranks in the order that MPI likes: what sums of rounded parts are.
    /// Not exact; for comparisons of time and bits.
    ///
    /// # Errors
    /// As [`Communicator::max`].
    pub fn sum_floats(&self, values: Vec<f32>) -> Result<Vec<f32>, CommError> {
        let what = "a sum of floats (MPI_Iallreduce)";
        let (count, comm) = (self.count(values.len(), what)?, self.handle(what)?);
        let mut sums: Vec<f32> = buffer(&[], values.len());
        // SAFETY: an all-null request is a value of the type; MPI writes it next.
        let mut request: ffi::MPI_Request = unsafe { std::mem::zeroed() };
        // SAFETY: both buffers have `count` values and live until the request has ended: they are
        // leaked below if it has not.
        let code = unsafe {
            ffi::MPI_Iallreduce(
                values.as_ptr().cast::<c_void>(),
                sums.as_mut_ptr().cast::<c_void>(),
                count,
                f32::equivalent_datatype().as_raw(),
                SystemOperation::sum().as_raw(),
                comm,
                &mut request,
            )
        };
        let ended = self.expect(code, what).and_then(|()| self.wait(&mut request, what));
        if let Err(error) = ended {
            std::mem::forget((values, sums));
            return Err(error);
        }
        Ok(sums)
    }

    fn failed(&self, what: &'static str, reason: String) -> CommError {
        CommError::Failed { rank: self.rank(), what, reason }
    }

    /// An error for what is no success.
    fn expect(&self, code: c_int, what: &'static str) -> Result<(), CommError> {
        match code {
            0 => Ok(()),
            code => Err(self.failed(what, explained(code))),
        }
    }

    /// A number of values as MPI counts.
    fn count(&self, len: usize, what: &'static str) -> Result<c_int, CommError> {
        c_int::try_from(len).map_err(|_| {
            let most = c_int::MAX;
            self.failed(what, format!("{len} values, and MPI counts to {most}: take fewer rows"))
        })
    }

    /// Whether a request has ended.
    fn test(&self, request: &mut ffi::MPI_Request, what: &'static str) -> Result<bool, CommError> {
        self.handle(what)?;
        let mut ended = 0;
        // SAFETY: the request is one that MPI gave and has not ended; its buffers live.
        let code = unsafe { ffi::MPI_Test(request, &mut ended, ffi::RSMPI_STATUS_IGNORE) };
        self.expect(code, what)?;
        Ok(ended != 0)
    }

    /// Tests a request until it has ended or the limit is reached.
    fn wait(&self, request: &mut ffi::MPI_Request, what: &'static str) -> Result<(), CommError> {
        let begun = Instant::now();
        loop {
            if self.test(request, what)? {
                return Ok(());
            }
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
    }
}

impl Communicator for Mpi {
    type Sum = Sum;

    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn max(&self, bytes: &mut [u8]) -> Result<(), CommError> {
        let what = "a maximum (MPI_Iallreduce)";
        let (count, comm) = (self.count(bytes.len(), what)?, self.handle(what)?);
        let (own, mut all) = (buffer(bytes, bytes.len()), buffer::<u8>(&[], bytes.len()));
        // SAFETY: an all-null request is a value of the type; MPI writes it next.
        let mut request: ffi::MPI_Request = unsafe { std::mem::zeroed() };
        // SAFETY: both buffers have `count` bytes and live until the request has ended: they are
        // leaked below if it has not.
        let code = unsafe {
            ffi::MPI_Iallreduce(
                own.as_ptr().cast::<c_void>(),
                all.as_mut_ptr().cast::<c_void>(),
                count,
                u8::equivalent_datatype().as_raw(),
                SystemOperation::max().as_raw(),
                comm,
                &mut request,
            )
        };
        let ended = self.expect(code, what).and_then(|()| self.wait(&mut request, what));
        if let Err(error) = ended {
            std::mem::forget((own, all));
            return Err(error);
        }
        bytes.copy_from_slice(&all);
        Ok(())
    }

    fn gather(&self, own: &[u8], lens: &[usize]) -> Result<Vec<u8>, CommError> {
        let what = "a gather (MPI_Iallgatherv)";
        if lens.len() != self.size() || lens[self.rank()] != own.len() {
            let reason =
                format!("{} bytes are not those of {lens:?} that are this rank's", own.len());
            return Err(self.failed(what, reason));
        }
        self.count(lens.iter().sum(), what)?;
        let comm = self.handle(what)?;
        let counts: Vec<c_int> = lens.iter().map(|&len| len as c_int).collect();
        let mut places = Vec::with_capacity(lens.len());
        let mut end = 0;
        for &count in &counts {
            places.push(end);
            end += count;
        }
        let (own, mut all) = (buffer(own, own.len()), buffer::<u8>(&[], end as usize));
        let ty = u8::equivalent_datatype();
        // SAFETY: an all-null request is a value of the type; MPI writes it next.
        let mut request: ffi::MPI_Request = unsafe { std::mem::zeroed() };
        // SAFETY: `own` has this rank's count, `all` the sum of all counts, which with the places
        // are one for each rank; all live until the request has ended, or are leaked below.
        let code = unsafe {
            ffi::MPI_Iallgatherv(
                own.as_ptr().cast::<c_void>(),
                counts[self.rank()],
                ty.as_raw(),
                all.as_mut_ptr().cast::<c_void>(),
                counts.as_ptr(),
                places.as_ptr(),
                ty.as_raw(),
                comm,
                &mut request,
            )
        };
        let ended = self.expect(code, what).and_then(|()| self.wait(&mut request, what));
        if let Err(error) = ended {
            std::mem::forget((own, all, counts, places));
            return Err(error);
        }
        Ok(all)
    }

    fn start_sum(&self, words: Vec<i64>, kept: Kept<'_>) -> Result<Sum, CommError> {
        let what = "a sum";
        let (count, comm) = (self.count(words.len(), what)?, self.handle(what)?);
        let counts = match kept {
            Kept::All => Vec::new(),
            Kept::Own(lens)
                if lens.len() == self.size() && lens.iter().sum::<usize>() == words.len() =>
            {
                lens.iter().map(|&len| len as c_int).collect()
            }
            Kept::Own(lens) => {
                let reason = format!("{} words are not those of {lens:?}", words.len());
                return Err(self.failed(what, reason));
            }
        };
        let own = counts.get(self.rank()).map_or(words.len(), |&own| own as usize);
        let sums = buffer(&[], own);
        // SAFETY: an all-null request is a value of the type; MPI writes it where one is started.
        let request: ffi::MPI_Request = unsafe { std::mem::zeroed() };
        let mut sum = Sum { request, words, sums, counts, ended: true };
        let (from, to) = (sum.words.as_ptr().cast::<c_void>(), sum.sums.as_mut_ptr().cast());
        let (ty, op) = (i64::equivalent_datatype(), SystemOperation::sum());
        let (ty, op) = (ty.as_raw(), op.as_raw());
        let all = sum.counts.is_empty();
        sum.ended = self.blocking;
        let counts = sum.counts.as_ptr();
        // SAFETY: `from` has `count` words, the sum of the counts where there are some, and `to` as
        // many as this rank keeps. The vectors are not changed, and `Sum` keeps them until it has
        // ended or leaks them.
        let code = unsafe {
            match (all, self.blocking) {
                (true, false) => {
                    ffi::MPI_Iallreduce(from, to, count, ty, op, comm, &mut sum.request)
                }
                (false, false) => {
                    ffi::MPI_Ireduce_scatter(from, to, counts, ty, op, comm, &mut sum.request)
                }
                (true, true) => ffi::MPI_Allreduce(from, to, count, ty, op, comm),
                (false, true) => ffi::MPI_Reduce_scatter(from, to, counts, ty, op, comm),
            }
        };
        self.expect(code, what)?;
        Ok(sum)
    }

    fn advance(&self, sum: &mut Sum) -> Result<(), CommError> {
        // Open MPI's immediate collectives go on inside of calls alone.
        if !sum.ended {
            sum.ended = self.test(&mut sum.request, WAITED)?;
        }
        Ok(())
    }

    fn finish_sum(&self, mut sum: Sum) -> Result<Vec<i64>, CommError> {
        if !sum.ended {
            self.wait(&mut sum.request, WAITED)?;
            sum.ended = true;
        }
        Ok(std::mem::take(&mut sum.sums))
    }
}

/// Makes MPI's errors on a communicator [errors](CommError::Failed) of calls; they end the process
/// otherwise. [`Mpi`] does so for its own duplicate. Open MPI takes errors that it finds while a
/// collective goes on to the world's, so a program that wants to hear of all of them calls this
/// with the world; `fp4-mpi` does.
pub fn return_errors(comm: &SimpleCommunicator) {
    // SAFETY: the communicator is valid and the handler one of MPI's own. Were it refused, MPI
    // would go on to end the process.
    unsafe { ffi::MPI_Comm_set_errhandler(comm.as_raw(), ffi::RSMPI_ERRORS_RETURN) };
}

/// Ends the processes of all ranks at once, with an exit code: what a rank that cannot go on does,
/// so that the others do not wait for it. On another thread than made the communicator this process
/// alone is ended, which `mpirun` notices and ends the others.
pub fn abort(comm: &Mpi, code: i32) -> ! {
    if let Ok(handle) = comm.handle("an abort") {
        // SAFETY: the communicator is valid, and this is the thread that may use it.
        unsafe { ffi::MPI_Abort(handle, code) };
    }
    std::process::abort()
}
