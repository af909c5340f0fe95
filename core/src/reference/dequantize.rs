//! Reference dequantizer and fake quantization ([C4.4], [C10]).
//!
//! ```text
//! out = round_to_output_type(value(code) * (decode(scale) * gs))
//! ```
//!
//! An MXINT8 element is `i * 2^-6`, and there is no gs.
//!
//! Worked example: code 7 (6) under e4m3 byte 0x4A (5) and gs = 0.1 is 6 * 0.5 = 3.
//!
//! [C4.4]: crate::contract#c4.4
//! [C10]: crate::contract#c10

use crate::backend::QuantizeInput;
use crate::e2m1::E2m1;
use crate::environment::check_environment;
use crate::error::{Buffer, Error, ScaleSetting};
use crate::float::{Float, FloatSliceMut};
use crate::format::Element;
use crate::mxint8;
use crate::packed::{PackedMut, PackedView};
use crate::spec::expect_positive;
use crate::with_floats;

/// Writes the values of a packed matrix under `global_scale`, which is 1 for MXINT8, row-major
/// (C4.4, C10).
///
/// # Errors
/// [`Error::Len`] unless `out` has rows * k values; [`Error::ScaleSetting`] if `global_scale`, or
/// its product with the largest finite scale, is not finite and above zero;
/// [`Error::NoGlobalScale`]; [`Error::Environment`].
pub fn dequantize(
    packed: PackedView<'_>,
    global_scale: f32,
    out: FloatSliceMut<'_>,
) -> Result<(), Error> {
    check_environment()?;
    let shape = packed.shape();
    expect_positive(ScaleSetting::Global, global_scale)?;
    expect_positive(ScaleSetting::Largest, global_scale * shape.scale_type().max())?;
    out.as_ref().expect_len(Buffer::Output, shape.rows() * shape.k())?;
    if shape.element() == Element::Int8 && global_scale.to_bits() != 1f32.to_bits() {
        return Err(Error::NoGlobalScale { got: global_scale });
    }
    with_floats!(FloatSliceMut, out, out => {
        let groups = packed.codes().chunks_exact(shape.group_bytes()).zip(packed.scales());
        for ((codes, &scale), out) in groups.zip(out.chunks_exact_mut(shape.group().get())) {
            let d = shape.scale_type().decode(scale) * global_scale;
            match shape.element() {
                Element::E2m1 => {
                    for (&byte, out) in codes.iter().zip(out.chunks_exact_mut(2)) {
                        out[0] = Float::from_f32(E2m1::from_bits(byte).to_f32() * d);
                        out[1] = Float::from_f32(E2m1::from_bits(byte >> 4).to_f32() * d);
                    }
                }
                Element::Int8 => {
                    for (&byte, out) in codes.iter().zip(out) {
                        *out = Float::from_f32(mxint8::decode(byte as i8, d));
                    }
                }
            }
        }
    });
    Ok(())
}

/// Quantizes and dequantizes in one go, writing what the quantized values are worth; the packed
/// form lands in `scratch`.
///
/// # Errors
/// As [`quantize`](super::quantize()) and [`dequantize`].
pub fn fake_quantize(
    input: &QuantizeInput<'_>,
    scratch: &mut PackedMut<'_>,
    out: FloatSliceMut<'_>,
) -> Result<(), Error> {
    super::quantize(input, scratch)?;
    let packed = scratch.as_view();
    let Some(scales) = scratch.row_scales().filter(|_| input.spec().row_scales()) else {
        return dequantize(packed, input.spec().global_scale(), out);
    };
    let k = packed.shape().k();
    out.as_ref().expect_len(Buffer::Output, packed.shape().rows() * k)?;
    with_floats!(FloatSliceMut, out, out => {
        for (i, (row, &scale)) in out.chunks_exact_mut(k.max(1)).zip(scales).enumerate() {
            dequantize(packed.rows_range(i..i + 1)?, scale, row.into())?;
        }
    });
    Ok(())
}
