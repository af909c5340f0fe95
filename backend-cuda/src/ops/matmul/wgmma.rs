//! The wgmma kernels, `matmul_wgmma_*.cu`, for compute capability 9.0: many rows of A.
//!
//! Both operands are folded to int8 first (`fold.rs`), a weight once. Tiles that the folded form
//! cannot prove exact are put in a list on the device, and the kernel by groups walks it.

use fp4_core::{Encoding, Error, Format, Product as Encodings, Unsupported};

use super::decode;
use super::kernel::MatmulKernel;
use super::product::{Product, Scratch, is_long};
use crate::build::arguments::{TILE_ROWS, WGMMA_THREADS, WgmmaArgs};
use crate::build::kernels::{
    FOLD, Kernel, QUANTIZE_FOLD, WGMMA_MXFP4, WGMMA_MXINT8_MXFP4, WGMMA_NVFP4,
};
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
    let (encodings, [m, n], stream) = (of.encodings()?, of.shape(), &of.a.gpu.stream);
    let Encodings { a, b } = encodings;
    let none = Unsupported::Encodings { a, b: b.into() };
    let (kernel, shape) = kernel(encodings).ok_or(none)?;
    let tiles = m.div_ceil(shape[0]) * n.div_ceil(shape[1]);
    scratch.forget_tiles();
    for (operand, spare) in [(of.a, &mut scratch.a), (of.b, &mut scratch.b)] {
        if !operand.folded.ready() {
            spare.fill(&operand.shape_to_fold()?)?;
        }
    }
    scratch.left.reserve(stream, 4 * (1 + tiles))?;
    scratch.left.zero(stream, 4)?;
    let zeros = block_bytes(a)?.max(block_bytes(b.into())?);
    scratch.zeros.reserve_zeros(stream, zeros)?;
    let [a, b] = [(of.a, &scratch.a), (of.b, &scratch.b)].map(|(operand, spare)| {
        let folded = if operand.folded.ready() { &operand.folded } else { spare };
        folded.operand(operand.shape.rows(), operand.meta.pointer())
    });
    let args = WgmmaArgs {
        a: a?,
        b: b?,
        outputs: of.outputs,
        zeros: scratch.zeros.pointer(),
        left: scratch.left.pointer(),
        paths: of.paths,
        k_pad: int(of.a.k_pad)?,
        unused: 0,
    };
    // A block fills a multiprocessor and takes one tile after the other.
    let grid = Grid::row(tiles.min(of.a.gpu.processors), WGMMA_THREADS);
    // SAFETY: as in `naive::queue`; both operands are folded, and the list has room for all tiles.
    unsafe { of.a.gpu.launch(kernel, grid, &args)? };
    if !stream.gate.captures_here() {
        scratch.tiles = tiles;
    }
    decode::queue_left(of, scratch.left.pointer(), shape)
}
