//! compressed-tensors (llm-compressor, vLLM): NVFP4 and MXFP4.
//!
//! | tensor | type | |
//! |---|---|---|
//! | `weight_packed` | U8 (out, in / 2) | low nibble = even |
//! | `weight_scale` | F8_E4M3 (out, in / 16), or U8 e8m0 (out, in / 32) | |
//! | `weight_global_scale`, `input_global_scale` | F32 (1), NVFP4 only | DIVIDE |
//!
//! value = e2m1 * (scale / global). e8m0 0xFF is infinite to the library. `config.json` has
//! `quantization_config` with `quant_method: compressed-tensors`; the `format` of a config group
//! comes before that of the whole.
//!
//! AutoRound writes the same names and types: without a config the two cannot be told apart.

use std::collections::BTreeMap;
use std::iter;

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
use crate::layout::write::{self, Done, DoneLayer, Held, Refused, Written};
use crate::layout::{
    Activations, Arithmetic, At, Global, KvCache, Layer, Layout, Nibbles, Order, Place, Said,
    ScaleBytes, ScaleOrder,
};

/// compressed-tensors.
#[derive(Debug, Clone, Copy)]
pub(super) struct CompressedTensors;

pub(super) const NAMES: [&str; 4] =
    ["weight_packed", "weight_scale", "weight_global_scale", "input_global_scale"];

impl Layout for CompressedTensors {
    fn name(&self) -> &'static str {
        "compressed-tensors"
    }

    fn aliases(&self) -> &'static [&'static str] {
        &["ct", "compressed_tensors", "llm-compressor", "llmcompressor"]
    }

    fn module<'n>(&self, tensor: &'n str) -> Option<&'n str> {
        module_of(tensor, "weight_packed")
    }

    fn tensors(&self, module: &str) -> Vec<String> {
        NAMES.iter().map(|name| join(module, name)).collect()
    }

    fn could(&self, at: &At<'_>) -> bool {
        at.dtype(NAMES[0]) == Some(Dtype::U8)
    }

    fn says(&self, at: &At<'_>) -> Option<bool> {
        at.method().map(|method| method == self.name())
    }

    fn layer(&self, at: &At<'_>, _options: &LoadOptions) -> Result<Layer, Error> {
        layer(&CompressedTensors, at, Order::ScaleOver)
    }

    fn activations<'c>(&self, source: &'c dyn TensorSource) -> Said<'c> {
        activations::by_groups(source.config().quantization(), true)
    }

    fn told(&self, layer: &DoneLayer) -> Activations {
        match &layer.activations {
            Activations::Other { scheme: Some(_), .. } => layer.activations.clone(),
            _ => layer.same_or_dense(),
        }
    }

    fn tells_cache(&self, cache: &KvCache) -> bool {
        cache.scheme.is_some()
    }

    fn write(&self, held: &Held<'_>) -> Result<Written, Refused> {
        write(held, Order::ScaleOver)
    }

    fn config(
        &self,
        config: &mut Map<String, Value>,
        done: &Done<'_>,
    ) -> Vec<(&'static str, Value)> {
        let formats = done.formats();
        let mut alike: BTreeMap<(usize, String), (Format, Value, Vec<&str>)> = BTreeMap::new();
        for layer in done.layers {
            let inputs = inputs(layer);
            let place = formats.iter().position(|format| *format == layer.format);
            let key = (place.unwrap_or_default(), inputs.to_string());
            let group = alike.entry(key).or_insert_with(|| (layer.format, inputs, vec![]));
            group.2.push(&layer.module);
        }
        let alone = alike.len() == 1;
        let groups = alike.into_values().enumerate().map(|(i, (format, inputs, modules))| {
            // A class takes all of its modules; what is no linear layer goes by its name.
            let targets: Vec<_> = match alone {
                true => iter::once("Linear")
                    .chain(modules.into_iter().filter(|m| embedding(m)))
                    .collect(),
                false => modules,
            };
            (format!("group_{i}"), group(format, &targets, inputs))
        });
        let groups: Map<_, _> = groups.collect();
        // The cache is in these very words, or in none.
        let cache = done.kv_cache.filter(|cache| self.tells_cache(cache));
        let cache = cache.and_then(|cache| cache.scheme.as_ref());
        let format = match formats[..] {
            [format] => packed_name(format),
            _ => "mixed-precision",
        };
        let block = json!({
            "config_groups": groups,
            "format": format,
            "global_compression_ratio": null,
            "ignore": done.dense,
            "kv_cache_scheme": cache,
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
            "sparsity_config": {},
            "transform_config": {},
            "version": "0.20.0",
        });
        config.insert("quantization_config".into(), block);
        vec![]
    }
}

/// Is this module an embedding by its name? MLX quantizes those.
pub(super) fn embedding(module: &str) -> bool {
    let last = module.rsplit('.').next().unwrap_or(module);
    last.contains("embed") || last == "wte"
}

fn packed_name(format: Format) -> &'static str {
    match format {
        Format::MxFp4 => "mxfp4-pack-quantized",
        Format::NvFp4 => "nvfp4-pack-quantized",
    }
}

/// Weights, or activations, of a format.
fn scheme(format: Format, dynamic: Value) -> Value {
    let (size, strategy, scale) = match format {
        Format::MxFp4 => (32, "group", "torch.uint8"),
        Format::NvFp4 => (16, "tensor_group", "torch.float8_e4m3fn"),
    };
    json!({
        "dynamic": dynamic,
        "group_size": size,
        "num_bits": 4,
        "scale_dtype": scale,
        "strategy": strategy,
        "symmetric": true,
        "type": "float",
    })
}

/// What the config says of a layer's activations.
fn inputs(layer: &DoneLayer) -> Value {
    match &layer.activations {
        Activations::Other { scheme, .. } => scheme.as_deref().cloned().unwrap_or_default(),
        _ if !layer.quantizes() => Value::Null,
        _ => match layer.format {
            Format::NvFp4 => scheme(Format::NvFp4, json!("local")),
            Format::MxFp4 => scheme(Format::MxFp4, json!(true)),
        },
    }
}

/// A group of the config.
fn group(format: Format, targets: &[&str], inputs: Value) -> Value {
    json!({
        "format": packed_name(format),
        "input_activations": inputs,
        "output_activations": null,
        "targets": targets,
        "weights": scheme(format, json!(false)),
    })
}

/// Reads a layer with these names.
pub(super) fn layer(
    layout: &'static dyn Layout,
    at: &At<'_>,
    order: Order,
) -> Result<Layer, Error> {
    let nv = at.dtype(NAMES[1]) == Some(Dtype::F8_E4M3);
    let (scale_type, scale, scale_types): (_, _, &[Dtype]) = match nv {
        true => (ScaleType::E4M3, ScaleBytes::E4m3, &[Dtype::F8_E4M3]),
        false => (ScaleType::E8M0, ScaleBytes::E8m0Inf, &[Dtype::U8, Dtype::F8_E8M0]),
    };
    let (codes, scales) = (at.name(NAMES[0]), at.name(NAMES[1]));
    let shape = at.shape(&Matrix {
        layout: layout.name(),
        codes: codes.clone(),
        per_element: 2,
        code_type: Dtype::U8,
        scales: scales.clone(),
        scale_types,
        scale_type,
        order: ScaleOrder::Rows,
    })?;
    let order_of = match nv {
        true => order,
        false => Order::ScaleTimes,
    };
    let place = Place::Apart { codes, nibbles: Nibbles::LowEven, scales, order: ScaleOrder::Rows };
    let mut layer = Layer::plain(layout, at, shape, place, Arithmetic::new(order_of, scale));
    let transforms = &at.source.config().quantization()["transform_config"];
    let some = transforms.as_object().is_some_and(|config| !config.is_empty());
    layer.untold = some.then(|| "`transform_config` of the config".into());
    let own = if nv { &NAMES[..] } else { &NAMES[..2] };
    layer.own = at.present(own);
    if !nv {
        return layer.with_scales(vec![Global::ONE], None);
    }
    let global = Global::over(at.needed(layout.name(), NAMES[2])?);
    let input = at.scalar(NAMES[3])?.map(|input| vec![Global::over(input)]);
    layer.with_scales(vec![global], input)
}

/// A weight with these names.
pub(super) fn write(held: &Held<'_>, order: Order) -> Result<Written, Refused> {
    held.expect_no_transform()?;
    let codes = held.codes(held.name(NAMES[0]), Nibbles::LowEven, Dtype::U8);
    if held.expect_format(&[Format::MxFp4, Format::NvFp4])? == Format::MxFp4 {
        held.expect_no_global()?;
        let tensors = vec![codes, held.scales(held.name(NAMES[1]), Dtype::U8)];
        return Ok(held.written(tensors, write::no_global(ScaleBytes::E8m0Inf)));
    }
    let global = held.one()?.divisor();
    let mut tensors = vec![
        codes,
        held.scales(held.name(NAMES[1]), Dtype::F8_E4M3),
        write::scalar(held.name(NAMES[2]), vec![1], global),
    ];
    if let Some(input) = held.input()? {
        tensors.push(write::scalar(held.name(NAMES[3]), vec![1], input.divisor()));
    }
    let arithmetic = Arithmetic::new(order, ScaleBytes::E4m3);
    Ok(Written { tensors, arithmetic, globals: vec![global] })
}
