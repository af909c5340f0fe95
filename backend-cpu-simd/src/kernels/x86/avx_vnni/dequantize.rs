//! Look-ups of dequantized values: those of AVX2.

use super::AvxVnni;
use crate::dequantize::{LookUp, PackedGroups};
use crate::kernels::x86::Avx2;

impl LookUp for AvxVnni {
    const PLANES: bool = Avx2::PLANES;

    fn look_up<const B: usize>(self, groups: PackedGroups<'_, B>, out: &mut [u8]) {
        self.0.look_up(groups, out);
    }
}
