//! ModelOpt's experts that are one tensor: Llama 4, gpt-oss and others whose experts are one
//! parameter `NAME`, such as `...experts.gate_up_proj`.
//!
//! | tensor | type | |
//! |---|---|---|
//! | `NAME` | U8 (experts, in / 2, out) | low nibble = even, and two inputs share a byte |
//! | `NAME_weight_scale` | F8_E4M3 (experts, in / 16, out), or U8 e8m0 (experts, in / 32, out) | |
//! | `NAME_weight_scale_2`, `NAME_input_scale` | F32 () or (experts) | multiply |
//! | `NAME_pre_quant_scale` | (in), AWQ only | multiplies the activations first |
//!
//! ModelOpt turns the parameter of such a model, (experts, in, out), around, quantizes along `in`,
//! and turns codes and scales back: so they are columns. Of a model whose parameter is (experts,
//! out, in) both tensors have rows, (experts, out, in / 2) and (experts, out, in / 16). The two
//! shapes together tell, for there are fewer scales than codes along `in` alone. (Its newer
//! versions write most models expert by expert, as plain layers.)
//!
//! Worked example: codes (4, 32, 48) with scales (4, 4, 48) are columns of (48, 64) matrices, with
//! scales (4, 32, 6) rows of (32, 96) ones.

use fp4_core::{Format, PackedShape, ScaleType};
use safetensors::Dtype;

use crate::checkpoint::TensorSource;
use crate::error::Error;
use crate::layer::state;
use crate::layout::at::{format_of, incomplete, stacked_rows};
use crate::layout::modelopt::{ModelOpt, arithmetic, pre_scale};
use crate::layout::{At, Global, Layer, Layout, Nibbles, Place, ScaleBytes, ScaleOrder};

const SCALE: &str = "_weight_scale";
const GLOBAL: &str = "_weight_scale_2";
const INPUT: &str = "_input_scale";
const PRE_SCALE: &str = "_pre_quant_scale";

/// The parameter that a tensor of this name would be scales of.
pub(super) fn module(tensor: &str) -> Option<&str> {
    let module = tensor.strip_suffix(SCALE).or_else(|| tensor.strip_suffix(GLOBAL));
    module.filter(|module| !module.is_empty() && !module.ends_with('.'))
}

/// Names of the tensors of a parameter.
pub(super) fn tensors(module: &str) -> impl Iterator<Item = String> {
    ["", SCALE, GLOBAL, INPUT, PRE_SCALE].into_iter().map(move |end| format!("{module}{end}"))
}

/// Do types and ranks allow that a module is such a parameter?
pub(super) fn could(at: &At<'_>, says: Option<bool>) -> bool {
    let three = |name: &str| at.source.header(name).filter(|(_, shape)| shape.len() == 3);
    if three(at.module).is_none_or(|(dtype, _)| dtype != Dtype::U8) {
        return false;
    }
    match three(&named(at, SCALE)) {
        Some((Dtype::F8_E4M3, _)) => true,
        Some((Dtype::U8, _)) => says == Some(true),
        Some(_) => false,
        None => at.source.header(&named(at, GLOBAL)).is_some(),
    }
}

fn named(at: &At<'_>, end: &str) -> String {
    format!("{}{end}", at.module)
}

/// The parameter as a layer.
pub(super) fn layer(at: &At<'_>) -> Result<Layer, Error> {
    let (codes, scales) = (at.module.to_string(), named(at, SCALE));
    let head = |name: &String| {
        at.source.header(name).ok_or_else(|| incomplete(ModelOpt.name(), name.clone()))
    };
    let ((_, code_shape), (scale_dtype, scale_shape)) = (head(&codes)?, head(&scales)?);
    let (scale_type, bytes) = match scale_dtype {
        Dtype::U8 => (ScaleType::E8M0, ScaleBytes::E8m0Inf),
        _ => (ScaleType::E4M3, ScaleBytes::E4m3),
    };
    let format = format_of(scale_type);
    let Stored { experts, out, k, columns } = stored(format, &code_shape, &scale_shape)
        .ok_or_else(|| {
            let group = format.group();
            let expected = format!(
                "one scale for each group of {group} of `{codes}`, which has {code_shape:?}, along \
                 its last dimension or along the one before"
            );
            Error::Shape { name: scales.clone(), expected, got: scale_shape.clone() }
        })?;
    let shape = PackedShape::of(format, stacked_rows(&codes, experts, out)?, k)?;
    let place = match columns {
        true => Place::Columns { codes: codes.clone(), scales, experts },
        false => Place::Apart {
            codes: codes.clone(),
            nibbles: Nibbles::LowEven,
            scales,
            order: ScaleOrder::Rows,
        },
    };
    let there = |name: &String| at.source.header(name).is_some();
    let nv = format == Format::NvFp4;
    let layer = Layer {
        tensor: codes,
        experts: Some(experts),
        pre_scale: pre_scale(at, named(at, PRE_SCALE), k)?,
        own: tensors(at.module).filter(there).collect(),
        ..Layer::plain(&ModelOpt, at, shape, place, arithmetic(bytes))
    };
    if !nv {
        return layer.with_scales(vec![Global::ONE], None);
    }
    let global = globals(at.source, &named(at, GLOBAL), experts)?;
    let global = global.ok_or_else(|| incomplete(ModelOpt.name(), named(at, GLOBAL)))?;
    layer.with_scales(global, globals(at.source, &named(at, INPUT), experts)?)
}

/// What two shapes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stored {
    experts: usize,
    out: usize,
    k: usize,
    columns: bool,
}

/// How the matrices are stored, if one way fits both shapes.
fn stored(format: Format, codes: &[usize], scales: &[usize]) -> Option<Stored> {
    let (&[experts, a, b], &[scale_experts, c, d]) = (codes, scales) else { return None };
    if experts != scale_experts {
        return None;
    }
    let bytes = format.group().get() / 2;
    let fits = |groups: usize, codes: usize| groups.checked_mul(bytes) == Some(codes);
    let (out, half, columns) = match (a == c && fits(d, b), b == d && fits(c, a)) {
        (true, _) => (a, b, false),
        (false, true) => (b, a, true),
        (false, false) => return None,
    };
    Some(Stored { experts, out, k: half.checked_mul(2)?, columns })
}

/// One global scale for all, or one for each expert.
fn globals(
    source: &dyn TensorSource,
    name: &str,
    experts: usize,
) -> Result<Option<Vec<Global>>, Error> {
    match source.header(name) {
        Some((Dtype::F32, shape)) if shape == [experts] && experts > 1 => {
            let bytes = source.bytes(name)?;
            let each = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            Ok(Some(each.map(Global::times).collect()))
        }
        _ => Ok(state::scalar(source, name)?.map(|value| vec![Global::times(value)])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_shapes_tell_rows_from_columns() {
        let nv = |codes: [usize; 3], scales: [usize; 3]| stored(Format::NvFp4, &codes, &scales);
        let some = |experts, out, k, columns| Some(Stored { experts, out, k, columns });
        assert_eq!(nv([4, 32, 48], [4, 4, 48]), some(4, 48, 64, true));
        assert_eq!(nv([4, 32, 48], [4, 32, 6]), some(4, 32, 96, false));
        assert_eq!(nv([4, 64, 64], [4, 8, 64]), some(4, 64, 128, true), "square");
        assert_eq!(nv([4, 32, 48], [3, 4, 48]), None, "another number of experts");
        assert_eq!(nv([4, 32, 48], [4, 2, 48]), None, "groups of 32");
        let mx = stored(Format::MxFp4, &[4, 32, 48], &[4, 2, 48]);
        assert_eq!(mx, some(4, 48, 64, true));
    }
}
