//! A device's one stream, who may use it while a graph is captured on it, and when memory is freed.
//!
//! ```text
//! operation   refused if another thread captures, else counted until it ends
//! capture     announced, so that other threads are refused; waits for the operations under way;
//! records; ends free        held back during a capture, and while a graph lives that may use the
//! memory
//! ```
//!
//! A driver takes whatever reaches a capturing stream for a part of the graph, from any thread: an
//! allocation, a copy that reads host memory again at each replay. So nothing of another thread's
//! may reach it, and of the capturing thread's only launches and fills: [`Gate::expect_running`] is
//! asked before everything else.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use cudarc::driver::{CudaGraph, CudaSlice, CudaStream};
use fp4_core::Error;

use super::reason::Reason;

/// The one stream, and who may use it.
pub(crate) struct Stream {
    stream: Arc<CudaStream>,
    pub(crate) gate: Arc<Gate>,
}

impl Stream {
    pub(crate) fn new(stream: Arc<CudaStream>) -> Self {
        Stream { stream, gate: Arc::default() }
    }
}

impl Deref for Stream {
    type Target = Arc<CudaStream>;

    fn deref(&self) -> &Arc<CudaStream> {
        &self.stream
    }
}

/// The driver's handles of a captured graph.
pub(crate) struct Handles(pub(crate) CudaGraph);

// SAFETY: the driver lets any thread use a graph's handles, one at a time; they lie in a mutex, in
// `Graph` or in the gate, and the one use but for dropping them binds the context to its thread
// first.
unsafe impl Send for Handles {}

impl fmt::Debug for Handles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Handles").finish_non_exhaustive()
    }
}

/// One device's gate.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
    /// No operation is under way.
    idle: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Operations under way, but for those of the thread that captures.
    operations: usize,
    capturer: Option<ThreadId>,
    /// The capture was asked for something that it cannot record.
    spoiled: bool,
    /// How many captures have begun.
    captures: u64,
    /// Graphs that live, and the capture under way.
    graphs: usize,
    /// Dropped graphs and memory, to be freed in this order.
    retired: Vec<Handles>,
    memory: Vec<CudaSlice<u8>>,
}

/// An operation under way.
#[must_use = "the operation ends when this is dropped"]
pub(crate) struct Operation<'a> {
    gate: &'a Gate,
    counted: bool,
}

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        if self.counted {
            let mut state = self.gate.state();
            state.operations -= 1;
            if state.operations == 0 {
                self.gate.idle.notify_all();
            }
        }
    }
}

impl Gate {
    /// Begins an operation of this thread. Operations do not nest: the inner one might be refused.
    pub(crate) fn enter(&self) -> Result<Operation<'_>, Error> {
        let mut state = self.state();
        match state.capturer {
            None => state.operations += 1,
            Some(thread) if thread == thread::current().id() => {
                return Ok(Operation { gate: self, counted: false });
            }
            Some(_) => return Err(Reason::CapturedElsewhere.into()),
        }
        Ok(Operation { gate: self, counted: true })
    }

    /// Refuses, and spoils the capture, if this thread captures.
    pub(crate) fn expect_running(&self) -> Result<(), Error> {
        let mut state = self.state();
        if state.is_captured_here() {
            state.spoiled = true;
            return Err(Reason::CannotBeCaptured.into());
        }
        Ok(())
    }

    /// Whether this thread captures.
    pub(crate) fn captures_here(&self) -> bool {
        self.state().is_captured_here()
    }

    /// Refuses if this thread's capture was asked for something that it cannot record, whatever
    /// became of that error.
    pub(crate) fn expect_unspoiled(&self) -> Result<(), Error> {
        if self.state().spoiled { Err(Reason::CannotBeCaptured.into()) } else { Ok(()) }
    }

    /// Lets this thread capture, once no operation is under way. [`end`](Self::end) is to follow.
    pub(crate) fn begin(&self) -> Result<(), Error> {
        let mut state = self.state();
        if state.capturer.is_some() {
            return Err(Reason::CaptureUnderWay.into());
        }
        state.capturer = Some(thread::current().id());
        state.spoiled = false;
        state.captures += 1;
        state.graphs += 1;
        while state.operations > 0 {
            state = self.idle.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// Ends this thread's capture; the stream records no longer.
    pub(crate) fn end(&self, made_a_graph: bool) {
        let mut state = self.state();
        state.capturer = None;
        state.retired.clear();
        if !made_a_graph {
            state.graph_gone();
        }
    }

    /// Drops a graph.
    pub(crate) fn retire(&self, handles: Option<Handles>) {
        let mut state = self.state();
        if state.capturer.is_some() {
            state.retired.extend(handles);
        } else {
            drop(handles);
        }
        state.graph_gone();
    }

    /// How many captures have begun: the birth date of memory.
    pub(crate) fn captures(&self) -> u64 {
        self.state().captures
    }

    /// Whether a graph may use memory of this birth date.
    pub(crate) fn is_in_a_graph(&self, born: u64) -> bool {
        self.state().is_in_a_graph(born)
    }

    /// Frees memory, now or later.
    pub(crate) fn free(&self, slice: CudaSlice<u8>, born: u64) {
        let mut state = self.state();
        if state.capturer.is_some() || state.is_in_a_graph(born) {
            state.memory.push(slice);
        } else {
            // Under the lock, so that no capture can begin meanwhile.
            drop(slice);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_captured_here(&self) -> bool {
        self.capturer == Some(thread::current().id())
    }

    fn is_in_a_graph(&self, born: u64) -> bool {
        self.graphs > 0 && born < self.captures
    }

    /// A capture under way counts, so nothing is freed during one.
    fn graph_gone(&mut self) {
        self.graphs -= 1;
        if self.graphs == 0 {
            self.memory.clear();
        }
    }
}
