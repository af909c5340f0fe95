//! Where the kernels of an instruction set change path: what a test should sit on, and one past.

use crate::isa::Isa;

/// Tile sizes and bounds of an instruction set's matmul kernels, as their modules state them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Rows of A in a tile or a block, ascending.
    pub rows: &'static [usize],
    /// Columns (rows of B) in a panel or a pair of panels, ascending.
    pub columns: &'static [usize],
    /// Joint exponent spreads (octaves between a product's largest and smallest scales) up to
    /// which a path is exact, ascending.
    pub spreads: &'static [u32],
}

impl Isa {
    /// Tile sizes and bounds of the kernels.
    pub const fn limits(self) -> Limits {
        match self {
            // Tiles of 14 rows by pairs of panels, 16 in the group form, 24 in the fold form. A fold
            // window holds spread 3 of either side, 6 of both; a group plane 8 of A (256 <= 258)
            // and 6 of B (64 <= 127).
            Isa::Avx512Vnni => {
                Limits { rows: &[14, 16, 24], columns: &[16, 32], spreads: &[3, 6, 14, 40] }
            }
            // Tiles of 6 rows by pairs of panels for more than 24 rows of A, else 8 in the fold form, 24 in blocks
            // of 2 in the group form; windows as above.
            Isa::AvxVnni => {
                Limits { rows: &[2, 6, 8, 24], columns: &[16, 32], spreads: &[3, 6, 14, 40] }
            }
            // Blocks of 6 rows in the fold form and 4 in the group form, in tiles of 24.
            Isa::NeonI8mm | Isa::NeonDotprod => {
                Limits { rows: &[4, 6, 24], columns: &[16], spreads: &[3, 6, 14, 40] }
            }
            Isa::Neon => Limits { rows: &[2, 24], columns: &[16], spreads: &[6, 8, 14, 40] },
            Isa::WasmSimd128 => Limits { rows: &[4, 24], columns: &[16], spreads: &[6, 8, 14, 40] },
            // Blocks of 4 rows in tiles of 24.
            Isa::Avx2 => Limits { rows: &[4, 24], columns: &[16], spreads: &[6, 8, 14, 40] },
            // Tiles of 4 x 8, blocks of 64 rows; 53 bits for one MXFP4 group.
            Isa::Portable => Limits { rows: &[4, 64], columns: &[8], spreads: &[40] },
        }
    }
}
