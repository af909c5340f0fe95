//! Multiplication on the device: which kernel, and what it is given (C6, C10).
//!
//! | [`MatmulKernel`] | kernel | outputs by |
//! |---|---|---|
//! | `Naive` | `matmul_naive.cu` | one thread each; int64 where proven, else 640 bits |
//! | `Mma` | `matmul_mma.cu` | tensor-core tiles; int32 fold, int64 by group, else 640 bits |
//! | `MmaFolded` | `matmul_mma_folded.cu` | folded int8, int32; what is left by `Mma`'s |
//! | `Decode` | `matmul_decode.cu` | 128 rows of B by 8 or 16 of A; int64 by group, else 640 bits |
//! | `Wgmma` | `matmul_wgmma_*.cu` | Hopper: folded int8, int32; what is left by `Decode`'s |
//! | `WgmmaRs` | `matmul_wgmma_rs_*.cu` | Hopper, few rows, packed weights; the rest as `Wgmma` |
//!
//! [`MatmulKernel::Auto`] takes `Decode` for up to 16 rows of A, and for more the one that a model
//! of the device finds fastest ([`model`]): `Wgmma` on compute capability 9.0 from a tile's rows
//! on, there for up to 128 rows `WgmmaRs` on MXFP4 weights of which it leaves few tiles,
//! `MmaFolded` where neither will do and elsewhere, `Mma` where folding the weight would cost more
//! than it saves. All but `Mma` cut K where there are few tiles. MXINT8 by NVFP4 has no kernel on
//! folded operands, and goes by `Mma`.
//!
//! Where memory for the folded form is short, `Auto` goes on with `Mma`, which needs none.
//!
//! Every kernel takes every input and gives the same bits; the choice is for tests and
//! measurements. The choice between sums is made on the device from row metadata, so a launch needs
//! nothing from the host but shapes and the bounds below.

mod decode;
mod grouped;
mod kernel;
mod mma;
mod mma_folded;
mod model;
mod naive;
mod product;
mod wgmma;
mod wgmma_rs;

use std::sync::{Mutex, PoisonError};

use fp4_core::{Error, PackedShape, Product as Encodings, padded_k};

pub(crate) use grouped::{Route, grouped, route};
pub use kernel::MatmulKernel;
use model::{Choice, Rates};
pub(crate) use naive::partial;
use product::is_long;
pub(crate) use product::{PATHS_BYTES, Product, Scratch, paths_of};
pub(crate) use wgmma_rs::wide_tiles;

use crate::device::error::unless_memory_is_short;
use crate::device::gpu::Gpu;
use crate::device::reason::Reason;
use crate::operand::packed::CudaOperand;

/// What [`MatmulKernel::Auto`] stands for.
fn choose(a: &CudaOperand, b: &CudaOperand, of: Encodings) -> MatmulKernel {
    let (m, k_pad, gpu) = (a.shape.rows(), a.k_pad, &*a.gpu);
    if is_long(of, k_pad) {
        return MatmulKernel::Mma;
    }
    if m <= decode::MAX_ROWS {
        return MatmulKernel::Decode { ranges: 0 };
    }
    let shape = [m, b.shape.rows(), k_pad];
    let auto = MatmulKernel::Auto;
    let wide = b.wide_tiles.filter(|_| wgmma_rs::takes(auto, gpu, of, [m, k_pad]));
    match model::choose(&Rates::of(gpu), of, shape, b.folded.ready(), wide) {
        Choice::WgmmaRs => MatmulKernel::WgmmaRs { ranges: 0 },
        Choice::Wgmma if wgmma::takes(auto, gpu, of, [m, k_pad]) => MatmulKernel::Wgmma,
        Choice::Wgmma | Choice::MmaFolded if mma_folded::takes(auto, gpu, of, [m, k_pad]) => {
            MatmulKernel::MmaFolded { ranges: 0 }
        }
        _ => MatmulKernel::Mma,
    }
}

/// Whether an activation of this shape is to be folded when it is quantized or imported. MXINT8 is
/// not: only MXFP4 weights need it.
pub(crate) fn folds_activation(kernel: MatmulKernel, gpu: &Gpu, shape: PackedShape) -> bool {
    let enough = kernel != MatmulKernel::Auto || shape.rows() > decode::MAX_ROWS;
    let takes = |(format, k_pad)| {
        wgmma_rs::takes(kernel, gpu, Encodings::of(format), [shape.rows(), k_pad])
    };
    let few_rows = shape.format().zip(padded_k(shape.k()).ok()).is_some_and(takes);
    enough && (few_rows || folds_weight(kernel, gpu, shape))
}

/// Whether a weight of this shape is to be folded when it is prepared.
pub(crate) fn folds_weight(kernel: MatmulKernel, gpu: &Gpu, shape: PackedShape) -> bool {
    let (Some(format), Ok(k_pad)) = (shape.format(), padded_k(shape.k())) else { return false };
    let (of, sizes) = (Encodings::of(format), [shape.rows(), k_pad]);
    wgmma::takes(kernel, gpu, of, sizes) || mma_folded::takes(kernel, gpu, of, sizes)
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
        MatmulKernel::WgmmaRs { .. } if !wgmma_rs::exists(encodings) => {
            scratch().forget_tiles();
            MatmulKernel::Mma
        }
        MatmulKernel::MmaFolded { .. } if long || mma_folded::kernels(encodings).is_none() => {
            scratch().forget_tiles();
            MatmulKernel::Mma
        }
        forced => forced,
    };
    match chosen {
        MatmulKernel::Decode { .. } => decode::load(of, false)?,
        MatmulKernel::Wgmma => decode::load(of, true)?,
        MatmulKernel::WgmmaRs { .. } => wgmma_rs::load(of)?,
        MatmulKernel::MmaFolded { .. } => mma_folded::load(of)?,
        _ => {}
    }
    if kernel == MatmulKernel::Auto {
        let queued = match chosen {
            MatmulKernel::Wgmma => Some(wgmma::queue(of, 0, &mut scratch())),
            MatmulKernel::WgmmaRs { ranges } => Some(wgmma_rs::queue(of, ranges, &mut scratch())),
            MatmulKernel::MmaFolded { ranges } => {
                Some(mma_folded::queue(of, ranges, &mut scratch()))
            }
            _ => None,
        };
        if let Some(queued) = queued {
            if unless_memory_is_short(queued, "the kernels on folded operands")? {
                return Ok(());
            }
            // Nothing that the outputs depend on is queued before its memory is there.
            chosen = MatmulKernel::Mma;
        }
    }
    match chosen {
        MatmulKernel::Decode { ranges } => decode::queue(of, ranges, &mut scratch()),
        MatmulKernel::Wgmma if !wgmma::available(&a.gpu, encodings) => {
            Err(Reason::NeedsHopper.into())
        }
        MatmulKernel::Wgmma => wgmma::queue(of, 0, &mut scratch()),
        MatmulKernel::WgmmaRs { .. } if !wgmma_rs::available(&a.gpu, encodings) => {
            Err(Reason::NeedsHopper.into())
        }
        MatmulKernel::WgmmaRs { ranges } => wgmma_rs::queue(of, ranges, &mut scratch()),
        MatmulKernel::MmaFolded { ranges } => mma_folded::queue(of, ranges, &mut scratch()),
        MatmulKernel::Mma if !long => mma::queue(of),
        MatmulKernel::Naive | MatmulKernel::Mma | MatmulKernel::Auto => naive::queue(of),
    }
}
