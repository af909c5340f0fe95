//! What a checkpoint is made of, in bytes.

use serde::Serialize;

use crate::checkpoint::{Checkpoint, byte_len};
use crate::layer::state;
use crate::layout::Layers;

/// Tensors of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Class {
    /// What they are.
    pub name: &'static str,
    /// How many.
    pub tensors: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// One checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Source {
    /// Its path as it was given.
    pub path: String,
    /// Its safetensors files.
    pub files: usize,
    /// Their bytes, headers included.
    pub bytes: u64,
    /// Its tensors.
    pub tensors: usize,
    /// Its quantized layers.
    pub layers: usize,
    /// Its tensors by kind, kinds without any left out.
    pub classes: Vec<Class>,
}

/// The kinds, in the order of the report.
const CLASSES: [&str; 5] = [
    "codes and scales of quantized layers",
    "other tensors of quantized layers",
    "dense matrices (F32, F16, BF16)",
    "dense vectors and scalars (F32, F16, BF16)",
    "other types",
];

impl Source {
    pub(super) fn new(checkpoint: &Checkpoint, layers: &Layers) -> Self {
        let mut classes = CLASSES.map(|name| Class { name, tensors: 0, bytes: 0 });
        for (name, tensor) in checkpoint.tensors() {
            let info = &tensor.info;
            let class = if layers.tensors.contains(name) {
                // What grows with the weight, and a few scalars.
                usize::from(info.shape.len() < 2 || name.ends_with(state::TRANSFORM))
            } else if state::float_type(info.dtype).is_none() {
                4
            } else {
                2 + usize::from(info.shape.len() < 2)
            };
            classes[class].tensors += 1;
            classes[class].bytes += byte_len(info) as u64;
        }
        Source {
            path: super::shown(&checkpoint.path().to_string_lossy()),
            files: checkpoint.files().len(),
            bytes: checkpoint.files().iter().map(|(_, file)| file.file_len()).sum(),
            tensors: checkpoint.tensors().len(),
            layers: layers.good.len(),
            classes: classes.into_iter().filter(|class| class.tensors > 0).collect(),
        }
    }
}
