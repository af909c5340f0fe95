//! The dequantizer: 16 values for each scale byte, computed once, and looked up (C4.4).
//!
//! ```text
//! for each scale byte that occurs:
//!     table[byte][code] = value(code) * (decode(byte) * gs), rounded to the output type     core's rule
//! for each group:
//!     out = table[scale][code] for each code                                                 a byte permute
//! ```
//!
//! There are 256 scale bytes, so a matrix needs at most 4096 products and roundings, whatever its
//! size: every value that is written was computed by core's own operations, NaN, infinities and
//! subnormals included, and the kernels only move bytes.
//!
//! Tables are kept as the kernel reads them: one value after the other, or in *planes*, the first
//! bytes of all 16 values, then the second ones, for instruction sets whose permutes take a table
//! of 16 bytes.
//!
//! An MXINT8 element has 256 values under each of 255 scales, too many for tables: it is multiplied
//! out, one exact product (C10).
//!
//! Worked example: under e4m3 byte 0x4A (5) and gs = 0.1, code 7 is worth 6 * 0.5 = 3, as f16
//! 0x4200. On a little-endian machine that is byte 0x00 at 7 of the first plane and 0x42 at 7 of
//! the second.

use fp4_core::{
    Buffer, E2m1, Element, Error, Float, FloatSliceMut, PackedView, ScaleType, mxint8, reference,
    with_floats,
};
use half::{bf16, f16};
use wide::bytemuck;

use crate::cost::Cost;
use crate::threads::TaskThreads;

/// Values worth a task of their own.
const TASK_VALUES: usize = 1 << 14;
/// Groups looked up at a time.
const BLOCK: usize = 64;

/// The values of 16 codes in B bytes each.
pub(crate) type Table<const B: usize> = [[u8; 16]; B];

/// Groups to be looked up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PackedGroups<'a, const B: usize> {
    /// By scale byte; those of `scales` are filled.
    tables: &'a [Table<B>; 256],
    scales: &'a [u8],
    codes: &'a [u8],
    /// Bytes of codes of a group.
    bytes: usize,
}

impl<'a, const B: usize> PackedGroups<'a, B> {
    /// Each group's table, its codes by eight bytes, and where they go: 16 values of B bytes each.
    #[inline(always)]
    pub(crate) fn each(
        self,
        out: &mut [u8],
        mut look_up: impl FnMut(&'a Table<B>, &'a [u8; 8], &mut [[u8; B]; 16]),
    ) {
        let out = out.as_chunks_mut::<B>().0.as_chunks_mut::<16>().0;
        let groups = self.codes.chunks_exact(self.bytes).zip(out.chunks_exact_mut(self.bytes / 8));
        for (&scale, (codes, out)) in self.scales.iter().zip(groups) {
            let table = &self.tables[usize::from(scale)];
            for (codes, out) in codes.as_chunks::<8>().0.iter().zip(out) {
                look_up(table, codes, out);
            }
        }
    }
}

/// An instruction set's look-up. B is 2 or 4.
pub(crate) trait LookUp: Copy + Send + Sync {
    /// True for tables in planes.
    const PLANES: bool;

    /// Writes the values of the groups' codes.
    fn look_up<const B: usize>(self, groups: PackedGroups<'_, B>, out: &mut [u8]);
}

/// The values of scale bytes under a global scale.
struct Tables<const B: usize> {
    scale_type: ScaleType,
    global_scale: f32,
    tables: [Table<B>; 256],
    filled: [bool; 256],
}

impl<const B: usize> Tables<B> {
    /// Fills the table of a scale byte.
    #[cold]
    fn fill<T: Float>(&mut self, scale: u8, planes: bool) {
        let d = self.scale_type.decode(scale) * self.global_scale;
        for code in 0..16 {
            let value = T::from_f32(E2m1::from_bits(code).to_f32() * d);
            for (b, &byte) in bytemuck::bytes_of(&value).iter().enumerate() {
                let code = usize::from(code);
                let at = if planes { 16 * b + code } else { B * code + b };
                self.tables[usize::from(scale)].as_flattened_mut()[at] = byte;
            }
        }
        self.filled[usize::from(scale)] = true;
    }
}

/// Writes the values of a packed matrix under `global_scale`, row-major.
pub(crate) fn dequantize(
    kernel: impl LookUp,
    threads: &TaskThreads,
    packed: PackedView<'_>,
    global_scale: f32,
    out: FloatSliceMut<'_>,
) -> Result<(), Error> {
    // Core's checks of the settings and of the environment.
    reference::dequantize(packed.rows_range(0..0)?, global_scale, FloatSliceMut::F32(&mut []))?;
    out.as_ref().expect_len(Buffer::Output, packed.shape().rows() * packed.shape().k())?;
    if packed.shape().element() == Element::Int8 {
        return with_floats!(FloatSliceMut, out, out => int8(threads, packed, out));
    }
    match out {
        FloatSliceMut::F32(out) => typed::<f32, 4, _>(kernel, threads, packed, global_scale, out),
        FloatSliceMut::F16(out) => typed::<f16, 2, _>(kernel, threads, packed, global_scale, out),
        FloatSliceMut::Bf16(out) => typed::<bf16, 2, _>(kernel, threads, packed, global_scale, out),
    }
}

/// To values of B bytes.
fn typed<T: Float, const B: usize, L: LookUp>(
    kernel: L,
    threads: &TaskThreads,
    packed: PackedView<'_>,
    global_scale: f32,
    out: &mut [T],
) -> Result<(), Error> {
    const { assert!(size_of::<T>() == B) };
    let (group, scale_type) = (packed.shape().group().get(), packed.shape().scale_type());
    let part = |codes: &[u8], scales: &[u8], out: &mut [T]| {
        let (tables, filled) = ([[[0; 16]; B]; 256], [false; 256]);
        let mut all = Tables { scale_type, global_scale, tables, filled };
        let blocks = codes.chunks(BLOCK * group / 2).zip(scales.chunks(BLOCK));
        for ((codes, scales), out) in blocks.zip(out.chunks_mut(BLOCK * group)) {
            for &scale in scales {
                if !all.filled[usize::from(scale)] {
                    all.fill::<T>(scale, L::PLANES);
                }
            }
            let groups = PackedGroups { tables: &all.tables, scales, codes, bytes: group / 2 };
            kernel.look_up(groups, bytemuck::cast_slice_mut(out));
        }
    };
    let plan = threads.plan(Cost::dequantize(out.len()));
    let split = out.len().div_ceil(plan.tasks.min(out.len() / TASK_VALUES).max(1));
    let split = split.next_multiple_of(group).max(group);
    let tasks = packed.codes().chunks(split / 2).zip(packed.scales().chunks(split / group));
    threads.run(plan, tasks.zip(out.chunks_mut(split)), |((codes, scales), out)| {
        part(codes, scales, out);
        Ok(())
    })?;
    Ok(())
}

/// The values of MXINT8, whose global scale is 1.
fn int8<T: Float>(
    threads: &TaskThreads,
    packed: PackedView<'_>,
    out: &mut [T],
) -> Result<(), Error> {
    let (group, scale_type) = (packed.shape().group().get(), packed.shape().scale_type());
    let plan = threads.plan(Cost::dequantize(out.len()));
    let split = out.len().div_ceil(plan.tasks);
    let split = split.next_multiple_of(group).max(group);
    let tasks = packed.codes().chunks(split).zip(packed.scales().chunks(split / group));
    threads.run(plan, tasks.zip(out.chunks_mut(split)), |((elements, scales), out)| {
        let groups = elements.chunks_exact(group).zip(out.chunks_exact_mut(group));
        for ((elements, out), &scale) in groups.zip(scales) {
            let d = scale_type.decode(scale);
            for (&element, out) in elements.iter().zip(out) {
                *out = T::from_f32(mxint8::decode(element as i8, d));
            }
        }
        Ok(())
    })?;
    Ok(())
}
