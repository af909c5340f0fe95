//! Dense values in the memory of a backend, and forwards between them.

use std::fmt;
use std::sync::Arc;

use fp4_core::backend::erased::{DynResident, Opaque};
use fp4_core::{FloatSlice, FloatType};

use crate::error::Error;
use crate::layer::QuantLinear;
use crate::run::forward::{Input, Output};
use fp4_core::FloatVec;

/// Dense values in a backend's own memory, with their shape.
pub struct DeviceTensor {
    pub(super) value: Box<Opaque>,
    /// The very backend that made it: another of the same name has another memory.
    pub(super) owner: Arc<dyn DynResident>,
    shape: Vec<usize>,
    float_type: FloatType,
}

impl DeviceTensor {
    /// Name of the backend whose memory holds the values.
    pub fn device(&self) -> &str {
        self.owner.name()
    }

    /// The shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The type of the values.
    pub fn float_type(&self) -> FloatType {
        self.float_type
    }

    /// Copies the values to the host.
    ///
    /// # Errors
    /// A device failure.
    pub fn to_host(&self) -> Result<FloatVec, Error> {
        let mut host = FloatVec::zeros(self.float_type, self.shape.iter().product());
        self.owner.download_dyn(&*self.value, host.as_mut_slice())?;
        Ok(host)
    }

    /// True if the values are in the memory of this very backend.
    pub(super) fn is_on(&self, device: &Arc<dyn DynResident>) -> bool {
        std::ptr::addr_eq(Arc::as_ptr(&self.owner), Arc::as_ptr(device))
    }
}

impl fmt::Debug for DeviceTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceTensor")
            .field("device", &self.device())
            .field("shape", &self.shape)
            .field("float_type", &self.float_type)
            .finish_non_exhaustive()
    }
}

impl QuantLinear {
    /// Copies host values of `shape` to the memory of the layer's device.
    ///
    /// # Errors
    /// [`Error::OnHost`] if the layer lives on the host; a device failure.
    pub fn upload(&self, x: FloatSlice<'_>, shape: &[usize]) -> Result<DeviceTensor, Error> {
        self.named(|| {
            self.rows_for(x.len(), shape)?;
            let owner = self.resident()?;
            Ok(DeviceTensor {
                value: owner.upload_dyn(x)?,
                owner: owner.clone(),
                shape: shape.to_vec(),
                float_type: x.float_type(),
            })
        })
    }

    /// y = x * W^T for a tensor in the memory of the layer's device, in the type of `x`; the result
    /// stays there.
    ///
    /// If both roles land on that device, nothing crosses to the host; a mixed pair copies its
    /// packed activations once each way.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and [`Error::DeviceMismatch`].
    pub fn forward_device(&self, x: &DeviceTensor) -> Result<DeviceTensor, Error> {
        self.forward_device_as(x, x.float_type)
    }

    /// As [`forward_device`](Self::forward_device), with a result of another type.
    ///
    /// # Errors
    /// As [`forward_device`](Self::forward_device).
    pub fn forward_device_as(
        &self,
        x: &DeviceTensor,
        float_type: FloatType,
    ) -> Result<DeviceTensor, Error> {
        self.named(|| {
            let rows = self.rows_of(&x.shape)?;
            let here = self.resident()?;
            if !x.is_on(here) {
                let (tensor, layer) = (x.device().to_string(), here.name().to_string());
                return Err(Error::DeviceMismatch { tensor, layer });
            }
            let mut value = here.empty_tensor_dyn()?;
            self.run(Input::Device(x), rows, Output::Device(here, &mut value, float_type))?;
            let (owner, shape) = (x.owner.clone(), self.output_shape(&x.shape)?);
            Ok(DeviceTensor { value, owner, shape, float_type })
        })
    }

    /// The backend whose memory the layer lives in.
    fn resident(&self) -> Result<&Arc<dyn DynResident>, Error> {
        let name = self.device().ok_or(Error::OnHost)?;
        self.runtime().backends().device(name).ok_or(Error::OnHost)
    }
}
