//! FP-Quant: MXFP4 and NVFP4 of a weight that was rotated first.
//!
//! | tensor | type | |
//! |---|---|---|
//! | `qweight` | U8 (out, in / 2) | codes of the ROTATED weight; zeros are 0x8 |
//! | `scales` | U8 (out, in / G) | e8m0 of MXFP4, e4m3 of NVFP4 |
//! | `weight_global_scale`, `act_global_scale` | F32 (1) | DIVIDE, of MXFP4 too (3.0) |
//! | `forward_hadamard_matrix` | (H, H) | the transform of activations |
//! | `backward_hadamard_matrix` | (H, H) | for training |
//!
//! A weight that is not rotated has the identity there, of one group: for MXFP4 the loader refuses
//! `hadamard_group_size` below 32.
//!
//! value = e2m1 * (scale / global). `config.json` has `quant_method: fp_quant` and `forward_dtype`;
//! without it the number of groups tells the format.

use fp4_core::{Format, ScaleType};
use safetensors::Dtype;
use serde_json::{Map, Value, json};

use crate::checkpoint::TensorSource;
use crate::error::Error;
use crate::layer::state::{self, join};
use crate::layout::LoadOptions;
use crate::layout::activations;
use crate::layout::at::module_of;
use crate::layout::at::{Matrix, format_of};
use crate::layout::native;
use crate::layout::write::{self, Done, DoneLayer, Fill, Held, NewTensor, Refused, Written};
use crate::layout::{
    Activations, Arithmetic, At, Global, Layer, Layout, Nibbles, Order, Place, Said, ScaleBytes,
    ScaleOrder,
};

/// FP-Quant.
#[derive(Debug, Clone, Copy)]
pub(super) struct FpQuant;

const FORWARD: &str = "forward_hadamard_matrix";
const BACKWARD: &str = "backward_hadamard_matrix";
const NAMES: [&str; 6] =
    ["qweight", "scales", "weight_global_scale", "act_global_scale", FORWARD, BACKWARD];

/// The block of the identity that stands for no transform: the least that the loader takes.
fn identity_block(format: Format) -> usize {
    format.group().get()
}

impl Layout for FpQuant {
    fn name(&self) -> &'static str {
        "fp-quant"
    }

    fn aliases(&self) -> &'static [&'static str] {
        &["fpquant", "fp_quant"]
    }

    fn module<'n>(&self, tensor: &'n str) -> Option<&'n str> {
        module_of(tensor, "qweight")
    }

    fn tensors(&self, module: &str) -> Vec<String> {
        NAMES.iter().map(|name| join(module, name)).collect()
    }

    fn could(&self, at: &At<'_>) -> bool {
        let scales = at.dtype(NAMES[1]);
        let bytes = matches!(scales, Some(Dtype::U8 | Dtype::F8_E8M0 | Dtype::F8_E4M3) | None);
        at.dtype(NAMES[0]) == Some(Dtype::U8) && bytes
    }

    fn layer(&self, at: &At<'_>, _options: &LoadOptions) -> Result<Layer, Error> {
        let scale_type = scale_type(at);
        let scale = match scale_type {
            ScaleType::E8M0 => ScaleBytes::E8m0,
            ScaleType::E4M3 => ScaleBytes::E4m3,
        };
        let (codes, scales) = (at.name(NAMES[0]), at.name(NAMES[1]));
        let shape = at.shape(&Matrix {
            layout: self.name(),
            codes: codes.clone(),
            per_element: 2,
            code_type: Dtype::U8,
            scales: scales.clone(),
            scale_types: &[Dtype::U8, write::scale_dtype(scale_type)],
            scale_type,
            order: ScaleOrder::Rows,
        })?;
        let place =
            Place::Apart { codes, nibbles: Nibbles::LowEven, scales, order: ScaleOrder::Rows };
        let arithmetic = Arithmetic::new(Order::ScaleOver, scale);
        let mut layer = Layer::plain(&FpQuant, at, shape, place, arithmetic);
        layer.own = at.present(&NAMES);
        layer.transform = native::transform(at.source, at.name(FORWARD))?;
        let identity = match &layer.transform {
            Some(t) => is_identity(&layer, t.shape.block.get(), at)?,
            None => false,
        };
        if identity {
            layer.transform = None;
        }
        let global = Global::over(at.needed(self.name(), NAMES[2])?);
        let input = at.scalar(NAMES[3])?.map(|input| vec![Global::over(input)]);
        let transform = layer.transform.as_ref().map(|t| t.shape);
        let layer = layer.with_scales(vec![global], input)?;
        state::check(shape, transform, &layer.scalars)?;
        Ok(layer)
    }

    fn mixes(&self) -> bool {
        false // one `forward_dtype`
    }

    fn activations<'c>(&self, source: &'c dyn TensorSource) -> Said<'c> {
        activations::of_fp_quant(source.config())
    }

    // Its config has one `forward_dtype` for all of a product.
    fn told(&self, _layer: &DoneLayer) -> Activations {
        Activations::Same
    }

    fn write(&self, held: &Held<'_>) -> Result<Written, Refused> {
        let format = held.expect_format(&[Format::MxFp4, Format::NvFp4])?;
        if let Some((name, _)) = held.pre_scale {
            return Err(Refused::Transform(name.into()));
        }
        let global = held.one()?.divisor();
        // It has no word for none: 1 changes nothing.
        let input = held.input()?.map_or(1.0, Global::divisor);
        let (dtype, shape, fill) = match held.transform {
            Some(t) if t.shape.blocks.is_some() => {
                return Err(Refused::Transform(format!("{}: one matrix for each block", t.name)));
            }
            Some(t) => {
                let dtype = state::float_dtype(t.shape.float_type);
                (dtype, t.stored.clone(), Fill::Tensor(t.name.clone()))
            }
            None => {
                let block = identity_block(format);
                (Dtype::F32, vec![block; 2], Fill::Bytes(identity(block)))
            }
        };
        let matrix = |name| NewTensor {
            name: held.name(name),
            dtype,
            shape: shape.clone(),
            fill: fill.clone(),
        };
        let tensors = vec![
            held.codes(held.name(NAMES[0]), Nibbles::LowEven, Dtype::U8),
            held.scales(held.name(NAMES[1]), Dtype::U8),
            write::scalar(held.name(NAMES[2]), vec![1], global),
            write::scalar(held.name(NAMES[3]), vec![1], input),
            matrix(FORWARD),
            matrix(BACKWARD),
        ];
        let scale = match format {
            Format::MxFp4 => ScaleBytes::E8m0,
            Format::NvFp4 => ScaleBytes::E4m3,
        };
        let arithmetic = Arithmetic::new(Order::ScaleOver, scale);
        Ok(Written { tensors, arithmetic, globals: vec![global] })
    }

    fn config(
        &self,
        config: &mut Map<String, Value>,
        done: &Done<'_>,
    ) -> Vec<(&'static str, Value)> {
        let (name, format) = match done.formats()[..] {
            [Format::MxFp4] => ("mxfp4", Format::MxFp4),
            _ => ("nvfp4", Format::NvFp4),
        };
        let block = done.layers.iter().find_map(|layer| layer.transform);
        let block = block.unwrap_or(identity_block(format));
        let block = json!({
            "backward_dtype": "bf16",
            "forward_dtype": name,
            "forward_method": "abs_max",
            "hadamard_group_size": block,
            "modules_to_not_convert": done.dense,
            "pseudoquantization": false,
            "quant_method": "fp_quant",
            "store_master_weights": false,
        });
        config.insert("quantization_config".into(), block);
        vec![]
    }
}

/// What the scale bytes are: by their type, by the config, or by how many there are.
fn scale_type(at: &At<'_>) -> ScaleType {
    match at.dtype(NAMES[1]) {
        Some(Dtype::F8_E8M0) => return ScaleType::E8M0,
        Some(Dtype::F8_E4M3) => return ScaleType::E4M3,
        _ => {}
    }
    match at.source.config().quantization()["forward_dtype"].as_str() {
        Some("mxfp4") => return ScaleType::E8M0,
        Some("nvfp4") => return ScaleType::E4M3,
        _ => {}
    }
    let cols = |name| at.head(name).and_then(|(_, shape)| shape.last().copied());
    let of_nv = |bytes: usize| bytes * 2 / format_of(ScaleType::E4M3).group().get();
    match (cols(NAMES[0]), cols(NAMES[1])) {
        (Some(bytes), Some(groups)) if of_nv(bytes) == groups => ScaleType::E4M3,
        _ => ScaleType::E8M0,
    }
}

/// The identity in f32.
fn identity(block: usize) -> Vec<u8> {
    let one = |i: usize| if i.is_multiple_of(block + 1) { 1f32 } else { 0.0 };
    (0..block * block).flat_map(|i| one(i).to_le_bytes()).collect()
}

/// Does the transform leave everything as it is?
fn is_identity(layer: &Layer, block: usize, at: &At<'_>) -> Result<bool, Error> {
    let Some(t) = layer.stored_transform(at.source)? else { return Ok(false) };
    let values = t.values().as_slice();
    let expected = |i: usize| if i.is_multiple_of(block + 1) { 1.0 } else { 0.0 };
    let shared = t.shape().len() == 2;
    Ok(shared && (0..block * block).all(|i| values.get_f32(i) == Some(expected(i))))
}
