//! The wgmma kernels, `matmul_wgmma_*.cu`, for compute capability 9.0: many rows of A.
//!
//! Both operands are folded to int8 first (`fold.rs`), a weight once. Tiles that the folded form
//! cannot prove exact are marked on the device and computed by the kernel by groups.

use fp4_core::{Error, Format, PackedShape};

use super::decode::{self, Tiles};
use super::kernel::MatmulKernel;
use super::product::{Product, Scratch, is_long};
use crate::build::arguments::{TILE_ROWS, WGMMA_THREADS, WgmmaArgs};
use crate::build::kernels::{FOLD, Kernel, QUANTIZE_FOLD, WGMMA_MXFP4, WGMMA_NVFP4};
use crate::device::gpu::Gpu;
use crate::device::launch::{Grid, int};
use crate::operand::folded::block_bytes;

/// The one compute capability that has these instructions.
pub(super) const COMPUTE_CAPABILITY: i32 = 90;
/// Least rows of A for which this kernel is the choice: a tile, half empty below it. Not measured.
pub(super) const MIN_ROWS: usize = TILE_ROWS;
/// The same where the weight is yet to be folded, by arithmetic: reading and writing it costs what
/// the faster kernel saves on about 200 rows. Not measured.
pub(super) const MIN_ROWS_UNFOLDED: usize = 256;
/// The kernel of a format and its tile.
fn kernel(format: Format) -> (&'static Kernel<WgmmaArgs>, [usize; 2]) {
    match format {
        Format::MxFp4 => (&WGMMA_MXFP4[0], [TILE_ROWS, 2 * TILE_ROWS]),
        Format::NvFp4 => (&WGMMA_NVFP4[0], [TILE_ROWS, TILE_ROWS]),
    }
}

/// Whether the device has these instructions, and their kernels can be had.
pub(super) fn available(gpu: &Gpu, format: Format) -> bool {
    gpu.info.compute_capability == COMPUTE_CAPABILITY
        && gpu.has(kernel(format).0)
        && gpu.has(&FOLD[0])
        && gpu.has(&QUANTIZE_FOLD[0])
}

/// Whether operands of this shape are multiplied here under `kernel`, if A has rows enough.
pub(super) fn takes(kernel: MatmulKernel, gpu: &Gpu, shape: PackedShape, k_pad: usize) -> bool {
    let Some(format) = shape.format() else { return false };
    // The grids are not too large.
    let fits = shape.rows() <= 16 * Grid::MAX_YZ && k_pad <= 128 * Grid::MAX_YZ;
    let wanted = match kernel {
        MatmulKernel::Wgmma => true,
        MatmulKernel::Auto => !is_long(format, k_pad / format.group().get()),
        _ => false,
    };
    wanted && fits && available(gpu, format)
}

/// Queues the kernels; none of them, if there is no memory for what they need.
pub(super) fn queue(of: &Product<'_>, scratch: &mut Scratch) -> Result<(), Error> {
    let (format, [m, n], stream) = (of.format()?, of.shape(), &of.a.gpu.stream);
    let (kernel, shape) = kernel(format);
    let tiles = m.div_ceil(shape[0]) * n.div_ceil(shape[1]);
    scratch.forget_tiles();
    for (operand, spare) in [(of.a, &mut scratch.a), (of.b, &mut scratch.b)] {
        if !operand.folded.ready() {
            spare.fill(&operand.shape_to_fold()?)?;
        }
    }
    scratch.todo.reserve(stream, tiles)?;
    scratch.zeros.reserve_zeros(stream, block_bytes(format))?;
    let [a, b] = [(of.a, &scratch.a), (of.b, &scratch.b)].map(|(operand, spare)| {
        let folded = if operand.folded.ready() { &operand.folded } else { spare };
        folded.operand(operand.shape.rows(), operand.meta.pointer())
    });
    let args = WgmmaArgs {
        a: a?,
        b: b?,
        outputs: of.outputs,
        zeros: scratch.zeros.pointer(),
        todo: scratch.todo.pointer(),
        paths: of.paths,
        k_pad: int(of.a.k_pad)?,
        unused: 0,
    };
    // SAFETY: as in `naive::queue`; both operands are folded, and there is a mark for each tile.
    unsafe { of.a.gpu.launch(kernel, Grid::row(tiles, WGMMA_THREADS), &args)? };
    if !stream.gate.captures_here() {
        scratch.tiles = tiles;
    }
    decode::queue(of, Tiles::Marked { todo: scratch.todo.pointer(), shape }, 0, scratch)
}
