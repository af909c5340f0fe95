//! What makes a good layer of a dense weight and a little data: second moments of activations,
//! block transforms, quantizers that look at those moments, and the losses that judge them
//! (feature `calibrate`).
//!
//! ```text
//! rows x of a layer's input  ->  [`Moments`]  ->  [`Gram`]  G = sum x x^T
//! G, W                       ->  [`BlockTransform`]  T, rounded to bf16
//! W T^-1, T G T^T            ->  [`quantize_weight`]  rtn | gptq | babai  ->  packed weight
//! x, W, T, packed weight     ->  [`loss`]  what is lost, of ||X W^T||^2
//! ```
//!
//! For errors of the activations' own quantization to count too, [`JointMoments`] take rows before
//! and after it, and give the second moments and the target that stand for both.
//!
//! All is f64 but for what is stored, and no bit depends on the number of threads: work is cut
//! into pieces of fixed size, and sums are added in a fixed order. Bits may differ between CPUs of
//! other vector widths, where sums of products are taken in another order.
//!
//! # Example
//!
//! ```
//! use fp4_core::{Format, GroupSize, QuantSpec};
//! use quant_linear::calibrate::{
//!     BlockTransform, Gram, Method, QuantizeOptions, WushOptions, loss, quantize_weight,
//! };
//!
//! // A weight of 32 outputs and 64 inputs, and 128 samples of its input: some inputs are large.
//! let weight: Vec<f32> = (0..32 * 64).map(|i| ((i * 37 % 101) as f32 - 50.0) / 100.0).collect();
//! let x: Vec<f32> = (0..128 * 64)
//!     .map(|i| (i as f32 * 1.37).sin() * if i % 64 < 3 { 20.0 } else { 1.0 })
//!     .collect();
//!
//! let gram = Gram::of_rows(&x, 64)?;
//! let t = BlockTransform::wush(&gram, &[&weight], GroupSize::G32, &WushOptions::default())?;
//! let through = t.weight_through(&weight)?;
//! let amax = through.iter().fold(0f32, |a, w| a.max(w.abs()));
//! let spec = QuantSpec::for_weight(Format::NvFp4, amax)?;
//! let gram = gram.transformed(&t)?;
//! let ratio = |method| {
//!     let packed =
//!         quantize_weight(&through, 64, Some(&gram), &QuantizeOptions::new(spec, method))?;
//!     let lost = loss::of_weight(&x, &weight, &t, packed.view(), spec.global_scale())?;
//!     Ok::<f64, quant_linear::Error>(lost.ratio())
//! };
//! assert!(ratio(Method::Gptq)? < ratio(Method::Rtn)?);
//! # Ok::<(), quant_linear::Error>(())
//! ```

mod babai;
mod factor;
mod gptq;
mod gram;
mod linalg;
pub mod loss;
mod method;
mod objective;
mod panel;
mod random;
mod record;
mod statistics;
mod transform;
mod wush;

pub use gram::{Gram, Moments};
pub use loss::Loss;
pub use method::{GroupScales, Method, QuantizeOptions, quantize_weight};
pub use objective::{Joint, JointMoments};
pub use record::{Calibration, Input, Observed, Recorder};
pub use statistics::{ActivationRule, ActivationScale, BINS, Histogram, Statistics};
pub use transform::{BlockTransform, KeptNorm, LARGEST_CONDITION, TransformKind, WushOptions};
