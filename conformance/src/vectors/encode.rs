//! Family a, encoding: f32 to e2m1, e4m3 and e8m0 ([C1], [C2]).
//!
//! | file | columns that are the contract's | elsewhere |
//! |---|---|---|
//! | `a_f32_to_e2m1` | `out.ml_dtypes` for every input but NaN | NaN is 0x7 |
//! | `a_f32_to_e4m3` | `out.ml_dtypes_clamped`, NaN as a class | |
//! | `a_f32_to_e8m0` | every `out.torch*`, for normal x > 0 below 1.5 * 2^127 | the rule of [C2] |
//!
//! The core's conversions are checked, and those inside the backend's quantizer. With gs = ss = 1
//! and a given scale of 1 the code of x is encode(x). With one input in each group and gs = ss = 1
//! the scale byte is encode(|x|): e4m3 is symmetric, and torch's e8m0 columns drop the sign.
//!
//! [C1]: fp4_core::contract#c1
//! [C2]: fp4_core::contract#c2

use fp4_core::backend::erased::Backend;
use fp4_core::{E2m1, E4m3, E8m0, Format, QuantSpec, QuantizeInput, ScaleType, unpack};
use safetensors::Dtype;

use super::file::{Column, setting};
use super::report::FileReport;
use super::{Error, VectorFile, canonical_scale, in_case, quantize};

pub(super) fn check(
    file: &VectorFile,
    backend: &Backend,
    report: &mut FileReport,
) -> Result<(), Error> {
    let &[len] = file.raw("in_bits")?.1 else {
        return Err(setting(file.name(), "the shape of in_bits", "not 1-D", "1-D"));
    };
    let input: Column<u32> = file.column("in_bits", Dtype::U32, &[len])?;
    let x: Vec<f32> = input.values().iter().copied().map(f32::from_bits).collect();
    if file.name().starts_with("a_f32_to_e2m1") {
        e2m1(file, backend, report, &x)
    } else if file.name().starts_with("a_f32_to_e4m3") {
        e4m3(file, backend, report, &x)
    } else {
        e8m0(file, backend, report, &x)
    }
}

fn e2m1(
    file: &VectorFile,
    backend: &Backend,
    report: &mut FileReport,
    x: &[f32],
) -> Result<(), Error> {
    let mut inputs = x.iter();
    let expected = file
        .column("out.ml_dtypes", Dtype::U8, &[x.len()])?
        .map(|code: u8| if inputs.next().is_some_and(|x| x.is_nan()) { 0x7 } else { code });
    let got: Vec<u8> = x.iter().map(|&x| E2m1::from_f32(x).to_bits()).collect();
    report.case("E2m1::from_f32").compare("C1", &expected, &got);

    for format in Format::ALL {
        let case = format!("e2m1 codes through the {format} quantizer");
        let Some(quantizer) = backend.quantizer() else {
            report.skip(case, "the backend has no quantizer");
            continue;
        };
        let core = in_case(file, &case);
        let spec = QuantSpec::new(format.scale_type(), format.group(), 1.0, 1.0).map_err(&core)?;
        let k = x.len().next_multiple_of(format.group().get());
        let mut padded = x.to_vec();
        padded.resize(k, 0.0);
        let scales = vec![format.scale_type().encode(1.0); k / format.group().get()];
        let input = QuantizeInput::new(padded.as_slice(), 1, k, &spec)
            .and_then(|input| input.with_scales(&scales))
            .map_err(&core)?;
        let Some(packed) = quantize(file, report, &case, &**quantizer, &input)? else { continue };
        let mut codes = vec![0; k];
        unpack(packed.codes(), &mut codes).map_err(&core)?;
        report.case(&case).compare("C4.3", &expected, &codes[..x.len()]);
    }
    Ok(())
}

fn e4m3(
    file: &VectorFile,
    backend: &Backend,
    report: &mut FileReport,
    x: &[f32],
) -> Result<(), Error> {
    let expected = file
        .column("out.ml_dtypes_clamped", Dtype::U8, &[x.len()])?
        .map(|byte: u8| canonical_scale(ScaleType::E4M3, byte));
    let got: Vec<u8> = x.iter().map(|&x| E4m3::from_f32(x).to_bits()).collect();
    report.case("E4m3::from_f32").compare("C2", &expected, &got);
    let of_magnitudes = expected.map(|byte| byte & 0x7F);
    scales(file, backend, report, Format::NvFp4, x, &of_magnitudes)
}

fn e8m0(
    file: &VectorFile,
    backend: &Backend,
    report: &mut FileReport,
    x: &[f32],
) -> Result<(), Error> {
    let got: Vec<u8> = x.iter().map(|&x| E8m0::from_f32(x).to_bits()).collect();
    let names: Vec<_> = file.tensor_names().filter(|n| n.starts_with("out.torch")).collect();
    if names.is_empty() {
        return Err(Error::NoTensor {
            file: file.name().to_owned(),
            tensor: "out.torch*".to_owned(),
            place: "file",
        });
    }
    for name in names {
        let column: Column<u8> = file.column(name, Dtype::U8, &[x.len()])?;
        let with = |x: Vec<f32>| {
            let mut inputs = x.into_iter();
            column.clone().map(|byte| inputs.next().map_or(byte, |x| e8m0_expected(x, byte)))
        };
        let case = format!("E8m0::from_f32, {name}");
        report.case(case).compare("C2", &with(x.to_vec()), &got);
        let of_magnitudes = with(x.iter().map(|x| x.abs()).collect());
        scales(file, backend, report, Format::MxFp4, x, &of_magnitudes)?;
    }
    Ok(())
}

/// What C2 makes of `x`, given torch's byte for it.
fn e8m0_expected(x: f32, torch: u8) -> u8 {
    let x = f64::from(x);
    let power = |e| 2f64.powi(e);
    if x.is_nan() {
        0xFF
    } else if x >= power(-126) && x < 1.5 * power(127) {
        torch
    } else if x >= 1.5 * power(127) {
        254 // clamped to 2^127
    } else {
        // Zero, negative and below 2^-127 are clamped up to it, byte 0; the tie with 2^-126 goes
        // up.
        u8::from(x >= 1.5 * power(-127))
    }
}

/// Encodes |x| as a scale in the backend's quantizer: one input in each group.
fn scales(
    file: &VectorFile,
    backend: &Backend,
    report: &mut FileReport,
    format: Format,
    x: &[f32],
    expected: &Column<u8>,
) -> Result<(), Error> {
    let case = format!("{} through the {format} quantizer", expected.tensor());
    let Some(quantizer) = backend.quantizer() else {
        report.skip(case, "the backend has no quantizer");
        return Ok(());
    };
    let core = in_case(file, &case);
    let spec = QuantSpec::new(format.scale_type(), format.group(), 1.0, 1.0).map_err(&core)?;
    let group = format.group().get();
    let mut values = vec![0f32; x.len() * group];
    for (i, (values, &x)) in values.chunks_exact_mut(group).zip(x).enumerate() {
        values[i % group] = x;
    }
    let input = QuantizeInput::new(values.as_slice(), x.len(), group, &spec).map_err(&core)?;
    if let Some(packed) = quantize(file, report, &case, &**quantizer, &input)? {
        report.case(&case).compare("C4.2", expected, packed.scales());
    }
    Ok(())
}
