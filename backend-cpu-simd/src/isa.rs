//! The instruction sets that there are kernels for, by name, and which of them this CPU has.

use std::fmt;
use std::str::FromStr;

use crate::engine::Engine;
use crate::limits::Limits;

/// Defines [`Isa`] from a list of instruction sets: their names, and the limits of their kernels.
macro_rules! isas {
    ($($(#[$doc:meta])* $isa:ident $name:literal {
        rows: $rows:expr, columns: $columns:expr, spreads: $spreads:expr
    })*) => {
        /// An instruction set that this crate has kernels for, fastest first.
        #[non_exhaustive]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Isa {
            $($(#[$doc])* $isa,)*
        }

        impl Isa {
            /// All of them, fastest first.
            pub const ALL: [Isa; [$($name),*].len()] = [$(Isa::$isa),*];

            /// The name, as in benchmark tables, which [`FromStr`] reads: `avx512-vnni`,
            /// `avx-vnni`, `avx2`, `neon-i8mm`, `neon-dotprod`, `neon`, `wasm-simd128`, `portable`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Isa::$isa => $name,)*
                }
            }

            /// Tile sizes and bounds of the kernels.
            pub const fn limits(self) -> Limits {
                match self {
                    $(Isa::$isa => Limits { rows: &$rows, columns: &$columns, spreads: &$spreads },)*
                }
            }
        }
    };
}

// With each, why its limits. A fold window holds spread 3 of either side, 6 of both; a group plane
// 8 of A (256 <= 258) and 6 of B (64 <= 127).
isas! {
    /// x86-64 with AVX-512 F, BW, DQ, VL, VNNI and VBMI.
    // Tiles of 14 rows by pairs of panels, 16 in the group form, 24 in the fold form.
    Avx512Vnni "avx512-vnni" { rows: [14, 16, 24], columns: [16, 32], spreads: [3, 6, 14, 40] }
    /// x86-64 with AVX-VNNI (dot products on 256 bits), AVX2, FMA and F16C.
    // Tiles of 6 rows by pairs of panels for more than 24 rows of A, else 8 in the fold form, 24 in
    // blocks of 2 in the group form.
    AvxVnni "avx-vnni" { rows: [2, 6, 8, 24], columns: [16, 32], spreads: [3, 6, 14, 40] }
    /// x86-64 with AVX2, FMA and F16C.
    // Blocks of 4 rows in tiles of 24.
    Avx2 "avx2" { rows: [4, 24], columns: [16], spreads: [6, 8, 14, 40] }
    /// aarch64 NEON with the dot product and 8-bit matrix multiply instructions (`smmla`).
    // Blocks of 6 rows in the fold form and 4 in the group form, in tiles of 24.
    NeonI8mm "neon-i8mm" { rows: [4, 6, 24], columns: [16], spreads: [3, 6, 14, 40] }
    /// aarch64 NEON with the dot product instructions (`sdot`).
    // As `NeonI8mm`.
    NeonDotprod "neon-dotprod" { rows: [4, 6, 24], columns: [16], spreads: [3, 6, 14, 40] }
    /// aarch64 NEON.
    Neon "neon" { rows: [2, 24], columns: [16], spreads: [6, 8, 14, 40] }
    /// wasm32 with simd128, which the build enables or not.
    WasmSimd128 "wasm-simd128" { rows: [4, 24], columns: [16], spreads: [6, 8, 14, 40] }
    /// The kernels on the `wide` crate: every CPU.
    // Tiles of 4 x 8, blocks of 64 rows; 53 bits for one MXFP4 group.
    Portable "portable" { rows: [4, 64], columns: [8], spreads: [40] }
}

impl Isa {
    /// Those that this CPU has, fastest first.
    pub fn available() -> impl Iterator<Item = Isa> {
        Isa::ALL.into_iter().filter(|&isa| Engine::new(isa).is_ok())
    }

    /// The fastest that this CPU has: what [`CpuSimd::new`](crate::CpuSimd::new) takes.
    pub fn best() -> Isa {
        Engine::best().isa()
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Isa {
    type Err = ParseIsaError;

    /// The instruction set of this [`name`](Isa::name), whether or not this CPU has it.
    fn from_str(name: &str) -> Result<Self, ParseIsaError> {
        let named = Isa::ALL.into_iter().find(|isa| isa.name() == name);
        named.ok_or_else(|| ParseIsaError { given: name.chars().take(LONGEST_GIVEN).collect() })
    }
}

/// Characters of an unknown name that the error keeps.
const LONGEST_GIVEN: usize = 40;

/// A name that is no [`Isa`]'s.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseIsaError {
    given: String,
}

impl fmt::Display for ParseIsaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // As a literal: control characters are escaped.
        write!(f, "{:?} is no instruction set; give one of", self.given)?;
        for (i, isa) in Isa::ALL.into_iter().enumerate() {
            write!(f, "{}{isa}", if i == 0 { " " } else { ", " })?;
        }
        Ok(())
    }
}

impl std::error::Error for ParseIsaError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_back_and_others_are_refused_with_the_list() {
        for isa in Isa::ALL {
            assert_eq!(isa.to_string().parse(), Ok(isa));
        }
        for given in ["", "AVX2", "avx2 ", "avx512", "neon\u{1b}[31m"] {
            let message = given.parse::<Isa>().unwrap_err().to_string();
            assert!(message.starts_with(&format!("{given:?} is no instruction set")), "{message}");
            assert!(Isa::ALL.iter().all(|isa| message.contains(isa.name())), "{message}");
            assert!(!message.contains(char::is_control), "{message:?}");
        }
        let long = "x".repeat(1 << 20).parse::<Isa>().unwrap_err().to_string();
        assert!(long.len() < 200, "{} bytes", long.len());
    }
}
