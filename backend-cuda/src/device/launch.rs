//! The device's context, and launches of kernels on its one stream.
//!
//! Everything that a [`Gpu`] does is queued on one stream, so operations run in the order of the
//! calls and need no events. Nothing waits for the device but copies to the host.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::{CUdevice_attribute, CUfunction_attribute};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaStream, LaunchConfig, PushKernelArg,
};
use cudarc::nvrtc::Ptx;
use fp4_core::{DeviceError, Error, FloatType, ScaleType, TieMode, Unsupported};

use crate::build::cache::Cache;
use crate::build::sources::{Family, Target};
use crate::build::{compile, prebuilt};
use crate::device::driver::Device;
use crate::device::error::DeviceResult;
use crate::device::stream::{Gate, Operation};

/// The one stream, and who may use it.
pub(crate) struct Stream {
    stream: Arc<CudaStream>,
    pub(crate) gate: Arc<Gate>,
}

impl std::ops::Deref for Stream {
    type Target = Arc<CudaStream>;

    fn deref(&self) -> &Arc<CudaStream> {
        &self.stream
    }
}

/// A device in use: context, stream and loaded kernels.
pub(crate) struct Gpu {
    pub(crate) info: Device,
    pub(crate) stream: Stream,
    pub(crate) context: Arc<CudaContext>,
    /// Number of multiprocessors.
    pub(crate) processors: usize,
    driver_major: i32,
    cache: Cache,
    /// A failure stays only where trying again is of no use.
    modules: Mutex<HashMap<&'static str, Result<Arc<CudaModule>, Error>>>,
    functions: Mutex<HashMap<&'static str, Loaded>>,
}

/// A kernel, and how much dynamic shared memory its blocks may have.
struct Loaded {
    function: CudaFunction,
    shared: u32,
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

/// The shape of a launch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grid {
    /// Thread blocks along x, y and z.
    pub(crate) blocks: [usize; 3],
    /// Threads of a block.
    pub(crate) threads: u32,
    /// Bytes of dynamic shared memory of a block.
    pub(crate) shared: u32,
}

impl Grid {
    /// Most blocks along y and z.
    pub(crate) const MAX_YZ: usize = 65_535;
}

/// Bytes of shared memory that a block may have without asking.
const SHARED_UNASKED: u32 = 48 * 1024;

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
        let processors = context
            .attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
            .device()?;
        Ok(Gpu {
            info,
            stream: Stream { stream, gate: Arc::default() },
            context,
            processors: usize::try_from(processors).unwrap_or(1).max(1),
            driver_major: driver / 1000,
            cache: Cache::from_environment(),
            modules: Mutex::default(),
            functions: Mutex::default(),
        })
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
        let blocks = usize::try_from(blocks).unwrap_or(usize::MAX);
        self.launch_grid(kernel, Grid { blocks: [blocks, 1, 1], threads, shared: 0 }, args)
    }

    /// As [`launch`](Self::launch), on a grid of up to three dimensions and with dynamic shared memory.
    pub(crate) fn launch_grid(
        &self,
        kernel: Kernel,
        grid: Grid,
        args: &[Arg],
    ) -> Result<(), Error> {
        let [x, y, z] = grid.blocks;
        if x == 0 || y == 0 || z == 0 {
            return Ok(());
        }
        if x > i32::MAX as usize || y > Grid::MAX_YZ || z > Grid::MAX_YZ {
            return Err(Unsupported::Other("a grid of too many thread blocks; split M").into());
        }
        self.context.bind_to_thread().device()?;
        let function = self.function(kernel, grid.shared)?;
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
            grid_dim: (x as u32, y as u32, z as u32),
            block_dim: (grid.threads, 1, 1),
            shared_mem_bytes: grid.shared,
        };
        // SAFETY: the arguments are those of the kernel's declaration, by the contract of this
        // function that all callers (in this crate) keep; the buffers live until a later operation
        // on the same stream frees them.
        unsafe { launch.launch(config) }.device()?;
        Ok(())
    }

    /// Whether the kernel can be had: compiled, or prebuilt. The first call loads it.
    pub(crate) fn has(&self, kernel: Kernel) -> bool {
        self.function(kernel, 0).is_ok()
    }

    /// The kernel, for blocks with this much dynamic shared memory.
    fn function(&self, (family, name): Kernel, shared: u32) -> Result<CudaFunction, Error> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = match functions.entry(name) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                self.stream.gate.expect_running()?;
                self.context.bind_to_thread().device()?;
                let function = self.module(family)?.load_function(name).device()?;
                new.insert(Loaded { function, shared: SHARED_UNASKED })
            }
        };
        if shared > loaded.shared {
            let most = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            loaded.function.set_attribute(most, shared as i32).device()?;
            loaded.shared = shared;
        }
        Ok(loaded.function.clone())
    }

    /// The family's module, loaded at its first use.
    fn module(&self, family: &'static Family) -> Result<Arc<CudaModule>, Error> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = modules.get(family.name) {
            return known.clone();
        }
        let loaded = self.load(family);
        if matches!(loaded, Ok(_) | Err(Error::Device(DeviceError::KernelBuild))) {
            modules.insert(family.name, loaded.clone());
        }
        loaded
    }

    /// Loads an image of a family; `None`, and a word in the log, if it is none for this device. Any other
    /// failure says nothing about the image: memory is short.
    fn image(&self, image: Ptx, what: &str, name: &str) -> Result<Option<Arc<CudaModule>>, Error> {
        match self.context.load_module(image) {
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

    /// From the cache, or from NVRTC for this very device, or else from the prebuilt PTX.
    fn load(&self, family: &'static Family) -> Result<Arc<CudaModule>, Error> {
        let name = family.name;
        match compile::version() {
            // A driver loads machine code of its own major version's compilers and of older ones.
            Some((major, minor)) if major <= self.driver_major => {
                let target = Target::Device(self.info.compute_capability);
                let key = format!("{name}-{}-nvrtc{major}.{minor}", family.hash(target));
                if let Some(image) = self.cache.load(&key)
                    && let Some(module) = self.image(Ptx::from_binary(image), "cached", name)?
                {
                    return Ok(module);
                }
                match compile::compile(family, target) {
                    Ok(image) => {
                        self.cache.store(&key, &image);
                        let image = Ptx::from_binary(image);
                        if let Some(module) = self.image(image, "compiled", name)? {
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
        let module = self.image(Ptx::from_src(ptx), "prebuilt", name)?;
        module.ok_or(Error::Device(DeviceError::KernelBuild))
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

#[cfg(all(test, feature = "emulated"))]
mod tests {
    use super::*;
    use crate::device::driver;

    /// A kernel that no compiler takes and that has no prebuilt image.
    static BROKEN: Family = Family {
        name: "broken",
        source: "not C++ at all;",
        portable: Target::Portable,
        prebuilt: None,
    };

    #[test]
    fn a_kernel_that_does_not_compile_is_an_error_and_the_device_goes_on() {
        let (version, device) = driver::device(0).unwrap();
        let gpu = Gpu::open(0, device, version).unwrap();
        for _ in 0..2 {
            let refused = gpu.launch((&BROKEN, "kernel"), 1, 32, &[]);
            assert_eq!(refused, Err(Error::Device(DeviceError::KernelBuild)));
        }
        let unknown = gpu.launch((&crate::build::sources::LAYOUT, "no such kernel"), 1, 32, &[]);
        assert_eq!(unknown, Err(Error::Device(DeviceError::KernelBuild)));
        assert_eq!(gpu.synchronize(), Ok(()));
    }

    #[test]
    fn a_grid_past_the_device_s_limit_is_an_error() {
        let (version, device) = driver::device(0).unwrap();
        let gpu = Gpu::open(0, device, version).unwrap();
        let refused = gpu.launch((&crate::build::sources::LAYOUT, "swizzle"), 1 << 31, 32, &[]);
        assert!(matches!(refused, Err(Error::Unsupported(_))), "{refused:?}");
        assert!(int(1 << 31).is_err() && int((1 << 31) - 1).is_ok());
    }
}
