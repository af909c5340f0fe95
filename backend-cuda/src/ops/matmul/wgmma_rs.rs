//! The wgmma kernel on packed weights, `matmul_wgmma_rs_*.cu`, for compute capability 9.0: 17 to
//! 128 rows of A.
//!
//! Weights are MXFP4 as they are packed, and are read at 4 bits; A is folded to int8 first
//! (`fold.rs`). K is cut in ranges, whose partial sums are exact integers, so the bits do not
//! depend on it. Tiles with a weight row that spans more than four exponents, or that the folded A
//! cannot prove exact, are put in a list on the device, and the kernel by groups walks it.

use fp4_core::{Encoding, Error, Format, Product as Encodings, Unsupported};

use super::kernel::MatmulKernel;
use super::product::{Product, Scratch};
use super::{decode, wgmma};
use crate::build::arguments::{
    MXFP4_PLANES, MXINT8_PLANES, Pointer, RS_RANGE_SLICES, RS_ROWS, RS_SPREAD, RS_THREADS, RowMeta,
    SLICE_K, TILE_ROWS, WgmmaRsArgs,
};
use crate::build::kernels::{
    FOLD, Kernel, QUANTIZE_FOLD, RS_MXFP4_32, RS_MXFP4_64, RS_MXFP4_128, RS_MXINT8_MXFP4_32,
    RS_MXINT8_MXFP4_64, RS_MXINT8_MXFP4_128,
};
use crate::device::error::unless_memory_is_short;
use crate::device::gpu::Gpu;
use crate::device::launch::{Grid, int};
use crate::operand::packed::CudaOperand;

/// Most rows of A for which this kernel is the choice: a tile of the folded form.
pub(super) const MAX_ROWS: usize = TILE_ROWS;
/// Rows of A of a block, of each of a product's kernels.
const TILES: [usize; 3] = [32, 64, 128];
/// What a block costs beside its slices, in slices, about: filling its rings.
const FILL_SLICES: usize = 2;
/// Largest digits of A (`fold.cuh`), of MXFP4 and of MXINT8.
const LARGEST: [usize; 2] = [96, 64];

/// What adding its sums to memory costs a block, in slices: each of a thread's takes
/// [`model::WGMMA_MERGE`], 48 clocks, and a slice 480 to 1500.
fn merge_slices(rows: usize, sums: usize) -> usize {
    (rows * sums).div_ceil(32).min(4)
}

/// Most k of which a plain tile of A proves its sums exact: of more every tile is left.
fn longest_k(of: Encodings) -> usize {
    let largest = LARGEST[usize::from(of.a == Encoding::MxInt8)];
    (i32::MAX as usize / (32 * largest * (12 << RS_SPREAD))) * 32
}

/// Whether there is a kernel for these operands.
pub(super) fn exists(of: Encodings) -> bool {
    kernels(of).is_some()
}

/// The kernels of a product, and its int8 products for one of the elements.
fn kernels(of: Encodings) -> Option<([&'static Kernel<WgmmaRsArgs>; 3], usize)> {
    match (of.a, of.b) {
        (_, Format::NvFp4) => None,
        (Encoding::MxInt8, Format::MxFp4) => {
            let kernels = [&RS_MXINT8_MXFP4_32, &RS_MXINT8_MXFP4_64, &RS_MXINT8_MXFP4_128];
            Some((kernels.map(|[kernel]| kernel), MXINT8_PLANES))
        }
        (_, Format::MxFp4) => {
            let kernels = [&RS_MXFP4_32, &RS_MXFP4_64, &RS_MXFP4_128];
            Some((kernels.map(|[kernel]| kernel), MXFP4_PLANES))
        }
    }
}

/// Which of the kernels for so many rows of A.
fn tile(m: usize) -> usize {
    TILES.iter().position(|&rows| m <= rows).unwrap_or(TILES.len() - 1)
}

/// Rows of A of a block for so many.
pub(super) fn tile_rows(m: usize) -> usize {
    TILES[tile(m)]
}

/// Whether the device has these instructions, and their kernels can be had.
pub(super) fn available(gpu: &Gpu, of: Encodings) -> bool {
    gpu.info.compute_capability == wgmma::COMPUTE_CAPABILITY
        && kernels(of).is_some_and(|(kernels, _)| gpu.has(kernels[0]))
        && gpu.has(&FOLD[0])
        && gpu.has(&QUANTIZE_FOLD[0])
}

/// Whether A of so many rows is multiplied here under `kernel`.
pub(super) fn takes(
    kernel: MatmulKernel,
    gpu: &Gpu,
    of: Encodings,
    [m, k_pad]: [usize; 2],
) -> bool {
    // The grids, of this kernel and of those that fold, are not too large.
    let fits = m <= 16 * Grid::MAX_YZ && k_pad <= 128 * Grid::MAX_YZ;
    let wanted = match kernel {
        MatmulKernel::WgmmaRs { .. } => true,
        MatmulKernel::Auto => m > decode::MAX_ROWS && m <= MAX_ROWS && k_pad <= longest_k(of),
        _ => false,
    };
    wanted && fits && available(gpu, of)
}

/// How many tiles of rows of a weight this kernel leaves to another, because a row of theirs spans
/// too many exponents; `None` if it takes no such weight. This waits for the device.
pub(crate) fn wide_tiles(weight: &CudaOperand) -> Result<Option<usize>, Error> {
    // Whether the kernel can be had is asked where there are rows for it: it may be compiled then.
    let hopper = weight.gpu.info.compute_capability == wgmma::COMPUTE_CAPABILITY;
    if !hopper || !weight.shape.format().map(Encodings::of).is_some_and(exists) {
        return Ok(None);
    }
    let mut words = vec![[0i32; size_of::<RowMeta>() / size_of::<i32>()]; weight.shape.rows()];
    weight.meta.download(&weight.gpu.stream, bytemuck::cast_slice_mut(&mut words))?;
    weight.gpu.synchronize()?;
    let wide =
        |tile: &&[[i32; 4]]| tile.iter().any(|&[low, high, ..]| high - low > RS_SPREAD as i32);
    Ok(Some(words.chunks(RS_ROWS).filter(wide).count()))
}

/// How K is cut: slices of a range, and the number of ranges, none of them empty; as many as
/// `forced`, unless 0, and no range longer than the kernel takes. `blocks` is how many a range has,
/// and `slots` how many the device runs at a time: the cut of least waves times slices of a block,
/// as [`decode`]'s, where to be one of several costs a block `merge` slices more (bound, not
/// measured).
fn ranges(k_pad: usize, blocks: usize, slots: usize, merge: usize, forced: usize) -> [usize; 2] {
    let slices = k_pad.div_ceil(SLICE_K).max(1);
    let least = slices.div_ceil(RS_RANGE_SLICES);
    let cut = |count: usize| {
        let range = slices.div_ceil(count);
        [range, slices.div_ceil(range)]
    };
    if forced > 0 {
        return cut(forced.clamp(least, slices));
    }
    // A range of fewer than four slices would spend its time on the merge.
    (least..=(slices / 4).max(least))
        .map(cut)
        .min_by_key(|&[range, count]| {
            let merge = if count > 1 { merge } else { 0 };
            ((blocks * count).div_ceil(slots.max(1)) * (range + FILL_SLICES + merge), count)
        })
        .unwrap_or_else(|| cut(least))
}

/// Loads the kernels for a product, as [`decode::load`].
pub(super) fn load(of: &Product<'_>) -> Result<(), Error> {
    let encodings = of.encodings()?;
    if let Some((kernels, _)) = kernels(encodings).filter(|_| available(&of.a.gpu, encodings)) {
        of.a.gpu.function(kernels[tile(of.shape()[0])])?;
    }
    decode::load(of, true)
}

/// Queues the kernels, with K cut in `forced` ranges unless 0; none of them, if there is no memory
/// for what they need.
pub(super) fn queue(of: &Product<'_>, forced: usize, scratch: &mut Scratch) -> Result<(), Error> {
    let (encodings, [m, n], gpu, k_pad) = (of.encodings()?, of.shape(), &*of.a.gpu, of.a.k_pad);
    let none = Unsupported::Encodings { a: encodings.a, b: encodings.b.into() };
    let (kernels, sums) = kernels(encodings).ok_or(none)?;
    let (kernel, rows) = (kernels[tile(m)], tile_rows(m));
    let [across, down] = [n.div_ceil(RS_ROWS), m.div_ceil(rows)];
    let tiles = across * down;
    scratch.forget_tiles();
    let a = scratch.folded_a(of.a)?;
    scratch.reserve_left(gpu, tiles)?;
    let slots = gpu.processors * gpu.resident_blocks(kernel, RS_THREADS)?;
    let merge = merge_slices(rows, sums);
    let [mut range_slices, mut count] = ranges(k_pad, tiles, slots, merge, forced);
    let (mut merged, mut arrivals) = (Pointer::NULL, Pointer::NULL);
    if count > 1 {
        // Every launch leaves zeros.
        let bytes = tiles * rows * RS_ROWS * sums * size_of::<i32>();
        let made = (scratch.sums.reserve_zeros(&gpu.stream, bytes))
            .and_then(|()| scratch.arrivals.reserve_zeros(&gpu.stream, tiles * 4));
        let [slices, least] = ranges(k_pad, tiles, slots, merge, 1);
        if least > 1 {
            made?;
            (merged, arrivals) = (scratch.sums.pointer(), scratch.arrivals.pointer());
        } else if unless_memory_is_short(made, "the sums of ranges of K")? {
            (merged, arrivals) = (scratch.sums.pointer(), scratch.arrivals.pointer());
        } else {
            (range_slices, count) = (slices, 1);
        }
    }
    let args = WgmmaRsArgs {
        a,
        b: of.b.packed(),
        outputs: of.outputs,
        sums: merged,
        arrivals,
        left: scratch.left.pointer(),
        paths: of.paths,
        n: int(n)?,
        k_pad: int(k_pad)?,
        range_slices: int(range_slices)?,
        unused: 0,
    };
    let grid = Grid { blocks: [across, count, down], threads: RS_THREADS };
    // SAFETY: as in `naive::queue`; A is folded, there is room in the list for all tiles, and there
    // are zeros for the sums and the arrivals of more than one range.
    unsafe { gpu.launch(kernel, grid, &args)? };
    if !gpu.stream.gate.captures_here() {
        scratch.tiles = tiles;
    }
    decode::queue_left(of, args.left, [rows, RS_ROWS])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_k_fill_the_device_and_are_short_enough() {
        // 64 blocks, two on each of 132 processors: four ranges make 256 of 264.
        assert_eq!(ranges(8192, 64, 264, 4, 0), [16, 4]);
        assert_eq!(ranges(128, 1, 264, 4, 0), [1, 1]);
        assert_eq!(ranges(0, 1, 264, 4, 0), [1, 1]);
        // As long as a range may be, and one more.
        assert_eq!(ranges(128 * RS_RANGE_SLICES, 1000, 1, 4, 0), [RS_RANGE_SLICES, 1]);
        assert_eq!(ranges(128 * (RS_RANGE_SLICES + 1), 1000, 1, 4, 1)[1], 2);
        for (k_pad, forced) in [(128, 9), (1152, 4), (1152, 7), (14336, 1), (65536, 3), (65536, 0)]
        {
            let [slices, count] = ranges(k_pad, 64, 264, 4, forced);
            assert!(slices <= RS_RANGE_SLICES && slices * SLICE_K * count >= k_pad, "{k_pad}");
            assert!(slices * SLICE_K * (count - 1) < k_pad, "{k_pad} {forced}: an empty range");
        }
    }

    #[test]
    fn the_longest_k_is_that_of_the_bound_in_the_kernel() {
        let of = [Encoding::MxFp4, Encoding::MxInt8].map(|a| Encodings { a, b: Format::MxFp4 });
        assert_eq!(of.map(longest_k), [7281 * 32, 10_922 * 32]);
    }

    #[test]
    fn as_many_rows_as_fit_the_smallest_block() {
        let rows = [1, 32, 33, 64, 65, 128, 129, 1000].map(tile_rows);
        assert_eq!(rows, [32, 32, 64, 64, 128, 128, 128, 128]);
    }
}
