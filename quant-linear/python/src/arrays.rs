//! Arrays in and out. Python hands over bytes (`uint8`, one dimension, contiguous) with the name of
//! their type, because NumPy has no bfloat16 of its own; results are made here and handed over.

use bytemuck::{AnyBitPattern, try_cast_slice};
use fp4_core::{FloatSlice, FloatType, FloatVec, Transform, bf16, f16};
use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;

use crate::error::{Failure, parse};

/// Bytes borrowed from NumPy for the length of a call.
pub(crate) type Bytes<'py> = PyReadonlyArray1<'py, u8>;

/// Dense values as Python hands them over: their bytes and the name of their type.
pub(crate) type Dense<'py> = (Bytes<'py>, String);

/// A transform: its values and its shape.
pub(crate) type DenseTransform<'py> = (Bytes<'py>, String, Vec<usize>);

/// The bytes as a slice.
///
/// # Errors
/// An array that is not contiguous.
pub(crate) fn bytes<'a>(array: &'a Bytes<'_>) -> Result<&'a [u8], Failure> {
    array.as_slice().map_err(|_| Failure::new("the array is not contiguous; copy it"))
}

/// Bytes as values of a type.
pub(crate) fn values<T: AnyBitPattern>(bytes: &[u8]) -> Result<&[T], Failure> {
    if bytes.is_empty() {
        return Ok(&[]);
    }
    try_cast_slice(bytes).map_err(|error| {
        let (len, size) = (bytes.len(), size_of::<T>());
        Failure::new(format!("{len} bytes are no values of {size} bytes ({error}); copy the array"))
    })
}

/// Dense values as a slice of their type.
///
/// # Errors
/// A name that is none, bytes that are no whole values or lie across their alignment.
pub(crate) fn floats<'a>((array, name): &'a Dense<'_>) -> Result<FloatSlice<'a>, Failure> {
    floats_of(bytes(array)?, parse(name)?)
}

fn floats_of(bytes: &[u8], ty: FloatType) -> Result<FloatSlice<'_>, Failure> {
    Ok(match ty {
        FloatType::F32 => FloatSlice::F32(values::<f32>(bytes)?),
        FloatType::F16 => FloatSlice::F16(values::<f16>(bytes)?),
        FloatType::Bf16 => FloatSlice::Bf16(values::<bf16>(bytes)?),
    })
}

/// A transform, borrowed.
///
/// # Errors
/// As [`floats`]; a shape that is none of a transform.
pub(crate) fn transform<'a>(given: &'a DenseTransform<'_>) -> Result<Transform<'a>, Failure> {
    let (array, name, shape) = given;
    Ok(Transform::from_shape(floats_of(bytes(array)?, parse(name)?)?, shape)?)
}

/// `len` zeros of a type, or an error where there is no memory for them.
pub(crate) fn zeros(ty: FloatType, len: usize) -> Result<FloatVec, Failure> {
    reserve(len, ty.bytes())?;
    Ok(FloatVec::zeros(ty, len))
}

/// Checks that `len` values of `size` bytes fit the memory, so that no allocation ends the process.
pub(crate) fn reserve(len: usize, size: usize) -> Result<(), Failure> {
    let bytes = len.checked_mul(size).filter(|&bytes| isize::try_from(bytes).is_ok());
    let room = bytes.is_some_and(|bytes| Vec::<u8>::new().try_reserve_exact(bytes).is_ok());
    if room { Ok(()) } else { Err(quant_linear::Error::Memory { len }.into()) }
}

/// Values as a NumPy array: f32, or the bits of f16 or bf16 as `uint16`.
pub(crate) fn out(py: Python<'_>, values: FloatVec) -> Bound<'_, PyAny> {
    let bits = |bits: Vec<u16>| bits.into_pyarray(py).into_any();
    match values {
        FloatVec::F32(v) => v.into_pyarray(py).into_any(),
        // The bits in the allocation that there is.
        FloatVec::F16(v) => bits(v.into_iter().map(f16::to_bits).collect()),
        FloatVec::Bf16(v) => bits(v.into_iter().map(bf16::to_bits).collect()),
    }
}

/// Bytes as a NumPy array.
pub(crate) fn out_bytes(py: Python<'_>, bytes: Vec<u8>) -> Bound<'_, PyArray1<u8>> {
    bytes.into_pyarray(py)
}
