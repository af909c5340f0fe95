//! Family k: NVFP4 quantization with row scales ([C4]).
//!
//! Row i has a global scale of its own, `r_i` = amax(row) / 2688 (1 where that is 0 or not finite,
//! the smallest positive f32 where it underflows); ss = 6, ties to even. For each input, f32, f16
//! or bf16:
//!
//! | case | compares | clause |
//! |---|---|---|
//! | quantize | `row_scales`; `scales` and `codes`, each row under its own | [C4], [C4.2], [C4.3] |
//!
//! Worked example: a row whose largest magnitude is 2688 has r = 1, and its group's scale byte is
//! that of 2688 / (6 * 1) = 448.
//!
//! [C4]: fp4_core::contract#c4
//! [C4.2]: fp4_core::contract#c4.2
//! [C4.3]: fp4_core::contract#c4.3

use fp4_core::backend::erased::Backend;
use fp4_core::{FloatType, Format, QuantSpec, QuantizeInput, ScaleType};
use safetensors::Dtype;

use super::file::{Column, setting};
use super::report::FileReport;
use super::{Error, VectorFile, canonical_scale, f32_bits, garbage, in_case};
use crate::tensor::from_bits;

pub(super) fn check(
    file: &VectorFile,
    backend: &Backend,
    report: &mut FileReport,
) -> Result<(), Error> {
    let spec =
        QuantSpec::usual(Format::NvFp4).with_row_scales().map_err(in_case(file, "settings"))?;
    for name in file.tensor_names().filter_map(|tensor| tensor.strip_suffix(".x_bits")) {
        let tensor = |suffix: &str| format!("{name}.{suffix}");
        let [rows, k] = file.matrix_shape(&tensor("x_bits"))?;
        let (ty, x) = values(file, name, [rows, k])?;
        let x = from_bits(ty, x);
        let expected: Column<u32> = file.column(&tensor("row_scales"), Dtype::F32, &[rows])?;
        let groups = k / spec.group().get();
        let scales: Column<u8> = file.column(&tensor("scales"), Dtype::U8, &[rows, groups])?;
        let scales = scales.map(|byte| canonical_scale(ScaleType::E4M3, byte));
        let codes: Column<u8> = file.column(&tensor("codes"), Dtype::U8, &[rows, k / 2])?;

        let case = format!("{name} quantize");
        let Some(quantizer) = backend.quantizer() else {
            report.skip(case, "the backend has no quantizer");
            continue;
        };
        let core = in_case(file, &case);
        let input = QuantizeInput::new(x.as_slice(), rows, k, &spec).map_err(&core)?;
        if let Err(reason) = quantizer.supports_quantize(&input.query()) {
            report.skip(&case, reason);
            continue;
        }
        let mut got = garbage(input.shape()).map_err(&core)?;
        let mut row_scales = vec![f32::from_bits(0xA5A5_A5A5); rows];
        let mut out = got.view_mut().with_row_scales(&mut row_scales).map_err(&core)?;
        quantizer.quantize(&input, &mut out).map_err(&core)?;
        let mut case = report.case(&case);
        case.compare("C4", &expected, &f32_bits(&row_scales));
        case.compare("C4.2", &scales, got.scales());
        case.compare("C4.3", &codes, got.codes());
    }
    Ok(())
}

/// The bits of values whose type is the start of their name.
pub(super) fn values(
    file: &VectorFile,
    name: &str,
    shape: [usize; 2],
) -> Result<(FloatType, Vec<u32>), Error> {
    let tensor = format!("{name}.x_bits");
    let ty = name.split_once('_').map_or(name, |(ty, _)| ty);
    let ty: FloatType = ty.parse().map_err(|_| {
        setting(file.name(), "the type in a name", name, "f32_, f16_ or bf16_ and more")
    })?;
    let bits = match ty {
        FloatType::F32 => file.column::<u32>(&tensor, Dtype::U32, &shape)?.values().to_vec(),
        FloatType::F16 | FloatType::Bf16 => {
            let bits: Column<u16> = file.column(&tensor, Dtype::U16, &shape)?;
            bits.values().iter().map(|&bits| bits.into()).collect()
        }
    };
    Ok((ty, bits))
}
