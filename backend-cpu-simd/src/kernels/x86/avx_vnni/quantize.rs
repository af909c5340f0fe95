//! The quantizer: that of AVX2, since no dot product is in it.

use fp4_core::QuantSpec;

use super::AvxVnni;
use crate::counts::Groups;
use crate::quantize::{Encode, FloatValue};

/// Ties to even.
impl Encode for AvxVnni {
    fn run(
        &self,
        y: &[f32],
        spec: &QuantSpec,
        given: bool,
        scales: &mut [u8],
        codes: &mut [u8],
        groups: &mut Groups,
    ) {
        self.0.run(y, spec, given, scales, codes, groups);
    }

    fn largest(&self, y: &[f32]) -> u32 {
        self.0.largest(y)
    }

    fn run_int8(&self, y: &[f32], scales: &mut [u8], elements: &mut [u8]) -> bool {
        self.0.run_int8(y, scales, elements)
    }

    fn chains<T: FloatValue>(&self, block: usize, x: &[f32], columns: &[f32], y: &mut [f32]) {
        self.0.chains::<T>(block, x, columns, y);
    }
}
