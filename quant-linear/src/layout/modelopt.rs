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
//! Experts that are one tensor have names of their own: `modelopt_experts`.
//!
//! ComfyUI files can have the very names, types and shapes of these, with swapped nibbles and
//! swizzled scales: only config, header or marker tells.

use fp4_core::{Format, ScaleType};
use safetensors::Dtype;
use serde_json::{Map, Value, json};

use crate::checkpoint::TensorSource;
use crate::error::Error;
use crate::layer::state::{self, join};
use crate::layout::LoadOptions;
use crate::layout::activations;
use crate::layout::at::module_of;
use crate::layout::at::{Matrix, incomplete};
use crate::layout::comfy::Comfy;
use crate::layout::modelopt_experts as experts;
use crate::layout::write::{self, Done, DoneLayer, Fill, Held, NewTensor, Refused, Written};
use crate::layout::{
    Activations, Arithmetic, At, Global, KvCache, Layer, Layout, Nibbles, Order, Place, Said,
    ScaleBytes, ScaleOrder, Zero,
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
        module_of(tensor, "weight").or_else(|| experts::module(tensor))
    }

    fn tensors(&self, module: &str) -> Vec<String> {
        let plain = NAMES.iter().map(|name| join(module, name));
        plain.chain(experts::tensors(module)).collect()
    }

    fn could(&self, at: &At<'_>) -> bool {
        if experts::could(at, self.says(at)) {
            return true;
        }
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
        if experts::could(at, self.says(at)) {
            return experts::layer(at);
        }
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
        layer.pre_scale = pre_scale(at, at.name(PRE_QUANT_SCALE), shape.k())?;
        if !nv {
            return layer.with_scales(vec![Global::ONE], None);
        }
        let global = at.scalar(NAMES[2])?;
        let global = global.ok_or_else(|| incomplete(self.name(), at.name(NAMES[2])))?;
        let input = at.scalar(NAMES[3])?.map(|input| vec![Global::times(input)]);
        layer.with_scales(vec![Global::times(global)], input)
    }

    fn activations<'c>(&self, source: &'c dyn TensorSource) -> Said<'c> {
        activations::of_modelopt(source.config())
    }

    fn told(&self, layer: &DoneLayer) -> Activations {
        layer.same_or_dense()
    }

    fn tells_cache(&self, cache: &KvCache) -> bool {
        cache.is_fp8()
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
        let quantize = done.layers.iter().filter(|layer| layer.quantizes()).count();
        let algorithm = |inputs: bool| if inputs { "NVFP4" } else { "W4A16_NVFP4" };
        let group = |inputs: bool, targets: Value| {
            let four =
                json!({ "dynamic": false, "num_bits": 4, "type": "float", "group_size": 16 });
            let mut group = json!({ "weights": four, "targets": targets });
            if inputs {
                group["input_activations"] = four;
            }
            group
        };
        let producer = json!({ "name": "modelopt", "version": "0.47.0" });
        let cache = done.kv_cache.filter(|cache| self.tells_cache(cache)).map(|_| "FP8");
        let mut block = json!({
            "ignore": done.dense,
            "producer": producer,
            "quant_method": "modelopt",
        });
        let mut hf = json!({
            "kv_cache_quant_algo": cache,
            "group_size": 16,
            "exclude_modules": done.dense,
        });
        let mixed = quantize != 0 && quantize != done.layers.len();
        let groups = match mixed {
            false => json!({ "group_0": group(quantize > 0, json!(["Linear"])) }),
            true => {
                let of = |inputs: bool| {
                    let layers = done.layers.iter().filter(|layer| layer.quantizes() == inputs);
                    layers.map(|layer| layer.module.as_str()).collect::<Vec<_>>()
                };
                let layers = done.layers.iter().map(|layer| {
                    let name = algorithm(layer.quantizes());
                    (layer.module.clone(), json!({ "quant_algo": name, "group_size": 16 }))
                });
                let layers = Value::Object(layers.collect());
                block["quantized_layers"] = layers.clone();
                hf["quantized_layers"] = layers;
                json!({ "group_0": group(true, json!(of(true))),
                    "group_1": group(false, json!(of(false))) })
            }
        };
        let name = if mixed { "MIXED_PRECISION" } else { algorithm(quantize > 0) };
        (block["config_groups"], block["quant_algo"]) = (groups, json!(name));
        hf["quant_algo"] = json!(name);
        if cache.is_some() {
            block["kv_cache_scheme"] = json!({ "dynamic": false, "num_bits": 8, "type": "float" });
        }
        config.insert("quantization_config".into(), block);
        vec![("hf_quant_config.json", json!({ "producer": producer, "quantization": hf }))]
    }
}

/// A scale of each input feature, if it is there.
pub(super) fn pre_scale(
    at: &At<'_>,
    name: String,
    k: usize,
) -> Result<Option<(String, Dtype)>, Error> {
    let Some((dtype, stored)) = at.source.header(&name) else { return Ok(None) };
    if state::float_type(dtype).is_none() {
        return Err(Error::Dtype { name, expected: "F32, F16 or BF16", got: dtype });
    }
    if stored != [k] {
        let expected = format!("({k}), one for each input feature");
        return Err(Error::Shape { name, expected, got: stored });
    }
    Ok(Some((name, dtype)))
}

pub(super) fn arithmetic(scale: ScaleBytes) -> Arithmetic {
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
