//! The device's context, and launches of kernels on its one stream.
//!
//! Everything that a [`Gpu`] does is queued on one stream, so operations run in the order of the
//! calls and need no events. Nothing waits for the device but copies to the host.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaStream, LaunchConfig, PushKernelArg,
};
use cudarc::nvrtc::Ptx;
use fp4_core::{DeviceError, Error, FloatType, ScaleType, TieMode, Unsupported};

use crate::cache::Cache;
use crate::driver::Device;
use crate::error::DeviceResult;
use crate::sources::{Family, Target};
use crate::{compile, prebuilt};

/// A device in use: context, stream and loaded kernels.
pub(crate) struct Gpu {
    pub(crate) info: Device,
    pub(crate) stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
    driver_major: i32,
    cache: Cache,
    modules: Mutex<HashMap<&'static str, Result<Arc<CudaModule>, Error>>>,
    functions: Mutex<HashMap<&'static str, CudaFunction>>,
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gpu").field("info", &self.info).finish_non_exhaustive()
    }
}

/// An argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Arg {
    /// A device address, 0 for none.
    Pointer(u64),
    /// `int`.
    I32(i32),
    /// `long long`.
    I64(i64),
    /// `float`.
    F32(f32),
}

/// One kernel: its family, and its name in it.
pub(crate) type Kernel = (&'static Family, &'static str);

impl Gpu {
    /// Opens the device with this index.
    pub(crate) fn open(index: usize, info: Device, driver: i32) -> Result<Self, Error> {
        let context = CudaContext::new(index).device()?;
        // SAFETY: all memory of this context's buffers is used on the one stream made below, in the
        // order of the calls, so there is nothing that events would have to order.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().device()?;
        Ok(Gpu {
            info,
            stream,
            context,
            driver_major: driver / 1000,
            cache: Cache::from_environment(),
            modules: Mutex::default(),
            functions: Mutex::default(),
        })
    }

    /// Waits until everything queued so far has run.
    pub(crate) fn synchronize(&self) -> Result<(), Error> {
        self.context.bind_to_thread().device()?;
        self.stream.synchronize().device()
    }

    /// Queues `blocks` blocks of `threads` threads. Zero blocks are nothing to do.
    ///
    /// Callers pass what the kernel's declaration in `kernels/` asks for, in its order, and buffers of
    /// the lengths that its comment states.
    pub(crate) fn launch(
        &self,
        kernel: Kernel,
        blocks: u64,
        threads: u32,
        args: &[Arg],
    ) -> Result<(), Error> {
        if blocks == 0 {
            return Ok(());
        }
        let blocks = u32::try_from(blocks)
            .ok()
            .filter(|&b| b <= i32::MAX as u32)
            .ok_or(Unsupported::Other("a grid of 2^31 thread blocks or more; split M"))?;
        let function = self.function(kernel)?;
        let mut launch = self.stream.launch_builder(&function);
        for arg in args {
            match arg {
                Arg::Pointer(p) => launch.arg(p),
                Arg::I32(v) => launch.arg(v),
                Arg::I64(v) => launch.arg(v),
                Arg::F32(v) => launch.arg(v),
            };
        }
        let config = LaunchConfig {
            grid_dim: (blocks, 1, 1),
            block_dim: (threads, 1, 1),
            shared_mem_bytes: 0,
        };
        // SAFETY: the arguments are those of the kernel's declaration, by the contract of this
        // function that all callers (in this crate) keep; the buffers live until a later operation
        // on the same stream frees them.
        unsafe { launch.launch(config) }.device()?;
        Ok(())
    }

    fn function(&self, (family, name): Kernel) -> Result<CudaFunction, Error> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(name) {
            return Ok(function.clone());
        }
        let function = self.module(family)?.load_function(name).device()?;
        functions.insert(name, function.clone());
        Ok(function)
    }

    /// The family's module, loaded at its first use.
    fn module(&self, family: &'static Family) -> Result<Arc<CudaModule>, Error> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        modules.entry(family.name).or_insert_with(|| self.load(family)).clone()
    }

    /// From the cache, or from NVRTC for this very device, or else from the prebuilt PTX.
    fn load(&self, family: &'static Family) -> Result<Arc<CudaModule>, Error> {
        let name = family.name;
        match compile::version() {
            // A driver loads machine code of its own major version's compilers and of older ones.
            Some((major, minor)) if major <= self.driver_major => {
                let target = Target::Device(self.info.compute_capability);
                let key = format!("{name}-{}-nvrtc{major}.{minor}", family.hash(target));
                if let Some(image) = self.cache.load(&key) {
                    match self.context.load_module(Ptx::from_binary(image)) {
                        Ok(module) => return Ok(module),
                        Err(e) => log::warn!("the cached {name} kernels do not load: {e:?}"),
                    }
                }
                match compile::compile(family, target) {
                    Ok(image) => {
                        self.cache.store(&key, &image);
                        match self.context.load_module(Ptx::from_binary(image)) {
                            Ok(module) => return Ok(module),
                            Err(e) => log::warn!("the compiled {name} kernels do not load: {e:?}"),
                        }
                    }
                    Err(log) => log::warn!("the {name} kernels do not compile: {log}"),
                }
            }
            Some((major, minor)) => {
                log::info!("NVRTC {major}.{minor} is newer than the driver; using prebuilt PTX");
            }
            None => log::info!("NVRTC is not installed; using prebuilt PTX"),
        }
        let Some(ptx) = prebuilt::image(family) else {
            log::error!("there is no prebuilt image of the {name} kernels; install NVRTC");
            return Err(Error::Device(DeviceError::KernelBuild));
        };
        self.context.load_module(Ptx::from_src(ptx)).map_err(|e| {
            log::error!("the prebuilt {name} kernels do not load: {e:?}");
            Error::Device(DeviceError::KernelBuild)
        })
    }
}

/// The size of a dimension as the kernels count it.
pub(crate) fn int(size: usize) -> Result<i32, Error> {
    i32::try_from(size)
        .map_err(|_| Unsupported::Other("a dimension of 2^31 or more; split it").into())
}

/// Number of blocks of `threads` threads for one thread each of `items`.
pub(crate) fn blocks_for(items: usize, threads: u32) -> u64 {
    (items as u64).div_ceil(u64::from(threads))
}

/// The numbers by which `kernels/format.cuh` names types.
pub(crate) const fn scale_type(scale: ScaleType) -> Arg {
    Arg::I32(match scale {
        ScaleType::E8M0 => 0,
        ScaleType::E4M3 => 1,
    })
}

/// As [`scale_type`].
pub(crate) const fn float_type(float: FloatType) -> Arg {
    Arg::I32(match float {
        FloatType::F32 => 0,
        FloatType::F16 => 1,
        FloatType::Bf16 => 2,
    })
}

/// As [`scale_type`].
pub(crate) const fn tie(mode: TieMode) -> Arg {
    Arg::I32(match mode {
        TieMode::Even => 0,
        TieMode::Zero => 1,
        TieMode::Down => 2,
        TieMode::Up => 3,
    })
}
