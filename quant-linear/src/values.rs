//! Owned dense values of one of the three float types.

use std::fmt;

use fp4_core::{Float, FloatSlice, FloatSliceMut, FloatType, with_floats};
use half::{bf16, f16};

/// Dense values that own their buffer: a stored transform, or an output.
#[derive(Clone, PartialEq)]
pub enum FloatVec {
    /// f32 values.
    F32(Vec<f32>),
    /// f16 values.
    F16(Vec<f16>),
    /// bf16 values.
    Bf16(Vec<bf16>),
}

/// Type and length.
impl fmt::Debug for FloatVec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.as_slice(), f)
    }
}

impl FloatVec {
    /// `len` zeros of a type.
    pub fn zeros(ty: FloatType, len: usize) -> Self {
        match ty {
            FloatType::F32 => FloatVec::F32(vec![0.0; len]),
            FloatType::F16 => FloatVec::F16(vec![f16::ZERO; len]),
            FloatType::Bf16 => FloatVec::Bf16(vec![bf16::ZERO; len]),
        }
    }

    /// Reads little-endian bytes; `None` unless they are whole values.
    pub fn from_le_bytes(ty: FloatType, bytes: &[u8]) -> Option<Self> {
        if !bytes.len().is_multiple_of(ty.bytes()) {
            return None;
        }
        let mut values = Self::zeros(ty, 0);
        values.append_le_bytes(bytes);
        Some(values)
    }

    /// Makes room for so many values in all.
    pub(crate) fn reserve(&mut self, len: usize) {
        match self {
            FloatVec::F32(v) => v.reserve_exact(len.saturating_sub(v.len())),
            FloatVec::F16(v) => v.reserve_exact(len.saturating_sub(v.len())),
            FloatVec::Bf16(v) => v.reserve_exact(len.saturating_sub(v.len())),
        }
    }

    /// Appends the whole values among little-endian bytes.
    pub(crate) fn append_le_bytes(&mut self, bytes: &[u8]) {
        let u16s = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
        match self {
            FloatVec::F32(v) => v.extend(
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            ),
            FloatVec::F16(v) => v.extend(u16s().map(f16::from_bits)),
            FloatVec::Bf16(v) => v.extend(u16s().map(bf16::from_bits)),
        }
    }

    /// The values as little-endian bytes, verbatim.
    pub fn to_le_bytes(&self) -> Vec<u8> {
        match self {
            FloatVec::F32(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            FloatVec::F16(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            FloatVec::Bf16(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }

    /// The values, borrowed.
    pub fn as_slice(&self) -> FloatSlice<'_> {
        match self {
            FloatVec::F32(v) => FloatSlice::F32(v),
            FloatVec::F16(v) => FloatSlice::F16(v),
            FloatVec::Bf16(v) => FloatSlice::Bf16(v),
        }
    }

    /// The values, borrowed to be written.
    pub fn as_mut_slice(&mut self) -> FloatSliceMut<'_> {
        match self {
            FloatVec::F32(v) => FloatSliceMut::F32(v),
            FloatVec::F16(v) => FloatSliceMut::F16(v),
            FloatVec::Bf16(v) => FloatSliceMut::Bf16(v),
        }
    }

    /// The type of the values.
    pub fn float_type(&self) -> FloatType {
        self.as_slice().float_type()
    }

    /// The values in another type: widened exactly, then rounded once.
    #[must_use]
    pub fn converted(&self, ty: FloatType) -> Self {
        fn collect<T: Float>(from: FloatSlice<'_>) -> Vec<T> {
            with_floats!(FloatSlice, from, v => {
                v.iter().map(|&x| T::from_f32(Float::to_f32(x))).collect()
            })
        }
        if ty == self.float_type() {
            return self.clone(); // verbatim, NaN payloads included (C9)
        }
        match ty {
            FloatType::F32 => FloatVec::F32(collect(self.as_slice())),
            FloatType::F16 => FloatVec::F16(collect(self.as_slice())),
            FloatType::Bf16 => FloatVec::Bf16(collect(self.as_slice())),
        }
    }
}
