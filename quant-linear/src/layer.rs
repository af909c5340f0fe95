//! The layer: packed weight, optional transform, three scalars, and how it is built.
//!
//! ```text
//! e2m1                     (out, in / 2)  u8, two codes a byte
//! scale_quant              (out, in / G)  scale bytes; their type names the format
//! transform                absent, (Bt, Bt) or (in / Bt, Bt, Bt)
//! weight_global_scale      f32
//! activation_global_scale  f32; absent: the weight's
//! activation_scale_scale   f32; absent: 1, or 4 / 6 for states of other software
//! ```
//!
//! Shapes and group size are those of the buffers; a layer built empty answers with what it was
//! built for until a state is loaded (DESIGN section 7).

use std::sync::Arc;

use fp4_core::backend::erased::Backend;
use fp4_core::reference::quantize as reference_quantize;
use fp4_core::{
    FloatSlice, FloatType, Format, GroupSize, PackedMatrix, PackedShape, QuantSpec, QuantizeInput,
    ScaleType, Transform, nvfp4_global_scale,
};

use crate::counters::Counters;
use crate::error::Error;
use crate::forward::Prepared;
use crate::routing::{Backends, Choice, Routing};
use crate::values::FloatVec;

/// A stored block transform: values and shape, (Bt, Bt) or (blocks, Bt, Bt).
#[derive(Debug, Clone, PartialEq)]
pub struct StoredTransform {
    values: FloatVec,
    shape: Vec<usize>,
}

impl StoredTransform {
    /// Values of a transform and their shape, (Bt, Bt) or (blocks, Bt, Bt).
    ///
    /// # Errors
    /// [`fp4_core::Error::TransformBlock`] or [`fp4_core::Error::Len`] if the shape is no transform
    /// or the values do not fill it.
    pub fn new(values: FloatVec, shape: Vec<usize>) -> Result<Self, Error> {
        Transform::from_shape(values.as_slice(), &shape)?;
        Ok(StoredTransform { values, shape })
    }

    /// The orthonormal Hadamard matrix of `block` x `block`, shared by all blocks, in f32.
    ///
    /// # Errors
    /// [`fp4_core::Error::TransformBlock`] unless `block` is 16, 32, 64 or 128.
    pub fn hadamard(block: usize) -> Result<Self, Error> {
        let size = GroupSize::new(block)
            .map_err(|_| fp4_core::Error::TransformBlock { got: block })?
            .get();
        let mut values = vec![0f32; size * size];
        fp4_core::hadamard(size, &mut values)?;
        Self::new(FloatVec::F32(values), vec![size, size])
    }

    /// The transform, borrowed.
    ///
    /// # Errors
    /// None in practice: the shape was checked when it was built.
    pub fn view(&self) -> Result<Transform<'_>, Error> {
        Ok(Transform::from_shape(self.values.as_slice(), &self.shape)?)
    }

    /// The stored values.
    pub fn values(&self) -> &FloatVec {
        &self.values
    }

    /// The stored shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }
}

/// Everything a layer is made of: what a state holds.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Packed weight, (out, in).
    pub weight: PackedMatrix,
    /// Transform of activations (the weight was transformed before it was quantized).
    pub transform: Option<StoredTransform>,
    /// Global scale of the weight.
    pub weight_global_scale: f32,
    /// Global scale of activations; `None` takes the weight's.
    pub activation_global_scale: Option<f32>,
    /// Scale-scale of activations; `None` takes 1, with a warning.
    pub activation_scale_scale: Option<f32>,
}

/// How a dense weight is quantized.
#[derive(Debug, Clone)]
pub struct DenseOptions {
    /// The format.
    pub format: Format,
    /// Applied to the weight before it is quantized, and to activations in every forward.
    pub transform: Option<StoredTransform>,
    /// `None`: 1/3 for MXFP4; for NVFP4 amax / 2688 of the (transformed) weight, which must be
    /// finite then (C4).
    pub weight_global_scale: Option<f32>,
    /// `None`: 1/3 for MXFP4, 0.1 for NVFP4. Never the weight's: a stored constant, so that a
    /// row's bits do not depend on its batch.
    pub activation_global_scale: Option<f32>,
}

impl DenseOptions {
    /// The usual settings of a format, with no transform.
    pub fn new(format: Format) -> Self {
        DenseOptions {
            format,
            transform: None,
            weight_global_scale: None,
            activation_global_scale: None,
        }
    }

    /// The settings for the weight itself, whose largest (transformed) magnitude is `amax`.
    ///
    /// # Errors
    /// [`fp4_core::Error::ScaleSetting`] for a given global scale that is not legal, or for NVFP4
    /// without one if `amax` is not finite.
    pub fn weight_spec(&self, amax: f32) -> Result<QuantSpec, Error> {
        let usual = QuantSpec::usual(self.format);
        let global_scale = match (self.weight_global_scale, self.format) {
            (Some(given), _) => given,
            (None, Format::MxFp4) => usual.global_scale(),
            (None, Format::NvFp4) => nvfp4_global_scale(amax)?,
        };
        Ok(QuantSpec::new(
            self.format.scale_type(),
            self.format.group(),
            global_scale,
            usual.scale_scale(),
        )?)
    }

    /// The settings for activations.
    ///
    /// # Errors
    /// [`fp4_core::Error::ScaleSetting`] for a given global scale that is not legal.
    pub fn activation_spec(&self) -> Result<QuantSpec, Error> {
        let usual = QuantSpec::usual(self.format);
        Ok(QuantSpec::new(
            self.format.scale_type(),
            self.format.group(),
            self.activation_global_scale.unwrap_or(usual.global_scale()),
            usual.scale_scale(),
        )?)
    }
}

/// A linear layer y = x * W^T whose weight is stored in FP4 and whose activations are quantized to
/// FP4 on the way in; the product is exact and rounded once, so the bits are the same on every
/// backend, batch size and device.
///
/// It applies no bias. `Clone` shares the weight.
#[derive(Debug)]
pub struct QuantLinear {
    pub(crate) contents: Contents,
    pub(crate) dtype: FloatType,
    pub(crate) routing: Routing,
    pub(crate) prepared: Prepared,
    pub(crate) counters: Option<Arc<Counters>>,
}

/// What the layer holds: nothing yet, or a weight with its settings.
#[derive(Debug, Clone)]
pub(crate) enum Contents {
    Empty { in_features: usize, out_features: usize, spec: QuantSpec },
    Loaded(Arc<Loaded>),
}

#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) weight: Arc<PackedMatrix>,
    pub(crate) transform: Option<StoredTransform>,
    pub(crate) weight_global_scale: f32,
    /// Settings of the activations' quantization: both activation scalars, resolved.
    pub(crate) spec: QuantSpec,
}

/// Rows that a weight with no columns may have: they cost memory for metadata and no file bytes.
const MAX_ROWS_OF_NOTHING: usize = 1 << 24;

impl Parts {
    /// Checks that the parts make a layer, and resolves the settings of the activations.
    ///
    /// # Errors
    /// As [`QuantLinear::from_parts`].
    pub fn check(&self) -> Result<QuantSpec, Error> {
        let shape = self.weight.shape();
        shape.expect_format()?;
        if shape.k() == 0 && shape.rows() > MAX_ROWS_OF_NOTHING {
            return Err(Error::NoColumns { rows: shape.rows(), max: MAX_ROWS_OF_NOTHING });
        }
        if let Some(transform) = &self.transform {
            transform.view()?.expect_k(shape.k())?;
        }
        let new = |gs, ss| QuantSpec::new(shape.scale_type(), shape.group(), gs, ss);
        // The weight's own scale must be legal too; 1 stands in for its unknown scale-scale.
        new(self.weight_global_scale, 1.0)?;
        Ok(new(
            self.activation_global_scale.unwrap_or(self.weight_global_scale),
            self.activation_scale_scale.unwrap_or(1.0),
        )?)
    }
}

impl Loaded {
    fn new(parts: Parts) -> Result<Self, Error> {
        let spec = parts.check()?;
        if parts.activation_scale_scale.is_none() {
            log::warn!(
                "activation_scale_scale is absent and taken as 1; useful values are 4 for MXFP4 \
                 and 6 for NVFP4"
            );
        }
        Ok(Loaded {
            weight: Arc::new(parts.weight),
            transform: parts.transform,
            weight_global_scale: parts.weight_global_scale,
            spec,
        })
    }
}

impl QuantLinear {
    /// A layer of packed parts, on every backend available.
    ///
    /// # Errors
    /// A format that is neither MXFP4 nor NVFP4, a transform that does not fit, or scalars that are
    /// not finite and above zero.
    pub fn from_parts(parts: Parts) -> Result<Self, Error> {
        let dtype = parts.transform.as_ref().map_or(FloatType::F32, |t| t.values.float_type());
        Ok(Self::with_contents(Contents::Loaded(Arc::new(Loaded::new(parts)?)), dtype))
    }

    /// Quantizes a dense (out, in) weight, after the optional transform, on every backend available.
    ///
    /// # Errors
    /// Shapes that do not fit the format or the transform, illegal scalars, or an alpha that is not
    /// finite and above zero.
    pub fn from_dense<'a>(
        weight: impl Into<FloatSlice<'a>>,
        out_features: usize,
        in_features: usize,
        options: &DenseOptions,
    ) -> Result<Self, Error> {
        Self::from_dense_on(&Backends::available(), weight, out_features, in_features, options)
    }

    /// As [`from_dense`](Self::from_dense), by the first of `backends` that can quantize the weight;
    /// the layer keeps a clone of the list.
    ///
    /// # Errors
    /// As [`from_dense`](Self::from_dense).
    pub fn from_dense_on<'a>(
        backends: &Backends,
        weight: impl Into<FloatSlice<'a>>,
        out_features: usize,
        in_features: usize,
        options: &DenseOptions,
    ) -> Result<Self, Error> {
        let weight = weight.into();
        let transform = options.transform.as_ref().map(StoredTransform::view).transpose()?;
        let amax = transformed_amax(weight, in_features, transform.as_ref())?;
        let spec = options.weight_spec(amax)?;
        let input = QuantizeInput::new(weight, out_features, in_features, &spec)?
            .with_transform(transform)?;
        let mut packed = PackedMatrix::zeros(input.shape());
        // The fastest quantizer, where one can; the reference always can.
        let query = input.query();
        let quantizers = backends.list().iter().filter_map(|b| b.quantizer());
        match quantizers.into_iter().find(|q| q.supports_quantize(&query).is_ok()) {
            Some(quantizer) => quantizer.quantize(&input, &mut packed.view_mut())?,
            None => reference_quantize(&input, &mut packed.view_mut())?,
        };
        let activation = options.activation_spec()?;
        let mut layer = Self::from_parts(Parts {
            weight: packed,
            transform: options.transform.clone(),
            weight_global_scale: spec.global_scale(),
            activation_global_scale: Some(activation.global_scale()),
            activation_scale_scale: Some(activation.scale_scale()),
        })?;
        layer.loaded()?.alpha()?; // a layer made here must be able to run
        layer.set_backends(backends.clone());
        Ok(layer)
    }

    /// A layer with no weight yet: groups of 32, e8m0 scales, global scale 1. `bias` is accepted
    /// for the sake of callers that pass one; the layer never applies a bias.
    ///
    /// # Errors
    /// [`fp4_core::Error::KNotWholeGroups`] unless `in_features` is a multiple of 32.
    pub fn empty(in_features: usize, out_features: usize, bias: bool) -> Result<Self, Error> {
        let _ = bias;
        Self::empty_with(in_features, out_features, GroupSize::G32, ScaleType::E8M0, 1.0)
    }

    /// A layer with no weight yet, of a given group size, scale type and global scale.
    ///
    /// # Errors
    /// As [`QuantLinear::empty`], and for a global scale that is not legal.
    pub fn empty_with(
        in_features: usize,
        out_features: usize,
        group: GroupSize,
        scale_type: ScaleType,
        global_scale: f32,
    ) -> Result<Self, Error> {
        let spec = QuantSpec::new(scale_type, group, global_scale, 1.0)?;
        spec.shape(out_features, in_features)?;
        Ok(Self::with_contents(Contents::Empty { in_features, out_features, spec }, FloatType::F32))
    }

    fn with_contents(contents: Contents, dtype: FloatType) -> Self {
        QuantLinear {
            contents,
            dtype,
            routing: Routing::default(),
            prepared: Prepared::default(),
            counters: None,
        }
    }

    /// Replaces the weight, the transform and the scalars; backends and device stay.
    pub(crate) fn replace(&mut self, parts: Parts) -> Result<(), Error> {
        let loaded = Loaded::new(parts)?;
        if let Some(transform) = &loaded.transform {
            self.dtype = transform.values.float_type();
        }
        self.contents = Contents::Loaded(Arc::new(loaded));
        self.prepared = Prepared::default();
        Ok(())
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

    /// The packed weight.
    ///
    /// # Errors
    /// [`Error::Empty`].
    pub fn weight(&self) -> Result<&PackedMatrix, Error> {
        Ok(&self.loaded()?.weight)
    }

    /// The transform, if any.
    pub fn transform(&self) -> Option<&StoredTransform> {
        match &self.contents {
            Contents::Loaded(l) => l.transform.as_ref(),
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
        let transform = StoredTransform {
            values: transform.values.converted(dtype),
            shape: transform.shape.clone(),
        };
        self.contents = Contents::Loaded(Arc::new(Loaded {
            weight: loaded.weight.clone(),
            transform: Some(transform),
            weight_global_scale: loaded.weight_global_scale,
            spec: loaded.spec,
        }));
        self.prepared.forget_transforms();
    }

    /// Replaces the list of backends to choose from, at first [`Backends::available`]. Clones of one
    /// list share their devices. A device that the new list does not have is left for the host.
    pub fn set_backends(&mut self, backends: Backends) {
        self.routing.set_backends(backends);
        self.prepared = Prepared::default();
    }

    /// Chooses who quantizes activations; independent of the matmul.
    pub fn set_quantizer(&mut self, choice: impl Into<Choice>) {
        self.routing.quantizer = choice.into();
        self.prepared.forget_warnings();
    }

    /// Chooses who multiplies; independent of the quantizer.
    pub fn set_matmul(&mut self, choice: impl Into<Choice>) {
        self.routing.matmul = choice.into();
        self.prepared.forget_warnings();
    }

    /// Moves the layer to the memory of the backend of this name (`None`: the host). Changes no
    /// byte of the state; the weight is prepared there at the next forward, and roles left to
    /// themselves prefer that backend.
    ///
    /// # Errors
    /// [`Error::NoDevice`] if no backend of that name keeps tensors in its own memory.
    pub fn set_device(&mut self, device: Option<&str>) -> Result<(), Error> {
        if let Some(name) = device {
            let list = self.routing.backends().list();
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

    /// Turns counting on or off (off at first): saturated elements, NaN groups, paths taken.
    /// Counting costs a second, scalar look at every activation.
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
            contents: self.contents.clone(),
            dtype: self.dtype,
            routing: self.routing.clone(),
            prepared: Prepared::default(),
            counters: self.counters.as_ref().map(|_| Arc::default()),
        }
    }
}

/// Largest magnitude of a (rows, k) matrix after the optional transform; NaN if any value is NaN.
///
/// # Errors
/// Shapes that do not fit.
pub fn transformed_amax(
    values: FloatSlice<'_>,
    k: usize,
    transform: Option<&Transform<'_>>,
) -> Result<f32, Error> {
    use fp4_core::{Float, with_floats};
    fn amax<T: Float>(values: &[T]) -> f32 {
        values.iter().fold(0f32, |amax, &x| {
            let x = x.to_f32().abs();
            if amax.is_nan() || x.is_nan() { f32::NAN } else { amax.max(x) }
        })
    }
    match transform {
        None => Ok(with_floats!(FloatSlice, values, v => amax(v))),
        Some(t) => {
            let mut y = FloatVec::zeros(values.float_type(), values.len());
            fp4_core::reference::apply_transform(values, k, t, y.as_mut_slice())?;
            Ok(with_floats!(FloatSlice, y.as_slice(), v => amax(v)))
        }
    }
}
