//! AVX2 with FMA and F16C.

mod dequantize;
pub(super) mod matmul;
mod output;
mod quantize;

use fp4_core::Unsupported;

/// Proof that this CPU has AVX2, FMA and F16C.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// Asks the CPU.
    pub(crate) fn new() -> Result<Self, Unsupported> {
        need!("avx2" "fma" "f16c");
        Ok(Avx2(()))
    }
}
