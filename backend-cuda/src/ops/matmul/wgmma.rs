//! The wgmma kernels, `matmul_wgmma_*.cu`, for compute capability 9.0: many rows of A.
//!
//! Both operands are folded to int8 first (`fold.rs`), a weight once. Blocks run in clusters of two,
//! which share what is the same of B. K is cut in ranges where there are few tiles, as by
//! `mma_folded.rs`. Tiles that the folded form cannot prove exact are put in a list on the device,
//! and the kernel by groups walks it.

use fp4_core::{Encoding, Error, Format, Product as Encodings, Unsupported};

use super::kernel::MatmulKernel;
use super::mma_folded::ranges;
use super::model::Rates;
use super::product::{Product, Scratch, is_long};
use super::{decode, model};
use crate::build::arguments::{
    Pointer, TILE_ROWS, WGMMA_CLUSTER, WGMMA_THREADS, WgmmaArgs, planes,
};
use crate::build::kernels::{
    FOLD, Kernel, QUANTIZE_FOLD, WGMMA_MXFP4, WGMMA_MXINT8_MXFP4, WGMMA_NVFP4,
};
use crate::device::error::unless_memory_is_short;
use crate::device::gpu::Gpu;
use crate::device::launch::{Grid, int};
use crate::operand::folded::block_bytes;

/// The one compute capability that has these instructions.
pub(super) const COMPUTE_CAPABILITY: i32 = 90;
/// Least rows of A for which this kernel is the choice: a tile, half empty below it. Not measured.
pub(super) const MIN_ROWS: usize = TILE_ROWS;

/// The kernel of a product and its tile; none for MXINT8 by NVFP4.
fn kernel(of: Encodings) -> Option<(&'static Kernel<WgmmaArgs>, [usize; 2])> {
    match (of.a, of.b) {
        (Encoding::MxInt8, Format::MxFp4) => Some((&WGMMA_MXINT8_MXFP4[0], [TILE_ROWS, TILE_ROWS])),
        (Encoding::MxInt8, Format::NvFp4) => None,
        (_, Format::MxFp4) => Some((&WGMMA_MXFP4[0], [TILE_ROWS, 2 * TILE_ROWS])),
        (_, Format::NvFp4) => Some((&WGMMA_NVFP4[0], [TILE_ROWS, TILE_ROWS])),
    }
}

/// Whether there is a kernel for these operands, on a device that has its instructions.
pub(super) fn exists(of: Encodings) -> bool {
    kernel(of).is_some()
}

/// Whether the device has these instructions, and their kernels can be had.
pub(super) fn available(gpu: &Gpu, of: Encodings) -> bool {
    gpu.info.compute_capability == COMPUTE_CAPABILITY
        && kernel(of).is_some_and(|(kernel, _)| gpu.has(kernel))
        && gpu.has(&FOLD[0])
        && gpu.has(&QUANTIZE_FOLD[0])
}

/// Whether operands of so many rows are multiplied here under `kernel`, if A has rows enough.
pub(super) fn takes(
    kernel: MatmulKernel,
    gpu: &Gpu,
    of: Encodings,
    [rows, k_pad]: [usize; 2],
) -> bool {
    // The grids are not too large.
    let fits = rows <= 16 * Grid::MAX_YZ && k_pad <= 128 * Grid::MAX_YZ;
    let wanted = match kernel {
        MatmulKernel::Wgmma => true,
        MatmulKernel::Auto => !is_long(of, k_pad),
        _ => false,
    };
    wanted && fits && available(gpu, of)
}

/// Queues the kernels; none of them, if there is no memory for what they need.
pub(super) fn queue(of: &Product<'_>, scratch: &mut Scratch) -> Result<(), Error> {
    let (encodings, [m, n], gpu) = (of.encodings()?, of.shape(), &*of.a.gpu);
    let Encodings { a, b } = encodings;
    let none = Unsupported::Encodings { a, b: b.into() };
    let (kernel, shape) = kernel(encodings).ok_or(none)?;
    let tiles = m.div_ceil(shape[0]) * n.div_ceil(shape[1]);
    scratch.forget_tiles();
    scratch.fold(of)?;
    scratch.reserve_left(gpu, tiles)?;
    let zeros = block_bytes(a)?.max(block_bytes(b.into())?);
    scratch.zeros.reserve_zeros(&gpu.stream, zeros)?;
    let [folded_a, folded_b] = scratch.folded(of)?;
    let mut args = WgmmaArgs {
        a: folded_a,
        b: folded_b,
        outputs: of.outputs,
        zeros: scratch.zeros.pointer(),
        left: scratch.left.pointer(),
        paths: of.paths,
        sums: Pointer::NULL,
        arrivals: Pointer::NULL,
        k_pad: int(of.a.k_pad)?,
        ranges: 1,
        range_slices: int(ranges(of.a.k_pad, 1)[0])?,
        unused: 0,
    };
    let products = planes(a)?;
    let wanted = model::wgmma_ranges(&Rates::of(gpu), products, [m, n, of.a.k_pad]);
    let [range_slices, count] = ranges(of.a.k_pad, wanted);
    if count > 1 {
        // Every launch leaves zeros. Two warpgroups of a block arrive.
        let sums = tiles * shape[0] * shape[1] * products * size_of::<i32>();
        let arrivals = 2 * tiles * size_of::<u32>();
        let made = (scratch.sums.reserve_zeros(&gpu.stream, sums))
            .and_then(|()| scratch.arrivals.reserve_zeros(&gpu.stream, arrivals));
        if unless_memory_is_short(made, "the sums of ranges of K")? {
            (args.sums, args.arrivals) = (scratch.sums.pointer(), scratch.arrivals.pointer());
            (args.ranges, args.range_slices) = (int(count)?, int(range_slices)?);
        }
    }
    // A cluster fills its multiprocessors and takes one pair of tiles after the other.
    let units = model::wgmma_pairs(m, n, shape[1]) * args.ranges as usize;
    let clusters = units.min(gpu.resident_clusters(kernel, WGMMA_CLUSTER, WGMMA_THREADS)?);
    let grid = Grid::row(WGMMA_CLUSTER * clusters, WGMMA_THREADS);
    // SAFETY: as in `naive::queue`; both operands are folded, the list has room for all tiles, and
    // there are zeros for the sums and the arrivals of more than one range.
    unsafe { gpu.launch(kernel, grid, &args)? };
    if !gpu.stream.gate.captures_here() {
        scratch.tiles = tiles;
    }
    decode::queue_left(of, scratch.left.pointer(), shape)
}
