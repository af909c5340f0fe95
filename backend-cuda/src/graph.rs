//! CUDA graphs: a sequence of resident calls, recorded once and replayed with one call of the driver.
//!
//! ```text
//! run the calls once          buffers grow, kernels are compiled and loaded
//! graph = cuda.capture(the same calls)
//! again and again: new values into the tensors' memory, graph.replay()
//! ```
//!
//! What a call records depends on shapes alone: the choice between kernels' paths is made on the device. Not
//! possible during a capture, and refused by the driver, are growing a buffer, loading a kernel, waiting, and
//! copies to or from the host.
//!
//! A graph holds device addresses. So memory that existed when a capture began is not freed while any graph
//! of that device lives, whoever drops it: [`Keeper`]. Memory made later is freed as ever.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaGraph, CudaSlice};
use fp4_core::{Error, Unsupported};

use crate::backend::Cuda;
use crate::error::DeviceResult;
use crate::launch::Gpu;

/// Holds back memory that graphs may use.
#[derive(Debug, Default)]
pub(crate) struct Keeper {
    captures: AtomicU64,
    state: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// Graphs that live, and captures under way.
    graphs: usize,
    memory: Vec<CudaSlice<u8>>,
}

impl Keeper {
    /// How many captures have begun.
    pub(crate) fn captures(&self) -> u64 {
        self.captures.load(Ordering::SeqCst)
    }

    /// Frees memory, now or when no graph is left that may use it.
    pub(crate) fn free(&self, slice: CudaSlice<u8>, born: u64) {
        let mut kept = self.state();
        if kept.graphs > 0 && born < self.captures() {
            kept.memory.push(slice);
        }
    }

    fn begin(&self) {
        self.state().graphs += 1;
        self.captures.fetch_add(1, Ordering::SeqCst);
    }

    fn end(&self) {
        let mut kept = self.state();
        kept.graphs -= 1;
        if kept.graphs == 0 {
            kept.memory.clear();
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Calls recorded by [`Cuda::capture`].
pub struct Graph {
    /// `None` only while it is dropped.
    graph: Mutex<Option<Handles>>,
    gpu: Arc<Gpu>,
}

/// The driver's handles.
struct Handles(CudaGraph);

// SAFETY: the driver lets any thread use a graph's handles, one at a time; the mutex in `Graph` sees to it,
// and every use binds the context to its thread first.
unsafe impl Send for Handles {}

impl Graph {
    /// Queues the recorded calls, on the memory that their operands had when they were captured: replace
    /// values by [`Resident::upload`](fp4_core::backend::Resident::upload) into the same tensor, and do not
    /// change its size. Waits for nothing.
    ///
    /// # Errors
    /// A device failure.
    pub fn replay(&self) -> Result<(), Error> {
        self.gpu.expect_no_capture_elsewhere()?;
        let graph = self.graph.lock().unwrap_or_else(PoisonError::into_inner);
        match &*graph {
            Some(Handles(graph)) => graph.launch().device(),
            None => Ok(()),
        }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // The graph goes first, then what it used.
        *self.graph.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
        self.gpu.stream.keeper.end();
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Graph").field("gpu", &self.gpu).finish_non_exhaustive()
    }
}

/// Ends a capture that its owner leaves, by an error or a panic.
struct Capture<'a> {
    gpu: &'a Gpu,
    open: bool,
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        self.gpu.capturer(None);
        if self.open {
            let _ = self.gpu.stream.end_capture(INSTANTIATE);
            self.gpu.stream.keeper.end();
        }
    }
}

const INSTANTIATE: CUgraphInstantiate_flags = CUgraphInstantiate_flags(0);

impl Cuda {
    /// Records what `calls` queues on this device instead of running it. Run the same calls once before, so
    /// that nothing is left to allocate or load; give and take tensors, not host memory.
    ///
    /// Other threads' calls on this device (this backend and its clones) are refused meanwhile.
    ///
    /// # Errors
    /// What `calls` returns; [`Error::Unsupported`] if it does something that a capture cannot record, or if
    /// one is under way; a device failure. After an error the backend works as before.
    pub fn capture(&self, calls: impl FnOnce() -> Result<(), Error>) -> Result<Graph, Error> {
        let gpu = &*self.gpu;
        if !gpu.capturer(Some(std::thread::current().id())) {
            return Err(Unsupported::Other("a capture is under way on this device").into());
        }
        let mut capture = Capture { gpu, open: false };
        // Other threads may go on allocating: for other devices, and outside of this crate.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        gpu.stream.keeper.begin();
        if let Err(error) = gpu.stream.begin_capture(mode).device() {
            gpu.stream.keeper.end();
            return Err(error);
        }
        capture.open = true;
        calls()?;
        capture.open = false;
        match gpu.stream.end_capture(INSTANTIATE).device() {
            Ok(graph) => Ok(Graph { graph: Mutex::new(graph.map(Handles)), gpu: self.gpu.clone() }),
            Err(error) => {
                gpu.stream.keeper.end();
                Err(error)
            }
        }
    }
}
