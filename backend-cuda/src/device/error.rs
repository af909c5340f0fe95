//! Driver errors as values of the core.

use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;
use fp4_core::{DeviceError, Error};

use super::reason::Reason;

/// A driver's answer with the core's error in place of the driver's.
pub(crate) trait DeviceResult<T> {
    /// The error of a call that asks for no memory of its own.
    fn device(self) -> Result<T, Error>;

    /// The error of a call that asks for `bytes` of device memory.
    fn allocating(self, bytes: usize) -> Result<T, Error>;
}

impl<T> DeviceResult<T> for Result<T, DriverError> {
    fn device(self) -> Result<T, Error> {
        self.allocating(0)
    }

    fn allocating(self, bytes: usize) -> Result<T, Error> {
        self.map_err(|DriverError(code)| {
            log::debug!("CUDA driver: {code:?}");
            match code {
                CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
                | CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED => {
                    Reason::CannotBeCaptured.into()
                }
                _ => Error::Device(classify(code, bytes)),
            }
        })
    }
}

/// The outcome of something that may be done without: false where memory was short.
pub(crate) fn unless_memory_is_short(
    outcome: Result<(), Error>,
    what: &str,
) -> Result<bool, Error> {
    match outcome {
        Ok(()) => Ok(true),
        Err(Error::Device(DeviceError::OutOfMemory { bytes })) => {
            log::info!("no memory for {what} ({bytes} bytes); going on without");
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// What a caller can do about it decides the kind: ask for less, reopen the device, or read the
/// code.
fn classify(code: CUresult, bytes: usize) -> DeviceError {
    use CUresult as E;
    match code {
        E::CUDA_ERROR_OUT_OF_MEMORY => DeviceError::OutOfMemory { bytes },
        // After these the context answers every call with the same error.
        E::CUDA_ERROR_DEVICE_UNAVAILABLE
        | E::CUDA_ERROR_CONTEXT_IS_DESTROYED
        | E::CUDA_ERROR_ECC_UNCORRECTABLE
        | E::CUDA_ERROR_NVLINK_UNCORRECTABLE
        | E::CUDA_ERROR_HARDWARE_STACK_ERROR
        | E::CUDA_ERROR_ILLEGAL_ADDRESS
        | E::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | E::CUDA_ERROR_MISALIGNED_ADDRESS
        | E::CUDA_ERROR_INVALID_ADDRESS_SPACE
        | E::CUDA_ERROR_INVALID_PC
        | E::CUDA_ERROR_LAUNCH_FAILED
        | E::CUDA_ERROR_LAUNCH_TIMEOUT
        | E::CUDA_ERROR_ASSERT
        | E::CUDA_ERROR_DEINITIALIZED => DeviceError::Lost,
        E::CUDA_ERROR_INVALID_IMAGE
        | E::CUDA_ERROR_INVALID_PTX
        | E::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
        | E::CUDA_ERROR_NO_BINARY_FOR_GPU
        | E::CUDA_ERROR_JIT_COMPILER_NOT_FOUND
        | E::CUDA_ERROR_JIT_COMPILATION_DISABLED
        | E::CUDA_ERROR_NOT_FOUND => DeviceError::KernelBuild,
        other => DeviceError::Driver { code: other as i32 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_says_what_to_do() {
        let lost = classify(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, 7);
        let full = classify(CUresult::CUDA_ERROR_OUT_OF_MEMORY, 7);
        let image = classify(CUresult::CUDA_ERROR_INVALID_PTX, 0);
        let other = classify(CUresult::CUDA_ERROR_INVALID_VALUE, 0);
        assert_eq!(full, DeviceError::OutOfMemory { bytes: 7 });
        assert_eq!((lost, image), (DeviceError::Lost, DeviceError::KernelBuild));
        assert_eq!(other, DeviceError::Driver { code: 1 });
    }
}
