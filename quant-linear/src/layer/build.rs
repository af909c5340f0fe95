//! Building layers: from parts, from a dense weight, or empty.

use std::sync::Arc;

use fp4_core::reference::quantize as reference_quantize;
use fp4_core::{
    FloatSlice, FloatType, GroupSize, PackedMatrix, QuantSpec, QuantizeInput, ScaleType,
};

use crate::error::Error;
use crate::layer::{
    Contents, DenseOptions, Loaded, Parts, QuantLinear, SharedTransform, SharedWeight,
    StoredTransform, Warned,
};
use crate::run::Routing;
use crate::run::routing::Backends;
use crate::run::runtime::Runtime;
use crate::transform::{for_each_transformed, transformed_amax};

impl Loaded {
    pub(super) fn new(parts: Parts) -> Result<Self, Error> {
        let spec = parts.check()?;
        let activations = parts.activations;
        if parts.activation_scale_scale.is_none() {
            log::warn!(
                "activation_scale_scale is absent and taken as 1; useful values are 4 for MXFP4 \
                 and 6 for NVFP4"
            );
        }
        Ok(Loaded {
            weight: Arc::new(SharedWeight::new(parts.weight)),
            transform: parts.transform.map(|t| Arc::new(SharedTransform::new(t))),
            weight_global_scale: parts.weight_global_scale,
            spec,
            activations,
            quantized_by: activations.spec(spec)?,
            bias: None,
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
        let dtype = parts.transform.as_ref().map_or(FloatType::F32, |t| t.values().float_type());
        Ok(Self::with_contents(Contents::Loaded(Arc::new(Loaded::new(parts)?)), dtype))
    }

    /// Quantizes a dense (out, in) weight, after the optional transform, on every backend
    /// available.
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
        let backends = Runtime::shared().backends();
        Self::quantized(backends, weight.into(), [out_features, in_features], options)
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
        let layer = Self::quantized(backends, weight.into(), [out_features, in_features], options);
        let mut layer = layer?;
        layer.set_backends(backends.clone());
        Ok(layer)
    }

    fn quantized(
        backends: &Backends,
        weight: FloatSlice<'_>,
        [out_features, in_features]: [usize; 2],
        options: &DenseOptions,
    ) -> Result<Self, Error> {
        let transform = options.transform.as_ref().map(StoredTransform::view).transpose()?;
        if out_features.checked_mul(in_features) != Some(weight.len()) {
            return Err(Error::WeightLen { out_features, in_features, got: weight.len() });
        }
        // Passes over the whole weight: only where their results are used, and the second ends with
        // the first group that is not in the format already.
        let amax = match options.needs_amax() {
            true => transformed_amax(weight, in_features, transform.as_ref())?,
            false => 0.0,
        };
        let mut regrid = options.regrid();
        if let Some(regrid) = &mut regrid {
            for_each_transformed(weight, in_features, transform.as_ref(), |y| {
                regrid.feed(y);
                !regrid.is_settled()
            })?;
        }
        let spec = options.with_found(regrid.and_then(|r| r.found())).weight_spec(amax)?;
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
        let layer = Self::from_parts(Parts {
            weight: packed,
            transform: options.transform.clone(),
            weight_global_scale: spec.global_scale(),
            activation_global_scale: Some(activation.global_scale()),
            activation_scale_scale: Some(activation.scale_scale()),
            activations: options.activations,
        })?;
        layer.loaded()?.alpha()?; // a layer made here must be able to run
        Ok(layer)
    }

    /// A layer with no weight yet: groups of 32, e8m0 scales, global scale 1. With `bias`, a bias
    /// of the state that is loaded is applied; without, the load options decide.
    ///
    /// # Errors
    /// [`fp4_core::Error::KNotWholeGroups`] unless `in_features` is a multiple of 32.
    pub fn empty(in_features: usize, out_features: usize, bias: bool) -> Result<Self, Error> {
        let (group, scale_type) = (GroupSize::G32, ScaleType::E8M0);
        let mut layer = Self::empty_with(in_features, out_features, group, scale_type, 1.0)?;
        if let Contents::Empty { bias: applied, .. } = &mut layer.contents {
            *applied = bias;
        }
        Ok(layer)
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
        let contents = Contents::Empty { in_features, out_features, spec, bias: false };
        Ok(Self::with_contents(contents, FloatType::F32))
    }

    fn with_contents(contents: Contents, dtype: FloatType) -> Self {
        QuantLinear {
            name: None,
            contents,
            dtype,
            routing: Routing::default(),
            warned: Warned::default(),
            counters: None,
        }
    }
}
