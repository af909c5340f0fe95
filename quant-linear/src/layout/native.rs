//! The layout of [`state`](crate::state): a prefix with `e2m1` and `scale_quant` under it.

use crate::checkpoint::TensorSource;
use crate::error::Error;
use crate::layer::Parts;
use crate::layer::state::{self, LoadOptions, Scalars, join};
use crate::layout::{Layer, Layout, TransformHeader};

/// The names of a state that belong to the quantized layer alone.
pub const STATE_NAMES: [&str; 6] = [
    state::E2M1,
    state::SCALE_QUANT,
    state::WEIGHT_GLOBAL_SCALE,
    state::ACTIVATION_GLOBAL_SCALE,
    state::ACTIVATION_SCALE_SCALE,
    state::TRANSFORM,
];

/// The largest transform that is read: far above any real one (a block of 128 for each of 2^20
/// columns in f32 is 512 MB).
const MAX_TRANSFORM: usize = 1 << 29;

/// The states that [`QuantLinear::save`](crate::QuantLinear::save) writes.
#[derive(Debug, Clone, Copy)]
pub struct Native;

impl Layout for Native {
    fn name(&self) -> &'static str {
        "native"
    }

    fn detect<'n>(&self, name: &'n str) -> Option<&'n str> {
        let (prefix, last) = name.rsplit_once('.').unwrap_or(("", name));
        [state::E2M1, state::SCALE_QUANT].contains(&last).then_some(prefix)
    }

    fn tensors(&self, prefix: &str) -> Vec<String> {
        STATE_NAMES.iter().map(|name| join(prefix, name)).collect()
    }

    fn layer(
        &self,
        source: &dyn TensorSource,
        prefix: &str,
        options: &LoadOptions,
    ) -> Result<Layer, Error> {
        let header = |name: String| source.header(&name).ok_or(Error::MissingTensor { name });
        let (codes, scales) = (join(prefix, state::E2M1), join(prefix, state::SCALE_QUANT));
        let (codes_header, scales_header) = (header(codes.clone())?, header(scales.clone())?);
        let shape = state::packed_shape(prefix, codes_header, scales_header, options.scale_type)?;
        let transform = transform(source, join(prefix, state::TRANSFORM))?;
        let scalars = Scalars::read(source, prefix)?;
        state::check(shape, transform.as_ref().map(|t| t.shape), &scalars)?;
        Ok(Layer { shape, scalars, transform, codes, scales })
    }

    fn parts(
        &self,
        source: &dyn TensorSource,
        prefix: &str,
        options: &LoadOptions,
    ) -> Result<Parts, Error> {
        state::read_parts(source, prefix, options)
    }
}

/// Judges a transform by its header, if it is there.
fn transform(source: &dyn TensorSource, name: String) -> Result<Option<TransformHeader>, Error> {
    let Some((dtype, stored)) = source.header(&name) else { return Ok(None) };
    let shape = state::transform_shape(&name, dtype, &stored)?;
    let elements = stored.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim));
    let bytes = elements.and_then(|n| n.checked_mul(shape.float_type.bytes()));
    if bytes.is_none_or(|bytes| bytes > MAX_TRANSFORM) {
        let expected = format!("at most {MAX_TRANSFORM} bytes");
        return Err(Error::Shape { name, expected, got: stored });
    }
    Ok(Some(TransformHeader { name, stored, shape }))
}
