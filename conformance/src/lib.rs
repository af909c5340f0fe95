//! Conformance suite of exact-fp4: does a backend return the contract's bits?
//!
//! # The model
//!
//! The [contract](fp4_core::contract), clauses C1 to C9, fixes every bit of FP4 quantization and
//! FP4 x FP4 matmul. Whatever implements [`Quantizer`](fp4_core::Quantizer) or
//! [`Matmul`](fp4_core::Matmul) can be checked, in three ways:
//!
//! - [`suite`]: generated cases, judged by an [`oracle`] that shares no code with the reference;
//! - [`vectors`]: *golden vectors*, inputs and the expected bits made by independent software;
//! - [`exchange`]: cases as files, for hardware and languages that speak no Rust.
//!
//! The golden vectors:
//!
//! ```text
//! folder of NAME.safetensors + NAME.json      vectors::Folder, vectors::VectorFile
//!     -> family by name (a, b, c, d, e)       vectors::Family
//!     -> operations of a Backend              vectors::check_file
//!     -> counts and differences               vectors::FileReport, vectors::Report
//! ```
//!
//! Comparison is bit for bit. Where a vector holds a NaN, whatever its payload, the result must be
//! the *canonical* NaN of [C9]. A check that compared nothing is an error, never a pass, and what a
//! backend does not support is listed as skipped, with its reason.
//!
//! # Example
//!
//! ```no_run
//! use fp4_conformance::vectors;
//! use fp4_core::{backend::erased::Backend, reference::Reference};
//!
//! let backend = Backend::new(Reference);
//! let report = vectors::check_dir("conformance/vectors".as_ref(), &backend)?;
//! assert_eq!(report.counts().differ, 0, "{report}");
//! # Ok::<(), vectors::Error>(())
//! ```
//!
//! [C9]: fp4_core::contract#c9

#![forbid(unsafe_code)]

#[cfg(not(target_family = "wasm"))]
mod command;
pub mod data;
pub mod exchange;
mod files;
pub mod oracle;
pub mod random;
pub mod registry;
pub mod report;
pub mod suite;
pub mod tensor;
pub mod text;
pub mod vectors;

#[cfg(not(target_family = "wasm"))]
pub use command::main_with;
