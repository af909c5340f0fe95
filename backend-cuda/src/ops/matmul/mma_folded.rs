//! The mma.sync kernels on folded operands, `matmul_mma_folded.cu`, for every device.
//!
//! Both operands are folded to int8 first (`fold.rs`), a weight once. K is cut in ranges where
//! there are few tiles: partial sums are exact integers, so the bits do not depend on it. Tiles
//! that the folded form cannot prove exact join a list on the device, which `matmul_mma.cu` walks.

use fp4_core::{Encoding, Error, Format, Product as Encodings, Unsupported};

use super::kernel::MatmulKernel;
use super::model::Rates;
use super::product::{Product, Scratch, is_long};
use super::{mma, model};
use crate::build::arguments::{
    FOLDED_COLS, FOLDED_FEW_ROWS, FOLDED_ROWS, FoldedArgs, GroupedArgs, MXFP4_PLANES,
    MXINT8_PLANES, NVFP4_PLANES, Pointer, SLICE_K,
};
use crate::build::kernels::{
    FOLD, FOLDED_FEW_MXFP4, FOLDED_FEW_MXINT8_MXFP4, FOLDED_FEW_NVFP4, FOLDED_GROUPED_MXFP4,
    FOLDED_GROUPED_MXINT8_MXFP4, FOLDED_GROUPED_NVFP4, FOLDED_MXFP4, FOLDED_MXINT8_MXFP4,
    FOLDED_NVFP4, Kernel, QUANTIZE_FOLD,
};
use crate::device::error::unless_memory_is_short;
use crate::device::gpu::Gpu;
use crate::device::launch::{Grid, int};

/// The kernels of a product.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernels {
    few: &'static Kernel<FoldedArgs>,
    many: &'static Kernel<FoldedArgs>,
    /// For several products, in tiles of FOLDED_FEW_ROWS.
    pub(super) grouped: &'static Kernel<GroupedArgs>,
    /// Int8 products for one of the elements, each with sums of its own.
    pub(super) sums: usize,
}

/// The kernels of a product; none for MXINT8 by NVFP4.
pub(super) fn kernels(of: Encodings) -> Option<Kernels> {
    let ([few], [many], [grouped], sums) = match (of.a, of.b) {
        (Encoding::MxInt8, Format::NvFp4) => return None,
        (Encoding::MxInt8, Format::MxFp4) => (
            &FOLDED_FEW_MXINT8_MXFP4,
            &FOLDED_MXINT8_MXFP4,
            &FOLDED_GROUPED_MXINT8_MXFP4,
            MXINT8_PLANES,
        ),
        (_, Format::MxFp4) => {
            (&FOLDED_FEW_MXFP4, &FOLDED_MXFP4, &FOLDED_GROUPED_MXFP4, MXFP4_PLANES)
        }
        (_, Format::NvFp4) => {
            (&FOLDED_FEW_NVFP4, &FOLDED_NVFP4, &FOLDED_GROUPED_NVFP4, NVFP4_PLANES)
        }
    };
    Some(Kernels { few, many, grouped, sums })
}

/// Whether the kernels can be had.
pub(super) fn available(gpu: &Gpu, of: Encodings) -> bool {
    kernels(of).is_some_and(|kernels| gpu.has(kernels.many))
        && gpu.has(&FOLD[0])
        && gpu.has(&QUANTIZE_FOLD[0])
}

/// Loads the kernels for a product, as [`decode::load`](super::decode::load).
pub(super) fn load(of: &Product<'_>) -> Result<(), Error> {
    let gpu = &*of.a.gpu;
    if let Some(kernels) = kernels(of.encodings()?) {
        gpu.function(if tile_rows(of.shape()[0]) == FOLDED_ROWS {
            kernels.many
        } else {
            kernels.few
        })?;
    }
    mma::load(of)
}

/// Whether operands of so many rows can be multiplied here under `kernel`.
pub(super) fn takes(
    kernel: MatmulKernel,
    gpu: &Gpu,
    of: Encodings,
    [rows, k_pad]: [usize; 2],
) -> bool {
    // The grids that fold are not too large.
    let fits = rows <= 16 * Grid::MAX_YZ && k_pad <= 128 * Grid::MAX_YZ && !is_long(of, k_pad);
    let wanted = matches!(kernel, MatmulKernel::MmaFolded { .. } | MatmulKernel::Auto);
    wanted && fits && available(gpu, of)
}

/// Rows of a tile for so many rows of A.
pub(super) fn tile_rows(m: usize) -> usize {
    if m <= FOLDED_FEW_ROWS { FOLDED_FEW_ROWS } else { FOLDED_ROWS }
}

/// How K is cut: slices of a range, and the number of ranges, none of them empty; as many as
/// `wanted`, if there is K enough.
pub(super) fn ranges(k_pad: usize, wanted: usize) -> [usize; 2] {
    let slices = k_pad.div_ceil(SLICE_K).max(1);
    let range = slices.div_ceil(wanted.clamp(1, slices));
    [range, slices.div_ceil(range)]
}

/// The arguments of a product whose operands are folded, in one range.
fn arguments(of: &Product<'_>, scratch: &Scratch) -> Result<FoldedArgs, Error> {
    let [a, b] = scratch.folded(of)?;
    Ok(FoldedArgs {
        a,
        b,
        outputs: of.outputs,
        sums: Pointer::NULL,
        arrivals: Pointer::NULL,
        left: scratch.left.pointer(),
        paths: of.paths,
        k_pad: int(of.a.k_pad)?,
        ranges: 1,
        range_slices: int(ranges(of.a.k_pad, 1)[0])?,
        first_tile: 0,
    })
}

/// Tiles of a product, of so many rows.
fn tiles(of: &Product<'_>, rows: usize) -> usize {
    let [m, n] = of.shape();
    m.div_ceil(rows) * n.div_ceil(FOLDED_COLS)
}

/// What a product whose operands are folded is in a launch of several, by the kernels for few rows:
/// its arguments, and its number of tiles; `first_tile` is to be set.
pub(super) fn member(of: &Product<'_>, scratch: &Scratch) -> Result<(FoldedArgs, usize), Error> {
    Ok((arguments(of, scratch)?, grouped_tiles(of)))
}

/// Its number of tiles.
pub(super) fn grouped_tiles(of: &Product<'_>) -> usize {
    tiles(of, FOLDED_FEW_ROWS)
}

/// Queues the kernels, with K cut in `forced` ranges unless 0; none of them, if there is no memory
/// for what they need. K is not [`is_long`].
pub(super) fn queue(of: &Product<'_>, forced: usize, scratch: &mut Scratch) -> Result<(), Error> {
    let (encodings, [m, n], gpu) = (of.encodings()?, of.shape(), &*of.a.gpu);
    let Encodings { a, b } = encodings;
    let kernels = kernels(encodings).ok_or(Unsupported::Encodings { a, b: b.into() })?;
    let (rows, k_pad) = (tile_rows(m), of.a.k_pad);
    let tiles = tiles(of, rows);
    scratch.forget_tiles();
    scratch.fold(of)?;
    scratch.reserve_left(gpu, tiles)?;
    let mut args = arguments(of, scratch)?;
    let wanted = match forced {
        0 => model::ranges(&Rates::of(gpu), kernels.sums, [m, n, k_pad]),
        forced => forced,
    };
    let [range_slices, count] = ranges(k_pad, wanted);
    if count > 1 {
        // Every launch leaves zeros.
        let sums = tiles * rows * FOLDED_COLS * kernels.sums * size_of::<i32>();
        let made = (scratch.sums.reserve_zeros(&gpu.stream, sums))
            .and_then(|()| scratch.arrivals.reserve_zeros(&gpu.stream, tiles * 4));
        if unless_memory_is_short(made, "the sums of ranges of K")? {
            (args.sums, args.arrivals) = (scratch.sums.pointer(), scratch.arrivals.pointer());
            (args.ranges, args.range_slices) = (int(count)?, int(range_slices)?);
        }
    }
    let kernel = if rows == FOLDED_FEW_ROWS { kernels.few } else { kernels.many };
    let grid = Grid::row(tiles * args.ranges as usize, 2 * rows);
    // SAFETY: as in `naive::queue`; both operands are folded, there is room in the list for all
    // tiles, and there are zeros for the sums and the arrivals of more than one range.
    unsafe { gpu.launch(kernel, grid, &args)? };
    mma::queue_left(of, args.left, rows, tiles)?;
    if !gpu.stream.gate.captures_here() {
        scratch.tiles = tiles;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_k_and_none_is_empty() {
        assert_eq!(ranges(8192, 1), [64, 1]);
        assert_eq!(ranges(8192, 5), [13, 5]);
        assert_eq!(ranges(0, 3), [1, 1]);
        for (k_pad, wanted) in [(128, 1), (128, 9), (1152, 4), (1152, 7), (14336, 33)] {
            let [slices, count] = ranges(k_pad, wanted);
            assert!(
                slices * SLICE_K * count >= k_pad && count <= wanted.max(1),
                "{k_pad} {wanted}"
            );
            assert!(slices * SLICE_K * (count - 1) < k_pad, "{k_pad} {wanted}: an empty range");
        }
    }
}
