//! 200 layers that were given nothing share one device, and a tensor passes through all of them.
//!
//! Needs a CUDA device, or the stand-in of `backend-cuda/emulator` and NVRTC in `LD_LIBRARY_PATH`
//! (`.ci/steps/cuda` runs it so); not yet run on hardware.

#![cfg(feature = "cuda")]
#![allow(missing_docs)]

mod common;

use common::values;
use fp4_core::{Float, Format};
use quant_linear::{Backends, DenseOptions, FloatVec, QuantLinear, Runtime};

const LAYERS: usize = 200;
const SIZE: usize = 64;

#[test]
#[ignore = "needs a CUDA device or the stand-in for one"]
fn a_tensor_passes_through_200_layers_on_the_one_device_of_the_process() {
    let mut layers: Vec<_> = (0..LAYERS)
        .map(|i| {
            let weight = values(i as u64, SIZE * SIZE);
            let options = DenseOptions::new(Format::ALL[i % 2]);
            QuantLinear::from_dense(&weight[..], SIZE, SIZE, &options).unwrap()
        })
        .collect();
    for layer in &mut layers {
        layer.set_device(Some("cuda")).unwrap();
    }
    let x = values(1000, 3 * SIZE);
    let mut tensor = layers[0].upload(f32::wrap(&x), &[3, SIZE]).unwrap();
    for layer in &layers {
        // Another device, or another opening of this one, would be a `DeviceMismatch`.
        tensor = layer.forward_device(&tensor).unwrap();
    }
    let mut expected = x;
    for layer in &mut layers {
        layer.set_backends(Backends::reference());
        expected = layer.forward(&expected, &[3, SIZE]).unwrap();
    }
    assert_eq!(tensor.to_host().unwrap(), FloatVec::F32(expected));
    assert_eq!(Runtime::shared().backends().unavailable().len(), 0);
    println!("one device: {LAYERS} layers, {} values compared, 0 differ", 3 * SIZE);
}
