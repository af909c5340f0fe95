//! The wgmma kernels, `matmul_wgmma_*.cu`, for compute capability 9.0: many rows of A.
//!
//! Both operands are folded to int8 first (`fold.rs`), a weight once. Blocks run in clusters of
//! two, which share what is the same of B. K is cut in ranges where there are few tiles, as by
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

/// Queues the kernels, with K cut in `forced` ranges unless 0; none of them, if there is no memory
/// for what they need.
pub(super) fn queue(of: &Product<'_>, forced: usize, scratch: &mut Scratch) -> Result<(), Error> {
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
    let wanted = match forced {
        0 => model::wgmma_ranges(&Rates::of(gpu), products, [m, n, of.a.k_pad]),
        forced => forced,
    };
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

#[cfg(all(test, feature = "emulated"))]
mod tests {
    use fp4_core::backend::Resident;
    use fp4_core::{FloatType, Matmul, PackedMatrix, PackedShape, Paths, reference};

    use super::*;
    use crate::build::arguments::{Outputs, float_type};
    use crate::device::buffer::Buffer;
    use crate::operand::packed::{CudaOperand, CudaWeight};
    use crate::ops::matmul::{PATHS_BYTES, paths_of};
    use crate::{Cuda, MatmulKernel};

    /// Random codes, under scales by tile of 128 rows, row in it, and group.
    fn matrix(
        encoding: Encoding,
        [rows, k]: [usize; 2],
        scale: impl Fn(usize, usize, usize) -> u8,
    ) -> PackedMatrix {
        let shape = PackedShape::encoded(encoding, rows, k).unwrap();
        let (groups, mut state) = (shape.row_groups(), 11u64);
        let codes = (0..shape.codes_len())
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            })
            .collect();
        let at = |i| (i / groups / 128, i / groups % 128, i % groups);
        let scales = (0..shape.scales_len()).map(at).map(|(tile, row, g)| scale(tile, row, g));
        PackedMatrix::new(shape, codes, scales.collect()).unwrap()
    }

    /// A product on the device, which may be queued again.
    struct Queued {
        a: CudaOperand,
        b: CudaWeight<PackedMatrix>,
        out: Buffer,
        paths: Buffer,
    }

    impl Queued {
        fn new(cuda: &Cuda, a: &PackedMatrix, b: &PackedMatrix) -> Self {
            let mut activation = cuda.empty_operand().unwrap();
            activation.import(a.view(), false).unwrap();
            let weight = cuda.prepare(b.clone()).unwrap();
            Queued { a: activation, b: weight, out: Buffer::default(), paths: Buffer::default() }
        }

        fn run(&mut self, forced: usize, scratch: &mut Scratch) -> (Vec<f32>, Paths) {
            self.clear();
            self.queue(forced, scratch).unwrap();
            self.result()
        }

        fn outputs(&self) -> usize {
            self.a.shape.rows() * self.b.operand.shape.rows()
        }

        fn clear(&mut self) {
            let (gpu, outputs) = (self.a.gpu.clone(), self.outputs());
            self.out.zero(&gpu.stream, 4 * outputs).unwrap();
            self.paths.zero(&gpu.stream, PATHS_BYTES).unwrap();
        }

        fn queue(&mut self, forced: usize, scratch: &mut Scratch) -> Result<(), Error> {
            let Queued { a, b, out, paths } = self;
            let to = Outputs {
                out: out.pointer(),
                row_scales: Pointer::NULL,
                bias: Pointer::NULL,
                alpha: 0.75,
                out_type: float_type(FloatType::F32),
            };
            let of = Product { a, b: &b.operand, outputs: to, paths: paths.pointer() };
            queue(&of, forced, scratch)
        }

        fn result(&self) -> (Vec<f32>, Paths) {
            let gpu = &self.a.gpu;
            let (mut got, mut counters) = (vec![0f32; self.outputs()], [0u8; PATHS_BYTES]);
            self.out.download(&gpu.stream, bytemuck::cast_slice_mut(&mut got)).unwrap();
            self.paths.download(&gpu.stream, &mut counters).unwrap();
            gpu.synchronize().unwrap();
            (got, paths_of(counters))
        }
    }

    #[test]
    fn a_plain_tile_is_taken_up_to_the_bound_and_left_past_it() {
        // The most whole slices whose steps a sum has room for (wgmma_plan.cuh); another step is in
        // one more, and a list does not hold so many. All groups but the first of a row are so far
        // above it that their digits are the largest: 96 and 96, 90 and 90, 64 (of -128) and 96.
        let (cuda, mut scratch) = (Cuda::open(0).unwrap(), Scratch::default());
        let cuda = cuda.with_matmul_kernel(MatmulKernel::Wgmma);
        let mx_int8 = Encodings { a: Encoding::MxInt8, b: Format::MxFp4 };
        let kinds = [
            (Encodings::of(Format::MxFp4), 232_960, 0x77, [117, 120], 9),
            (Encodings::of(Format::NvFp4), 265_088, 0x77, [0x08, 0x37], 2),
            (mx_int8, 349_440, 0x80, [117, 120], 9),
        ];
        let row = |encoding: Encoding, k: usize, code: u8, scales: [u8; 2]| {
            let shape = PackedShape::encoded(encoding, 1, k).unwrap();
            let scales = (0..shape.scales_len()).map(|group| scales[usize::from(group > 0)]);
            PackedMatrix::new(shape, vec![code; shape.codes_len()], scales.collect()).unwrap()
        };
        for (of, most, code, scales, ranges) in kinds {
            for (k, left) in [(most, 0), (most + 32, 1)] {
                let (a, b) = (row(of.a, k, code, scales), row(of.b.into(), k, 0xFF, scales));
                let mut expected = [0f32];
                reference::matmul(a.view(), b.view(), 0.75, (&mut expected[..]).into()).unwrap();
                let mut product = Queued::new(&cuda, &a, &b);
                // Of ranges each sum is smaller, that of all the same.
                for forced in [1, ranges].into_iter().take(2 - left) {
                    let case = format!("{of:?}, K = {k} in {forced} ranges");
                    let (got, paths) = product.run(forced, &mut scratch);
                    let bits = (got[0].to_bits(), got.len());
                    assert_eq!(bits, (expected[0].to_bits(), 1), "{case}");
                    let tiles = scratch.tiles_left(&product.a.gpu).unwrap();
                    assert_eq!((tiles, paths.planes), ((left, 1), 0), "{case}");
                }
            }
        }
    }

    #[test]
    fn a_recorded_product_in_ranges_and_others_leave_each_other_zeros() {
        let cuda = Cuda::open(0).unwrap().with_matmul_kernel(MatmulKernel::Wgmma);
        let (mut scratch, mut compared) = (Scratch::default(), 0);
        for format in Format::ALL {
            let near = if format == Format::MxFp4 { 120 } else { 0x38 };
            // The larger first: memory that a graph works on is not to grow.
            let mut products =
                [([300, 256, 512], 2), ([130, 200, 640], 3)].map(|(shape, forced)| {
                    let [m, n, k] = shape;
                    let [a, b] =
                        [m, n].map(|rows| matrix(format.into(), [rows, k], |_, _, _| near));
                    let mut expected = vec![0f32; m * n];
                    reference::matmul(a.view(), b.view(), 0.75, (&mut expected[..]).into())
                        .unwrap();
                    (Queued::new(&cuda, &a, &b), forced, expected)
                });
            let mut same = |(product, forced, expected): &(Queued, usize, Vec<f32>), case: &str| {
                let (got, paths) = product.result();
                let differ = got.iter().zip(expected).filter(|(g, e)| g.to_bits() != e.to_bits());
                assert_eq!(differ.count(), 0, "{format} in {forced} ranges, {case}");
                assert_eq!(paths.narrow, got.len() as u64, "{format} in {forced} ranges, {case}");
                compared += got.len();
            };
            let graphs = products.each_mut().map(|each| {
                each.0.run(each.1, &mut scratch);
                cuda.capture(|| each.0.queue(each.1, &mut scratch)).unwrap()
            });
            for round in 0..2 {
                for (graph, each) in graphs.iter().zip(&mut products) {
                    each.0.clear();
                    graph.replay().unwrap();
                    same(each, &format!("replay {round}"));
                }
                for each in &mut products {
                    each.0.run(each.1, &mut scratch);
                    same(each, &format!("eager, after replay {round}"));
                }
            }
        }
        println!("recorded ranges of K: {compared} outputs compared, 0 differ");
        assert_eq!(compared, 2 * 2 * 2 * (300 * 256 + 130 * 200));
    }

    #[test]
    fn ranges_of_k_change_neither_bits_nor_paths() {
        let cuda = Cuda::open(0).unwrap().with_matmul_kernel(MatmulKernel::Wgmma);
        let (mut scratch, mut compared) = (Scratch::default(), 0);
        let mx_int8 = Encodings { a: Encoding::MxInt8, b: Format::MxFp4 };
        for of in [Encodings::of(Format::MxFp4), Encodings::of(Format::NvFp4), mx_int8] {
            let (m, n, k) = (5 * 128 - 50, 200, 5 * 128);
            let e8m0 = of.b == Format::MxFp4;
            let (near, far) = if e8m0 { (120, 126) } else { (0x38, 0x78) };
            let slice = 128 / of.a.group().get();
            // Two plain tiles; one of which slice 3 has the higher level and nothing else, and of
            // which NVFP4's slice 1 meets zeros; one that is left; a plain one without a mate.
            let a = matrix(of.a, [m, k], |tile, row, group| match tile {
                2 if group / slice == 3 => far,
                3 => [near, far, if e8m0 { 150 } else { 0x08 }][(row + group) % 3],
                _ => near,
            });
            let b = matrix(of.b.into(), [n, k], |_, _, group| match group / slice {
                1 if !e8m0 => 0,
                _ => near,
            });
            let mut expected = vec![0f32; m * n];
            reference::matmul(a.view(), b.view(), 0.75, (&mut expected[..]).into()).unwrap();

            let mut product = Queued::new(&cuda, &a, &b);
            let mut counted = None;
            for forced in [1, 2, 3, 5, 9, 1] {
                let (got, paths) = product.run(forced, &mut scratch);
                let differ = got.iter().zip(&expected).filter(|(g, e)| g.to_bits() != e.to_bits());
                assert_eq!(differ.count(), 0, "{of:?} in {forced} ranges");
                assert_eq!(*counted.get_or_insert(paths), paths, "{of:?} in {forced} ranges");
                assert!(paths.planes >= 128 * n as u64 && paths.narrow > 0, "{paths:?}");
                let tiles = 5 * n.div_ceil(kernel(of).unwrap().1[1]);
                assert_eq!(
                    scratch.tiles_left(&product.a.gpu).unwrap(),
                    (tiles / 5, tiles),
                    "{of:?}"
                );
                compared += got.len();
            }
        }
        println!("ranges of K: {compared} outputs compared, 0 differ");
        assert!(compared > 0);
    }
}
