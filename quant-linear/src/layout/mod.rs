//! How checkpoints name and store quantized layers: one [`Layout`] for each way, in a list.
//!
//! A layout says which tensors mark a layer ([`Layout::detect`]), what the layer is like, from
//! headers and scalars alone ([`Layout::layer`]), and what it is made of ([`Layout::parts`]). A new
//! one is a file beside `native` and a line in [`ALL`]; the command and loading by program take it
//! from there.
//!
//! ```
//! use quant_linear::layout;
//!
//! let native = layout::ALL[0];
//! assert_eq!(native.detect("encoder.0.dense.e2m1"), Some("encoder.0.dense"));
//! assert_eq!(native.detect("encoder.0.dense.weight"), None);
//! ```

mod load;
mod native;

use std::collections::{BTreeMap, BTreeSet};

use fp4_core::{PackedMatrix, PackedShape, TransformShape};

use crate::checkpoint::tiles::Tile;
use crate::checkpoint::{Checkpoint, TensorSource};
use crate::error::Error;
use crate::layer::state::{LoadOptions, Scalars};
use crate::layer::{Parts, StoredTransform};
pub use native::{Native, STATE_NAMES};

/// All layouts, asked in this order.
pub static ALL: [&dyn Layout; 1] = [&Native];

/// A way to name and store quantized layers.
pub trait Layout: Sync {
    /// What reports call it.
    fn name(&self) -> &'static str;

    /// The prefix of the layer that a tensor of this name belongs to, if the name alone tells.
    fn detect<'n>(&self, name: &'n str) -> Option<&'n str>;

    /// Full names of the tensors that the layer under a prefix may have for itself.
    fn tensors(&self, prefix: &str) -> Vec<String>;

    /// The layer under a prefix, judged by headers and scalars; codes, scales and the transform,
    /// which may be large, are not read.
    ///
    /// # Errors
    /// Missing tensors, wrong types or shapes, illegal scalars.
    fn layer(
        &self,
        source: &dyn TensorSource,
        prefix: &str,
        options: &LoadOptions,
    ) -> Result<Layer, Error>;

    /// What the layer under a prefix is made of.
    ///
    /// # Errors
    /// As [`layer`](Self::layer), and a bias that is not zero and not to be ignored.
    fn parts(
        &self,
        source: &dyn TensorSource,
        prefix: &str,
        options: &LoadOptions,
    ) -> Result<Parts, Error>;
}

/// The layout of the layer under a prefix: the first that finds a mark of its own there, or else
/// the native one, which then says what is missing.
pub fn of(source: &dyn TensorSource, prefix: &str) -> &'static dyn Layout {
    let marks = |layout: &&dyn Layout| {
        let names = layout.tensors(prefix);
        let mut marks = names.iter().filter(|name| layout.detect(name) == Some(prefix));
        marks.any(|name| source.header(name).is_some())
    };
    ALL.into_iter().find(marks).unwrap_or(&Native)
}

/// One quantized layer of a checkpoint.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Shape and format of the weight.
    pub shape: PackedShape,
    /// Its scalars.
    pub scalars: Scalars,
    /// The transform of activations, by its header.
    pub transform: Option<TransformHeader>,
    /// Names of the codes and of the scale bytes, row-major both.
    codes: String,
    scales: String,
}

/// What the header says of a transform.
#[derive(Debug, Clone)]
pub struct TransformHeader {
    /// Name of the tensor.
    pub name: String,
    /// Its stored shape.
    pub stored: Vec<usize>,
    /// Its blocks and type.
    pub shape: TransformShape,
}

impl TransformHeader {
    /// Bytes of the values.
    pub fn byte_len(&self) -> usize {
        self.stored.iter().product::<usize>() * self.shape.float_type.bytes()
    }
}

/// Bytes of a transform that are read at a time.
const PIECE: usize = 1 << 23;

impl Layer {
    /// The codes and scales of a tile.
    ///
    /// # Errors
    /// As [`TensorSource::range`].
    pub fn packed(&self, source: &dyn TensorSource, tile: &Tile) -> Result<PackedMatrix, Error> {
        let shape = self.shape.resized(tile.rows, tile.cols)?;
        let (codes, scales) = (tile.start / 2, tile.start / shape.group().get());
        let codes = source.range(&self.codes, codes..codes + shape.codes_len())?;
        let scales = source.range(&self.scales, scales..scales + shape.scales_len())?;
        Ok(PackedMatrix::new(shape, codes.into_owned(), scales.into_owned())?)
    }

    /// The transform's values.
    ///
    /// # Errors
    /// As [`TensorSource::range`].
    pub fn stored_transform(
        &self,
        source: &dyn TensorSource,
    ) -> Result<Option<StoredTransform>, Error> {
        use fp4_core::FloatVec;
        let Some(header) = &self.transform else { return Ok(None) };
        let (len, ty) = (header.byte_len(), header.shape.float_type);
        let mut values = FloatVec::zeros(ty, 0);
        values.reserve(len / ty.bytes());
        // In pieces, so that the bytes are not in memory a second time.
        for start in (0..len).step_by(PIECE) {
            let bytes = source.range(&header.name, start..len.min(start + PIECE))?;
            values.append_le_bytes(&bytes);
        }
        Ok(Some(StoredTransform::new(values, header.stored.clone())?))
    }

    /// Bytes of the codes and scales.
    pub fn byte_len(&self) -> u64 {
        self.shape.codes_len() as u64 + self.shape.scales_len() as u64
    }
}

/// All quantized layers of a checkpoint, and what is wrong with those that are not whole.
#[derive(Debug, Default)]
pub struct Layers {
    /// Layers by prefix.
    pub good: BTreeMap<String, Layer>,
    /// Layers that cannot be read, by prefix.
    pub bad: BTreeMap<String, Error>,
    /// Names of the tensors that belong to any of them.
    pub tensors: BTreeSet<String>,
}

impl Layers {
    /// Finds the layers of a checkpoint.
    pub fn find(checkpoint: &Checkpoint, options: &LoadOptions) -> Self {
        let mut layers = Layers::default();
        for layout in ALL {
            let names = checkpoint.tensors().keys();
            let prefixes: BTreeSet<_> = names.filter_map(|name| layout.detect(name)).collect();
            for prefix in prefixes {
                let own = layout.tensors(prefix).into_iter();
                layers.tensors.extend(own.filter(|name| checkpoint.tensors().contains_key(name)));
                match layout.layer(checkpoint, prefix, options) {
                    Ok(layer) => drop(layers.good.insert(prefix.into(), layer)),
                    Err(error) => drop(layers.bad.insert(prefix.into(), error)),
                }
            }
        }
        layers
    }
}
