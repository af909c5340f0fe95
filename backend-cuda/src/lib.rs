//! The CUDA backend of exact-fp4: the bits of the [contract](fp4_core::contract) on NVIDIA GPUs
//! since Ampere, with or without FP4 units. **Not yet run on hardware**: the kernels run in tests
//! on a stand-in for the driver (`emulator/`), built from the same sources.
//!
//! # The model
//!
//! It builds with no CUDA installed: the driver library is loaded at run time, if it is there.
//! [`devices`] lists what the driver reports; [`open`] answers with a backend for a device or with
//! the reason why there is none, and routing then falls back to a CPU backend with the same bits.
//!
//! [`Cuda`] takes both roles, and as a [`Resident`](fp4_core::backend::Resident) it keeps tensors
//! and operands in device memory. One device has one stream, on which everything runs in order;
//! several devices are several `Cuda`, opened by index.
//!
//! Kernels are CUDA C++ in `kernels/`, embedded in the crate. At its first use a kernel file is
//! compiled for the device at hand by NVRTC, and kept on disk (`$FP4_CUDA_CACHE`, or
//! `~/.cache/exact-fp4/kernels`; empty turns it off). Without NVRTC, or with one newer than the
//! driver, the PTX in `prebuilt/` is used, which runs on every device from compute capability 8.0
//! up, Hopper's own kernels on 9.0 alone. Failures are values: why there is no device, how many
//! bytes there were not, that the device was lost; what the compiler said goes to the log.
//!
//! What host and kernels agree on is one header, `kernels/arguments.cuh`: constants and the
//! arguments of every kernel, each one struct. The crate reads it when it is compiled, and does not
//! compile where its own structs differ; a kernel is a value that knows the type of its arguments.
//!
//! Kept between calls are the buffers of earlier ones, up to [`Cuda::with_scratch_limit`], until
//! [`Cuda::release_scratch`]. No lock is held while a kernel is compiled or a caller's code runs.
//!
//! | module | contents |
//! |---|---|
//! | `build` | from kernel source to machine code: sources, compiler, cache, prebuilt PTX |
//! | `device` | which devices there are; context, stream with its gate, modules, launches, memory |
//! | `operand` | what lies in device memory: tensors, packed operands, folded forms, weights |
//! | `ops` | what is queued: which kernel, and what it is given |
//! | `staging` | device buffers of calls on host operands |
//! | `backend`, `resident`, `convert` | the traits of the core, and calls of our own |
//! | `graph` | calls recorded once and replayed |
//! | `grouped` | several products in one call |
//!
//! A module uses those above it alone. An activation goes `resident` -> `ops::quantize` -> (its
//! `operand`) -> `ops::matmul` -> the tensor of outputs, each step a launch on the device's stream.
//!
//! # Example
//!
//! ```
//! match fp4_backend_cuda::open(0) {
//!     Ok(backend) => println!("using {}", backend.name()),
//!     Err(reason) => println!("no CUDA backend: {reason}"),
//! }
//! ```

#![deny(unsafe_op_in_unsafe_fn)]

mod backend;
mod build;
mod convert;
mod device;
mod graph;
mod grouped;
mod operand;
mod ops;
mod resident;
mod staging;

use fp4_core::backend::erased::Backend;
use fp4_core::{Error, Unsupported};

pub use backend::{Cuda, NAME};
#[doc(hidden)]
pub use build::prebuilt::prebuild;
pub use device::driver::{Device, MIN_COMPUTE_CAPABILITY, MIN_DRIVER_VERSION, device, devices};
pub use device::reason::DriverVersion;
pub use graph::Graph;
pub use operand::form::FoldedWeights;
pub use operand::packed::{CudaOperand, CudaWeight};
pub use operand::tensor::{CudaTensor, CudaTransform};
pub use ops::matmul::MatmulKernel;

/// The backend on the device with this index, in the driver's order, as routing takes it.
///
/// # Errors
/// The reason why there is none: no driver library, no device with that index, a driver or a
/// device that is too old, or a device that does not start.
pub fn open(index: usize) -> Result<Backend, Unsupported> {
    match Cuda::open(index) {
        Ok(cuda) => Ok(Backend::resident(cuda)),
        Err(Error::Unsupported(reason)) => Err(reason),
        Err(error) => {
            log::warn!("CUDA device {index} does not start: {error}");
            Err(device::reason::Reason::DoesNotStart.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opening_never_panics_and_gives_a_reason() {
        // Whatever this machine has: no driver, no device, or one that works.
        match (devices(), open(0)) {
            (Err(why), Err(reason)) => assert_eq!(reason, why),
            (Ok(found), Err(reason)) if found.is_empty() => {
                assert_eq!(reason, Unsupported::NoDevice);
            }
            (Ok(_), Err(reason)) => assert!(!reason.to_string().is_empty()),
            (Ok(_), Ok(backend)) => assert_eq!(backend.name(), NAME),
            (Err(why), Ok(_)) => panic!("a backend without a driver: {why}"),
        }
        let beyond = open(usize::MAX).unwrap_err();
        assert_eq!(beyond, devices().err().unwrap_or(Unsupported::NoDevice));
    }
}

/// The example of the crate's README, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
