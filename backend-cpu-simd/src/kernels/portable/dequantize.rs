//! Look-ups of dequantized values, one after the other, without vectors (C4.4).

use super::Portable;
use crate::dequantize::{LookUp, PackedGroups};

impl LookUp for Portable {
    const PLANES: bool = false;

    fn look_up<const B: usize>(self, groups: PackedGroups<'_, B>, out: &mut [u8]) {
        groups.each(out, |table, codes, out| {
            let table = table.as_flattened().as_chunks::<B>().0;
            for (&byte, out) in codes.iter().zip(out.as_chunks_mut::<2>().0) {
                *out = [table[usize::from(byte & 0xF)], table[usize::from(byte >> 4)]];
            }
        });
    }
}
