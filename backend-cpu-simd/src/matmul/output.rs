//! An output matrix written by several threads, each to its own part.

use std::marker::PhantomData;
use std::ops::Range;

/// A row-major matrix of `columns` columns, borrowed to be written in disjoint parts.
#[derive(Debug)]
pub(crate) struct OutputParts<'a, T> {
    values: *mut T,
    len: usize,
    columns: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: a Grid hands out `&mut T` parts that its callers keep disjoint ([`Grid::part`]), which
// other threads may hold if T is Send.
unsafe impl<T: Send> Sync for OutputParts<'_, T> {}

impl<'a, T> OutputParts<'a, T> {
    pub(crate) fn new(values: &'a mut [T], columns: usize) -> Self {
        let (len, values) = (values.len(), values.as_mut_ptr());
        OutputParts { values, len, columns, borrowed: PhantomData }
    }

    /// Columns `columns` of row `row`.
    ///
    /// # Safety
    /// No two parts that overlap may be in use at the same time.
    #[expect(clippy::mut_from_ref, reason = "the caller keeps the parts disjoint")]
    pub(crate) unsafe fn part(&self, row: usize, columns: Range<usize>) -> &mut [T] {
        assert!(columns.start <= columns.end && columns.end <= self.columns);
        let start = row * self.columns + columns.start;
        assert!(start + columns.len() <= self.len);
        // SAFETY: the asserts keep the part inside the borrowed slice, the caller keeps it
        // disjoint.
        unsafe { std::slice::from_raw_parts_mut(self.values.add(start), columns.len()) }
    }

    /// Asks for the cache lines of the values from `column` of row `row` on, 128 bytes, to be
    /// written soon: a row of the output is far from the next, and the wait would be long.
    #[inline]
    pub(crate) fn prefetch(&self, row: usize, column: usize) {
        let at = self.values.wrapping_add(row * self.columns + column).cast::<i8>();
        for at in [at, at.wrapping_add(64)] {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a prefetch reads and writes nothing, and faults at no address.
            unsafe {
                use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
                _mm_prefetch::<_MM_HINT_ET0>(at);
            }
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            unsafe {
                std::arch::asm!("prfm pstl1keep, [{at}]", at = in(reg) at,
                    options(nostack, preserves_flags, readonly));
            }
            #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
            let _ = at;
        }
    }
}
