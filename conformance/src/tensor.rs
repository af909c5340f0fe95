//! Dense values by their bits: what the suite generates, hands out and compares.

use fp4_core::{Float, FloatSlice, FloatSliceMut, FloatType, with_floats};
use half::{bf16, f16};
use safetensors::Dtype;

/// What output buffers hold before a backend writes them.
const GARBAGE: u32 = 0xA5A5_A5A5;

/// Dense values of one of the three float types, owned.
#[derive(Debug, Clone)]
pub enum Values {
    /// f32 values.
    F32(Vec<f32>),
    /// f16 values.
    F16(Vec<f16>),
    /// bf16 values.
    Bf16(Vec<bf16>),
}

impl Values {
    /// The values, borrowed.
    pub fn as_slice(&self) -> FloatSlice<'_> {
        match self {
            Values::F32(v) => v.as_slice().into(),
            Values::F16(v) => v.as_slice().into(),
            Values::Bf16(v) => v.as_slice().into(),
        }
    }

    /// The values, borrowed to write to.
    pub fn as_mut_slice(&mut self) -> FloatSliceMut<'_> {
        match self {
            Values::F32(v) => v.as_mut_slice().into(),
            Values::F16(v) => v.as_mut_slice().into(),
            Values::Bf16(v) => v.as_mut_slice().into(),
        }
    }

    /// The values widened to f32; exact.
    pub fn widened(&self) -> Vec<f32> {
        with_floats!(FloatSlice, self.as_slice(), v => v.iter().map(|&x| Float::to_f32(x)).collect())
    }
}

/// The bits of dense values.
pub fn bits_of(values: FloatSlice<'_>) -> Vec<u32> {
    match values {
        FloatSlice::F32(v) => v.iter().map(|x| x.to_bits()).collect(),
        FloatSlice::F16(v) => v.iter().map(|x| x.to_bits().into()).collect(),
        FloatSlice::Bf16(v) => v.iter().map(|x| x.to_bits().into()).collect(),
    }
}

/// Values of a type from their bits.
pub fn from_bits(ty: FloatType, bits: impl IntoIterator<Item = u32>) -> Values {
    let bits = bits.into_iter();
    match ty {
        FloatType::F32 => Values::F32(bits.map(f32::from_bits).collect()),
        FloatType::F16 => Values::F16(bits.map(|b| f16::from_bits(b as u16)).collect()),
        FloatType::Bf16 => Values::Bf16(bits.map(|b| bf16::from_bits(b as u16)).collect()),
    }
}

/// `len` values that no backend would write.
pub fn garbage(ty: FloatType, len: usize) -> Values {
    from_bits(ty, std::iter::repeat_n(GARBAGE, len))
}

/// The safetensors type.
pub fn dtype(ty: FloatType) -> Dtype {
    match ty {
        FloatType::F32 => Dtype::F32,
        FloatType::F16 => Dtype::F16,
        FloatType::Bf16 => Dtype::BF16,
    }
}

/// Little-endian bytes of values given by their bits.
pub fn to_bytes(ty: FloatType, bits: &[u32]) -> Vec<u8> {
    bits.iter().flat_map(|bits| bits.to_le_bytes().into_iter().take(ty.bytes())).collect()
}

/// Values from their little-endian bytes.
pub fn from_bytes(ty: FloatType, bytes: &[u8]) -> Values {
    let word = |b: &[u8]| b.iter().rev().fold(0, |word, &b| word << 8 | u32::from(b));
    from_bits(ty, bytes.chunks_exact(ty.bytes()).map(word))
}
