//! Kernels on the device: loaded at their first use, from the best image that there is.
//!
//! ```text
//! cached machine code -> machine code by NVRTC, then cached -> prebuilt PTX -> KernelBuild
//! ```
//!
//! Loading takes seconds where NVRTC compiles, so no lock is held meanwhile: of two threads that
//! load the same at once both do, and what is there first stays.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::CUfunction_attribute;
use cudarc::driver::{CudaContext, CudaFunction, CudaModule};
use cudarc::nvrtc::Ptx;
use fp4_core::{DeviceError, Error};

use super::error::DeviceResult;
use super::stream::Gate;
use crate::build::cache::Cache;
use crate::build::kernels::Kernel;
use crate::build::sources::{Family, Target};
use crate::build::{compile, prebuilt};

/// The kernels of one device.
pub(crate) struct Modules {
    compute_capability: i32,
    driver_major: i32,
    cache: Cache,
    /// A failure stays only where trying again is of no use.
    modules: Mutex<HashMap<&'static str, Result<Arc<CudaModule>, Error>>>,
    functions: Mutex<HashMap<&'static str, CudaFunction>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Modules {
    pub(crate) fn new(compute_capability: i32, driver_major: i32) -> Self {
        Modules {
            compute_capability,
            driver_major,
            cache: Cache::from_environment(),
            modules: Mutex::default(),
            functions: Mutex::default(),
        }
    }

    /// The kernel, for blocks with as much dynamic shared memory as it asks for.
    pub(crate) fn function<A>(
        &self,
        context: &Arc<CudaContext>,
        gate: &Gate,
        kernel: &Kernel<A>,
    ) -> Result<CudaFunction, Error> {
        let &Kernel { family, name, shared, .. } = kernel;
        let known = lock(&self.functions).get(name).cloned();
        if let Some(function) = known {
            return Ok(function);
        }
        gate.expect_running()?;
        context.bind_to_thread().device()?;
        let function = self.module(context, family)?.load_function(name).device()?;
        // A block may have 48 KiB without asking, of which the kernel's own arrays take a part.
        if shared > 0 {
            let most = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(most, shared as i32).device()?;
        }
        Ok(lock(&self.functions).entry(name).or_insert(function).clone())
    }

    /// The family's module, loaded at its first use.
    fn module(
        &self,
        context: &Arc<CudaContext>,
        family: &'static Family,
    ) -> Result<Arc<CudaModule>, Error> {
        let known = lock(&self.modules).get(family.name).cloned();
        if let Some(known) = known {
            return known;
        }
        let loaded = self.load(context, family);
        if matches!(loaded, Ok(_) | Err(Error::Device(DeviceError::KernelBuild))) {
            return lock(&self.modules).entry(family.name).or_insert(loaded).clone();
        }
        loaded
    }

    /// From the cache, or from NVRTC for this very device, or else from the prebuilt PTX.
    fn load(
        &self,
        context: &Arc<CudaContext>,
        family: &'static Family,
    ) -> Result<Arc<CudaModule>, Error> {
        let name = family.name;
        match compile::version() {
            // A driver loads machine code of its own major version's compilers and of older ones.
            Some((major, minor)) if major <= self.driver_major => {
                let target = Target::Device(self.compute_capability);
                let key = format!("{name}-{}-nvrtc{major}.{minor}", family.hash(target));
                if let Some(cached) = self.cache.load(&key)
                    && let Some(module) = image(context, Ptx::from_binary(cached), "cached", name)?
                {
                    return Ok(module);
                }
                match compile::compile(family, target) {
                    Ok(compiled) => {
                        self.cache.store(&key, &compiled);
                        let compiled = Ptx::from_binary(compiled);
                        if let Some(module) = image(context, compiled, "compiled", name)? {
                            return Ok(module);
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
        let module = image(context, Ptx::from_src(ptx), "prebuilt", name)?;
        module.ok_or(Error::Device(DeviceError::KernelBuild))
    }
}

/// Loads an image of a family; `None`, and a word in the log, if it is none for this device. Any
/// other failure says nothing about the image: memory is short.
fn image(
    context: &Arc<CudaContext>,
    image: Ptx,
    what: &str,
    name: &str,
) -> Result<Option<Arc<CudaModule>>, Error> {
    match context.load_module(image) {
        Ok(module) => Ok(Some(module)),
        Err(error) => match Err(error).device() {
            Ok(module) => Ok(Some(module)),
            Err(Error::Device(DeviceError::KernelBuild)) => {
                log::warn!("the {what} {name} kernels do not load: {error:?}");
                Ok(None)
            }
            Err(other) => Err(other),
        },
    }
}
