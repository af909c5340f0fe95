//! The kernel by groups, `matmul_decode.cu`: few rows of A, and what the wgmma kernels leave.

use fp4_core::{Error, Format};

use super::product::{Outputs, Scratch};
use crate::build::sources::MATMUL_DECODE;
use crate::device::error::unless_memory_is_short;
use crate::device::launch::{Arg, Grid, float_type, int};
use crate::operand::packed::CudaOperand;

/// Most rows of A for which this kernel is the choice.
pub(super) const MAX_ROWS: usize = 16;
/// Rows of B of a thread block (`ROWS`).
const BLOCK_ROWS: usize = 128;
/// K of a stage (`STAGE_K`): ranges of K are multiples of it.
const STAGE_K: usize = 256;
/// Dynamic shared memory of a block (`DECODE_SHARED`).
const SHARED: u32 = 77_328;
/// Thread blocks of a multiprocessor at a time, for which there should be work.
const BLOCKS_PER_PROCESSOR: usize = 2;

/// Which outputs: all, or those of tiles that are marked in device memory.
#[derive(Debug, Clone, Copy)]
pub(super) enum Tiles {
    All,
    /// A byte for each tile of (rows, columns) outputs, not 0 where the tile is to be computed.
    Marked {
        todo: u64,
        shape: [usize; 2],
    },
}

/// How a product is cut: K of a range, and the number of ranges; `forced` unless 0.
fn ranges(k_pad: usize, blocks: usize, processors: usize, forced: usize) -> (usize, usize) {
    let stages = k_pad.div_ceil(STAGE_K).max(1);
    let wanted = (BLOCKS_PER_PROCESSOR * processors).div_ceil(blocks.max(1));
    // A range of fewer than two stages would spend its time on the merge.
    let count = if forced > 0 { forced } else { wanted.min(stages / 2) }.clamp(1, stages);
    let range = stages.div_ceil(count);
    (range * STAGE_K, stages.div_ceil(range))
}

/// Queues the kernel.
pub(super) fn queue(
    a: &CudaOperand,
    b: &CudaOperand,
    outputs: &Outputs<'_>,
    tiles: Tiles,
    ranges_wanted: usize,
    scratch: &mut Scratch,
) -> Result<(), Error> {
    let format = a.shape.expect_product(&b.shape)?;
    let (m, n) = (a.shape.rows(), b.shape.rows());
    let (rows, name) = match (format, m <= 8) {
        (Format::MxFp4, true) => (8, "matmul_decode_mxfp4_8"),
        (Format::MxFp4, false) => (16, "matmul_decode_mxfp4_16"),
        (Format::NvFp4, true) => (8, "matmul_decode_nvfp4_8"),
        (Format::NvFp4, false) => (16, "matmul_decode_nvfp4_16"),
    };
    let (across, down) = (n.div_ceil(BLOCK_ROWS), m.div_ceil(rows));
    let (range, count, todo, shape) = match tiles {
        Tiles::All => {
            let (range, count) = ranges(a.k_pad, across * down, a.gpu.processors, ranges_wanted);
            (range, count, 0, [1, 1])
        }
        // Blocks without work only look at their mark: one range keeps them few.
        Tiles::Marked { todo, shape } => (a.k_pad.next_multiple_of(STAGE_K), 1, todo, shape),
    };
    let (mut range, mut count, mut sums, mut arrivals) = (range, count, 0, 0);
    if count > 1 {
        // Every launch leaves zeros.
        let stream = &a.gpu.stream;
        let made = (scratch.sums.reserve_zeros(stream, m * n * 8))
            .and_then(|()| scratch.arrivals.reserve_zeros(stream, across * down * 4));
        if unless_memory_is_short(made, "the sums of ranges of K")? {
            (sums, arrivals) = (scratch.sums.address(), scratch.arrivals.address());
        } else {
            (range, count) = (a.k_pad.next_multiple_of(STAGE_K), 1);
        }
    }
    let args = [
        Arg::Pointer(a.codes.address()),
        Arg::Pointer(a.scales.address()),
        Arg::Pointer(a.meta.address()),
        Arg::Pointer(b.codes.address()),
        Arg::Pointer(b.scales.address()),
        Arg::Pointer(b.meta.address()),
        Arg::Pointer(outputs.to),
        float_type(outputs.float_type),
        Arg::F32(outputs.alpha),
        Arg::I32(int(m)?),
        Arg::I32(int(n)?),
        Arg::I32(int(a.k_pad)?),
        Arg::I32(int(range)?),
        Arg::Pointer(sums),
        Arg::Pointer(arrivals),
        Arg::Pointer(todo),
        Arg::I32(int(shape[0])?),
        Arg::I32(int(shape[1])?),
        Arg::Pointer(outputs.paths.address()),
    ];
    let grid = Grid { blocks: [across, count, down], threads: 256, shared: SHARED };
    a.gpu.launch_grid((&MATMUL_DECODE, name), grid, &args)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_k_and_fill_the_device() {
        // 64 blocks on 132 processors: five ranges of 7 stages.
        assert_eq!(ranges(8192, 64, 132, 0), (7 * 256, 5));
        assert_eq!(ranges(8192, 300, 132, 0), (8192, 1));
        assert_eq!(ranges(128, 1, 132, 0), (256, 1));
        assert_eq!(ranges(0, 1, 132, 0), (256, 1));
        for (k_pad, split) in [(2176, 1), (2176, 3), (2176, 9), (2176, 50), (0, 7)] {
            let (range, count) = ranges(k_pad, 5, 16, split);
            assert!(
                range % STAGE_K == 0 && range * count >= k_pad && count >= 1,
                "{k_pad} {split}"
            );
            assert!(k_pad == 0 || range * (count - 1) < k_pad, "{k_pad} {split}: an empty range");
        }
    }
}
