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

// SAFETY: parts are kept disjoint by who asks for them ([`OutputParts::part`]), and other threads
// may hold them if T is Send.
unsafe impl<T: Send> Sync for OutputParts<'_, T> {}

impl<'a, T> OutputParts<'a, T> {
    pub(crate) fn new(values: &'a mut [T], columns: usize) -> Self {
        let (len, values) = (values.len(), values.as_mut_ptr());
        OutputParts { values, len, columns, borrowed: PhantomData }
    }

    /// The rows `rows` of the columns `columns`.
    ///
    /// # Safety
    /// No two parts that overlap may be in use at the same time.
    pub(crate) unsafe fn part(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
    ) -> OutputTile<'_, T> {
        assert!(columns.start <= columns.end && columns.end <= self.columns);
        assert!(rows.start <= rows.end && rows.end * self.columns <= self.len);
        OutputTile {
            values: self.values.wrapping_add(rows.start * self.columns + columns.start),
            stride: self.columns,
            rows: rows.len(),
            columns: columns.len(),
            borrowed: PhantomData,
        }
    }

    /// Asks for the cache lines of `count` values from `column` of row `row` on, to be written
    /// soon: a row of the output is far from the next, and the wait would be long.
    #[inline]
    pub(crate) fn prefetch(&self, row: usize, column: usize, count: usize) {
        let at = self.values.wrapping_add(row * self.columns + column).cast::<i8>();
        for line in (0..count * size_of::<T>()).step_by(64) {
            let at = at.wrapping_add(line);
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            // SAFETY: a prefetch reads and writes nothing, and faults at no address.
            unsafe {
                use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
                _mm_prefetch::<_MM_HINT_ET0>(at);
            }
            #[cfg(all(target_arch = "aarch64", not(miri)))]
            // SAFETY: as above.
            unsafe {
                std::arch::asm!("prfm pstl1keep, [{at}]", at = in(reg) at,
                    options(nostack, preserves_flags, readonly));
            }
            #[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
            let _ = at;
        }
    }
}

/// Some columns of some rows of a matrix, borrowed to be written.
#[derive(Debug)]
pub(crate) struct OutputTile<'a, T> {
    values: *mut T,
    /// Values from one row to the next.
    stride: usize,
    rows: usize,
    columns: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

impl<T> OutputTile<'_, T> {
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// Where the values of row `r` are: [`columns`](Self::columns) of them, if there is such a row.
    #[inline(always)]
    #[cfg_attr(
        not(target_arch = "x86_64"),
        allow(dead_code, reason = "for kernels that write parts of a vector")
    )]
    pub(crate) fn row_ptr(&mut self, r: usize) -> *mut T {
        debug_assert!(r < self.rows);
        self.values.wrapping_add(r * self.stride)
    }

    /// Where row 0 is, and how many values on the next one is.
    #[inline(always)]
    #[cfg_attr(
        not(target_arch = "x86_64"),
        allow(dead_code, reason = "for kernels that write parts of a vector")
    )]
    pub(crate) fn as_ptr(&mut self) -> (*mut T, usize) {
        (self.values, self.stride)
    }

    /// Row `r`.
    #[inline(always)]
    pub(crate) fn row(&mut self, r: usize) -> &mut [T] {
        assert!(r < self.rows);
        // SAFETY: [`OutputParts::part`] checked that the rows and columns are inside of what it
        // borrows, and its caller keeps them disjoint from other parts.
        unsafe { std::slice::from_raw_parts_mut(self.values.add(r * self.stride), self.columns) }
    }
}
