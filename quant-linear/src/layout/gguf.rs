//! GGUF (llama.cpp): MXFP4 (type 39) and NVFP4 (type 40).
//!
//! | tensor | type | |
//! |---|---|---|
//! | `X.weight` | MXFP4 or NVFP4 ([experts,] out, in) | [blocks](super::place) |
//! | `X.scale`, `X.input_scale` | F32 (1) or (experts) | multiply; absent when 1 |
//!
//! value = (e2m1 * scale) * global: llama.cpp multiplies the product's output. Code 8 is +0. e8m0
//! 0xFF is 2^128; e4m3 bytes have no sign, 0x7F is 0 and 0xFF 480. Rows of NVFP4 are multiples of
//! 64 elements.

use fp4_core::{Format, PackedShape, ScaleType};
use safetensors::Dtype;

use crate::checkpoint::gguf::GgmlType;
use crate::error::Error;
use crate::layer::state::join;
use crate::layout::LoadOptions;
use crate::layout::at::module_of;
use crate::layout::at::{format_of, stacked_rows};
use crate::layout::write::{Fill, Held, NewTensor, Refused, Written};
use crate::layout::{Arithmetic, At, Global, Layer, Layout, Order, Place, ScaleBytes, Zero, place};

/// GGUF.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gguf;

const NAMES: [&str; 3] = ["weight", "scale", "input_scale"];

fn scale_type(ty: GgmlType) -> Option<ScaleType> {
    match ty {
        GgmlType::MXFP4 => Some(ScaleType::E8M0),
        GgmlType::NVFP4 => Some(ScaleType::E4M3),
        _ => None,
    }
}

fn arithmetic(scale_type: ScaleType) -> Arithmetic {
    let scale = match scale_type {
        ScaleType::E8M0 => ScaleBytes::E8m0Ldexp,
        ScaleType::E4M3 => ScaleBytes::Ue4m3,
    };
    Arithmetic { zero: Zero::Unsigned, ..Arithmetic::new(Order::ProductTimes, scale) }
}

impl Layout for Gguf {
    fn name(&self) -> &'static str {
        "gguf"
    }

    fn aliases(&self) -> &'static [&'static str] {
        &["llama.cpp", "ggml"]
    }

    fn module<'n>(&self, tensor: &'n str) -> Option<&'n str> {
        module_of(tensor, "weight")
    }

    fn tensors(&self, module: &str) -> Vec<String> {
        NAMES.iter().map(|name| join(module, name)).collect()
    }

    fn could(&self, at: &At<'_>) -> bool {
        at.source.ggml_type(&at.name(NAMES[0])).is_some_and(|ty| scale_type(ty).is_some())
    }

    fn layer(&self, at: &At<'_>, _options: &LoadOptions) -> Result<Layer, Error> {
        let name = at.name(NAMES[0]);
        let missing = || super::at::incomplete(self.name(), name.clone());
        let ty = at.source.ggml_type(&name).and_then(scale_type).ok_or_else(missing)?;
        let (_, shape) = at.source.header(&name).ok_or_else(missing)?;
        let (bytes, elements) = place::block(ty);
        let wrong = || Error::Shape {
            name: name.clone(),
            expected: "(out, in) or (experts, out, in)".into(),
            got: shape.clone(),
        };
        let (experts, out, row_bytes) = match shape[..] {
            [out, row_bytes] => (None, out, row_bytes),
            [experts, out, row_bytes] => (Some(experts), out, row_bytes),
            _ => return Err(wrong()),
        };
        let rows = stacked_rows(&name, experts.unwrap_or(1), out)?;
        let k = (row_bytes / bytes).checked_mul(elements).ok_or_else(wrong)?;
        let packed = PackedShape::of(format_of(ty), rows, k)?;
        let place = Place::Blocks { tensor: name };
        let mut layer = Layer::plain(&Gguf, at, packed, place, arithmetic(ty));
        layer.experts = experts;
        layer.own = at.present(&NAMES);
        let count = experts.unwrap_or(1);
        let times = |scales: Vec<f32>| scales.into_iter().map(Global::times).collect::<Vec<_>>();
        let own = at.one_or_each(NAMES[1], count)?.map_or_else(|| vec![Global::ONE], times);
        layer.with_scales(own, at.one_or_each(NAMES[2], count)?.map(times))
    }

    fn stacks(&self) -> bool {
        true
    }

    fn write(&self, held: &Held<'_>) -> Result<Written, Refused> {
        held.expect_format(&[Format::MxFp4, Format::NvFp4])?;
        held.expect_no_transform()?;
        let ty = held.shape.scale_type();
        let (bytes, elements) = place::block(ty);
        let (rows, k) = (held.shape.rows(), held.shape.k());
        if !k.is_multiple_of(elements) {
            let what = format!("rows in multiples of {elements} elements only, and this has {k}");
            return Err(Refused::Shape(what));
        }
        let experts = held.experts;
        let row_bytes = k / elements * bytes;
        let stacked =
            experts.map_or(vec![rows, row_bytes], |e| vec![e, rows / e.max(1), row_bytes]);
        let mut tensors = vec![NewTensor {
            name: held.name(NAMES[0]),
            dtype: Dtype::U8,
            shape: stacked,
            fill: Fill::Blocks(ty),
        }];
        let multipliers = |globals: &[Global]| -> Vec<f32> {
            globals.iter().map(|global| global.multiplier()).collect()
        };
        let vector = |name, values: &[f32]| NewTensor {
            name,
            dtype: Dtype::F32,
            shape: vec![values.len()],
            fill: Fill::Bytes(values.iter().flat_map(|value| value.to_le_bytes()).collect()),
        };
        let globals = multipliers(held.globals);
        if globals.iter().any(|&global| global != 1.0) {
            tensors.push(vector(held.name(NAMES[1]), &globals));
        }
        if let Some(inputs) = held.inputs {
            tensors.push(vector(held.name(NAMES[2]), &multipliers(inputs)));
        }
        Ok(Written { tensors, arithmetic: arithmetic(ty), globals })
    }
}
