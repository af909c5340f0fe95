//! What a layer is measured against: a dense tensor or another layer, tile by tile.

use fp4_core::{FloatType, FloatVec};

use crate::checkpoint::tiles::Tile;
use crate::checkpoint::{Checkpoint, Tensor};
use crate::error::Error;
use crate::layer::{StoredTransform, state};
use crate::layout::{Decoder, Layer};
use crate::model::compare::{Incomparable, Item, Side, same_transform, transformed};
use crate::model::dense;

/// The reference of one layer.
pub(super) struct Reference<'a> {
    from: &'a Checkpoint,
    values: Values<'a>,
}

enum Values<'a> {
    /// Dense values, to be transformed as the layer's weight was.
    Dense(&'a Tensor, FloatType, Option<StoredTransform>),
    /// What another layer is worth.
    Layer(&'a Layer, Decoder),
}

impl<'a> Reference<'a> {
    /// The reference of `layer`. The inner error says why it is none.
    pub(super) fn new(
        side: &Side<'a>,
        layer_from: &Checkpoint,
        layer: &Layer,
    ) -> Result<Result<Self, Incomparable>, Error> {
        let (from, shape) = (side.from, layer.dense_shape());
        let values = match side.item {
            Item::Dense(tensor) => {
                let info = &tensor.info;
                if info.shape != shape {
                    return Ok(Err(Incomparable::DenseShape(info.shape.clone(), shape)));
                }
                let Some(float_type) = state::float_type(info.dtype) else {
                    return Ok(Err(Incomparable::DenseType(info.dtype)));
                };
                Values::Dense(tensor, float_type, layer.stored_transform(layer_from)?)
            }
            Item::Layer(other) => {
                let other_shape = other.dense_shape();
                if other_shape != shape {
                    return Ok(Err(Incomparable::LayerShapes(other_shape, shape)));
                }
                if !same_transform(from, other, layer_from, layer)? {
                    return Ok(Err(Incomparable::Transforms));
                }
                Values::Layer(other, other.decoder())
            }
        };
        Ok(Ok(Reference { from, values }))
    }

    /// The values of a tile.
    pub(super) fn values(&self, tile: &Tile) -> Result<FloatVec, Error> {
        match &self.values {
            Values::Dense(tensor, float_type, transform) => {
                let values = dense::read(self.from, tensor, *float_type, tile)?;
                let transform = transform.as_ref().map(StoredTransform::view).transpose()?;
                transformed(values, tile, transform.as_ref())
            }
            Values::Layer(layer, decoder) => {
                let packed = layer.packed(self.from, tile)?;
                Ok(FloatVec::F32(decoder.values(&packed, tile)))
            }
        }
    }
}
