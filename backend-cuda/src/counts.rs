//! Counting what a quantization did, on the host.
//!
//! The kernels do not count yet: the values are brought to the host and quantized there once more, by
//! the reference. It is asked for by [`Quantizer::quantize`](fp4_core::Quantizer::quantize) always, and for
//! operands in device memory only on request.

use fp4_core::{
    Error, Float, FloatSlice, FloatType, PackedMatrix, QuantCounts, QuantSpec, QuantizeInput,
    Transform, bf16, f16, reference,
};

use crate::operand::tensor::{CudaTensor, CudaTransform};

/// The counts of a quantization of host values.
pub(crate) fn of_input(input: &QuantizeInput<'_>) -> Result<QuantCounts, Error> {
    let mut packed = PackedMatrix::zeros(input.shape());
    reference::quantize(input, &mut packed.view_mut())
}

/// The counts of a quantization by a transform in device memory.
pub(crate) fn of_values(
    x: FloatSlice<'_>,
    shape: [usize; 2],
    spec: &QuantSpec,
    transform: Option<&CudaTransform>,
) -> Result<QuantCounts, Error> {
    match x.float_type() {
        FloatType::F32 => typed::<f32>(x, shape, spec, transform),
        FloatType::F16 => typed::<f16>(x, shape, spec, transform),
        FloatType::Bf16 => typed::<bf16>(x, shape, spec, transform),
    }
}

/// The same for values in device memory.
pub(crate) fn of_tensor(
    x: &CudaTensor,
    shape: [usize; 2],
    spec: &QuantSpec,
    transform: Option<&CudaTransform>,
) -> Result<QuantCounts, Error> {
    fn host<T: Float>(x: &CudaTensor) -> Result<Vec<T>, Error> {
        let mut host = vec![T::default(); x.len()];
        x.download(T::wrap_mut(&mut host))?;
        x.gpu.synchronize()?;
        Ok(host)
    }
    match x.float_type() {
        FloatType::F32 => typed::<f32>(f32::wrap(&host(x)?), shape, spec, transform),
        FloatType::F16 => typed::<f16>(f16::wrap(&host(x)?), shape, spec, transform),
        FloatType::Bf16 => typed::<bf16>(bf16::wrap(&host(x)?), shape, spec, transform),
    }
}

/// The transform has been rounded to the type `T` of the values.
fn typed<T: Float>(
    x: FloatSlice<'_>,
    [rows, k]: [usize; 2],
    spec: &QuantSpec,
    transform: Option<&CudaTransform>,
) -> Result<QuantCounts, Error> {
    let mut values = Vec::new();
    if let Some(t) = transform {
        let block = t.shape.block.get();
        values.resize(t.shape.blocks.unwrap_or(1) * block * block, T::default());
        t.values.download(&t.gpu.stream, bytemuck::cast_slice_mut(&mut values))?;
        t.gpu.synchronize()?;
    }
    let transform = transform.map(|t| match (t.shape.block.get(), t.shape.blocks) {
        (block, None) => Transform::shared(&values[..], block),
        (block, Some(blocks)) => Transform::per_block(&values[..], block, blocks),
    });
    of_input(&QuantizeInput::new(x, rows, k, spec)?.with_transform(transform.transpose()?)?)
}
