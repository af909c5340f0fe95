//! FP4 layers for candle's tensors on CUDA devices: [`OverHost`], with candle built for CUDA.
//!
//! The layers are those of [`quant_linear_candle`]; this package only turns candle's feature `cuda`
//! on, for which nvcc must be there, and holds the test that needs a device.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub use quant_linear_candle::{Error, Fp4Linear, OverHost};

use candle_core::{CudaStorage, CustomOp1, Layout, Result, Shape};

/// The outputs of a layer for what a layout shows of a device's storage, on the same device, and
/// their shape: [`OverHost`]'s way, for whoever holds storages and no tensors.
///
/// # Errors
/// Those of the layer, and of the copies.
pub fn forward(layer: &OverHost, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
    layer.cuda_fwd(x, layout)
}
