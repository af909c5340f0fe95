//! Codes of A into tiles, and chunks of B expanded to signed bytes (NEON). The layout of B is that
//! of `matmul::operand`; that of A is NEON's own, for both forms:
//!
//! ```text
//! A    [slot][pair of steps j][row][step 2j, step 2j + 1]      4 bytes a step
//! w    [step of the list][quarter q][step]                     4 columns 4q.. x 4 bytes
//! w2   [step of the list][quarter q][pair of steps j][columns 4q, 4q + 1 | 4q + 2, 4q + 3]
//!                                                              2 columns x 8 bytes (smmla)
//! ```
//!
//! Step 2j is the low nibbles of bytes 4j..4j+4 of a chunk, step 2j + 1 the high ones; steps 0..4
//! are the first half. Elements of MXINT8 are in the same places.

use std::arch::aarch64::*;
use std::ops::Range;

use fp4_core::E2m1;

use crate::matmul::operand::{Form, LINES, STEPS, int8_steps};
use crate::matmul::{FoldTile, PanelView, RowOfTile, StepAt, Steps};

/// Steps of a list that are expanded at a time: 4 KB of bytes.
pub(super) const BLOCK: usize = 8;

/// The vectors of an expanded chunk.
pub(super) type Bytes = [[int8x16_t; STEPS]; 4];

/// Some chunks of a panel, expanded.
pub(super) struct Expanded {
    pub(super) bytes: [Bytes; BLOCK],
    /// Group form: the scales of the halves, [half][quarter].
    pub(super) scales: [[[int32x4_t; 4]; 2]; BLOCK],
}

/// Doubled codes.
static TABLE: [i8; 16] = {
    let mut table = [0; 16];
    let mut i = 0;
    while i < 16 {
        table[i] = E2m1::from_bits(i as u8).doubled();
        i += 1;
    }
    table
};

#[inline(always)]
fn table() -> int8x16_t {
    // SAFETY: 16 readable bytes.
    unsafe { vld1q_s8(TABLE.as_ptr()) }
}

/// The low and the high nibbles of 16 packed bytes, looked up.
#[inline(always)]
fn look_up(bytes: uint8x16_t, table: int8x16_t) -> [int8x16_t; 2] {
    // SAFETY: NEON is in every build for aarch64.
    unsafe {
        let low = vandq_u8(bytes, vdupq_n_u8(0xF));
        [vqtbl1q_s8(table, low), vqtbl1q_s8(table, vshrq_n_u8::<4>(bytes))]
    }
}

/// Writes the steps of a chunk of a row, shifted left, to a slot.
#[inline(always)]
fn pack(bytes: &[u8; 16], shift: i8, slot: usize, to: RowOfTile, codes: &mut [i32]) {
    let RowOfTile { row, rows } = to;
    // SAFETY: NEON is in every build for aarch64; 16 readable bytes.
    let pairs: [[i32; 2]; 4] = unsafe {
        let halves = look_up(vld1q_u8(bytes.as_ptr()), table());
        let [low, high] = halves.map(|v| vreinterpretq_s32_s8(vshlq_s8(v, vdupq_n_s8(shift))));
        std::mem::transmute([vzip1q_s32(low, high), vzip2q_s32(low, high)])
    };
    let to = codes[slot * STEPS * rows..][..STEPS * rows].as_chunks_mut::<2>().0;
    for (j, pair) in pairs.into_iter().enumerate() {
        to[j * rows + row] = pair;
    }
}

/// See [`FoldKernels::pack_fold`](crate::matmul::FoldKernels::pack_fold).
pub(super) fn pack_fold(from: FoldTile<'_>, codes: &mut [i32]) {
    let (rows, held) = (from.codes.len(), from.held());
    for (row, row_codes) in from.codes.iter().enumerate() {
        let chunks = row_codes.as_chunks::<16>().0;
        for (at, &shift) in from.shifts[row * held..][..held].iter().enumerate() {
            let to = RowOfTile { row, rows };
            match shift {
                0 => pack(&[0; 16], 0, at, to, codes),
                _ => pack(&chunks[from.chunk(at)], shift as i8 - 1, at, to, codes),
            }
        }
    }
}

/// See [`Kernels::pack_group`](crate::matmul::Kernels::pack_group).
pub(super) fn pack_group(from: &[u8], row: RowOfTile, codes: &mut [i32]) {
    let (chunks, rest) = from.as_chunks::<16>();
    for (slot, bytes) in chunks.iter().enumerate() {
        pack(bytes, 0, slot, row, codes);
    }
    if !rest.is_empty() {
        let mut bytes = [0; 16];
        bytes[..rest.len()].copy_from_slice(rest);
        pack(&bytes, 0, chunks.len(), row, codes);
    }
}

/// See [`Kernels::pack_int8`](crate::matmul::Kernels::pack_int8).
pub(super) fn pack_int8(from: &[u8], RowOfTile { row, rows }: RowOfTile, codes: &mut [i32]) {
    for (slot, chunk) in from.as_chunks().0.iter().enumerate() {
        let to = codes[slot * STEPS * rows..][..STEPS * rows].as_chunks_mut::<2>().0;
        for (j, pair) in int8_steps(chunk).as_chunks::<2>().0.iter().enumerate() {
            to[j * rows + row] = pair.map(i32::from_ne_bytes);
        }
    }
}

impl Expanded {
    #[inline(always)]
    pub(super) fn zero() -> Self {
        // SAFETY: NEON is in every build for aarch64.
        let (bytes, scale) = unsafe { (vdupq_n_s8(0), vdupq_n_s32(0)) };
        Expanded { bytes: [[[bytes; STEPS]; 4]; BLOCK], scales: [[[scale; 4]; 2]; BLOCK] }
    }

    /// Expands the chunks of the steps `which`, in the order w2 if `by_pairs`.
    ///
    /// # Safety
    /// The steps are inside `b`; there are at most [`BLOCK`].
    #[inline(always)]
    pub(super) unsafe fn fill(
        &mut self,
        form: Form,
        by_pairs: bool,
        b: PanelView<'_>,
        steps: Steps<'_>,
        which: Range<usize>,
    ) {
        for (i, step) in which.enumerate() {
            let StepAt { b: chunk, b_slot: slot, .. } = steps.at(step);
            // SAFETY: the chunk is inside `b`, by the caller; NEON is in every build for aarch64.
            unsafe {
                let codes = b.codes.as_ptr().add(chunk * LINES).cast::<u8>();
                let scales = b.scales.as_ptr().add(slot * b.scale_bytes());
                let to = &mut self.bytes[i];
                match form {
                    Form::Fold => fold(codes, scales, by_pairs, to),
                    Form::Group => {
                        group(codes, by_pairs, to);
                        self.scales[i] = match b.groups {
                            1 => [widened(vld1q_s8(scales.cast())); 2],
                            _ => {
                                let scales = [scales, scales.add(16)].map(|s| vld1q_s8(s.cast()));
                                let [c, d] = scales;
                                [widened(vuzp1q_s8(c, d)), widened(vuzp2q_s8(c, d))]
                            }
                        };
                    }
                }
            }
        }
    }
}

/// Steps 2j and 2j + 1 of four columns, in their order.
#[inline(always)]
fn put(steps: [int8x16_t; 2], by_pairs: bool, j: usize, to: &mut [int8x16_t; STEPS]) {
    let [low, high] = steps;
    let [first, second] = if by_pairs {
        // SAFETY: NEON is in every build for aarch64.
        unsafe {
            let (low, high) = (vreinterpretq_s32_s8(low), vreinterpretq_s32_s8(high));
            [vzip1q_s32(low, high), vzip2q_s32(low, high)].map(|v| vreinterpretq_s8_s32(v))
        }
    } else {
        [low, high]
    };
    (to[2 * j], to[2 * j + 1]) = (first, second);
}

/// # Safety
/// `codes` points to 256 bytes and `scales` to 16.
#[inline(always)]
unsafe fn fold(codes: *const u8, scales: *const u8, by_pairs: bool, to: &mut Bytes) {
    // SAFETY: inside, by the caller; NEON is in every build for aarch64.
    unsafe {
        let table = table();
        // shift << 4 | 0xF, or 0 for a group outside the plane: shifted left by 15, all bits go.
        let s = veorq_u8(vld1q_u8(scales), vdupq_n_u8(0xF));
        let shift = vorrq_u8(vshrq_n_u8::<4>(s), vandq_u8(s, vdupq_n_u8(0xF)));
        // Each shift four times, for the four bytes of its column.
        let (z, y) = (vzip1q_u8(shift, shift), vzip2q_u8(shift, shift));
        let (z, y) = (vreinterpretq_u16_u8(z), vreinterpretq_u16_u8(y));
        let shifts = [vzip1q_u16(z, z), vzip2q_u16(z, z), vzip1q_u16(y, y), vzip2q_u16(y, y)]
            .map(|v| vreinterpretq_s8_u16(v));
        for (q, to) in to.iter_mut().enumerate() {
            for j in 0..LINES {
                let steps = look_up(vld1q_u8(codes.add(64 * j + 16 * q)), table);
                put(steps.map(|v| vshlq_s8(v, shifts[q])), by_pairs, j, to);
            }
        }
    }
}

/// The scales of 16 columns.
#[inline(always)]
fn widened(scales: int8x16_t) -> [int32x4_t; 4] {
    // SAFETY: NEON is in every build for aarch64.
    unsafe {
        let (low, high) = (vmovl_s8(vget_low_s8(scales)), vmovl_high_s8(scales));
        [
            vmovl_s16(vget_low_s16(low)),
            vmovl_high_s16(low),
            vmovl_s16(vget_low_s16(high)),
            vmovl_high_s16(high),
        ]
    }
}

/// # Safety
/// `codes` points to 256 bytes.
#[inline(always)]
unsafe fn group(codes: *const u8, by_pairs: bool, to: &mut Bytes) {
    // SAFETY: inside, by the caller; NEON is in every build for aarch64.
    unsafe {
        let table = table();
        for (q, to) in to.iter_mut().enumerate() {
            for j in 0..2 {
                // Columns 4q, 4q + 1 and 4q + 2, 4q + 3, each with both halves.
                let line =
                    |h: usize| vreinterpretq_u32_u8(vld1q_u8(codes.add(64 * (2 * h + j) + 16 * q)));
                let (c, d) = (line(0), line(1));
                for (half, bytes) in [vuzp1q_u32(c, d), vuzp2q_u32(c, d)].into_iter().enumerate() {
                    let steps = look_up(vreinterpretq_u8_u32(bytes), table);
                    put(steps, by_pairs, 2 * half + j, to);
                }
            }
        }
    }
}
