//! The layer.

use std::path::PathBuf;

use fp4_core::{FloatType, Format, GroupSize, OwnedTransform, ScaleRule, ScaleType};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use quant_linear::{ActivationEncoding, DenseOptions, FloatVec, QuantLinear};

use crate::arrays::{self, Dense, DenseTransform, bytes, floats, out, out_bytes, values};
use crate::call;
use crate::error::{Failure, parse};
use crate::spec::Spec;
use crate::state::{Given, Options, State, taken};

/// A linear layer whose weight is stored in FP4: y = x * W^T, plus a bias if it has one.
#[pyclass(frozen, module = "exact_fp4._core")]
pub(crate) struct Layer(pub(crate) QuantLinear);

/// The activation encoding of a name.
fn activations(name: &str) -> Result<ActivationEncoding, Failure> {
    Ok(name.parse()?)
}

#[pymethods]
impl Layer {
    /// Quantizes a dense (out, in) weight, after the transform.
    #[staticmethod]
    #[pyo3(signature = (
        weight, shape, format, transform, scale_rule, weight_global_scale, activation_global_scale,
        activation_encoding, bias
    ))]
    fn from_dense<'py>(
        py: Python<'py>,
        weight: Dense<'py>,
        shape: [usize; 2],
        format: &str,
        transform: Option<DenseTransform<'py>>,
        scale_rule: &str,
        weight_global_scale: Option<f32>,
        activation_global_scale: Option<f32>,
        activation_encoding: &str,
        bias: Option<arrays::Bytes<'py>>,
    ) -> PyResult<Self> {
        let weight = floats(&weight)?;
        let transform = transform.as_ref().map(arrays::transform).transpose()?;
        let bias = bias.as_ref().map(bytes).transpose()?.map(values::<f32>).transpose()?;
        let options = DenseOptions {
            transform: transform.map(OwnedTransform::from),
            scale_rule: parse::<ScaleRule>(scale_rule)?,
            weight_global_scale,
            activation_global_scale,
            activations: activations(activation_encoding)?,
            ..DenseOptions::new(parse::<Format>(format)?)
        };
        call::run(py, move || {
            let [out_features, in_features] = shape;
            let layer = QuantLinear::from_dense(weight, out_features, in_features, &options)?;
            Ok(Layer(match bias {
                Some(bias) => layer.with_bias(bias)?,
                None => layer,
            }))
        })
    }

    /// The layer of a state.
    #[staticmethod]
    fn from_state<'py>(
        py: Python<'py>,
        state: Given<'py>,
        prefix: &str,
        options: Options,
    ) -> PyResult<Self> {
        let (state, options) = (State::of(&state)?, options.read()?);
        call::run(py, move || Ok(Layer(QuantLinear::from_state(&state, prefix, &options)?)))
    }

    /// A layer with no weight yet.
    #[staticmethod]
    fn empty(
        py: Python<'_>,
        in_features: usize,
        out_features: usize,
        group_size: usize,
        scale_type: &str,
        global_scale: f32,
    ) -> PyResult<Self> {
        let scale_type: ScaleType = parse(scale_type)?;
        let group = GroupSize::new(group_size).map_err(Failure::from)?;
        call::run(py, move || {
            let empty = QuantLinear::empty_with;
            Ok(Layer(empty(in_features, out_features, group, scale_type, global_scale)?))
        })
    }

    /// The same layer, weight shared, with backends named for the roles, or left to choose.
    #[pyo3(signature = (quantizer, matmul))]
    fn with_backends(&self, quantizer: Option<&str>, matmul: Option<&str>) -> Self {
        let mut layer = self.0.clone();
        layer.set_quantizer(quantizer.map_or(Default::default(), quant_linear::Choice::from));
        layer.set_matmul(matmul.map_or(Default::default(), quant_linear::Choice::from));
        Layer(layer)
    }

    /// The same layer, weight shared, under a name for messages.
    fn with_name(&self, name: &str) -> Self {
        let mut layer = self.0.clone();
        layer.set_name(name);
        Layer(layer)
    }

    /// The same layer with its transform in another type, each value rounded once.
    fn with_dtype(&self, dtype: &str) -> Result<Self, Failure> {
        let mut layer = self.0.clone();
        layer.set_dtype(parse::<FloatType>(dtype)?);
        Ok(Layer(layer))
    }

    /// The same layer with its activations quantized so.
    fn with_activations(&self, name: &str) -> Result<Self, Failure> {
        Ok(Layer(self.0.clone().with_activations(activations(name)?)?))
    }

    /// The same layer with a bias, or none.
    #[pyo3(signature = (bias))]
    fn with_bias(&self, bias: Option<arrays::Bytes<'_>>) -> Result<Self, Failure> {
        let bias = bias.as_ref().map(bytes).transpose()?.map(values::<f32>).transpose()?;
        let mut layer = self.0.clone();
        layer.set_bias(bias)?;
        Ok(Layer(layer))
    }

    /// Outputs for an input of a shape, in its type or another.
    #[pyo3(signature = (x, shape, dtype))]
    fn forward<'py>(
        &self,
        py: Python<'py>,
        x: Dense<'py>,
        shape: Vec<usize>,
        dtype: Option<&str>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let x = floats(&x)?;
        let ty = dtype.map(parse::<FloatType>).transpose()?.unwrap_or(x.float_type());
        let y = call::run(py, move || {
            let to: Vec<usize> = self.0.output_shape(&shape)?;
            let product = |dims: &[usize]| match dims.contains(&0) {
                true => Some(0),
                false => dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)),
            };
            let leading = &shape[..shape.len() - 1];
            let (rows, outputs) = (product(leading), product(&to));
            let overflow = || Failure::new(format!("an input of shape {shape:?} is too large"));
            let rows = rows.ok_or_else(overflow)?;
            arrays::reserve(rows, size_of::<f32>())?; // for the scales of rows without columns
            let mut y = arrays::zeros(ty, outputs.ok_or_else(overflow)?)?;
            self.0.forward_into(x, rows, y.as_mut_slice())?;
            Ok(y)
        })?;
        Ok(out(py, y))
    }

    /// The state: type, shape and bytes by name.
    fn state<'py>(&self, py: Python<'py>, prefix: &str) -> PyResult<Bound<'py, PyDict>> {
        let state = call::run(py, || {
            let state = self.0.state_dict(prefix)?.into_iter();
            let tensor = |(name, tensor): (String, quant_linear::state::StateTensor<'_>)| {
                (name, tensor.dtype(), tensor.shape().to_vec(), tensor.data().to_vec())
            };
            Ok(state.map(tensor).collect::<Vec<_>>())
        })?;
        let dict = PyDict::new(py);
        for (name, dtype, shape, data) in state {
            dict.set_item(name, taken(py, dtype, shape, data))?;
        }
        Ok(dict)
    }

    /// Writes the state to a safetensors file, whole or not at all.
    #[pyo3(signature = (path, prefix = ""))]
    fn save(&self, py: Python<'_>, path: PathBuf, prefix: &str) -> PyResult<()> {
        call::run(py, || Ok(self.0.save(&path, prefix)?))
    }

    /// The packed weight: codes, scale bytes, rows, k, settings.
    fn weight<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let packed = call::run(py, || Ok(self.0.weight()?))?;
        let shape = packed.shape();
        let (scale, group) = (shape.scale_type(), shape.group());
        let spec = fp4_core::QuantSpec::new(scale, group, self.0.weight_global_scale(), 1.0);
        let spec = Spec(spec.map_err(Failure::from)?);
        let (codes, scales) = packed.into_parts();
        let (codes, scales) = (out_bytes(py, codes), out_bytes(py, scales));
        Ok((codes, scales, shape.rows(), shape.k(), spec).into_pyobject(py)?.into_any())
    }

    /// The transform: values, the name of their type, shape; or `None`.
    #[getter]
    fn transform<'py>(&self, py: Python<'py>) -> Option<(Bound<'py, PyAny>, String, Vec<usize>)> {
        let stored = self.0.transform()?;
        let values: FloatVec = stored.values().clone();
        let name = values.float_type().to_string();
        Some((out(py, values), name, stored.shape().to_vec()))
    }

    /// Who would quantize and multiply `rows` rows, and why not the others.
    #[pyo3(signature = (rows = 1, dtype = "f32"))]
    fn explain(&self, py: Python<'_>, rows: usize, dtype: &str) -> PyResult<String> {
        let ty = parse::<FloatType>(dtype)?;
        call::run(py, || Ok(self.0.explain(rows, ty)?.to_string()))
    }

    /// Prepares the weight for the backend that multiplies: what the first call would do.
    fn prepare(&self, py: Python<'_>) -> PyResult<()> {
        call::run(py, || Ok(self.0.prepare()?))
    }

    /// Input features, K.
    #[getter]
    fn in_features(&self) -> usize {
        self.0.in_features()
    }

    /// Output features, N.
    #[getter]
    fn out_features(&self) -> usize {
        self.0.out_features()
    }

    /// The format, mxfp4 or nvfp4; `None` for an empty layer of other parts.
    #[getter]
    fn format(&self) -> Option<&'static str> {
        self.0.format().map(Format::name)
    }

    /// Elements that share a scale.
    #[getter]
    fn group_size(&self) -> usize {
        self.0.group_size().get()
    }

    /// Type of the scale bytes: e8m0 or e4m3.
    #[getter]
    fn scale_type(&self) -> &'static str {
        self.0.scale_type().name()
    }

    /// The layer's name in messages.
    #[getter]
    fn name(&self) -> Option<&str> {
        self.0.name()
    }

    /// True while it has no weight.
    #[getter]
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Global scale of the weight.
    #[getter]
    fn weight_global_scale(&self) -> f32 {
        self.0.weight_global_scale()
    }

    /// Global scale of activations, resolved.
    #[getter]
    fn activation_global_scale(&self) -> f32 {
        self.0.activation_global_scale()
    }

    /// Scale-scale of activations, resolved.
    #[getter]
    fn activation_scale_scale(&self) -> f32 {
        self.0.activation_scale_scale()
    }

    /// How activations are quantized: fp4, mxint8 or fp4-rows.
    #[getter]
    fn activation_encoding(&self) -> &'static str {
        self.0.activations().name()
    }

    /// Type of the stored transform: f32, f16 or bf16.
    #[getter]
    fn dtype(&self) -> &'static str {
        self.0.dtype().name()
    }

    /// The bias, or `None`.
    #[getter]
    fn bias<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.0.bias().map(|bias| out(py, FloatVec::F32(bias.to_vec())))
    }
}
