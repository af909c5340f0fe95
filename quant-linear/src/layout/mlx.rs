//! MLX (mlx-lm): `mxfp4` and `nvfp4`.
//!
//! | tensor | type | |
//! |---|---|---|
//! | `weight` | U32 ([experts,] out, in / 8) | nibble i of a word = element i |
//! | `scales` | U8 ([experts,] out, in / G) | e8m0 of mxfp4, e4m3 of nvfp4 |
//! | `global_scale` | F32 (experts), nvfp4 of experts only, may be absent | the largest magnitude |
//!
//! value = e2m1 * scale, and e2m1 * (scale * (global / 2688)) under a global scale, where 2688 is
//! the largest e2m1 times the largest e4m3. e8m0 0xFF is infinite. Nothing in the file but the
//! number of groups tells the two apart: `config.json` has a `mode` in `quantization`, with other
//! modes for modules by name. Affine layers (`biases`, scales of a float type) are no FP4, and stay
//! as they are.

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

const NAMES: [&str; 3] = ["weight", "scales", "global_scale"];

/// What a global scale is divided by: the largest e2m1 times the largest e4m3.
const LARGEST: f32 = 6.0 * 448.0;

/// The stored value that is worth a multiplier, or the nearest to it.
fn stored_for(multiplier: f32) -> f32 {
    let product = multiplier * LARGEST;
    let near = [0, -1, 1, -2, 2]
        .map(|ulps: i32| f32::from_bits(product.to_bits().saturating_add_signed(ulps)));
    let exact = near.into_iter().find(|stored| stored / LARGEST == multiplier);
    exact.unwrap_or(product)
}

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
        layer.own = at.present(&NAMES[..2]);
        let stored = match scale_type {
            ScaleType::E4M3 => at.one_or_each(NAMES[2], experts.unwrap_or(1))?,
            ScaleType::E8M0 => None,
        };
        let Some(stored) = stored else { return layer.with_scales(vec![Global::ONE], None) };
        layer.own.push(at.name(NAMES[2]));
        let globals = stored.iter().map(|stored| Global::times(stored / LARGEST));
        layer.with_scales(globals.collect(), None)
    }

    fn stacks(&self) -> bool {
        true
    }

    fn write(&self, held: &Held<'_>) -> Result<Written, Refused> {
        held.expect_format(&[Format::MxFp4, Format::NvFp4])?;
        held.expect_no_transform()?;
        let global = held.expect_no_global();
        // Only layers of experts take one, and only of NVFP4.
        let experts = held.experts.filter(|_| held.shape.format() == Some(Format::NvFp4));
        let globals = match (global, experts) {
            (Ok(()), _) => None,
            (Err(refused), None) => return Err(refused),
            (Err(_), Some(experts)) => {
                let each = held.globals.iter().map(|global| global.multiplier()).cycle();
                Some(each.take(experts).map(stored_for).collect::<Vec<_>>())
            }
        };
        if let Some(at) = globals.iter().flatten().position(|stored| !stored.is_finite()) {
            let global = held.globals[at % held.globals.len()].multiplier();
            return Err(Refused::Global(global));
        }
        let (rows, k) = (held.shape.rows(), held.shape.k());
        let stacked = |last: usize| match held.experts {
            Some(experts) => vec![experts, rows / experts.max(1), last],
            None => vec![rows, last],
        };
        let scales = held.scales(held.name(NAMES[1]), Dtype::U8);
        let mut tensors = vec![
            NewTensor {
                name: held.name(NAMES[0]),
                dtype: Dtype::U32,
                shape: stacked(k / 8),
                fill: Fill::Codes(Nibbles::LowEven),
            },
            NewTensor { shape: stacked(held.shape.row_groups()), ..scales },
        ];
        let arithmetic = arithmetic(held.shape.scale_type());
        let Some(stored) = globals else { return Ok(held.written(tensors, arithmetic)) };
        tensors.push(NewTensor {
            name: held.name(NAMES[2]),
            dtype: Dtype::F32,
            shape: vec![stored.len()],
            fill: Fill::Bytes(stored.iter().flat_map(|stored| stored.to_le_bytes()).collect()),
        });
        let globals = stored.into_iter().map(|stored| stored / LARGEST).collect();
        Ok(Written { tensors, arithmetic, globals })
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
        for layer in done.layers {
            // The loader makes room for a global scale where the config says so.
            let global = layer.tensors.contains(&join(&layer.module, NAMES[2]));
            if global || layer.format != main {
                block[&layer.module] = settings(layer.format);
            }
            if global {
                block[&layer.module][NAMES[2]] = json!(true);
            }
        }
        config.insert("quantization".into(), block.clone());
        config.insert("quantization_config".into(), block);
        vec![]
    }

    fn metadata(&self, _done: &Done<'_>) -> Vec<(String, String)> {
        vec![("format".into(), "mlx".into())]
    }
}
