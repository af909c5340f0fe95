//! A linear layer in FP4: weights stored in 4 bits, activations quantized to 4 bits on the way in,
//! the product exact and rounded once, by the [contract](fp4_core::contract). The same bits on every
//! backend, batch size and device.
//!
//! # The model
//!
//! [`QuantLinear`] holds a packed weight, three scalars and an optional block transform, mirrors
//! the PyTorch module it descends from, and reads and writes the same state through safetensors
//! ([`state`]). A forward quantizes the activations and multiplies; who does either is chosen
//! independently from a list of [`Backends`], fastest first ([`routing`]), and never changes a bit.
//!
//! # Example
//!
//! ```
//! use fp4_core::Format;
//! use quant_linear::{Backends, DenseOptions, QuantLinear};
//!
//! // A dense weight of 8 output and 64 input features, quantized to NVFP4.
//! let weight: Vec<f32> = (0..8 * 64).map(|i| ((i * 37 % 101) as f32 - 50.0) / 100.0).collect();
//! let mut layer = QuantLinear::from_dense(&weight[..], 8, 64, &DenseOptions::new(Format::NvFp4))?;
//!
//! // ActivationEncoding of any leading dimensions: here 2 x 3 rows of 64.
//! let x: Vec<f32> = (0..2 * 3 * 64).map(|i| ((i * 29 % 83) as f32 - 41.0) / 20.0).collect();
//! let y = layer.forward(&x, &[2, 3, 64])?;
//! assert_eq!(layer.output_shape(&[2, 3, 64])?, [2, 3, 8]);
//!
//! // The scalar reference gives the same bits, and so does any other batch size.
//! let alone = layer.forward(&x[5 * 64..], &[1, 64])?;
//! assert_eq!(y[5 * 8..], alone);
//! layer.set_backends(Backends::reference());
//! assert_eq!(y, layer.forward(&x, &[2, 3, 64])?);
//! # Ok::<(), quant_linear::Error>(())
//! ```
//!
//! # Features
//!
//! `cpu-simd` (default) and `cuda` compile in the backends of those names, `calibrate` the module
//! that makes good layers of a dense weight and a little data; a feature left out leaves none of
//! its dependencies. The scalar reference is always there. None changes a bit.

#![forbid(unsafe_code)]

pub mod atomic;
#[cfg(feature = "calibrate")]
pub mod calibrate;
pub mod checkpoint;
mod error;
pub mod explain;
mod layer;
pub mod layout;
pub mod model;
mod positioned;
mod run;
pub mod sharded;
pub mod text;
mod transform;

#[cfg(feature = "calibrate")]
pub use error::CalibrateError;
pub use error::{Error, Kept, Reason};
pub use fp4_core::FloatVec;
pub use layer::state::{self, Bias};
pub use layer::{ActivationEncoding, DenseOptions, Parts, QuantLinear, StoredTransform};
pub use layout::LoadOptions;
pub use run::activation::Activation;
pub use run::counters::Counters;
pub use run::device::DeviceTensor;
pub use run::partial::PackedRows;
pub use run::routing::{self, Backends, Choice, Explanation, Verdict};
pub use run::runtime::Runtime;
pub use run::saturation::{FLUSHED_SHARE, SATURATED_SHARE};
pub use safetensors::{self, Dtype};
pub use transform::{amax, larger_amax, transformed, transformed_amax};

/// The example of the crate's README, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct CrateReadme;
