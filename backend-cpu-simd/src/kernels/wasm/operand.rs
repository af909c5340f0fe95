//! Codes of A into tiles, and chunks of B expanded (simd128). The layout of B is that of
//! `matmul::operand`; that of A is this module's own:
//!
//! ```text
//! A    [slot][pair of steps j][row][step 2j: bytes 0 2 1 3, step 2j + 1: bytes 0 2 1 3]
//! w    [step of the list][quarter q][half][step of the half][bytes 0 and 2, bytes 1 and 3]
//!                                                  4 columns 4q.. x 2 values, times the scale
//! ```
//!
//! Step 2j is the low nibbles of bytes 4j..4j+4 of a chunk, step 2j + 1 the high ones; steps 0..4
//! are the first half; elements of MXINT8 in the same places. The even and the odd bytes of a
//! vector are its 16-bit lanes shifted, so they are paired.

use std::arch::wasm32::*;
use std::ops::Range;

use fp4_core::E2m1;

use crate::matmul::operand::{LINES, STEPS, int8_steps};
use crate::matmul::{PanelView, RowOfTile, StepAt, Steps};

/// Steps of a list that are expanded at a time: 8 KB.
pub(super) const BLOCK: usize = 8;

/// Some chunks of a panel, expanded.
pub(super) struct Expanded(pub(super) [[[[v128; STEPS]; 2]; 4]; BLOCK]);

/// Doubled codes.
const TABLE: v128 = table(0);
/// Doubled codes + 12.
const OFFSET_TABLE: v128 = table(12);

/// Doubled codes + `offset`.
const fn table(offset: i8) -> v128 {
    const fn doubled(code: u8) -> i8 {
        E2m1::from_bits(code).doubled()
    }
    i8x16(
        offset + doubled(0),
        offset + doubled(1),
        offset + doubled(2),
        offset + doubled(3),
        offset + doubled(4),
        offset + doubled(5),
        offset + doubled(6),
        offset + doubled(7),
        offset + doubled(8),
        offset + doubled(9),
        offset + doubled(10),
        offset + doubled(11),
        offset + doubled(12),
        offset + doubled(13),
        offset + doubled(14),
        offset + doubled(15),
    )
}

/// The low and the high nibbles of 16 packed bytes, looked up in a table.
#[inline(always)]
fn look_up(table: v128, bytes: v128) -> [v128; 2] {
    let low = v128_and(bytes, u8x16_splat(0xF));
    [i8x16_swizzle(table, low), i8x16_swizzle(table, u8x16_shr(bytes, 4))]
}

/// The even and the odd bytes, as i16.
#[inline(always)]
fn even_and_odd(bytes: v128) -> [v128; 2] {
    [i16x8_shr(i16x8_shl(bytes, 8), 8), i16x8_shr(bytes, 8)]
}

/// See [`Kernels::pack_group`](crate::matmul::Kernels::pack_group).
pub(super) fn pack_group(from: &[u8], RowOfTile { row, rows }: RowOfTile, codes: &mut [i32]) {
    let mut pack = |slot: usize, bytes: &[u8; 16]| {
        // SAFETY: 16 readable bytes.
        let steps = look_up(TABLE, unsafe { v128_load(bytes.as_ptr().cast()) });
        let [low, high] = steps
            .map(|v| i8x16_shuffle::<0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15>(v, v));
        let to = codes[slot * STEPS * rows..][..STEPS * rows].as_chunks_mut::<2>().0;
        let low = [
            i32x4_extract_lane::<0>(low),
            i32x4_extract_lane::<1>(low),
            i32x4_extract_lane::<2>(low),
            i32x4_extract_lane::<3>(low),
        ];
        let high = [
            i32x4_extract_lane::<0>(high),
            i32x4_extract_lane::<1>(high),
            i32x4_extract_lane::<2>(high),
            i32x4_extract_lane::<3>(high),
        ];
        for j in 0..4 {
            to[j * rows + row] = [low[j], high[j]];
        }
    };
    let (chunks, rest) = from.as_chunks::<16>();
    for (slot, bytes) in chunks.iter().enumerate() {
        pack(slot, bytes);
    }
    if !rest.is_empty() {
        let mut bytes = [0; 16];
        bytes[..rest.len()].copy_from_slice(rest);
        pack(chunks.len(), &bytes);
    }
}

/// See [`Kernels::pack_int8`](crate::matmul::Kernels::pack_int8).
pub(super) fn pack_int8(from: &[u8], RowOfTile { row, rows }: RowOfTile, codes: &mut [i32]) {
    for (slot, chunk) in from.as_chunks().0.iter().enumerate() {
        let to = codes[slot * STEPS * rows..][..STEPS * rows].as_chunks_mut::<2>().0;
        for (j, pair) in int8_steps(chunk).as_chunks::<2>().0.iter().enumerate() {
            to[j * rows + row] = pair.map(|[a, b, c, d]| i32::from_le_bytes([a, c, b, d]));
        }
    }
}

/// A chunk of a tile of one row, to multiply chunks of a panel with: i16 lanes 0 and 1 of four are
/// of half 0, 2 and 3 of half 1.
pub(super) struct RowChunk {
    /// For each line of a half, what low and high nibbles are multiplied with.
    lines: [[RowPair; 2]; 2],
    /// -12 times the sums of the codes.
    init: v128,
}

/// What a vector of codes of B + 12 is multiplied with: see `matmul`.
#[derive(Clone, Copy)]
struct RowPair {
    /// The vector itself: the codes at the even bytes.
    whole: v128,
    /// Its odd bytes: the codes at those less 256 times the ones at the even bytes.
    odd: v128,
}

impl RowChunk {
    /// # Safety
    /// `codes` points to [`STEPS`] values.
    #[inline(always)]
    pub(super) unsafe fn load(codes: *const i32) -> Self {
        // Each with the low and the high nibbles of a line, even bytes before odd ones.
        // SAFETY: 8 bytes each.
        let pairs = [0, 2, 4, 6].map(|at| unsafe { i16x8_load_extend_i8x8(codes.add(at).cast()) });
        let mut sum = i16x8_splat(0);
        let mut pair = |even: v128, odd: v128| {
            sum = i16x8_add(sum, i16x8_add(even, odd));
            RowPair { whole: even, odd: i16x8_sub(odd, i16x8_shl(even, 8)) }
        };
        let lines = [0, 1].map(|j| {
            let (c, d) = (pairs[j], pairs[2 + j]);
            [
                pair(i32x4_shuffle::<0, 4, 0, 4>(c, d), i32x4_shuffle::<1, 5, 1, 5>(c, d)),
                pair(i32x4_shuffle::<2, 6, 2, 6>(c, d), i32x4_shuffle::<3, 7, 3, 7>(c, d)),
            ]
        });
        RowChunk { lines, init: i16x8_mul(sum, i16x8_splat(-12)) }
    }

    /// The dots with two columns, both halves: for each the sums over the first and over the last
    /// two of the four bytes of a lane, with those of the next line.
    ///
    /// # Safety
    /// `codes` points to 16 bytes of a line, which is not the last of its chunk.
    #[inline(always)]
    pub(super) unsafe fn dots(&self, codes: *const u8) -> v128 {
        let mut dots = self.init;
        for (j, pairs) in self.lines.iter().enumerate() {
            // SAFETY: 16 bytes of the line, and of the next one.
            let bytes = unsafe { v128_load(codes.add(64 * j).cast()) };
            for (w, pair) in look_up(OFFSET_TABLE, bytes).into_iter().zip(pairs) {
                let whole = i16x8_mul(w, pair.whole);
                let odd = i16x8_mul(u16x8_shr(w, 8), pair.odd);
                dots = i16x8_add(dots, i16x8_add(whole, odd));
            }
        }
        dots
    }
}

/// The scales of the columns 4q and 4q + 1, and 4q + 2 and 4q + 3, of both halves, each in both
/// i16 of its lane.
///
/// # Safety
/// `scales` points to the scale bytes of a chunk, of `groups` groups.
#[inline(always)]
pub(super) unsafe fn quarter_scales(scales: *const u8, groups: usize, q: usize) -> [v128; 2] {
    // SAFETY: eight columns' bytes, or four columns' and both halves', are inside.
    unsafe {
        if groups == 1 {
            let v = i16x8_load_extend_i8x8(scales.add(8 * (q / 2)).cast());
            if q % 2 == 0 {
                [
                    i16x8_shuffle::<0, 0, 0, 0, 1, 1, 1, 1>(v, v),
                    i16x8_shuffle::<2, 2, 2, 2, 3, 3, 3, 3>(v, v),
                ]
            } else {
                [
                    i16x8_shuffle::<4, 4, 4, 4, 5, 5, 5, 5>(v, v),
                    i16x8_shuffle::<6, 6, 6, 6, 7, 7, 7, 7>(v, v),
                ]
            }
        } else {
            let v = i16x8_load_extend_i8x8(scales.add(8 * q).cast());
            [
                i16x8_shuffle::<0, 0, 1, 1, 2, 2, 3, 3>(v, v),
                i16x8_shuffle::<4, 4, 5, 5, 6, 6, 7, 7>(v, v),
            ]
        }
    }
}

impl Expanded {
    pub(super) fn zero() -> Self {
        Expanded([[[[i16x8_splat(0); STEPS]; 2]; 4]; BLOCK])
    }

    /// Expands the chunks of the steps `which`.
    ///
    /// # Safety
    /// The steps are inside `b`; there are at most [`BLOCK`].
    pub(super) unsafe fn fill(&mut self, b: PanelView<'_>, steps: Steps<'_>, which: Range<usize>) {
        for (step, to) in which.zip(&mut self.0) {
            let StepAt { b: chunk, b_slot: slot, .. } = steps.at(step);
            // SAFETY: the chunk is inside `b`, by the caller.
            unsafe {
                let codes = b.codes.as_ptr().add(chunk * LINES).cast::<u8>();
                let scales = b.scales.as_ptr().add(slot * b.scale_bytes());
                match b.groups {
                    // Both halves have one scale.
                    1 => {
                        expand(codes, |q| [i16x8_load_extend_i8x8(scales.add(8 * q).cast()); 2], to)
                    }
                    _ => {
                        let load = |q: usize| v128_load(scales.add(16 * q).cast());
                        expand(codes, |q| even_and_odd(load(q)), to);
                    }
                }
            }
        }
    }
}

/// `scales(q)` are those of eight columns, of both halves.
///
/// # Safety
/// `codes` points to 256 bytes.
#[inline(always)]
unsafe fn expand(
    codes: *const u8,
    scales: impl Fn(usize) -> [v128; 2],
    to: &mut [[[v128; STEPS]; 2]; 4],
) {
    for (q, to) in to.iter_mut().enumerate() {
        let scales = scales(q / 2);
        for j in 0..2 {
            // Columns 4q, 4q + 1 and 4q + 2, 4q + 3, each with both halves.
            // SAFETY: inside, by the caller.
            let (c, d) = unsafe {
                let codes = codes.add(64 * j + 16 * q);
                (v128_load(codes.cast()), v128_load(codes.add(128).cast()))
            };
            let halves = [i32x4_shuffle::<0, 2, 4, 6>(c, d), i32x4_shuffle::<1, 3, 5, 7>(c, d)];
            for ((bytes, scales), to) in halves.into_iter().zip(scales).zip(to.iter_mut()) {
                // Each column's scale in both lanes of it.
                let scales = if q % 2 == 0 {
                    i16x8_shuffle::<0, 0, 1, 1, 2, 2, 3, 3>(scales, scales)
                } else {
                    i16x8_shuffle::<4, 4, 5, 5, 6, 6, 7, 7>(scales, scales)
                };
                for (step, bytes) in look_up(TABLE, bytes).into_iter().enumerate() {
                    let [even, odd] = even_and_odd(bytes);
                    to[4 * j + 2 * step] = i16x8_mul(even, scales);
                    to[4 * j + 2 * step + 1] = i16x8_mul(odd, scales);
                }
            }
        }
    }
}
