//! Kernels by instruction set: a folder each, with the same file names.
//!
//! | file | contents | trait |
//! |---|---|---|
//! | `mod` | the proof that this CPU has the instruction set | |
//! | `matmul` | tiles by panels; states its proof of exactness | [`Kernels`](crate::matmul::Kernels) and what it names |
//! | `quantize` | scales and codes of whole groups, chains of the transform | [`Encode`](crate::quantize::Encode) |
//! | `dequantize` | look-ups of dequantized values | [`LookUp`](crate::dequantize::LookUp) |
//! | `operand` | where it is needed: operands in the kernels' order | |
//!
//! What sets of one architecture share is beside their folders.

#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod portable;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
pub(crate) mod wasm;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86;
