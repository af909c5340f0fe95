//! CUDA graphs: a sequence of resident calls, recorded once and replayed with one call of the
//! driver.
//!
//! ```text
//! run the calls once          buffers grow, kernels are compiled and loaded
//! graph = cuda.capture(the same calls)
//! again and again: new values into the tensors' memory, graph.replay()
//! ```
//!
//! What a call records depends on shapes alone: the choice between kernels' paths is made on the
//! device. Not possible during a capture are growing a buffer, giving an operand another shape,
//! loading a kernel, waiting, replaying, and copies to or from the host. A driver records some of
//! these, with host addresses or with memory that is not there yet; so they are refused here,
//! before the driver sees them ([`gate`](crate::device::stream)).
//!
//! A graph holds device addresses. So memory that existed when a capture began is not freed while
//! any graph of that device lives, whoever drops it, and neither is what is dropped during a
//! capture. Memory made later is freed as ever. A graph also holds an operand's shape: a call that
//! gives the operand another one moves it to new memory, and replays go on with the old one.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::CudaGraph;
use cudarc::driver::result::stream as driver_stream;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use fp4_core::Error;

use crate::backend::Cuda;
use crate::device::error::DeviceResult;
use crate::device::gpu::Gpu;
use crate::device::stream::Handles;
use crate::ops::matmul::Scratch;

/// Calls recorded by [`Cuda::capture`].
pub struct Graph {
    /// `None` for a graph of nothing, and while it is dropped.
    graph: Mutex<Option<Handles>>,
    gpu: Arc<Gpu>,
    scratch: Arc<Mutex<Scratch>>,
}

impl Graph {
    /// Queues the recorded calls, on the memory that their operands had when they were captured:
    /// replace values by [`Resident::upload`](fp4_core::backend::Resident::upload) into the same
    /// tensor, and do not change its size. Waits for nothing.
    ///
    /// A tensor or an operand that has grown since, and an operand that has got another shape, has
    /// other memory: the replay neither reads nor changes it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] while a capture is under way; a device failure.
    pub fn replay(&self) -> Result<(), Error> {
        let _operation = self.gpu.enter()?;
        self.gpu.stream.gate.expect_running()?;
        // Recorded products use the buffers of products, which no other one must be amidst of.
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        scratch.forget_tiles();
        let graph = self.graph.lock().unwrap_or_else(PoisonError::into_inner);
        match &*graph {
            Some(Handles(graph)) => graph.launch().device(),
            None => Ok(()),
        }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let handles = self.graph.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        self.gpu.stream.gate.retire(handles);
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Graph").field("gpu", &self.gpu).finish_non_exhaustive()
    }
}

/// A capture under way, which ends however its owner leaves: with a graph, an error or a panic.
struct Capture<'a> {
    gpu: &'a Gpu,
    records: bool,
    made: bool,
}

impl Capture<'_> {
    /// Ends the recording.
    fn end(&mut self) -> Result<Option<CudaGraph>, Error> {
        self.records = false;
        // An error that an earlier drop left would end this call before the driver is asked.
        let parked = self.gpu.context.check_err();
        let ended = self.gpu.stream.end_capture(INSTANTIATE);
        let stream = self.gpu.stream.cu_stream();
        // SAFETY: the stream is the device's own, and lives as long as `gpu`.
        let status = unsafe { driver_stream::is_capturing(stream) };
        if status.is_ok_and(|status| status as u32 != 0) {
            // SAFETY: as above; the graph, if there is one, is destroyed once and not used.
            let stopped = unsafe {
                driver_stream::end_capture(stream).and_then(|graph| {
                    if graph.is_null() {
                        Ok(())
                    } else {
                        cudarc::driver::result::graph::destroy(graph)
                    }
                })
            };
            if let Err(error) = stopped {
                log::error!("a capture does not end: {error:?}");
            }
        }
        parked.device()?;
        ended.device()
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if self.records {
            // The owner has an error to return, or panics.
            let _ = self.end();
        }
        self.gpu.stream.gate.end(self.made);
    }
}

const INSTANTIATE: CUgraphInstantiate_flags = CUgraphInstantiate_flags(0);

impl Cuda {
    /// Records what `calls` queues on this device instead of running it. Run the same calls once
    /// before, so that nothing is left to allocate or load; give and take tensors, not host memory;
    /// and let an operand have one shape in all of them.
    ///
    /// Waits for the calls that other threads are in on this device (this backend and its clones),
    /// and refuses theirs from then on until it returns. What they drop is freed afterwards.
    ///
    /// # Errors
    /// What `calls` returns; [`Error::Unsupported`] if it asks for something that a capture cannot
    /// record, even if it goes on after that, or if a capture is under way; a device failure. After
    /// an error the backend works as before.
    pub fn capture(&self, calls: impl FnOnce() -> Result<(), Error>) -> Result<Graph, Error> {
        let gpu = &*self.gpu;
        gpu.stream.gate.begin()?;
        let mut capture = Capture { gpu, records: false, made: false };
        // Other threads may go on allocating: for other devices, and outside of this crate.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        gpu.stream.begin_capture(mode).device()?;
        capture.records = true;
        calls()?;
        gpu.stream.gate.expect_unspoiled()?;
        let graph = capture.end()?.map(Handles);
        capture.made = true;
        let (gpu, scratch) = (self.gpu.clone(), self.scratch.clone());
        Ok(Graph { graph: Mutex::new(graph), gpu, scratch })
    }
}

#[cfg(all(test, feature = "emulated"))]
mod tests {
    use cudarc::driver::DriverError;
    use cudarc::driver::sys::CUresult;
    use fp4_core::backend::Resident;

    use super::*;

    #[test]
    fn an_error_left_by_a_drop_does_not_leave_the_stream_capturing() {
        let cuda = Cuda::open(0).unwrap();
        let park = || {
            let context = &cuda.gpu.context;
            context.record_err::<()>(Err(DriverError(CUresult::CUDA_ERROR_INVALID_VALUE)));
        };
        for calls_fail in [false, true] {
            let outcome = cuda.capture(|| {
                park();
                if calls_fail { Err(Error::PartialKind) } else { Ok(()) }
            });
            let expected = match calls_fail {
                true => Error::PartialKind,
                false => Error::Device(fp4_core::DeviceError::Driver { code: 1 }),
            };
            assert_eq!(outcome.err(), Some(expected));
            let mut x = cuda.empty_tensor().unwrap();
            cuda.upload((&[1f32, 2.0][..]).into(), &mut x).unwrap();
            let mut y = [0f32; 2];
            cuda.download(&x, (&mut y[..]).into()).unwrap();
            assert_eq!(y, [1.0, 2.0]);
        }
        // Before a capture it is reported, and no capture begins.
        park();
        assert!(cuda.capture(|| Ok(())).is_err());
        cuda.synchronize().unwrap();
        cuda.capture(|| Ok(())).unwrap().replay().unwrap();
    }
}
