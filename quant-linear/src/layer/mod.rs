//! The layer: packed weight, optional transform, three scalars, and how it is built.
//!
//! ```text
//! e2m1                     (out, in / 2)  u8, two codes a byte
//! scale_quant              (out, in / G)  scale bytes; their type names the format
//! transform                absent, (Bt, Bt) or (in / Bt, Bt, Bt)
//! weight_global_scale      f32
//! activation_global_scale  f32; absent: the weight's
//! activation_scale_scale   f32; absent: 1, or 4 / 6 for states of other software
//! activation_encoding      u8; absent: 0, the weight's format (`ActivationEncoding`)
//! ```
//!
//! Shapes and group size are those of the buffers; a layer built empty answers with what it was
//! built for until a state is loaded.

mod build;
mod encoding;
mod options;
mod parts;
mod regrid;
pub mod state;
mod weight;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use fp4_core::backend::erased::Backend;
use fp4_core::{FloatType, Format, GroupSize, PackedMatrix, PackedShape, QuantSpec, ScaleType};

pub use encoding::ActivationEncoding;
pub use fp4_core::OwnedTransform as StoredTransform;
pub use options::DenseOptions;
pub use parts::Parts;
pub(crate) use weight::{Prepared, SharedTransform, SharedWeight};

use crate::error::Error;
use crate::run::Routing;
use crate::run::counters::Counters;
use crate::run::routing::{Backends, Choice};
use crate::run::runtime::Runtime;

/// A linear layer y = x * W^T whose weight is stored in FP4 and whose activations are quantized to
/// FP4, or MXINT8, on the way in; the product is exact and rounded once, so the bits are the same
/// on every backend, batch size and device.
///
/// It applies no bias unless it is given one. Layers share a [`Runtime`]; `Clone` shares the weight
/// too, prepared forms included. Any number of threads may call a layer at once, from any thread
/// pool.
pub struct QuantLinear {
    pub(crate) name: Option<Arc<str>>,
    pub(crate) contents: Contents,
    pub(crate) dtype: FloatType,
    pub(crate) routing: Routing,
    pub(crate) warned: Warned,
    pub(crate) counters: Option<Arc<Counters>>,
}

/// What the layer holds: nothing yet, or a weight with its settings.
#[derive(Debug, Clone)]
pub(crate) enum Contents {
    Empty { in_features: usize, out_features: usize, spec: QuantSpec, bias: bool },
    Loaded(Arc<Loaded>),
}

/// What a layer has warned of: once each.
#[derive(Debug, Default)]
pub(crate) struct Warned {
    /// A choice of backend that cannot be honoured, for each role.
    pub(crate) refused: [AtomicBool; 2],
    /// Activations beyond the range of their scale.
    pub(crate) saturated: AtomicBool,
    /// Groups of activations that became zeros.
    pub(crate) flushed: AtomicBool,
}

#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) weight: Arc<SharedWeight>,
    pub(crate) transform: Option<Arc<SharedTransform>>,
    pub(crate) weight_global_scale: f32,
    /// The weight's format with both activation scalars, resolved.
    pub(crate) spec: QuantSpec,
    pub(crate) activations: ActivationEncoding,
    /// What activations are quantized by.
    pub(crate) quantized_by: QuantSpec,
    /// Added to every output before its last rounding.
    pub(crate) bias: Option<Arc<[f32]>>,
}

impl QuantLinear {
    /// Replaces the weight, the transform and the scalars; backends and device stay.
    pub(crate) fn replace(&mut self, parts: Parts, bias: Option<Vec<f32>>) -> Result<(), Error> {
        let mut loaded = Loaded::new(parts)?;
        loaded.bias = bias.map(Arc::from);
        if let Some(transform) = &loaded.transform {
            self.dtype = transform.stored().values().float_type();
        }
        self.contents = Contents::Loaded(Arc::new(loaded));
        self.warned = Warned::default();
        Ok(())
    }

    /// The layer's name in messages and errors: its prefix in the state that it was loaded from,
    /// unless another was given.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Names the layer, for messages and errors.
    pub fn set_name(&mut self, name: &str) {
        self.name = Some(name.into());
    }

    /// Runs `f`, and says in its error which layer it was.
    pub(crate) fn named<R>(&self, f: impl FnOnce() -> Result<R, Error>) -> Result<R, Error> {
        f().map_err(|error| self.name_error(error))
    }

    /// An error that says which layer it was.
    pub(crate) fn name_error(&self, error: Error) -> Error {
        match &self.name {
            Some(name) => Error::Layer { name: name.to_string(), error: Box::new(error) },
            None => error,
        }
    }

    /// How log lines of this layer begin: "layer `name`: ", or nothing.
    pub(crate) fn prefix(&self) -> impl fmt::Display + '_ {
        struct Prefix<'a>(Option<&'a str>);
        impl fmt::Display for Prefix<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.map_or(Ok(()), |name| write!(f, "layer `{name}`: "))
            }
        }
        Prefix(self.name())
    }

    pub(crate) fn loaded(&self) -> Result<&Arc<Loaded>, Error> {
        match &self.contents {
            Contents::Loaded(loaded) => Ok(loaded),
            Contents::Empty { in_features, out_features, .. } => {
                Err(Error::Empty { in_features: *in_features, out_features: *out_features })
            }
        }
    }

    /// Input features, K.
    pub fn in_features(&self) -> usize {
        match &self.contents {
            Contents::Loaded(l) => l.weight.shape().k(),
            Contents::Empty { in_features, .. } => *in_features,
        }
    }

    /// Output features, N.
    pub fn out_features(&self) -> usize {
        match &self.contents {
            Contents::Loaded(l) => l.weight.shape().rows(),
            Contents::Empty { out_features, .. } => *out_features,
        }
    }

    fn spec(&self) -> &QuantSpec {
        match &self.contents {
            Contents::Loaded(l) => &l.spec,
            Contents::Empty { spec, .. } => spec,
        }
    }

    /// Elements that share a scale.
    pub fn group_size(&self) -> GroupSize {
        self.spec().group()
    }

    /// Type of the scale bytes.
    pub fn scale_type(&self) -> ScaleType {
        self.spec().scale_type()
    }

    /// The matmul format, if group size and scale type make one (an empty layer's may not).
    pub fn format(&self) -> Option<Format> {
        Format::from_parts(self.scale_type(), self.group_size())
    }

    /// Global scale of the weight.
    pub fn weight_global_scale(&self) -> f32 {
        match &self.contents {
            Contents::Loaded(l) => l.weight_global_scale,
            Contents::Empty { spec, .. } => spec.global_scale(),
        }
    }

    /// Global scale of activations, resolved.
    pub fn activation_global_scale(&self) -> f32 {
        self.spec().global_scale()
    }

    /// Scale-scale of activations, resolved.
    pub fn activation_scale_scale(&self) -> f32 {
        self.spec().scale_scale()
    }

    /// The packed weight, bit for bit. A copy: a layer that has run keeps its weight in the form of
    /// the backend that multiplies, and nothing beside it.
    ///
    /// # Errors
    /// [`Error::Empty`]; an error of the backend that has the weight.
    pub fn weight(&self) -> Result<PackedMatrix, Error> {
        Ok(Arc::unwrap_or_clone(self.loaded()?.weight.packed()?))
    }

    /// The transform, if any.
    pub fn transform(&self) -> Option<&StoredTransform> {
        match &self.contents {
            Contents::Loaded(l) => l.transform.as_deref().map(SharedTransform::stored),
            Contents::Empty { .. } => None,
        }
    }

    /// Shape of the weight, if there is one.
    pub fn weight_shape(&self) -> Option<PackedShape> {
        self.loaded().ok().map(|l| l.weight.shape())
    }

    /// The layer's float type: that of the stored transform.
    pub fn dtype(&self) -> FloatType {
        self.dtype
    }

    /// Changes the float type: converts the stored transform once, and nothing else. Codes,
    /// scales and scalars stay as they are.
    pub fn set_dtype(&mut self, dtype: FloatType) {
        self.dtype = dtype;
        let Contents::Loaded(loaded) = &self.contents else { return };
        let Some(transform) = &loaded.transform else { return };
        let transform = Arc::new(SharedTransform::new(transform.stored().converted(dtype)));
        self.contents = Contents::Loaded(Arc::new(Loaded {
            weight: loaded.weight.clone(),
            transform: Some(transform),
            weight_global_scale: loaded.weight_global_scale,
            spec: loaded.spec,
            activations: loaded.activations,
            quantized_by: loaded.quantized_by,
            bias: loaded.bias.clone(),
        }));
    }

    /// Gives the layer a bias, one value for each output feature, or takes it away. It is added in
    /// f32 before the one rounding to the output's type (C6), and saved with the state.
    ///
    /// # Errors
    /// [`Error::Empty`]; [`Error::BiasLen`].
    pub fn set_bias(&mut self, bias: Option<&[f32]>) -> Result<(), Error> {
        let loaded = self.loaded()?;
        let out_features = self.out_features();
        if let Some(got) = bias.map(<[f32]>::len).filter(|&len| len != out_features) {
            return Err(Error::BiasLen { out_features, got });
        }
        self.contents = Contents::Loaded(Arc::new(Loaded {
            weight: loaded.weight.clone(),
            transform: loaded.transform.clone(),
            weight_global_scale: loaded.weight_global_scale,
            spec: loaded.spec,
            activations: loaded.activations,
            quantized_by: loaded.quantized_by,
            bias: bias.map(Arc::from),
        }));
        Ok(())
    }

    /// The layer with this bias; see [`set_bias`](Self::set_bias).
    ///
    /// # Errors
    /// As [`set_bias`](Self::set_bias).
    pub fn with_bias(mut self, bias: &[f32]) -> Result<Self, Error> {
        self.set_bias(Some(bias))?;
        Ok(self)
    }

    /// How activations are quantized.
    pub fn activations(&self) -> ActivationEncoding {
        match &self.contents {
            Contents::Loaded(l) => l.activations,
            Contents::Empty { .. } => ActivationEncoding::Own,
        }
    }

    /// Chooses how activations are quantized; saved with the state. The weight and the scalars stay
    /// as they are.
    ///
    /// # Errors
    /// [`Error::Empty`]; [`fp4_core::Error::KNotWholeGroups`] for MXINT8 if the input features are
    /// not whole groups of 32, [`fp4_core::Error::RowScales`] unless the format is NVFP4.
    pub fn set_activations(&mut self, activations: ActivationEncoding) -> Result<(), Error> {
        let loaded = self.loaded()?;
        activations.check(loaded.weight.shape(), loaded.spec)?;
        self.contents = Contents::Loaded(Arc::new(Loaded {
            weight: loaded.weight.clone(),
            transform: loaded.transform.clone(),
            weight_global_scale: loaded.weight_global_scale,
            spec: loaded.spec,
            activations,
            quantized_by: activations.spec(loaded.spec)?,
            bias: loaded.bias.clone(),
        }));
        self.warned = Warned::default();
        Ok(())
    }

    /// The layer with its activations quantized so; see [`set_activations`](Self::set_activations).
    ///
    /// # Errors
    /// As [`set_activations`](Self::set_activations).
    pub fn with_activations(mut self, activations: ActivationEncoding) -> Result<Self, Error> {
        self.set_activations(activations)?;
        Ok(self)
    }

    /// The bias, if there is one.
    pub fn bias(&self) -> Option<&[f32]> {
        match &self.contents {
            Contents::Loaded(l) => l.bias.as_deref(),
            Contents::Empty { .. } => None,
        }
    }

    /// What the layer runs on; [`Runtime::shared`] unless another was given.
    pub fn runtime(&self) -> &Runtime {
        self.routing.runtime()
    }

    /// Makes the layer run on `runtime`: share one among the layers of a model. Choices of backends
    /// stay; a device that the new runtime does not have is left for the host. Forms of the weight
    /// that only the old runtime's backends can use are dropped, unless a clone of the layer shares
    /// them.
    pub fn set_runtime(&mut self, runtime: &Runtime) {
        self.routing.set_runtime(runtime.clone());
        self.warned = Warned::default();
        if let Contents::Loaded(loaded) = &self.contents {
            let list = runtime.backends().list();
            if Arc::strong_count(loaded) == 1 && Arc::strong_count(&loaded.weight) == 1 {
                loaded.weight.keep_only(list);
            }
            if let Some(transform) = loaded.transform.as_ref().filter(|t| Arc::strong_count(t) == 1)
            {
                transform.keep_only(list);
            }
        }
    }

    /// Replaces the list of backends to choose from by a runtime of this layer's own. Clones of one
    /// list share their devices; layers that are to share scratch too take one [`Runtime`].
    pub fn set_backends(&mut self, backends: Backends) {
        self.set_runtime(&Runtime::new(backends));
    }

    /// Chooses who quantizes activations; independent of the matmul.
    pub fn set_quantizer(&mut self, choice: impl Into<Choice>) {
        self.routing.quantizer = choice.into();
        self.warned = Warned::default();
    }

    /// Chooses who multiplies; independent of the quantizer.
    pub fn set_matmul(&mut self, choice: impl Into<Choice>) {
        self.routing.matmul = choice.into();
        self.warned = Warned::default();
    }

    /// Moves the layer to the memory of the backend of this name (`None`: the host). Changes no
    /// byte of the state; the weight is prepared there at the next forward, and roles left to
    /// themselves prefer that backend.
    ///
    /// # Errors
    /// [`Error::NoDevice`] if no backend of that name keeps tensors in its own memory.
    pub fn set_device(&mut self, device: Option<&str>) -> Result<(), Error> {
        if let Some(name) = device {
            let list = self.runtime().backends().list();
            let resident = || list.iter().filter(|b| b.as_resident().is_some()).map(Backend::name);
            if !resident().any(|n| n == name) {
                let names: Vec<_> = resident().collect();
                let available =
                    if names.is_empty() { "none".to_string() } else { names.join(", ") };
                return Err(Error::NoDevice { name: name.to_string(), available });
            }
        }
        self.routing.device = device.map(str::to_string);
        Ok(())
    }

    /// Name of the backend whose memory the layer lives in; `None` is the host.
    pub fn device(&self) -> Option<&str> {
        self.routing.device.as_deref()
    }

    /// Turns counting on or off (off at first): what quantizing the activations did to them, and
    /// the paths that the matmul took. It costs next to nothing on the host; a device is waited
    /// for.
    ///
    /// Counted or not, a layer warns once, by its name, where in a call more than
    /// [`SATURATED_SHARE`](crate::SATURATED_SHARE) of the groups or elements saturate, and once
    /// where more than [`FLUSHED_SHARE`](crate::FLUSHED_SHARE) of the groups become zeros; of
    /// activations that stay on a device only if counting is on. Another scale, encoding or
    /// backend, and a clone, begin anew.
    pub fn set_counting(&mut self, on: bool) {
        self.counters = on.then(Arc::default);
    }

    /// The counters, if they are on.
    pub fn counters(&self) -> Option<&Counters> {
        self.counters.as_deref()
    }
}

impl Clone for QuantLinear {
    fn clone(&self) -> Self {
        QuantLinear {
            name: self.name.clone(),
            contents: self.contents.clone(),
            dtype: self.dtype,
            routing: self.routing.clone(),
            warned: Warned::default(),
            counters: self.counters.as_ref().map(|_| Arc::default()),
        }
    }
}

impl fmt::Debug for QuantLinear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuantLinear")
            .field("name", &self.name)
            .field("in_features", &self.in_features())
            .field("out_features", &self.out_features())
            .field("empty", &self.is_empty())
            .field("spec", self.spec())
            .field("activations", &self.activations())
            .field("weight_global_scale", &self.weight_global_scale())
            .field("transform", &self.transform())
            .field("bias", &self.bias().is_some())
            .field("dtype", &self.dtype)
            .field("quantizer", &self.routing.quantizer)
            .field("matmul", &self.routing.matmul)
            .field("device", &self.routing.device)
            .finish_non_exhaustive()
    }
}
