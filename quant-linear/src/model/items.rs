//! What a checkpoint holds under the names that another one shares with it.
//!
//! Layers stand under the name that their dense weight would have. A dense weight that meets a
//! layer is seen as the layer is, one matrix (out, in) or one for each expert:
//!
//! ```text
//! stored                            meets                       as
//! [out, in]                         a layer of that name        it is
//! [in, out], named as GPT-2's       the same                    transposed
//! NAME [E, out, in], [E, in, out]   layers NAME.0, NAME.1, ..   its matrices, each by itself
//! NAME [E, out, in], [E, in, out]   a layer of E matrices       its matrices below each other
//! F8_E4M3 with scales, blocks       any of those, and a dense   its values
//!                                   tensor of another type
//! ```
//!
//! The shapes tell what is transposed. Square matrices are taken as what tells first, and are an
//! error where nothing does, or where two disagree: a wrong guess would be a number like any other.
//!
//! ```text
//! the header of the dense side          recorded when it was dequantized
//! config.json and names of that side    as `quantize` goes by
//! the header of the quantized side      recorded when it was quantized
//! ```
//!
//! Scales of FP8 are part of the weight whose values are compared, and no items of their own unless
//! the other side has them too.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use fp4_core::FloatVec;

use crate::checkpoint::tiles::Tile;
use crate::checkpoint::{Checkpoint, Tensor, TensorSource, byte_len};
use crate::error::{Error, Reason};
use crate::layer::state;
use crate::layout::{Layer, Layers};
use crate::model::compare::Incomparable;
use crate::model::dense::DenseSource;
use crate::model::orientation::recorded;
use crate::model::roles::{Facts, Roles, is_conv1d};
use crate::model::select::Orientation;

/// What there is to compare under a name.
#[derive(Debug, Clone)]
pub enum Item<'a> {
    /// A dense tensor, or one matrix of it.
    Dense(Dense<'a>),
    /// A quantized layer.
    Layer(&'a Layer),
}

/// A dense tensor, or one matrix of it.
#[derive(Debug, Clone)]
pub struct Dense<'a> {
    /// The tensor.
    pub tensor: &'a Tensor,
    /// Its values, as what it meets sees them; none where its bytes say all.
    seen: Option<Box<Result<Values, Incomparable>>>,
}

/// The values of a dense tensor.
#[derive(Debug, Clone)]
pub(crate) struct Values {
    source: DenseSource,
    /// One matrix of several.
    one: bool,
    shape: Vec<usize>,
}

/// Everything that one side holds.
#[derive(Debug, Default)]
pub struct Items<'a> {
    /// By name.
    pub by_name: BTreeMap<Cow<'a, str>, Item<'a>>,
    /// Names of weights that it holds both dense and quantized: the quantized one is the item.
    pub twice: Vec<Cow<'a, str>>,
}

/// One side: a checkpoint and its layers.
pub type Whole<'a> = (&'a Checkpoint, &'a Layers);

impl Item<'_> {
    /// Bytes to be read.
    pub fn byte_len(&self) -> u64 {
        match self {
            Item::Dense(dense) => match dense.seen.as_deref() {
                Some(Ok(Values { source, one: true, .. })) => source.byte_len() as u64,
                _ => byte_len(&dense.tensor.info) as u64,
            },
            Item::Layer(layer) => layer.byte_len(),
        }
    }

    /// The name as the report shows it.
    pub fn shown<'n>(&self, name: &Cow<'n, str>) -> Cow<'n, str> {
        match self {
            Item::Dense(_) => name.clone(),
            Item::Layer(_) => format!("{name} (quantized)").into(),
        }
    }
}

impl<'a> Dense<'a> {
    /// A tensor as it is stored.
    pub fn new(tensor: &'a Tensor) -> Self {
        Dense { tensor, seen: None }
    }

    /// Its values; `None` where it has none.
    ///
    /// # Errors
    /// Why what it meets cannot be set beside it.
    pub(crate) fn values(&self) -> Result<Option<Values>, Incomparable> {
        match self.seen.as_deref() {
            Some(seen) => seen.clone().map(Some),
            None => Ok(DenseSource::plain(self.tensor).map(Values::stored)),
        }
    }
}

impl Values {
    /// All of a tensor, as it is stored.
    fn stored(source: DenseSource) -> Self {
        let shape = source.shape();
        Values { source, one: false, shape }
    }

    /// (out, in), and before them the number of matrices if they are several.
    pub(crate) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Rows, of all matrices, and columns.
    pub(crate) fn matrix(&self) -> [usize; 2] {
        let matrices = if self.one { 1 } else { self.source.matrices() };
        [matrices * self.source.rows(), self.source.k()]
    }

    /// Where they are.
    pub(crate) fn source(&self) -> &DenseSource {
        &self.source
    }

    /// Reads a tile.
    ///
    /// # Errors
    /// As [`Checkpoint::read`].
    pub(crate) fn read(&self, from: &Checkpoint, tile: &Tile) -> Result<FloatVec, Error> {
        match self.one {
            true => self.source.read(from, tile),
            false => self.source.read_stacked(from, tile),
        }
    }
}

impl<'a> Items<'a> {
    /// What one side holds, as the other sees it.
    ///
    /// # Errors
    /// A header whose record of orientations cannot be read.
    pub fn of(side: Whole<'a>, other: Option<Whole<'a>>) -> Result<Self, Error> {
        let (checkpoint, layers) = side;
        let mut items = Items::default();
        let dense = checkpoint.tensors().iter();
        let dense = dense.filter(|(name, _)| !layers.tensors.contains(*name));
        items.by_name = dense
            .map(|(name, tensor)| (name.as_str().into(), Item::Dense(Dense::new(tensor))))
            .collect();
        if let Some(other) = other {
            items.see(side, other)?;
        }
        for layer in layers.good.values() {
            let name = Cow::from(layer.tensor.as_str());
            if items.by_name.insert(name.clone(), Item::Layer(layer)).is_some() {
                items.twice.push(name);
            }
        }
        for prefix in layers.bad.keys() {
            items.by_name.remove(state::join(prefix, "weight").as_str());
        }
        Ok(items)
    }

    /// Looks at the dense tensors as the other side does.
    fn see(&mut self, side: Whole<'a>, other: Whole<'a>) -> Result<(), Error> {
        let (checkpoint, layers) = side;
        let config = TensorSource::config(checkpoint).model();
        let roles = Roles::new(Facts::new(Some(config), checkpoint.tensors()))?;
        let recorded = [recorded(checkpoint)?, recorded(other.0)?];
        let view = View { checkpoint, roles, recorded };
        let mut used = BTreeSet::new();
        for layer in other.1.good.values() {
            let name = layer.tensor.as_str();
            if layers.tensors.contains(name) {
                continue;
            }
            if let Some((name, tensor)) = checkpoint.tensors().get_key_value(name) {
                let seen = view.facing(name, tensor, None, layer);
                used.extend(companions(&seen));
                self.put(name, tensor, seen);
            } else if let Some((of, tensor, matrix)) = view.slice(layer)
                && !layers.tensors.contains(of)
            {
                let seen = view.facing(of, tensor, Some(matrix), layer);
                used.extend(companions(&seen));
                self.put(name, tensor, seen);
                self.by_name.remove(of);
            }
        }
        for (name, own) in checkpoint.tensors() {
            let Some(tensor) = other.0.tensors().get(name) else { continue };
            let dense = [layers, other.1].iter().all(|layers| !layers.tensors.contains(name));
            if !dense || own.type_name() == tensor.type_name() {
                continue;
            }
            // What has no values is compared by its type.
            if let Ok(source) = view.source(name)
                && source.is_encoded()
            {
                used.extend(source.companions().iter().cloned());
                self.put(name, own, Ok(Values::stored(source)));
            }
        }
        self.by_name.retain(|name, _| {
            let name: &str = name;
            !used.contains(name) || other.0.tensors().contains_key(name)
        });
        Ok(())
    }

    fn put(&mut self, name: &'a str, tensor: &'a Tensor, seen: Result<Values, Incomparable>) {
        let dense = Dense { tensor, seen: Some(Box::new(seen)) };
        self.by_name.insert(name.into(), Item::Dense(dense));
    }
}

/// The tensors that mean nothing without a weight's own bytes.
fn companions(seen: &Result<Values, Incomparable>) -> Vec<String> {
    seen.as_ref().map_or(vec![], |values| values.source.companions().to_vec())
}

/// What decides how dense tensors are seen.
struct View<'a> {
    checkpoint: &'a Checkpoint,
    roles: Roles,
    /// By this side's headers, and by the other's.
    recorded: [BTreeMap<String, Orientation>; 2],
}

impl<'a> View<'a> {
    fn source(&self, name: &str) -> Result<DenseSource, Reason> {
        DenseSource::find(self.checkpoint.tensors(), name, self.roles.facts().fp8_block)
    }

    /// The 3-D tensor that a layer `NAME.3` is a matrix of, and which.
    fn slice(&self, layer: &Layer) -> Option<(&'a str, &'a Tensor, usize)> {
        let (of, number) = layer.module.rsplit_once('.')?;
        let number = number.parse::<usize>().ok()?;
        let names = [of.to_string(), state::join(of, "weight")];
        let tensors = self.checkpoint.tensors();
        let (name, tensor) = names.iter().find_map(|name| tensors.get_key_value(name))?;
        let experts = tensor.info.shape.len() == 3 && number < tensor.info.shape[0];
        experts.then_some((name.as_str(), tensor, number))
    }

    /// The values of a tensor, or of a matrix of it, as a layer has them.
    fn facing(
        &self,
        name: &str,
        tensor: &Tensor,
        matrix: Option<usize>,
        layer: &Layer,
    ) -> Result<Values, Incomparable> {
        let source = self.source(name).map_err(Incomparable::Values)?;
        let (stored, wanted) = (tensor.shape(), layer.dense_shape());
        let own = &stored[usize::from(matrix.is_some()).min(stored.len())..];
        let (Some((lead, [rows, k])), Some((of, [out, features]))) =
            (own.split_last_chunk(), wanted.split_last_chunk())
        else {
            return Err(Incomparable::DenseShape(own.to_vec(), wanted));
        };
        let turns = stored.len() == 3 || is_conv1d(name);
        let as_it_is = lead == of && [rows, k] == [out, features];
        let turned = turns && lead == of && [k, rows] == [out, features];
        let way = match (as_it_is, turned) {
            (true, true) => self.square(name, stored.len(), *k)?,
            (true, false) => Orientation::OutIn,
            (false, true) => Orientation::InOut,
            (false, false) => return Err(Incomparable::DenseShape(own.to_vec(), wanted)),
        };
        let source = match way {
            Orientation::OutIn => source,
            Orientation::InOut => source.transposed(),
        };
        let one = matrix.is_some();
        Ok(Values { source: source.matrix(matrix.unwrap_or(0)), one, shape: wanted })
    }

    /// How square matrices of so many columns are stored.
    fn square(&self, name: &str, rank: usize, k: usize) -> Result<Orientation, Incomparable> {
        let [own, other] = self.recorded.each_ref().map(|recorded| recorded.get(name).copied());
        if let Some(own) = own {
            return Ok(own);
        }
        let told = match rank {
            3 => self.roles.experts(name, k, k),
            _ => self.roles.matrix(name),
        };
        match (told, other) {
            (Some(dense), Some(quantized)) if dense != quantized => {
                Err(Incomparable::Disagree { dense, quantized })
            }
            (told, other) => told.or(other).ok_or(Incomparable::Square),
        }
    }
}
