//! Launches of kernels on the device's one stream.

use cudarc::driver::{DeviceRepr, LaunchConfig, PushKernelArg};
use fp4_core::Error;

use super::error::DeviceResult;
use super::gpu::Gpu;
use super::reason::Reason;
use crate::build::kernels::Kernel;

/// The shape of a launch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grid {
    /// Thread blocks along x, y and z.
    pub(crate) blocks: [usize; 3],
    /// Threads of a block.
    pub(crate) threads: usize,
}

impl Grid {
    /// Most blocks along y and z.
    pub(crate) const MAX_YZ: usize = 65_535;

    /// So many blocks in a row.
    pub(crate) const fn row(blocks: usize, threads: usize) -> Self {
        Grid { blocks: [blocks, 1, 1], threads }
    }

    /// One thread for each of `items`, 256 a block.
    pub(crate) const fn for_each(items: usize) -> Self {
        Grid::row(items.div_ceil(256), 256)
    }
}

impl Gpu {
    /// Queues a kernel. A grid without blocks is nothing to do.
    ///
    /// # Safety
    /// - The addresses in `args` are of buffers on this device, of the sizes that follow from the
    ///   other arguments by the comments in `kernels/`, or null where those allow it.
    /// - They live until an operation that is queued on this stream later frees them.
    /// - No other buffer is changed: what the kernel writes is not read on the host before a copy
    ///   that is queued later.
    pub(crate) unsafe fn launch<A: DeviceRepr>(
        &self,
        kernel: &Kernel<A>,
        grid: Grid,
        args: &A,
    ) -> Result<(), Error> {
        let [x, y, z] = grid.blocks;
        if x == 0 || y == 0 || z == 0 {
            return Ok(());
        }
        if x > i32::MAX as usize || y > Grid::MAX_YZ || z > Grid::MAX_YZ {
            return Err(Reason::GridTooLarge.into());
        }
        self.context.bind_to_thread().device()?;
        let function = self.function(kernel)?;
        let mut launch = self.stream.launch_builder(&function);
        launch.arg(args);
        let config = LaunchConfig {
            grid_dim: (x as u32, y as u32, z as u32),
            block_dim: (grid.threads as u32, 1, 1),
            shared_mem_bytes: kernel.shared,
        };
        // SAFETY: the kernel takes one `A`, by its type, and the caller answers for what is in it.
        unsafe { launch.launch(config) }.device()?;
        Ok(())
    }
}

/// The size of a dimension as the kernels count it.
pub(crate) fn int(size: usize) -> Result<i32, Error> {
    i32::try_from(size).map_err(|_| Reason::DimensionTooLarge.into())
}

#[cfg(all(test, feature = "emulated"))]
mod tests {
    use fp4_core::DeviceError;

    use super::*;
    use crate::build::arguments::{Pointer, SwizzleArgs};
    use crate::build::kernels::SWIZZLE;
    use crate::build::sources::{Family, LAYOUT, Target};
    use crate::device::driver;

    /// A kernel that no compiler takes and that has no prebuilt image.
    static BROKEN: Family = Family {
        name: "broken",
        source: "not C++ at all;",
        portable: Target::Portable,
        prebuilt: None,
    };

    const NOTHING: SwizzleArgs =
        SwizzleArgs { from: Pointer::NULL, to: Pointer::NULL, rows: 0, cols: 0 };

    fn gpu() -> Gpu {
        let (version, device) = driver::device(0).unwrap();
        Gpu::open(0, device, version).unwrap()
    }

    #[test]
    fn a_kernel_that_does_not_compile_is_an_error_and_the_device_goes_on() {
        let gpu = gpu();
        let broken = Kernel::<SwizzleArgs>::test(&BROKEN, "kernel");
        for _ in 0..2 {
            // SAFETY: nothing runs.
            let refused = unsafe { gpu.launch(&broken, Grid::row(1, 32), &NOTHING) };
            assert_eq!(refused, Err(Error::Device(DeviceError::KernelBuild)));
        }
        let unknown = Kernel::<SwizzleArgs>::test(&LAYOUT, "no such kernel");
        // SAFETY: as above.
        let refused = unsafe { gpu.launch(&unknown, Grid::row(1, 32), &NOTHING) };
        assert_eq!(refused, Err(Error::Device(DeviceError::KernelBuild)));
        assert_eq!(gpu.synchronize(), Ok(()));
    }

    #[test]
    fn a_grid_past_the_device_s_limit_is_an_error() {
        let gpu = gpu();
        // SAFETY: nothing runs.
        let refused = unsafe { gpu.launch(&SWIZZLE[0], Grid::row(1 << 31, 32), &NOTHING) };
        assert!(matches!(refused, Err(Error::Unsupported(_))), "{refused:?}");
        assert!(int(1 << 31).is_err() && int((1 << 31) - 1).is_ok());
    }
}
