//! What the layers of a model share: backends with their open devices, threads, and scratch memory.

use std::fmt;
use std::sync::{Arc, OnceLock};

use fp4_core::backend::erased::{Backend, DynResident};

use crate::error::Error;
use crate::run::routing::Backends;
use crate::run::scratch::Scratch;

/// Backends with their open devices and threads, and scratch memory, for any number of layers.
///
/// A handle: clones are the same runtime. Layers that are given none share one default runtime of
/// the process, so that a device is opened once and a [`DeviceTensor`](crate::DeviceTensor) passes
/// from one layer to the next. Make one of your own for other backends, threads or limits, and give
/// it to every layer of a model ([`QuantLinear::set_runtime`](crate::QuantLinear::set_runtime)).
///
/// ```
/// use fp4_core::Format;
/// use quant_linear::{Backends, DenseOptions, QuantLinear, Runtime};
///
/// let runtime = Runtime::new(Backends::available()).with_scratch_limit(16 << 20);
/// let weight = vec![0.5f32; 8 * 32];
/// let mut layer = QuantLinear::from_dense(&weight[..], 8, 32, &DenseOptions::new(Format::MxFp4))?;
/// layer.set_runtime(&runtime);
/// layer.prepare()?; // now rather than in the first forward
/// layer.forward(&[1f32; 32], &[32])?;
/// assert!(runtime.scratch_bytes() <= 16 << 20);
/// runtime.release_scratch()?;
/// assert_eq!(runtime.scratch_bytes(), 0);
/// # Ok::<(), quant_linear::Error>(())
/// ```
#[derive(Clone)]
pub struct Runtime(Arc<Inner>);

struct Inner {
    backends: Backends,
    scratch: Scratch,
}

/// Idle scratch that a runtime keeps unless told otherwise: enough for a few hundred rows of a
/// large layer. A call that needs more allocates it and frees it again.
const SCRATCH_LIMIT: usize = 64 << 20;

/// The one global: what layers use that were given nothing else.
static SHARED: OnceLock<Runtime> = OnceLock::new();

impl Runtime {
    /// A runtime of these backends.
    pub fn new(backends: Backends) -> Self {
        Runtime(Arc::new(Inner { backends, scratch: Scratch::new(SCRATCH_LIMIT) }))
    }

    /// The runtime that layers share unless they are given another: of [`Backends::available`],
    /// made at the first use and kept for the life of the process.
    pub fn shared() -> &'static Runtime {
        if let Some(runtime) = SHARED.get() {
            return runtime;
        }
        // Made outside the cell, which would hold up other threads meanwhile; the first one counts.
        let made = Runtime::new(Backends::available());
        SHARED.get_or_init(|| made)
    }

    /// The same backends with empty scratch of its own, of which at most `bytes` stay idle between
    /// calls.
    #[must_use]
    pub fn with_scratch_limit(&self, bytes: usize) -> Self {
        let backends = self.0.backends.clone();
        Runtime(Arc::new(Inner { backends, scratch: Scratch::new(bytes) }))
    }

    /// The backends, in order of preference.
    pub fn backends(&self) -> &Backends {
        &self.0.backends
    }

    /// Bytes of scratch that lie idle now, on the host and on devices, with what backends keep for
    /// themselves; what running calls use is not among them.
    pub fn scratch_bytes(&self) -> usize {
        let own = self.devices().map(|device| device.own_scratch_bytes());
        self.0.scratch.bytes() + own.sum::<usize>()
    }

    /// The most bytes of scratch that stay idle between calls.
    pub fn scratch_limit(&self) -> usize {
        self.0.scratch.limit()
    }

    /// Frees all idle scratch, that of the backends too; the next calls allocate again.
    ///
    /// # Errors
    /// A device failure.
    pub fn release_scratch(&self) -> Result<(), Error> {
        self.0.scratch.release();
        Ok(self.devices().try_for_each(|device| device.release_own_scratch())?)
    }

    fn devices(&self) -> impl Iterator<Item = &Arc<dyn DynResident>> {
        self.0.backends.list().iter().filter_map(Backend::as_resident)
    }

    pub(super) fn scratch(&self) -> &Scratch {
        &self.0.scratch
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime")
            .field("backends", &self.0.backends)
            .field("scratch_bytes", &self.scratch_bytes())
            .field("scratch_limit", &self.scratch_limit())
            .finish()
    }
}
