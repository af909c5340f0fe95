//! Kernels for aarch64 NEON, at three levels. Not yet run on hardware: tested under emulation.
//!
//! | level | MXFP4 | NVFP4 |
//! |---|---|---|
//! | [`Neon`] | group form, `smlal` | the same |
//! | [`NeonDotprod`] | fold form, `sdot` | group form, `sdot` |
//! | [`NeonI8mm`] | fold form, `smmla` | group form, `smmla` |
//!
//! A tile of one row takes `sdot` on [`NeonI8mm`] too: half of each `smmla` would be for a second.
//!
//! | module | contents | unsafe |
//! |---|---|---|
//! | `quantize` | scales, codes and transforms | yes |
//! | `dequantize` | look-ups of dequantized values | yes |
//! | `operand` | codes of A into tiles; chunks of B expanded to bytes | yes |
//! | `matmul` | lists of steps in blocks, rows a few at a time | yes |
//! | `smlal`, `sdot`, `smmla` | the instructions of each level: rows of A by an expanded block of B | yes |
//!
//! ```text
//! for each block of up to 8 steps (a chunk of A and one of B):
//!     w, s = the chunks of B as signed bytes, 4 columns a vector, and their scales   tbl, sshl
//!     for each up to 6 (fold) or 4 (group) rows of the tile, by all 16 columns:
//!         fold     sum += w . a                                  sdot, smmla
//!         group    t = w . a over a half; sum += t * (s_a * s_b) sdot, smmla or smlal; mul, mla
//! ```
//!
//! The instructions of `dotprod` and `i8mm` have no stable intrinsics, so they are inline assembly,
//! one instruction each: the compiler still allocates the registers and orders the code.
//! `tests/neon_loops.py` counts what it makes of the hot loops.
//!
//! # Why it is exact
//!
//! All multiplies are signed by signed, so nothing is offset ([`FoldKernels::OFFSET`] is 0), and
//! none of the instructions saturates.
//!
//! *Fold.* Both factors are doubled codes times 1, 2, 4 or 8: |.| <= 96, in i8. The 32-bit sum of n
//! chunks is at most n * 32 * 96 * 96, below 2^31 for n <= [`FOLD_CHUNKS`].
//!
//! *Group.* Both factors are doubled codes, |.| <= 12. A half's dot is at most 16 * 144 = 2304.
//! `smlal` sums it in 16 bits first: four products to a lane and then two lanes, at most 8 * 144 =
//! 1152. The product of scaled scales is at most 258 * 127 = 32766, and the 32-bit sum of n chunks
//! at most n * 2 * 2304 * max_a * max_b: the driver drains in time ([`group_chunks`]).
//!
//! Worked example, fold: code 7 with shift 3 is 12 << 3 = 96, code 0xF is -12 and with shift 3 -96;
//! `sdot` of four such pairs adds 4 * -9216 = -36864.
//!
//! [`FOLD_CHUNKS`]: crate::matmul::bounds::FOLD_CHUNKS
//! [`group_chunks`]: crate::matmul::bounds::group_chunks

mod dequantize;
mod matmul;
mod operand;
mod quantize;
mod sdot;
mod smlal;
mod smmla;

use std::arch::is_aarch64_feature_detected;

use fp4_core::Unsupported;

#[cfg(doc)]
use crate::matmul::FoldKernels;

/// Returns the reason if the CPU lacks one of the features.
macro_rules! need {
    ($($feature:tt)*) => {
        $(if !is_aarch64_feature_detected!($feature) {
            return Err(Unsupported::CpuFeature($feature));
        })*
    };
}

/// Defines the proof of a level.
macro_rules! level {
    ($(#[$doc:meta])* $name:ident, [$($feature:tt)*]) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub(crate) struct $name(());

        impl $name {
            /// Asks the CPU.
            pub(crate) fn new() -> Result<Self, Unsupported> {
                need!($($feature)*);
                Ok($name(()))
            }
        }
    };
}

level!(
    /// Proof that this CPU has NEON.
    Neon, ["neon"]
);
level!(
    /// Proof that this CPU has NEON with the dot product instructions.
    NeonDotprod, ["neon" "dotprod"]
);
level!(
    /// Proof that this CPU has NEON with the 8-bit matrix multiply instructions.
    NeonI8mm, ["neon" "dotprod" "i8mm"]
);
