//! AMD Quark: MXFP4.
//!
//! | tensor | type | |
//! |---|---|---|
//! | `weight` | U8 (out, in / 2) | the dense tensor's own name |
//! | `weight_scale` | U8 e8m0 (out, in / 32) | |
//!
//! value = e2m1 * scale; 0xFF is infinite. `config.json` has `quant_method: quark`,
//! `global_quant_config` and `exclude`.

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
    Activations, At, Global, Layer, Layout, Nibbles, Place, Said, ScaleBytes, ScaleOrder,
};

/// AMD Quark.
#[derive(Debug, Clone, Copy)]
pub(super) struct Quark;

const NAMES: [&str; 2] = ["weight", "weight_scale"];
const ARITHMETIC: super::Arithmetic = write::no_global(ScaleBytes::E8m0Inf);

impl Layout for Quark {
    fn name(&self) -> &'static str {
        "quark"
    }

    fn aliases(&self) -> &'static [&'static str] {
        &["amd-quark", "amd"]
    }

    fn module<'n>(&self, tensor: &'n str) -> Option<&'n str> {
        module_of(tensor, "weight")
    }

    fn tensors(&self, module: &str) -> Vec<String> {
        NAMES.iter().map(|name| join(module, name)).collect()
    }

    fn could(&self, at: &At<'_>) -> bool {
        at.dtype(NAMES[0]) == Some(Dtype::U8)
            && match at.dtype(NAMES[1]) {
                Some(Dtype::U8 | Dtype::F8_E8M0) => true,
                None => self.says(at) == Some(true),
                Some(_) => false,
            }
    }

    fn says(&self, at: &At<'_>) -> Option<bool> {
        at.method().map(|method| method == self.name())
    }

    fn layer(&self, at: &At<'_>, _options: &LoadOptions) -> Result<Layer, Error> {
        let (codes, scales) = (at.name(NAMES[0]), at.name(NAMES[1]));
        let shape = at.shape(&Matrix {
            layout: self.name(),
            codes: codes.clone(),
            per_element: 2,
            code_type: Dtype::U8,
            scales: scales.clone(),
            scale_types: &[Dtype::U8, Dtype::F8_E8M0],
            scale_type: ScaleType::E8M0,
            order: ScaleOrder::Rows,
        })?;
        let place =
            Place::Apart { codes, nibbles: Nibbles::LowEven, scales, order: ScaleOrder::Rows };
        let mut layer = Layer::plain(&Quark, at, shape, place, ARITHMETIC);
        layer.own = at.present(&NAMES);
        layer.with_scales(vec![Global::ONE], None)
    }

    fn activations<'c>(&self, source: &'c dyn TensorSource) -> Said<'c> {
        activations::of_quark(source.config())
    }

    fn told(&self, layer: &DoneLayer) -> Activations {
        layer.same_or_dense()
    }

    fn write(&self, held: &Held<'_>) -> Result<Written, Refused> {
        held.expect_format(&[Format::MxFp4])?;
        held.expect_no_transform()?;
        held.expect_no_global()?;
        let tensors = vec![
            held.codes(held.name(NAMES[0]), Nibbles::LowEven, Dtype::U8),
            held.scales(held.name(NAMES[1]), Dtype::U8),
        ];
        Ok(held.written(tensors, ARITHMETIC))
    }

    fn config(
        &self,
        config: &mut Map<String, Value>,
        done: &Done<'_>,
    ) -> Vec<(&'static str, Value)> {
        let scheme = |dynamic: bool| {
            json!({
                "block_size": null,
                "ch_axis": -1,
                "dtype": "fp4",
                "enable_buffer_reuse": false,
                "group_size": 32,
                "is_dynamic": dynamic,
                "is_scale_quant": false,
                "max_input_numel": 4_194_304,
                "mx_element_dtype": null,
                "observer_cls": "PerBlockMXObserver",
                "qscheme": "per_group",
                "round_method": "half_even",
                "scale_calculation_mode": "even",
                "scale_format": "e8m0",
                "scale_type": "float",
                "symmetric": null,
                "zero_point_type": "int32",
            })
        };
        let settings = |inputs: bool| {
            json!({
                "bias": null,
                "input_tensors": if inputs { scheme(true) } else { Value::Null },
                "output_tensors": null,
                "target_device": null,
                "weight": scheme(false),
            })
        };
        // What most layers have is that of the whole; the others are exceptions by name.
        let quantize = done.layers.iter().filter(|layer| layer.quantizes()).count();
        let main = 2 * quantize > done.layers.len();
        let others = done.layers.iter().filter(|layer| layer.quantizes() != main);
        let others: Map<_, _> =
            others.map(|layer| (layer.module.clone(), settings(!main))).collect();
        let block = json!({
            "algo_config": null,
            "exclude": done.dense,
            "export": {
                "kv_cache_group": [],
                "min_kv_scale": 0.0,
                "pack_method": "reorder",
                "weight_format": "real_quantized",
                "weight_merge_groups": null,
            },
            "global_quant_config": settings(main),
            "kv_cache_post_rope": false,
            "kv_cache_quant_config": {},
            "layer_quant_config": others,
            "layer_type_quant_config": {},
            "quant_method": "quark",
            "quant_mode": "eager_mode",
            "softmax_quant_spec": null,
            "version": "0.13",
        });
        config.insert("quantization_config".into(), block);
        vec![]
    }
}
