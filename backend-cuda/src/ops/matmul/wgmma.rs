//! The wgmma kernels, `matmul_wgmma_*.cu`, for compute capability 9.0: many rows of A.
//!
//! Both operands are folded to int8 first (`fold.rs`), a weight once. Tiles that the folded form
//! cannot prove exact are marked on the device and computed by the kernel by groups.

use fp4_core::{Error, Format, PackedShape};

use super::decode::{self, Tiles};
use super::kernel::MatmulKernel;
use super::product::{Outputs, Scratch, is_long};
use crate::build::sources::{FOLD, MATMUL_WGMMA_MXFP4, MATMUL_WGMMA_NVFP4, QUANTIZE_FOLD};
use crate::device::gpu::Gpu;
use crate::device::launch::{Arg, Grid, float_type, int};
use crate::device::module::Kernel;
use crate::operand::folded::{TILE_ROWS, block_bytes};
use crate::operand::packed::CudaOperand;

/// The one compute capability that has these instructions.
pub(super) const COMPUTE_CAPABILITY: i32 = 90;
/// Least rows of A for which this kernel is the choice: a tile, half empty below it. Not measured.
pub(super) const MIN_ROWS: usize = TILE_ROWS;
/// The same where the weight is yet to be folded, by arithmetic: reading and writing it costs what
/// the faster kernel saves on about 200 rows. Not measured.
pub(super) const MIN_ROWS_UNFOLDED: usize = 256;
/// Dynamic shared memory of a block (`WGMMA_SHARED`).
const SHARED: u32 = 4 * 49_152 + 1280;

/// The kernel of a format and its tile.
fn kernel(format: Format) -> (Kernel, [usize; 2]) {
    match format {
        Format::MxFp4 => ((&MATMUL_WGMMA_MXFP4, "matmul_wgmma_mxfp4"), [TILE_ROWS, 2 * TILE_ROWS]),
        Format::NvFp4 => ((&MATMUL_WGMMA_NVFP4, "matmul_wgmma_nvfp4"), [TILE_ROWS, TILE_ROWS]),
    }
}

/// Whether the device has these instructions, and their kernels can be had.
pub(super) fn available(gpu: &Gpu, format: Format) -> bool {
    gpu.info.compute_capability == COMPUTE_CAPABILITY
        && gpu.has(kernel(format).0)
        && gpu.has((&FOLD, "fold_mxfp4"))
        && gpu.has((&QUANTIZE_FOLD, "quantize_fold_f32"))
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
pub(super) fn queue(
    a: &CudaOperand,
    b: &CudaOperand,
    outputs: &Outputs<'_>,
    scratch: &mut Scratch,
) -> Result<(), Error> {
    let format = a.shape.expect_product(&b.shape)?;
    let (m, n) = (a.shape.rows(), b.shape.rows());
    let (kernel, shape) = kernel(format);
    let tiles = m.div_ceil(shape[0]) * n.div_ceil(shape[1]);
    let stream = &a.gpu.stream;
    scratch.forget_tiles();
    for (operand, spare) in [(a, &mut scratch.a), (b, &mut scratch.b)] {
        if !operand.folded.ready() {
            spare.fill(&operand.shape_to_fold()?)?;
        }
    }
    scratch.todo.reserve(stream, tiles)?;
    scratch.zeros.reserve_zeros(stream, block_bytes(format))?;
    let mut args = Vec::with_capacity(21);
    for (operand, spare) in [(a, &scratch.a), (b, &scratch.b)] {
        let folded = if operand.folded.ready() { &operand.folded } else { spare };
        args.extend(folded.to(operand.meta.address())?);
    }
    args.extend([
        Arg::Pointer(scratch.zeros.address()),
        Arg::Pointer(outputs.to),
        float_type(outputs.float_type),
        Arg::F32(outputs.alpha),
        Arg::I32(int(m)?),
        Arg::I32(int(n)?),
        Arg::I32(int(a.k_pad)?),
        Arg::Pointer(scratch.todo.address()),
        Arg::Pointer(outputs.paths.address()),
    ]);
    let grid = Grid { blocks: [tiles, 1, 1], threads: 384, shared: SHARED };
    a.gpu.launch_grid(kernel, grid, &args)?;
    if !stream.gate.captures_here() {
        scratch.tiles = tiles;
    }
    let left = Tiles::Marked { todo: scratch.todo.address(), shape };
    decode::queue(a, b, outputs, left, 0, scratch)
}
