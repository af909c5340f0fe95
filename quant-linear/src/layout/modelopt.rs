//! NVIDIA ModelOpt (TensorRT-LLM, vLLM): NVFP4, mixed precision included, and MXFP4.
//!
//! | tensor | type | |
//! |---|---|---|
//! | `weight` | U8 (out, in / 2) | low nibble = even |
//! | `weight_scale` | F8_E4M3 (out, in / 16), or U8 e8m0 (out, in / 32) | row-major |
//! | `weight_scale_2`, `input_scale` | F32 (), NVFP4 only | multiply |
//! | `pre_quant_scale` | (in), AWQ only | multiplies the activations first |
//!
//! value = e2m1 * (scale * global), and its own dequantizer drops the sign of zeros. `config.json`
//! has `quantization_config` with `quant_method: modelopt`, and `hf_quant_config.json` lies beside
//! it; of mixed precision, `quantized_layers` says what each layer is (FP8 ones are no layers here,
//! and stay as they are).
//!
//! ComfyUI files can have the very names, types and shapes of these, with swapped nibbles and
//! swizzled scales: only config, header or marker tells.

use fp4_core::{Format, ScaleType};
use safetensors::Dtype;
use serde_json::{Map, Value, json};

use crate::error::Error;
use crate::layer::state::{self, join};
use crate::layout::LoadOptions;
use crate::layout::at::module_of;
use crate::layout::at::{Matrix, incomplete};
use crate::layout::comfy::Comfy;
use crate::layout::write::{self, Done, Fill, Held, NewTensor, Refused, Written};
use crate::layout::{
    Arithmetic, At, Global, Layer, Layout, Nibbles, Order, Place, ScaleBytes, ScaleOrder, Zero,
};

/// ModelOpt.
#[derive(Debug, Clone, Copy)]
pub(super) struct ModelOpt;

const PRE_QUANT_SCALE: &str = "pre_quant_scale";
const NAMES: [&str; 5] =
    ["weight", "weight_scale", "weight_scale_2", "input_scale", PRE_QUANT_SCALE];

impl Layout for ModelOpt {
    fn name(&self) -> &'static str {
        "modelopt"
    }

    fn aliases(&self) -> &'static [&'static str] {
        &["nvidia", "nvidia-modelopt"]
    }

    fn module<'n>(&self, tensor: &'n str) -> Option<&'n str> {
        module_of(tensor, "weight")
    }

    fn tensors(&self, module: &str) -> Vec<String> {
        NAMES.iter().map(|name| join(module, name)).collect()
    }

    fn could(&self, at: &At<'_>) -> bool {
        if at.dtype(NAMES[0]) != Some(Dtype::U8) {
            return false;
        }
        match at.dtype(NAMES[1]) {
            // Padded scales that are not row-major ones as well are ComfyUI's.
            Some(Dtype::F8_E4M3) => row_major(at) || !Comfy::padded(at),
            Some(Dtype::U8) => self.says(at) == Some(true),
            // A scale missing; another type is that of another way to quantize.
            None => at.has(NAMES[2]),
            Some(_) => false,
        }
    }

    fn says(&self, at: &At<'_>) -> Option<bool> {
        let producer = at.source.config().hf_quant()["producer"]["name"].as_str();
        if producer == Some("modelopt") {
            return Some(true);
        }
        let method = at.method().map(|method| method.starts_with("modelopt"));
        // A header that lists ComfyUI's layers speaks of all of its kind.
        method.or_else(|| at.source.config().header_layers().map(|_| false))
    }

    fn layer(&self, at: &At<'_>, _options: &LoadOptions) -> Result<Layer, Error> {
        let nv = at.dtype(NAMES[1]) != Some(Dtype::U8);
        let (scale_type, scale, scale_types): (_, _, &[Dtype]) = match nv {
            true => (ScaleType::E4M3, ScaleBytes::E4m3, &[Dtype::F8_E4M3]),
            false => (ScaleType::E8M0, ScaleBytes::E8m0Inf, &[Dtype::U8]),
        };
        let (codes, scales) = (at.name(NAMES[0]), at.name(NAMES[1]));
        let shape = at.shape(&Matrix {
            layout: self.name(),
            codes: codes.clone(),
            per_element: 2,
            code_type: Dtype::U8,
            scales: scales.clone(),
            scale_types,
            scale_type,
            order: ScaleOrder::Rows,
        })?;
        let place =
            Place::Apart { codes, nibbles: Nibbles::LowEven, scales, order: ScaleOrder::Rows };
        let arithmetic = arithmetic(scale);
        let mut layer = Layer::plain(&ModelOpt, at, shape, place, arithmetic);
        layer.own = match nv {
            true => at.present(&NAMES),
            false => at.present(&[NAMES[0], NAMES[1], PRE_QUANT_SCALE]),
        };
        if let Some((dtype, stored)) = at.head(PRE_QUANT_SCALE) {
            let name = at.name(PRE_QUANT_SCALE);
            if state::float_type(dtype).is_none() {
                return Err(Error::Dtype { name, expected: "F32, F16 or BF16", got: dtype });
            }
            if stored != [shape.k()] {
                let expected = format!("({}), one for each input feature", shape.k());
                return Err(Error::Shape { name, expected, got: stored });
            }
            layer.pre_scale = Some((name, dtype));
        }
        if !nv {
            return layer.with_scales(vec![Global::ONE], None);
        }
        let global = at.scalar(NAMES[2])?;
        let global = global.ok_or_else(|| incomplete(self.name(), at.name(NAMES[2])))?;
        let input = at.scalar(NAMES[3])?.map(|input| vec![Global::times(input)]);
        layer.with_scales(vec![Global::times(global)], input)
    }

    fn write(&self, held: &Held<'_>) -> Result<Written, Refused> {
        held.expect_format(&[Format::NvFp4])?;
        if let Some(t) = held.transform {
            return Err(Refused::Transform(t.name.clone()));
        }
        let global = held.one()?.multiplier();
        let mut tensors = vec![
            held.codes(held.name(NAMES[0]), Nibbles::LowEven, Dtype::U8),
            held.scales(held.name(NAMES[1]), Dtype::F8_E4M3),
            write::scalar(held.name(NAMES[2]), vec![], global),
        ];
        if let Some(input) = held.input()? {
            tensors.push(write::scalar(held.name(NAMES[3]), vec![], input.multiplier()));
        }
        if let Some((name, dtype)) = held.pre_scale {
            tensors.push(NewTensor {
                name: held.name(PRE_QUANT_SCALE),
                dtype,
                shape: vec![held.shape.k()],
                fill: Fill::Tensor(name.into()),
            });
        }
        Ok(Written { tensors, arithmetic: arithmetic(ScaleBytes::E4m3), globals: vec![global] })
    }

    fn config(
        &self,
        config: &mut Map<String, Value>,
        done: &Done<'_>,
    ) -> Vec<(&'static str, Value)> {
        let scheme = json!({ "dynamic": false, "num_bits": 4, "type": "float", "group_size": 16 });
        let mut group = json!({ "weights": scheme, "targets": ["Linear"] });
        if done.inputs() {
            group["input_activations"] = scheme;
        }
        let algo = if done.inputs() { "NVFP4" } else { "W4A16_NVFP4" };
        let producer = json!({ "name": "modelopt", "version": "0.47.0" });
        let block = json!({
            "config_groups": { "group_0": group },
            "ignore": done.dense,
            "quant_algo": algo,
            "producer": producer,
            "quant_method": "modelopt",
        });
        config.insert("quantization_config".into(), block);
        let hf = json!({
            "producer": producer,
            "quantization": {
                "quant_algo": algo,
                "kv_cache_quant_algo": null,
                "group_size": 16,
                "exclude_modules": done.dense,
            },
        });
        vec![("hf_quant_config.json", hf)]
    }
}

fn arithmetic(scale: ScaleBytes) -> Arithmetic {
    Arithmetic { zero: Zero::Dropped, ..Arithmetic::new(Order::ScaleTimes, scale) }
}

/// Are the scales of a module as many as row-major ones?
fn row_major(at: &At<'_>) -> bool {
    match (at.head(NAMES[0]), at.head(NAMES[1])) {
        (Some((_, codes)), Some((_, scales))) => match (&codes[..], &scales[..]) {
            (&[rows, bytes], &[scale_rows, groups]) => {
                scale_rows == rows && groups.checked_mul(8) == Some(bytes)
            }
            _ => false,
        },
        _ => false,
    }
}
