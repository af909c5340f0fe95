//! Launches of kernels on the device's one stream.

use cudarc::driver::{LaunchConfig, PushKernelArg};
use fp4_core::{Error, FloatType, ScaleType, TieMode};

use super::error::DeviceResult;
use super::gpu::Gpu;
use super::module::Kernel;
use super::reason::Reason;

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

impl Gpu {
    /// Queues `blocks` blocks of `threads` threads. Zero blocks are nothing to do.
    ///
    /// Callers pass what the kernel's declaration in `kernels/` asks for, in its order, and buffers
    /// of the lengths that its comment states.
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

    /// As [`launch`](Self::launch), on a grid of up to three dimensions and with dynamic shared
    /// memory.
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
            return Err(Reason::GridTooLarge.into());
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
}

/// The size of a dimension as the kernels count it.
pub(crate) fn int(size: usize) -> Result<i32, Error> {
    i32::try_from(size).map_err(|_| Reason::DimensionTooLarge.into())
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
    use fp4_core::DeviceError;

    use super::*;
    use crate::build::sources::{Family, LAYOUT, Target};
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
        let unknown = gpu.launch((&LAYOUT, "no such kernel"), 1, 32, &[]);
        assert_eq!(unknown, Err(Error::Device(DeviceError::KernelBuild)));
        assert_eq!(gpu.synchronize(), Ok(()));
    }

    #[test]
    fn a_grid_past_the_device_s_limit_is_an_error() {
        let (version, device) = driver::device(0).unwrap();
        let gpu = Gpu::open(0, device, version).unwrap();
        let refused = gpu.launch((&LAYOUT, "swizzle"), 1 << 31, 32, &[]);
        assert!(matches!(refused, Err(Error::Unsupported(_))), "{refused:?}");
        assert!(int(1 << 31).is_err() && int((1 << 31) - 1).is_ok());
    }
}
