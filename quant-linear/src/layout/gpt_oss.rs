//! gpt-oss: MXFP4 experts, all of a layer in one tensor.
//!
//! | tensor | type | |
//! |---|---|---|
//! | `NAME_blocks` | U8 (experts, out, in / 32, 16) | low nibble = even |
//! | `NAME_scales` | U8 e8m0 (experts, out, in / 32) | |
//!
//! The model was published first with `NAME.blocks` and `NAME.scales`, which are read too. NAME is
//! `...experts.gate_up_proj` (gate and up rows interleaved) or `...experts.down_proj`; the
//! dense tensor has that name and no `.weight`. value = ldexp(e2m1, scale - 127): 0xFF is 2^128, so
//! half of it is finite. `config.json` has `quant_method: mxfp4`.

use fp4_core::{Format, PackedShape};
use safetensors::Dtype;
use serde_json::{Map, Value, json};

use crate::error::Error;
use crate::layout::LoadOptions;
use crate::layout::at::{incomplete, stacked_rows};
use crate::layout::write::{self, Done, Fill, Held, NewTensor, Refused, Written};
use crate::layout::{At, Global, Layer, Layout, Nibbles, Place, ScaleBytes, ScaleOrder};

/// gpt-oss.
#[derive(Debug, Clone, Copy)]
pub(super) struct GptOss;

const ARITHMETIC: super::Arithmetic = write::no_global(ScaleBytes::E8m0Ldexp);

/// Names of the two tensors: as transformers has them, or as the model was published first.
fn names(at: &At<'_>) -> [String; 2] {
    let [published, usual] = both(at.module);
    if at.source.header(&published[0]).is_some() { published } else { usual }
}

fn both(module: &str) -> [[String; 2]; 2] {
    ['.', '_'].map(|dot| ["blocks", "scales"].map(|part| format!("{module}{dot}{part}")))
}

impl Layout for GptOss {
    fn name(&self) -> &'static str {
        "gpt-oss"
    }

    fn aliases(&self) -> &'static [&'static str] {
        &["gptoss", "gpt_oss"]
    }

    fn module<'n>(&self, tensor: &'n str) -> Option<&'n str> {
        tensor.strip_suffix("_blocks").or_else(|| tensor.strip_suffix(".blocks"))
    }

    fn tensors(&self, module: &str) -> Vec<String> {
        both(module).concat()
    }

    fn could(&self, at: &At<'_>) -> bool {
        let [blocks, _] = names(at);
        let header = at.source.header(&blocks);
        header.is_some_and(|(ty, shape)| ty == Dtype::U8 && matches!(shape[..], [_, _, _, 16]))
    }

    fn layer(&self, at: &At<'_>, _options: &LoadOptions) -> Result<Layer, Error> {
        let [codes, scales] = names(at);
        let header = |name: &String| {
            at.source.header(name).ok_or_else(|| incomplete(self.name(), name.clone()))
        };
        let ((code_type, code_shape), (scale_type, scale_shape)) =
            (header(&codes)?, header(&scales)?);
        for (name, got) in [(&codes, code_type), (&scales, scale_type)] {
            if got != Dtype::U8 {
                return Err(Error::Dtype { name: name.clone(), expected: "U8", got });
            }
        }
        let &[experts, out, groups, 16] = &code_shape[..] else {
            let expected = "(experts, out, in / 32, 16)".into();
            return Err(Error::Shape { name: codes, expected, got: code_shape });
        };
        if scale_shape != [experts, out, groups] {
            let expected = format!("({experts}, {out}, {groups}), as `{codes}` has {code_shape:?}");
            return Err(Error::Shape { name: scales, expected, got: scale_shape });
        }
        let overflow = fp4_core::Error::ShapeOverflow { rows: out, cols: groups };
        let rows = stacked_rows(&codes, experts, out)?;
        let k = groups.checked_mul(32).ok_or(overflow)?;
        let shape = PackedShape::of(Format::MxFp4, rows, k)?;
        let own = vec![codes.clone(), scales.clone()];
        let place =
            Place::Apart { codes, nibbles: Nibbles::LowEven, scales, order: ScaleOrder::Rows };
        let layer = Layer {
            tensor: at.module.to_string(),
            experts: Some(experts),
            own,
            ..Layer::plain(&GptOss, at, shape, place, ARITHMETIC)
        };
        layer.with_scales(vec![Global::ONE], None)
    }

    fn stacks(&self) -> bool {
        true
    }

    fn write(&self, held: &Held<'_>) -> Result<Written, Refused> {
        held.expect_format(&[Format::MxFp4])?;
        held.expect_no_transform()?;
        held.expect_no_global()?;
        let experts = held.experts.ok_or(Refused::Matrix)?;
        let [_, [blocks, scales]] = both(held.module);
        let (out, groups) = (held.shape.rows() / experts.max(1), held.shape.row_groups());
        let new = |name, shape, fill| NewTensor { name, dtype: Dtype::U8, shape, fill };
        let tensors = vec![
            new(blocks, vec![experts, out, groups, 16], Fill::Codes(Nibbles::LowEven)),
            new(scales, vec![experts, out, groups], Fill::Scales(ScaleOrder::Rows)),
        ];
        Ok(held.written(tensors, ARITHMETIC))
    }

    fn config(
        &self,
        config: &mut Map<String, Value>,
        done: &Done<'_>,
    ) -> Vec<(&'static str, Value)> {
        let block = json!({ "quant_method": "mxfp4", "modules_to_not_convert": done.dense });
        config.insert("quantization_config".into(), block);
        vec![]
    }
}
