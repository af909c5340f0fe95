//! What a checkpoint holds, and what its quantized layers look like: `fp4 inspect`.
//!
//! Headers are read once; codes and scales are read tile by tile to be counted. As JSON, lists are
//! made while they are written: a header of a hundred megabytes can name a million tensors.
//!
//! ```no_run
//! use quant_linear::checkpoint::Checkpoint;
//! use quant_linear::{LoadOptions, model::inspect::Inspection};
//!
//! let checkpoint = Checkpoint::open("model.safetensors".as_ref())?;
//! let inspection = Inspection::new(&checkpoint, &LoadOptions::default(), &mut |_| {})?;
//! println!("{}", serde_json::to_string(&inspection.document()).unwrap());
//! # Ok::<(), quant_linear::Error>(())
//! ```

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use crate::checkpoint::tiles::{DEFAULT_BLOCK_BYTES, tiles};
use crate::checkpoint::{Checkpoint, TensorFile, byte_len, gguf};
use crate::error::Error;
use crate::layout::{Layer, Layers, LoadOptions};
use crate::model::groups::zero_groups;
use crate::model::scales::Histogram;
use crate::model::values::Values;
use crate::text::JsonList;

/// What the bytes of a layer hold.
#[derive(Debug, Clone)]
pub struct Counts {
    /// Its scales.
    pub scales: Histogram,
    /// Groups whose codes are all zero.
    pub zero_groups: u64,
}

/// How far it is.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// The layer that is being read.
    pub module: &'a str,
    /// Bytes of layers that have been read.
    pub done: u64,
    /// Bytes of all layers.
    pub total: u64,
}

/// A checkpoint, its layers, and what those hold.
#[derive(Debug)]
pub struct Inspection<'c> {
    checkpoint: &'c Checkpoint,
    layers: Layers,
    counted: Vec<(String, Counts)>,
}

impl<'c> Inspection<'c> {
    /// Reads all layers of a checkpoint. Those that are not whole are among the
    /// [layers](Self::layers), and not counted.
    ///
    /// # Errors
    /// As [`Layers::find`]; I/O errors.
    pub fn new(
        checkpoint: &'c Checkpoint,
        options: &LoadOptions,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Self, Error> {
        let layers = Layers::find(checkpoint, options)?;
        let total = layers.good.values().map(Layer::byte_len).sum();
        let (mut counted, mut done) = (Vec::with_capacity(layers.good.len()), 0);
        for (module, layer) in &layers.good {
            progress(Progress { module, done, total });
            counted.push((module.clone(), count(checkpoint, layer)?));
            done += layer.byte_len();
        }
        Ok(Inspection { checkpoint, layers, counted })
    }

    /// The checkpoint.
    pub fn checkpoint(&self) -> &'c Checkpoint {
        self.checkpoint
    }

    /// Its layers.
    pub fn layers(&self) -> &Layers {
        &self.layers
    }

    /// The layers that are whole, by module, with what they hold.
    pub fn counted(&self) -> impl Iterator<Item = (&str, &Layer, &Counts)> + Clone {
        let layers = self.layers.good.values();
        layers.zip(&self.counted).map(|(layer, (module, counts))| (&**module, layer, counts))
    }

    /// What could be layers, and is said to be none; what layers do otherwise than their config
    /// says.
    pub fn notes(&self) -> Vec<String> {
        let denied = self.layers.denial(self.checkpoint);
        let denied = denied.map(|(first, message)| format!("`{first}` the first: {message}"));
        denied.into_iter().chain(self.layers.notes()).collect()
    }

    /// Everything, as `fp4 inspect --json` prints it. Numbers that JSON lacks are `null`.
    pub fn document(&self) -> impl Serialize {
        let tensors = JsonList(|| {
            self.checkpoint.tensors().iter().map(|(name, tensor)| {
                json!({
                    "name": name,
                    "dtype": tensor.type_name(),
                    "shape": tensor.shape(),
                    "bytes": byte_len(&tensor.info),
                    "file": self.checkpoint.files()[tensor.file].0,
                })
            })
        });
        let files = JsonList(|| {
            self.checkpoint.files().iter().map(|(name, file)| File {
                bytes: file.file_len(),
                metadata: metadata(file).collect(),
                name,
            })
        });
        let problems = JsonList(|| {
            let problems = self.layers.bad.iter();
            problems.map(|(p, e)| json!({ "prefix": p, "problem": problem(p, e) }))
        });
        let layers = JsonList(|| self.counted().map(described));
        let (path, notes) = (self.checkpoint.path().to_string_lossy(), self.notes());
        Document { command: "inspect", files, layers, notes, path, problems, tensors }
    }
}

/// What the headers of a checkpoint say: no code and no scale is read, whatever its size.
#[derive(Debug)]
pub struct Contents<'c> {
    checkpoint: &'c Checkpoint,
    layers: Layers,
}

impl<'c> Contents<'c> {
    /// The layers and tensors of a checkpoint.
    ///
    /// # Errors
    /// As [`Layers::find`].
    pub fn new(checkpoint: &'c Checkpoint, options: &LoadOptions) -> Result<Self, Error> {
        Ok(Contents { checkpoint, layers: Layers::find(checkpoint, options)? })
    }

    /// Lists: `files`, with their sizes; `layers` that are whole, with the shapes of their dense
    /// weights; `problems` of the others; `tensors`, of which `dense` says whether one has dense
    /// values of two or more dimensions, as [`trials`](super::view::trials) take.
    pub fn document(&self) -> impl Serialize {
        let from = self.checkpoint;
        let files = JsonList(|| {
            let files = from.files().iter();
            files.map(|(name, file)| json!({ "name": name, "bytes": file.file_len() }))
        });
        let layers = JsonList(|| {
            self.layers.good.iter().map(|(module, layer)| {
                json!({
                    "name": module,
                    "layout": layer.layout.name(),
                    "format": format_name(layer),
                    "shape": layer.dense_shape(),
                    "bytes": layer.byte_len(),
                })
            })
        });
        let tensors = JsonList(|| {
            from.tensors().iter().map(|(name, tensor)| {
                let dense = tensor.shape().len() > 1 && Values::find(from, name).is_ok();
                json!({
                    "name": name,
                    "dtype": tensor.type_name(),
                    "shape": tensor.shape(),
                    "bytes": byte_len(&tensor.info),
                    "dense": dense,
                })
            })
        });
        let problems = JsonList(|| self.layers.bad.iter().map(|(p, e)| problem(p, e)));
        Listed { files, layers, problems, tensors }
    }
}

#[derive(Serialize)]
struct Listed<F: Serialize, L: Serialize, P: Serialize, T: Serialize> {
    files: F,
    layers: L,
    problems: P,
    tensors: T,
}

fn count(checkpoint: &Checkpoint, layer: &Layer) -> Result<Counts, Error> {
    let (shape, mut zeros, mut bytes) = (layer.shape, 0, [0u64; 256]);
    // Codes are half a byte; one byte an element keeps the tiles below the limit.
    for tile in tiles(shape.rows(), shape.k(), 1, DEFAULT_BLOCK_BYTES) {
        let packed = layer.packed(checkpoint, &tile)?;
        for &scale in packed.scales() {
            bytes[usize::from(scale)] += 1;
        }
        zeros += zero_groups(packed.codes(), shape.group().get());
    }
    Ok(Counts { scales: Histogram::new(shape.scale_type(), &bytes), zero_groups: zeros })
}

/// What is wrong with a layer, with what to do about it.
pub fn problem(module: &str, error: &Error) -> String {
    let shown = if module.is_empty() { "(no prefix)" } else { module };
    let pass = match error {
        Error::ScaleTypeUnknown { .. } => {
            "say which scale type, e8m0 or e4m3 (`--scale-type`; the option `scaleType`): "
        }
        _ => "",
    };
    format!("layer `{shown}`: {pass}{error}")
}

/// What a file says of itself beside its tensors.
pub fn metadata(file: &TensorFile) -> impl Iterator<Item = (&str, Cow<'_, str>)> {
    let safetensors = file.metadata().iter().map(|(key, value)| (&**key, Cow::from(value)));
    let pairs = file.gguf().into_iter().flat_map(gguf::Header::pairs);
    safetensors.chain(pairs.map(|(key, value)| (&**key, Cow::from(value.to_string()))))
}

/// The name of a layer's format, `none` where it is that of no product.
pub fn format_name(layer: &Layer) -> &'static str {
    layer.shape.format().map_or("none", fp4_core::Format::name)
}

fn described((module, layer, counts): (&str, &Layer, &Counts)) -> Value {
    let (shape, scalars) = (layer.shape, &layer.scalars);
    let transform = layer.transform.as_ref().map(
        |header| json!({ "shape": header.stored, "dtype": header.shape.float_type.to_string() }),
    );
    json!({
        "name": module,
        "prefix": module,
        "layout": layer.layout.name(),
        "tensor": layer.tensor,
        "format": format_name(layer),
        "shape": [layer.out_features(), shape.k()],
        "experts": layer.experts,
        "weight_global_scales": layer.globals.iter().map(|g| g.multiplier()).collect::<Vec<_>>(),
        "out_features": layer.out_features(),
        "in_features": shape.k(),
        "group_size": shape.group().get(),
        "scale_type": shape.scale_type().to_string(),
        "weight_global_scale": scalars.weight_global_scale,
        "activation_global_scale": scalars.activation_global_scale,
        "activation_scale_scale": scalars.activation_scale_scale,
        "activations": scalars.activations.name(),
        "activations_note": layer.note,
        "transform": transform,
        "zero_groups": counts.zero_groups,
        "nan_scales": counts.scales.nan,
        "scales": histogram(&counts.scales),
    })
}

fn histogram(h: &Histogram) -> Value {
    let exponents = h.exponents.iter();
    let exponents = exponents.map(|(e, n)| json!({ "exponent": e, "count": n }));
    json!({
        "total": h.total,
        "exponents": exponents.collect::<Vec<_>>(),
        "nan": h.nan,
        "zero": h.zero,
        "subnormal": h.subnormal,
        "negative": h.negative,
    })
}

#[derive(Serialize)]
struct Document<'a, F: Serialize, L: Serialize, P: Serialize, T: Serialize> {
    command: &'static str,
    files: F,
    layers: L,
    notes: Vec<String>,
    path: Cow<'a, str>,
    problems: P,
    tensors: T,
}

#[derive(Serialize)]
struct File<'a> {
    bytes: u64,
    metadata: BTreeMap<&'a str, Cow<'a, str>>,
    name: &'a str,
}
