//! The functions: quantize, dequantize, matmul, transform, swizzle. Each checks its arguments by
//! the rules of the core, and runs on the first backend that can, or on the one named.

use std::sync::Arc;

use fp4_backend_cpu_simd::CpuSimd;
use fp4_core::backend::erased::Backend;
use fp4_core::{
    Epilogue, FloatType, MatmulQuery, OwnedTransform, PackedMatrix, PackedView, QuantCounts,
    QuantizeInput, Swizzle, Unsupported, with_floats,
};
use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use quant_linear::Runtime;

use crate::arrays::{self, Bytes, Dense, DenseTransform, bytes, floats, out, out_bytes, values};
use crate::call;
use crate::error::{Failure, parse};
use crate::spec::Spec;

/// Codes, scale bytes, row scales if there are any, and counts.
type Quantized<'py> = (
    Bound<'py, PyArray1<u8>>,
    Bound<'py, PyArray1<u8>>,
    Option<Bound<'py, PyArray1<f32>>>,
    Bound<'py, PyDict>,
);

/// The first backend that can, or the one of this name.
///
/// # Errors
/// A name that there is not; nobody who can, with everyone's reason.
fn pick<R>(
    role: &'static str,
    name: Option<&str>,
    ask: impl Fn(&Backend) -> Option<Result<R, Unsupported>>,
) -> Result<R, Failure> {
    let backends = Runtime::shared().backends();
    let mut reasons = Vec::new();
    let wanted = |backend: &&Backend| name.is_none_or(|name| backend.name() == name);
    for backend in backends.list().iter().filter(wanted) {
        match ask(backend) {
            Some(Ok(found)) => return Ok(found),
            Some(Err(reason)) => reasons.push(format!("{}: {reason}", backend.name())),
            None => reasons.push(format!("{} does not have this role", backend.name())),
        }
    }
    let absent = backends.unavailable().iter().filter(|(n, _)| name.is_none_or(|name| n == name));
    reasons.extend(absent.map(|(name, reason)| format!("{name}: {reason}")));
    if let (Some(name), true) = (name, reasons.is_empty()) {
        let names: Vec<_> = backends.list().iter().map(Backend::name).collect();
        let (name, names) = (name.escape_debug(), names.join(", "));
        return Err(Failure::new(format!("no backend is named `{name}`; there are {names}")));
    }
    Err(quant_linear::Error::NoBackend { role, reasons: reasons.join("; ") }.into())
}

/// Quantizes (rows, k) values.
#[pyfunction]
#[pyo3(signature = (x, rows, k, spec, transform, scales, backend))]
pub(crate) fn quantize<'py>(
    py: Python<'py>,
    x: Dense<'py>,
    rows: usize,
    k: usize,
    spec: &Spec,
    transform: Option<DenseTransform<'py>>,
    scales: Option<Bytes<'py>>,
    backend: Option<&str>,
) -> PyResult<Quantized<'py>> {
    let x = floats(&x)?;
    let transform = transform.as_ref().map(arrays::transform).transpose()?;
    let scales = scales.as_ref().map(bytes).transpose()?;
    let spec = &spec.0;
    let (packed, row_scales, counts) = call::run(py, move || {
        let mut input = QuantizeInput::new(x, rows, k, spec)?.with_transform(transform)?;
        if let Some(scales) = scales {
            input = input.with_scales(scales)?;
        }
        let query = input.query();
        let quantizer = pick("quantize", backend, |backend| {
            let role = backend.quantizer()?;
            Some(role.supports_quantize(&query).map(|()| role.clone()))
        })?;
        let shape = input.shape();
        let mut packed = PackedMatrix::zeros(shape);
        // Rows without columns have no bytes, and may be any number.
        let scaled = if spec.row_scales() { rows } else { 0 };
        arrays::reserve(scaled, size_of::<f32>())?;
        let mut row_scales = vec![0f32; scaled];
        let mut to = packed.view_mut();
        if spec.row_scales() {
            to = to.with_row_scales(&mut row_scales)?;
        }
        let counts = quantizer.quantize(&input, &mut to)?;
        Ok((packed, row_scales, counts))
    })?;
    let (codes, scales) = packed.into_parts();
    let row_scales = spec.row_scales().then(|| row_scales.into_pyarray(py));
    Ok((out_bytes(py, codes), out_bytes(py, scales), row_scales, counted(py, &counts)?))
}

/// Counts as a dictionary.
pub(crate) fn counted<'py>(py: Python<'py>, c: &QuantCounts) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, count) in [
        ("elements", c.elements),
        ("groups", c.groups),
        ("clipped", c.clipped),
        ("scale_max", c.scale_max),
        ("flushed", c.flushed),
        ("nan_groups", c.nan_groups),
    ] {
        dict.set_item(name, count)?;
    }
    Ok(dict)
}

/// An operand as Python hands it over: codes, scale bytes, rows, k, settings.
type Operand<'py> = (Bytes<'py>, Bytes<'py>, usize, usize, Bound<'py, Spec>);

fn view<'a>((codes, scales, rows, k, spec): &'a Operand<'_>) -> Result<PackedView<'a>, Failure> {
    Ok(PackedView::new(spec.get().shape(*rows, *k)?, bytes(codes)?, bytes(scales)?)?)
}

/// Values of a packed matrix, under its global scale or those of its rows.
#[pyfunction]
#[pyo3(signature = (packed, row_scales, dtype))]
pub(crate) fn dequantize<'py>(
    py: Python<'py>,
    packed: Operand<'py>,
    row_scales: Option<Bytes<'py>>,
    dtype: &str,
) -> PyResult<Bound<'py, PyAny>> {
    let spec = packed.4.get().0;
    let view = view(&packed)?;
    let scales = row_scales.as_ref().map(bytes).transpose()?.map(values::<f32>).transpose()?;
    let ty: FloatType = parse(dtype)?;
    let y = call::run(py, move || {
        let (shape, cpu) = (view.shape(), CpuSimd::new());
        let mut y = arrays::zeros(ty, shape.rows() * shape.k())?;
        let Some(scales) = scales else {
            cpu.dequantize(view, spec.global_scale(), y.as_mut_slice())?;
            return Ok(y);
        };
        if scales.len() != shape.rows() {
            let (expected, got) = (shape.rows(), scales.len());
            let what = fp4_core::Buffer::RowScales;
            return Err(fp4_core::Error::Len { what, expected, got }.into());
        }
        with_floats!(FloatSliceMut, y.as_mut_slice(), y => {
            for (i, (y, &scale)) in y.chunks_mut(shape.k().max(1)).zip(scales).enumerate() {
                cpu.dequantize(view.rows_range(i..i + 1)?, scale, y.into())?;
            }
        });
        Ok(y)
    })?;
    Ok(out(py, y))
}

/// The product of packed operands: A (M, K) by the transpose of B (N, K).
#[pyfunction]
#[pyo3(signature = (a, b, alpha, row_scales, bias, dtype, backend))]
pub(crate) fn matmul<'py>(
    py: Python<'py>,
    a: Operand<'py>,
    b: Operand<'py>,
    alpha: Option<f32>,
    row_scales: Option<Bytes<'py>>,
    bias: Option<Bytes<'py>>,
    dtype: &str,
    backend: Option<&str>,
) -> PyResult<Bound<'py, PyAny>> {
    let (a_spec, b_spec) = (a.4.get().0, b.4.get().0);
    let (a, b) = (view(&a)?, view(&b)?);
    let f32s = |array: &'_ Option<Bytes<'py>>| -> Result<Option<Vec<f32>>, Failure> {
        let bytes = array.as_ref().map(bytes).transpose()?;
        Ok(bytes.map(values::<f32>).transpose()?.map(<[f32]>::to_vec))
    };
    let (row_scales, bias) = (f32s(&row_scales)?, f32s(&bias)?);
    let ty: FloatType = parse(dtype)?;
    let y = call::run(py, move || {
        let product = a.shape().expect_product(&b.shape())?;
        let (m, n, k) = (a.shape().rows(), b.shape().rows(), a.shape().k());
        if b_spec.row_scales() {
            return Err(Failure::new(
                "b has row scales, which a weight has not; quantize it with a global scale",
            ));
        }
        if a_spec.row_scales() && row_scales.is_none() {
            let what = fp4_core::Buffer::RowScales;
            return Err(fp4_core::Error::Len { what, expected: m, got: 0 }.into());
        }
        // As a layer's: the weight's scale, times the activations' where they have a stored one.
        let stored = if row_scales.is_some() { 1.0 } else { a_spec.global_scale() };
        let alpha = alpha.unwrap_or(b_spec.global_scale() * stored);
        let epilogue =
            Epilogue::new(alpha).with_row_scales(row_scales.as_deref()).with_bias(bias.as_deref());
        epilogue.expect(m, n)?;
        let query = MatmulQuery::new(product.b, [m, n, k], ty);
        let query = query.with_a(product.a).with_epilogue(&epilogue);
        let multiplier = pick("multiply", backend, |backend| {
            let role = backend.matmul()?;
            Some(role.supports_matmul(&query).map(|()| role.clone()))
        })?;
        let mut y = arrays::zeros(ty, m * n)?;
        let packed = PackedMatrix::new(b.shape(), b.codes().to_vec(), b.scales().to_vec())?;
        let weight = multiplier.prepare_dyn(Arc::new(packed))?;
        weight.matmul(a, epilogue, y.as_mut_slice())?;
        Ok(y)
    })?;
    Ok(out(py, y))
}

/// Transforms the rows of values, k a row.
#[pyfunction]
pub(crate) fn transform<'py>(
    py: Python<'py>,
    x: Dense<'py>,
    k: usize,
    transform: DenseTransform<'py>,
) -> PyResult<Bound<'py, PyAny>> {
    let (x, transform) = (floats(&x)?, arrays::transform(&transform)?);
    let y = call::run(py, move || Ok(quant_linear::transformed(x, k, &transform)?))?;
    Ok(out(py, y))
}

/// The largest magnitude of values, k a row, after the transform.
#[pyfunction]
#[pyo3(signature = (x, k, transform))]
pub(crate) fn amax<'py>(
    py: Python<'py>,
    x: Dense<'py>,
    k: usize,
    transform: Option<DenseTransform<'py>>,
) -> PyResult<f32> {
    let x = floats(&x)?;
    let transform = transform.as_ref().map(arrays::transform).transpose()?;
    call::run(py, move || Ok(quant_linear::transformed_amax(x, k, transform.as_ref())?))
}

/// The orthonormal Hadamard matrix of `block` x `block`.
#[pyfunction]
pub(crate) fn hadamard(py: Python<'_>, block: usize) -> PyResult<Bound<'_, PyAny>> {
    let matrix = OwnedTransform::hadamard(block).map_err(Failure::from)?;
    Ok(out(py, matrix.values().clone()))
}

/// The 128x4 layout of (rows, cols) scale bytes; padding is written as zero.
#[pyfunction]
pub(crate) fn swizzle<'py>(
    py: Python<'py>,
    scales: Bytes<'py>,
    rows: usize,
    cols: usize,
) -> PyResult<Bound<'py, PyArray1<u8>>> {
    let scales = bytes(&scales)?;
    let swizzled = call::run(py, move || {
        let layout = Swizzle::new(rows, cols)?;
        arrays::reserve(layout.len(), 1)?;
        let mut swizzled = vec![0; layout.len()];
        layout.swizzle(scales, &mut swizzled)?;
        Ok(swizzled)
    })?;
    Ok(out_bytes(py, swizzled))
}

/// (rows, cols) scale bytes of their 128x4 layout.
#[pyfunction]
pub(crate) fn unswizzle<'py>(
    py: Python<'py>,
    swizzled: Bytes<'py>,
    rows: usize,
    cols: usize,
) -> PyResult<Bound<'py, PyArray1<u8>>> {
    let swizzled = bytes(&swizzled)?;
    let scales = call::run(py, move || {
        let layout = Swizzle::new(rows, cols)?;
        // Told before there is room made for it.
        let (expected, got) = (layout.len(), swizzled.len());
        if expected != got {
            let what = fp4_core::Buffer::Swizzled;
            return Err(fp4_core::Error::Len { what, expected, got }.into());
        }
        let mut scales = vec![0; rows * cols];
        layout.unswizzle(swizzled, &mut scales)?;
        Ok(scales)
    })?;
    Ok(out_bytes(py, scales))
}

/// Names of the backends that run here, fastest first; those that do not, with reasons.
#[pyfunction]
pub(crate) fn backends(py: Python<'_>) -> PyResult<(Vec<String>, Vec<(String, String)>)> {
    call::run(py, || {
        let backends = Runtime::shared().backends();
        let names = backends.list().iter().map(|b| b.name().to_string()).collect();
        let absent = backends.unavailable().iter();
        Ok((names, absent.map(|(name, reason)| (name.clone(), reason.to_string())).collect()))
    })
}

/// Name of the instruction set that the CPU backend uses here.
#[pyfunction]
pub(crate) fn isa() -> String {
    CpuSimd::new().isa().to_string()
}
