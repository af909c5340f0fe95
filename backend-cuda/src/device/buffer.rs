//! Device memory that only grows.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, DevicePtr};
use fp4_core::Error;

use super::error::DeviceResult;
use super::stream::{Gate, Stream};
use crate::build::arguments::Pointer;

/// Bytes on the device. A larger request replaces the memory, a smaller one keeps it, so that a
/// steady state allocates nothing. Contents are unspecified after [`reserve`](Self::reserve).
#[derive(Debug, Default)]
pub(crate) struct Buffer(Option<Memory>);

/// Memory that is freed when it is dropped, unless a captured graph may still use it.
#[derive(Debug)]
struct Memory {
    /// `None` only while it is dropped.
    slice: Option<CudaSlice<u8>>,
    /// How many captures had begun when it was made.
    born: u64,
    gate: Arc<Gate>,
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(slice) = self.slice.take() {
            self.gate.free(slice, self.born);
        }
    }
}

impl Buffer {
    fn slice(&self) -> Option<&CudaSlice<u8>> {
        self.0.as_ref()?.slice.as_ref()
    }

    fn slice_mut(&mut self) -> Option<&mut CudaSlice<u8>> {
        self.0.as_mut()?.slice.as_mut()
    }

    /// Bytes of device memory held.
    pub(crate) fn len(&self) -> usize {
        self.slice().map_or(0, CudaSlice::len)
    }

    /// Whether a captured graph may use the memory.
    pub(crate) fn is_in_a_graph(&self) -> bool {
        self.0.as_ref().is_some_and(|memory| memory.gate.is_in_a_graph(memory.born))
    }

    /// Makes room for `bytes`. A driver would record an allocation in a capture, and give an
    /// address that has memory during replays alone.
    pub(crate) fn reserve(&mut self, stream: &Stream, bytes: usize) -> Result<(), Error> {
        if bytes <= self.len() {
            return Ok(());
        }
        stream.gate.expect_running()?;
        // The old memory goes first: the two need not fit together.
        self.0 = None;
        // SAFETY: the bytes are not set, and nothing reads them before a kernel or a copy on the
        // same stream has written them.
        let slice = unsafe { stream.alloc(bytes) }.allocating(bytes)?;
        let (gate, born) = (stream.gate.clone(), stream.gate.captures());
        self.0 = Some(Memory { slice: Some(slice), born, gate });
        Ok(())
    }

    /// Copies `bytes` from the host, making room for them.
    pub(crate) fn upload(&mut self, stream: &Stream, bytes: &[u8]) -> Result<(), Error> {
        stream.gate.expect_running()?;
        self.reserve(stream, bytes.len())?;
        match self.slice_mut() {
            Some(slice) if !bytes.is_empty() => stream.memcpy_htod(bytes, slice).device(),
            _ => Ok(()),
        }
    }

    /// Copies the first bytes to the host. The caller synchronizes the stream.
    pub(crate) fn download(&self, stream: &Stream, out: &mut [u8]) -> Result<(), Error> {
        stream.gate.expect_running()?;
        match self.slice() {
            Some(slice) if !out.is_empty() => {
                stream.memcpy_dtoh(&slice.slice(..out.len()), out).device()
            }
            _ => Ok(()),
        }
    }

    /// Makes room for `bytes` zeros, for users that leave zeros behind: memory is set only when it
    /// is new.
    pub(crate) fn reserve_zeros(&mut self, stream: &Stream, bytes: usize) -> Result<(), Error> {
        if bytes <= self.len() {
            return Ok(());
        }
        self.reserve(stream, bytes)?;
        let set = self.zero(stream, bytes);
        if set.is_err() {
            // What is kept is believed to be zeros.
            self.0 = None;
        }
        set
    }

    /// Sets the first bytes to zero.
    pub(crate) fn zero(&mut self, stream: &Stream, bytes: usize) -> Result<(), Error> {
        self.reserve(stream, bytes)?;
        match self.slice_mut() {
            Some(slice) if bytes > 0 => stream.memset_zeros(&mut slice.slice_mut(..bytes)).device(),
            _ => Ok(()),
        }
    }

    /// The address on the device, 0 for an empty buffer.
    pub(crate) fn address(&self) -> u64 {
        // Events are off: the guard of the pointer does nothing.
        self.slice().map_or(0, |slice| slice.device_ptr(slice.stream()).0)
    }

    /// The address as an argument of a kernel.
    pub(crate) fn pointer(&self) -> Pointer {
        Pointer(self.address())
    }
}
