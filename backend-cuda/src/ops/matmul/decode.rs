//! The kernel by groups, `matmul_decode.cu`: few rows of A, and what the wgmma kernels leave.

use fp4_core::{Error, Product as Encodings};

use super::product::{Product, Scratch, of_product};
use crate::build::arguments::{DECODE_ROWS, DECODE_STAGE_K, DecodeArgs, GroupedArgs, Pointer};
use crate::build::kernels::{DECODE_8, DECODE_16, DECODE_GROUPED, Kernel};
use crate::device::error::unless_memory_is_short;
use crate::device::launch::{Grid, int};

/// Most rows of A for which this kernel is the choice.
pub(super) const MAX_ROWS: usize = 16;
/// Thread blocks of a multiprocessor at a time, for which there should be work.
const BLOCKS_PER_PROCESSOR: usize = 2;

/// Rows of A of a block of several products' kernels.
const GROUPED_ROWS: usize = 8;
/// Threads of a block.
pub(super) const THREADS: usize = 256;

/// Which outputs: all, or those of tiles in a list in device memory.
#[derive(Debug, Clone, Copy)]
pub(super) enum Tiles {
    All,
    /// How many tiles of (rows, columns) outputs, then which.
    Left {
        left: Pointer,
        shape: [usize; 2],
    },
}

/// How a product is cut: K of a range, and the number of ranges; `forced` unless 0.
fn ranges(k_pad: usize, blocks: usize, processors: usize, forced: usize) -> (usize, usize) {
    let stages = k_pad.div_ceil(DECODE_STAGE_K).max(1);
    let wanted = (BLOCKS_PER_PROCESSOR * processors).div_ceil(blocks.max(1));
    // A range of fewer than two stages would spend its time on the merge.
    let count = if forced > 0 { forced } else { wanted.min(stages / 2) }.clamp(1, stages);
    let range = stages.div_ceil(count);
    (range * DECODE_STAGE_K, stages.div_ceil(range))
}

/// Loads the kernel for a product, which may take long, unless it is loaded: [`queue`] is called
/// with buffers locked.
pub(super) fn load(of: &Product<'_>) -> Result<(), Error> {
    of.a.gpu.function(kernel(of)?.1).map(drop)
}

/// The kernel for a product, and how many rows of A its blocks take.
fn kernel(of: &Product<'_>) -> Result<(usize, &'static Kernel<DecodeArgs>), Error> {
    let (rows, kernels) = if of.shape()[0] <= 8 { (8, &DECODE_8) } else { (16, &DECODE_16) };
    Ok((rows, of_product(kernels, of.encodings()?)?))
}

/// The arguments of a product, all of it in one range of K.
fn arguments(of: &Product<'_>) -> Result<DecodeArgs, Error> {
    let ([m, n], k_pad) = (of.shape(), of.a.k_pad);
    Ok(DecodeArgs {
        a: of.a.packed(),
        b: of.b.packed(),
        outputs: of.outputs,
        sums: Pointer::NULL,
        arrivals: Pointer::NULL,
        left: Pointer::NULL,
        paths: of.paths,
        m: int(m)?,
        n: int(n)?,
        k_pad: int(k_pad)?,
        range: int(k_pad.next_multiple_of(DECODE_STAGE_K))?,
        left_m: 1,
        left_n: 1,
    })
}

/// What a product is in a launch of several, by the kernels for eight rows: its arguments, and its
/// number of blocks.
pub(super) fn member(of: &Product<'_>) -> Result<(DecodeArgs, usize), Error> {
    let [m, n] = of.shape();
    Ok((arguments(of)?, m.div_ceil(GROUPED_ROWS) * n.div_ceil(DECODE_ROWS)))
}

/// The kernel for several products.
pub(super) fn grouped(of: Encodings) -> Result<&'static Kernel<GroupedArgs>, Error> {
    of_product(&DECODE_GROUPED, of)
}

/// Queues the kernel.
pub(super) fn queue(
    of: &Product<'_>,
    tiles: Tiles,
    ranges_wanted: usize,
    scratch: &mut Scratch,
) -> Result<(), Error> {
    let ([m, n], gpu, k_pad) = (of.shape(), &*of.a.gpu, of.a.k_pad);
    let (rows, kernel) = kernel(of)?;
    let (across, down) = (n.div_ceil(DECODE_ROWS), m.div_ceil(rows));
    let whole = (k_pad.next_multiple_of(DECODE_STAGE_K), 1);
    let ((mut range, mut count), left, [left_m, left_n]) = match tiles {
        Tiles::All => {
            let cut = ranges(k_pad, across * down, gpu.processors, ranges_wanted);
            (cut, Pointer::NULL, [1, 1])
        }
        Tiles::Left { left, shape } => (whole, left, shape),
    };
    let (mut sums, mut arrivals) = (Pointer::NULL, Pointer::NULL);
    if count > 1 {
        // Every launch leaves zeros.
        let made = (scratch.sums.reserve_zeros(&gpu.stream, m * n * 8))
            .and_then(|()| scratch.arrivals.reserve_zeros(&gpu.stream, across * down * 4));
        if unless_memory_is_short(made, "the sums of ranges of K")? {
            (sums, arrivals) = (scratch.sums.pointer(), scratch.arrivals.pointer());
        } else {
            (range, count) = whole;
        }
    }
    let args = DecodeArgs {
        sums,
        arrivals,
        left,
        range: int(range)?,
        left_m: int(left_m)?,
        left_n: int(left_n)?,
        ..arguments(of)?
    };
    let blocks = match tiles {
        Tiles::All => [across, count, down],
        // How long the list is, only the device knows: as many as run at a time walk it.
        Tiles::Left { .. } => [BLOCKS_PER_PROCESSOR * gpu.processors, 1, 1],
    };
    let grid = Grid { blocks, threads: THREADS };
    // SAFETY: as in `naive::queue`; there are sums and arrivals for more than one range, and a list
    // of tiles has room for all of their shape.
    unsafe { gpu.launch(kernel, grid, &args) }
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
                range % DECODE_STAGE_K == 0 && range * count >= k_pad && count >= 1,
                "{k_pad} {split}"
            );
            assert!(k_pad == 0 || range * (count - 1) < k_pad, "{k_pad} {split}: an empty range");
        }
    }
}
