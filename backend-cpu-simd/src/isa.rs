//! The instruction sets that there are kernels for, by name, and which of them this CPU has.

use std::fmt;
use std::str::FromStr;

use crate::engine::Engine;

/// An instruction set that this crate has kernels for, fastest first.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Isa {
    /// x86-64 with AVX-512 F, BW, DQ, VL, VNNI and VBMI.
    Avx512Vnni,
    /// x86-64 with AVX-VNNI (dot products on 256 bits), AVX2, FMA and F16C.
    AvxVnni,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// aarch64 NEON with the dot product and 8-bit matrix multiply instructions (`smmla`).
    NeonI8mm,
    /// aarch64 NEON with the dot product instructions (`sdot`).
    NeonDotprod,
    /// aarch64 NEON.
    Neon,
    /// wasm32 with simd128, which the build enables or not.
    WasmSimd128,
    /// The kernels on the `wide` crate: every CPU.
    Portable,
}

impl Isa {
    /// All of them, fastest first.
    pub const ALL: [Isa; 8] = [
        Isa::Avx512Vnni,
        Isa::AvxVnni,
        Isa::Avx2,
        Isa::NeonI8mm,
        Isa::NeonDotprod,
        Isa::Neon,
        Isa::WasmSimd128,
        Isa::Portable,
    ];

    /// Those that this CPU has, fastest first.
    pub fn available() -> impl Iterator<Item = Isa> {
        Isa::ALL.into_iter().filter(|&isa| Engine::new(isa).is_ok())
    }

    /// The fastest that this CPU has: what [`CpuSimd::new`](crate::CpuSimd::new) takes.
    pub fn best() -> Isa {
        Engine::best().isa()
    }

    /// The name, as in benchmark tables, which [`FromStr`] reads: `avx512-vnni`, `avx-vnni`, `avx2`,
    /// `neon-i8mm`, `neon-dotprod`, `neon`, `wasm-simd128`, `portable`.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Avx512Vnni => "avx512-vnni",
            Isa::AvxVnni => "avx-vnni",
            Isa::Avx2 => "avx2",
            Isa::NeonI8mm => "neon-i8mm",
            Isa::NeonDotprod => "neon-dotprod",
            Isa::Neon => "neon",
            Isa::WasmSimd128 => "wasm-simd128",
            Isa::Portable => "portable",
        }
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
