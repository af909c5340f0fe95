//! What the kernels of a product share: where outputs go, their buffers, and a bound.

use fp4_core::{Error, FloatType, Format, Paths};

use crate::device::buffer::Buffer;
use crate::device::gpu::Gpu;
use crate::operand::folded::Folded;

/// Buffers of the products of one stream, which run one after the other.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// Zeros between calls: merged sums, and blocks that have arrived.
    pub(super) sums: Buffer,
    pub(super) arrivals: Buffer,
    pub(crate) a: Folded,
    pub(crate) b: Folded,
    pub(super) zeros: Buffer,
    /// A byte for each tile of the last `Wgmma` that ran and is no graph's, and how many there are.
    pub(super) todo: Buffer,
    pub(super) tiles: usize,
}

impl Scratch {
    /// Says that nothing is known of the last product.
    pub(crate) fn forget_tiles(&mut self) {
        self.tiles = 0;
    }

    /// How many tiles of the last `MatmulKernel::Wgmma` product were left to the kernel by
    /// groups, of how many. The caller has synchronized.
    pub(crate) fn tiles_left(&self, gpu: &Gpu) -> Result<(usize, usize), Error> {
        let mut todo = vec![0; self.tiles];
        self.todo.download(&gpu.stream, &mut todo)?;
        gpu.synchronize()?;
        Ok((todo.iter().filter(|&&left| left != 0).count(), self.tiles))
    }
}

/// Where the outputs of a product go.
pub(super) struct Outputs<'a> {
    /// Device address.
    pub(super) to: u64,
    pub(super) float_type: FloatType,
    pub(super) alpha: f32,
    pub(super) paths: &'a Buffer,
}

/// What ran, as the kernels count it.
pub(crate) fn paths_of(counters: [u8; PATHS_BYTES]) -> Paths {
    let [narrow, planes, wide] = bytemuck::cast::<_, [u64; 3]>(counters);
    Paths { narrow, planes, wide }
}

/// Whether the sums of an NVFP4 row may leave an int64.
pub(super) fn is_long(format: Format, groups: usize) -> bool {
    format == Format::NvFp4 && groups > NVFP4_INT64_GROUPS
}

/// Groups of an NVFP4 row whose sum always fits an int64 (`NVFP4_INT64_GROUPS` in `exact.cuh`).
pub(super) const NVFP4_INT64_GROUPS: usize = 65_536;

/// Bytes of the counters of paths: three 64-bit numbers.
pub(crate) const PATHS_BYTES: usize = 24;
