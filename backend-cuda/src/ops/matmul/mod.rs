//! Multiplication on the device: which kernel, and what it is given (C6, C10).
//!
//! | [`MatmulKernel`] | kernel | outputs by |
//! |---|---|---|
//! | `Naive` | `matmul_naive.cu` | one thread each; int64 where proven, else 640 bits |
//! | `Mma` | `matmul_mma.cu` | tensor-core tiles; int32 fold, int64 by group, else 640 bits |
//! | `Decode` | `matmul_decode.cu` | 128 rows of B by 8 or 16 of A; int64 by group, else 640 bits |
//! | `Wgmma` | `matmul_wgmma_*.cu` | Hopper: folded int8, int32; what is left by `Decode`'s |
//!
//! [`MatmulKernel::Auto`] takes the fastest that can by the shape and the device: `Decode` for up
//! to 16 rows of A, `Wgmma` for 128 and more on compute capability 9.0, `Mma` otherwise. MXINT8 by
//! NVFP4 has no kernel of `Wgmma`'s, and goes by `Mma` under it.
//!
//! Where memory for the folded form is short, `Auto` goes on with `Mma`, which needs none.
//!
//! Every kernel takes every input and gives the same bits; the choice is for tests and
//! measurements. The choice between sums is made on the device from row metadata, so a launch needs
//! nothing from the host but shapes and the bounds below.

mod decode;
mod kernel;
mod mma;
mod naive;
mod product;
mod wgmma;

use std::sync::{Mutex, PoisonError};

use fp4_core::{Error, PackedShape, Product as Encodings, padded_k};

pub use kernel::MatmulKernel;
pub(crate) use naive::partial;
use product::is_long;
pub(crate) use product::{PATHS_BYTES, Product, Scratch, paths_of};

use crate::device::error::unless_memory_is_short;
use crate::device::gpu::Gpu;
use crate::device::reason::Reason;
use crate::operand::packed::CudaOperand;

/// What [`MatmulKernel::Auto`] stands for.
fn choose(a: &CudaOperand, b: &CudaOperand, of: Encodings) -> MatmulKernel {
    let m = a.shape.rows();
    if m <= decode::MAX_ROWS && !is_long(of, a.k_pad) {
        return MatmulKernel::Decode { ranges: 0 };
    }
    let least = if b.folded.ready() { wgmma::MIN_ROWS } else { wgmma::MIN_ROWS_UNFOLDED };
    let takes = wgmma::takes(MatmulKernel::Auto, &a.gpu, of, [m, a.k_pad]);
    if m >= least && takes { MatmulKernel::Wgmma } else { MatmulKernel::Mma }
}

/// Whether an activation of this shape is to be folded when it is quantized or imported. MXINT8 is
/// not: only MXFP4 weights need it.
pub(crate) fn folds_activation(kernel: MatmulKernel, gpu: &Gpu, shape: PackedShape) -> bool {
    let enough = kernel == MatmulKernel::Wgmma || shape.rows() >= wgmma::MIN_ROWS;
    enough && folds_weight(kernel, gpu, shape)
}

/// Whether a weight of this shape is to be folded when it is prepared.
pub(crate) fn folds_weight(kernel: MatmulKernel, gpu: &Gpu, shape: PackedShape) -> bool {
    let (Some(format), Ok(k_pad)) = (shape.format(), padded_k(shape.k())) else { return false };
    wgmma::takes(kernel, gpu, Encodings::of(format), [shape.rows(), k_pad])
}

/// Queues the product: round(f32(A * B^T) * alpha_i + bias_j), and what its paths were.
pub(crate) fn matmul(
    kernel: MatmulKernel,
    of: &Product<'_>,
    scratch: &Mutex<Scratch>,
) -> Result<(), Error> {
    let Product { a, b, .. } = of;
    let encodings = of.encodings()?;
    let long = is_long(encodings, a.k_pad);
    // Launches of one product stay together on the stream, as they share buffers. Whoever holds the
    // lock queues and nothing else.
    let scratch = || scratch.lock().unwrap_or_else(PoisonError::into_inner);
    let mut chosen = match kernel {
        MatmulKernel::Auto => choose(a, b, encodings),
        MatmulKernel::Wgmma if !wgmma::exists(encodings) => {
            scratch().forget_tiles();
            MatmulKernel::Mma
        }
        forced => forced,
    };
    if matches!(chosen, MatmulKernel::Decode { .. } | MatmulKernel::Wgmma) {
        decode::load(of, chosen == MatmulKernel::Wgmma)?;
    }
    if kernel == MatmulKernel::Auto && chosen == MatmulKernel::Wgmma {
        let queued = wgmma::queue(of, &mut scratch());
        if unless_memory_is_short(queued, "the wgmma kernels")? {
            return Ok(());
        }
        // Nothing that the outputs depend on is queued before its memory is there.
        chosen = MatmulKernel::Mma;
    }
    match chosen {
        MatmulKernel::Decode { ranges } => decode::queue(of, ranges, &mut scratch()),
        MatmulKernel::Wgmma if !wgmma::available(&a.gpu, encodings) => {
            Err(Reason::NeedsHopper.into())
        }
        MatmulKernel::Wgmma => wgmma::queue(of, &mut scratch()),
        MatmulKernel::Mma if !long => mma::queue(of),
        MatmulKernel::Naive | MatmulKernel::Mma | MatmulKernel::Auto => naive::queue(of),
    }
}
