//! One tensor of A against one of B, streamed.

use fp4_core::{Float, FloatType, FloatVec, PackedMatrix, Transform, with_floats};

use crate::checkpoint::tiles::{DEFAULT_BLOCK_BYTES, Tile, tiles};
use crate::checkpoint::{Checkpoint, Tensor, byte_len};
use crate::error::{Error, Reason};
use crate::layer::{StoredTransform, state};
use crate::layout::Layer;
use crate::model::dense;
use crate::model::difference::Difference;
use crate::model::items::{Dense, Item, Values};
use crate::model::select::Orientation;

/// Why two items cannot be compared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Incomparable {
    /// Two tensors of different shapes.
    #[error("shapes {0:?} and {1:?} differ")]
    Shapes(Vec<usize>, Vec<usize>),
    /// Two tensors of different types that have no values.
    #[error("types {0} and {1} cannot be compared")]
    Types(String, String),
    /// A dense tensor and a layer of different shapes.
    #[error("the dense shape {0:?} and the quantized {1:?} differ")]
    DenseShape(Vec<usize>, Vec<usize>),
    /// A dense tensor without values.
    #[error("the dense tensor cannot be read: {0}")]
    Values(Reason),
    /// Square matrices of a kind that is stored either way.
    #[error(
        "its matrices are square, and nothing tells whether the dense ones are stored (out, in) or \
         (in, out); put the config.json of the dense model beside it, or give it: its model_type \
         tells"
    )]
    Square,
    /// Square matrices of which two things are said.
    #[error(
        "its matrices are square: by the names and the config.json of the dense side they are \
         stored {dense}, and by the header of the quantized side they were {quantized} when it was \
         quantized; is the dense side what it was made from? If so, give the config.json that is \
         right"
    )]
    Disagree {
        /// By the dense side.
        dense: Orientation,
        /// By the quantized side.
        quantized: Orientation,
    },
    /// Two layers of different shapes.
    #[error("the shapes {0:?} and {1:?} differ")]
    LayerShapes(Vec<usize>, Vec<usize>),
    /// Two layers with different transforms.
    #[error(
        "the two layers have different transforms, so their weights mean different things; compare \
         each with the dense checkpoint"
    )]
    Transforms,
}

/// An item and where its bytes are.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// The checkpoint.
    pub from: &'a Checkpoint,
    /// The item.
    pub item: &'a Item<'a>,
}

/// What met what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Two dense tensors.
    Dense,
    /// A dense tensor and a layer.
    DenseQuantized,
    /// Two layers.
    Quantized,
    /// Two tensors of a type without values.
    Bytes,
}

/// How two items compare.
#[derive(Debug)]
pub struct Pair {
    /// What met what.
    pub kind: Kind,
    /// The shape of both.
    pub shape: Box<[usize]>,
    /// Nothing differs that the two can have in common.
    pub identical: bool,
    /// The dense side was transformed as the layer's weight was.
    pub transformed: bool,
    /// The dense side is stored (in, out).
    pub in_out: bool,
    /// The error of the values, where both sides have values.
    pub difference: Option<Difference>,
    /// Codes that differ, where the formats agree.
    pub codes_differ: Option<u64>,
    /// Scale bytes that differ, where the formats agree.
    pub scales_differ: Option<u64>,
    /// Bytes that differ, where the types agree.
    pub bytes_differ: Option<u64>,
    /// Scalars of two quantized layers that differ.
    pub settings_differ: Vec<&'static str>,
    /// NaN scales of the quantized sides.
    pub nan_scales: u64,
}

impl Kind {
    /// The kind as the reports name it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Dense => "dense-dense",
            Kind::DenseQuantized => "dense-quantized",
            Kind::Quantized => "quantized-quantized",
            Kind::Bytes => "bytes",
        }
    }

    /// Is a quantized layer among the two?
    pub fn is_quantized(self) -> bool {
        matches!(self, Kind::DenseQuantized | Kind::Quantized)
    }
}

impl Pair {
    fn new(kind: Kind, shape: &[usize]) -> Self {
        Pair {
            kind,
            shape: shape.into(),
            identical: false,
            transformed: false,
            in_out: false,
            difference: None,
            codes_differ: None,
            scales_differ: None,
            bytes_differ: None,
            settings_differ: vec![],
            nan_scales: 0,
        }
    }

    /// What the values are: weights, or weights after the block transform.
    pub fn domain(&self) -> &'static str {
        if self.transformed { "transformed weight" } else { "weight" }
    }

    /// For sorting, worst first: the relative error; pairs without one come first if they differ.
    pub fn rank(&self) -> f64 {
        match &self.difference {
            Some(d) if d.not_finite() == 0 || d.relative() > 0.0 => d.relative(),
            Some(_) => f64::MIN_POSITIVE,
            None if self.identical => -1.0,
            None => f64::INFINITY,
        }
    }
}

/// Compares two items of [`Items`](crate::model::items::Items). The inner error says why they cannot be compared.
///
/// # Errors
/// I/O errors.
pub fn compare(sides: &[Side<'_>; 2]) -> Result<Result<Pair, Incomparable>, Error> {
    let [a, b] = sides;
    match (a.item, b.item) {
        (Item::Dense(x), Item::Dense(y)) => dense_dense(a.from, x, b.from, y),
        (Item::Dense(x), Item::Layer(y)) => dense_layer(a.from, x, b.from, y),
        (Item::Layer(x), Item::Dense(y)) => dense_layer(b.from, y, a.from, x),
        (Item::Layer(x), Item::Layer(y)) => layer_layer(a.from, x, b.from, y),
    }
}

fn dense_dense(
    a_from: &Checkpoint,
    a: &Dense<'_>,
    b_from: &Checkpoint,
    b: &Dense<'_>,
) -> Result<Result<Pair, Incomparable>, Error> {
    let (shape, other) = (a.tensor.shape(), b.tensor.shape());
    if shape != other {
        return Ok(Err(Incomparable::Shapes(shape, other)));
    }
    // By name: blocks of two types may take as many bytes.
    let types = [a, b].map(|dense| dense.tensor.type_name());
    let same_type = types[0] == types[1];
    let (x, y) = match (a.values(), b.values()) {
        (Ok(Some(x)), Ok(Some(y))) => (x, y),
        _ if same_type => {
            let mut pair = Pair::new(Kind::Bytes, &shape);
            let differ = stored_bytes_differ(a_from, a.tensor, b_from, b.tensor)?;
            pair.bytes_differ = Some(differ);
            pair.identical = differ == 0;
            return Ok(Ok(pair));
        }
        _ => {
            let [a, b] = types;
            return Ok(Err(Incomparable::Types(a, b)));
        }
    };
    let mut pair = Pair::new(Kind::Dense, &shape);
    let (mut difference, mut differ) = (Difference::default(), 0);
    let [rows, k] = x.matrix();
    let largest = [&x, &y].map(|v| v.source().float_type().bytes()).into_iter().max();
    for tile in tiles(rows, k, largest.unwrap_or(1), DEFAULT_BLOCK_BYTES) {
        let (x, y) = (x.read(a_from, &tile)?, y.read(b_from, &tile)?);
        add(&mut difference, &x, &y);
        if same_type {
            differ += bytes_differ(&x.to_le_bytes(), &y.to_le_bytes());
        }
    }
    pair.bytes_differ = same_type.then_some(differ);
    pair.identical = same_type && differ == 0;
    pair.difference = Some(difference);
    Ok(Ok(pair))
}

fn dense_layer(
    dense_from: &Checkpoint,
    dense: &Dense<'_>,
    layer_from: &Checkpoint,
    layer: &Layer,
) -> Result<Result<Pair, Incomparable>, Error> {
    let values = match facing(dense, layer) {
        Ok(values) => values,
        Err(problem) => return Ok(Err(problem)),
    };
    let [rows, k] = [layer.shape.rows(), layer.shape.k()];
    let decoder = layer.decoder();
    let transform = layer.stored_transform(layer_from)?;
    let transform = transform.as_ref().map(StoredTransform::view).transpose()?;
    let mut pair = Pair::new(Kind::DenseQuantized, values.shape());
    pair.transformed = transform.is_some();
    pair.in_out = values.source().is_transposed();
    let mut difference = Difference::default();
    for tile in tiles(rows, k, FloatType::F32.bytes(), DEFAULT_BLOCK_BYTES) {
        let x = values.read(dense_from, &tile)?;
        let x = transformed(x, &tile, transform.as_ref())?;
        let packed = layer.packed(layer_from, &tile)?;
        pair.nan_scales += nan_scales(&packed);
        let y = decoder.values(&packed, &tile);
        add(&mut difference, &x, &FloatVec::F32(y));
    }
    pair.identical = difference.differ() == 0;
    pair.difference = Some(difference);
    Ok(Ok(pair))
}

/// The values of a dense item, where they have the shape of a layer.
pub(super) fn facing(dense: &Dense<'_>, layer: &Layer) -> Result<Values, Incomparable> {
    let dtype = dense.tensor.info.dtype;
    let values = dense.values()?.ok_or(Incomparable::Values(Reason::Type(dtype)))?;
    match values.shape() == layer.dense_shape() {
        true => Ok(values),
        false => Err(Incomparable::DenseShape(values.shape().to_vec(), layer.dense_shape())),
    }
}

fn layer_layer(
    a_from: &Checkpoint,
    a: &Layer,
    b_from: &Checkpoint,
    b: &Layer,
) -> Result<Result<Pair, Incomparable>, Error> {
    let shapes = [a, b].map(Layer::dense_shape);
    if shapes[0] != shapes[1] {
        let [a, b] = shapes;
        return Ok(Err(Incomparable::LayerShapes(a, b)));
    }
    let decoders = [a, b].map(Layer::decoder);
    let [rows, k] = [a.shape.rows(), a.shape.k()];
    if !same_transform(a_from, a, b_from, b)? {
        return Ok(Err(Incomparable::Transforms));
    }
    let same_format = a.shape.expect_same_format(&b.shape).is_ok();
    let mut pair = Pair::new(Kind::Quantized, &shapes[0]);
    pair.transformed = a.transform.is_some();
    let (mut difference, mut codes, mut scales) = (Difference::default(), 0, 0);
    for tile in tiles(rows, k, FloatType::F32.bytes(), DEFAULT_BLOCK_BYTES) {
        let (x, y) = (a.packed(a_from, &tile)?, b.packed(b_from, &tile)?);
        pair.nan_scales += nan_scales(&x) + nan_scales(&y);
        if same_format {
            codes += codes_differ(x.codes(), y.codes());
            scales += bytes_differ(x.scales(), y.scales());
        }
        difference.add(&decoders[0].values(&x, &tile), &decoders[1].values(&y, &tile));
    }
    if same_format {
        (pair.codes_differ, pair.scales_differ) = (Some(codes), Some(scales));
    }
    pair.settings_differ = settings_differ(a, b);
    pair.identical = same_format && codes == 0 && scales == 0 && pair.settings_differ.is_empty();
    pair.difference = Some(difference);
    Ok(Ok(pair))
}

/// Do two layers have transforms of the same type, shape and bytes, or none?
pub(super) fn same_transform(
    a_from: &Checkpoint,
    a: &Layer,
    b_from: &Checkpoint,
    b: &Layer,
) -> Result<bool, Error> {
    let (a, b) = match (&a.transform, &b.transform) {
        (None, None) => return Ok(true),
        (Some(a), Some(b)) if a.shape == b.shape => (a, b),
        _ => return Ok(false),
    };
    let [a, b] = [a_from.tensor(&a.name)?, b_from.tensor(&b.name)?];
    Ok(stored_bytes_differ(a_from, a, b_from, b)? == 0)
}

/// Number of bytes that differ between two tensors of one length.
fn stored_bytes_differ(
    a_from: &Checkpoint,
    a: &Tensor,
    b_from: &Checkpoint,
    b: &Tensor,
) -> Result<u64, Error> {
    let mut differ = 0;
    for tile in tiles(1, byte_len(&a.info), 1, DEFAULT_BLOCK_BYTES) {
        let range = tile.start..tile.start + tile.len();
        let x = a_from.read(a, range.clone())?;
        differ += bytes_differ(&x, &b_from.read(b, range)?);
    }
    Ok(differ)
}

/// The scalars that differ, by name.
fn settings_differ(a: &Layer, b: &Layer) -> Vec<&'static str> {
    let bits = |value: Option<f32>| value.map(f32::to_bits);
    let scalars = [a, b].map(|layer| {
        let p = &layer.scalars;
        [
            (state::WEIGHT_GLOBAL_SCALE, Some(p.weight_global_scale.to_bits())),
            (state::ACTIVATION_GLOBAL_SCALE, bits(p.activation_global_scale)),
            (state::ACTIVATION_SCALE_SCALE, bits(p.activation_scale_scale)),
            (state::ACTIVATION_ENCODING, Some(p.activations.byte().into())),
        ]
    });
    let pairs = scalars[0].iter().zip(&scalars[1]);
    pairs.filter(|(a, b)| a != b).map(|(a, _)| a.0).collect()
}

/// The values of a dense tile, transformed as the layer's weight was: W T^T by an orthonormal T, as
/// C5 has it, and W T^-1 by another.
pub(super) fn transformed(
    x: FloatVec,
    tile: &Tile,
    transform: Option<&Transform<'_>>,
) -> Result<FloatVec, Error> {
    match transform {
        None => Ok(x),
        Some(t) => {
            let t = dense::columns(t, tile)?;
            match is_orthonormal(&t) {
                true => crate::transform::transformed(x.as_slice(), tile.cols, &t),
                false => undone(&x, tile.cols, &t),
            }
        }
    }
}

/// Is T T^T the identity, to 1e-4? A T of bf16 is it to no more than 1e-2.
fn is_orthonormal(t: &Transform<'_>) -> bool {
    let d = t.block();
    let values: Vec<f64> = with_floats!(FloatSlice, t.values(), v => {
        v.iter().map(|x| f64::from(Float::to_f32(*x))).collect()
    });
    values.chunks_exact(d * d).all(|block| {
        block.chunks_exact(d).enumerate().all(|(i, a)| {
            block.chunks_exact(d).enumerate().all(|(j, b)| {
                let product: f64 = a.iter().zip(b).map(|(a, b)| a * b).sum();
                (product - f64::from(u8::from(i == j))).abs() < 1e-4
            })
        })
    })
}

/// W T^-1, in f32.
#[cfg(feature = "calibrate")]
fn undone(x: &FloatVec, k: usize, t: &Transform<'_>) -> Result<FloatVec, Error> {
    use crate::calibrate::BlockTransform;
    let (d, blocks) = (t.block(), t.shape().blocks);
    let shape = blocks.map_or(vec![d, d], |blocks| vec![blocks, d, d]);
    let values = with_floats!(FloatSlice, t.values(), v => {
        v.iter().map(|x| Float::to_f32(*x)).collect::<Vec<_>>()
    });
    let transform = StoredTransform::new(FloatVec::F32(values), shape)?;
    let x = with_floats!(FloatSlice, x.as_slice(), v => {
        v.iter().map(|x| Float::to_f32(*x)).collect::<Vec<_>>()
    });
    let undone = BlockTransform::from_stored(k, &transform)?.weight_through(&x)?;
    Ok(FloatVec::F32(undone))
}

/// Without linear algebra it is not known.
#[cfg(not(feature = "calibrate"))]
fn undone(_: &FloatVec, _: usize, _: &Transform<'_>) -> Result<FloatVec, Error> {
    Err(Error::NotOrthonormal)
}

fn add(difference: &mut Difference, a: &FloatVec, b: &FloatVec) {
    with_floats!(FloatSlice, a.as_slice(), a => {
        with_floats!(FloatSlice, b.as_slice(), b => difference.add(a, b));
    });
}

fn nan_scales(packed: &PackedMatrix) -> u64 {
    let ty = packed.shape().scale_type();
    packed.scales().iter().filter(|&&s| ty.is_nan(s)).count() as u64
}

fn bytes_differ(a: &[u8], b: &[u8]) -> u64 {
    a.iter().zip(b).filter(|(a, b)| a != b).count() as u64
}

/// Number of 4-bit codes that differ.
fn codes_differ(a: &[u8], b: &[u8]) -> u64 {
    let nibbles = |(a, b): (&u8, &u8)| {
        let x = a ^ b;
        u64::from(x & 0xF != 0) + u64::from(x >> 4 != 0)
    };
    a.iter().zip(b).map(nibbles).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_counted_by_nibble() {
        assert_eq!(codes_differ(&[0x12, 0x34, 0x56], &[0x12, 0x35, 0x65]), 3);
    }
}
