//! A communicator of MPI's own, on the thread that may use it; and MPI's words on errors.

#![allow(unsafe_code, reason = "MPI's own interface; each block says what holds")]

use std::ffi::c_int;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::thread::ThreadId;

use mpi::ffi;
use mpi::raw::AsRaw;
use mpi::topology::{Communicator as _, SimpleCommunicator};

/// A duplicate of a communicator: nothing else is received on it.
pub(super) struct Raw {
    /// Taken only to be dropped.
    comm: ManuallyDrop<SimpleCommunicator>,
    rank: usize,
    size: usize,
    home: ThreadId,
}

// SAFETY: the communicator is read by nothing but `handle`, and let go by nothing but `drop`; both
// do so on the thread that made it alone. A thread's number is a plain value.
unsafe impl Send for Raw {}
// SAFETY: as above.
unsafe impl Sync for Raw {}

impl Drop for Raw {
    fn drop(&mut self) {
        // Elsewhere it is leaked: MPI frees it when it ends.
        if std::thread::current().id() == self.home {
            // SAFETY: nothing uses it any more, and it is dropped once.
            unsafe { ManuallyDrop::drop(&mut self.comm) }
        }
    }
}

/// A communicator's handle on the thread that may use it, from which it does not go away.
#[derive(Clone, Copy)]
pub(super) struct Handle<'a> {
    pub(super) comm: ffi::MPI_Comm,
    pub(super) rank: usize,
    pub(super) size: usize,
    /// It is not sent to another thread.
    here: PhantomData<(&'a Raw, *const ())>,
}

impl Raw {
    /// A duplicate whose errors come back. All ranks call it.
    pub(super) fn duplicate(comm: &SimpleCommunicator) -> Self {
        let [rank, size] = [comm.rank() as usize, comm.size() as usize];
        let comm = ManuallyDrop::new(comm.duplicate());
        return_errors(&comm);
        Raw { comm, rank, size, home: std::thread::current().id() }
    }

    /// The handle, on the thread that made this.
    pub(super) fn handle(&self) -> Option<Handle<'_>> {
        let here = std::thread::current().id() == self.home;
        let (rank, size) = (self.rank, self.size);
        here.then(|| Handle { comm: self.comm.as_raw(), rank, size, here: PhantomData })
    }

    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }
}

/// Makes MPI's errors on a communicator [errors](quant_linear::sharded::CommError::Failed) of calls;
/// they end the process otherwise. [`Mpi`](crate::Mpi) does so for its own duplicate. Open MPI takes
/// errors that it finds while a collective goes on to the world's, so a program that wants to hear
/// of all of them calls this with the world; `fp4-mpi` does.
pub fn return_errors(comm: &SimpleCommunicator) {
    // SAFETY: the communicator is valid and the handler one of MPI's own. Were it refused, MPI
    // would go on to end the process.
    unsafe { ffi::MPI_Comm_set_errhandler(comm.as_raw(), ffi::RSMPI_ERRORS_RETURN) };
}

/// Ends the processes of all ranks.
pub(super) fn abort(handle: Handle<'_>, code: c_int) {
    // SAFETY: the communicator is valid, and this is the thread that may use it.
    unsafe { ffi::MPI_Abort(handle.comm, code) };
}

/// What MPI says of an error.
pub(super) fn explained(code: c_int) -> String {
    // Longer than any library's MPI_MAX_ERROR_STRING.
    let (mut text, mut len) = ([0u8; 8192], 0);
    // SAFETY: the text has room for the longest message; any code may be asked for.
    let known = unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast(), &mut len) } == 0;
    let said = String::from_utf8_lossy(&text[..(len.max(0) as usize).min(text.len())]);
    format!("MPI error {code}{}{}", if known { ": " } else { "" }, said.trim())
}

/// What MPI's library calls itself.
pub(super) fn library() -> String {
    let (mut text, mut len) = ([0u8; 8192], 0);
    // SAFETY: the text has room for the longest version, MPI_MAX_LIBRARY_VERSION_STRING.
    unsafe { ffi::MPI_Get_library_version(text.as_mut_ptr().cast(), &mut len) };
    let said = String::from_utf8_lossy(&text[..(len.max(0) as usize).min(text.len())]);
    said.trim_end_matches('\0').trim().to_string()
}
