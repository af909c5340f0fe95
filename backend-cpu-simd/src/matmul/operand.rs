//! Operands of the tiled kernels: panels of 16 columns of B, tiles of rows of A (C3, C6).
//!
//! Both are cut along K into *chunks* of 32 elements: one MXFP4 group or two NVFP4 groups.
//!
//! # B, prepared once: the packed bytes in another order
//!
//! A chunk of a panel is 16 columns of 16 packed bytes: four lines of 64 bytes, each 16 lanes of
//! four packed bytes, taken verbatim. The low nibbles of a lane are one step of four elements
//! (even k), the high nibbles another (odd k): A is packed in the same order of steps, and the
//! order of the terms of a sum is free.
//!
//! ```text
//! Form::Fold    line j, lane c        = bytes 4j..4j+4 of the chunk in column c
//! Form::Group   line 2h + j, lane 2i + g = bytes 4j..4j+4 of half g of the chunk (8 bytes, an
//!               NVFP4 group) in column 4 * (i / 2) + 2h + i % 2
//! ```
//!
//! With each chunk go scale bytes, as many as packed. They are not the format's but *scaled* ones,
//! relative to the base of the column's plane ([`Planes`](super::planes::Planes)), so that a group
//! outside the plane counts as zero:
//!
//! ```text
//! Form::Fold            16 bytes: shift << 4 | 0xF for column c, the scale being 2^(base + shift);
//! 0 outside Form::Group, MXFP4    16 bytes: scale / 2^base of column c, as i8; 0 outside
//! Form::Group, NVFP4    32 bytes: byte 2c + g = scale / 2^base of half g of column c, as i8; 0
//! outside
//! ```
//!
//! Further planes of a panel are lists of chunks with scale bytes of their own, over the same
//! codes. `panels` says how the format's bytes are read back.
//!
//! # A, packed for each call
//!
//! A tile is up to [`MAX_ROWS`] rows of doubled codes, eight 4-byte steps a chunk:
//!
//! ```text
//! Form::Fold    [slot][step][row]  doubled code << shift, |.| <= 96; a plane has slots for its
//!               chunks only, and per slot and row the sum of its 32 values
//! Form::Group   [chunk][row][step of half 0, step of half 1] x 4   doubled codes, |.| <= 12; with
//!               -12 times each half's sum; planes differ in their scales alone: [slot][row] i16 of
//!               the halves, 0 1 0 1 or 0 0 1 1 as the kernels read them
//! ```
//!
//! Step 2j is the low nibbles of bytes 4j..4j+4, step 2j + 1 the high ones.
//!
//! # A in MXINT8, for either form of B
//!
//! The elements are the bytes of the steps: element 8j + 2i is byte i of step 2j, element 8j + 2i +
//! 1 of step 2j + 1 ([`int8_steps`]). Planes differ in their scales alone, as in the group form:
//!
//! ```text
//! B in Form::Group   as codes, up to 128 in magnitude; both halves have one scale
//! B in Form::Fold    [chunk][row] the eight steps, or as the kernels read them; with -128 times
//!                    their sum, where B is offset; [slot][row] the shift of the scale over its
//!                    base, [`NO_SHIFT`] for a group outside of the plane, as i16: shift 0 shift 0
//! ```

use std::ops::Range;

use fp4_core::{Element, PackedShape};

/// Columns of a panel.
pub(crate) const COLUMNS: usize = 16;
/// Most rows of a tile.
pub(crate) const MAX_ROWS: usize = 24;
/// Elements of K in a chunk.
pub(crate) const CHUNK: usize = 32;
/// Packed bytes of a chunk.
pub(super) const CHUNK_BYTES: usize = CHUNK / 2;
/// Lines of codes in a chunk of a panel.
pub(crate) const LINES: usize = 4;
/// 4-byte steps in a chunk of a row of A.
pub(crate) const STEPS: usize = 8;
/// Largest scaled magnitude of B in the group form: it is kept as i8.
pub(crate) const GROUP_LIMIT_B: i32 = 127;
/// Largest scaled magnitude of A in the group form: 258 * 127 = 32766 fits an i16.
pub(crate) const GROUP_LIMIT_A: i32 = 258;
/// Largest scaled magnitude in the fold form: 12 * 8 = 96 fits an i8.
pub(crate) const FOLD_LIMIT: i32 = 8;
/// Largest scaled magnitude of A in MXINT8: six octaves of powers of two.
pub(crate) const INT8_LIMIT_A: i32 = 32;
/// A shift that leaves nothing of 32 bits, in a vector's lanes as in [`u32::checked_shl`].
pub(crate) const NO_SHIFT: i16 = 32;

/// How operands are laid out and multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Scales folded into 8-bit operands; one integer sum over all of K. MXFP4 only.
    Fold,
    /// An integer dot for each half chunk, times the product of the scaled scales.
    Group,
}

impl Form {
    /// Largest scaled magnitude of A.
    pub(super) const fn limit_a(self) -> i32 {
        match self {
            Form::Fold => FOLD_LIMIT,
            Form::Group => GROUP_LIMIT_A,
        }
    }

    /// Largest scaled magnitude of B.
    pub(super) const fn limit_b(self) -> i32 {
        match self {
            Form::Fold => FOLD_LIMIT,
            Form::Group => GROUP_LIMIT_B,
        }
    }
}

/// 64 bytes of codes of a panel.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line(pub(crate) [u8; 64]);

/// Groups in a chunk.
pub(crate) const fn chunk_groups(shape: &PackedShape) -> usize {
    CHUNK / shape.group().get()
}

/// The steps of a chunk of 32 elements of MXINT8: the even ones of each eight, then the odd ones.
#[inline(always)]
#[cfg_attr(target_arch = "x86_64", allow(dead_code, reason = "a shuffle there"))]
pub(crate) fn int8_steps(chunk: &[u8; CHUNK]) -> [[u8; 4]; STEPS] {
    let mut steps = [[0; 4]; STEPS];
    for (j, bytes) in chunk.as_chunks::<8>().0.iter().enumerate() {
        for i in 0..4 {
            (steps[2 * j][i], steps[2 * j + 1][i]) = (bytes[2 * i], bytes[2 * i + 1]);
        }
    }
    steps
}

/// What the terms of a product are, by groups of B (C6, C10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Terms {
    /// Groups of B under one scale of A: 2 for MXINT8 by NVFP4, else 1.
    pub(crate) per_scale: usize,
    /// The largest dot of a group, D.
    pub(crate) dot: u128,
    /// What a unit of a dot is worth: 2^unit times the scales.
    pub(crate) unit: i32,
}

impl Terms {
    pub(crate) fn new(a: PackedShape, b: PackedShape) -> Self {
        let group = b.group().get();
        let (largest, unit) = match a.element() {
            // Doubled codes, twice.
            Element::E2m1 => (144, -2),
            // Elements up to 128, in units of 2^-6, and doubled codes up to 12.
            Element::Int8 => (1536, -7),
        };
        Terms { per_scale: a.group().get() / group, dot: largest * group as u128, unit }
    }

    /// The scales of A that the groups `groups` of B are under.
    pub(crate) fn scales_of_a(&self, groups: &Range<usize>) -> Range<usize> {
        groups.start / self.per_scale..groups.end.div_ceil(self.per_scale)
    }

    /// The most groups of B, of `groups`, that count for a row of A and a column of B with so many
    /// live ones.
    pub(crate) fn live(&self, a: usize, b: usize, groups: usize) -> usize {
        (a * self.per_scale).min(b).min(groups)
    }
}
