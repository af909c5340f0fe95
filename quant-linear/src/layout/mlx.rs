//! MLX (mlx-lm): `mxfp4` and `nvfp4`.
//!
//! | tensor | type | |
//! |---|---|---|
//! | `weight` | U32 ([experts,] out, in / 8) | nibble i of a word = element i |
//! | `scales` | U8 ([experts,] out, in / G) | e8m0 of mxfp4, e4m3 of nvfp4 |
//!
//! value = e2m1 * scale; e8m0 0xFF is infinite. Nothing in the file but the number of groups tells
//! the two apart: `config.json` has a `mode` in `quantization`, with other modes for modules by
//! name. Affine layers (`biases`, scales of a float type) are no FP4, and stay as they are.

use fp4_core::{Format, ScaleType};
use safetensors::Dtype;
use serde_json::{Map, Value, json};

use crate::error::Error;
use crate::layer::state::join;
use crate::layout::LoadOptions;
use crate::layout::at::module_of;
use crate::layout::at::{Matrix, format_of};
use crate::layout::write::{Done, Fill, Held, NewTensor, Refused, Written};
use crate::layout::{
    Arithmetic, At, Global, Layer, Layout, Nibbles, Order, Place, ScaleBytes, ScaleOrder,
};

/// MLX.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mlx;

const NAMES: [&str; 2] = ["weight", "scales"];

fn arithmetic(scale_type: ScaleType) -> Arithmetic {
    let scale = match scale_type {
        ScaleType::E8M0 => ScaleBytes::E8m0Inf,
        ScaleType::E4M3 => ScaleBytes::E4m3,
    };
    Arithmetic::new(Order::ScaleTimes, scale)
}

/// The mode that the config has for a module.
fn mode<'a>(at: &At<'a>) -> Option<&'a str> {
    let model = at.source.config().model();
    let block = [&model["quantization"], &model["quantization_config"]];
    let block =
        block.into_iter().find(|block| block["mode"].is_string() || block["bits"].is_u64())?;
    match &block[at.module] {
        Value::Null => block["mode"].as_str(),
        Value::Bool(false) => Some("dense"),
        // A block without a mode is an affine one.
        own => Some(own["mode"].as_str().unwrap_or("affine")),
    }
}

/// The scale type by the number of groups, if it is that of one of the two.
fn by_groups(at: &At<'_>) -> Option<ScaleType> {
    let ((_, codes), (_, scales)) = (at.head(NAMES[0])?, at.head(NAMES[1])?);
    let (&[.., words], &[.., groups]) = (&codes[..], &scales[..]) else { return None };
    let k = words.checked_mul(8)?;
    ScaleType::ALL
        .into_iter()
        .find(|ty| groups.checked_mul(format_of(*ty).group().get()) == Some(k))
}

impl Layout for Mlx {
    fn name(&self) -> &'static str {
        "mlx"
    }

    fn aliases(&self) -> &'static [&'static str] {
        &["mlx-lm"]
    }

    fn module<'n>(&self, tensor: &'n str) -> Option<&'n str> {
        module_of(tensor, "weight")
    }

    fn tensors(&self, module: &str) -> Vec<String> {
        NAMES.iter().map(|name| join(module, name)).collect()
    }

    fn could(&self, at: &At<'_>) -> bool {
        at.dtype(NAMES[0]) == Some(Dtype::U32)
            && at.dtype(NAMES[1]) == Some(Dtype::U8)
            && !at.has("biases")
            && (by_groups(at).is_some() || self.says(at) == Some(true))
    }

    fn says(&self, at: &At<'_>) -> Option<bool> {
        mode(at).map(|mode| mode == "mxfp4" || mode == "nvfp4")
    }

    fn layer(&self, at: &At<'_>, _options: &LoadOptions) -> Result<Layer, Error> {
        let scale_type = match mode(at) {
            Some("mxfp4") => ScaleType::E8M0,
            Some("nvfp4") => ScaleType::E4M3,
            _ => by_groups(at).unwrap_or(ScaleType::E8M0),
        };
        let (codes, scales) = (at.name(NAMES[0]), at.name(NAMES[1]));
        let (experts, shape) = at.stacked(&Matrix {
            layout: self.name(),
            codes: codes.clone(),
            per_element: 8,
            code_type: Dtype::U32,
            scales: scales.clone(),
            scale_types: &[Dtype::U8],
            scale_type,
            order: ScaleOrder::Rows,
        })?;
        let place =
            Place::Apart { codes, nibbles: Nibbles::LowEven, scales, order: ScaleOrder::Rows };
        let mut layer = Layer::plain(&Mlx, at, shape, place, arithmetic(scale_type));
        layer.experts = experts;
        layer.own = at.present(&NAMES);
        layer.with_scales(vec![Global::ONE], None)
    }

    fn stacks(&self) -> bool {
        true
    }

    fn write(&self, held: &Held<'_>) -> Result<Written, Refused> {
        held.expect_format(&[Format::MxFp4, Format::NvFp4])?;
        held.expect_no_transform()?;
        held.expect_no_global()?;
        let (rows, k) = (held.shape.rows(), held.shape.k());
        let stacked = |last: usize| match held.experts {
            Some(experts) => vec![experts, rows / experts.max(1), last],
            None => vec![rows, last],
        };
        let scales = held.scales(held.name(NAMES[1]), Dtype::U8);
        let tensors = vec![
            NewTensor {
                name: held.name(NAMES[0]),
                dtype: Dtype::U32,
                shape: stacked(k / 8),
                fill: Fill::Codes(Nibbles::LowEven),
            },
            NewTensor { shape: stacked(held.shape.row_groups()), ..scales },
        ];
        Ok(held.written(tensors, arithmetic(held.shape.scale_type())))
    }

    fn config(
        &self,
        config: &mut Map<String, Value>,
        done: &Done<'_>,
    ) -> Vec<(&'static str, Value)> {
        let settings = |format: Format| {
            let (size, mode) = match format {
                Format::MxFp4 => (32, "mxfp4"),
                Format::NvFp4 => (16, "nvfp4"),
            };
            json!({ "group_size": size, "bits": 4, "mode": mode })
        };
        let count = |format: &Format| done.layers.iter().filter(|l| l.format == *format).count();
        let main = done.formats().into_iter().max_by_key(count).unwrap_or(Format::MxFp4);
        let mut block = settings(main);
        for layer in done.layers.iter().filter(|layer| layer.format != main) {
            block[&layer.module] = settings(layer.format);
        }
        config.insert("quantization".into(), block.clone());
        config.insert("quantization_config".into(), block);
        vec![]
    }

    fn metadata(&self, _done: &Done<'_>) -> Vec<(String, String)> {
        vec![("format".into(), "mlx".into())]
    }
}
