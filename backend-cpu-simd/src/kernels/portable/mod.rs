//! Kernels on the `wide` crate: safe code for every CPU.
//!
//! | module | contents | clause |
//! |---|---|---|
//! | `matmul` | exact tiles of 4 x 8 outputs | C6 |
//! | `operand` | operands of the matmul: doubled codes in tile order, row metadata | C3 |
//! | `quantize` | scales and codes, eight values at a time | C4 |
//! | `dequantize` | look-ups of dequantized values | C4.4 |
//!
//! `wide` turns its operations into SSE2, AVX2, NEON or WASM SIMD instructions by what the build
//! enables, and into plain loops elsewhere. Only operations whose result is the same everywhere
//! are used: integer arithmetic, and f32 and f64 addition, multiplication and division.

mod dequantize;
pub(crate) mod matmul;
mod operand;
mod quantize;

pub(crate) use operand::BytePanels;
pub(crate) use quantize::Encoder;

/// Every CPU has these.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable;
