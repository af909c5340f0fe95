//! The folded form of an operand in device memory, which the kernels for many rows read:
//! `fold.cuh`.
//!
//! It lies beside the packed form: a weight is folded when it is prepared, an FP4 activation in the
//! pass that quantizes it (`quantize_fold.cu`) or when it is imported. An operand without one is
//! folded for the product at hand: one made under another [`MatmulKernel`](crate::MatmulKernel) or
//! where memory was short, and MXINT8, of which nobody knows yet whether the weight is MXFP4. What
//! fills it is [`ops::fold`](crate::ops::fold).

use std::sync::Arc;

use fp4_core::{Encoding, Error};

use crate::build::arguments::{
    FOLD_ROWS, FoldedOperand, PackedOperand, Pointer, SLICE_K, STRIP_ROWS, TILE_ROWS, planes,
};
use crate::device::buffer::Buffer;
use crate::device::gpu::Gpu;
use crate::device::launch::int;

/// Bytes of a block: the digits of one slice of one tile, in one to three planes.
pub(crate) fn block_bytes(encoding: Encoding) -> Result<usize, Error> {
    Ok(TILE_ROWS * SLICE_K * planes(encoding)?)
}

/// Bytes of the blocks of an operand, extra ones aside.
pub(crate) fn folded_bytes(of: &FoldShape) -> Result<usize, Error> {
    let overflow = Error::ShapeOverflow { rows: of.rows, cols: of.k_pad };
    (of.k_pad / SLICE_K)
        .checked_mul(block_bytes(of.encoding)?)
        .and_then(|tile| tile.checked_mul(of.rows.div_ceil(TILE_ROWS)))
        .ok_or(overflow)
}

/// The folded form of one operand. Its memory only grows.
#[derive(Debug, Default)]
pub(crate) struct Folded {
    pub(crate) blocks: Buffer,
    /// Zeros before a folding: `entries`, `used`, `incomplete` and the arrivals at each strip.
    pub(crate) counters: Buffer,
    pub(crate) bases: Buffer,
    pub(crate) extra: usize,
    pub(crate) tiles: usize,
    pub(crate) slices: usize,
    pub(crate) ready: bool,
}

/// How many extra blocks a tile has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extra {
    /// As data that is not known yet may need: a second window in every slice, which one outlier
    /// group in eight makes. A tile that needs more is left to the kernel by groups.
    Usual,
    /// A number that was counted.
    Of(usize),
}

impl Folded {
    /// Bytes of device memory held.
    pub(crate) fn allocated_bytes(&self) -> usize {
        self.blocks.len() + self.counters.len() + self.bases.len()
    }

    /// Whether this is the folded form of the operand that it lies beside.
    pub(crate) fn ready(&self) -> bool {
        self.ready
    }

    /// Whether a captured graph may use the memory.
    pub(crate) fn is_in_a_graph(&self) -> bool {
        [&self.blocks, &self.counters, &self.bases].iter().any(|buffer| buffer.is_in_a_graph())
    }

    /// The operand has other contents now.
    pub(crate) fn forget(&mut self) {
        self.ready = false;
    }

    /// Thread blocks of eight rows each, for whole tiles.
    pub(crate) fn row_blocks(&self) -> usize {
        self.tiles * (TILE_ROWS / FOLD_ROWS)
    }

    /// Strips of a transform, for whole tiles.
    pub(crate) fn strips(&self) -> usize {
        self.tiles * (TILE_ROWS / STRIP_ROWS)
    }

    /// Makes room and queues the zeros. What is in it is not an operand's folded form until
    /// [`finish`](Self::finish).
    pub(crate) fn begin(&mut self, of: &FoldShape) -> Result<(), Error> {
        self.begin_with(of, Extra::Usual)
    }

    /// As [`begin`](Self::begin), with room for so many extra blocks.
    pub(crate) fn begin_with(&mut self, of: &FoldShape, extra: Extra) -> Result<(), Error> {
        self.ready = false;
        (self.tiles, self.slices) = (of.rows.div_ceil(TILE_ROWS), of.k_pad / SLICE_K);
        let usual = self.slices + 2;
        self.extra = match extra {
            Extra::Usual => usual,
            Extra::Of(count) => count.min(usual),
        };
        let overflow = Error::ShapeOverflow { rows: of.rows, cols: of.k_pad };
        let bytes = (self.slices + self.extra)
            .checked_mul(block_bytes(of.encoding)?)
            .and_then(|tile| tile.checked_mul(self.tiles))
            .ok_or(overflow)?;
        let stream = &of.gpu.stream;
        self.blocks.reserve(stream, bytes)?;
        self.bases.reserve(stream, of.rows * size_of::<i32>())?;
        self.counters.zero(stream, 4 * (self.tiles * (2 * self.slices + 2) + self.strips()))
    }

    /// The numbers of extra blocks in use, one a tile.
    pub(crate) fn used(&self) -> Pointer {
        self.counters.pointer().plus(8 * self.tiles * self.slices)
    }

    /// Of the arrivals at each strip.
    pub(crate) fn arrivals(&self) -> Pointer {
        self.used().plus(4 * 2 * self.tiles)
    }

    /// As the kernels take it, for an operand of so many rows with this metadata.
    pub(crate) fn operand(&self, rows: usize, meta: Pointer) -> Result<FoldedOperand, Error> {
        Ok(FoldedOperand {
            blocks: self.blocks.pointer(),
            entries: self.counters.pointer(),
            used: self.used(),
            incomplete: self.used().plus(4 * self.tiles),
            bases: self.bases.pointer(),
            meta,
            rows: int(rows)?,
            extra: int(self.extra)?,
        })
    }
}

/// What is folded: device addresses and sizes.
#[derive(Debug)]
pub(crate) struct FoldShape {
    pub(crate) gpu: Arc<Gpu>,
    pub(crate) encoding: Encoding,
    pub(crate) rows: usize,
    pub(crate) k_pad: usize,
    pub(crate) packed: PackedOperand,
}
