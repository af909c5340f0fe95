//! The quantized layers of a checkpoint: QuantLinear states, found by their names.
//!
//! A layer is a prefix with a tensor `e2m1` or `scale_quant`. Its headers and its scalars are judged
//! when it is found; codes, scales and the transform, which may be large, stay on disk until someone
//! wants them.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use fp4_core::{PackedMatrix, PackedShape, ScaleType, TransformShape};
use quant_linear::state::{self, Scalars, join};
use quant_linear::{FloatVec, StoredTransform};

use super::reader::byte_len;
use super::{Checkpoint, Tensor};
use crate::tiles::{DEFAULT_BLOCK_BYTES, Tile};

/// The names of a state that belong to the quantized layer alone.
pub(crate) const STATE_NAMES: [&str; 6] = [
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

/// `--scale-type`: what U8 scale bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ScaleTypeArg {
    /// Powers of two (MXFP4).
    E8m0,
    /// 8-bit floats (NVFP4).
    E4m3,
}

impl From<ScaleTypeArg> for ScaleType {
    fn from(arg: ScaleTypeArg) -> Self {
        match arg {
            ScaleTypeArg::E8m0 => ScaleType::E8M0,
            ScaleTypeArg::E4m3 => ScaleType::E4M3,
        }
    }
}

/// One quantized layer.
#[derive(Debug)]
pub(crate) struct Layer {
    /// Shape and format of the weight.
    pub(crate) shape: PackedShape,
    /// The codes.
    pub(crate) codes: Tensor,
    /// The scale bytes.
    pub(crate) scales: Tensor,
    /// Its scalars.
    pub(crate) scalars: Scalars,
    /// The transform of activations, and what it is like.
    pub(crate) transform: Option<(Tensor, TransformShape)>,
}

/// All quantized layers, and what is wrong with those that are not whole.
#[derive(Debug, Default)]
pub(crate) struct Layers {
    /// Layers by prefix.
    pub(crate) good: BTreeMap<String, Layer>,
    /// Layers that cannot be read, by prefix.
    pub(crate) bad: BTreeMap<String, anyhow::Error>,
    /// Names of the tensors that belong to any of them.
    pub(crate) tensors: BTreeSet<String>,
}

impl Layers {
    /// Finds the layers of a checkpoint. `scale_type` is the type of scale bytes stored as U8.
    pub(crate) fn find(checkpoint: &Checkpoint, scale_type: Option<ScaleType>) -> Self {
        let mut layers = Layers::default();
        let prefixes: BTreeSet<_> = checkpoint
            .tensors()
            .keys()
            .filter_map(|name| {
                let (prefix, last) = name.rsplit_once('.').unwrap_or(("", name));
                [state::E2M1, state::SCALE_QUANT].contains(&last).then_some(prefix)
            })
            .collect();
        for prefix in prefixes {
            let names = STATE_NAMES.map(|name| join(prefix, name));
            let own = names.into_iter().filter(|name| checkpoint.tensors().contains_key(name));
            layers.tensors.extend(own);
            match Layer::open(checkpoint, prefix, scale_type) {
                Ok(layer) => drop(layers.good.insert(prefix.into(), layer)),
                Err(error) => {
                    let shown = if prefix.is_empty() { "(no prefix)" } else { prefix };
                    let error = error.context(format!("layer `{shown}`"));
                    layers.bad.insert(prefix.into(), error);
                }
            }
        }
        layers
    }
}

impl Layer {
    fn open(from: &Checkpoint, prefix: &str, scale_type: Option<ScaleType>) -> Result<Self> {
        let tensor = |name: &str| {
            let name = join(prefix, name);
            let tensor = from.tensors().get(&name).cloned();
            tensor.ok_or(quant_linear::Error::MissingTensor { name })
        };
        let (codes, scales) = (tensor(state::E2M1)?, tensor(state::SCALE_QUANT)?);
        let header = |tensor: &Tensor| (tensor.info.dtype, tensor.info.shape.clone());
        let shape = state::packed_shape(prefix, header(&codes), header(&scales), scale_type);
        let shape = shape.map_err(|error| match error {
            unknown @ quant_linear::Error::ScaleTypeUnknown { .. } => {
                anyhow::Error::new(unknown).context("pass --scale-type e8m0 or --scale-type e4m3")
            }
            other => other.into(),
        })?;
        let transform = transform(from, join(prefix, state::TRANSFORM))?;
        let scalar = |name| scalar(from, &join(prefix, name));
        let name = join(prefix, state::WEIGHT_GLOBAL_SCALE);
        let missing = quant_linear::Error::MissingTensor { name };
        let scalars = Scalars {
            weight_global_scale: scalar(state::WEIGHT_GLOBAL_SCALE)?.ok_or(missing)?,
            activation_global_scale: scalar(state::ACTIVATION_GLOBAL_SCALE)?,
            activation_scale_scale: scalar(state::ACTIVATION_SCALE_SCALE)?,
        };
        state::check(shape, transform.as_ref().map(|(_, shape)| *shape), &scalars)?;
        Ok(Layer { shape, codes, scales, scalars, transform })
    }

    /// The transform's values.
    ///
    /// # Errors
    /// As [`TensorFile::read`](super::TensorFile::read).
    pub(crate) fn stored_transform(&self, from: &Checkpoint) -> Result<Option<StoredTransform>> {
        let Some((tensor, TransformShape { float_type, .. })) = &self.transform else {
            return Ok(None);
        };
        let (len, mut values) = (byte_len(&tensor.info), FloatVec::zeros(*float_type, 0));
        // In pieces, so that the bytes are not in memory a second time.
        for start in (0..len).step_by(DEFAULT_BLOCK_BYTES) {
            let bytes = from.bytes(tensor, start, DEFAULT_BLOCK_BYTES.min(len - start))?;
            append(&mut values, len, &bytes).context("a transform that ends inside a value")?;
        }
        Ok(Some(StoredTransform::new(values, tensor.info.shape.clone())?))
    }

    /// The codes and scales of a tile.
    ///
    /// # Errors
    /// As [`TensorFile::read`](super::TensorFile::read).
    pub(crate) fn packed(&self, from: &Checkpoint, tile: &Tile) -> Result<PackedMatrix> {
        let shape = self.shape.resized(tile.rows, tile.cols)?;
        let group = shape.group().get();
        let codes = from.bytes(&self.codes, tile.start / 2, shape.codes_len())?;
        let scales = from.bytes(&self.scales, tile.start / group, shape.scales_len())?;
        Ok(PackedMatrix::new(shape, codes, scales)?)
    }

    /// Bytes of the codes and scales on disk.
    pub(crate) fn byte_len(&self) -> u64 {
        (byte_len(&self.codes.info) + byte_len(&self.scales.info)) as u64
    }
}

/// Reads a scalar, if it is there.
fn scalar(from: &Checkpoint, name: &str) -> Result<Option<f32>> {
    let Some(tensor) = from.tensors().get(name) else { return Ok(None) };
    let info = &tensor.info;
    let read = |len| from.bytes(tensor, 0, len);
    state::scalar_value(name, info.dtype, &info.shape, read).map(Some)
}

/// Judges a transform by its header, if it is there.
fn transform(from: &Checkpoint, name: String) -> Result<Option<(Tensor, TransformShape)>> {
    let Some(tensor) = from.tensors().get(&name) else { return Ok(None) };
    let (info, len) = (&tensor.info, byte_len(&tensor.info));
    let shape = state::transform_shape(&name, info.dtype, &info.shape)?;
    ensure!(
        len <= MAX_TRANSFORM,
        "tensor `{name}` has shape {:?} and {len} bytes, expected at most {MAX_TRANSFORM}; \
         re-export the state",
        info.shape
    );
    Ok(Some((tensor.clone(), shape)))
}

/// Appends little-endian values to what will take `len` bytes; `None` unless they are whole.
fn append(values: &mut FloatVec, len: usize, bytes: &[u8]) -> Option<()> {
    fn extend<T>(all: &mut Vec<T>, more: Vec<T>, len: usize) {
        all.reserve_exact((len / size_of::<T>()).saturating_sub(all.len()));
        all.extend(more);
    }
    match (FloatVec::from_le_bytes(values.float_type(), bytes)?, values) {
        (FloatVec::F32(more), FloatVec::F32(all)) => extend(all, more, len),
        (FloatVec::F16(more), FloatVec::F16(all)) => extend(all, more, len),
        (FloatVec::Bf16(more), FloatVec::Bf16(all)) => extend(all, more, len),
        _ => return None,
    }
    Some(())
}
