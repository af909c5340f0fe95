//! On a device the bits are those of the CPU. Needs a GPU: without one the test fails and says so.

#![allow(missing_docs)]

use candle_core::{DType, Device, Module, Tensor};
use fp4_core::Format;
use quant_linear::{DenseOptions, QuantLinear};
use quant_linear_candle_cuda::{Fp4Linear, OverHost};

#[test]
fn tensors_on_the_device_give_the_bits_of_the_cpu() {
    let device = Device::new_cuda(0).expect("a CUDA device");
    let value = |i: usize| (i * 37 % 101) as f32 / 50.0 - 1.0;
    for format in [Format::MxFp4, Format::NvFp4] {
        let weight: Vec<f32> = (0..24 * 64).map(value).collect();
        let layer = QuantLinear::from_dense(&weight[..], 24, 64, &DenseOptions::new(format));
        let layer = Fp4Linear::from(layer.unwrap());
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let x: Vec<f32> = (0..5 * 64).map(value).collect();
            let x = Tensor::from_vec(x, (64, 5), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            let there = x.to_device(&device).unwrap();
            // As rows, which lie apart.
            let y = OverHost(layer.clone()).forward(&there.t().unwrap()).unwrap();
            assert!(y.device().is_cuda());
            let expected = layer.forward(&x.t().unwrap()).unwrap().to_dtype(DType::F32).unwrap();
            let y = y.to_device(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
            let bits = |y: Tensor| y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let bits = |y| bits(y).into_iter().map(f32::to_bits).collect::<Vec<_>>();
            assert_eq!(bits(y), bits(expected), "{format:?} {dtype:?}");
            // Without the wrapper it is an error, and no copy in silence.
            assert!(layer.forward(&there.t().unwrap()).is_err());
        }
    }
}
