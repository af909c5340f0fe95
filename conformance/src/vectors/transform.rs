//! Family c: the block transform, then quantization ([C5]).
//!
//! Every case has its own input, transform (stored in f32, shared or one for each block) and
//! configuration, named like `nvfp4_gs_0p1_ss6`: the format, the global scale, the scale-scale.
//!
//! | case | compares | clause |
//! |---|---|---|
//! | transform | `y_f32`, the transformed values in x's type, widened | [C5] |
//! | quantize | `scales`, `codes_even`, quantized with the transform in front | [C5], [C4] |
//! | quantize, scales given | the same, from the recorded scales | [C4.2] |
//! | dequantize | `dq` | [C4.4] |
//!
//! [C5]: fp4_core::contract#c5
//! [C4]: fp4_core::contract#c4
//! [C4.2]: fp4_core::contract#c4.2
//! [C4.4]: fp4_core::contract#c4.4

use std::collections::BTreeMap;

use fp4_core::backend::erased::Backend;
use fp4_core::{Format, QuantSpec, QuantizeInput, Transform, reference};
use half::{bf16, f16};
use safetensors::Dtype;
use serde::Deserialize;

use super::file::{Column, setting};
use super::quantize::dequantized;
use super::report::FileReport;
use super::{Error, VectorFile, canonical_f32, canonical_scale, f32_bits, in_case, quantize};
use crate::tensor::Values;

#[derive(Deserialize)]
struct Settings {
    cases: BTreeMap<String, CaseSettings>,
}

#[derive(Deserialize)]
struct CaseSettings {
    config: String,
}

pub(super) fn check(
    file: &VectorFile,
    backend: &Backend,
    report: &mut FileReport,
) -> Result<(), Error> {
    let settings: Settings = file.settings()?;
    for (name, case) in &settings.cases {
        check_case(file, backend, report, name, &case.config)?;
    }
    Ok(())
}

fn check_case(
    file: &VectorFile,
    backend: &Backend,
    report: &mut FileReport,
    name: &str,
    config: &str,
) -> Result<(), Error> {
    let tensor = |suffix: &str| format!("{name}.{suffix}");
    let core = in_case(file, name);
    let (format, ss) = parse_config(config)
        .ok_or_else(|| setting(file.name(), "config", config, "FORMAT_gs_..._ssNUMBER"))?;
    let gs = file.scalar(&tensor("gs"))?;
    let spec = QuantSpec::new(format.scale_type(), format.group(), gs, ss).map_err(&core)?;
    let [rows, k] = file.matrix_shape(&tensor("x"))?;
    let groups = spec.shape(rows, k).map_err(&core)?.row_groups();
    let x = file.values(&tensor("x"), &[rows, k])?;
    let stored = file.raw(&tensor("T"))?.1;
    let values = file.f32s(&tensor("T"), stored)?;
    let transform = Transform::from_shape(values.as_slice(), stored).map_err(&core)?;

    let y: Column<u32> = file.column(&tensor("y_f32"), Dtype::F32, &[rows, k])?;
    let got = transformed(&x, k, &transform).map_err(&core)?;
    report.case(format!("{name} transform")).compare(
        "C5",
        &y.map(canonical_f32),
        &f32_bits(&got.widened()),
    );

    let codes = file.column(&tensor("codes_even"), Dtype::U8, &[rows, k / 2])?;
    let scales = file
        .column(&tensor("scales"), Dtype::U8, &[rows, groups])?
        .map(|byte| canonical_scale(format.scale_type(), byte));
    if let Some(quantizer) = backend.quantizer() {
        let input = QuantizeInput::new(x.as_slice(), rows, k, &spec)
            .and_then(|input| input.with_transform(Some(transform)))
            .map_err(&core)?;
        let given = input.with_scales(scales.values()).map_err(&core)?;
        for (input, how) in [(input, "quantize"), (given, "quantize, scales given")] {
            let case = format!("{name} {how}");
            if let Some(got) = quantize(file, report, &case, &**quantizer, &input)? {
                let mut case = report.case(case);
                case.compare("C4.2", &scales, got.scales());
                case.compare("C4.3", &codes, got.codes());
            }
        }
    } else {
        report.skip(format!("{name} quantize"), "the backend has no quantizer");
    }

    let dq: Column<u32> = file.column(&tensor("dq"), Dtype::F32, &[rows, k])?;
    let got = dequantized(&spec, rows, k, &codes, &scales).map_err(&core)?;
    report.case(format!("{name} dequantize")).compare("C4.4", &dq.map(canonical_f32), &got);
    Ok(())
}

/// Format and scale-scale of a configuration's name, such as `nvfp4_gs_0p1_ss6`.
fn parse_config(config: &str) -> Option<(Format, f32)> {
    let format = Format::ALL.into_iter().find(|f| config.starts_with(&f.to_string()))?;
    let (_, ss) = config.rsplit_once("_ss")?;
    Some((format, ss.parse().ok()?))
}

/// The transformed values, in x's type.
fn transformed(x: &Values, k: usize, transform: &Transform<'_>) -> Result<Values, fp4_core::Error> {
    let len = x.as_slice().len();
    let mut y = match x {
        Values::F32(_) => Values::F32(vec![f32::from_bits(0xA5A5_A5A5); len]),
        Values::F16(_) => Values::F16(vec![f16::from_bits(0xA5A5); len]),
        Values::Bf16(_) => Values::Bf16(vec![bf16::from_bits(0xA5A5); len]),
    };
    reference::apply_transform(x.as_slice(), k, transform, y.as_mut_slice())?;
    Ok(y)
}
