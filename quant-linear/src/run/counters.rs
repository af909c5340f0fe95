//! Optional counters of a layer: what its quantization did and which paths its matmul took.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use fp4_core::Paths;
use fp4_core::reference::QuantCounts;

/// Counters that add up over the calls of a layer, from any thread.
#[derive(Debug, Default)]
pub struct Counters {
    elements: AtomicU64,
    saturated: AtomicU64,
    nan_groups: AtomicU64,
    zero_groups: AtomicU64,
    narrow: AtomicU64,
    planes: AtomicU64,
    wide: AtomicU64,
}

impl Counters {
    /// What quantizing the activations did so far.
    pub fn quantized(&self) -> QuantCounts {
        QuantCounts {
            elements: self.elements.load(Relaxed),
            saturated: self.saturated.load(Relaxed),
            nan_groups: self.nan_groups.load(Relaxed),
            zero_groups: self.zero_groups.load(Relaxed),
        }
    }

    /// How many outputs each kind of path computed so far.
    pub fn paths(&self) -> Paths {
        Paths {
            narrow: self.narrow.load(Relaxed),
            planes: self.planes.load(Relaxed),
            wide: self.wide.load(Relaxed),
        }
    }

    /// Sets all counters to zero. Calls that run meanwhile count before or after.
    pub fn reset(&self) {
        let Counters { elements, saturated, nan_groups, zero_groups, narrow, planes, wide } = self;
        for counter in [elements, saturated, nan_groups, zero_groups, narrow, planes, wide] {
            counter.store(0, Relaxed);
        }
    }

    pub(crate) fn add_quantized(&self, quantized: &QuantCounts) {
        for (counter, n) in [
            (&self.elements, quantized.elements),
            (&self.saturated, quantized.saturated),
            (&self.nan_groups, quantized.nan_groups),
            (&self.zero_groups, quantized.zero_groups),
        ] {
            counter.fetch_add(n, Relaxed);
        }
    }

    pub(crate) fn add_paths(&self, paths: &Paths) {
        for (counter, n) in
            [(&self.narrow, paths.narrow), (&self.planes, paths.planes), (&self.wide, paths.wide)]
        {
            counter.fetch_add(n, Relaxed);
        }
    }
}
