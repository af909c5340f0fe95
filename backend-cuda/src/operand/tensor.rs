//! Dense values in device memory: tensors, and block transforms.

use std::sync::Arc;

use fp4_core::{
    Buffer as What, Error, Float, FloatSlice, FloatSliceMut, FloatType, Transform, TransformShape,
    bf16, f16, with_floats,
};

use crate::device::buffer::Buffer;
use crate::device::gpu::Gpu;

/// Dense values in device memory.
#[derive(Debug)]
pub struct CudaTensor {
    pub(crate) float_type: FloatType,
    pub(crate) len: usize,
    pub(crate) values: Buffer,
    pub(crate) gpu: Arc<Gpu>,
}

impl CudaTensor {
    pub(crate) fn new(gpu: &Arc<Gpu>) -> Self {
        let (float_type, values) = (FloatType::F32, Buffer::default());
        CudaTensor { float_type, len: 0, values, gpu: gpu.clone() }
    }

    /// The type of the values.
    pub fn float_type(&self) -> FloatType {
        self.float_type
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there are no values.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The device address of the values, 0 if there are none.
    pub fn device_address(&self) -> u64 {
        self.values.address()
    }

    /// Makes it `len` values of a type, whatever they are.
    pub(crate) fn resize(&mut self, float_type: FloatType, len: usize) -> Result<(), Error> {
        let room = self.values.reserve(&self.gpu.stream, len * float_type.bytes());
        self.expect_room(room)?;
        (self.float_type, self.len) = (float_type, len);
        Ok(())
    }

    /// After a failure to get more memory there is none, so there are no values.
    fn expect_room(&mut self, outcome: Result<(), Error>) -> Result<(), Error> {
        if self.values.address() == 0 {
            self.len = 0;
        }
        outcome
    }

    pub(crate) fn upload(&mut self, x: FloatSlice<'_>) -> Result<(), Error> {
        let uploaded = self.values.upload(&self.gpu.stream, host_bytes(x));
        self.expect_room(uploaded)?;
        (self.float_type, self.len) = (x.float_type(), x.len());
        Ok(())
    }

    /// Copies to the host. The caller synchronizes.
    pub(crate) fn download(&self, out: FloatSliceMut<'_>) -> Result<(), Error> {
        out.as_ref().expect_len(What::Output, self.len)?;
        let (expected, got) = (self.float_type, out.float_type());
        if expected != got {
            return Err(Error::Float { what: What::Output, expected, got });
        }
        self.values.download(&self.gpu.stream, host_bytes_mut(out))
    }
}

/// The bytes of host values.
pub(crate) fn host_bytes(x: FloatSlice<'_>) -> &[u8] {
    with_floats!(FloatSlice, x, x => bytemuck::cast_slice(x))
}

/// The bytes of host values to write to.
pub(crate) fn host_bytes_mut(x: FloatSliceMut<'_>) -> &mut [u8] {
    with_floats!(FloatSliceMut, x, x => bytemuck::cast_slice_mut(x))
}

/// A block transform in device memory, rounded to the type of the activations.
#[derive(Debug)]
pub struct CudaTransform {
    pub(crate) shape: TransformShape,
    pub(crate) values: Buffer,
    pub(crate) gpu: Arc<Gpu>,
}

impl CudaTransform {
    /// Loads a transform, rounded once from its stored type to the activations' (C5).
    pub(crate) fn load(
        gpu: &Arc<Gpu>,
        transform: &Transform<'_>,
        x: FloatType,
    ) -> Result<Self, Error> {
        fn rounded<T: Float>(values: FloatSlice<'_>) -> Vec<T> {
            with_floats!(FloatSlice, values, v => {
                v.iter().map(|&t| T::from_f32(Float::to_f32(t))).collect()
            })
        }
        let stored = transform.values();
        let mut values = Buffer::default();
        match x {
            FloatType::F32 => {
                values.upload(&gpu.stream, bytemuck::cast_slice(&rounded::<f32>(stored)))?;
            }
            FloatType::F16 => {
                values.upload(&gpu.stream, bytemuck::cast_slice(&rounded::<f16>(stored)))?;
            }
            FloatType::Bf16 => {
                values.upload(&gpu.stream, bytemuck::cast_slice(&rounded::<bf16>(stored)))?;
            }
        }
        let shape = TransformShape { float_type: x, ..transform.shape() };
        Ok(CudaTransform { shape, values, gpu: gpu.clone() })
    }
}
