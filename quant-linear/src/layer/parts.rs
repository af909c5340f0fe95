//! What a layer is made of: packed weight, optional transform, scalars.

use fp4_core::{FloatType, GroupSize, PackedMatrix, QuantSpec, Transform};

use crate::error::Error;
use crate::layer::state::{self, Scalars};
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

    /// The same transform with its values in another type, each rounded once.
    pub(super) fn converted(&self, ty: FloatType) -> Self {
        StoredTransform { values: self.values.converted(ty), shape: self.shape.clone() }
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

impl Parts {
    /// Checks that the parts make a layer, and resolves the settings of the activations.
    ///
    /// # Errors
    /// As [`QuantLinear::from_parts`](crate::QuantLinear::from_parts).
    pub fn check(&self) -> Result<QuantSpec, Error> {
        let transform = self.transform.as_ref().map(|t| t.view().map(|t| t.shape())).transpose()?;
        let scalars = Scalars {
            weight_global_scale: self.weight_global_scale,
            activation_global_scale: self.activation_global_scale,
            activation_scale_scale: self.activation_scale_scale,
        };
        state::check(self.weight.shape(), transform, &scalars)
    }
}
