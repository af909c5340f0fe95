//! The tensor-core kernel for every device, `matmul_mma.cu`.

use fp4_core::{Encoding, Error, Format};

use super::naive;
use super::product::Product;
use crate::build::arguments::{MMA_THREADS, MMA_TILE, MatmulArgs};
use crate::build::kernels::{MATMUL_MMA, MATMUL_MMA_MXINT8};
use crate::device::launch::Grid;

/// The largest K that the int32 fold of MXFP4 takes: a product of two folded codes is at most
/// 96 * 96 in magnitude, and 9216 * 233016 <= 2^31 - 1.
const FOLD_MAX_K: usize = i32::MAX as usize / (96 * 96);

/// Queues the kernel, which takes no K that is [`is_long`](super::product::is_long).
pub(super) fn queue(of: &Product<'_>) -> Result<(), Error> {
    let [m, n] = of.shape();
    let grid = Grid::row(m.div_ceil(MMA_TILE) * n.div_ceil(MMA_TILE), MMA_THREADS);
    let k_folds = i32::from(of.a.k_pad <= FOLD_MAX_K);
    let args = MatmulArgs { k_folds, ..naive::arguments(of)? };
    let encodings = of.encodings()?;
    let kernel = match (encodings.a, encodings.b) {
        (Encoding::MxInt8, Format::MxFp4) => &MATMUL_MMA_MXINT8[0],
        (Encoding::MxInt8, Format::NvFp4) => &MATMUL_MMA_MXINT8[1],
        _ => &MATMUL_MMA[0],
    };
    // SAFETY: as in `naive::queue`.
    unsafe { of.a.gpu.launch(kernel, grid, &args) }
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
