//! Family b: group quantization in four tie modes ([C4]).
//!
//! The manifest's `config` names group, scale type and scale-scale; every input has its own global
//! scale `gs`. For each input, f32, f16 or bf16:
//!
//! | case | compares | clause |
//! |---|---|---|
//! | quantize ties T | `scales`, `codes_T` | [C4.1] to [C4.3] |
//! | quantize ties T, scales given | the same, from the recorded scales | [C4.2] |
//! | units | `scales` as encode(`s_pre`), `d` as decode(scale) * gs | [C4.2], [C4.3] |
//! | dequantize | `dq` | [C4.4] |
//! | global scale | `gs` from the tensor's amax, where it was made so | [C4] |
//!
//! `xs` (the quotients) is information. A NaN scale or value of the library means the canonical
//! NaN here.
//!
//! [C4]: fp4_core::contract#c4
//! [C4.1]: fp4_core::contract#c4.1
//! [C4.3]: fp4_core::contract#c4.3
//! [C4.2]: fp4_core::contract#c4.2
//! [C4.4]: fp4_core::contract#c4.4

use std::collections::BTreeMap;

use fp4_core::backend::erased::Backend;
use fp4_core::{
    GroupSize, PackedView, QuantSpec, QuantizeInput, TieMode, nvfp4_global_scale, reference,
};
use safetensors::Dtype;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::file::{Column, setting};
use super::report::FileReport;
use super::{Error, VectorFile, canonical_f32, canonical_scale, f32_bits, in_case, quantize};
use crate::tensor::Values;

#[derive(Deserialize)]
struct Settings {
    config: Config,
    families: BTreeMap<String, IgnoredAny>,
}

#[derive(Deserialize)]
struct Config {
    #[serde(rename = "G")]
    group: usize,
    scale_dtype: String,
    ss: f32,
    /// A number, or the formula of the tensor's amax.
    gs: serde_json::Value,
}

/// One input with its expected columns.
struct Input {
    name: String,
    rows: usize,
    k: usize,
    x: Values,
    spec: QuantSpec,
    scales: Column<u8>,
}

pub(super) fn check(
    file: &VectorFile,
    backend: &Backend,
    report: &mut FileReport,
) -> Result<(), Error> {
    let settings: Settings = file.settings()?;
    let from_amax = settings.config.gs.is_string();
    for name in settings.families.into_keys() {
        let input = Input::read(file, name, &settings.config)?;
        for tie in TieMode::ALL {
            let codes = input.column(file, &format!("codes_{tie}"), input.k / 2)?;
            let case = format!("{} quantize ties {tie}", input.name);
            codes_and_scales(file, backend, report, &case, &input, tie, &codes)?;
        }
        units(file, report, &input)?;
        dequantize(file, report, &input)?;
        if from_amax {
            global_scale(file, report, &input)?;
        }
    }
    Ok(())
}

impl Input {
    fn read(file: &VectorFile, name: String, config: &Config) -> Result<Self, Error> {
        let core = in_case(file, &name);
        let scale_type = config.scale_dtype.parse().map_err(|_| {
            setting(file.name(), "scale_dtype", &config.scale_dtype, "e8m0 or e4m3")
        })?;
        let group = GroupSize::new(config.group).map_err(&core)?;
        let gs = file.scalar(&format!("{name}.gs"))?;
        let spec = QuantSpec::new(scale_type, group, gs, config.ss).map_err(&core)?;
        let [rows, k] = file.matrix_shape(&format!("{name}.x"))?;
        let shape = spec.shape(rows, k).map_err(&core)?;
        let x = file.values(&format!("{name}.x"), &[rows, k])?;
        let scales = file
            .column(&format!("{name}.scales"), Dtype::U8, &[rows, shape.row_groups()])?
            .map(|byte| canonical_scale(scale_type, byte));
        drop(core);
        Ok(Input { name, rows, k, x, spec, scales })
    }

    fn column(&self, file: &VectorFile, suffix: &str, cols: usize) -> Result<Column<u8>, Error> {
        file.column(&format!("{}.{suffix}", self.name), Dtype::U8, &[self.rows, cols])
    }

    fn f32_column(
        &self,
        file: &VectorFile,
        suffix: &str,
        cols: usize,
    ) -> Result<Column<u32>, Error> {
        let name = format!("{}.{suffix}", self.name);
        Ok(file.column(&name, Dtype::F32, &[self.rows, cols])?.map(canonical_f32))
    }

    fn row_groups(&self) -> usize {
        self.k / self.spec.group().get()
    }
}

/// Quantizes with computed scales, then with the recorded ones given.
fn codes_and_scales(
    file: &VectorFile,
    backend: &Backend,
    report: &mut FileReport,
    case: &str,
    input: &Input,
    tie: TieMode,
    codes: &Column<u8>,
) -> Result<(), Error> {
    let Some(quantizer) = backend.quantizer() else {
        report.skip(case, "the backend has no quantizer");
        return Ok(());
    };
    let spec = input.spec.with_tie(tie);
    let computed = QuantizeInput::new(input.x.as_slice(), input.rows, input.k, &spec)
        .map_err(in_case(file, case))?;
    if let Some(got) = quantize(file, report, case, &**quantizer, &computed)? {
        let mut case = report.case(case);
        case.compare("C4.2", &input.scales, got.scales());
        case.compare("C4.3", codes, got.codes());
    }
    let case = &format!("{case}, scales given");
    let given = computed.with_scales(input.scales.values()).map_err(in_case(file, case))?;
    if let Some(got) = quantize(file, report, case, &**quantizer, &given)? {
        let mut case = report.case(case);
        case.compare("C4.2", &input.scales, got.scales());
        case.compare("C4.3", codes, got.codes());
    }
    Ok(())
}

fn units(file: &VectorFile, report: &mut FileReport, input: &Input) -> Result<(), Error> {
    let s = file.f32s(&format!("{}.s_pre", input.name), &[input.rows, input.row_groups()])?;
    let d = input.f32_column(file, "d", input.row_groups())?;
    let encoded: Vec<u8> = s.iter().map(|&s| input.spec.scale_type().encode(s)).collect();
    let units: Vec<f32> = input.scales.values().iter().map(|&b| input.spec.unit(b)).collect();
    let mut case = report.case(format!("{} units", input.name));
    case.compare("C4.2", &input.scales, &encoded);
    case.compare("C4.3", &d, &f32_bits(&units));
    Ok(())
}

fn dequantize(file: &VectorFile, report: &mut FileReport, input: &Input) -> Result<(), Error> {
    let case = format!("{} dequantize", input.name);
    let codes = input.column(file, "codes_even", input.k / 2)?;
    let dq = input.f32_column(file, "dq", input.k)?;
    let got = dequantized(&input.spec, input.rows, input.k, &codes, &input.scales)
        .map_err(in_case(file, &case))?;
    report.case(case).compare("C4.4", &dq, &got);
    Ok(())
}

/// The bits of the dequantized recorded codes.
pub(super) fn dequantized(
    spec: &QuantSpec,
    rows: usize,
    k: usize,
    codes: &Column<u8>,
    scales: &Column<u8>,
) -> Result<Vec<u32>, fp4_core::Error> {
    let packed = PackedView::new(spec.shape(rows, k)?, codes.values(), scales.values())?;
    let mut out = vec![f32::from_bits(0xA5A5_A5A5); rows * k];
    reference::dequantize(packed, spec.global_scale(), out.as_mut_slice().into())?;
    Ok(f32_bits(&out))
}

fn global_scale(file: &VectorFile, report: &mut FileReport, input: &Input) -> Result<(), Error> {
    let case = format!("{} global scale", input.name);
    let gs: Column<u32> = file.column(&format!("{}.gs", input.name), Dtype::F32, &[1])?;
    let amax = input.x.widened().iter().fold(0f32, |amax, x| amax.max(x.abs()));
    let got = nvfp4_global_scale(amax).map_err(in_case(file, &case))?;
    report.case(case).compare("C4", &gs, &[got.to_bits()]);
    Ok(())
}
