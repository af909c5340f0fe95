//! The quantized layers of a checkpoint: QuantLinear states, found by their names.
//!
//! A layer is a prefix with a tensor `e2m1` or `scale_quant`. Its scalars and its transform are read
//! and judged by quant-linear itself, through a copy of the state with zero rows: the codes and
//! scales, which may be large, stay on disk.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};
use fp4_core::{PackedMatrix, PackedShape, ScaleType};
use quant_linear::state::{self, join};
use quant_linear::{LoadOptions, Parts};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::reader::byte_len;
use super::{Checkpoint, Tensor};
use crate::tiles::Tile;

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
    /// Scalars and transform; the weight in here has zero rows.
    pub(crate) parts: Parts,
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
        let parts = parts(from, prefix, shape)?;
        // Judges the scalars and the transform against the shape.
        parts.check()?;
        Ok(Layer { shape, codes, scales, parts })
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

/// The scalars and the transform of a layer, in a state with zero rows.
fn parts(from: &Checkpoint, prefix: &str, shape: PackedShape) -> Result<Parts> {
    let scale_dtype = state::scale_dtype(shape.scale_type());
    let mut tensors = vec![
        (state::E2M1, Dtype::U8, vec![0, shape.row_bytes()], vec![]),
        (state::SCALE_QUANT, scale_dtype, vec![0, shape.row_groups()], vec![]),
    ];
    for name in &STATE_NAMES[2..] {
        let full = join(prefix, name);
        let Some(tensor) = from.tensors().get(&full) else { continue };
        let (len, most) = (byte_len(&tensor.info), small(name));
        ensure!(
            len <= most,
            "tensor `{full}` has shape {:?} and {len} bytes, expected at most {most}; re-export \
             the state",
            tensor.info.shape
        );
        let bytes = from.bytes(tensor, 0, len)?;
        tensors.push((name, tensor.info.dtype, tensor.info.shape.clone(), bytes));
    }
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        Ok((join(prefix, name), TensorView::new(*dtype, shape.clone(), data)?))
    });
    let bytes = safetensors::serialize(views.collect::<Result<Vec<_>>>()?, None)?;
    let state = SafeTensors::deserialize(&bytes)?;
    Ok(state::read_parts(&state, prefix, &LoadOptions::default())?)
}

/// The most bytes that a tensor of a state may have to be read at once.
fn small(name: &str) -> usize {
    if name == state::TRANSFORM { MAX_TRANSFORM } else { size_of::<f64>() }
}
