//! One FP4 linear layer as a candle module and operation.
//!
//! ```text
//! x (.., in), F32 / F16 / BF16 on the CPU
//!     contiguous, at any offset      a slice of its storage, not copied
//!     with strides                   gathered once, row-major
//! QuantLinear::forward               its output becomes the storage of y (.., out), type of x
//! ```

use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, Layout, MetalStorage, Module, Shape, Tensor,
};
use fp4_core::{Float, with_floats};
use quant_linear::{DenseOptions, QuantLinear};

use crate::error::Error;
use crate::values;

/// A linear layer y = x W^T + b in FP4 for candle: [`QuantLinear`] as a [`Module`] and a
/// [`CustomOp1`].
///
/// `x` is (.., in) of any leading dimensions, strides and offset, of type F32, F16 or BF16, on the
/// CPU; y is (.., out) of the type of `x`, contiguous, with the bits of [`QuantLinear::forward`]. A
/// contiguous `x` is not copied. The storage of `x` is locked for reading meanwhile, as by every
/// operation of candle.
///
/// `Clone` shares the weight, prepared forms included. Any number of threads may call a layer at
/// once.
#[derive(Debug, Clone)]
pub struct Fp4Linear(Arc<QuantLinear>);

impl From<QuantLinear> for Fp4Linear {
    fn from(layer: QuantLinear) -> Self {
        Fp4Linear(Arc::new(layer))
    }
}

impl Fp4Linear {
    /// Quantizes a dense layer, its bias kept in f32.
    ///
    /// # Errors
    /// As [`from_tensors`](Self::from_tensors).
    pub fn from_linear(linear: &candle_nn::Linear, options: &DenseOptions) -> Result<Self, Error> {
        Self::from_tensors(linear.weight(), linear.bias(), options)
    }

    /// Quantizes a dense (out, in) weight of any strides, on the CPU and of type F32, F16 or BF16,
    /// with a bias (out) of any of these types, which is kept in f32.
    ///
    /// # Errors
    /// [`Error::WeightShape`], [`Error::BiasShape`], [`Error::DType`], [`Error::Device`], and those
    /// of [`QuantLinear::from_dense`].
    pub fn from_tensors(
        weight: &Tensor,
        bias: Option<&Tensor>,
        options: &DenseOptions,
    ) -> Result<Self, Error> {
        let &[out_features, in_features] = weight.dims() else {
            return Err(Error::WeightShape { got: weight.dims().to_vec() });
        };
        let layer = values::with(weight, "weight", |weight| {
            Ok(QuantLinear::from_dense(weight, out_features, in_features, options)?)
        })?;
        let Some(bias) = bias else { return Ok(layer.into()) };
        if bias.dims() != [out_features] {
            return Err(Error::BiasShape { out_features, got: bias.dims().to_vec() });
        }
        // Widening is exact.
        let bias: Vec<f32> = values::with(bias, "bias", |bias| {
            Ok(with_floats!(FloatSlice, bias, b => b.iter().map(|&b| b.to_f32()).collect()))
        })?;
        Ok(layer.with_bias(&bias)?.into())
    }

    /// The library's layer.
    pub fn layer(&self) -> &QuantLinear {
        &self.0
    }

    /// The library's layer, to change it: its backends, its activations, its name.
    pub fn into_layer(self) -> QuantLinear {
        Arc::unwrap_or_clone(self.0)
    }

    /// Input features.
    pub fn in_features(&self) -> usize {
        self.0.in_features()
    }

    /// Output features.
    pub fn out_features(&self) -> usize {
        self.0.out_features()
    }

    /// The outputs of what a layout shows of a storage, and their shape.
    fn run(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape), Error> {
        // First, so that nothing is gathered for a shape that is wrong.
        let shape = self.0.output_shape(layout.dims()).map_err(|error| self.named(error))?;
        let y = match x {
            CpuStorage::F32(x) => CpuStorage::F32(self.rows(x, layout)?),
            CpuStorage::F16(x) => CpuStorage::F16(self.rows(x, layout)?),
            CpuStorage::BF16(x) => CpuStorage::BF16(self.rows(x, layout)?),
            other => return Err(Error::DType { what: "input", got: other.dtype() }),
        };
        Ok((y, Shape::from(shape)))
    }

    fn rows<T: Float>(&self, x: &[T], layout: &Layout) -> Result<Vec<T>, Error> {
        Ok(self.0.forward(&values::of(x, layout)?, layout.dims())?)
    }

    fn named(&self, error: quant_linear::Error) -> quant_linear::Error {
        match self.0.name() {
            Some(name) => {
                quant_linear::Error::Layer { name: name.to_string(), error: Box::new(error) }
            }
            None => error,
        }
    }
}

impl Module for Fp4Linear {
    /// y = x W^T + b: the [type](Fp4Linear) says of which tensors.
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        x.apply_op1(self.clone())
    }
}

/// `x.apply_op1(layer)` is [`Module::forward`]. A gradient that reaches the layer is an error.
impl CustomOp1 for Fp4Linear {
    fn name(&self) -> &'static str {
        "fp4-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok(self.run(x, layout)?)
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        Err(Error::Device { what: "input", got: "a CUDA device".into() }.into())
    }

    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &Layout,
    ) -> candle_core::Result<(MetalStorage, Shape)> {
        Err(Error::Device { what: "input", got: "a Metal device".into() }.into())
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Err(Error::Backward.into())
    }
}
