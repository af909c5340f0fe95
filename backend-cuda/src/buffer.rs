//! Device memory that only grows.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use fp4_core::Error;

use crate::error::DeviceResult;

/// Bytes on the device. A larger request replaces the memory, a smaller one keeps it, so that a steady
/// state allocates nothing. Contents are unspecified after [`reserve`](Self::reserve).
#[derive(Debug, Default)]
pub(crate) struct Buffer(Option<CudaSlice<u8>>);

impl Buffer {
    /// Makes room for `bytes`.
    pub(crate) fn reserve(&mut self, stream: &Arc<CudaStream>, bytes: usize) -> Result<(), Error> {
        if bytes <= self.0.as_ref().map_or(0, CudaSlice::len) {
            return Ok(());
        }
        // The old memory goes first: the two need not fit together.
        self.0 = None;
        // SAFETY: the bytes are not set, and nothing reads them before a kernel or a copy on the
        // same stream has written them.
        self.0 = Some(unsafe { stream.alloc(bytes) }.allocating(bytes)?);
        Ok(())
    }

    /// Copies `bytes` from the host, making room for them.
    pub(crate) fn upload(&mut self, stream: &Arc<CudaStream>, bytes: &[u8]) -> Result<(), Error> {
        self.reserve(stream, bytes.len())?;
        match &mut self.0 {
            Some(slice) if !bytes.is_empty() => stream.memcpy_htod(bytes, slice).device(),
            _ => Ok(()),
        }
    }

    /// Copies the first bytes to the host. The caller synchronizes the stream.
    pub(crate) fn download(&self, stream: &Arc<CudaStream>, out: &mut [u8]) -> Result<(), Error> {
        match &self.0 {
            Some(slice) if !out.is_empty() => {
                stream.memcpy_dtoh(&slice.slice(..out.len()), out).device()
            }
            _ => Ok(()),
        }
    }

    /// Makes room for `bytes` zeros, for users that leave zeros behind: memory is set only when it is new.
    pub(crate) fn reserve_zeros(
        &mut self,
        stream: &Arc<CudaStream>,
        bytes: usize,
    ) -> Result<(), Error> {
        if bytes <= self.0.as_ref().map_or(0, CudaSlice::len) {
            return Ok(());
        }
        self.zero(stream, bytes)
    }

    /// Sets the first bytes to zero.
    pub(crate) fn zero(&mut self, stream: &Arc<CudaStream>, bytes: usize) -> Result<(), Error> {
        self.reserve(stream, bytes)?;
        match &mut self.0 {
            Some(slice) if bytes > 0 => stream.memset_zeros(&mut slice.slice_mut(..bytes)).device(),
            _ => Ok(()),
        }
    }

    /// The address on the device, 0 for an empty buffer.
    pub(crate) fn address(&self) -> u64 {
        // Events are off: the guard of the pointer does nothing.
        self.0.as_ref().map_or(0, |slice| slice.device_ptr(slice.stream()).0)
    }
}
