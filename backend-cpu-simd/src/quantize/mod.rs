//! The quantizer: what is around the kernels' inner loops, which are an [`Encode`] (C4).
//!
//! ```text
//! for each run of up to 512 values (whole groups; whole blocks if there is a transform):
//!     y = x widened, and transformed
//!     for each group of y:
//!         scale = given, or encode(amax / (ss * gs))       core's rule, once per group
//!         d = decode(scale) * gs
//!         q = y / d, rounded once; a signed zero if d = 0
//!         code = the nearest, by the tie mode, and the sign
//! ```
//!
//! Kernels with a fused multiply-add divide by d only in groups that are rare: they multiply by the
//! [`reciprocal`] of d, and it is proved there that the codes are those of the rounded quotient.
//! The others divide: comparing |x| with the least magnitudes of each code, seven a group, was no
//! faster in MXFP4 and slower in NVFP4.
//!
//! MXINT8 has rules of its own for the scale and the elements ([`int8`]).
//!
//! Rows follow each other without gaps in all buffers, and K is whole groups and blocks, so runs
//! and tasks need not stop at the end of a row. Row scales are another loop ([`rows`]).

pub(crate) mod int8;
pub(crate) mod reciprocal;
mod rows;
mod transform;

use std::sync::{Mutex, PoisonError};

use fp4_core::{
    Buffer, Element, Error, FloatSlice, FloatSliceMut, PackedMut, QuantCounts, QuantSpec,
    QuantizeInput, with_floats,
};

pub(crate) use rows::RowScratch;
pub(crate) use transform::{FloatValue, TransformColumns};

use crate::cost::Cost;
use crate::counts::{Counter, GROUPS, Groups};
use crate::threads::{Plan, TaskThreads};

/// Values of the largest group, and of eight groups of the smallest.
#[cfg(target_arch = "x86_64")]
pub(crate) const PART: usize = 128;
/// Values quantized at a time: of enough groups to hide the latency of their scales, and of enough
/// blocks to hide that of their chains.
pub(crate) const RUN: usize = 16 * GROUPS;

/// Picoseconds of a value in vectors, about.
const VALUE_PS: u64 = 250;

/// The inner loops of a quantizer.
pub(crate) trait Encode: Sync {
    /// Picoseconds of a value, about, for [`Cost::quantize`].
    const VALUE_PS: u64 = VALUE_PS;

    /// Encodes whole groups: their scale bytes, unless they are `given`, and their codes (C4).
    /// Tells what they are like.
    fn run(
        &self,
        y: &[f32],
        spec: &QuantSpec,
        given: bool,
        scales: &mut [u8],
        codes: &mut [u8],
        groups: &mut Groups,
    );

    /// The bits of the largest magnitude of whole groups, those of some NaN if there is one.
    fn largest(&self, y: &[f32]) -> u32;

    /// Encodes whole groups as MXINT8: [`int8::run`], compiled for the instruction set.
    fn run_int8(&self, y: &[f32], scales: &mut [u8], elements: &mut [u8]) -> bool;

    /// The chains of whole blocks, rounded to `T`: in each, `y[j]` = fma chain over
    /// `x[i] * columns[i * block + j]` (C5).
    fn chains<T: FloatValue>(&self, block: usize, x: &[f32], columns: &[f32], y: &mut [f32]);
}

/// Quantizes `input`, transformed by `transform`, to `out`, whose shape is checked, and counts.
/// With row scales, whose room is checked too, the rows that a transform makes lie in `scratch`.
pub(crate) fn quantize(
    encoder: &impl Encode,
    threads: &TaskThreads,
    scratch: &RowScratch,
    input: &QuantizeInput<'_>,
    transform: Option<&TransformColumns>,
    out: &mut PackedMut<'_>,
) -> Result<QuantCounts, Error> {
    let given = input.scales().is_some();
    let (codes, scales, row_scales) = out.parts();
    if let Some(given) = input.scales() {
        scales.copy_from_slice(given);
    }
    let call = Call { encoder, threads, spec: input.spec(), given, transform };
    let row_scales = row_scales.filter(|_| input.spec().row_scales());
    with_floats!(FloatSlice, input.x(), x => match row_scales {
        None => quantize_typed(call, x, codes, scales),
        Some(rows) => rows::quantize(call, scratch, x, input.shape().k(), codes, scales, rows),
    })
}

/// A quantization, but for its values.
struct Call<'a, E> {
    encoder: &'a E,
    threads: &'a TaskThreads,
    spec: &'a QuantSpec,
    given: bool,
    transform: Option<&'a TransformColumns>,
}

impl<E: Encode> Call<'_, E> {
    /// Of quantizing so many values.
    fn cost(&self, values: usize) -> Cost {
        let transform = self.transform.map_or(0, TransformColumns::block);
        Cost::quantize(values, E::VALUE_PS).and(Cost::transform(values, transform))
    }
}

fn quantize_typed<T: FloatValue>(
    call: Call<'_, impl Encode>,
    x: &[T],
    codes: &mut [u8],
    scales: &mut [u8],
) -> Result<QuantCounts, Error> {
    if x.is_empty() {
        return Ok(QuantCounts::default());
    }
    let plan = call.threads.plan(call.cost(x.len()));
    let Call { encoder, threads, spec, given, transform } = call;
    let group = spec.group().get();
    let split = x.len().div_ceil(plan.tasks).next_multiple_of(RUN);
    let counter = Counter::new(spec, given);
    let per_byte = spec.element().per_byte();
    let part = |task: usize, x: &[T], codes: &mut [u8], scales: &mut [u8]| {
        let (mut widened, mut transformed) = ([0f32; RUN], [0f32; RUN]);
        let (mut groups, mut counts) = (Groups::new(spec, given), QuantCounts::default());
        let runs = x.chunks(RUN).zip(codes.chunks_mut(RUN / per_byte));
        for (run, ((x, codes), scales)) in runs.zip(scales.chunks_mut(RUN / group)).enumerate() {
            let y = match transform {
                None => T::widened(x, &mut widened),
                Some(t) => {
                    let x = T::widened(x, &mut widened);
                    let y = &mut transformed[..x.len()];
                    t.apply::<T>(encoder, (task * split + run * RUN) / t.block(), x, y);
                    y
                }
            };
            match spec.element() {
                Element::E2m1 => {
                    encoder.run(y, spec, given, scales, codes, &mut groups);
                    counter.run(y, &groups, scales, codes, &mut counts);
                }
                Element::Int8 => {
                    if !encoder.run_int8(y, scales, codes) {
                        int8::by_core(y, spec, scales, codes, &mut counts);
                    }
                }
            }
        }
        counts.elements += x.len() as u64;
        counts.groups += (x.len() / group) as u64;
        counts
    };
    let tasks = x.chunks(split).zip(codes.chunks_mut(split / per_byte));
    let tasks = tasks.zip(scales.chunks_mut(split / group)).enumerate();
    counted(threads, plan, tasks, |(task, ((x, codes), scales))| part(task, x, codes, scales))
}

/// Runs the tasks and sums up what they count; allocates nothing on one thread.
fn counted<T>(
    threads: &TaskThreads,
    plan: Plan,
    tasks: impl ExactSizeIterator<Item = T> + Send,
    part: impl Fn(T) -> QuantCounts + Sync,
) -> Result<QuantCounts, Error> {
    let all = Mutex::new(QuantCounts::default());
    threads.run(plan, tasks, |task| {
        let counts = part(task);
        *all.lock().unwrap_or_else(PoisonError::into_inner) += counts;
        Ok(())
    })?;
    Ok(all.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Transforms `x`, (rows, k) of whole blocks, into `out`, which is as long.
pub(crate) fn transform(
    encoder: &impl Encode,
    threads: &TaskThreads,
    columns: &TransformColumns,
    x: FloatSlice<'_>,
    out: FloatSliceMut<'_>,
) -> Result<(), Error> {
    let (expected, got) = (x.float_type(), out.float_type());
    match (x, out) {
        (FloatSlice::F32(x), FloatSliceMut::F32(out)) => {
            transform_typed(encoder, threads, columns, x, out)
        }
        (FloatSlice::F16(x), FloatSliceMut::F16(out)) => {
            transform_typed(encoder, threads, columns, x, out)
        }
        (FloatSlice::Bf16(x), FloatSliceMut::Bf16(out)) => {
            transform_typed(encoder, threads, columns, x, out)
        }
        _ => Err(Error::Float { what: Buffer::Output, expected, got }),
    }
}

fn transform_typed<T: FloatValue>(
    encoder: &impl Encode,
    threads: &TaskThreads,
    columns: &TransformColumns,
    x: &[T],
    out: &mut [T],
) -> Result<(), Error> {
    if x.is_empty() {
        return Ok(());
    }
    let plan = threads.plan(Cost::transform(x.len(), columns.block()));
    let split = x.len().div_ceil(plan.tasks).next_multiple_of(RUN);
    let parts = x.chunks(split).zip(out.chunks_mut(split)).enumerate();
    threads.run(plan, parts, |(task, (x, out))| {
        let (mut widened, mut transformed) = ([0f32; RUN], [0f32; RUN]);
        for (run, (x, out)) in x.chunks(RUN).zip(out.chunks_mut(RUN)).enumerate() {
            let first = (task * split + run * RUN) / columns.block();
            let x = T::widened(x, &mut widened);
            if let Some(out) = T::as_f32(out) {
                columns.apply::<T>(encoder, first, x, out);
                continue;
            }
            let y = &mut transformed[..x.len()];
            columns.apply::<T>(encoder, first, x, y);
            // Rounded to T already, so this changes nothing.
            out.iter_mut().zip(y).for_each(|(out, y)| *out = T::from_f32(*y));
        }
        Ok(())
    })?;
    Ok(())
}
