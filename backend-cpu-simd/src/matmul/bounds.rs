//! How many chunks are summed in 32 bits (C6).
//!
//! A stretch's sum is below 2^31 in magnitude:
//!
//! ```text
//! fold    n * 32 * 96 * 96 < 2^31                          n <= FOLD_CHUNKS = 7281 chunks, K = 232,992
//! group   n * 2 * 2304 * max_a * max_b < 2^31              max_a <= 258, max_b <= 127: n >= 14 chunks
//! MXINT8  n * 32 * 128 * 12 * max_a * max_b < 2^31         max_a <= 32, max_b <= 127: n >= 10 chunks
//! ```
//!
//! with max_a and max_b the largest scaled scales of the two planes, known when they are packed.
//! Kernels may wrap on the way: sums modulo 2^32 with a true value in range are the true value.

/// Chunks whose sum fits 32 bits in the fold form.
pub(crate) const FOLD_CHUNKS: usize = i32::MAX as usize / (32 * 96 * 96);

/// What the sum of a chunk in the group form is at most, for planes with these largest scaled
/// scales.
pub(super) const fn group_chunk(max_a: i32, max_b: i32) -> usize {
    2 * 2304 * max_of(max_a, max_b)
}

/// The same with MXINT8 in A.
pub(super) const fn int8_chunk(max_a: i32, max_b: i32) -> usize {
    32 * 1536 * max_of(max_a, max_b)
}

const fn max_of(max_a: i32, max_b: i32) -> usize {
    let max = max_a as usize * max_b as usize;
    if max == 0 { 1 } else { max }
}

/// Chunks whose sum fits 32 bits in the group form, for planes with these largest scaled scales.
pub(crate) fn group_chunks(max_a: i32, max_b: i32) -> usize {
    i32::MAX as usize / group_chunk(max_a, max_b)
}

/// Chunks whose sum fits 32 bits with MXINT8 in A, for planes with these largest scaled scales.
pub(crate) fn int8_chunks(max_a: i32, max_b: i32) -> usize {
    i32::MAX as usize / int8_chunk(max_a, max_b)
}
