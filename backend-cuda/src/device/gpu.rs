//! A device in use: its context, its one stream and its kernels.
//!
//! Everything that a [`Gpu`] does is queued on one stream, so operations run in the order of the
//! calls and need no events. Nothing waits for the device but copies to the host.

use std::sync::Arc;

use cudarc::driver::sys::CUdevice_attribute;
use cudarc::driver::{CudaContext, CudaFunction, LaunchConfig};
use fp4_core::Error;

use super::driver::Device;
use super::error::DeviceResult;
use super::module::Modules;
use super::reason::DriverVersion;
use super::stream::{Operation, Stream};
use crate::build::kernels::Kernel;

/// A device in use.
pub(crate) struct Gpu {
    pub(crate) info: Device,
    pub(crate) stream: Stream,
    pub(crate) context: Arc<CudaContext>,
    /// Number of multiprocessors.
    pub(crate) processors: usize,
    modules: Modules,
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gpu").field("info", &self.info).finish_non_exhaustive()
    }
}

impl Gpu {
    /// Opens the device with this index.
    pub(crate) fn open(index: usize, info: Device, driver: DriverVersion) -> Result<Self, Error> {
        let context = CudaContext::new(index).device()?;
        // SAFETY: all memory of this context's buffers is used on the one stream made below, in the
        // order of the calls, so there is nothing that events would have to order.
        unsafe { context.disable_event_tracking() };
        let stream = Stream::new(context.new_stream().device()?);
        let processors = context
            .attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
            .device()?;
        let modules = Modules::new(info.compute_capability, driver.major());
        let processors = usize::try_from(processors).unwrap_or(1).max(1);
        Ok(Gpu { info, stream, context, processors, modules })
    }

    /// Begins an operation: every public call that touches the device is one.
    pub(crate) fn enter(&self) -> Result<Operation<'_>, Error> {
        self.stream.gate.enter()
    }

    /// Waits until everything queued so far has run.
    pub(crate) fn synchronize(&self) -> Result<(), Error> {
        self.stream.gate.expect_running()?;
        self.context.bind_to_thread().device()?;
        self.stream.synchronize().device()
    }

    /// Whether the kernel can be had: compiled, or prebuilt. The first call loads it.
    pub(crate) fn has<A>(&self, kernel: &Kernel<A>) -> bool {
        self.function(kernel).is_ok()
    }

    /// How many blocks of this many threads a multiprocessor runs at a time, at least 1: by the
    /// registers and the shared memory of the kernel as it was compiled for this device.
    pub(crate) fn resident_blocks<A>(
        &self,
        kernel: &Kernel<A>,
        threads: usize,
    ) -> Result<usize, Error> {
        let function = self.function(kernel)?;
        self.context.bind_to_thread().device()?;
        let blocks = function
            .occupancy_max_active_blocks_per_multiprocessor(
                threads as u32,
                kernel.shared as usize,
                None,
            )
            .device()?;
        Ok((blocks as usize).max(1))
    }

    /// How many clusters of a kernel that is made for them run at a time, at least 1: not every
    /// multiprocessor need have another one beside it that is free.
    pub(crate) fn resident_clusters<A>(
        &self,
        kernel: &Kernel<A>,
        size: usize,
        threads: usize,
    ) -> Result<usize, Error> {
        let function = self.function(kernel)?;
        self.context.bind_to_thread().device()?;
        let config = LaunchConfig {
            grid_dim: (size as u32, 1, 1),
            block_dim: (threads as u32, 1, 1),
            shared_mem_bytes: kernel.shared,
        };
        let clusters = function.occupancy_max_active_clusters(config, &self.stream).device()?;
        Ok((clusters as usize).max(1))
    }

    /// The kernel, loaded at its first use.
    pub(crate) fn function<A>(&self, kernel: &Kernel<A>) -> Result<CudaFunction, Error> {
        self.modules.function(&self.context, &self.stream.gate, kernel)
    }
}
