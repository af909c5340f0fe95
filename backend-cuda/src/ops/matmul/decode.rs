//! The kernel by groups, `matmul_decode.cu`: few rows of A, and what the wgmma kernels leave.

use fp4_core::{Error, Unsupported};

use super::product::{Product, Scratch, of_product};
use crate::build::arguments::{DECODE_ROWS, DECODE_STAGE_K, DecodeArgs, Pointer, product};
use crate::build::kernels::{DECODE_8, DECODE_16, DECODE_LEFT, Kernel};
use crate::device::error::unless_memory_is_short;
use crate::device::launch::{Grid, int};

/// Most rows of A for which this kernel is the choice.
pub(super) const MAX_ROWS: usize = 16;
/// Threads of a block.
const THREADS: usize = 256;
/// Blocks a multiprocessor of those that walk a list of tiles.
const LEFT_BLOCKS: usize = 2;
/// What a block costs beside its stages, in stages, about: filling its ring, and the merge.
const BLOCK_STAGES: usize = 1;

/// How a product is cut: K of a range, and the number of ranges; `forced` unless 0. `blocks` is how
/// many a range has, and `slots` how many the device runs at a time.
///
/// Blocks of a launch run in waves, so a range more may cost a wave that is nearly empty: the cut
/// is the one of least waves times stages of a block, by which a launch takes as long as it does
/// where memory is not what it waits for (bound, not measured).
fn ranges(k_pad: usize, blocks: usize, slots: usize, forced: usize) -> (usize, usize) {
    let stages = k_pad.div_ceil(DECODE_STAGE_K).max(1);
    // By so many stages a block there are so many ranges.
    let cut = |count: usize| {
        let range = stages.div_ceil(count);
        (range, stages.div_ceil(range))
    };
    // A range of fewer than two stages would spend its time on the merge.
    let (range, count) = if forced > 0 {
        cut(forced.min(stages))
    } else {
        (1..=(stages / 2).max(1))
            .map(cut)
            .min_by_key(|&(range, count)| {
                ((blocks * count).div_ceil(slots.max(1)) * (range + BLOCK_STAGES), count)
            })
            .unwrap_or((stages, 1))
    };
    (range * DECODE_STAGE_K, count)
}

/// Loads the kernel for a product, or for the tiles that another leaves, which may take long,
/// unless it is loaded: [`queue`] and [`queue_left`] are called with buffers locked.
pub(super) fn load(of: &Product<'_>, left: bool) -> Result<(), Error> {
    let kernel = if left { kernel_of_left(of)? } else { kernel(of)?.1 };
    of.a.gpu.function(kernel).map(drop)
}

/// The kernel for a product, and how many rows of A its blocks take.
fn kernel(of: &Product<'_>) -> Result<(usize, &'static Kernel<DecodeArgs>), Error> {
    let (rows, kernels) = if of.shape()[0] <= 8 { (8, &DECODE_8) } else { (16, &DECODE_16) };
    Ok((rows, of_product(kernels, of.encodings()?)?))
}

/// The kernel for the tiles that a wgmma kernel leaves.
fn kernel_of_left(of: &Product<'_>) -> Result<&'static Kernel<DecodeArgs>, Error> {
    let encodings = of.encodings()?;
    let none = Unsupported::Encodings { a: encodings.a, b: encodings.b.into() };
    DECODE_LEFT.get(product(encodings)? as usize).ok_or(none.into())
}

/// Queues the kernel.
pub(super) fn queue(
    of: &Product<'_>,
    ranges_wanted: usize,
    scratch: &mut Scratch,
) -> Result<(), Error> {
    let ([m, n], gpu, k_pad) = (of.shape(), &*of.a.gpu, of.a.k_pad);
    let (rows, kernel) = kernel(of)?;
    let (across, down) = (n.div_ceil(DECODE_ROWS), m.div_ceil(rows));
    let whole = (k_pad.next_multiple_of(DECODE_STAGE_K), 1);
    let slots = gpu.processors * gpu.resident_blocks(kernel, THREADS)?;
    let (mut range, mut count) = ranges(k_pad, across * down, slots, ranges_wanted);
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
    let args = DecodeArgs { sums, arrivals, range: int(range)?, ..arguments(of)? };
    let grid = Grid { blocks: [across, count, down], threads: THREADS };
    // SAFETY: as in `naive::queue`; there are sums and arrivals for more than one range.
    unsafe { gpu.launch(kernel, grid, &args) }
}

/// Queues the kernel for the tiles of `shape` in a list on the device: how many, then which.
pub(super) fn queue_left(of: &Product<'_>, left: Pointer, shape: [usize; 2]) -> Result<(), Error> {
    let [left_m, left_n] = shape;
    let args = DecodeArgs { left, left_m: int(left_m)?, left_n: int(left_n)?, ..arguments(of)? };
    // How long the list is, only the device knows: a few blocks walk it.
    let grid = Grid::row(LEFT_BLOCKS * of.a.gpu.processors, THREADS);
    // SAFETY: as in `naive::queue`; the list is of tiles of this product.
    unsafe { of.a.gpu.launch(kernel_of_left(of)?, grid, &args) }
}

/// The arguments for all of K in one range.
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
        left_m: 0,
        left_n: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_k_and_fill_the_device() {
        // 64 blocks, two on each of 132 processors: four ranges of 8 stages make 256 of 264, where
        // five would make a second wave of 56.
        assert_eq!(ranges(8192, 64, 264, 0), (8 * 256, 4));
        // One on each of 128: two ranges, exactly a wave.
        assert_eq!(ranges(8192, 64, 128, 0), (16 * 256, 2));
        // Many blocks: whole rows. A wave and a bit: four ranges are five waves, nearly full.
        assert_eq!(ranges(8192, 2640, 264, 0), (8192, 1));
        assert_eq!(ranges(8192, 300, 264, 0), (8 * 256, 4));
        assert_eq!(ranges(128, 1, 132, 0), (256, 1));
        assert_eq!(ranges(0, 1, 132, 0), (256, 1));
        assert_eq!(ranges(512, 1, 0, 0), (512, 1));
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
