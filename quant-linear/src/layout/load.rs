//! Layers from checkpoints, whatever their layout.

use std::ops::Range;
use std::path::Path;

use fp4_core::{Format, PackedMatrix};

use super::find;
use super::{Activations, Global, Layer, Native};
use crate::checkpoint::tiles::Tile;
use crate::checkpoint::{Checkpoint, TensorSource};
use crate::error::Error;
use crate::layer::state::{Bias, Rows, Scalars, join, read_bias};
use crate::layer::{Contents, Parts, QuantLinear, StoredTransform};
use crate::layout::LoadOptions;
use crate::run::runtime::Runtime;
use crate::text::printable;

/// Block of the diagonal transform that stands for a scale of each feature.
const DIAGONAL: usize = 16;

impl Layer {
    /// True if other software wrote it.
    pub fn is_foreign(&self) -> bool {
        self.layout.name() != super::Layout::name(&Native)
    }

    /// What the layer of an expert (0 of a plain matrix) is made of.
    ///
    /// # Errors
    /// As [`TensorSource::range`].
    pub fn parts(
        &self,
        source: &dyn TensorSource,
        expert: usize,
        options: &LoadOptions,
    ) -> Result<Parts, Error> {
        let (rows, columns) = (0..self.out_features(), 0..self.shape.k());
        let weight = self.weight(source, expert, rows, columns)?;
        self.parts_with(weight, source, expert, options)
    }

    /// Some rows and columns, whole groups, of the weight of an expert; no others are read.
    ///
    /// # Errors
    /// As [`TensorSource::range`].
    pub(crate) fn weight(
        &self,
        source: &dyn TensorSource,
        expert: usize,
        rows: Range<usize>,
        columns: Range<usize>,
    ) -> Result<PackedMatrix, Error> {
        let (k, first) = (self.shape.k(), expert * self.out_features());
        let shape = self.shape.resized(rows.len(), columns.len())?;
        if rows.is_empty() || columns.is_empty() {
            return Ok(PackedMatrix::zeros(shape));
        }
        let (row, col) = (first + rows.start, columns.start);
        let (rows, cols, start) = (rows.len(), columns.len(), row * k + col);
        self.packed(source, &Tile { row, rows, col, cols, start })
    }

    /// The parts of an expert's layer around a weight, or a part of it.
    pub(crate) fn parts_with(
        &self,
        weight: PackedMatrix,
        source: &dyn TensorSource,
        expert: usize,
        options: &LoadOptions,
    ) -> Result<Parts, Error> {
        let at = |scales: &[Global]| scales.get(expert).or(scales.first()).copied();
        let foreign = options.foreign || self.is_foreign();
        let usual = self.format().map(fp4_core::QuantSpec::usual).filter(|_| foreign);
        let Scalars { activation_global_scale, activation_scale_scale, .. } = self.scalars;
        let input = self.inputs.as_deref().and_then(at).map(Global::multiplier);
        // A scale of eight bits is none of four.
        let of_four = !matches!(self.said, Activations::Other { .. });
        // Where none is stored: the format's own constants.
        let unstored = usual.filter(|_| self.is_foreign()).map(|_| usual_input(self.format()));
        Ok(Parts {
            weight,
            transform: self.whole_transform(source)?,
            weight_global_scale: at(&self.globals).map_or(1.0, Global::multiplier),
            activation_global_scale: input
                .or(activation_global_scale)
                .filter(|_| of_four)
                .or(unstored),
            activation_scale_scale: activation_scale_scale
                .or(usual.map(|usual| usual.scale_scale())),
            activations: self.scalars.activations,
        })
    }

    /// Checks that its header and config tell what it is.
    fn expect_told(&self, module: &str) -> Result<(), Error> {
        match &self.untold {
            Some(what) => Err(Error::Untold { module: module.to_string(), what: what.clone() }),
            None => Ok(()),
        }
    }

    /// Says what is out of the ordinary about its activations.
    fn log_note(&self, module: &str) {
        if let Some(note) = &self.note {
            log::info!("layer `{}`: its activations {}", printable(module), printable(note));
        }
    }

    /// What is done with its bias: other software's layers are with theirs; a state asks.
    fn bias_asked(&self, options: &LoadOptions) -> Bias {
        match options.bias {
            Bias::Refuse if self.is_foreign() => Bias::Apply,
            other => other,
        }
    }

    fn bias(
        &self,
        source: &dyn TensorSource,
        module: &str,
        asked: Bias,
    ) -> Result<Option<Vec<f32>>, Error> {
        let rows = match self.layout.pads() {
            true => Rows::AtMost(self.out_features()),
            false => Rows::Exactly(self.out_features()),
        };
        read_bias(source, module, rows, asked)
    }

    /// The transform, and a scale of each feature as a diagonal one.
    fn whole_transform(&self, source: &dyn TensorSource) -> Result<Option<StoredTransform>, Error> {
        let Some((name, dtype)) = &self.pre_scale else { return self.stored_transform(source) };
        let wrong =
            || Error::Dtype { name: name.clone(), expected: "F32, F16 or BF16", got: *dtype };
        let ty = crate::layer::state::float_type(*dtype).ok_or_else(wrong)?;
        let bytes = source.bytes(name)?;
        let scales = fp4_core::FloatVec::from_le_bytes(ty, &bytes).ok_or_else(wrong)?;
        let k = self.shape.k();
        let mut values = vec![0f32; k * DIAGONAL];
        for i in 0..k {
            let scale = scales.as_slice().get_f32(i).unwrap_or(f32::NAN);
            values[i * DIAGONAL + i % DIAGONAL] = scale;
        }
        let shape = vec![k / DIAGONAL, DIAGONAL, DIAGONAL];
        Ok(Some(StoredTransform::new(fp4_core::FloatVec::F32(values), shape)?))
    }
}

/// The global scale of activations where a file stores none.
fn usual_input(format: Option<Format>) -> f32 {
    match format {
        Some(Format::MxFp4) | None => fp4_core::QuantSpec::usual(Format::MxFp4).global_scale(),
        Some(Format::NvFp4) => fp4_core::QuantSpec::usual(Format::NvFp4).global_scale(),
    }
}

/// What a layer is made of, and its bias: `module` is the layer's, or that of one of its experts.
fn read(
    source: &dyn TensorSource,
    (layer, expert): (&Layer, usize),
    module: &str,
    options: &LoadOptions,
) -> Result<(Parts, Option<Vec<f32>>), Error> {
    layer.expect_told(module)?;
    let bias = layer.bias_asked(options);
    let parts = layer.parts(source, expert, options)?;
    Ok((parts, layer.bias(source, module, bias)?))
}

/// A layer that was found, of which parts can be read.
pub(crate) struct Found<'s> {
    source: &'s dyn TensorSource,
    layer: Layer,
    expert: usize,
    /// With a weight of no rows.
    pub(crate) settings: Parts,
    pub(crate) bias: Option<Vec<f32>>,
}

impl<'s> Found<'s> {
    /// The layer of a module: all of it but the weight is read.
    ///
    /// # Errors
    /// As [`QuantLinear::from_state`].
    pub(crate) fn of(
        source: &'s dyn TensorSource,
        module: &str,
        options: &LoadOptions,
    ) -> Result<Self, Error> {
        let (layer, expert) = find::layer(source, module, options)?;
        layer.expect_told(module)?;
        layer.log_note(module);
        let nothing = PackedMatrix::zeros(layer.shape.resized(0, layer.shape.k())?);
        let settings = layer.parts_with(nothing, source, expert, options)?;
        let bias = layer.bias(source, module, layer.bias_asked(options))?;
        Ok(Found { source, layer, expert, settings, bias })
    }

    /// Output and input features.
    pub(crate) fn features(&self) -> [usize; 2] {
        [self.layer.out_features(), self.layer.shape.k()]
    }

    /// Some rows and columns, whole groups, of the weight.
    ///
    /// # Errors
    /// As [`TensorSource::range`].
    pub(crate) fn weight(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
    ) -> Result<PackedMatrix, Error> {
        self.layer.weight(self.source, self.expert, rows, columns)
    }
}

/// As [`read`], of a module that is looked for, and says how its activations are quantized.
fn find_and_read(
    source: &dyn TensorSource,
    module: &str,
    options: &LoadOptions,
) -> Result<(Parts, Option<Vec<f32>>), Error> {
    let (layer, expert) = find::layer(source, module, options)?;
    let read = read(source, (&layer, expert), module, options)?;
    layer.log_note(module);
    Ok(read)
}

impl QuantLinear {
    /// The layer of what was read.
    fn of((parts, bias): (Parts, Option<Vec<f32>>), module: &str) -> Result<Self, Error> {
        let mut layer = Self::from_parts(parts)?;
        if let Some(bias) = bias {
            layer.set_bias(Some(&bias))?;
        }
        if !module.is_empty() {
            layer.set_name(module);
        }
        Ok(layer)
    }

    /// The layer of a module, from any [layout](crate::layout): weight, transform, scales and bias.
    /// An expert of a 3-D weight `NAME` is `NAME.0`, `NAME.1`, ...
    ///
    /// # Errors
    /// Missing tensors, wrong types or shapes, illegal scalars, a bias of a native state that is
    /// not zero, a layout that cannot be told.
    pub fn from_state(
        state: &dyn TensorSource,
        prefix: &str,
        options: &LoadOptions,
    ) -> Result<Self, Error> {
        Self::of(find_and_read(state, prefix, options)?, prefix)
    }

    /// Replaces the layer's weight, format, transform, scalars and bias by a state; its backends
    /// and its device stay. A layer that was built with a bias, or has one, applies that of the
    /// state, unless the options say to ignore it. On an error the layer is as it was.
    ///
    /// # Errors
    /// As [`from_state`](Self::from_state).
    pub fn load_state(
        &mut self,
        state: &dyn TensorSource,
        prefix: &str,
        options: &LoadOptions,
    ) -> Result<(), Error> {
        let applies =
            self.bias().is_some() || matches!(self.contents, Contents::Empty { bias: true, .. });
        let bias = match options.bias {
            Bias::Refuse if applies => Bias::Apply,
            other => other,
        };
        let options = &LoadOptions { bias, ..*options };
        let (parts, bias) = find_and_read(state, prefix, options)?;
        self.replace(parts, bias)?;
        if self.name.is_none() && !prefix.is_empty() {
            self.set_name(prefix);
        }
        Ok(())
    }

    /// A layer from a checkpoint: its header and the layer's bytes are read. For many layers of one
    /// file open a [`Checkpoint`] once.
    ///
    /// # Errors
    /// An I/O error, a file that is no checkpoint, or as [`from_state`](Self::from_state).
    pub fn load(path: &Path, prefix: &str, options: &LoadOptions) -> Result<Self, Error> {
        Self::from_state(&Checkpoint::open(path)?, prefix, options)
    }

    /// All quantized layers of a checkpoint on one runtime, by module, the experts of 3-D weights
    /// one by one (`NAME.0`, ...).
    ///
    /// # Errors
    /// As [`from_state`](Self::from_state), for the first layer that is not whole.
    pub fn load_all(
        checkpoint: &Checkpoint,
        runtime: &Runtime,
        options: &LoadOptions,
    ) -> Result<std::collections::BTreeMap<String, Self>, Error> {
        let mut layers = super::Layers::find(checkpoint, options)?;
        if let Some((name, error)) = layers.bad.pop_first() {
            return Err(Error::Layer { name, error: Box::new(error) });
        }
        let mut all = std::collections::BTreeMap::new();
        for (module, layer) in &layers.good {
            let names: Vec<_> = match layer.experts {
                None => vec![module.clone()],
                Some(experts) => (0..experts).map(|e| join(module, &e.to_string())).collect(),
            };
            for (expert, name) in names.into_iter().enumerate() {
                let read = read(checkpoint, (layer, expert), &name, options);
                let mut layer = read
                    .and_then(|read| Self::of(read, &name))
                    .map_err(|error| Error::Layer { name: name.clone(), error: Box::new(error) })?;
                layer.set_runtime(runtime);
                all.insert(name, layer);
            }
        }
        for note in layers.notes() {
            log::info!("{}", printable(&note));
        }
        Ok(all)
    }
}
