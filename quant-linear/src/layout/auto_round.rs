//! AutoRound: MXFP4 and NVFP4 under the names of compressed-tensors, with an arithmetic of its own.
//!
//! value = (e2m1 * (1 / global)) * scale for NVFP4, a third order: about a third of the values of
//! real weights differ from those of the other two, by up to 2 units in the last place. e8m0 0xFF
//! is infinite. `config.json` has `quant_method: auto-round` and `packing_format`. Its loader takes
//! every linear layer of a block for quantized but those that `extra_config` gives 16 bits.

use fp4_core::Format;
use safetensors::Dtype;
use serde_json::{Map, Value, json};

use crate::checkpoint::TensorSource;
use crate::error::Error;
use crate::layer::state::join;
use crate::layout::LoadOptions;
use crate::layout::activations;
use crate::layout::at::module_of;
use crate::layout::compressed_tensors::{self, NAMES};
use crate::layout::write::{Done, DoneLayer, Held, Refused, Written};
use crate::layout::{Activations, At, Layer, Layout, Order, Said};

/// AutoRound.
#[derive(Debug, Clone, Copy)]
pub(super) struct AutoRound;

impl Layout for AutoRound {
    fn name(&self) -> &'static str {
        "auto-round"
    }

    fn aliases(&self) -> &'static [&'static str] {
        &["autoround", "auto_round"]
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
        at.method().map(|method| method == self.name() || method == "auto_round")
    }

    fn layer(&self, at: &At<'_>, _options: &LoadOptions) -> Result<Layer, Error> {
        compressed_tensors::layer(&AutoRound, at, Order::ReciprocalFirst)
    }

    fn activations<'c>(&self, source: &'c dyn TensorSource) -> Said<'c> {
        activations::of_auto_round(source.config())
    }

    // Its MXFP4 layers all quantize activations, so 16 bits would find none of them.
    fn told(&self, layer: &DoneLayer) -> Activations {
        match layer.format {
            Format::MxFp4 => Activations::Same,
            Format::NvFp4 => layer.same_or_dense(),
        }
    }

    fn write(&self, held: &Held<'_>) -> Result<Written, Refused> {
        compressed_tensors::write(held, Order::ReciprocalFirst)
    }

    fn config(
        &self,
        config: &mut Map<String, Value>,
        done: &Done<'_>,
    ) -> Vec<(&'static str, Value)> {
        let settings = |format: Format, quantized: bool| {
            let (size, data, act) = match format {
                Format::MxFp4 => (32, "mx_fp", "mx_fp"),
                Format::NvFp4 => (16, "nv_fp", "nv_fp4_with_static_gs"),
            };
            json!({
                "bits": 4,
                "act_bits": if quantized { 4 } else { 16 },
                "data_type": data,
                "act_data_type": act,
                "group_size": size,
                "act_group_size": size,
                "sym": true,
                "act_sym": true,
                "act_dynamic": true,
            })
        };
        let of = |layer: &DoneLayer| (layer.format, self.told(layer) == Activations::Same);
        // What most layers have is that of the whole; the others are exceptions by name.
        let each = [true, false].into_iter();
        let each = each.flat_map(|one| done.formats().into_iter().map(move |format| (format, one)));
        let count = |kind: &(Format, bool)| done.layers.iter().filter(|l| of(l) == *kind).count();
        let main = each.max_by_key(count).unwrap_or((Format::NvFp4, true));
        let mut block = settings(main.0, main.1);
        // What is outside of the blocks, as `lm_head`, is dense to the loader unless it is named.
        let others = done.layers.iter().filter(|layer| {
            let block = layer.module.split('.').any(|part| part.parse::<usize>().is_ok());
            of(layer) != main || !(block || compressed_tensors::embedding(&layer.module))
        });
        let others = others.map(|layer| {
            let (format, quantized) = of(layer);
            (layer.module.clone(), settings(format, quantized))
        });
        // A linear layer that is not named has codes to the loader.
        let dense = done.dense.iter();
        let dense = dense.map(|module| (module.clone(), json!({ "bits": 16, "act_bits": 16 })));
        let extra: Map<_, _> = others.chain(dense).collect();
        if !extra.is_empty() {
            block["extra_config"] = Value::Object(extra);
        }
        block["quant_method"] = json!("auto-round");
        block["packing_format"] = json!("auto_round:llm_compressor");
        block["enable_quanted_input"] = json!(false);
        block["autoround_version"] = json!("0.16.1");
        config.insert("quantization_config".into(), block.clone());
        vec![("quantization_config.json", block)]
    }
}
