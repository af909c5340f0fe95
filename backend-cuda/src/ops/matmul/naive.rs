//! The readable kernel, `matmul_naive.cu`, and partial sums, which it computes without their
//! rounding.

use std::ops::Range;

use fp4_core::{Error, ExactSum, FixedSum, Format, PartialsMut};

use super::product::{NVFP4_INT64_GROUPS, Outputs};
use crate::build::sources::MATMUL_NAIVE;
use crate::device::buffer::Buffer;
use crate::device::gpu::Gpu;
use crate::device::launch::{Arg, blocks_for, float_type, int, scale_type};
use crate::operand::packed::CudaOperand;

/// The largest joint exponent spread for which the int64 sums of MXFP4 fit:
/// floor(log2((2^63 - 1) / (4608 * groups))), where 4608 = 144 * 32 bounds a group's dot product.
pub(crate) fn joint_limit(groups: usize) -> i32 {
    let groups = (groups.max(1) as u64).saturating_mul(4608);
    (i64::MAX as u64 / groups).checked_ilog2().map_or(-1, |bits| bits as i32)
}

/// The arguments that this kernel and the next have in common.
pub(super) fn arguments(
    a: &CudaOperand,
    b: &CudaOperand,
    outputs: &Outputs<'_>,
) -> Result<Vec<Arg>, Error> {
    let format = a.shape.expect_product(&b.shape)?;
    let groups = a.k_pad / format.group().get();
    Ok(vec![
        Arg::Pointer(a.codes.address()),
        Arg::Pointer(a.scales.address()),
        Arg::Pointer(a.meta.address()),
        Arg::Pointer(b.codes.address()),
        Arg::Pointer(b.scales.address()),
        Arg::Pointer(b.meta.address()),
        Arg::Pointer(outputs.to),
        float_type(outputs.float_type),
        Arg::F32(outputs.alpha),
        Arg::I32(int(a.shape.rows())?),
        Arg::I32(int(b.shape.rows())?),
        Arg::I32(int(a.k_pad)?),
        scale_type(format.scale_type()),
        Arg::I32(joint_limit(groups)),
    ])
}

/// Queues the kernel.
pub(super) fn queue(a: &CudaOperand, b: &CudaOperand, outputs: &Outputs<'_>) -> Result<(), Error> {
    let mut args = arguments(a, b, outputs)?;
    args.push(Arg::Pointer(outputs.paths.address()));
    let tiles = a.shape.rows().div_ceil(16) as u64 * b.shape.rows().div_ceil(16) as u64;
    a.gpu.launch((&MATMUL_NAIVE, "matmul_naive"), tiles, 256, &args)
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
        // 144 * 16 doubled codes, two e4m3 scales of at most 15 * 2^14 units of 2^-9.
        let nvfp4 = 144 * 16 * i128::from(15 << 14) * i128::from(15 << 14);
        assert!(nvfp4 * NVFP4_INT64_GROUPS as i128 <= i128::from(i64::MAX));
    }
}
