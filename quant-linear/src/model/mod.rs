//! Whole models: which of a checkpoint's weights are quantized, quantizing them piece by piece, and
//! how far two checkpoints are apart.
//!
//! | module | contents |
//! |---|---|
//! | [`select`] | which tensors are quantized |
//! | [`plan`] | what becomes of every tensor |
//! | [`quantize`] | the streaming quantizer |
//! | [`compare`] | one tensor against another |
//! | [`difference`] | how far apart two are |
//!
//! ```no_run
//! use fp4_core::Format;
//! use quant_linear::checkpoint::{Checkpoint, tiles::DEFAULT_BLOCK_BYTES};
//! use quant_linear::model::{plan::Plan, quantize::Engine};
//! use quant_linear::{Backends, DenseOptions};
//!
//! let input = Checkpoint::open("model.safetensors".as_ref())?;
//! let options = DenseOptions::new(Format::NvFp4);
//! let plan = Plan::new(&input, &options, &[], &[])?;
//! let (backends, block_bytes) = (Backends::available(), DEFAULT_BLOCK_BYTES);
//! let engine = Engine { input: &input, options, backends, block_bytes };
//! engine.to_file(&plan, "model-fp4.safetensors".as_ref(), false, &mut |_| {})?;
//! # Ok::<(), quant_linear::Error>(())
//! ```

pub mod compare;
mod dense;
pub mod difference;
pub mod plan;
pub mod quantize;
pub mod select;

pub use crate::error::{ModelError, listed};
