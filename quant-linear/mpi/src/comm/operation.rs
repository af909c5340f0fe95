//! The collective operations of MPI, each with buffers of its own until it has ended.
//!
//! ```text
//! start      all_reduce, reduce_scatter, gather
//! Pending    the operation on its way: tested until it has ended; then what it brought
//! ```
//!
//! A [`Pending`] that is dropped before the end leaks its buffers, because MPI may still write to
//! them.

#![allow(unsafe_code, reason = "MPI's own interface; each block says what holds")]

use std::ffi::{c_int, c_void};

use mpi::collective::SystemOperation;
use mpi::ffi;
use mpi::raw::AsRaw;
use mpi::traits::Equivalence;

use super::handle::Handle;

/// Why an operation was not started, or has not ended well.
#[derive(Debug)]
pub(super) enum Refused {
    /// MPI's error.
    Code(c_int),
    /// So many values are more than MPI counts.
    Count(usize),
    /// So many lengths are not one for each rank.
    Ranks(usize),
    /// So many values are not those of the lengths.
    Lens(usize),
}

/// A buffer with an address of its own, however long: that of an empty `Vec<u8>` is 1, which Open
/// MPI takes for MPI_IN_PLACE.
fn buffer<T: Copy + Default>(len: usize) -> Vec<T> {
    let mut buffer = Vec::with_capacity(len.max(1));
    buffer.resize(len, T::default());
    buffer
}

/// An operation on its way, with its buffers.
pub(super) struct Pending<T> {
    request: ffi::MPI_Request,
    from: Vec<T>,
    to: Vec<T>,
    counts: Vec<c_int>,
    places: Vec<c_int>,
    /// Nothing of it is in use by MPI.
    ended: bool,
}

impl<T> Drop for Pending<T> {
    fn drop(&mut self) {
        if !self.ended {
            std::mem::forget(std::mem::take(&mut self.from));
            std::mem::forget(std::mem::take(&mut self.to));
            std::mem::forget(std::mem::take(&mut self.counts));
            std::mem::forget(std::mem::take(&mut self.places));
        }
    }
}

impl<T: Copy + Default> Pending<T> {
    /// One that has not been started, to bring `own` values.
    fn new(from: Vec<T>, own: usize, counts: Vec<c_int>) -> Self {
        // An empty one gets an address too.
        let mut from = from;
        if from.is_empty() {
            from.reserve(1);
        }
        let mut end = 0;
        let place = |&count: &c_int| {
            let at = end;
            end += count;
            at
        };
        let places = counts.iter().map(place).collect();
        // SAFETY: an all-null request is a value of the type; MPI writes it where one is started.
        let request: ffi::MPI_Request = unsafe { std::mem::zeroed() };
        Pending { request, from, to: buffer(own), counts, places, ended: true }
    }

    fn expect(self, code: c_int) -> Result<Self, Refused> {
        if code == 0 { Ok(self) } else { Err(Refused::Code(code)) }
    }

    /// Whether it has ended. Nothing is waited for, but it may go on in here.
    pub(super) fn test(&mut self, _: Handle<'_>) -> Result<bool, Refused> {
        if self.ended {
            return Ok(true);
        }
        let mut ended = 0;
        // SAFETY: the request is one that MPI gave and has not ended; its buffers live. A handle is
        // on the thread that may call.
        let code =
            unsafe { ffi::MPI_Test(&mut self.request, &mut ended, ffi::RSMPI_STATUS_IGNORE) };
        self.ended = ended != 0 && code == 0;
        if code == 0 { Ok(self.ended) } else { Err(Refused::Code(code)) }
    }

    /// What it brought, once it has ended.
    pub(super) fn brought(mut self) -> Option<Vec<T>> {
        self.ended.then(|| std::mem::take(&mut self.to))
    }
}

/// Whether MPI counts as far. Every rank has the same number and the same answer, so that none has
/// begun where it is no.
pub(super) fn countable(values: usize) -> Result<(), Refused> {
    c_int::try_from(values).map_or(Err(Refused::Count(values)), |_| Ok(()))
}

/// Numbers of values as MPI counts, all of which together it must count too: one for each rank.
fn counts(handle: Handle<'_>, lens: &[usize]) -> Result<Vec<c_int>, Refused> {
    let all = lens.iter().fold(0usize, |all, &len| all.saturating_add(len));
    if lens.len() != handle.size {
        return Err(Refused::Ranks(lens.len()));
    }
    countable(all)?;
    Ok(lens.iter().map(|&len| len as c_int).collect())
}

/// Begins, or does, a reduction of as many values of every rank, kept by all.
pub(super) fn all_reduce<T: Equivalence + Copy + Default>(
    handle: Handle<'_>,
    values: Vec<T>,
    op: SystemOperation,
    blocking: bool,
) -> Result<Pending<T>, Refused> {
    let own = values.len();
    let count = c_int::try_from(own).map_err(|_| Refused::Count(own))?;
    let mut pending = Pending::new(values, own, Vec::new());
    let (ty, op) = (T::equivalent_datatype(), op.as_raw());
    let (from, to) = (pending.from.as_ptr().cast::<c_void>(), pending.to.as_mut_ptr().cast());
    pending.ended = blocking;
    // SAFETY: both buffers have `count` values of the type; they are not changed, and `Pending`
    // keeps them until it has ended or leaks them.
    let code = unsafe {
        match blocking {
            true => ffi::MPI_Allreduce(from, to, count, ty.as_raw(), op, handle.comm),
            false => ffi::MPI_Iallreduce(
                from,
                to,
                count,
                ty.as_raw(),
                op,
                handle.comm,
                &mut pending.request,
            ),
        }
    };
    pending.expect(code)
}

/// Begins, or does, a reduction of which rank r keeps `lens[r]` values, the next
/// after those of the ranks before it.
pub(super) fn reduce_scatter<T: Equivalence + Copy + Default>(
    handle: Handle<'_>,
    values: Vec<T>,
    lens: &[usize],
    op: SystemOperation,
    blocking: bool,
) -> Result<Pending<T>, Refused> {
    let counts = counts(handle, lens)?;
    let Some(&own) = lens.get(handle.rank).filter(|_| lens.iter().sum::<usize>() == values.len())
    else {
        return Err(Refused::Lens(values.len()));
    };
    let mut pending = Pending::new(values, own, counts);
    let (ty, op) = (T::equivalent_datatype(), op.as_raw());
    let (from, to) = (pending.from.as_ptr().cast::<c_void>(), pending.to.as_mut_ptr().cast());
    let (counts, request) = (pending.counts.as_ptr(), &mut pending.request);
    pending.ended = blocking;
    // SAFETY: `from` has the sum of the counts, `to` this rank's, and there is one for each
    // rank of the communicator. `Pending` keeps all until it has ended or leaks them.
    let code = unsafe {
        match blocking {
            true => ffi::MPI_Reduce_scatter(from, to, counts, ty.as_raw(), op, handle.comm),
            false => {
                ffi::MPI_Ireduce_scatter(from, to, counts, ty.as_raw(), op, handle.comm, request)
            }
        }
    };
    pending.expect(code)
}

/// Begins to gather `lens[r]` bytes of each rank r on all.
pub(super) fn gather(
    handle: Handle<'_>,
    own: &[u8],
    lens: &[usize],
) -> Result<Pending<u8>, Refused> {
    let counts = counts(handle, lens)?;
    if lens.get(handle.rank) != Some(&own.len()) {
        return Err(Refused::Lens(own.len()));
    }
    let mut pending = Pending::new(own.to_vec(), lens.iter().sum(), counts);
    let ty = u8::equivalent_datatype();
    pending.ended = false;
    // SAFETY: `from` has this rank's count, `to` the sum of all counts, which with the places are
    // one for each rank; `Pending` keeps all until it has ended or leaks them.
    let code = unsafe {
        ffi::MPI_Iallgatherv(
            pending.from.as_ptr().cast::<c_void>(),
            pending.counts[handle.rank],
            ty.as_raw(),
            pending.to.as_mut_ptr().cast::<c_void>(),
            pending.counts.as_ptr(),
            pending.places.as_ptr(),
            ty.as_raw(),
            handle.comm,
            &mut pending.request,
        )
    };
    pending.expect(code)
}
