//! Dense values: the three float types behind one trait, and slices of them as one enum.
//!
//! Widening to f32 is exact. Narrowing is one rounding to nearest even with subnormals kept, and
//! every NaN becomes the canonical one ([C9]), whatever its payload was.
//!
//! [C9]: crate::contract#c9

use core::fmt;

use half::{bf16, f16};

use crate::error::{Buffer, Error};
use crate::format::FloatType;

/// The canonical f32 NaN (C9).
pub const NAN_F32: u32 = 0x7FC0_0000;
/// The canonical f16 NaN (C9).
pub const NAN_F16: u16 = 0x7E00;
/// The canonical bf16 NaN (C9).
pub const NAN_BF16: u16 = 0x7FC0;

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

/// A dense value type: f32, f16 or bf16. Sealed.
pub trait Float:
    sealed::Sealed + bytemuck::Pod + Send + Sync + Default + PartialEq + core::fmt::Debug
{
    /// The type's name as a value.
    const TYPE: FloatType;

    /// Widens; exact.
    fn to_f32(self) -> f32;

    /// Rounds once, to nearest even; NaN becomes canonical.
    fn from_f32(x: f32) -> Self;

    /// The slice as a [`FloatSlice`].
    fn wrap(values: &[Self]) -> FloatSlice<'_>;

    /// The slice as a [`FloatSliceMut`].
    fn wrap_mut(values: &mut [Self]) -> FloatSliceMut<'_>;
}

impl Float for f32 {
    const TYPE: FloatType = FloatType::F32;

    #[inline]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline]
    fn from_f32(x: f32) -> Self {
        if x.is_nan() { f32::from_bits(NAN_F32) } else { x }
    }

    fn wrap(values: &[Self]) -> FloatSlice<'_> {
        FloatSlice::F32(values)
    }

    fn wrap_mut(values: &mut [Self]) -> FloatSliceMut<'_> {
        FloatSliceMut::F32(values)
    }
}

impl Float for f16 {
    const TYPE: FloatType = FloatType::F16;

    #[inline]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }

    #[inline]
    fn from_f32(x: f32) -> Self {
        if x.is_nan() { f16::from_bits(NAN_F16) } else { f16::from_f32(x) }
    }

    fn wrap(values: &[Self]) -> FloatSlice<'_> {
        FloatSlice::F16(values)
    }

    fn wrap_mut(values: &mut [Self]) -> FloatSliceMut<'_> {
        FloatSliceMut::F16(values)
    }
}

impl Float for bf16 {
    const TYPE: FloatType = FloatType::Bf16;

    #[inline]
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }

    #[inline]
    fn from_f32(x: f32) -> Self {
        if x.is_nan() { bf16::from_bits(NAN_BF16) } else { bf16::from_f32(x) }
    }

    fn wrap(values: &[Self]) -> FloatSlice<'_> {
        FloatSlice::Bf16(values)
    }

    fn wrap_mut(values: &mut [Self]) -> FloatSliceMut<'_> {
        FloatSliceMut::Bf16(values)
    }
}

/// Borrowed dense values of one of the three types.
#[derive(Clone, Copy)]
pub enum FloatSlice<'a> {
    /// f32 values.
    F32(&'a [f32]),
    /// f16 values.
    F16(&'a [f16]),
    /// bf16 values.
    Bf16(&'a [bf16]),
}

/// Borrowed dense values of one of the three types, to write to.
pub enum FloatSliceMut<'a> {
    /// f32 values.
    F32(&'a mut [f32]),
    /// f16 values.
    F16(&'a mut [f16]),
    /// bf16 values.
    Bf16(&'a mut [bf16]),
}

/// Runs `$body` with `$v` bound to the typed slice inside a [`FloatSlice`] or
/// [`FloatSliceMut`].
#[macro_export]
macro_rules! with_floats {
    ($enum:ident, $slice:expr, $v:ident => $body:expr) => {
        match $slice {
            $crate::$enum::F32($v) => $body,
            $crate::$enum::F16($v) => $body,
            $crate::$enum::Bf16($v) => $body,
        }
    };
}

/// Type and length: there may be millions of values.
impl fmt::Debug for FloatSlice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.float_type(), self.len())
    }
}

/// Type and length.
impl fmt::Debug for FloatSliceMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.as_ref(), f)
    }
}

impl FloatSlice<'_> {
    /// The type of the values.
    pub fn float_type(&self) -> FloatType {
        match self {
            FloatSlice::F32(_) => FloatType::F32,
            FloatSlice::F16(_) => FloatType::F16,
            FloatSlice::Bf16(_) => FloatType::Bf16,
        }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        with_floats!(FloatSlice, self, v => v.len())
    }

    /// True if there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value at `index`, widened; exact. `None` outside the slice.
    pub fn get_f32(&self, index: usize) -> Option<f32> {
        with_floats!(FloatSlice, self, v => v.get(index).map(|&x| Float::to_f32(x)))
    }

    /// Checks the number of values.
    ///
    /// # Errors
    /// [`Error::Len`] unless there are `expected` values.
    pub fn expect_len(&self, what: Buffer, expected: usize) -> Result<(), Error> {
        let got = self.len();
        if got == expected { Ok(()) } else { Err(Error::Len { what, expected, got }) }
    }
}

impl FloatSliceMut<'_> {
    /// The type of the values.
    pub fn float_type(&self) -> FloatType {
        self.as_ref().float_type()
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.as_ref().len()
    }

    /// True if there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same values, borrowed again.
    pub fn reborrow(&mut self) -> FloatSliceMut<'_> {
        match self {
            FloatSliceMut::F32(v) => FloatSliceMut::F32(v),
            FloatSliceMut::F16(v) => FloatSliceMut::F16(v),
            FloatSliceMut::Bf16(v) => FloatSliceMut::Bf16(v),
        }
    }

    /// The same values, shared.
    pub fn as_ref(&self) -> FloatSlice<'_> {
        match self {
            FloatSliceMut::F32(v) => FloatSlice::F32(v),
            FloatSliceMut::F16(v) => FloatSlice::F16(v),
            FloatSliceMut::Bf16(v) => FloatSlice::Bf16(v),
        }
    }
}

impl<'a, T: Float> From<&'a [T]> for FloatSlice<'a> {
    fn from(values: &'a [T]) -> Self {
        T::wrap(values)
    }
}

impl<'a, T: Float> From<&'a mut [T]> for FloatSliceMut<'a> {
    fn from(values: &'a mut [T]) -> Self {
        T::wrap_mut(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_nan_becomes_canonical() {
        for bits in [0x7F80_0001, 0xFFC0_1234, 0xFFFF_FFFF, 0x7FC0_0000] {
            let nan = f32::from_bits(bits);
            assert_eq!(<f32 as Float>::from_f32(nan).to_bits(), NAN_F32);
            assert_eq!(<f16 as Float>::from_f32(nan).to_bits(), NAN_F16);
            assert_eq!(<bf16 as Float>::from_f32(nan).to_bits(), NAN_BF16);
        }
    }

    #[test]
    fn f16_and_bf16_subnormals_are_kept() {
        let tiny = 2f32.powi(-24);
        assert_eq!(<f16 as Float>::from_f32(tiny).to_bits(), 1);
        // Half of the smallest f16 subnormal is a tie with zero, and zero is even.
        assert_eq!(<f16 as Float>::from_f32(tiny / 2.0).to_bits(), 0);
        assert_eq!(<f16 as Float>::from_f32(tiny * 0.75).to_bits(), 1);
        assert_eq!(<bf16 as Float>::from_f32(f32::from_bits(0x0001_0000)).to_bits(), 1);
        assert_eq!(<bf16 as Float>::from_f32(f32::from_bits(0x0000_8000)).to_bits(), 0);
        assert_eq!(<bf16 as Float>::from_f32(f32::from_bits(0x0000_8001)).to_bits(), 1);
    }
}
