//! Which instruction sets there are kernels for, and which of them this CPU has.

use std::fmt;

use fp4_core::Unsupported;

#[cfg(target_arch = "aarch64")]
use crate::neon::{Neon, NeonDotprod, NeonI8mm};
use crate::tiles::Kernels;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
use crate::wasm::WasmSimd128;
#[cfg(target_arch = "x86_64")]
use crate::x86::{Avx2, Avx512, AvxVnni};

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

    /// The name, as in benchmark tables: `avx512-vnni`, `avx-vnni`, `avx2`, `neon-i8mm`, `neon-dotprod`,
    /// `neon`, `wasm-simd128`, `portable`.
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

/// An instruction set with the proof that this CPU has it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Engine {
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "x86_64")]
    AvxVnni(AvxVnni),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "aarch64")]
    NeonI8mm(NeonI8mm),
    #[cfg(target_arch = "aarch64")]
    NeonDotprod(NeonDotprod),
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
    WasmSimd128(WasmSimd128),
    Portable,
}

/// `$tiled` with the engine's kernels as `$kernels`, or `$portable`.
macro_rules! by_engine {
    ($engine:expr, $kernels:ident => $tiled:expr, portable => $portable:expr) => {
        match $engine {
            #[cfg(target_arch = "x86_64")]
            $crate::isa::Engine::Avx512($kernels) => $tiled,
            #[cfg(target_arch = "x86_64")]
            $crate::isa::Engine::AvxVnni($kernels) => $tiled,
            #[cfg(target_arch = "x86_64")]
            $crate::isa::Engine::Avx2($kernels) => $tiled,
            #[cfg(target_arch = "aarch64")]
            $crate::isa::Engine::NeonI8mm($kernels) => $tiled,
            #[cfg(target_arch = "aarch64")]
            $crate::isa::Engine::NeonDotprod($kernels) => $tiled,
            #[cfg(target_arch = "aarch64")]
            $crate::isa::Engine::Neon($kernels) => $tiled,
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
            $crate::isa::Engine::WasmSimd128($kernels) => $tiled,
            $crate::isa::Engine::Portable => $portable,
        }
    };
}
pub(crate) use by_engine;

impl Engine {
    /// Asks the CPU for an instruction set.
    pub(crate) fn new(isa: Isa) -> Result<Self, Unsupported> {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => Avx512::new().map(Engine::Avx512),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => AvxVnni::new().map(Engine::AvxVnni),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Avx2::new().map(Engine::Avx2),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonI8mm => NeonI8mm::new().map(Engine::NeonI8mm),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDotprod => NeonDotprod::new().map(Engine::NeonDotprod),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => Neon::new().map(Engine::Neon),
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
            Isa::WasmSimd128 => WasmSimd128::new().map(Engine::WasmSimd128),
            Isa::Portable => Ok(Engine::Portable),
            // Of another architecture.
            #[allow(unreachable_patterns, reason = "which arms there are depends on the target")]
            _ => Err(Unsupported::CpuFeature(isa.name())),
        }
    }

    /// The best that the CPU has.
    pub(crate) fn best() -> Self {
        Isa::ALL.into_iter().find_map(|isa| Engine::new(isa).ok()).unwrap_or(Engine::Portable)
    }

    pub(crate) fn isa(self) -> Isa {
        fn of<K: Kernels>(_: K) -> Isa {
            K::ISA
        }
        by_engine!(self, kernels => of(kernels), portable => Isa::Portable)
    }
}
