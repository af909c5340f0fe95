//! Dense values after the block transform, and their largest magnitude (C4.1, C5).
//!
//! The SIMD backend transforms where it is compiled in, the reference on all threads elsewhere; the
//! bits are the same. A maximum is exact, so neither threads nor blocks can change it.

use crate::error::Error;
use fp4_core::FloatVec;
use fp4_core::{Float, FloatSlice, Transform, with_floats};

/// Values worth a thread of their own.
#[cfg(any(test, not(feature = "cpu-simd")))]
const TASK: usize = 1 << 14;

/// Values that are transformed at a time where only their magnitude counts.
const AT_A_TIME: usize = 1 << 21;

/// A (rows, k) matrix after the transform (C5), in the type of its values.
///
/// # Errors
/// A k that the transform does not divide, or values that are no whole rows.
pub fn transformed(
    values: FloatSlice<'_>,
    k: usize,
    transform: &Transform<'_>,
) -> Result<FloatVec, Error> {
    let mut y = FloatVec::zeros(values.float_type(), values.len());
    #[cfg(feature = "cpu-simd")]
    fp4_backend_cpu_simd::CpuSimd::new().transform(values, k, transform, y.as_mut_slice())?;
    #[cfg(not(feature = "cpu-simd"))]
    by_reference(values, k, transform, &mut y)?;
    Ok(y)
}

/// The reference, on rows spread over threads.
#[cfg(any(test, not(feature = "cpu-simd")))]
fn by_reference(
    values: FloatSlice<'_>,
    k: usize,
    transform: &Transform<'_>,
    y: &mut FloatVec,
) -> Result<(), Error> {
    fn run<T: Float>(x: &[T], y: &mut [T], k: usize, t: &Transform<'_>) -> Result<(), Error> {
        // Rows that do not divide go in one piece, for the reference to refuse.
        let whole = k != 0 && x.len().is_multiple_of(k);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let rows =
            x.len().checked_div(k).unwrap_or(0).div_ceil(threads).max(TASK.div_ceil(k.max(1)));
        let each = if whole { rows.saturating_mul(k) } else { x.len() }.max(1);
        if each >= x.len() {
            // No thread for what is one task: there are machines without any.
            return Ok(fp4_core::reference::apply_transform(T::wrap(x), k, t, T::wrap_mut(y))?);
        }
        std::thread::scope(|scope| {
            let tasks = x.chunks(each).zip(y.chunks_mut(each)).map(|(x, y)| {
                let task =
                    move || fp4_core::reference::apply_transform(T::wrap(x), k, t, T::wrap_mut(y));
                scope.spawn(task)
            });
            let tasks: Vec<_> = tasks.collect();
            tasks.into_iter().try_for_each(|task| match task.join() {
                Ok(result) => Ok(result?),
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })
    }
    transform.expect_k(k)?;
    match (values, y) {
        (FloatSlice::F32(x), FloatVec::F32(y)) => run(x, y, k, transform),
        (FloatSlice::F16(x), FloatVec::F16(y)) => run(x, y, k, transform),
        (FloatSlice::Bf16(x), FloatVec::Bf16(y)) => run(x, y, k, transform),
        (x, y) => {
            let (expected, got) = (x.float_type(), y.float_type());
            Err(fp4_core::Error::Float { what: fp4_core::Buffer::Output, expected, got }.into())
        }
    }
}

/// Largest magnitude of a (rows, k) matrix after the optional transform; NaN if any value is NaN.
///
/// # Errors
/// As [`transformed`].
pub fn transformed_amax(
    values: FloatSlice<'_>,
    k: usize,
    transform: Option<&Transform<'_>>,
) -> Result<f32, Error> {
    let mut largest = 0.0;
    for_each_transformed(values, k, transform, |y| {
        largest = larger_amax(largest, amax(y));
        true
    })?;
    Ok(largest)
}

/// Hands a (rows, k) matrix after the optional transform to `f`, some whole rows at a time, for as
/// long as it says true.
///
/// # Errors
/// As [`transformed`].
pub(crate) fn for_each_transformed(
    values: FloatSlice<'_>,
    k: usize,
    transform: Option<&Transform<'_>>,
    mut f: impl FnMut(FloatSlice<'_>) -> bool,
) -> Result<(), Error> {
    if let Some(transform) = transform {
        transform.expect_k(k)?;
    }
    let rows = (AT_A_TIME / k.max(1)).max(1);
    with_floats!(FloatSlice, values, v => {
        for rows in v.chunks((rows * k).max(1)) {
            let more = match transform {
                None => f(rows.into()),
                Some(transform) => f(transformed(rows.into(), k, transform)?.as_slice()),
            };
            if !more {
                break;
            }
        }
    });
    Ok(())
}

/// Largest magnitude, NaN if any value is NaN (C4.1).
pub fn amax(values: FloatSlice<'_>) -> f32 {
    // The bits of magnitudes order as their values, and a NaN's are above those of infinity.
    fn bits<T: Float>(values: &[T]) -> u32 {
        let bits = values.iter().map(|x| x.to_f32().to_bits() & 0x7FFF_FFFF);
        bits.fold(0, u32::max)
    }
    let bits = with_floats!(FloatSlice, values, v => bits(v));
    let largest = f32::from_bits(bits);
    if largest.is_nan() { f32::NAN } else { largest }
}

/// The larger of two magnitudes; NaN if one is NaN.
pub fn larger_amax(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) }
}

#[cfg(test)]
mod tests {
    use fp4_core::FloatType;

    use super::*;

    #[test]
    fn a_transform_and_its_amax_are_the_references_for_all_types_and_cuts() {
        let (rows, k) = (300, 256);
        let x: Vec<f32> = (0..rows * k).map(|i| (i as f32 * 0.37).sin() * 8.0).collect();
        let t: Vec<f32> = (0..16 * 16 * 16).map(|i| (i as f32 * 0.11).cos()).collect();
        for ty in [FloatType::F32, FloatType::F16, FloatType::Bf16] {
            let mut x = FloatVec::F32(x.clone()).converted(ty);
            for transform in [
                Transform::per_block(&t[..], 16, 16).unwrap(),
                Transform::shared(&t[..1024], 32).unwrap(),
            ] {
                let mut expected = FloatVec::zeros(ty, rows * k);
                let out = expected.as_mut_slice();
                fp4_core::reference::apply_transform(x.as_slice(), k, &transform, out).unwrap();
                let same = |y: &FloatVec| assert_eq!(y.to_le_bytes(), expected.to_le_bytes());
                same(&transformed(x.as_slice(), k, &transform).unwrap());
                let mut y = FloatVec::zeros(ty, rows * k);
                by_reference(x.as_slice(), k, &transform, &mut y).unwrap();
                same(&y);
                let largest = (0..rows * k)
                    .filter_map(|i| expected.as_slice().get_f32(i))
                    .fold(0f32, |a, y| a.max(y.abs()));
                let got = transformed_amax(x.as_slice(), k, Some(&transform)).unwrap();
                assert_eq!(got.to_bits(), largest.to_bits(), "{ty}");
            }
            if let FloatVec::F32(x) = &mut x {
                x[70_000] = f32::NAN;
                let t = Transform::shared(&t[..1024], 32).unwrap();
                assert!(transformed_amax(x[..].into(), k, Some(&t)).unwrap().is_nan());
            }
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors() {
        let t = vec![0f32; 1024];
        let t = Transform::shared(&t[..], 32).unwrap();
        let x = vec![0f32; 96];
        for (len, k) in [(96, 48), (95, 32), (96, 64)] {
            assert!(transformed(x[..len].into(), k, &t).is_err(), "{len} {k}");
            let mut y = FloatVec::zeros(FloatType::F32, len);
            assert!(by_reference(x[..len].into(), k, &t, &mut y).is_err(), "{len} {k}");
            assert!(transformed_amax(x[..len].into(), k, Some(&t)).is_err(), "{len} {k}");
        }
        assert_eq!(transformed(x[..0].into(), 0, &t).unwrap().as_slice().len(), 0);
    }

    #[test]
    fn one_nan_makes_the_amax_nan() {
        let mut x = vec![1f32; 3 * TASK];
        assert_eq!(amax(x[..].into()), 1.0);
        x[5] = -2.0;
        assert_eq!(amax(x[..].into()), 2.0);
        x[TASK + 5] = -f32::NAN;
        assert_eq!(amax(x[..].into()).to_bits(), f32::NAN.to_bits());
        assert_eq!(amax((&[0f32; 0][..]).into()).to_bits(), 0);
        assert!(larger_amax(f32::NAN, 1.0).is_nan() && larger_amax(1.0, f32::NAN).is_nan());
    }
}
