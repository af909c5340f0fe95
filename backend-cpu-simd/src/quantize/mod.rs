//! The quantizer, eight values at a time (C4).
//!
//! ```text
//! for each run of up to 128 values (whole groups; whole blocks if there is a transform):
//!     y = x widened, and transformed
//!     for each group of y:
//!         scale = given, or encode(amax / (ss * gs))       core's rule, once per group
//!         d = decode(scale) * gs
//!         q = y / d, a true division, eight at a time; a signed zero if d = 0
//!         code = number of thresholds below |q|, and the sign
//! ```
//!
//! Rows follow each other without gaps in all buffers, and K is whole groups and blocks, so runs
//! and tasks need not stop at the end of a row.
//!
//! Rounding to a code compares the bits of |q| as an integer, which orders non-negative floats as
//! their values are ordered: `bits > m` is |q| > midpoint for m its bits, and |q| >= midpoint for
//! one less. So the tie mode is in the thresholds, except that `Down` and `Up` differ by sign: there
//! one is added to or taken from the bits of negative values. The thresholds are made by asking
//! core how it rounds each midpoint.
//!
//! Worked example, ties to even: q = -0.75 is the midpoint of codes 1 and 2. Core takes code 2, so
//! that threshold is one below the bits of 0.75; the thresholds of 0.25 and 0.75 are below, the
//! code is 2 and with the sign 0xA.

mod transform;

use fp4_core::{
    Buffer, E2m1, Error, FloatSlice, FloatSliceMut, PackedMut, QuantCounts, QuantSpec,
    QuantizeInput, ScaleRule, TieMode, reference, with_floats,
};
use wide::{bytemuck, f32x8, i32x8};

pub(crate) use transform::{Columns, Value};

use crate::counts::{Counter, Groups};
use crate::threads::Threads;

/// Values quantized at a time; the largest group and the largest block.
pub(crate) const RUN: usize = 128;
/// Values worth a task of their own; fewer if each takes a row of the transform.
const TASK_VALUES: usize = 1 << 14;

/// The inner loops of a quantizer.
pub(crate) trait Encode: Sync {
    /// Encodes whole groups: their scale bytes, unless they are `given`, and their codes (C4). Tells
    /// what they are like.
    fn run(
        &self,
        y: &[f32],
        spec: &QuantSpec,
        given: bool,
        scales: &mut [u8],
        codes: &mut [u8],
        groups: &mut Groups,
    );

    /// The chains of one block, rounded to `T`: `y[j]` = fma chain over
    /// `x[i] * columns[i * x.len() + j]` (C5).
    fn chains<T: Value>(&self, x: &[f32], columns: &[f32], y: &mut [f32]);
}

/// Quantizes `input`, transformed by `transform`, to `out`, whose shape is checked, and counts.
pub(crate) fn quantize(
    encoder: &impl Encode,
    threads: &Threads,
    input: &QuantizeInput<'_>,
    transform: Option<&Columns>,
    out: &mut PackedMut<'_>,
) -> Result<QuantCounts, Error> {
    with_floats!(FloatSlice, input.x(), x => {
        quantize_typed(encoder, threads, x, input, transform, out)
    })
}

fn quantize_typed<T: Value>(
    encoder: &impl Encode,
    threads: &Threads,
    x: &[T],
    input: &QuantizeInput<'_>,
    transform: Option<&Columns>,
    out: &mut PackedMut<'_>,
) -> Result<QuantCounts, Error> {
    if x.is_empty() {
        return Ok(QuantCounts::default());
    }
    let spec = input.spec();
    let group = spec.group().get();
    let work = x.len().saturating_mul(transform.map_or(1, |t| t.block() / 4));
    let tasks = threads.tasks(work, TASK_VALUES);
    let split = x.len().div_ceil(tasks).next_multiple_of(RUN);
    let given = input.scales().is_some();
    let counter = Counter::new(spec, given);
    let (codes, scales) = out.buffers();
    if let Some(given) = input.scales() {
        scales.copy_from_slice(given);
    }
    let part = |task: usize, x: &[T], codes: &mut [u8], scales: &mut [u8]| {
        let (mut widened, mut transformed) = ([0f32; RUN], [0f32; RUN]);
        let (mut groups, mut counts) = (Groups::default(), QuantCounts::default());
        let runs = x.chunks(RUN).zip(codes.chunks_mut(RUN / 2));
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
            encoder.run(y, spec, given, scales, codes, &mut groups);
            counter.run(y, &groups, scales, codes, &mut counts);
        }
        counts
    };
    if tasks == 1 {
        return Ok(part(0, x, codes, scales));
    }
    let tasks = x.chunks(split).zip(codes.chunks_mut(split / 2));
    let tasks = tasks.zip(scales.chunks_mut(split / group)).enumerate();
    let counts = threads
        .run(tasks.collect(), |(task, ((x, codes), scales))| Ok(part(task, x, codes, scales)))?;
    Ok(counts.into_iter().sum())
}

/// Transforms `x`, (rows, k) of whole blocks, into `out`, which is as long.
pub(crate) fn transform(
    encoder: &impl Encode,
    threads: &Threads,
    columns: &Columns,
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

fn transform_typed<T: Value>(
    encoder: &impl Encode,
    threads: &Threads,
    columns: &Columns,
    x: &[T],
    out: &mut [T],
) -> Result<(), Error> {
    if x.is_empty() {
        return Ok(());
    }
    let tasks = threads.tasks(x.len().saturating_mul(columns.block() / 4), TASK_VALUES);
    let split = x.len().div_ceil(tasks).next_multiple_of(RUN);
    let parts = x.chunks(split).zip(out.chunks_mut(split)).enumerate();
    threads.run(parts.collect(), |(task, (x, out))| {
        let (mut widened, mut transformed) = ([0f32; RUN], [0f32; RUN]);
        for (run, (x, out)) in x.chunks(RUN).zip(out.chunks_mut(RUN)).enumerate() {
            let first = (task * split + run * RUN) / columns.block();
            let y = &mut transformed[..x.len()];
            columns.apply::<T>(encoder, first, T::widened(x, &mut widened), y);
            // Rounded to T already, so this changes nothing.
            out.iter_mut().zip(y).for_each(|(out, y)| *out = T::from_f32(*y));
        }
        Ok(())
    })?;
    Ok(())
}

/// Largest magnitude of a group, NaN if any element is NaN (C4.1).
fn amax(y: &[f32]) -> f32 {
    let (mut largest, mut nan) = (f32x8::splat(0.0), f32x8::splat(0.0));
    for &y in y.as_chunks::<8>().0 {
        let y = f32x8::new(y);
        // With a NaN the maximum is unspecified, and not used.
        largest = largest.fast_max(y.abs());
        nan |= y.is_nan();
    }
    if nan.any() { f32::NAN } else { largest.to_array().into_iter().fold(0.0, f32::max) }
}

/// Rounding to codes under one tie mode (C1).
pub(crate) struct Encoder {
    /// Bits that |q| must exceed to reach codes 1 to 7, for positive q.
    thresholds: [i32; 7],
    /// Added to the bits of negative q.
    negative: i32,
}

impl Encode for Encoder {
    fn run(
        &self,
        y: &[f32],
        spec: &QuantSpec,
        given: bool,
        scales: &mut [u8],
        codes: &mut [u8],
        groups: &mut Groups,
    ) {
        let group = spec.group().get();
        let encoded = y.chunks_exact(group).zip(codes.chunks_exact_mut(group / 2)).zip(scales);
        let known = groups.largest.iter_mut().zip(&mut groups.units);
        for (((y, codes), scale), (largest, unit)) in encoded.zip(known) {
            *largest = amax(y);
            if !given {
                *scale = match spec.rule() {
                    ScaleRule::Nearest => spec.encode_scale(*largest),
                    _ => reference::group_scale(y, spec),
                };
            }
            *unit = spec.unit(*scale);
            self.group(y, *unit, codes);
        }
    }

    fn chains<T: Value>(&self, x: &[f32], columns: &[f32], y: &mut [f32]) {
        T::chains(x, columns, y);
        for y in y {
            *y = T::from_f32(*y).to_f32();
        }
    }
}

impl Encoder {
    pub(crate) fn new(tie: TieMode) -> Self {
        let value = |code: usize| E2m1::from_bits(code as u8).to_f32();
        let midpoint = |lower: usize| (value(lower) + value(lower + 1)) * 0.5;
        // 1 if the tie goes to the code of larger magnitude.
        let up = |lower: usize, sign: f32| {
            let code = E2m1::from_f32_tie(midpoint(lower).copysign(sign), tie).to_bits() & 7;
            i32::from(code) - lower as i32
        };
        Encoder {
            thresholds: std::array::from_fn(|i| midpoint(i).to_bits() as i32 - up(i, 1.0)),
            negative: up(0, -1.0) - up(0, 1.0),
        }
    }

    /// Encodes one group whose unit is `d` (C4.3).
    #[inline]
    fn group(&self, y: &[f32], d: f32, codes: &mut [u8]) {
        let chunks = y.as_chunks::<8>().0.iter().zip(codes.as_chunks_mut::<4>().0);
        if d == 0.0 {
            for (&y, codes) in chunks {
                *codes = pack(sign_bits(bytemuck::cast(f32x8::new(y))));
            }
        } else {
            for (&y, codes) in chunks {
                *codes = pack(self.encode(f32x8::new(y) / f32x8::splat(d)));
            }
        }
    }

    #[inline]
    fn encode(&self, q: f32x8) -> i32x8 {
        let bits: i32x8 = bytemuck::cast(q);
        let magnitude = bits & i32x8::splat(i32::MAX);
        let nan = magnitude.simd_gt(i32x8::splat(f32::INFINITY.to_bits() as i32));
        let adjusted: i32x8 = magnitude + ((bits >> 31) & i32x8::splat(self.negative));
        let mut code = i32x8::splat(0);
        for threshold in self.thresholds {
            code -= adjusted.simd_gt(i32x8::splat(threshold));
        }
        // NaN is +6 whatever its sign (C1).
        ((code | sign_bits(bits)) & !nan) | (nan & i32x8::splat(7))
    }
}

/// The sign of each value as bit 3 of a code.
#[inline]
fn sign_bits(bits: i32x8) -> i32x8 {
    (bits >> 28) & i32x8::splat(8)
}

/// Packs eight codes, low nibble first (C3).
#[inline]
fn pack(codes: i32x8) -> [u8; 4] {
    let codes = codes.to_array();
    std::array::from_fn(|i| (codes[2 * i] | codes[2 * i + 1] << 4) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_equals_core_around_every_threshold() {
        let mut compared = 0;
        for tie in TieMode::ALL {
            let encoder = Encoder::new(tie);
            let mut values = vec![0.0, f32::MIN_POSITIVE, 6.0, 1e9, f32::INFINITY, f32::NAN];
            values.extend([f32::from_bits(0x7FFF_FFFF), f32::from_bits(1), f32::MAX]);
            for midpoint in [0.25f32, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0] {
                values.extend((0..9).map(|u| f32::from_bits(midpoint.to_bits() - 4 + u)));
            }
            for v in values.into_iter().flat_map(|v| [v, -v]) {
                let got = encoder.encode(f32x8::splat(v)).to_array()[3];
                let expected = E2m1::from_f32_tie(v, tie).to_bits();
                assert_eq!(got, i32::from(expected), "{v:e} {tie:?}");
                compared += 1;
            }
        }
        println!("compared {compared} codes");
        assert!(compared > 500);
    }
}
