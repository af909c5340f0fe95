//! Which kernels run: the one place where an instruction set becomes its kernels' types.
//!
//! An [`Engine`] is made once, from an [`Isa`], by asking the CPU; what it holds is the proof.
//! Every operation goes through [`by_engine!`](by_engine), which calls the driver with the kernels'
//! type. A weight is an [`Engine`] that holds panels too: whoever multiplies it uses its kernels.
//!
//! # Adding an instruction set
//!
//! One folder and two lines: a line here, an entry in `isa`, and `kernels/<architecture>/<set>/`
//! with the files of its neighbours (and its `mod` and `use` there). For AVX10.2, say:
//!
//! ```text
//! engine.rs    + #[cfg(target_arch = "x86_64")] Avx10(x86::Avx10);
//! isa.rs       + /// x86-64 with AVX10.2.
//!              + Avx10 "avx10" { rows: [14, 16, 24], columns: [16, 32], spreads: [3, 6, 14, 40] }
//! kernels/x86/avx10/mod.rs          struct Avx10(()) whose `new` asks the CPU
//!                   matmul.rs       Kernels; FoldKernels and PairKernels if it has them
//!                   quantize.rs     Encode, or a neighbour's
//!                   dequantize.rs   LookUp, or a neighbour's
//! ```
//!
//! The tests and the suite run on every [`Isa::available`], so they run on the new one: when they
//! pass where the CPU has it, it is done.

use std::marker::PhantomData;

use fp4_core::Unsupported;

use crate::isa::Isa;
#[cfg(target_arch = "aarch64")]
use crate::kernels::neon;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
use crate::kernels::wasm;
#[cfg(target_arch = "x86_64")]
use crate::kernels::x86;

/// Defines [`Engine`] and what there is to do for each of a list of instruction sets. `$d` is a
/// dollar.
macro_rules! engines {
    ($d:tt $(#[cfg($cfg:meta)] $isa:ident($kernels:ty);)*) => {
        /// An instruction set with the proof that this CPU has it, and what is in the form that
        /// its kernels read: `T` for those that plug into the tiles, `P` for the portable ones.
        #[derive(Debug, Clone, Copy)]
        pub(crate) enum Engine<T = (), P = ()> {
            $(#[cfg($cfg)] $isa($kernels, T),)*
            // Where no kernels plug into the tiles, no other variant names `T`.
            Portable(P, PhantomData<T>),
        }

        impl Engine {
            /// Asks the CPU for an instruction set.
            pub(crate) fn new(isa: Isa) -> Result<Self, Unsupported> {
                match isa {
                    $(#[cfg($cfg)] Isa::$isa => {
                        <$kernels>::new().map(|kernels| Engine::$isa(kernels, ()))
                    })*
                    Isa::Portable => Ok(Engine::PORTABLE),
                    // Of another architecture.
                    _ => Err(Unsupported::CpuFeature(isa.name())),
                }
            }

            /// Which it is.
            pub(crate) fn isa(self) -> Isa {
                match self {
                    $(#[cfg($cfg)] Engine::$isa(..) => Isa::$isa,)*
                    Engine::Portable(..) => Isa::Portable,
                }
            }
        }

        /// `$tiled` with the engine's kernels as `$kernels` and a reference to what it holds as
        /// `$held`, or `$portable`.
        macro_rules! by_engine {
            (
                $d engine:expr, $d kernels:ident, $d held:pat => $d tiled:expr,
                portable, $d portable_held:pat => $d portable:expr
            ) => {
                match &$d engine {
                    $(#[cfg($cfg)] $d crate::engine::Engine::$isa(kernels, $d held) => {
                        let $d kernels = *kernels;
                        $d tiled
                    })*
                    $d crate::engine::Engine::Portable($d portable_held, _) => $d portable,
                }
            };
        }

        /// The engine with what `$tiled` makes for its kernels, `$kernels`, or with `$portable`.
        macro_rules! engine_with {
            ($d engine:expr, $d kernels:ident => $d tiled:expr, portable => $d portable:expr) => {
                match $d engine {
                    $(#[cfg($cfg)] $d crate::engine::Engine::$isa($d kernels, ()) => {
                        $d crate::engine::Engine::$isa($d kernels, $d tiled)
                    })*
                    $d crate::engine::Engine::Portable((), _) => {
                        $d crate::engine::Engine::Portable($d portable, std::marker::PhantomData)
                    }
                }
            };
        }
    };
}

engines! { $
    #[cfg(target_arch = "x86_64")] Avx512Vnni(x86::Avx512);
    #[cfg(target_arch = "x86_64")] AvxVnni(x86::AvxVnni);
    #[cfg(target_arch = "x86_64")] Avx2(x86::Avx2);
    #[cfg(target_arch = "aarch64")] NeonI8mm(neon::NeonI8mm);
    #[cfg(target_arch = "aarch64")] NeonDotprod(neon::NeonDotprod);
    #[cfg(target_arch = "aarch64")] Neon(neon::Neon);
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))] WasmSimd128(wasm::WasmSimd128);
}
#[expect(clippy::single_component_path_imports, reason = "it gives the macro a path")]
pub(crate) use {by_engine, engine_with};

impl Engine {
    const PORTABLE: Self = Engine::Portable((), PhantomData);

    /// The best that the CPU has.
    pub(crate) fn best() -> Self {
        Isa::ALL.into_iter().find_map(|isa| Engine::new(isa).ok()).unwrap_or(Engine::PORTABLE)
    }
}
