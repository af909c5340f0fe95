//! How long work takes, about: what decides on how many threads it runs.
//!
//! The decision needs the order of magnitude only, and an estimate that is too low is the safe
//! one: a call then runs on fewer threads than would be fastest, but is never slower than on one.
//! So the rates are those of a fast core (they were measured on a Sapphire Rapids class Xeon at 3.5
//! GHz, each the fastest of many samples) and memory is taken to be in the second-level cache.
//!
//! Worked example: 384 x 384 weights by 128 rows on AVX-512: 147,456 weights, each 12 + 128 * 3 ps:
//! 58 us.

use crate::isa::Isa;

/// Nanoseconds on one thread, estimated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cost(u64);

/// Picoseconds for each of a block's values, in the fma chain of a transformed value.
const TRANSFORM_PS: u64 = 20;
/// A value that is written.
const DEQUANTIZE_PS: u64 = 200;
/// A packed byte of a weight that is reordered, and of an activation.
const REORDER_PS: u64 = 500;
const PACK_PS: u64 = 200;
/// A row of an activation: its metadata.
const ROW_PS: u64 = 50_000;

impl Cost {
    pub(crate) const NONE: Cost = Cost(0);

    const fn of(units: usize, picoseconds: u64) -> Self {
        Cost((units as u64).saturating_mul(picoseconds) / 1000)
    }

    /// Nanoseconds.
    pub(crate) const fn ns(self) -> u64 {
        self.0
    }

    /// Both after each other.
    pub(crate) const fn and(self, other: Cost) -> Self {
        Cost(self.0.saturating_add(other.0))
    }

    /// Quantizing so many values, each of `value_ps`.
    pub(crate) const fn quantize(values: usize, value_ps: u64) -> Self {
        Self::of(values, value_ps)
    }

    /// Transforming so many values by blocks of `block`.
    pub(crate) const fn transform(values: usize, block: usize) -> Self {
        Self::of(values, TRANSFORM_PS * block as u64)
    }

    /// Writing so many values.
    pub(crate) const fn dequantize(values: usize) -> Self {
        Self::of(values, DEQUANTIZE_PS)
    }

    /// Bringing so many packed bytes of a weight into another order.
    pub(crate) const fn reorder(bytes: usize) -> Self {
        Self::of(bytes, REORDER_PS)
    }

    /// Packing rows of an activation of so many bytes each.
    pub(crate) const fn pack(rows: usize, bytes: usize) -> Self {
        Self::of(rows, ROW_PS + PACK_PS * bytes as u64)
    }

    /// The product (m, k) x (n, k)^T: each weight is read and unpacked once, and multiplied by m
    /// rows.
    pub(crate) const fn matmul(isa: Isa, [m, n, k]: [usize; 3]) -> Self {
        let (read, mac) = match isa {
            Isa::Avx512Vnni => (12, 3),
            Isa::AvxVnni => (18, 6),
            Isa::Avx2 => (20, 11),
            // Not measured; from the number of instructions, at 3 GHz and two a cycle.
            Isa::NeonI8mm => (20, 6),
            Isa::NeonDotprod => (20, 11),
            Isa::Neon | Isa::WasmSimd128 => (30, 40),
            Isa::Portable => (30, 60),
        };
        Self::of(n.saturating_mul(k), (m as u64).saturating_mul(mac).saturating_add(read))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_s_cost_grows_with_each_dimension_and_saturates() {
        for isa in Isa::ALL {
            let ns = |mnk| Cost::matmul(isa, mnk).ns();
            assert!(ns([0, 4096, 4096]) > 0, "{isa}: the weights are read");
            assert!(ns([8, 64, 64]) < ns([9, 64, 64]), "{isa}");
            assert!(ns([8, 64, 64]) < ns([8, 80, 64]) && ns([8, 64, 64]) < ns([8, 64, 96]));
            assert_eq!(ns([usize::MAX; 3]), u64::MAX / 1000, "{isa}");
        }
        // The worked example.
        assert_eq!(Cost::matmul(Isa::Avx512Vnni, [128, 384, 384]).ns(), 58_392);
    }
}
