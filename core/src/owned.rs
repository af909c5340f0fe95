//! Dense values and block transforms that own their buffers (feature `alloc`).
//!
//! [`FloatVec`] is to [`FloatSlice`] what `Vec` is to a slice, and [`OwnedTransform`] is to
//! [`Transform`]: a stored transform of a layer, or one that is loaded from a file.

use alloc::vec::Vec;
use core::fmt;

use half::{bf16, f16};

use crate::error::{Buffer, Error};
use crate::float::{Float, FloatSlice, FloatSliceMut};
use crate::format::{FloatType, GroupSize};
use crate::transform::{Transform, hadamard};
use crate::with_floats;

/// Dense values of one of the three float types, owned.
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

impl Default for FloatVec {
    fn default() -> Self {
        FloatVec::F32(Vec::new())
    }
}

impl FloatVec {
    /// `len` zeros of a type.
    pub fn zeros(ty: FloatType, len: usize) -> Self {
        let mut zeros = FloatVec::default();
        zeros.resize(ty, len);
        zeros
    }

    /// Makes it `len` values of a type, whatever they are, and gives them to be written; the
    /// allocation is kept where it has the type and room.
    pub fn resize(&mut self, ty: FloatType, len: usize) -> FloatSliceMut<'_> {
        if self.float_type() != ty {
            *self = match ty {
                FloatType::F32 => FloatVec::F32(Vec::new()),
                FloatType::F16 => FloatVec::F16(Vec::new()),
                FloatType::Bf16 => FloatVec::Bf16(Vec::new()),
            };
        }
        match self {
            FloatVec::F32(v) => v.resize(len, 0.0),
            FloatVec::F16(v) => v.resize(len, f16::ZERO),
            FloatVec::Bf16(v) => v.resize(len, bf16::ZERO),
        }
        self.as_mut_slice()
    }

    /// Reads little-endian bytes; `None` unless they are whole values.
    pub fn from_le_bytes(ty: FloatType, bytes: &[u8]) -> Option<Self> {
        if !bytes.len().is_multiple_of(ty.bytes()) {
            return None;
        }
        let mut values = FloatVec::zeros(ty, 0);
        values.reserve(bytes.len() / ty.bytes());
        values.append_le_bytes(bytes);
        Some(values)
    }

    /// Makes room for `len` values in all.
    pub fn reserve(&mut self, len: usize) {
        match self {
            FloatVec::F32(v) => v.reserve_exact(len.saturating_sub(v.len())),
            FloatVec::F16(v) => v.reserve_exact(len.saturating_sub(v.len())),
            FloatVec::Bf16(v) => v.reserve_exact(len.saturating_sub(v.len())),
        }
    }

    /// Appends the whole values among little-endian bytes.
    pub fn append_le_bytes(&mut self, bytes: &[u8]) {
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

    /// Number of values.
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// True if there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
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

impl From<FloatSlice<'_>> for FloatVec {
    fn from(values: FloatSlice<'_>) -> Self {
        match values {
            FloatSlice::F32(v) => FloatVec::F32(v.to_vec()),
            FloatSlice::F16(v) => FloatVec::F16(v.to_vec()),
            FloatSlice::Bf16(v) => FloatVec::Bf16(v.to_vec()),
        }
    }
}

/// An owned block transform: its values and their shape, (Bt, Bt) or (blocks, Bt, Bt) (C5).
#[derive(Debug, Clone, PartialEq)]
pub struct OwnedTransform {
    values: FloatVec,
    shape: Vec<usize>,
}

impl OwnedTransform {
    /// Values of a transform and their shape, (Bt, Bt) or (blocks, Bt, Bt).
    ///
    /// # Errors
    /// [`Error::TransformBlock`] or [`Error::Len`] if the shape is no transform or the values do
    /// not fill it.
    pub fn new(values: FloatVec, shape: Vec<usize>) -> Result<Self, Error> {
        Transform::from_shape(values.as_slice(), &shape)?;
        Ok(OwnedTransform { values, shape })
    }

    /// The orthonormal Hadamard matrix of `block` x `block`, shared by all blocks, in f32.
    ///
    /// # Errors
    /// [`Error::TransformBlock`] unless `block` is 16, 32, 64 or 128.
    pub fn hadamard(block: usize) -> Result<Self, Error> {
        let size = GroupSize::new(block).map_err(|_| Error::TransformBlock { got: block })?.get();
        let mut values = alloc::vec![0f32; size * size];
        hadamard(size, &mut values)?;
        Self::new(FloatVec::F32(values), alloc::vec![size, size])
    }

    /// The transform, borrowed.
    ///
    /// # Errors
    /// None in practice: the shape was checked when it was built.
    pub fn view(&self) -> Result<Transform<'_>, Error> {
        Transform::from_shape(self.values.as_slice(), &self.shape)
    }

    /// The same transform with its values in another type, each rounded once.
    #[must_use]
    pub fn converted(&self, ty: FloatType) -> Self {
        OwnedTransform { values: self.values.converted(ty), shape: self.shape.clone() }
    }

    /// The stored values.
    pub fn values(&self) -> &FloatVec {
        &self.values
    }

    /// The stored shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }
}

impl From<Transform<'_>> for OwnedTransform {
    fn from(transform: Transform<'_>) -> Self {
        let block = transform.block();
        let shape = match transform.shape().blocks {
            None => alloc::vec![block, block],
            Some(blocks) => alloc::vec![blocks, block, block],
        };
        OwnedTransform { values: transform.values().into(), shape }
    }
}

impl FloatSliceMut<'_> {
    /// Copies values of the same type and number, verbatim.
    ///
    /// # Errors
    /// [`Error::Len`] or [`Error::Float`], of the buffer `what`.
    pub fn copy_from(&mut self, from: FloatSlice<'_>, what: Buffer) -> Result<(), Error> {
        self.as_ref().expect_len(what, from.len())?;
        match (from, self) {
            (FloatSlice::F32(from), FloatSliceMut::F32(to)) => to.copy_from_slice(from),
            (FloatSlice::F16(from), FloatSliceMut::F16(to)) => to.copy_from_slice(from),
            (FloatSlice::Bf16(from), FloatSliceMut::Bf16(to)) => to.copy_from_slice(from),
            (from, to) => {
                let (expected, got) = (from.float_type(), to.float_type());
                return Err(Error::Float { what, expected, got });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_round_trip_through_bytes_and_types() {
        for ty in FloatType::ALL {
            let x = FloatVec::F32(alloc::vec![1.5, -0.0, 3.0]).converted(ty);
            assert_eq!((x.float_type(), x.len()), (ty, 3));
            assert_eq!(FloatVec::from_le_bytes(ty, &x.to_le_bytes()), Some(x.clone()));
            assert_eq!(FloatVec::from_le_bytes(ty, &x.to_le_bytes()[1..]), None);
            assert_eq!(FloatVec::from(x.as_slice()), x);
        }
        // The same type is verbatim; another one makes a NaN canonical (C9).
        let nan = FloatVec::F32(alloc::vec![f32::from_bits(0xFFC0_1234)]);
        assert_eq!(nan.converted(FloatType::F32).to_le_bytes(), 0xFFC0_1234u32.to_le_bytes());
        assert_eq!(nan.converted(FloatType::F16).to_le_bytes(), 0x7E00u16.to_le_bytes());
    }

    #[test]
    fn resizing_changes_type_and_length_and_keeps_an_allocation() {
        let mut x = FloatVec::zeros(FloatType::F32, 8);
        let FloatVec::F32(v) = &x else { unreachable!() };
        let before = v.as_ptr();
        assert_eq!(x.resize(FloatType::F32, 3).len(), 3);
        let FloatVec::F32(v) = &x else { unreachable!() };
        assert_eq!(v.as_ptr(), before);
        assert_eq!(x.resize(FloatType::Bf16, 5).float_type(), FloatType::Bf16);
    }

    #[test]
    fn copying_wants_the_same_type_and_length() {
        let x = FloatVec::F32(alloc::vec![1.0, 2.0]);
        let mut to = FloatVec::zeros(FloatType::F32, 2);
        to.as_mut_slice().copy_from(x.as_slice(), Buffer::Output).unwrap();
        assert_eq!(to, x);
        for (ty, len) in [(FloatType::F16, 2), (FloatType::F32, 3)] {
            let mut to = FloatVec::zeros(ty, len);
            assert!(to.as_mut_slice().copy_from(x.as_slice(), Buffer::Output).is_err());
        }
    }

    #[test]
    fn an_owned_transform_is_checked_and_borrows_as_it_was() {
        let t = OwnedTransform::hadamard(16).unwrap();
        assert_eq!((t.shape(), t.view().unwrap().block()), (&[16, 16][..], 16));
        assert_eq!(OwnedTransform::from(t.view().unwrap()), t);
        assert_eq!(t.converted(FloatType::Bf16).values().float_type(), FloatType::Bf16);
        let values = || FloatVec::zeros(FloatType::F32, 512);
        let blocks = OwnedTransform::new(values(), alloc::vec![2, 16, 16]).unwrap();
        assert_eq!(OwnedTransform::from(blocks.view().unwrap()), blocks);
        assert!(OwnedTransform::new(values(), alloc::vec![16, 16]).is_err());
        assert_eq!(OwnedTransform::hadamard(8), Err(Error::TransformBlock { got: 8 }));
    }
}
