//! The folded form of an operand in device memory, by `fold.cu`: what the wgmma kernels read.

use fp4_core::{Error, Format};

use crate::buffer::Buffer;
use crate::launch::{Arg, Grid, int};
use crate::operand::CudaOperand;
use crate::sources::FOLD;

/// Rows of a tile (`TILE_ROWS`).
pub(super) const TILE_ROWS: usize = 128;
/// K of a step (`STEP_K`).
const STEP_K: usize = 32;
/// Steps of a thread block of `fold_blocks` (`SLAB_STEPS`).
const SLAB_STEPS: usize = 4;
/// Rows of a thread block of `fold_rows` (`ROW_WARPS`).
const BLOCK_ROWS: usize = 4;

/// Bytes of a block: 128 x 32 digits in one plane or three.
pub(super) fn block_bytes(format: Format) -> usize {
    TILE_ROWS
        * STEP_K
        * match format {
            Format::MxFp4 => 1,
            Format::NvFp4 => 3,
        }
}

/// The folded form of one operand; it grows only, and serves one product after the other.
#[derive(Debug, Default)]
pub(super) struct Folded {
    blocks: Buffer,
    entries: Buffer,
    used: Buffer,
    incomplete: Buffer,
    bases: Buffer,
    extra: usize,
}

impl Folded {
    /// Queues the folding of an operand.
    pub(super) fn fill(&mut self, from: &CudaOperand) -> Result<(), Error> {
        let format = from.shape.expect_format()?;
        let (rows, steps) = (from.shape.rows(), from.k_pad / STEP_K);
        let tiles = rows.div_ceil(TILE_ROWS);
        // Room for a second window in every other step; a tile that needs more is left to the
        // kernel by groups.
        self.extra = steps / 2 + 4;
        let overflow = Error::ShapeOverflow { rows, cols: from.k_pad };
        let bytes = (steps + self.extra)
            .checked_mul(block_bytes(format))
            .and_then(|tile| tile.checked_mul(tiles))
            .ok_or(overflow)?;
        let stream = &from.gpu.stream;
        self.blocks.reserve(stream, bytes)?;
        self.entries.reserve(stream, tiles * steps * 4)?;
        self.used.reserve(stream, tiles * 4)?;
        self.incomplete.reserve(stream, tiles * 4)?;
        self.bases.reserve(stream, rows * 4)?;
        let (fold_rows, fold_blocks) = match format {
            Format::MxFp4 => ("fold_rows_mxfp4", "fold_blocks_mxfp4"),
            Format::NvFp4 => ("fold_rows_nvfp4", "fold_blocks_nvfp4"),
        };
        let args = [
            Arg::Pointer(from.codes.address()),
            Arg::Pointer(from.scales.address()),
            Arg::I32(int(rows)?),
            Arg::I32(int(from.k_pad)?),
            Arg::Pointer(self.bases.address()),
            Arg::Pointer(self.used.address()),
            Arg::Pointer(self.incomplete.address()),
        ];
        let grid = Grid { blocks: [rows.div_ceil(BLOCK_ROWS), 1, 1], threads: 128, shared: 0 };
        from.gpu.launch_grid((&FOLD, fold_rows), grid, &args)?;
        let args = [
            Arg::Pointer(from.codes.address()),
            Arg::Pointer(from.scales.address()),
            Arg::Pointer(self.bases.address()),
            Arg::I32(int(rows)?),
            Arg::I32(int(from.k_pad)?),
            Arg::I32(int(self.extra)?),
            Arg::Pointer(self.blocks.address()),
            Arg::Pointer(self.entries.address()),
            Arg::Pointer(self.used.address()),
            Arg::Pointer(self.incomplete.address()),
        ];
        let grid = Grid { blocks: [tiles, steps / SLAB_STEPS, 1], threads: 128, shared: 0 };
        from.gpu.launch_grid((&FOLD, fold_blocks), grid, &args)
    }

    /// The kernels' arguments for this operand.
    pub(super) fn args(&self, meta: &Buffer) -> Result<[Arg; 6], Error> {
        Ok([
            Arg::Pointer(self.blocks.address()),
            Arg::Pointer(self.entries.address()),
            Arg::Pointer(self.incomplete.address()),
            Arg::Pointer(self.bases.address()),
            Arg::Pointer(meta.address()),
            Arg::I32(int(self.extra)?),
        ])
    }
}
