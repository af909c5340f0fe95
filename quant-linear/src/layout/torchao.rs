//! torchao: MXFP4 (`MXTensor`) and NVFP4 (`NVFP4Tensor`) state dicts, flattened.
//!
//! | tensor | type | |
//! |---|---|---|
//! | `_weight_qdata` | U8 (out, in / 2) | low nibble = even |
//! | `_weight_scale` | F8_E8M0 or F8_E4M3 (out, in / G) | row-major or swizzled |
//! | `_weight_per_tensor_scale` | F32 (), NVFP4, may be absent | multiplies |
//! | `_weight_act_per_tensor_scale` | F32 (), NVFP4, may be absent | that of activations |
//!
//! Swizzled scales are (32 ceil(out / 128), 16 ceil(groups / 4)).
//!
//! A parameter of another name, as `experts.w1`, has the same tensors by its name:
//! `experts._w1_qdata` and so on. Those of experts have a dimension before the others, row-major
//! scales, and a scale of the tensor for all or for each, (experts, 1, 1).
//!
//! value = e2m1 * (scale * global). The header describes each tensor in JSON under `X.weight`; the
//! two shapes of scales never agree, so they tell the order too.

use fp4_core::{Format, PackedShape, ScaleType, Swizzle};
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::checkpoint::TensorSource;
use crate::error::Error;
use crate::layer::state::join;
use crate::layout::LoadOptions;
use crate::layout::activations;
use crate::layout::at::module_of;
use crate::layout::at::{format_of, incomplete, stacked_rows};
use crate::layout::write::{self, Done, DoneLayer, Held, Refused, Written};
use crate::layout::{
    Activations, Arithmetic, At, Global, Layer, Layout, Nibbles, Order, Place, Said, ScaleBytes,
    ScaleOrder,
};

/// torchao.
#[derive(Debug, Clone, Copy)]
pub(super) struct TorchAo;

const NAMES: [&str; 4] =
    ["_weight_qdata", "_weight_scale", "_weight_per_tensor_scale", "_weight_act_per_tensor_scale"];

/// The parameter that a module's name means, and the names of its tensors: the `weight` of a
/// module, or the parameter that is called so itself, with the line or without that its tensors
/// begin with.
fn names(at: &At<'_>) -> (String, [String; 4]) {
    let plain = NAMES.map(|name| at.name(name));
    if at.source.header(&plain[0]).is_some() {
        return (at.name("weight"), plain);
    }
    of_parameter(at.module)
}

fn of_parameter(module: &str) -> (String, [String; 4]) {
    let (path, last) = module.rsplit_once('.').unwrap_or(("", module));
    let last = last.strip_prefix('_').unwrap_or(last);
    let part = |name: &str| join(path, &format!("_{last}{}", &name["_weight".len()..]));
    (join(path, last), NAMES.map(part))
}

/// The scale of a tensor: one, or one for each expert.
fn globals(at: &At<'_>, name: &str, experts: usize) -> Result<Option<Vec<Global>>, Error> {
    let Some((dtype, shape)) = at.source.header(name) else { return Ok(None) };
    if dtype != Dtype::F32 {
        return Err(Error::Dtype { name: name.into(), expected: "F32", got: dtype });
    }
    let ones = shape.iter().skip(1).all(|&dim| dim == 1);
    if !ones || ![1, experts].contains(shape.first().unwrap_or(&1)) {
        let expected = format!("(), or one for each of {experts} experts, as (experts, 1, 1)");
        return Err(Error::Shape { name: name.into(), expected, got: shape });
    }
    let bytes = at.source.bytes(name)?;
    let values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    Ok(Some(values.map(Global::times).collect()))
}

impl Layout for TorchAo {
    fn name(&self) -> &'static str {
        "torchao"
    }

    fn aliases(&self) -> &'static [&'static str] {
        &["ao"]
    }

    fn module<'n>(&self, tensor: &'n str) -> Option<&'n str> {
        module_of(tensor, NAMES[0]).or_else(|| {
            let parameter = tensor.strip_suffix("_qdata")?;
            let last = parameter.rsplit('.').next()?;
            (last.len() > 1 && last.starts_with('_')).then_some(parameter)
        })
    }

    fn tensors(&self, module: &str) -> Vec<String> {
        let plain = NAMES.iter().map(|name| join(module, name));
        plain.chain(of_parameter(module).1).collect()
    }

    fn could(&self, at: &At<'_>) -> bool {
        let (_, [codes, scales, ..]) = names(at);
        let dtype = |name: &str| at.source.header(name).map(|(dtype, _)| dtype);
        dtype(&codes) == Some(Dtype::U8)
            && matches!(dtype(&scales), Some(Dtype::F8_E8M0 | Dtype::F8_E4M3) | None)
    }

    fn describes(&self) -> bool {
        true
    }

    fn layer(&self, at: &At<'_>, _options: &LoadOptions) -> Result<Layer, Error> {
        let (tensor, [codes, scales, global, input]) = names(at);
        let header = |name: &String| {
            at.source.header(name).ok_or_else(|| incomplete(self.name(), name.clone()))
        };
        let own = [&codes, &scales, &global, &input].map(Clone::clone).into_iter();
        let own = own.filter(|name| at.source.header(name).is_some()).collect();
        let ((code_type, code_shape), (got, scale_shape)) = (header(&codes)?, header(&scales)?);
        if code_type != Dtype::U8 {
            return Err(Error::Dtype { name: codes, expected: "U8", got: code_type });
        }
        let (scale_type, scale) = match got {
            Dtype::F8_E8M0 => (ScaleType::E8M0, ScaleBytes::E8m0),
            Dtype::F8_E4M3 => (ScaleType::E4M3, ScaleBytes::E4m3),
            got => {
                let expected = "F8_E8M0 or F8_E4M3";
                return Err(Error::Dtype { name: scales, expected, got });
            }
        };
        let (experts, out, bytes) = match code_shape[..] {
            [out, bytes] => (None, out, bytes),
            [experts, out, bytes] => (Some(experts), out, bytes),
            _ => {
                let expected = "([experts,] out, in / 2)".into();
                return Err(Error::Shape { name: codes, expected, got: code_shape });
            }
        };
        let rows = stacked_rows(&codes, experts.unwrap_or(1), out)?;
        let overflow = fp4_core::Error::ShapeOverflow { rows, cols: bytes };
        let k = bytes.checked_mul(2).ok_or(overflow)?;
        let shape = PackedShape::of(format_of(scale_type), rows, k)?;
        let groups = shape.row_groups();
        let order = match experts {
            Some(experts) if scale_shape == [experts, out, groups] => ScaleOrder::Rows,
            Some(experts) => {
                let expected = format!("({experts}, {out}, {groups}), row-major");
                return Err(Error::Shape { name: scales, expected, got: scale_shape });
            }
            None => {
                let [row_major, swizzled] = scale_shapes(rows, groups)?;
                match &scale_shape[..] {
                    got if got == row_major => ScaleOrder::Rows,
                    got if got == swizzled => ScaleOrder::Swizzled,
                    _ => {
                        let expected =
                            format!("{row_major:?}, or {swizzled:?} if they are swizzled");
                        return Err(Error::Shape { name: scales, expected, got: scale_shape });
                    }
                }
            }
        };
        let place = Place::Apart { codes, nibbles: Nibbles::LowEven, scales, order };
        let arithmetic = Arithmetic::new(Order::ScaleTimes, scale);
        // A parameter that is no `weight` of a module has the name itself.
        let module = match tensor == at.name("weight") {
            true => at.module.to_string(),
            false => tensor.clone(),
        };
        let plain = Layer::plain(&TorchAo, at, shape, place, arithmetic);
        let layer = Layer { module, tensor, experts, own, ..plain };
        let count = experts.unwrap_or(1);
        let global = globals(at, &global, count)?.unwrap_or_else(|| vec![Global::ONE]);
        layer.with_scales(global, globals(at, &input, count)?)
    }

    fn activations<'c>(&self, source: &'c dyn TensorSource) -> Said<'c> {
        activations::of_torchao(source)
    }

    fn told(&self, _layer: &DoneLayer) -> Activations {
        Activations::Dense // `act_quant_kwargs` of none
    }

    fn write(&self, held: &Held<'_>) -> Result<Written, Refused> {
        let format = held.expect_format(&[Format::MxFp4, Format::NvFp4])?;
        held.expect_no_transform()?;
        let scale_type = held.shape.scale_type();
        let mut tensors = vec![
            held.codes(held.name(NAMES[0]), Nibbles::LowEven, Dtype::U8),
            held.scales(held.name(NAMES[1]), write::scale_dtype(scale_type)),
        ];
        if format == Format::MxFp4 {
            held.expect_no_global()?;
            return Ok(held.written(tensors, write::no_global(ScaleBytes::E8m0)));
        }
        let global = held.one()?.multiplier();
        tensors.push(write::scalar(held.name(NAMES[2]), vec![], global));
        if let Some(input) = held.input()? {
            tensors.push(write::scalar(held.name(NAMES[3]), vec![], input.multiplier()));
        }
        let arithmetic = Arithmetic::new(Order::ScaleTimes, ScaleBytes::E4m3);
        Ok(Written { tensors, arithmetic, globals: vec![global] })
    }

    fn metadata(&self, done: &Done<'_>) -> Vec<(String, String)> {
        let mut metadata = vec![];
        let mut names = vec![];
        let bf16 = json!({ "_type": "torch.dtype", "_data": "bfloat16" });
        for layer in done.layers {
            let (kind, data, parts): (_, Value, &[&str]) = match layer.format {
                Format::MxFp4 => (
                    "MXTensor",
                    json!({
                        "elem_dtype": { "_type": "torch.dtype", "_data": "float4_e2m1fn_x2" },
                        "block_size": 32,
                        "orig_dtype": bf16,
                        "kernel_preference": { "_type": "KernelPreference", "_data": "EMULATED" },
                        "act_quant_kwargs": null,
                        "is_swizzled_scales": false,
                    }),
                    &["qdata", "scale"],
                ),
                Format::NvFp4 => (
                    "NVFP4Tensor",
                    json!({
                        "is_swizzled_scales": false,
                        "use_triton_kernel": false,
                        "act_quant_kwargs": null,
                        "block_size": 16,
                        "orig_dtype": bf16,
                    }),
                    match layer.input {
                        true => &["act_per_tensor_scale", "per_tensor_scale", "qdata", "scale"],
                        false => &["per_tensor_scale", "qdata", "scale"],
                    },
                ),
            };
            let name = join(&layer.module, "weight");
            let described = json!({ "_type": kind, "_data": data, "_tensor_data_names": parts });
            metadata.push((name.clone(), described.to_string()));
            names.push(name);
        }
        for name in done.others {
            metadata.push((name.clone(), json!({ "_type": "Tensor" }).to_string()));
            names.push(name.clone());
        }
        metadata.push(("tensor_names".into(), json!(names).to_string()));
        metadata
    }
}

/// The two shapes of scales: row-major, swizzled.
fn scale_shapes(rows: usize, groups: usize) -> Result<[[usize; 2]; 2], Error> {
    let swizzle = Swizzle::new(rows, groups)?;
    Ok([[rows, groups], [swizzle.padded_rows() / 4, swizzle.padded_cols() * 4]])
}
