//! Reference quantizer with the optional block transform in front ([C4], [C5]).
//!
//! ```text
//! for each row, for each chunk of max(Bt, G) columns:
//!     y = x, or per block: y[j] = round(acc), acc = +0; for i ascending: acc = fma(x[i], T[j][i], acc)
//!     for each group of y:
//!         scale = given, or encode(amax / (ss * gs)), or by another rule of the spec
//!         d = decode(scale) * gs
//!         code = encode(y / d), or a zero with the sign of y where d = 0 (of a NaN y too)
//! ```
//!
//! A chunk fits 128 values on the stack because block and group are powers of two up to 128: the
//! larger is a multiple of the smaller and divides K.
//!
//! [C4]: crate::contract#c4
//! [C5]: crate::contract#c5

use crate::backend::QuantizeInput;
use crate::counts::QuantCounts;
use crate::e2m1::E2m1;
use crate::environment::check_environment;
use crate::error::Error;
use crate::float::{Float, FloatSlice, FloatSliceMut};
use crate::fma::fma;
use crate::format::Element;
use crate::mxint8;
use crate::packed::PackedMut;
use crate::reference::scale::group_scale;
use crate::spec::{QuantSpec, nvfp4_row_scale};
use crate::transform::Transform;
use crate::with_floats;

/// A quotient beyond this is clipped: where the code above 6 would be nearer.
const CLIPPED: f32 = 7.0;
/// The same of MXINT8: where 128 would be nearer.
const CLIPPED_INT8: f64 = 127.5;
/// Largest group and largest transform block.
const MAX_CHUNK: usize = 128;

/// Quantizes a (rows, k) matrix into packed codes and row-major scales (C4), after the optional
/// transform (C5).
///
/// # Errors
/// [`Error::FormatMismatch`] or [`Error::ShapeMismatch`] if `out` does not have the shape of the
/// input, [`Error::Len`] if row scales are asked for and `out` has no room for them,
/// [`Error::Environment`]. `out` is then untouched.
pub fn quantize(input: &QuantizeInput<'_>, out: &mut PackedMut<'_>) -> Result<QuantCounts, Error> {
    check_environment()?;
    input.expect_output(out.shape())?;
    input.expect_row_scales(out)?;
    Ok(with_floats!(FloatSlice, input.x(), x => quantize_typed(x, input, out)))
}

fn quantize_typed<T: Float>(
    x: &[T],
    input: &QuantizeInput<'_>,
    out: &mut PackedMut<'_>,
) -> QuantCounts {
    let mut counts = QuantCounts::default();
    let k = input.shape().k();
    if k == 0 {
        // Rows without elements have row scales all the same.
        let scales = out.row_scales_mut().filter(|_| input.spec().row_scales());
        scales.into_iter().flatten().for_each(|scale| *scale = nvfp4_row_scale(0.0));
        return counts;
    }
    let shape = input.shape();
    let (groups, group) = (shape.row_groups().max(1), shape.group().get());
    let mut given = input.scales().map(|given| given.chunks_exact(groups));
    let (codes, scales, mut row_scales) = out.parts();
    let codes = codes.chunks_exact_mut(shape.row_bytes().max(1));
    let rows = x.chunks_exact(k).zip(codes.zip(scales.chunks_exact_mut(groups)));
    for (i, (row, (codes, scales))) in rows.enumerate() {
        let mut spec = *input.spec();
        if spec.row_scales() {
            let mut largest = 0f32;
            for_each_chunk(row, input, |y| largest = larger(largest, amax(y)));
            spec = spec.of_row(largest);
            if let Some(scale) = row_scales.as_deref_mut().and_then(|scales| scales.get_mut(i)) {
                *scale = spec.global_scale();
            }
        }
        let mut given = given.as_mut().and_then(Iterator::next).map(<[u8]>::iter);
        let mut out = codes.chunks_exact_mut(shape.group_bytes().max(1)).zip(scales);
        for_each_chunk(row, input, |y| {
            for (y, (codes, scale)) in y.chunks_exact(group).zip(&mut out) {
                let stored = given.as_mut().and_then(Iterator::next);
                *scale = stored.copied().unwrap_or_else(|| group_scale(y, &spec));
                quantize_group(y, &spec, *scale, codes);
                counts += count_group(y, &spec, *scale, stored.is_some(), codes);
            }
        });
    }
    counts
}

/// Hands the values of a row, transformed, to `f` in whole groups.
fn for_each_chunk<T: Float>(row: &[T], input: &QuantizeInput<'_>, mut f: impl FnMut(&[f32])) {
    let group = input.spec().group().get();
    let chunk = input.transform().map_or(group, |t| group.max(t.block()));
    for (c, x) in row.chunks_exact(chunk).enumerate() {
        let mut buffer = [0f32; MAX_CHUNK];
        let y = &mut buffer[..chunk];
        match input.transform() {
            Some(t) => transform_chunk(x, t, c * chunk / t.block(), y),
            None => y.iter_mut().zip(x).for_each(|(y, x)| *y = x.to_f32()),
        }
        f(y);
    }
}

/// The larger of two magnitudes, NaN if either is (C4.1).
fn larger(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) }
}

/// Largest magnitude of a group, NaN if any element is NaN (C4.1).
pub(super) fn amax(y: &[f32]) -> f32 {
    y.iter().fold(0f32, |amax, y| larger(amax, y.abs()))
}

/// Encodes one group under its scale byte (C4.3, C10).
fn quantize_group(y: &[f32], spec: &QuantSpec, scale: u8, codes: &mut [u8]) {
    if spec.element() == Element::Int8 {
        let is_nan = spec.scale_type().is_nan(scale);
        for (byte, &y) in codes.iter_mut().zip(y) {
            *byte = if is_nan { 0 } else { mxint8::encode(y, scale) as u8 };
        }
        return;
    }
    let d = spec.unit(scale);
    let encode = |y: f32| {
        // The sign of a NaN counts too: under d = 0 it becomes a zero of that sign, where
        // otherwise every NaN is 0x7.
        let q = if d == 0.0 { 0f32.copysign(y) } else { y / d };
        E2m1::from_f32_tie(q, spec.tie()).to_bits()
    };
    for (byte, pair) in codes.iter_mut().zip(y.chunks_exact(2)) {
        *byte = encode(pair[0]) | (encode(pair[1]) << 4);
    }
}

/// What quantizing one group did: `y` after the transform, in f32, under its scale byte, `given` or
/// computed, to `codes`. Other backends call it for the groups that a look at amax cannot clear.
pub fn count_group(
    y: &[f32],
    spec: &QuantSpec,
    scale: u8,
    given: bool,
    codes: &[u8],
) -> QuantCounts {
    let (amax, d) = (amax(y), spec.unit(scale));
    let (is_nan, int8) = (spec.scale_type().is_nan(scale), spec.element() == Element::Int8);
    let clipped = |y: &f32| match int8 {
        true => !is_nan && mxint8::quotient(*y, scale).abs() > CLIPPED_INT8,
        // Under d = 0 every quotient is 0.
        false => d != 0.0 && (y / d).abs() > CLIPPED,
    };
    let clamped = || match int8 {
        true => mxint8::quotient(amax, u8::MAX - 1) > f64::from(mxint8::MAX),
        false => spec.scale(amax) > spec.scale_type().max(),
    };
    let magnitude = if int8 { 0xFF } else { 0x77 };
    QuantCounts {
        elements: y.len() as u64,
        groups: 1,
        clipped: y.iter().filter(|y| clipped(y)).count() as u64,
        scale_max: u64::from(!given && clamped()),
        flushed: u64::from(amax > 0.0 && codes.iter().all(|byte| byte & magnitude == 0)),
        nan_groups: u64::from(is_nan),
    }
}

/// Transforms a chunk of whole blocks, the first of which is column block `first` (C5).
fn transform_chunk<T: Float>(x: &[T], t: &Transform<'_>, first: usize, y: &mut [f32]) {
    let block = t.block();
    for (b, (x, y)) in x.chunks_exact(block).zip(y.chunks_exact_mut(block)).enumerate() {
        let start = t.offset(first + b);
        with_floats!(FloatSlice, t.values(), v => {
            for (y, row) in y.iter_mut().zip(v[start..start + block * block].chunks_exact(block)) {
                let mut acc = 0f32;
                for (x, &t) in x.iter().zip(row) {
                    // T is rounded once from its stored type to x's type.
                    let t = T::from_f32(Float::to_f32(t)).to_f32();
                    acc = fma(x.to_f32(), t, acc);
                }
                *y = T::from_f32(acc).to_f32();
            }
        });
    }
}

/// The block transform alone: writes y, in x's type, for a (rows, k) matrix (C5).
///
/// # Errors
/// [`Error::TransformShape`] if the transform does not fit k; [`Error::Len`] or [`Error::Float`]
/// if `out` differs from `x` in length or type, or `x` is not whole rows; [`Error::Environment`].
pub fn apply_transform(
    x: FloatSlice<'_>,
    k: usize,
    transform: &Transform<'_>,
    out: FloatSliceMut<'_>,
) -> Result<(), Error> {
    use crate::error::Buffer;
    check_environment()?;
    transform.expect_k(k)?;
    let whole = x.len().checked_div(k).unwrap_or(0) * k;
    x.expect_len(Buffer::Input, whole)?;
    out.as_ref().expect_len(Buffer::Output, whole)?;
    let (expected, got) = (x.float_type(), out.float_type());
    if expected != got {
        return Err(Error::Float { what: Buffer::Output, expected, got });
    }
    let block = transform.block();
    with_floats!(FloatSlice, x, x => {
        // One buffer serves the three types: y is already rounded to x's type, so the second
        // rounding below changes nothing.
        let mut buffer = [0f32; MAX_CHUNK];
        let mut index = 0;
        let mut out = out;
        for row in x.chunks_exact(k.max(1)) {
            for (b, x) in row.chunks_exact(block).enumerate() {
                let y = &mut buffer[..block];
                transform_chunk(x, transform, b, y);
                with_floats!(FloatSliceMut, out.reborrow(), out => {
                    for (o, &y) in out[index..index + block].iter_mut().zip(&*y) {
                        *o = Float::from_f32(y);
                    }
                });
                index += block;
            }
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{GroupSize, ScaleType};

    fn spec() -> QuantSpec {
        QuantSpec::new(ScaleType::E4M3, GroupSize::G16, 1.0, 6.0).unwrap()
    }

    fn quantized(x: &[f32; 16], given: Option<&[u8]>) -> ([u8; 8], QuantCounts) {
        let mut input = QuantizeInput::new(&x[..], 1, 16, &spec()).unwrap();
        if let Some(scales) = given {
            input = input.with_scales(scales).unwrap();
        }
        let (mut codes, mut scales) = ([0xA5; 8], [0xA5]);
        let mut out = PackedMut::new(input.shape(), &mut codes, &mut scales).unwrap();
        let counts = quantize(&input, &mut out).unwrap();
        (codes, counts)
    }

    #[test]
    fn under_a_zero_divisor_a_nan_keeps_its_sign() {
        let x = core::array::from_fn(|i| f32::NAN.copysign(if i % 2 == 0 { 1.0 } else { -1.0 }));
        for zero in [0x00, 0x80] {
            assert_eq!(quantized(&x, Some(&[zero])).0, [0x80; 8]);
        }
        assert_eq!(quantized(&x, Some(&[0x38])).0, [0x77; 8]);
    }

    #[test]
    fn each_count_counts_its_case_alone() {
        let counts = |x: [f32; 16], given: Option<&[u8]>| {
            let c = quantized(&x, given).1;
            assert_eq!((c.elements, c.groups), (16, 1));
            [c.clipped, c.scale_max, c.flushed, c.nan_groups]
        };
        let at = |value: f32| core::array::from_fn(|i| if i == 3 { value } else { 0.0 });
        assert_eq!(counts(at(3.0), None), [0; 4]);
        // Past 6 by the rounding of the scale alone: 6.1 has s = 1.0167, scale 1.
        assert_eq!(counts(at(6.1), None), [0; 4]);
        assert_eq!(counts(at(7.0), Some(&[0x38])), [0; 4]);
        assert_eq!(counts(at(-7.000001), Some(&[0x38])), [1, 0, 0, 0]);
        // 448 * 6 = 2688 is the largest scale, not clamped.
        assert_eq!(counts(at(2688.0), None), [0; 4]);
        assert_eq!(counts(at(2689.0), None), [0, 1, 0, 0]);
        assert_eq!(counts(at(f32::INFINITY), None), [1, 1, 0, 0]);
        assert_eq!(counts(at(f32::INFINITY), Some(&[0x7E])), [1, 0, 0, 0]);
        // The scale underflows to 0; a group of zeros loses nothing.
        assert_eq!(counts(at(1e-30), None), [0, 0, 1, 0]);
        assert_eq!(counts(at(0.0), None), [0; 4]);
        assert_eq!(counts(at(0.25), Some(&[0x38])), [0, 0, 1, 0]);
        // An infinity under a zero divisor is a zero: flushed, not clipped.
        assert_eq!(counts(at(f32::INFINITY), Some(&[0x00])), [0, 0, 1, 0]);
        assert_eq!(counts(at(f32::NAN), None), [0, 0, 0, 1]);
        assert_eq!(counts(at(f32::NAN), Some(&[0x00])), [0; 4]);
        assert_eq!(counts(at(1.0), Some(&[0xFF])), [0, 0, 0, 1]);
    }

    fn nvfp4_rows() -> QuantSpec {
        QuantSpec::usual(crate::format::Format::NvFp4).with_row_scales().unwrap()
    }

    #[test]
    fn a_row_with_row_scales_is_that_row_under_its_own_global_scale() {
        let t: [f32; 256] = core::array::from_fn(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0);
        let t = Transform::shared(&t[..], 16).unwrap();
        let mut x: [f32; 5 * 32] = core::array::from_fn(|i| ((i * 29 % 83) as f32 - 40.0) * 0.11);
        x[32..64].fill(0.0);
        x[70] = f32::NAN;
        x[100] = f32::INFINITY;
        x[128..].iter_mut().for_each(|x| *x *= 1e-44);
        for transform in [None, Some(t)] {
            let input = QuantizeInput::new(&x[..], 5, 32, &nvfp4_rows()).unwrap();
            let input = input.with_transform(transform).unwrap();
            let (mut codes, mut scales, mut rows) = ([0xA5; 80], [0xA5; 10], [-1f32; 5]);
            let out = PackedMut::new(input.shape(), &mut codes, &mut scales).unwrap();
            let counts = quantize(&input, &mut out.with_row_scales(&mut rows).unwrap()).unwrap();
            let mut sum = QuantCounts::default();
            for (i, x) in x.chunks_exact(32).enumerate() {
                let mut y = [0f32; 32];
                match transform {
                    Some(t) => apply_transform(x.into(), 32, &t, (&mut y[..]).into()).unwrap(),
                    None => y.copy_from_slice(x),
                }
                let r = nvfp4_row_scale(amax(&y));
                assert_eq!(rows[i].to_bits(), r.to_bits(), "row {i}");
                let spec = QuantSpec::new(ScaleType::E4M3, GroupSize::G16, r, 6.0).unwrap();
                let input = QuantizeInput::new(x, 1, 32, &spec).unwrap();
                let input = input.with_transform(transform).unwrap();
                let (mut c, mut s) = ([0; 16], [0; 2]);
                let mut out = PackedMut::new(input.shape(), &mut c, &mut s).unwrap();
                sum += quantize(&input, &mut out).unwrap();
                assert_eq!((&codes[i * 16..][..16], &scales[i * 2..][..2]), (&c[..], &s[..]));
            }
            assert_eq!(counts, sum);
            assert_eq!((rows[1], rows[2], rows[3]), (1.0, 1.0, 1.0));
        }
    }

    #[test]
    fn row_scales_want_room_and_rows_without_elements_have_one() {
        let input = QuantizeInput::new(&[][..] as &[f32], 3, 0, &nvfp4_rows()).unwrap();
        let error = quantize(&input, &mut PackedMut::new(input.shape(), &mut [], &mut []).unwrap());
        let what = crate::error::Buffer::RowScales;
        assert_eq!(error, Err(Error::Len { what, expected: 3, got: 0 }));
        let mut rows = [-1f32; 3];
        let out = PackedMut::new(input.shape(), &mut [], &mut []).unwrap();
        assert!(out.with_row_scales(&mut rows[..2]).is_err());
        let out = PackedMut::new(input.shape(), &mut [], &mut []).unwrap();
        quantize(&input, &mut out.with_row_scales(&mut rows).unwrap()).unwrap();
        assert_eq!(rows, [1.0; 3]);
    }

    #[test]
    fn fake_quantization_with_row_scales_uses_each_rows_scale() {
        let x: [f32; 32] = core::array::from_fn(|i| if i < 16 { 1.0 } else { 1000.0 });
        let input = QuantizeInput::new(&x[..], 2, 16, &nvfp4_rows()).unwrap();
        let (mut codes, mut scales, mut rows) = ([0; 16], [0; 2], [0f32; 2]);
        let scratch = PackedMut::new(input.shape(), &mut codes, &mut scales).unwrap();
        let mut scratch = scratch.with_row_scales(&mut rows).unwrap();
        let mut y = [0f32; 32];
        crate::reference::fake_quantize(&input, &mut scratch, (&mut y[..]).into()).unwrap();
        for (x, y) in x.iter().zip(y) {
            assert!((x - y).abs() <= x * 1e-6, "{x} {y}");
        }
    }
}
