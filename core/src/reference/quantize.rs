//! Reference quantizer with the optional block transform in front ([C4], [C5]).
//!
//! ```text
//! for each row, for each chunk of max(Bt, G) columns:
//!     y = x, or per block: y[j] = round(acc), acc = +0; for i ascending: acc = fma(x[i], T[j][i], acc)
//!     for each group of y:
//!         scale = given, or encode(amax / (ss * gs))
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
use crate::packed::PackedMut;
use crate::spec::QuantSpec;
use crate::transform::Transform;
use crate::with_floats;

/// A quotient beyond this is clipped: where the code above 6 would be nearer.
const CLIPPED: f32 = 7.0;
/// Largest group and largest transform block.
const MAX_CHUNK: usize = 128;

/// Quantizes a (rows, k) matrix into packed codes and row-major scales (C4), after the optional
/// transform (C5).
///
/// # Errors
/// [`Error::FormatMismatch`] or [`Error::ShapeMismatch`] if `out` does not have the shape of the
/// input, [`Error::Environment`]. `out` is then untouched.
pub fn quantize(input: &QuantizeInput<'_>, out: &mut PackedMut<'_>) -> Result<QuantCounts, Error> {
    check_environment()?;
    input.expect_output(out.shape())?;
    Ok(with_floats!(FloatSlice, input.x(), x => quantize_typed(x, input, out)))
}

fn quantize_typed<T: Float>(
    x: &[T],
    input: &QuantizeInput<'_>,
    out: &mut PackedMut<'_>,
) -> QuantCounts {
    let mut counts = QuantCounts::default();
    let (spec, k) = (input.spec(), input.shape().k());
    if x.is_empty() {
        return counts;
    }
    let group = spec.group().get();
    let chunk = input.transform().map_or(group, |t| group.max(t.block()));
    let groups = input.shape().row_groups();
    for (i, row) in x.chunks_exact(k).enumerate() {
        let (codes, scales) = out.row(i);
        if let Some(given) = input.scales() {
            scales.copy_from_slice(&given[i * groups..(i + 1) * groups]);
        }
        for (c, x) in row.chunks_exact(chunk).enumerate() {
            let mut buffer = [0f32; MAX_CHUNK];
            let y = &mut buffer[..chunk];
            match input.transform() {
                Some(t) => transform_chunk(x, t, c * chunk / t.block(), y),
                None => y.iter_mut().zip(x).for_each(|(y, x)| *y = x.to_f32()),
            }
            for (g, y) in y.chunks_exact(group).enumerate() {
                let g = c * (chunk / group) + g;
                if input.scales().is_none() {
                    scales[g] = spec.encode_scale(amax(y));
                }
                let codes = &mut codes[g * group / 2..(g + 1) * group / 2];
                quantize_group(y, spec, scales[g], codes);
                counts += count_group(y, spec, scales[g], input.scales().is_some(), codes);
            }
        }
    }
    counts
}

/// Largest magnitude of a group, NaN if any element is NaN (C4.1).
fn amax(y: &[f32]) -> f32 {
    y.iter().fold(
        0f32,
        |amax, y| {
            if amax.is_nan() || y.is_nan() { f32::NAN } else { amax.max(y.abs()) }
        },
    )
}

/// Encodes one group under its scale byte (C4.3).
fn quantize_group(y: &[f32], spec: &QuantSpec, scale: u8, codes: &mut [u8]) {
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
    // Under d = 0 every quotient is 0.
    let clipped = |y: &f32| d != 0.0 && (y / d).abs() > CLIPPED;
    let clamped = || spec.scale(amax) > spec.scale_type().max();
    QuantCounts {
        elements: y.len() as u64,
        groups: 1,
        clipped: y.iter().filter(|y| clipped(y)).count() as u64,
        scale_max: u64::from(!given && clamped()),
        flushed: u64::from(amax > 0.0 && codes.iter().all(|byte| byte & 0x77 == 0)),
        nan_groups: u64::from(spec.scale_type().is_nan(scale)),
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
}
