//! Kernels on the `wide` crate: safe code for every CPU, and the fallback of every other kernel.
//!
//! | module | contents | clause |
//! |---|---|---|
//! | `quantize` | scales and codes, eight values at a time | C4 |
//! | `transform` | the block transform in front of it | C5 |
//! | `panels` | operands of the matmul: doubled codes in tile order, row metadata | C3 |
//! | `matmul` | exact tiles of 4 x 8 outputs | C6 |
//!
//! `wide` turns its operations into SSE2, AVX2, NEON or WASM SIMD instructions by what the build
//! enables, and into plain loops elsewhere. Only operations whose result is the same everywhere
//! are used: integer arithmetic, and f32 and f64 addition, multiplication and division.

pub(crate) mod matmul;
mod panels;
pub(crate) mod quantize;
mod transform;

pub(crate) use panels::Panels;
pub(crate) use quantize::Encoder;
pub(crate) use transform::{Columns, Value};
