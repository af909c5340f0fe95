//! What the kernels of a product share: the product, their buffers, and a bound.

use fp4_core::{Encoding, Error, Format, Paths, Product as Encodings};

use crate::build::arguments::{self, FoldedOperand, NVFP4_INT64_GROUPS, Outputs, Pointer};
use crate::build::kernels::Kernel;
use crate::device::buffer::Buffer;
use crate::device::gpu::Gpu;
use crate::operand::folded::Folded;
use crate::operand::packed::CudaOperand;

/// A product to queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Product<'a> {
    pub(crate) a: &'a CudaOperand,
    pub(crate) b: &'a CudaOperand,
    /// Where the outputs go, with room for all of them, and what follows the exact sums.
    pub(crate) outputs: Outputs,
    /// Counters of paths, to be added to.
    pub(crate) paths: Pointer,
}

impl Product<'_> {
    /// The operands' encodings; they have been checked to be of one product.
    pub(super) fn encodings(&self) -> Result<Encodings, Error> {
        self.a.shape.expect_product(&self.b.shape)
    }

    /// Rows of A, and of B.
    pub(super) fn shape(&self) -> [usize; 2] {
        [self.a.shape.rows(), self.b.shape.rows()]
    }
}

/// Buffers of the products of one stream, which run one after the other.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// Zeros between calls: merged sums, and blocks that have arrived.
    pub(super) sums: Buffer,
    pub(super) arrivals: Buffer,
    pub(crate) a: Folded,
    pub(crate) b: Folded,
    pub(super) zeros: Buffer,
    /// How many tiles the last `Wgmma`, `WgmmaRs` or `MmaFolded` left, and which.
    pub(super) left: Buffer,
    /// How many tiles it had, if it ran and is no graph's.
    pub(super) tiles: usize,
    /// Arguments of the products of a launch of several.
    pub(super) grouped: Buffer,
}

impl Scratch {
    /// Says that nothing is known of the last product.
    pub(crate) fn forget_tiles(&mut self) {
        self.tiles = 0;
    }

    /// Folds the operands that have no folded form, into buffers of this.
    pub(super) fn fold(&mut self, of: &Product<'_>) -> Result<(), Error> {
        for (operand, spare) in [(of.a, &mut self.a), (of.b, &mut self.b)] {
            if !operand.folded.ready() {
                spare.fill(&operand.shape_to_fold()?)?;
            }
        }
        Ok(())
    }

    /// The folded form of A, made in a buffer of this if it has none.
    pub(super) fn folded_a(&mut self, a: &CudaOperand) -> Result<FoldedOperand, Error> {
        if !a.folded.ready() {
            self.a.fill(&a.shape_to_fold()?)?;
        }
        let folded = if a.folded.ready() { &a.folded } else { &self.a };
        folded.operand(a.shape.rows(), a.meta.pointer())
    }

    /// The folded forms after [`fold`](Self::fold).
    pub(super) fn folded(&self, of: &Product<'_>) -> Result<[FoldedOperand; 2], Error> {
        let folded = |operand: &CudaOperand, spare: &Folded| {
            let folded = if operand.folded.ready() { &operand.folded } else { spare };
            folded.operand(operand.shape.rows(), operand.meta.pointer())
        };
        Ok([folded(of.a, &self.a)?, folded(of.b, &self.b)?])
    }

    /// Makes room for a list of so many tiles, and queues an empty one.
    pub(super) fn reserve_left(&mut self, gpu: &Gpu, tiles: usize) -> Result<(), Error> {
        self.left.reserve(&gpu.stream, 4 * (1 + tiles))?;
        self.left.zero(&gpu.stream, 4)
    }

    /// How many tiles of the last product by `Wgmma`, `WgmmaRs` or `MmaFolded` were left to another
    /// kernel, of how many. The caller has synchronized.
    pub(crate) fn tiles_left(&self, gpu: &Gpu) -> Result<(usize, usize), Error> {
        if self.tiles == 0 {
            return Ok((0, 0));
        }
        let mut left = [0u32];
        self.left.download(&gpu.stream, bytemuck::cast_slice_mut(&mut left))?;
        gpu.synchronize()?;
        Ok((left[0] as usize, self.tiles))
    }

    /// Bytes of device memory held.
    pub(crate) fn allocated_bytes(&self) -> usize {
        let own = [&self.sums, &self.arrivals, &self.zeros, &self.left, &self.grouped];
        let own: usize = own.iter().map(|buffer| buffer.len()).sum();
        own + self.a.allocated_bytes() + self.b.allocated_bytes()
    }
}

/// Bytes of the counters of paths: three 64-bit numbers.
pub(crate) const PATHS_BYTES: usize = 24;

/// What ran, as the kernels count it.
pub(crate) fn paths_of(counters: [u8; PATHS_BYTES]) -> Paths {
    let [narrow, planes, wide] = bytemuck::cast::<_, [u64; 3]>(counters);
    Paths::new(narrow, planes, wide)
}

/// Whether the sums of NVFP4 rows may leave an int64, whatever their scales.
pub(super) fn is_long(of: Encodings, k_pad: usize) -> bool {
    of == Encodings::of(Format::NvFp4) && k_pad / of.b.group().get() > NVFP4_INT64_GROUPS
}

/// The kernel of a product.
pub(super) fn of_product<A>(
    kernels: &'static [Kernel<A>; 4],
    of: Encodings,
) -> Result<&'static Kernel<A>, Error> {
    Ok(&kernels[arguments::product(of)? as usize])
}

/// The largest term of a group in a product's int64 sums where both rows span one exponent: its dot
/// product of integers, times the largest e4m3 scale in units of 2^-9 of each side under e4m3.
pub(super) fn largest_term(of: Encodings) -> u64 {
    let e4m3 = 15 << 14;
    match (of.a, of.b) {
        (Encoding::MxInt8, Format::MxFp4) => 128 * 12 * 32,
        (Encoding::MxInt8, Format::NvFp4) => 128 * 12 * 16 * e4m3,
        (_, Format::MxFp4) => 12 * 12 * 32,
        (_, Format::NvFp4) => 12 * 12 * 16 * e4m3 * e4m3,
    }
}
