//! AVX-VNNI: the dot-product instructions on 256 bits, beside what [`Avx2`] proves.

mod dequantize;
mod int8;
mod matmul;
mod quantize;

use fp4_core::Unsupported;

use super::Avx2;

/// Proof that this CPU has AVX-VNNI, and what [`Avx2`] proves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AvxVnni(Avx2);

impl AvxVnni {
    /// Asks the CPU.
    pub(crate) fn new() -> Result<Self, Unsupported> {
        need!("avxvnni");
        Avx2::new().map(AvxVnni)
    }
}
