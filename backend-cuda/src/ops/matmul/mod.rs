//! Multiplication on the device: which kernel, and what it is given (C6).
//!
//! | [`Ladder`] | kernel | outputs by |
//! |---|---|---|
//! | `Naive` | `matmul_naive.cu` | one thread each; int64 where proven, else 640 bits |
//! | `Mma` | `matmul_mma.cu` | tensor-core tiles; int32 fold, int64 by group, else 640 bits |
//! | `Decode` | `matmul_decode.cu` | 128 rows of B by 8 or 16 of A; int64 by group, else 640 bits |
//! | `Wgmma` | `matmul_wgmma_*.cu` | Hopper: tiles of folded int8, int32; what is left by `Decode`'s |
//!
//! [`Ladder::Auto`] takes the fastest that can by the shape and the device: `Decode` for up to 16 rows of
//! A, `Wgmma` for 128 and more on compute capability 9.0, `Mma` otherwise.
//!
//! Where memory for the folded form is short, `Auto` goes on with `Mma`, which needs none.
//!
//! Every kernel takes every input and gives the same bits; the ladder is for tests and measurements. The
//! choice between sums is made on the device from row metadata, so a launch needs nothing from the host
//! but shapes and the bounds below.

mod decode;
mod wgmma;

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use fp4_core::{
    Error, ExactSum, FixedSum, FloatType, Format, PackedShape, PartialsMut, Paths, Unsupported,
    padded_k,
};

use crate::build::sources::{MATMUL_MMA, MATMUL_NAIVE};
use crate::device::buffer::Buffer;
use crate::device::error::unless_memory_is_short;
use crate::device::gpu::Gpu;
use crate::device::launch::{Arg, blocks_for, float_type, int, scale_type};
use crate::operand::CudaOperand;
use crate::ops::fold;

/// A kernel to multiply by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Ladder {
    /// The readable one.
    Naive,
    /// Tensor cores, for every device that this backend takes.
    Mma,
    /// Streams B once, for few rows of A; any number is right.
    Decode {
        /// In how many ranges K is split; 0 for as many as the device wants. Partial sums are exact,
        /// so the bits are the same.
        ranges: usize,
    },
    /// Hopper's warpgroup instructions, for many rows of A: compute capability 9.0. What is prepared or
    /// quantized under this or under `Auto` is folded for it at that time.
    Wgmma,
    /// The fastest of these that the shape and the device allow.
    #[default]
    Auto,
}

/// Buffers of the products of one stream, which run one after the other.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// Zeros between calls: merged sums, and blocks that have arrived.
    sums: Buffer,
    arrivals: Buffer,
    pub(crate) a: fold::Folded,
    pub(crate) b: fold::Folded,
    zeros: Buffer,
    /// A byte for each tile of the last `Wgmma` that ran and is no graph's, and how many there are.
    todo: Buffer,
    tiles: usize,
}

impl Scratch {
    /// Says that nothing is known of the last product.
    pub(crate) fn forget_tiles(&mut self) {
        self.tiles = 0;
    }

    /// How many tiles of the last [`Ladder::Wgmma`] product were left to the kernel by groups, of how
    /// many. The caller has synchronized.
    pub(crate) fn tiles_left(&self, gpu: &Gpu) -> Result<(usize, usize), Error> {
        let mut todo = vec![0; self.tiles];
        self.todo.download(&gpu.stream, &mut todo)?;
        gpu.synchronize()?;
        Ok((todo.iter().filter(|&&left| left != 0).count(), self.tiles))
    }
}

/// Where the outputs of a product go.
struct Outputs<'a> {
    /// Device address.
    to: u64,
    float_type: FloatType,
    alpha: f32,
    paths: &'a Buffer,
}

/// What [`Ladder::Auto`] stands for.
fn choose(a: &CudaOperand, b: &CudaOperand, format: Format) -> Ladder {
    let (m, groups) = (a.shape.rows(), a.k_pad / format.group().get());
    if m <= decode::MAX_ROWS && !is_long(format, groups) {
        return Ladder::Decode { ranges: 0 };
    }
    let least = if b.folded.ready() { wgmma::MIN_ROWS } else { wgmma::MIN_ROWS_UNFOLDED };
    let takes = wgmma::takes(Ladder::Auto, &a.gpu, a.shape, a.k_pad);
    if m >= least && takes { Ladder::Wgmma } else { Ladder::Mma }
}

/// Whether an activation of this shape is to be folded when it is quantized or imported.
pub(crate) fn folds_activation(ladder: Ladder, gpu: &Gpu, shape: PackedShape) -> bool {
    let enough = ladder == Ladder::Wgmma || shape.rows() >= wgmma::MIN_ROWS;
    enough && folds_weight(ladder, gpu, shape)
}

/// Whether a weight of this shape is to be folded when it is prepared.
pub(crate) fn folds_weight(ladder: Ladder, gpu: &Gpu, shape: PackedShape) -> bool {
    padded_k(shape.k()).is_ok_and(|k_pad| wgmma::takes(ladder, gpu, shape, k_pad))
}

/// Whether the sums of an NVFP4 row may leave an int64.
fn is_long(format: Format, groups: usize) -> bool {
    format == Format::NvFp4 && groups > NVFP4_INT64_GROUPS
}

/// Groups of an NVFP4 row whose sum always fits an int64 (`NVFP4_INT64_GROUPS` in `exact.cuh`).
const NVFP4_INT64_GROUPS: usize = 65_536;

/// Bytes of the counters of paths: three 64-bit numbers.
pub(crate) const PATHS_BYTES: usize = 24;

/// The largest K that the int32 fold of MXFP4 takes: a product of two folded codes is at most
/// 96 * 96 in magnitude, and 9216 * 233016 <= 2^31 - 1.
pub(crate) const FOLD_MAX_K: usize = i32::MAX as usize / (96 * 96);

/// The largest joint exponent spread for which the int64 sums of MXFP4 fit:
/// floor(log2((2^63 - 1) / (4608 * groups))), where 4608 = 144 * 32 bounds a group's dot product.
pub(crate) fn joint_limit(groups: usize) -> i32 {
    let groups = (groups.max(1) as u64).saturating_mul(4608);
    (i64::MAX as u64 / groups).checked_ilog2().map_or(-1, |bits| bits as i32)
}

/// What ran, as the kernels count it.
pub(crate) fn paths_of(counters: [u8; PATHS_BYTES]) -> Paths {
    let [narrow, planes, wide] = bytemuck::cast::<_, [u64; 3]>(counters);
    Paths { narrow, planes, wide }
}

/// Queues round(f32(A * B^T) * alpha) into `out`, counting paths into `paths`.
pub(crate) fn matmul(
    ladder: Ladder,
    a: &CudaOperand,
    b: &CudaOperand,
    alpha: f32,
    (out, out_type): (u64, FloatType),
    paths: &Buffer,
    scratch: &Mutex<Scratch>,
) -> Result<(), Error> {
    let format = a.shape.expect_product(&b.shape)?;
    let (m, n) = (a.shape.rows(), b.shape.rows());
    let groups = a.k_pad / format.group().get();
    let mut args = vec![
        Arg::Pointer(a.codes.address()),
        Arg::Pointer(a.scales.address()),
        Arg::Pointer(a.meta.address()),
        Arg::Pointer(b.codes.address()),
        Arg::Pointer(b.scales.address()),
        Arg::Pointer(b.meta.address()),
        Arg::Pointer(out),
        float_type(out_type),
        Arg::F32(alpha),
        Arg::I32(int(m)?),
        Arg::I32(int(n)?),
        Arg::I32(int(a.k_pad)?),
        scale_type(format.scale_type()),
        Arg::I32(joint_limit(groups)),
    ];
    let long = is_long(format, groups);
    let outputs = Outputs { to: out, float_type: out_type, alpha, paths };
    // Launches of one product stay together on the stream, as they share buffers.
    let scratch = || scratch.lock().unwrap_or_else(PoisonError::into_inner);
    let mut chosen = if ladder == Ladder::Auto { choose(a, b, format) } else { ladder };
    if ladder == Ladder::Auto && chosen == Ladder::Wgmma {
        let queued = wgmma::queue(a, b, &outputs, &mut scratch());
        if unless_memory_is_short(queued, "the wgmma kernels")? {
            return Ok(());
        }
        // Nothing that the outputs depend on is queued before its memory is there.
        chosen = Ladder::Mma;
    }
    match chosen {
        Ladder::Decode { ranges } => {
            decode::queue(a, b, &outputs, decode::Tiles::All, ranges, &mut scratch())
        }
        Ladder::Wgmma => {
            if !wgmma::available(&a.gpu, format) {
                let why = "wgmma needs a device of compute capability 9.0";
                return Err(Unsupported::Other(why).into());
            }
            wgmma::queue(a, b, &outputs, &mut scratch())
        }
        Ladder::Mma if !long => {
            args.push(Arg::I32(i32::from(a.k_pad <= FOLD_MAX_K)));
            args.push(Arg::Pointer(paths.address()));
            let tiles = m.div_ceil(64) as u64 * n.div_ceil(64) as u64;
            a.gpu.launch((&MATMUL_MMA, "matmul_mma"), tiles, 128, &args)
        }
        Ladder::Naive | Ladder::Mma | Ladder::Auto => {
            args.push(Arg::Pointer(paths.address()));
            let tiles = m.div_ceil(16) as u64 * n.div_ceil(16) as u64;
            a.gpu.launch((&MATMUL_NAIVE, "matmul_naive"), tiles, 256, &args)
        }
    }
}

/// Adds the exact sums over `groups` to `out`; sums of one chunk at a time pass through `buffers`.
pub(crate) fn partial(
    gpu: &Gpu,
    a: &CudaOperand,
    b: &CudaOperand,
    groups: Range<usize>,
    out: PartialsMut<'_>,
    buffers: &mut [Buffer; 2],
) -> Result<(), Error> {
    let format = a.shape.expect_product(&b.shape)?;
    let outputs = a.shape.rows() * b.shape.rows();
    out.expect(format, outputs)?;
    a.shape.expect_groups(&groups)?;
    let (name, limbs, chunk) = match format {
        Format::NvFp4 => ("partial_nvfp4", 1, NVFP4_INT64_GROUPS),
        Format::MxFp4 => ("partial_mxfp4", 10, usize::MAX),
    };
    let bytes = outputs
        .checked_mul(8 * limbs)
        .ok_or(Error::ShapeOverflow { rows: a.shape.rows(), cols: b.shape.rows() })?;
    let (mut sums, mut nans) = (vec![0u64; outputs * limbs], vec![0u8; outputs]);
    let mut out = out;
    let mut first = groups.start;
    while first < groups.end {
        let end = groups.end.min(first.saturating_add(chunk));
        for (buffer, bytes) in buffers.iter_mut().zip([bytes, outputs]) {
            buffer.reserve(&gpu.stream, bytes)?;
        }
        let args = [
            Arg::Pointer(a.codes.address()),
            Arg::Pointer(a.scales.address()),
            Arg::Pointer(b.codes.address()),
            Arg::Pointer(b.scales.address()),
            Arg::Pointer(buffers[0].address()),
            Arg::Pointer(buffers[1].address()),
            Arg::I32(int(a.shape.rows())?),
            Arg::I32(int(b.shape.rows())?),
            Arg::I32(int(a.k_pad)?),
            Arg::I32(int(first)?),
            Arg::I32(int(end)?),
        ];
        gpu.launch((&MATMUL_NAIVE, name), blocks_for(outputs, 256), 256, &args)?;
        buffers[0].download(&gpu.stream, bytemuck::cast_slice_mut(&mut sums))?;
        buffers[1].download(&gpu.stream, &mut nans)?;
        gpu.synchronize()?;
        add(&sums, &nans, limbs, &mut out)?;
        first = end;
    }
    Ok(())
}

/// Adds downloaded sums to the caller's.
fn add(sums: &[u64], nans: &[u8], limbs: usize, out: &mut PartialsMut<'_>) -> Result<(), Error> {
    let fixed = |units: u64, nan: u8| FixedSum { units: units as i64, nan: nan != 0 };
    let sums = sums.chunks_exact(limbs).zip(nans);
    match out {
        PartialsMut::Fixed(out) => {
            for ((sum, &nan), out) in sums.zip(out.iter_mut()) {
                out.merge(&fixed(sum[0], nan))?;
            }
        }
        PartialsMut::Exact(out) => {
            for ((sum, &nan), out) in sums.zip(out.iter_mut()) {
                if limbs == 1 {
                    out.merge(&fixed(sum[0], nan).into());
                } else {
                    let mut bytes = [0; ExactSum::BYTES];
                    for (to, limb) in bytes.chunks_exact_mut(8).zip(sum) {
                        to.copy_from_slice(&limb.to_le_bytes());
                    }
                    bytes[ExactSum::BYTES - 1] = nan;
                    out.merge(&ExactSum::from_bytes(&bytes)?);
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounds_are_the_largest_that_hold() {
        for groups in [1, 4, 65, 128, 16_384, 1 << 30] {
            let largest = i128::from(4608 * groups as i64) << joint_limit(groups);
            assert!(largest < 1 << 63 && 2 * largest >= 1 << 63, "{groups}");
        }
        assert_eq!(joint_limit(128), 43);
        let fold = 96 * 96 * FOLD_MAX_K as i64;
        assert!(fold <= i64::from(i32::MAX) && fold + 96 * 96 > i64::from(i32::MAX));
        // 144 * 16 doubled codes, two e4m3 scales of at most 15 * 2^14 units of 2^-9.
        let nvfp4 = 144 * 16 * i128::from(15 << 14) * i128::from(15 << 14);
        assert!(nvfp4 * NVFP4_INT64_GROUPS as i128 <= i128::from(i64::MAX));
    }
}
