//! Large buffers that are read over and over: in huge pages where the system gives them.
//!
//! A weight of some megabytes has more pages of 4 KB than a core keeps translations of, so reading
//! it waits for page tables. Linux gives pages of 2 MB to ranges that ask for them before they are
//! first written (where `transparent_hugepage` is `madvise` or `always`); elsewhere, and if it has
//! none, the buffer is as any other. Only the whole huge pages inside of the buffer are asked for.
//! Linux keeps a list of a process's ranges, of 65,530 by default, and one with advice is a range
//! of its own: so only so many buffers ask ([`MOST`]).

#[cfg(all(target_os = "linux", not(miri)))]
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Buffers of a process that ask for huge pages, at most: some gigabytes if they are small.
#[cfg(all(target_os = "linux", not(miri)))]
const MOST: usize = 4096;
#[cfg(all(target_os = "linux", not(miri)))]
static ASKED: AtomicUsize = AtomicUsize::new(0);

/// `len` times `value`.
pub(crate) fn filled<T: Copy>(len: usize, value: T) -> Vec<T> {
    let mut values = Vec::with_capacity(len);
    advise(&values);
    values.resize(len, value);
    values
}

/// The same values in a buffer of its own.
pub(crate) fn copied<T: Copy>(from: &[T]) -> Vec<T> {
    let mut values = Vec::with_capacity(from.len());
    advise(&values);
    values.extend_from_slice(from);
    values
}

/// Asks for huge pages under the room that a vector has.
#[cfg(all(target_os = "linux", not(miri)))]
fn advise<T>(values: &Vec<T>) {
    const HUGE: usize = 2 << 20;
    let start = values.as_ptr() as usize;
    let end = start + values.capacity() * size_of::<T>();
    let (first, last) = (start.next_multiple_of(HUGE), end / HUGE * HUGE);
    if first < last && ASKED.fetch_update(Relaxed, Relaxed, |n| (n < MOST).then_some(n + 1)).is_ok()
    {
        let at = std::ptr::without_provenance_mut(first);
        // SAFETY: whole pages inside of the vector's memory, whose contents the advice does not
        // change. It may fail: then the pages are small.
        unsafe { libc::madvise(at, last - first, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(all(target_os = "linux", not(miri))))]
fn advise<T>(_: &Vec<T>) {}
