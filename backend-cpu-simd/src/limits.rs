//! Where the kernels of an instruction set change path: what a test should sit on, and one past.

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
