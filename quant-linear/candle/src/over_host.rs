//! A layer for tensors in the memory of a device, by way of the host's.
//!
//! Asked for by name, and never a default: the copies cost more than many products. It compiles
//! without any feature of candle's, because it needs no more than candle's own trait of a storage.

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, Layout, MetalStorage, Module, Shape, Tensor,
};

use crate::Fp4Linear;

/// An [`Fp4Linear`] that takes tensors of any device: what is not on the CPU is copied to the host,
/// the whole storage of the tensor, and the output back to the device that it came from. The bits
/// are those of the layer.
///
/// A tensor on the CPU is taken as by the layer itself, without a copy.
#[derive(Debug, Clone)]
pub struct OverHost(pub Fp4Linear);

impl OverHost {
    fn run<S: BackendStorage>(&self, x: &S, layout: &Layout) -> candle_core::Result<(S, Shape)>
    where
        S::Device: BackendDevice<Storage = S>,
    {
        let (y, shape) = self.0.cpu_fwd(&x.to_cpu_storage()?, layout)?;
        Ok((x.device().storage_from_cpu_storage_owned(y)?, shape))
    }
}

impl Module for OverHost {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        x.apply_op1(self.clone())
    }
}

impl CustomOp1 for OverHost {
    fn name(&self) -> &'static str {
        "fp4-linear-over-host"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        self.0.cpu_fwd(x, layout)
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        self.run(x, layout)
    }

    fn metal_fwd(
        &self,
        x: &MetalStorage,
        layout: &Layout,
    ) -> candle_core::Result<(MetalStorage, Shape)> {
        self.run(x, layout)
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        gradient: &Tensor,
    ) -> candle_core::Result<Option<Tensor>> {
        self.0.bwd(x, y, gradient)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use fp4_core::Format;
    use quant_linear::{DenseOptions, QuantLinear};

    use super::*;

    /// The way that a device's storage takes, with the CPU's as the device.
    #[test]
    fn the_way_over_the_host_gives_the_bits_of_the_layer() {
        let weight: Vec<f32> = (0..8 * 64).map(|i| ((i * 37 % 101) as f32 - 50.0) / 9.0).collect();
        let options = DenseOptions::new(Format::NvFp4);
        let layer = QuantLinear::from_dense(&weight[..], 8, 64, &options).unwrap();
        let over = OverHost(layer.clone().into());
        let x: Vec<f32> = (0..3 * 64).map(|i| ((i * 29 % 83) as f32 - 41.0) / 20.0).collect();
        let layout = Layout::new(Shape::from((2, 64)), vec![64, 1], 64);
        let (y, shape) = over.run(&CpuStorage::F32(x.clone()), &layout).unwrap();
        assert_eq!(shape.dims(), [2, 8]);
        let expected = layer.forward(&x[64..], &[2, 64]).unwrap();
        assert_eq!(y.as_slice::<f32>().unwrap(), expected);
        let x = Tensor::from_slice(&x[64..], (2, 64), &Device::Cpu).unwrap();
        let y = over.forward(&x).unwrap().flatten_all().unwrap();
        assert_eq!(y.to_vec1::<f32>().unwrap(), expected);
    }
}
