//! The tensor-core kernel for every device, `matmul_mma.cu`.

use fp4_core::Error;

use super::naive;
use super::product::Outputs;
use crate::build::sources::MATMUL_MMA;
use crate::device::launch::Arg;
use crate::operand::packed::CudaOperand;

/// The largest K that the int32 fold of MXFP4 takes: a product of two folded codes is at most
/// 96 * 96 in magnitude, and 9216 * 233016 <= 2^31 - 1.
const FOLD_MAX_K: usize = i32::MAX as usize / (96 * 96);

/// Queues the kernel, which takes no K that is [`is_long`](super::product::is_long).
pub(super) fn queue(a: &CudaOperand, b: &CudaOperand, outputs: &Outputs<'_>) -> Result<(), Error> {
    let mut args = naive::arguments(a, b, outputs)?;
    args.push(Arg::I32(i32::from(a.k_pad <= FOLD_MAX_K)));
    args.push(Arg::Pointer(outputs.paths.address()));
    let tiles = a.shape.rows().div_ceil(64) as u64 * b.shape.rows().div_ceil(64) as u64;
    a.gpu.launch((&MATMUL_MMA, "matmul_mma"), tiles, 128, &args)
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
