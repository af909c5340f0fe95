//! Kernels for wasm32 with simd128, which is chosen when the crate is compiled.
//!
//! | module | contents | unsafe |
//! |---|---|---|
//! | `matmul` | tiles by panels | yes |
//! | `operand` | codes of A into tiles; chunks of B expanded | yes |
//! | `quantize` | scales and codes | yes |
//! | `transform` | the block transform, without a fused multiply-add | yes |
//! | `dequantize` | look-ups of dequantized values | yes |

mod dequantize;
mod matmul;
mod operand;
mod quantize;
mod transform;

use fp4_core::Unsupported;

/// The build has simd128, or this would not be compiled.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WasmSimd128(());

impl WasmSimd128 {
    /// There is nothing to ask.
    pub(crate) fn new() -> Result<Self, Unsupported> {
        Ok(WasmSimd128(()))
    }
}
