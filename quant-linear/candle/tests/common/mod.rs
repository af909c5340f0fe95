//! Test data, and bits to compare.

#![allow(dead_code)] // each test takes what it needs

use candle_core::{DType, Device, Tensor};
use fp4_core::{Float, Format};
use half::{bf16, f16};
use quant_linear::{ActivationEncoding, DenseOptions, QuantLinear};

/// Values in about -3..3, the same for the same seed.
pub(crate) fn values(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        // xorshift64* over a Weyl sequence
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state ^ (state >> 12);
        z ^= z << 25;
        z ^= z >> 27;
        (z.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..len).map(|_| (next() + next() + next() - 1.5) * 2.0).collect()
}

pub(crate) fn tensor(seed: u64, shape: &[usize], dtype: DType) -> Tensor {
    let len = shape.iter().product();
    let tensor = Tensor::from_vec(values(seed, len), shape, &Device::Cpu).unwrap();
    tensor.to_dtype(dtype).unwrap()
}

/// A type of both candle and the library.
pub(crate) trait Both: Float + candle_core::WithDType {
    fn bits(self) -> u32;
}

impl Both for f32 {
    fn bits(self) -> u32 {
        self.to_bits()
    }
}

impl Both for f16 {
    fn bits(self) -> u32 {
        self.to_bits().into()
    }
}

impl Both for bf16 {
    fn bits(self) -> u32 {
        self.to_bits().into()
    }
}

/// Values of a tensor by their indices, with nothing of candle's copying of strides.
pub(crate) fn by_index<T: Both>(tensor: &Tensor) -> Vec<T> {
    let (storage, layout) = tensor.storage_and_layout();
    let candle_core::Storage::Cpu(storage) = &*storage else { panic!("not on the CPU") };
    let data = storage.as_slice::<T>().unwrap();
    let len: usize = layout.dims().iter().product();
    let value = |mut flat: usize| {
        let mut at = layout.start_offset();
        for (&dim, &stride) in layout.dims().iter().zip(layout.stride()).rev() {
            at += flat % dim * stride;
            flat /= dim;
        }
        data[at]
    };
    (0..len).map(value).collect()
}

pub(crate) fn bits<T: Both>(values: &[T]) -> Vec<u32> {
    values.iter().map(|&v| v.bits()).collect()
}

/// Every format with every way to quantize its activations.
pub(crate) const KINDS: [(Format, ActivationEncoding); 5] = [
    (Format::MxFp4, ActivationEncoding::Own),
    (Format::MxFp4, ActivationEncoding::MxInt8),
    (Format::NvFp4, ActivationEncoding::Own),
    (Format::NvFp4, ActivationEncoding::MxInt8),
    (Format::NvFp4, ActivationEncoding::OwnRowScales),
];

/// A layer of the library.
pub(crate) fn layer(
    kind: (Format, ActivationEncoding),
    out: usize,
    inp: usize,
    bias: bool,
) -> QuantLinear {
    let layer = seeded(1, kind, out, inp);
    if bias { layer.with_bias(&values(2, out)).unwrap() } else { layer }
}

/// One of other weights for each seed.
pub(crate) fn seeded(
    seed: u64,
    (format, activations): (Format, ActivationEncoding),
    out: usize,
    inp: usize,
) -> QuantLinear {
    let options = DenseOptions { activations, ..DenseOptions::new(format) };
    QuantLinear::from_dense(&values(seed, out * inp)[..], out, inp, &options).unwrap()
}
