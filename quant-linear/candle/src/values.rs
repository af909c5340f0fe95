//! The values of a tensor in row-major order: where they lie, or gathered once.
//!
//! ```text
//! drop the dimensions of 1; merge two neighbours where stride[outer] = size * stride of the inner
//! one run of stride 1 is left        a slice of the storage, nothing copied
//! else                               for each outer index: the innermost run, copied
//! ```
//!
//! Worked example: (2, 3, 4) with strides (1, 8, 2), a transpose of every second value. Neighbours
//! 8 and 2 merge, as 8 = 4 * 2, to 12 values of stride 2; then 2 runs of 12 values are copied, one
//! from the offset, one from the value after it.
//!
//! Where a layout reaches beyond its storage, which candle's never do, there is an error.

use std::borrow::Cow;

use candle_core::{CpuStorage, Layout, Storage, Tensor};
use fp4_core::{Float, FloatSlice};

use crate::error::Error;

/// One dimension: values, and how far apart they are.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Run {
    len: usize,
    stride: usize,
}

/// The dimensions that matter, neighbours merged where they can be, the innermost last.
fn runs(layout: &Layout) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::with_capacity(layout.dims().len());
    let dims = layout.dims().iter().zip(layout.stride());
    for (&len, &stride) in dims.filter(|(len, _)| **len != 1) {
        match runs.last_mut() {
            Some(outer) if len.checked_mul(stride) == Some(outer.stride) => {
                *outer = Run { len: outer.len.saturating_mul(len), stride };
            }
            _ => runs.push(Run { len, stride }),
        }
    }
    runs
}

/// The values of `data` that a layout shows, row-major.
///
/// # Errors
/// [`Error::Storage`] for a layout that reaches beyond the data, [`Error::Memory`].
pub(crate) fn of<'a, T: Float>(data: &'a [T], layout: &Layout) -> Result<Cow<'a, [T]>, Error> {
    let beyond = || Error::Storage { shape: layout.dims().to_vec(), len: data.len() };
    if layout.dims().contains(&0) {
        return Ok(Cow::Borrowed(&[]));
    }
    let len = layout.dims().iter().try_fold(1usize, |n, &dim| n.checked_mul(dim));
    let len = len.ok_or_else(beyond)?;
    let start = layout.start_offset();
    let mut outer = runs(layout);
    let inner = outer.pop().unwrap_or(Run { len: 1, stride: 1 });
    if outer.is_empty() && inner.stride == 1 {
        let end = start.checked_add(inner.len);
        return end.and_then(|end| data.get(start..end)).map(Cow::Borrowed).ok_or_else(beyond);
    }
    // The last value that any index reaches: all others lie before it.
    let reach = outer.iter().chain([&inner]).try_fold(start, |at, run| {
        (run.len - 1).checked_mul(run.stride).and_then(|far| at.checked_add(far))
    });
    if reach.is_none_or(|last| last >= data.len()) {
        return Err(beyond());
    }
    let mut values = Vec::new();
    values.try_reserve_exact(len).map_err(|_| Error::Memory { len })?;
    let mut index = vec![0; outer.len()];
    let mut at = start;
    loop {
        match inner.stride {
            1 => values.extend_from_slice(&data[at..at + inner.len]),
            0 => values.resize(values.len() + inner.len, data[at]),
            step => values.extend(data[at..].iter().step_by(step).take(inner.len)),
        }
        // Onward like an odometer: the first digit from the right that has one more.
        let digits = outer.iter().zip(&mut index).rev();
        let mut turned = false;
        for (run, digit) in digits {
            if *digit + 1 < run.len {
                (*digit, at, turned) = (*digit + 1, at + run.stride, true);
                break;
            }
            at -= *digit * run.stride;
            *digit = 0;
        }
        if !turned {
            return Ok(Cow::Owned(values));
        }
    }
}

/// Gives the values of a tensor to `take`; `what` names it in errors.
///
/// # Errors
/// [`Error::DType`], [`Error::Device`], those of [`of`] and of `take`.
pub(crate) fn with<R>(
    tensor: &Tensor,
    what: &'static str,
    take: impl FnOnce(FloatSlice<'_>) -> Result<R, Error>,
) -> Result<R, Error> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(CpuStorage::F32(data)) => take(f32::wrap(&of(data, layout)?)),
        Storage::Cpu(CpuStorage::F16(data)) => take(Float::wrap(&of(data, layout)?)),
        Storage::Cpu(CpuStorage::BF16(data)) => take(Float::wrap(&of(data, layout)?)),
        Storage::Cpu(_) => Err(Error::DType { what, got: tensor.dtype() }),
        _ => Err(Error::Device { what, got: format!("{:?}", tensor.device().location()) }),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Shape;

    use super::*;

    fn layout(dims: &[usize], stride: &[usize], start: usize) -> Layout {
        Layout::new(Shape::from(dims), stride.to_vec(), start)
    }

    /// What a layout shows, index by index.
    fn by_index(data: &[f32], layout: &Layout) -> Vec<f32> {
        let len: usize = layout.dims().iter().product();
        let value = |mut flat: usize| {
            let mut at = layout.start_offset();
            for (&dim, &stride) in layout.dims().iter().zip(layout.stride()).rev() {
                at += flat % dim * stride;
                flat /= dim;
            }
            data[at]
        };
        (0..len).map(value).collect()
    }

    #[test]
    fn neighbours_merge_where_one_stride_is_the_others_whole() {
        let run = |len, stride| Run { len, stride };
        assert_eq!(runs(&layout(&[2, 3, 4], &[12, 4, 1], 0)), [run(24, 1)]);
        assert_eq!(runs(&layout(&[2, 3, 4], &[1, 8, 2], 0)), [run(2, 1), run(12, 2)]);
        assert_eq!(runs(&layout(&[2, 1, 4], &[4, 99, 1], 0)), [run(8, 1)]);
        assert_eq!(runs(&layout(&[2, 3], &[0, 0], 0)), [run(6, 0)]);
        assert_eq!(runs(&layout(&[], &[], 0)), []);
    }

    #[test]
    fn every_layout_shows_the_values_that_its_indices_name() {
        let data: Vec<f32> = (0..200u8).map(f32::from).collect();
        let mut checked = 0;
        for dims in [&[1][..], &[5], &[3, 4], &[2, 3, 4], &[2, 1, 3, 2], &[1, 1], &[2, 2, 2, 2]] {
            // All strides of a few values each, whatever they overlap.
            for number in 0..7usize.pow(dims.len() as u32) {
                let digit = |place| number / 7usize.pow(place) % 7;
                let stride: Vec<_> =
                    (0..dims.len()).map(|d| [0, 1, 2, 3, 4, 8, 12][digit(d as u32)]).collect();
                for start in [0, 3] {
                    let layout = layout(dims, &stride, start);
                    let values = of(&data, &layout).unwrap();
                    assert_eq!(values, by_index(&data, &layout), "{layout:?}");
                    let borrowed = matches!(values, Cow::Borrowed(_));
                    assert!(borrowed || !layout.is_contiguous(), "{layout:?}");
                    checked += 1;
                }
            }
        }
        assert!(checked > 10_000, "{checked}");
    }

    #[test]
    fn a_contiguous_view_is_a_slice_of_the_storage() {
        let data: Vec<f32> = (0..40u8).map(f32::from).collect();
        let values = of(&data, &layout(&[2, 4], &[4, 1], 8)).unwrap();
        assert!(matches!(values, Cow::Borrowed(part) if std::ptr::eq(part, &data[8..16])));
    }

    #[test]
    fn a_layout_beyond_its_storage_or_memory_is_an_error() {
        let data = [0f32; 10];
        for (dims, stride, start) in [
            (&[2, 6][..], &[6, 1][..], 0),
            (&[2, 5], &[5, 1], 1),
            (&[2, 5], &[6, 1], 0),
            (&[5, 2], &[2, 2], 1),
            (&[2], &[usize::MAX], 1),
            (&[usize::MAX, 2], &[0, 0], 0),
            (&[1], &[1], 10),
        ] {
            let error = of(&data, &layout(dims, stride, start)).unwrap_err();
            assert!(matches!(error, Error::Storage { len: 10, .. }), "{dims:?}: {error}");
        }
        let error = of(&data, &layout(&[1 << 40, 1 << 20], &[0, 1], 0)).unwrap_err();
        assert!(matches!(error, Error::Storage { .. }), "{error}");
        let error = of(&data, &layout(&[1 << 58], &[0], 0)).unwrap_err();
        assert!(matches!(error, Error::Memory { .. }), "{error}");
        let none = of(&data, &layout(&[3, 0, usize::MAX], &[7, 7, 7], 99)).unwrap();
        assert!(none.is_empty());
    }
}
