//! Memory that a forward needs and leaves for the next one: shared by all layers, bounded.

use std::sync::{Mutex, PoisonError};

use fp4_core::PackedMatrix;
use fp4_core::backend::erased::{Backend, DynResident, Opaque};

use crate::error::Error;

/// Idle buffers, most recently used last.
///
/// Each concurrent forward takes one and gives it back; what would exceed the limit is freed
/// instead, so a burst of large batches leaves no more than the limit behind.
#[derive(Default)]
pub(super) struct Scratch {
    idle: Mutex<Idle>,
    limit: usize,
}

#[derive(Default)]
struct Idle {
    bytes: usize,
    packed: Vec<PackedMatrix>,
    operands: Vec<Operand>,
}

/// A quantized activation in a backend's own form.
pub(super) struct Operand {
    pub(super) backend: Backend,
    pub(super) value: Box<Opaque>,
    /// What it counted for while idle.
    bytes: usize,
}

impl Scratch {
    pub(super) fn new(limit: usize) -> Self {
        Scratch { idle: Mutex::default(), limit }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// A packed matrix of any shape, to be reshaped.
    pub(super) fn packed(&self) -> Option<PackedMatrix> {
        self.with(|idle| {
            let packed = idle.packed.pop()?;
            idle.bytes -= packed.allocated_bytes();
            Some(packed)
        })
    }

    pub(super) fn give_packed(&self, packed: PackedMatrix) {
        let bytes = packed.allocated_bytes();
        let kept = self.with(|idle| {
            if idle.bytes.saturating_add(bytes) > self.limit {
                return Err(packed);
            }
            idle.bytes += bytes;
            idle.packed.push(packed);
            Ok(())
        });
        drop(kept); // what is too much is freed here, not under the lock
    }

    /// An operand of a backend.
    pub(super) fn operand(
        &self,
        backend: &Backend,
        device: &dyn DynResident,
    ) -> Result<Operand, Error> {
        let idle = self.with(|idle| {
            let at = idle.operands.iter().rposition(|o| o.backend.is_same(backend))?;
            let operand = idle.operands.remove(at);
            idle.bytes -= operand.bytes;
            Some(operand)
        });
        match idle {
            Some(operand) => Ok(operand),
            None => {
                let value = device.scratch_dyn()?;
                Ok(Operand { backend: backend.clone(), value, bytes: 0 })
            }
        }
    }

    pub(super) fn give_operand(&self, mut operand: Operand) {
        let Some(device) = operand.backend.as_resident() else { return };
        operand.bytes = device.scratch_bytes_dyn(&*operand.value);
        let kept = self.with(|idle| {
            if idle.bytes.saturating_add(operand.bytes) > self.limit {
                return Err(operand);
            }
            idle.bytes += operand.bytes;
            idle.operands.push(operand);
            Ok(())
        });
        drop(kept);
    }

    /// Bytes of idle buffers.
    pub(super) fn bytes(&self) -> usize {
        self.with(|idle| idle.bytes)
    }

    /// Frees all idle buffers.
    pub(super) fn release(&self) {
        let idle = self.with(std::mem::take);
        drop(idle); // not under the lock
    }

    fn with<R>(&self, f: impl FnOnce(&mut Idle) -> R) -> R {
        f(&mut self.idle.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use fp4_core::{Format, PackedShape};

    use super::*;

    fn packed(rows: usize) -> PackedMatrix {
        PackedMatrix::zeros(PackedShape::of(Format::MxFp4, rows, 64).unwrap())
    }

    #[test]
    fn no_more_than_the_limit_stays_behind() {
        let scratch = Scratch::new(100); // two rows of 64 take 68 bytes
        scratch.give_packed(packed(2));
        assert_eq!(scratch.bytes(), 68);
        scratch.give_packed(packed(1));
        assert_eq!(scratch.bytes(), 68, "34 bytes more do not fit");
        assert!(scratch.packed().is_some() && scratch.packed().is_none());
        assert_eq!(scratch.bytes(), 0);
        scratch.give_packed(packed(2));
        scratch.release();
        assert_eq!((scratch.bytes(), scratch.packed().is_none()), (0, true));
    }
}
