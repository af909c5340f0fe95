//! The readable kernel, `matmul_naive.cu`, and partial sums, which it computes without their
//! rounding.

use std::ops::Range;

use fp4_core::{Error, ExactSum, FixedSum, PartialsMut, Product as Encodings};

use super::product::{Product, largest_term, of_product};
use crate::build::arguments::{
    EXACT_LIMBS, MatmulArgs, NAIVE_TILE, NVFP4_INT64_GROUPS, PartialArgs, Pointer, product,
};
use crate::build::kernels::{MATMUL_NAIVE, PARTIAL};
use crate::device::buffer::Buffer;
use crate::device::launch::{Grid, int};
use crate::operand::packed::CudaOperand;

/// The largest joint exponent spread for which the int64 sums fit: floor(log2((2^63 - 1) / (T *
/// groups))), where T is the largest term of a group; -1 if none does.
pub(crate) fn joint_limit(of: Encodings, groups: usize) -> i32 {
    let largest = (groups.max(1) as u64).saturating_mul(largest_term(of));
    (i64::MAX as u64 / largest).checked_ilog2().map_or(-1, |bits| bits as i32)
}

/// The arguments of this kernel and of the one for tensor cores.
pub(super) fn arguments(of: &Product<'_>) -> Result<MatmulArgs, Error> {
    let (encodings, [m, n], k_pad) = (of.encodings()?, of.shape(), of.a.k_pad);
    Ok(MatmulArgs {
        a: of.a.packed(),
        b: of.b.packed(),
        outputs: of.outputs,
        paths: of.paths,
        m: int(m)?,
        n: int(n)?,
        k_pad: int(k_pad)?,
        product: product(encodings)?,
        joint_limit: joint_limit(encodings, k_pad / encodings.b.group().get()),
        k_folds: 0,
        left: Pointer::NULL,
        left_rows: 0,
        unused: 0,
    })
}

/// Queues the kernel.
pub(super) fn queue(of: &Product<'_>) -> Result<(), Error> {
    let [m, n] = of.shape();
    let tiles = m.div_ceil(NAIVE_TILE) * n.div_ceil(NAIVE_TILE);
    let grid = Grid::row(tiles, NAIVE_TILE * NAIVE_TILE);
    // SAFETY: operands have the bytes of their shapes and are described; a product has room for its
    // outputs, and a row scale and a bias for each row of A and B, if any.
    unsafe { of.a.gpu.launch(&MATMUL_NAIVE[0], grid, &arguments(of)?) }
}

/// Adds the exact sums over `groups` of B to `out`; sums of one chunk at a time pass through
/// `buffers`.
pub(crate) fn partial(
    a: &CudaOperand,
    b: &CudaOperand,
    groups: Range<usize>,
    out: PartialsMut<'_>,
    buffers: &mut [Buffer; 2],
) -> Result<(), Error> {
    let gpu = &*a.gpu;
    let product = a.shape.expect_product(&b.shape)?;
    let (m, n) = (a.shape.rows(), b.shape.rows());
    let outputs = m * n;
    out.expect(product, [m, n])?;
    b.shape.expect_groups(&groups)?;
    let (limbs, chunk) = match product.is_fixed() {
        true => (1, NVFP4_INT64_GROUPS),
        false => (EXACT_LIMBS, usize::MAX),
    };
    let overflow = Error::ShapeOverflow { rows: m, cols: n };
    let bytes = outputs.checked_mul(8 * limbs).ok_or(overflow)?;
    let (mut sums, mut nans) = (vec![0u64; outputs * limbs], vec![0u8; outputs]);
    let mut out = out;
    let mut first = groups.start;
    while first < groups.end {
        let end = groups.end.min(first.saturating_add(chunk));
        for (buffer, bytes) in buffers.iter_mut().zip([bytes, outputs]) {
            buffer.reserve(&gpu.stream, bytes)?;
        }
        let args = PartialArgs {
            a: a.packed(),
            b: b.packed(),
            sums: buffers[0].pointer(),
            nan: buffers[1].pointer(),
            m: int(m)?,
            n: int(n)?,
            k_pad: int(a.k_pad)?,
            first: int(first)?,
            end: int(end)?,
            unused: 0,
        };
        // SAFETY: operands have the bytes of their shapes, the groups are theirs, and there is room
        // for the sums.
        unsafe { gpu.launch(of_product(&PARTIAL, product)?, Grid::for_each(outputs), &args)? };
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
        PartialsMut::Scaled(out) => {
            let mut sums = sums;
            out.for_each(|_, out| match sums.next() {
                Some((sum, _)) if limbs == 1 => out.add_scaled(sum[0] as i64, FixedSum::EXPONENT),
                Some((sum, &nan)) => out.merge(&exact(sum, nan)?),
                // There are as many.
                None => Ok(()),
            })?;
        }
        PartialsMut::Exact(out) => {
            for ((sum, &nan), out) in sums.zip(out.iter_mut()) {
                if limbs == 1 {
                    out.merge(&fixed(sum[0], nan).into());
                } else {
                    out.merge(&exact(sum, nan)?);
                }
            }
        }
    }
    Ok(())
}

/// A sum of the device's, which counts in the units of the host's.
fn exact(limbs: &[u64], nan: u8) -> Result<ExactSum, Error> {
    let mut bytes = [0; ExactSum::BYTES];
    (bytes[0], bytes[ExactSum::BYTES - 1]) = (ExactSum::VERSION, nan);
    let of_limbs = limbs.iter().flat_map(|limb| limb.to_le_bytes());
    for (to, from) in bytes[1..ExactSum::BYTES - 1].iter_mut().zip(of_limbs) {
        *to = from;
    }
    ExactSum::from_bytes(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounds_are_the_largest_that_hold() {
        for of in Encodings::ALL {
            let term = i128::from(largest_term(of));
            for groups in [1, 4, 65, 128, 16_384, 65_536, 1 << 30] {
                let (sum, limit) = (term * groups as i128, joint_limit(of, groups));
                match limit {
                    -1 => assert!(sum >= 1 << 63, "{of:?} {groups}"),
                    _ => {
                        let largest = sum << limit;
                        assert!(largest < 1 << 63 && 2 * largest >= 1 << 63, "{of:?} {groups}");
                    }
                }
            }
        }
        let [mxfp4, nvfp4, _, int8_by_nvfp4] = Encodings::ALL;
        assert_eq!(joint_limit(mxfp4, 128), 43);
        assert_eq!([NVFP4_INT64_GROUPS, 1 << 17].map(|g| joint_limit(nvfp4, g)), [0, -1]);
        assert_eq!([23_301, 23_302].map(|g| joint_limit(int8_by_nvfp4, g)), [16, 15]);
    }
}
