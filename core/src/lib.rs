//! FP4 quantization and FP4 x FP4 matmul whose bits never change: formats, reference, traits.
//!
//! # The model in five sentences
//!
//! A matrix is stored as 4-bit e2m1 codes, with one scale byte for every group of 16 (NVFP4) or 32
//! (MXFP4) codes along K, and one f32 global scale for the whole matrix. [`reference::quantize`]
//! makes the codes and scales from dense values by steps that are each one IEEE-754 operation.
//! The matmul is *defined* as the exact dot product, rounded once to f32, times `alpha`, rounded
//! once to the output type. Exact sums commute, so the result does not depend on tile sizes, batch
//! sizes, thread counts, devices or the split of K, and a backend may use any units and any order
//! that it can prove exact. Every backend gives the same bits as the scalar [`mod@reference`].
//!
//! # Where things are
//!
//! | module | contents | clause |
//! |---|---|---|
//! | [`E2m1`], [`TieMode`] | the 4-bit element | [C1] |
//! | [`E8m0`], [`E4m3`], [`ScaleType`] | the scale bytes | [C2] |
//! | [`PackedView`], [`PackedMut`], [`pack`], [`pad_k`] | packed matrices | [C3], [C8] |
//! | [`QuantSpec`], [`QuantizeInput`] | quantization settings and input | [C4] |
//! | [`Transform`], [`fma`](fma()) | the block transform | [C5] |
//! | [`ExactSum`], [`FixedSum`], [`finish`] | exact accumulators and the one rounding | [C6] |
//! | [`Epilogue`] | what follows the exact sum: row scales, alpha, bias | [C6] |
//! | [`Swizzle`] | the 128x4 scale layout | [C7] |
//! | [`check_environment`] | the floating-point environment | [C9] |
//! | [`mxint8`] | the 8-bit elements of activations | [C10] |
//! | [`mod@reference`] | all of it, scalar and readable | [C1] to [C10] |
//! | [`reduction`] | partial sums of several machines, as integers that any reduction adds exactly | [C6] |
//! | [`narrow`] | the matmul again, in 32 or 64 bits where that is proved enough: for firmware | [C6] |
//! | [`backend`] | the traits that backends implement | |
//! | [`contract`] | the clauses themselves: what every bit must be | all |
//!
//! # Example
//!
//! No allocator is needed: quantize two small matrices and multiply them.
//!
//! ```
//! use fp4_core::{reference, Format, PackedMut, QuantSpec, QuantizeInput};
//!
//! let spec = QuantSpec::usual(Format::NvFp4); // global scale 0.1
//! let x: [f32; 32] = core::array::from_fn(|i| i as f32 * 0.1 - 1.6); // 2 rows of 16
//! let shape = spec.shape(2, 16)?;
//! let (mut codes, mut scales) = ([0; 16], [0; 2]);
//! let mut packed = PackedMut::new(shape, &mut codes, &mut scales)?;
//! reference::quantize(&QuantizeInput::new(&x[..], 2, 16, &spec)?, &mut packed)?;
//!
//! let view = packed.as_view();
//! let mut y = [0f32; 4]; // x * x^T; alpha undoes the two global scales
//! reference::matmul(view, view, 0.1f32 * 0.1, (&mut y[..]).into())?;
//! assert_eq!(y[1], y[2]);
//! assert!((y[0] - 14.96).abs() < 1.5, "exact would be 14.96, this is {}", y[0]);
//! # Ok::<(), fp4_core::Error>(())
//! ```
//!
//! # Features
//!
//! None is on by default, and none changes a bit. `alloc`: owned matrices and the type-erased
//! backend traits. `std`: run-time detection of half-precision instructions.
//!
//! [C1]: contract#c1
//! [C2]: contract#c2
//! [C3]: contract#c3
//! [C4]: contract#c4
//! [C5]: contract#c5
//! [C6]: contract#c6
//! [C7]: contract#c7
//! [C8]: contract#c8
//! [C9]: contract#c9
//! [C10]: contract#c10

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

#[cfg(feature = "alloc")]
extern crate alloc;

pub mod backend;
#[doc = include_str!("../CONTRACT.md")]
pub mod contract {}
mod counts;
mod e2m1;
mod environment;
mod epilogue;
mod error;
mod exact;
mod float;
mod fma;
mod format;
pub mod mxint8;
mod names;
pub mod narrow;
#[cfg(feature = "num-traits")]
mod numbers;
#[cfg(feature = "alloc")]
mod owned;
mod packed;
pub mod reduction;
pub mod reference;
pub mod rule;
mod scale;
mod spec;
mod swizzle;
mod transform;

pub use backend::{
    GroupedError, GroupedProduct, Matmul, MatmulQuery, Named, Paths, PreparedWeight, QuantizeInput,
    QuantizeQuery, Quantizer,
};
pub use counts::QuantCounts;
pub use e2m1::{E2m1, TieMode};
pub use environment::check_environment;
pub use epilogue::{Epilogue, finish_one};
pub use error::{
    Buffer, DeviceError, Dim, Error, FpEnvironment, ScaleSetting, Unsupported, Version,
};
pub use exact::{ExactSum, FixedSum, Partials, PartialsMut, ScaledSum, ScaledSums, finish};
pub use float::{Float, FloatSlice, FloatSliceMut, NAN_BF16, NAN_F16, NAN_F32};
pub use fma::fma;
pub use format::{Element, Encoding, FloatType, Format, GroupSize, Product, ScaleType};
pub use half::{bf16, f16};
pub use names::ParseError;
#[cfg(feature = "alloc")]
pub use owned::{FloatVec, OwnedTransform};
#[cfg(feature = "alloc")]
pub use packed::PackedMatrix;
pub use packed::{Packed, PackedMut, PackedShape, PackedView, pack, pad_k, padded_k, unpack};
pub use rule::ScaleRule;
pub use scale::{E4m3, E8m0, ScaleParts};
pub use spec::{
    MXFP4_GLOBAL_SCALE, MXFP4_SCALE_SCALE, NVFP4_GLOBAL_SCALE, NVFP4_SCALE_SCALE, QuantSpec,
    nvfp4_global_scale, nvfp4_row_scale,
};
pub use swizzle::Swizzle;
pub use transform::{Transform, TransformShape, hadamard};

/// The example of the crate's README, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
