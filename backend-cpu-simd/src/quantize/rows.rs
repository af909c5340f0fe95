//! Quantization with row scales: a global scale for each row, from its own largest magnitude (C4).
//!
//! ```text
//! for each row:
//!     y = x, or x transformed, kept as f32: the row is transformed once
//!     r = the row's scale, by core's rule, from the largest |y|
//!     the runs of y by the usual kernels, with r as global scale
//! ```
//!
//! The first pass is a maximum over bits: those of non-negative floats order as their values, and
//! a NaN's are above those of infinity. Its values are still in the first cache when the second
//! reads them. Without a transform nothing is kept: f16 and bf16 are widened twice, which costs
//! less than writing a row and reading it.
//!
//! Threads take whole rows. A single long row is one task.
//!
//! Worked example: a row whose largest magnitude is 5376 has r = 5376 / 2688 = 2; its group with
//! that element has s = 5376 / (6 * 2) = 448, the largest scale, and the element becomes code 7.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fp4_core::{Error, FloatType, QuantCounts};

use super::{Call, Encode, FloatValue, RUN, counted};
use crate::counts::{Counter, Groups};

/// Most values of rows that are kept for later calls: 4 MiB.
const KEPT_VALUES: usize = 1 << 20;

/// Transformed rows that a call leaves for the next ones, so that it need not allocate. The lock is
/// held to push or pop.
#[derive(Debug, Clone, Default)]
pub(crate) struct RowScratch(Arc<Mutex<Vec<Vec<f32>>>>);

impl RowScratch {
    fn kept(&self) -> MutexGuard<'_, Vec<Vec<f32>>> {
        // Nothing panics while it is locked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A row of `len` values, whatever they are.
    fn take(&self, len: usize) -> Vec<f32> {
        let kept = self.kept().pop();
        let mut row = kept.unwrap_or_default();
        row.resize(len, 0.0);
        row
    }

    /// Keeps a row for a later call, if there is room.
    fn give(&self, row: Vec<f32>) {
        let mut kept = self.kept();
        if row.capacity() + values(&kept) <= KEPT_VALUES {
            kept.push(row);
        } else {
            drop(kept);
        }
    }

    /// Frees what is kept.
    pub(crate) fn release(&self) {
        let kept = mem::take(&mut *self.kept());
        drop(kept);
    }

    /// Bytes kept.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<f32>() * values(&self.kept())
    }
}

fn values(rows: &[Vec<f32>]) -> usize {
    rows.iter().map(Vec::capacity).sum()
}

/// Quantizes rows of `k` values, and writes their scales, one for each.
pub(super) fn quantize<T: FloatValue>(
    call: Call<'_, impl Encode>,
    scratch: &RowScratch,
    x: &[T],
    k: usize,
    codes: &mut [u8],
    scales: &mut [u8],
    row_scales: &mut [f32],
) -> Result<QuantCounts, Error> {
    if x.is_empty() {
        // Rows without elements have scales all the same.
        row_scales.fill(call.spec.of_row(0.0).global_scale());
        return Ok(QuantCounts::default());
    }
    let plan = call.threads.plan(call.cost(x.len()));
    let Call { encoder, threads, spec, given, transform } = call;
    let group = spec.group().get();
    let (bytes, groups) = (k / spec.element().per_byte(), k / group);
    let part = |x: &[T], codes: &mut [u8], scales: &mut [u8], row_scales: &mut [f32]| {
        let mut counts = QuantCounts::default();
        let mut widened = [0f32; RUN];
        let mut transformed = transform.map(|_| scratch.take(k));
        let rows = x.chunks_exact(k).zip(codes.chunks_exact_mut(bytes));
        let rows = rows.zip(scales.chunks_exact_mut(groups)).zip(row_scales);
        for (((x, codes), scales), row_scale) in rows {
            let amax = match (transform, &mut transformed) {
                (Some(t), Some(y)) => {
                    for (run, (x, y)) in x.chunks(RUN).zip(y.chunks_mut(RUN)).enumerate() {
                        let first = run * RUN / t.block();
                        t.apply::<T>(encoder, first, T::widened(x, &mut widened), y);
                    }
                    encoder.largest(y)
                }
                _ => {
                    // What is f32 already is not copied to `widened`, so it may be longer.
                    let step = if T::TYPE == FloatType::F32 { k } else { RUN };
                    x.chunks(step)
                        .fold(0, |amax, x| amax.max(encoder.largest(T::widened(x, &mut widened))))
                }
            };
            let spec = spec.of_row(f32::from_bits(amax));
            *row_scale = spec.global_scale();
            let (counter, mut known) = (Counter::new(&spec, given), Groups::new(&spec, given));
            let runs = codes.chunks_mut(RUN / spec.element().per_byte());
            let runs = runs.zip(scales.chunks_mut(RUN / group)).enumerate();
            for (run, (codes, scales)) in runs {
                let at = run * RUN..k.min((run + 1) * RUN);
                let y = match &transformed {
                    Some(y) => &y[at],
                    None => T::widened(&x[at], &mut widened),
                };
                encoder.run(y, &spec, given, scales, codes, &mut known);
                counter.run(y, &known, scales, codes, &mut counts);
            }
        }
        if let Some(row) = transformed {
            scratch.give(row);
        }
        counts.elements += x.len() as u64;
        counts.groups += (x.len() / group) as u64;
        counts
    };
    let rows = row_scales.len().div_ceil(plan.tasks);
    let tasks = x.chunks(rows * k).zip(codes.chunks_mut(rows * bytes));
    let tasks = tasks.zip(scales.chunks_mut(rows * groups)).zip(row_scales.chunks_mut(rows));
    counted(threads, plan, tasks, |(((x, codes), scales), row_scales)| {
        part(x, codes, scales, row_scales)
    })
}

#[cfg(test)]
mod tests {
    use fp4_core::TieMode;

    use super::*;
    use crate::Isa;
    use crate::engine::{Engine, by_engine};
    use crate::kernels::portable;

    #[test]
    fn the_largest_bits_are_those_of_the_largest_magnitude_and_a_nan_s_if_there_is_one() {
        let mut compared = 0;
        for isa in Isa::available() {
            let engine = Engine::new(isa).unwrap();
            let largest = |y: &[f32]| {
                by_engine!(engine,
                    kernels, () => kernels.largest(y),
                    portable, () => portable::Encoder::new(TieMode::Even).largest(y)
                )
            };
            for len in [0, 16, 32, 48, 112, 128, 1040] {
                for at in 0..len {
                    let mut y = vec![-(2f32.powi(-130)); len];
                    for value in [-3.0, f32::MAX, f32::NEG_INFINITY] {
                        y[at] = value;
                        let expected = value.abs().to_bits();
                        assert_eq!(largest(&y), expected, "{isa}: {value:e} at {at} of {len}");
                    }
                    for nan in [0x7F80_0001, 0xFFC0_0000] {
                        y[at] = f32::from_bits(nan);
                        y[(at + 7) % len] = f32::INFINITY;
                        assert!(largest(&y) > 0x7F80_0000, "{isa}: {nan:#x} at {at} of {len}");
                    }
                    compared += 5;
                }
                assert_eq!(largest(&vec![-0.0; len]), 0);
            }
        }
        println!("compared {compared} magnitudes");
        assert!(compared > 5000);
    }

    #[test]
    fn no_more_is_kept_than_the_bound_and_a_release_frees_it() {
        let scratch = RowScratch::default();
        let len = KEPT_VALUES / 3;
        let rows: Vec<_> = (0..5).map(|_| scratch.take(len)).collect();
        rows.into_iter().for_each(|row| scratch.give(row));
        assert_eq!(scratch.bytes(), 3 * len * size_of::<f32>());
        assert_eq!(scratch.take(8).len(), 8);
        scratch.clone().release();
        assert_eq!(scratch.bytes(), 0);
    }
}
