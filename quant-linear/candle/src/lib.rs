//! FP4 linear layers in [candle](candle_core): the layers of [`quant_linear`] as modules, with the
//! same bits.
//!
//! # The model
//!
//! ```text
//! checkpoint of any layout --Fp4VarBuilder, by prefix--> Fp4Linear --Module::forward--> Tensor
//! candle_nn::Linear --Fp4Linear::from_linear-----------> Fp4Linear
//! a model of AnyLinear --swap_linears, by pattern------> the same model, in part of Fp4Linear
//! ```
//!
//! [`Fp4Linear`] is one [`quant_linear::QuantLinear`]. It gives the library the tensor's own
//! memory, or, of a tensor with strides, its values gathered once, and makes a tensor of the
//! library's output: no arithmetic is done here, so the bits are the library's.
//!
//! # Example
//!
//! ```
//! use candle_core::{Device, Module, Tensor};
//! use candle_nn::Linear;
//! use fp4_core::Format;
//! use quant_linear::DenseOptions;
//! use quant_linear_candle::Fp4Linear;
//!
//! let weight: Vec<f32> = (0..8 * 64).map(|i| ((i * 37 % 101) as f32 - 50.0) / 100.0).collect();
//! let dense = Linear::new(Tensor::from_vec(weight, (8, 64), &Device::Cpu)?, None);
//! let layer = Fp4Linear::from_linear(&dense, &DenseOptions::new(Format::NvFp4))?;
//!
//! let x: Vec<f32> = (0..6 * 64).map(|i| ((i * 29 % 83) as f32 - 41.0) / 20.0).collect();
//! let y = layer.forward(&Tensor::from_slice(&x, (2, 3, 64), &Device::Cpu)?)?;
//! assert_eq!(y.dims(), [2, 3, 8]);
//!
//! // The library's own bits.
//! assert_eq!(y.flatten_all()?.to_vec1::<f32>()?, layer.layer().forward(&x, &[6, 64])?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]
#![warn(missing_docs, unreachable_pub, rust_2018_idioms)]
#![warn(clippy::missing_errors_doc, clippy::missing_panics_doc, clippy::too_many_lines)]

mod builder;
mod dense;
mod error;
mod layer;
mod mlp;
mod over_host;
mod swap;
mod values;

pub use builder::{Fp4VarBuilder, linear, linear_b, linear_no_bias};
pub use error::Error;
pub use layer::Fp4Linear;
pub use mlp::{GatedMlp, Product};
pub use over_host::OverHost;
pub use swap::{AnyLinear, Linears, Make, Swapped, Visit, join, swap_linears, swap_linears_with};

/// The examples of the package's README, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct PackageReadme;

/// The sketch for other engines, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../../INTEGRATIONS.md")]
struct Integrations;
