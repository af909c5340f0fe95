//! Family i, the quantization: MXINT8 elements and scales ([C10]).
//!
//! For each input, f32, f16 or bf16:
//!
//! | case | compares | clause |
//! |---|---|---|
//! | quantize | `scales` and `codes` | [C10] |
//! | dequantize | `dq_bits`, of the recorded codes and scales | [C10] |
//!
//! The products of the family are checked as those of family e.
//!
//! Worked example: a group whose largest magnitude is 1 has the scale byte 127, and 1 is element
//! 64.
//!
//! [C10]: fp4_core::contract#c10

use fp4_core::backend::erased::Backend;
use fp4_core::{QuantSpec, QuantizeInput, ScaleType};
use safetensors::Dtype;

use super::file::Column;
use super::quantize::dequantized;
use super::report::FileReport;
use super::rows::values;
use super::{
    Error, VectorFile, canonical_f32, canonical_scale, in_case, quantize as quantize_to_garbage,
};
use crate::tensor::from_bits;

pub(super) fn check(
    file: &VectorFile,
    backend: &Backend,
    report: &mut FileReport,
) -> Result<(), Error> {
    let spec = QuantSpec::mxint8();
    for name in file.tensor_names().filter_map(|tensor| tensor.strip_suffix(".x_bits")) {
        let tensor = |suffix: &str| format!("{name}.{suffix}");
        let [rows, k] = file.matrix_shape(&tensor("x_bits"))?;
        let (ty, x) = values(file, name, [rows, k])?;
        let x = from_bits(ty, x);
        let groups = k / spec.group().get();
        let scales: Column<u8> = file.column(&tensor("scales"), Dtype::U8, &[rows, groups])?;
        let scales = scales.map(|byte| canonical_scale(ScaleType::E8M0, byte));
        let codes: Column<u8> = file.column(&tensor("codes"), Dtype::U8, &[rows, k])?;
        let dq: Column<u32> = file.column(&tensor("dq_bits"), Dtype::U32, &[rows, k])?;

        let case = format!("{name} dequantize");
        let got = dequantized(&spec, rows, k, &codes, &scales).map_err(in_case(file, &case))?;
        report.case(case).compare("C10", &dq.map(canonical_f32), &got);

        let case = format!("{name} quantize");
        let Some(quantizer) = backend.quantizer() else {
            report.skip(case, "the backend has no quantizer");
            continue;
        };
        let input =
            QuantizeInput::new(x.as_slice(), rows, k, &spec).map_err(in_case(file, &case))?;
        if let Some(got) = quantize_to_garbage(file, report, &case, &**quantizer, &input)? {
            let mut case = report.case(&case);
            case.compare("C10", &scales, got.scales());
            case.compare("C10", &codes, got.codes());
        }
    }
    Ok(())
}
