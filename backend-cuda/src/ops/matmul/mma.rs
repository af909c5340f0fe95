//! The tensor-core kernel for every device, `matmul_mma.cu`.

use fp4_core::{Encoding, Error, Format, Product as Encodings};

use super::naive;
use super::product::Product;
use crate::build::arguments::{GroupedArgs, MMA_THREADS, MMA_TILE, MatmulArgs, Pointer};
use crate::build::kernels::{Kernel, MATMUL_MMA, MATMUL_MMA_GROUPED};
use crate::device::gpu::Gpu;
use crate::device::launch::{Grid, int};

/// The largest K that the int32 fold of MXFP4 takes: a product of two folded codes is at most
/// 96 * 96 in magnitude, and 9216 * 233016 <= 2^31 - 1.
const FOLD_MAX_K: usize = i32::MAX as usize / (96 * 96);

/// Blocks of the launch that walks the tiles left by another kernel, a multiprocessor.
const LEFT_BLOCKS_PER_PROCESSOR: usize = 2;

/// The arguments of a product.
fn arguments(of: &Product<'_>) -> Result<MatmulArgs, Error> {
    let k_folds = i32::from(of.a.k_pad <= FOLD_MAX_K);
    Ok(MatmulArgs { k_folds, ..naive::arguments(of)? })
}

/// The number of a product's kernel.
fn kernel(of: Encodings) -> usize {
    match (of.a, of.b) {
        (Encoding::MxInt8, Format::MxFp4) => 1,
        (Encoding::MxInt8, Format::NvFp4) => 2,
        _ => 0,
    }
}

/// What a product is in a launch of several: its arguments, and its number of tiles.
pub(super) fn member(of: &Product<'_>) -> Result<(MatmulArgs, usize), Error> {
    let [m, n] = of.shape();
    Ok((arguments(of)?, m.div_ceil(MMA_TILE) * n.div_ceil(MMA_TILE)))
}

/// The kernel for several products.
pub(super) fn grouped(of: Encodings) -> &'static Kernel<GroupedArgs> {
    &MATMUL_MMA_GROUPED[kernel(of)]
}

/// Blocks of a launch that walks at most so many tiles left by another kernel.
pub(super) fn left_blocks(gpu: &Gpu, most: usize) -> usize {
    most.min(LEFT_BLOCKS_PER_PROCESSOR * gpu.processors)
}

/// Loads the kernel for a product, as [`decode::load`](super::decode::load).
pub(super) fn load(of: &Product<'_>) -> Result<(), Error> {
    of.a.gpu.function(&MATMUL_MMA[kernel(of.encodings()?)]).map(drop)
}

/// Queues the kernel, which takes no K that is [`is_long`](super::product::is_long).
pub(super) fn queue(of: &Product<'_>) -> Result<(), Error> {
    let [m, n] = of.shape();
    let grid = Grid::row(m.div_ceil(MMA_TILE) * n.div_ceil(MMA_TILE), MMA_THREADS);
    let kernel = &MATMUL_MMA[kernel(of.encodings()?)];
    // SAFETY: as in `naive::queue`.
    unsafe { of.a.gpu.launch(kernel, grid, &arguments(of)?) }
}

/// Queues the kernel for the tiles in a list on the device, of `rows` rows each and at most `most`:
/// as many blocks as a device runs, which share what there is.
pub(super) fn queue_left(
    of: &Product<'_>,
    left: Pointer,
    rows: usize,
    most: usize,
) -> Result<(), Error> {
    let gpu = &*of.a.gpu;
    let blocks = left_blocks(gpu, most);
    let args = MatmulArgs { left, left_rows: int(rows)?, ..arguments(of)? };
    let kernel = &MATMUL_MMA[kernel(of.encodings()?)];
    // SAFETY: as in `naive::queue`; the list holds tiles of this product.
    unsafe { gpu.launch(kernel, Grid::row(blocks, MMA_THREADS), &args) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_of_the_fold_is_the_largest_that_holds() {
        let fold = 96 * 96 * FOLD_MAX_K as i64;
        assert!(fold <= i64::from(i32::MAX) && fold + 96 * 96 > i64::from(i32::MAX));
    }
}
