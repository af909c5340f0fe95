//! Whole models: which of a checkpoint's weights are quantized, quantizing them piece by piece, and
//! how far two checkpoints are apart.
//!
//! | module | contents |
//! |---|---|
//! | [`roles`] | what weights are for, and which of them are kept dense |
//! | [`select`] | which tensors are quantized |
//! | [`patterns`] | patterns of names, for whatever else has names |
//! | [`recipe`] | formats and settings by name |
//! | [`ties`] | weights that share a global scale |
//! | [`plan`] | what becomes of every tensor |
//! | [`quantize`] | the streaming quantizer |
//! | [`groups`] | what quantizing did to each group |
//! | [`stream`] | writing a model of any size |
//! | [`inspect`] | what a checkpoint holds, layer by layer |
//! | [`items`] | what a checkpoint holds under the names that another shares |
//! | [`compare`] | one tensor against another |
//! | [`difference`] | how far apart two are |
//! | [`scales`] | scales by their powers of two |
//! | [`report`] | all numbers that a report on one or two checkpoints shows |
//! | [`values`] | the dense values of tensors, by rows |
//! | [`verify`] | what is wrong with a quantized one, or looks wrong |
//! | [`view`] | one tensor in depth, and dense ones quantized on trial |
//!
//! ```no_run
//! use fp4_core::Format;
//! use quant_linear::atomic::Kind;
//! use quant_linear::checkpoint::{Checkpoint, Listing};
//! use quant_linear::model::stream::{Memory, Output};
//! use quant_linear::model::{plan::Plan, quantize::Engine, select::Request};
//! use quant_linear::{Backends, DenseOptions};
//!
//! let input = Checkpoint::open("model.safetensors".as_ref())?;
//! let plan = Plan::new(&input, &Request::new(DenseOptions::new(Format::NvFp4)))?;
//! let (backends, memory) = (Backends::available(), Memory::default());
//! let engine = Engine { input: &input, backends, memory };
//! let path = "model-fp4.safetensors".as_ref();
//! let output = Output { path, kind: Kind::File, replace: false, resume: false, settings: vec![] };
//! engine.write(&plan, &Listing::default(), &output, &mut |_| {})?;
//! # Ok::<(), quant_linear::Error>(())
//! ```

pub mod compare;
pub mod convert;
mod dense;
pub mod dequantize;
pub mod difference;
pub mod groups;
pub mod inspect;
pub mod items;
mod orientation;
mod parts;
pub mod patterns;
#[cfg(feature = "calibrate")]
pub mod pipeline;
#[cfg(not(feature = "calibrate"))]
#[path = "no_pipeline.rs"]
pub mod pipeline;
pub mod plan;
pub mod quantize;
pub mod recipe;
pub mod report;
pub mod roles;
pub mod scales;
pub mod select;
pub mod stream;
pub mod ties;
pub mod values;
pub mod verify;
pub mod view;

pub use crate::error::{ModelError, listed};
