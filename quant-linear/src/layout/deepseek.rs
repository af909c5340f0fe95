//! DeepSeek-V4: MXFP4 experts beside block FP8.
//!
//! | tensor | type | |
//! |---|---|---|
//! | `weight` | I8 (out, in / 2) | two codes in a signed byte: reinterpreted, not converted |
//! | `scale` | F8_E8M0 (out, in / 32) | |
//!
//! value = e2m1 * scale; 0xFF is NaN. An F8_E4M3 `weight` with a `scale` of the same name is FP8 in
//! blocks of 128 x 128: no layer here, and stays as it is. `config.json` says `quant_method: fp8`,
//! which is true of those, and `expert_dtype: fp4`.

use fp4_core::{Format, ScaleType};
use safetensors::Dtype;
use serde_json::{Map, Value, json};

use crate::checkpoint::TensorSource;
use crate::error::Error;
use crate::layer::state::join;
use crate::layout::LoadOptions;
use crate::layout::activations;
use crate::layout::at::Matrix;
use crate::layout::at::module_of;
use crate::layout::write::{self, Done, Held, Refused, Written};
use crate::layout::{At, Global, Layer, Layout, Nibbles, Place, Said, ScaleBytes, ScaleOrder};

/// DeepSeek-V4.
#[derive(Debug, Clone, Copy)]
pub(super) struct DeepSeek;

const NAMES: [&str; 2] = ["weight", "scale"];
const ARITHMETIC: super::Arithmetic = write::no_global(ScaleBytes::E8m0);

impl Layout for DeepSeek {
    fn name(&self) -> &'static str {
        "deepseek"
    }

    fn aliases(&self) -> &'static [&'static str] {
        &["deepseek-v4", "deepseek_v4"]
    }

    fn module<'n>(&self, tensor: &'n str) -> Option<&'n str> {
        module_of(tensor, "weight")
    }

    fn tensors(&self, module: &str) -> Vec<String> {
        NAMES.iter().map(|name| join(module, name)).collect()
    }

    fn could(&self, at: &At<'_>) -> bool {
        at.dtype(NAMES[0]) == Some(Dtype::I8)
            && matches!(at.dtype(NAMES[1]), Some(Dtype::F8_E8M0 | Dtype::U8))
    }

    fn layer(&self, at: &At<'_>, _options: &LoadOptions) -> Result<Layer, Error> {
        let (codes, scales) = (at.name(NAMES[0]), at.name(NAMES[1]));
        let shape = at.shape(&Matrix {
            layout: self.name(),
            codes: codes.clone(),
            per_element: 2,
            code_type: Dtype::I8,
            scales: scales.clone(),
            scale_types: &[Dtype::F8_E8M0, Dtype::U8],
            scale_type: ScaleType::E8M0,
            order: ScaleOrder::Rows,
        })?;
        let place =
            Place::Apart { codes, nibbles: Nibbles::LowEven, scales, order: ScaleOrder::Rows };
        let mut layer = Layer::plain(&DeepSeek, at, shape, place, ARITHMETIC);
        layer.own = at.present(&NAMES);
        layer.with_scales(vec![Global::ONE], None)
    }

    fn activations<'c>(&self, source: &'c dyn TensorSource) -> Said<'c> {
        activations::of_deepseek(source.config())
    }

    fn write(&self, held: &Held<'_>) -> Result<Written, Refused> {
        held.expect_format(&[Format::MxFp4])?;
        held.expect_no_transform()?;
        held.expect_no_global()?;
        let tensors = vec![
            held.codes(held.name(NAMES[0]), Nibbles::LowEven, Dtype::I8),
            held.scales(held.name(NAMES[1]), Dtype::F8_E8M0),
        ];
        Ok(held.written(tensors, ARITHMETIC))
    }

    fn config(
        &self,
        config: &mut Map<String, Value>,
        done: &Done<'_>,
    ) -> Vec<(&'static str, Value)> {
        config.insert("expert_dtype".into(), json!("fp4"));
        let block = json!({
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "modules_to_not_convert": done.dense,
            "quant_method": "fp8",
            "scale_fmt": "ue8m0",
            "weight_block_size": [128, 128],
        });
        config.insert("quantization_config".into(), block);
        vec![]
    }
}
