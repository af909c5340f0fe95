//! Optional counters of a layer: what its quantization did and which paths its matmul took.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use fp4_core::{Paths, QuantCounts};

/// Counters that add up over the calls of a layer, from any thread.
#[derive(Debug, Default)]
pub struct Counters {
    elements: AtomicU64,
    groups: AtomicU64,
    clipped: AtomicU64,
    scale_max: AtomicU64,
    flushed: AtomicU64,
    nan_groups: AtomicU64,
    narrow: AtomicU64,
    planes: AtomicU64,
    wide: AtomicU64,
}

impl Counters {
    /// What quantizing the activations did so far.
    pub fn quantized(&self) -> QuantCounts {
        let mut counts = QuantCounts::default();
        counts.elements = self.elements.load(Relaxed);
        counts.groups = self.groups.load(Relaxed);
        counts.clipped = self.clipped.load(Relaxed);
        counts.scale_max = self.scale_max.load(Relaxed);
        counts.flushed = self.flushed.load(Relaxed);
        counts.nan_groups = self.nan_groups.load(Relaxed);
        counts
    }

    /// How many outputs each kind of path computed so far.
    pub fn paths(&self) -> Paths {
        Paths::new(self.narrow.load(Relaxed), self.planes.load(Relaxed), self.wide.load(Relaxed))
    }

    /// Sets all counters to zero. Calls that run meanwhile count before or after.
    pub fn reset(&self) {
        let Counters { elements, groups, clipped, scale_max, flushed, nan_groups, .. } = self;
        for counter in [elements, groups, clipped, scale_max, flushed, nan_groups] {
            counter.store(0, Relaxed);
        }
        for counter in [&self.narrow, &self.planes, &self.wide] {
            counter.store(0, Relaxed);
        }
    }

    pub(crate) fn add_quantized(&self, quantized: &QuantCounts) {
        for (counter, n) in [
            (&self.elements, quantized.elements),
            (&self.groups, quantized.groups),
            (&self.clipped, quantized.clipped),
            (&self.scale_max, quantized.scale_max),
            (&self.flushed, quantized.flushed),
            (&self.nan_groups, quantized.nan_groups),
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
