//! The kernels to multiply by, as a caller names them.

/// A kernel to multiply by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum MatmulKernel {
    /// The readable one.
    Naive,
    /// Tensor cores, for every device that this backend takes.
    Mma,
    /// Tensor cores on operands folded to int8, for every device and many rows of A. What is
    /// prepared or quantized under this or under `Auto` is folded at that time, but for MXINT8.
    /// MXINT8 by NVFP4, and NVFP4 of K above 2^20, go as by `Mma`.
    MmaFolded {
        /// In how many ranges K is split; 0 for as many as the device wants. Partial sums are
        /// exact, so the bits are the same.
        ranges: usize,
    },
    /// Streams B once, for few rows of A; any number is right.
    Decode {
        /// In how many ranges K is split; 0 for as many as the device wants. Partial sums are
        /// exact, so the bits are the same.
        ranges: usize,
    },
    /// Hopper's warpgroup instructions, for many rows of A: compute capability 9.0. What is
    /// prepared or quantized under this or under `Auto` is folded for it at that time, but for
    /// MXINT8. MXINT8 by NVFP4 goes by `Mma`.
    Wgmma,
    /// Hopper's warpgroup instructions on MXFP4 weights as they are packed, for few rows of A:
    /// compute capability 9.0. Activations that are quantized under this or under `Auto` are folded
    /// at that time, but for MXINT8. NVFP4 weights go by `Mma`.
    WgmmaRs {
        /// In how many ranges K is split; 0 for as many as the device wants. Partial sums are
        /// exact, so the bits are the same.
        ranges: usize,
    },
    /// The fastest of these that the shape and the device allow.
    #[default]
    Auto,
}
