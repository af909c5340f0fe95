//! Which kernels run: the one place where an instruction set becomes its kernels' types.
//!
//! An [`Engine`] is made once, from an [`Isa`], by asking the CPU; what it holds is the proof. Every
//! operation goes through [`by_engine!`](by_engine), which calls the driver with the kernels' type.

use fp4_core::Unsupported;

use crate::isa::Isa;
#[cfg(target_arch = "aarch64")]
use crate::kernels::neon::{Neon, NeonDotprod, NeonI8mm};
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
use crate::kernels::wasm::WasmSimd128;
#[cfg(target_arch = "x86_64")]
use crate::kernels::x86::{Avx2, Avx512, AvxVnni};
use crate::matmul::Kernels;

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
            $crate::engine::Engine::Avx512($kernels) => $tiled,
            #[cfg(target_arch = "x86_64")]
            $crate::engine::Engine::AvxVnni($kernels) => $tiled,
            #[cfg(target_arch = "x86_64")]
            $crate::engine::Engine::Avx2($kernels) => $tiled,
            #[cfg(target_arch = "aarch64")]
            $crate::engine::Engine::NeonI8mm($kernels) => $tiled,
            #[cfg(target_arch = "aarch64")]
            $crate::engine::Engine::NeonDotprod($kernels) => $tiled,
            #[cfg(target_arch = "aarch64")]
            $crate::engine::Engine::Neon($kernels) => $tiled,
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
            $crate::engine::Engine::WasmSimd128($kernels) => $tiled,
            $crate::engine::Engine::Portable => $portable,
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
