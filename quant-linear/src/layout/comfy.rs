//! ComfyUI (comfy-kitchen): NVFP4 for diffusion models.
//!
//! | tensor | type | |
//! |---|---|---|
//! | `weight` | U8 (out', in' / 2) | HIGH nibble = even; padded to multiples of 16 |
//! | `weight_scale` | F8_E4M3 (128 ceil(out' / 128), 4 ceil(in' / 64)) | swizzled (C7) |
//! | `weight_scale_2`, `input_scale` | F32 () | multiply |
//! | `comfy_quant` | U8 (n), the JSON `{"format": "nvfp4"}` | the marker, if the header has none |
//!
//! value = e2m1 * (scale * global). The header's `_quantization_metadata` names the layers, or each
//! has a marker. The true shape is not in the file: rows and columns are those stored, padding
//! included, and a bias shows how many rows are real.

use fp4_core::{Format, ScaleType, Swizzle};
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::checkpoint::HEADER_LAYERS;
use crate::error::Error;
use crate::layer::state::join;
use crate::layout::LoadOptions;
use crate::layout::at::Matrix;
use crate::layout::at::module_of;
use crate::layout::write::{self, Done, DoneLayer, Fill, Held, NewTensor, Refused, Written};
use crate::layout::{
    Activations, Arithmetic, At, Global, Layer, Layout, Nibbles, Order, Place, ScaleBytes,
    ScaleOrder,
};

/// ComfyUI.
#[derive(Debug, Clone, Copy)]
pub(super) struct Comfy;

const MARKER: &str = "comfy_quant";
const NAMES: [&str; 5] = ["weight", "weight_scale", "weight_scale_2", "input_scale", MARKER];

/// Rows and columns are padded to multiples of this.
const PAD: usize = 16;

/// The longest marker that is read.
const MAX_MARKER: usize = 4096;

impl Comfy {
    /// Are the scales of a module as many as padded and swizzled ones?
    pub(super) fn padded(at: &At<'_>) -> bool {
        let heads = (at.head(NAMES[0]), at.head(NAMES[1]));
        let (Some((_, codes)), Some((_, scales))) = heads else { return false };
        let &[rows, bytes] = &codes[..] else { return false };
        let whole = rows.is_multiple_of(PAD) && bytes.is_multiple_of(PAD / 2);
        let swizzle = Swizzle::new(rows, bytes / 8);
        whole && swizzle.is_ok_and(|s| scales == [s.padded_rows(), s.padded_cols()])
    }

    /// What a marker says: the format, if there is a marker.
    fn marker(at: &At<'_>) -> Option<String> {
        let (dtype, shape) = at.head(MARKER)?;
        if dtype != Dtype::U8 || shape.iter().product::<usize>() > MAX_MARKER {
            return None;
        }
        let bytes = at.source.bytes(&at.name(MARKER)).ok()?;
        let value: Value = serde_json::from_slice(&bytes).ok()?;
        value["format"].as_str().map(str::to_string)
    }
}

impl Layout for Comfy {
    fn name(&self) -> &'static str {
        "comfyui"
    }

    fn aliases(&self) -> &'static [&'static str] {
        &["comfy", "comfy-kitchen", "comfy_kitchen"]
    }

    fn module<'n>(&self, tensor: &'n str) -> Option<&'n str> {
        module_of(tensor, "weight")
    }

    fn tensors(&self, module: &str) -> Vec<String> {
        NAMES.iter().map(|name| join(module, name)).collect()
    }

    fn could(&self, at: &At<'_>) -> bool {
        let types = at.dtype(NAMES[0]) == Some(Dtype::U8)
            && matches!(at.dtype(NAMES[1]), Some(Dtype::F8_E4M3) | None);
        types && (Self::padded(at) || self.says(at) == Some(true))
    }

    fn says(&self, at: &At<'_>) -> Option<bool> {
        if let Some(format) = Self::marker(at) {
            return Some(format == "nvfp4");
        }
        let layers = at.source.config().header_layers()?;
        // The names may lack the prefix that the tensors have.
        let listed = layers.get(at.module).or_else(|| {
            let suffixes = at.module.match_indices('.').map(|(dot, _)| &at.module[dot + 1..]);
            suffixes.filter(|suffix| !suffix.is_empty()).find_map(|suffix| layers.get(suffix))
        });
        Some(listed.is_some_and(|layer| layer["format"].as_str() == Some("nvfp4")))
    }

    fn layer(&self, at: &At<'_>, _options: &LoadOptions) -> Result<Layer, Error> {
        let (codes, scales) = (at.name(NAMES[0]), at.name(NAMES[1]));
        let shape = at.shape(&Matrix {
            layout: self.name(),
            codes: codes.clone(),
            per_element: 2,
            code_type: Dtype::U8,
            scales: scales.clone(),
            scale_types: &[Dtype::F8_E4M3],
            scale_type: ScaleType::E4M3,
            order: ScaleOrder::Swizzled,
        })?;
        let place =
            Place::Apart { codes, nibbles: Nibbles::HighEven, scales, order: ScaleOrder::Swizzled };
        let arithmetic = Arithmetic::new(Order::ScaleTimes, ScaleBytes::E4m3);
        let mut layer = Layer::plain(&Comfy, at, shape, place, arithmetic);
        layer.own = at.present(&NAMES);
        let global = at.needed(self.name(), NAMES[2])?;
        let input = at.scalar(NAMES[3])?.map(|input| vec![Global::times(input)]);
        layer.with_scales(vec![Global::times(global)], input)
    }

    fn pads(&self) -> bool {
        true
    }

    fn told(&self, layer: &DoneLayer) -> Activations {
        match layer.input {
            true => Activations::Same,
            false => Activations::Unsaid,
        }
    }

    fn write(&self, held: &Held<'_>) -> Result<Written, Refused> {
        held.expect_format(&[Format::NvFp4])?;
        held.expect_no_transform()?;
        // Rows of the padding are never written: zeros, as the file begins.
        let (rows, groups) = (held.shape.rows().next_multiple_of(PAD), held.shape.row_groups());
        let swizzle = Swizzle::new(rows, groups);
        let swizzle = swizzle.map_err(|e| Refused::Shape(format!("smaller shapes: {e}")))?;
        let codes = held.codes(held.name(NAMES[0]), Nibbles::HighEven, Dtype::U8);
        let global = held.one()?.multiplier();
        let marker = json!({ "format": "nvfp4" }).to_string().into_bytes();
        let mut tensors = vec![
            NewTensor { shape: vec![rows, held.shape.row_bytes()], ..codes },
            NewTensor {
                name: held.name(NAMES[1]),
                dtype: Dtype::F8_E4M3,
                shape: vec![swizzle.padded_rows(), swizzle.padded_cols()],
                fill: Fill::Scales(ScaleOrder::Swizzled),
            },
            write::scalar(held.name(NAMES[2]), vec![], global),
            NewTensor {
                name: held.name(MARKER),
                dtype: Dtype::U8,
                shape: vec![marker.len()],
                fill: Fill::Bytes(marker),
            },
        ];
        if let Some(input) = held.input()? {
            tensors.push(write::scalar(held.name(NAMES[3]), vec![], input.multiplier()));
        }
        let arithmetic = Arithmetic::new(Order::ScaleTimes, ScaleBytes::E4m3);
        Ok(Written { tensors, arithmetic, globals: vec![global] })
    }

    fn metadata(&self, done: &Done<'_>) -> Vec<(String, String)> {
        let layer = |module: &String| (module.clone(), json!({ "format": "nvfp4" }));
        let layers: serde_json::Map<_, _> = done.layers.iter().map(|l| layer(&l.module)).collect();
        let value = json!({ "format_version": "1.0", "layers": layers });
        vec![(HEADER_LAYERS.into(), value.to_string())]
    }
}
