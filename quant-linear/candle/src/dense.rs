//! The dense tensors of a checkpoint, of safetensors or GGUF, for candle's own builder.

use std::sync::Arc;

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::Init;
use candle_nn::var_builder::SimpleBackend;
use quant_linear::checkpoint::{Checkpoint, byte_len};

use crate::error::Error;

/// The dense tensors of a checkpoint.
pub(crate) struct DenseTensors(pub(crate) Arc<Checkpoint>);

impl DenseTensors {
    fn read(&self, name: &str) -> Result<Tensor, Error> {
        let missing = || candle_core::Error::CannotFindTensor { path: name.into() }.bt();
        let tensor = self.0.tensors().get(name).ok_or_else(missing)?;
        let unreadable = || Error::TensorType { name: name.into(), got: tensor.type_name() };
        // Blocks of GGUF are bytes to the checkpoint, which are no values.
        if tensor.ggml.is_some_and(|ty| ty.dtype().is_none()) {
            return Err(unreadable());
        }
        let dtype = DType::try_from(tensor.info.dtype).map_err(|_| unreadable())?;
        // Candle has no values of the smaller types.
        if dtype.size_in_bytes() == 0 {
            return Err(unreadable());
        }
        let bytes = self.0.read(tensor, 0..byte_len(&tensor.info))?;
        Ok(Tensor::from_raw_buffer(&bytes, dtype, &tensor.info.shape, &Device::Cpu)?)
    }
}

impl SimpleBackend for DenseTensors {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        // Before anything is read: a header costs nothing.
        if let Some(tensor) = self.0.tensors().get(name)
            && tensor.shape() != shape.dims()
        {
            let (msg, got) = (format!("shape mismatch for {name}"), Shape::from(tensor.shape()));
            return Err(candle_core::Error::UnexpectedShape { msg, expected: shape, got }.bt());
        }
        self.get_unchecked(name, dtype, device)
    }

    fn get_unchecked(
        &self,
        name: &str,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        self.read(name)?.to_device(device)?.to_dtype(dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.tensors().contains_key(name)
    }
}
