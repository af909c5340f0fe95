//! What a layer is measured against: a dense tensor or another layer, tile by tile.

use fp4_core::FloatVec;

use crate::checkpoint::Checkpoint;
use crate::checkpoint::tiles::Tile;
use crate::error::Error;
use crate::layer::StoredTransform;
use crate::layout::{Decoder, Layer};
use crate::model::compare::{Incomparable, Side, facing, same_transform, transformed};
use crate::model::items::{self, Item};

/// The reference of one layer.
pub(in crate::model) struct Reference<'a> {
    from: &'a Checkpoint,
    values: Values<'a>,
}

enum Values<'a> {
    /// Dense values, to be transformed as the layer's weight was.
    Dense(Box<items::Values>, Option<StoredTransform>),
    /// What another layer is worth.
    Layer(&'a Layer, Decoder),
}

impl<'a> Reference<'a> {
    /// The reference of `layer`. The inner error says why it is none.
    pub(in crate::model) fn new(
        side: &Side<'a>,
        layer_from: &Checkpoint,
        layer: &Layer,
    ) -> Result<Result<Self, Incomparable>, Error> {
        let from = side.from;
        let values = match side.item {
            Item::Dense(dense) => match facing(dense, layer) {
                Ok(values) => Values::Dense(Box::new(values), layer.stored_transform(layer_from)?),
                Err(problem) => return Ok(Err(problem)),
            },
            Item::Layer(other) => {
                let (other_shape, shape) = (other.dense_shape(), layer.dense_shape());
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
    pub(in crate::model) fn values(&self, tile: &Tile) -> Result<FloatVec, Error> {
        match &self.values {
            Values::Dense(values, transform) => {
                let values = values.read(self.from, tile)?;
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
