//! exact-fp4 for JavaScript: arguments, types, errors, and bytes from wherever a page has them.
//! Every rule and every number is of fp4-core and quant-linear. What users see is in `js`, which
//! calls this.
//!
//! | file | what it does |
//! |---|---|
//! | `arguments` | values and options of JavaScript, checked |
//! | `call` | what happens around a call: progress, cancelling, warnings, panics |
//! | `checkpoint` | checkpoints: inspect, verify, views, values, report |
//! | `explain` | numbers of the formats, dot products step by step |
//! | `linear` | layers that run |
//! | `ops` | quantize, dequantize, matmul, swizzle |
//! | `source` | files as functions that read by position |
//! | `suite` | the conformance suite, for tests |

mod arguments;
mod call;
mod checkpoint;
mod explain;
#[cfg(feature = "kernels")]
mod linear;
mod ops;
mod source;
#[cfg(feature = "suite")]
mod suite;

use wasm_bindgen::prelude::*;

/// Prepares the instance: once, before anything else.
#[wasm_bindgen(start)]
pub fn start() {
    call::install();
}

/// Name of the instruction set that this build uses.
#[wasm_bindgen]
pub fn isa() -> String {
    #[cfg(feature = "kernels")]
    return fp4_backend_cpu_simd::CpuSimd::new().isa().to_string();
    #[cfg(not(feature = "kernels"))]
    "reference".into()
}

/// The version.
#[wasm_bindgen]
pub fn version() -> String {
    env!("CARGO_PKG_VERSION").into()
}
