//! AVX-512 with VNNI and VBMI.

mod dequantize;
mod int8;
mod matmul;
mod output;
mod quantize;

use fp4_core::Unsupported;

/// Proof that this CPU has AVX-512 F, BW, DQ, VL, VNNI and VBMI.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// Asks the CPU.
    pub(crate) fn new() -> Result<Self, Unsupported> {
        need!("avx512f" "avx512bw" "avx512dq" "avx512vl" "avx512vnni" "avx512vbmi" "avx2" "fma" "f16c");
        Ok(Avx512(()))
    }
}
