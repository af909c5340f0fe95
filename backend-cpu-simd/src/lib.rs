//! The CPU backend of exact-fp4: SIMD kernels and threads, with the bits of the reference.
//!
//! # The model
//!
//! [`CpuSimd`] takes both roles of a backend. As a [`Quantizer`] it cuts the matrix into runs of
//! whole groups. As a [`Matmul`] it prepares the weight once, into panels of columns, and computes
//! tiles of rows by a panel in integers. Rayon threads take disjoint tiles, and nothing is ever
//! combined across threads, so the number of threads cannot change a bit; neither can the tile size
//! nor the instruction set, because every sum is exact until its one rounding ([C6]). As a
//! [`Resident`](fp4_core::backend::Resident) it keeps the activation in the form that the matmul
//! reads.
//!
//! Which kernels run is decided once, when the backend is made: [`CpuSimd::new`] takes the fastest
//! [`Isa`] that the CPU has, [`CpuSimd::with_isa`] the one that is asked for, or none.
//!
//! | [`Isa`] | MXFP4 matmul | NVFP4 matmul | quantize and transform |
//! |---|---|---|---|
//! | `Avx512Vnni` | scales folded into bytes, `vpdpbusd` over all of K | group dots, `vpdpbusd` and `vpdpwssd` | 16 values at a time; ties other than to even as `Portable` |
//! | `AvxVnni` | as `Avx512Vnni` on half the width | the same | as `Avx2` |
//! | `Avx2` | group dots, `vpmaddubsw` and `vpmaddwd` | the same | 8 values at a time; ties other than to even as `Portable` |
//! | `NeonI8mm` | scales folded into bytes, `smmla` | group dots, `smmla` | as `Neon` |
//! | `NeonDotprod` | scales folded into bytes, `sdot` | group dots, `sdot` | as `Neon` |
//! | `Neon` | group dots, `smlal` | the same | 16 values at a time; ties other than to even as `Portable` |
//! | `WasmSimd128` | 16-bit pairs, `i32x4.dot_i16x8_s` | the same | as `Neon`, f32 transforms in f64 |
//! | `Portable` | group dots of 16-bit pairs, sums in f64 and i64 | the same | 8 values at a time |
//!
//! Row scales (C4) take one pass more over the row, for its largest magnitude, and the same
//! kernels; a transform is computed once.
//!
//! MXINT8 activations (C10) go through the group kernels; MXFP4 weights have kernels of their own
//! on the levels that fold scales: 8 multiply-adds from the 4-bit panels, a shift by A's scale and
//! an add.
//!
//! Dequantization computes the 16 values under each scale byte once, by the reference's operations,
//! and looks them up: in vectors at every level. The NEON kernels were not yet run on hardware,
//! only under emulation. Whether WASM has simd128 is decided by the build; WASM has no threads, so
//! rayon runs everything on the current one.
//!
//! | module | contents |
//! |---|---|
//! | `isa` | instruction sets by name, and which of them this CPU has |
//! | `engine` | the one place where an instruction set becomes its kernels |
//! | `matmul` | the tiled matmul: panels, tiles, planes, the one rounding, and the traits of its kernels; states its proof of exactness |
//! | `quantize` | the quantizer and the transform in front of it, and the trait of their kernels |
//! | `dequantize` | the dequantizer: tables by scale byte, and the trait of its look-ups |
//! | `kernels` | a folder for each instruction set, with the same file names; each states its proof of exactness |
//! | `counts` | what a quantization did, counted by the group |
//! | `grouped` | several products in one call, in one parallel region |
//! | `resident` | activations kept in the kernels' form |
//! | `cost` | how long work takes, about |
//! | `memory` | large buffers in huge pages |
//! | `threads` | which rayon pool runs the tasks, and the check of the environment in each |
//! | `limits` | tile sizes and bounds of each, for tests to sit on |
//! | `environment` | a changed floating-point environment, for tests |
//!
//! `unsafe` is in `kernels` (loads and stores of vectors, calls of kernels by the holder of the
//! proof), in `matmul` (the output that several threads write), in `threads` (work borrowed by the
//! threads that came), in `memory` (advice about pages) and in `environment` (the control
//! register). `cargo bench` prints speeds beside rooflines and peers of the same run.
//!
//! # Example
//!
//! ```
//! use fp4_backend_cpu_simd::CpuSimd;
//! use fp4_core::{Format, Matmul, PackedMatrix, QuantSpec, QuantizeInput, Quantizer};
//!
//! let backend = CpuSimd::new();
//! let spec = QuantSpec::usual(Format::MxFp4);
//! let x: Vec<f32> = (0..3 * 64).map(|i| (i as f32 * 0.37).sin()).collect();
//! let mut packed = PackedMatrix::zeros(spec.shape(3, 64)?);
//! backend.quantize(&QuantizeInput::new(&x[..], 3, 64, &spec)?, &mut packed.view_mut())?;
//!
//! let weight = backend.prepare(packed.view())?; // once for a weight
//! let mut y = [0f32; 9]; // x * x^T; alpha undoes the two global scales
//! let paths = backend.matmul(packed.view(), &weight, (1.0 / 9.0).into(), (&mut y[..]).into())?;
//! assert_eq!((paths.wide, y[1]), (0, y[3]));
//! # Ok::<(), fp4_core::Error>(())
//! ```
//!
//! [C6]: fp4_core::contract#c6

#![deny(unsafe_op_in_unsafe_fn)]

mod cost;
mod counts;
mod dequantize;
mod engine;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub mod environment;
mod grouped;
mod isa;
mod kernels;
mod limits;
#[cfg_attr(
    not(any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        all(target_arch = "wasm32", target_feature = "simd128")
    )),
    allow(dead_code, unused_imports, reason = "no kernels plug into the tiles")
)]
mod matmul;
#[cfg_attr(
    not(any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        all(target_arch = "wasm32", target_feature = "simd128")
    )),
    allow(dead_code, reason = "no kernels plug into the tiles")
)]
mod memory;
mod quantize;
mod resident;
mod threads;
#[cfg_attr(
    not(any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        all(target_arch = "wasm32", target_feature = "simd128")
    )),
    allow(unused_variables, reason = "no kernels plug into the tiles")
)]
mod weight;

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use fp4_core::{
    Buffer, Encoding, Epilogue, Error, FloatSlice, FloatSliceMut, GroupedError, GroupedProduct,
    Matmul, MatmulQuery, Named, Packed, PackedMut, PackedShape, PackedView, PartialsMut, Paths,
    PreparedWeight, QuantCounts, QuantizeInput, QuantizeQuery, Quantizer, TieMode, Transform,
    Unsupported, backend::expect_grouped, check_environment,
};

pub use crate::isa::{Isa, ParseIsaError};
pub use crate::limits::Limits;
pub use crate::resident::{CpuOperand, CpuTensor, CpuTransform};
/// What [`CpuSimd::with_pool`] takes, and what makes one.
pub use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::engine::{Engine, by_engine};
use crate::grouped::GroupedCall;
use crate::kernels::portable;
use crate::quantize::{RowScratch, TransformColumns};
use crate::threads::TaskThreads;
use crate::weight::Weight;

/// The CPU backend: quantizer and matmul. Cheap to clone; the clones share the thread pool and the
/// scratch memory.
#[derive(Debug, Clone)]
pub struct CpuSimd {
    threads: TaskThreads,
    engine: Engine,
    scratch: matmul::TileScratch,
    row_scratch: RowScratch,
}

/// A weight prepared by [`CpuSimd`], in the form that the instruction set's kernels read; the
/// packed form is not kept. It is multiplied by those kernels, whatever the instruction set of the
/// [`CpuSimd`] that is asked to: the bits are the same.
///
/// Portable kernels apart: the packed codes and scale bytes in another order and what is known of
/// each panel of columns, at most 1.05 times the packed size for N a multiple of 16 from 256 and K
/// from 1024 up. Portable: codes as bytes and a bit beside each, 2.2 times the packed size.
///
/// `B` is what it was prepared from; nothing of that type is held.
#[derive(Clone)]
pub struct CpuWeight<B> {
    weight: Weight,
    from: PhantomData<fn() -> B>,
}

/// Shape and format.
impl<B: Packed> fmt::Debug for CpuWeight<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CpuWeight").field("shape", &self.shape()).finish_non_exhaustive()
    }
}

impl<B: Packed> PreparedWeight for CpuWeight<B> {
    fn shape(&self) -> PackedShape {
        self.weight.shape()
    }
}

impl<B: Packed> CpuWeight<B> {
    /// Bytes of memory that the weight holds: codes and scales as packed, and what is known of each
    /// panel of columns.
    pub fn resident_bytes(&self) -> usize {
        size_of::<Self>() + self.weight.allocated_bytes()
    }

    fn rows(&self) -> usize {
        self.shape().rows()
    }
}

impl Default for CpuSimd {
    fn default() -> Self {
        Self::new()
    }
}

impl CpuSimd {
    /// The backend with the fastest instruction set that this CPU has, on rayon's current thread
    /// pool: the global one, or the one whose thread calls. A call runs on as many of its threads
    /// as its estimated time is worth, a short one on the calling thread alone.
    pub fn new() -> Self {
        Self::of_engine(Engine::best())
    }

    /// The backend with this instruction set and no other.
    ///
    /// # Errors
    /// [`Unsupported::CpuFeature`] if this CPU does not have it.
    pub fn with_isa(isa: Isa) -> Result<Self, Unsupported> {
        Engine::new(isa).map(Self::of_engine)
    }

    /// The same backend on a thread pool of its own. The bits are the same with any number of
    /// threads. The thread that calls works too, whether it is of the pool or not, and at most as
    /// many of the pool as make its number of threads.
    #[must_use]
    pub fn with_pool(self, pool: Arc<ThreadPool>) -> Self {
        CpuSimd { threads: self.threads.on_pool(pool), ..self }
    }

    /// The same backend, whose threads look for work for `awake` after their last before they
    /// sleep, 10 ms at most; by default for as long as rayon's threads do, some microseconds.
    ///
    /// For loops of short calls with pauses, such as decoding: a thread that sleeps is woken up for
    /// each call, which takes longer than a small product. It costs the processor's time, so it is
    /// off unless asked for. Make such calls from inside of the pool
    /// ([`ThreadPool::install`]): else one more thread is awake than has work.
    #[must_use]
    pub fn with_spinning(self, awake: Duration) -> Self {
        CpuSimd { threads: self.threads.spinning(awake), ..self }
    }

    fn of_engine(engine: Engine) -> Self {
        let (threads, scratch, row_scratch) = Default::default();
        CpuSimd { threads, engine, scratch, row_scratch }
    }

    /// Quantizes `input`, transformed by `transform`, to `out`, whose shape and room for row scales
    /// are checked.
    fn quantize_by(
        &self,
        input: &QuantizeInput<'_>,
        transform: Option<&TransformColumns>,
        out: &mut PackedMut<'_>,
    ) -> Result<QuantCounts, Error> {
        let (threads, rows, spec) = (&self.threads, &self.row_scratch, input.spec());
        by_engine!(self.engine,
            kernels, () => if (spec.tie(), spec.rule())
                == (TieMode::Even, fp4_core::ScaleRule::Nearest)
            {
                return quantize::quantize(&kernels, threads, rows, input, transform, out);
            },
            portable, () => {}
        );
        let portable = portable::Encoder::new(spec.tie());
        quantize::quantize(&portable, threads, rows, input, transform, out)
    }

    /// Transforms the rows of a (rows, k) matrix (C5), in parallel: the same as
    /// [`fp4_core::reference::apply_transform`].
    ///
    /// # Errors
    /// [`Error::TransformShape`], [`Error::Len`], [`Error::Float`] as the reference;
    /// [`Error::Environment`].
    pub fn transform(
        &self,
        x: FloatSlice<'_>,
        k: usize,
        transform: &Transform<'_>,
        out: FloatSliceMut<'_>,
    ) -> Result<(), Error> {
        check_environment()?;
        transform.expect_k(k)?;
        let whole = x.len().checked_div(k).unwrap_or(0) * k;
        x.expect_len(Buffer::Input, whole)?;
        out.as_ref().expect_len(Buffer::Output, whole)?;
        let (threads, columns) = (&self.threads, TransformColumns::new(transform, x.float_type()));
        by_engine!(self.engine,
            kernels, () => quantize::transform(&kernels, threads, &columns, x, out),
            portable, () => {
                // How codes would be rounded does not matter here.
                let encoder = portable::Encoder::new(TieMode::Even);
                quantize::transform(&encoder, threads, &columns, x, out)
            }
        )
    }

    /// Frees the buffers that calls left for the next ones, of this backend and its clones. They
    /// are at most 68 MiB; a call that finds none allocates.
    pub fn release_scratch(&self) {
        self.scratch.release();
        self.row_scratch.release();
    }

    /// Bytes of the buffers that calls left for the next ones.
    pub fn scratch_bytes(&self) -> usize {
        self.scratch.bytes() + self.row_scratch.bytes()
    }

    /// The instruction set of the kernels.
    pub fn isa(&self) -> Isa {
        self.engine.isa()
    }

    /// Writes the values of a packed matrix under `global_scale`, row-major (C4.4), in parallel:
    /// the same as [`fp4_core::reference::dequantize`].
    ///
    /// # Errors
    /// [`Error::Len`], [`Error::ScaleSetting`] as the reference; [`Error::Environment`].
    pub fn dequantize(
        &self,
        packed: PackedView<'_>,
        global_scale: f32,
        out: FloatSliceMut<'_>,
    ) -> Result<(), Error> {
        check_environment()?;
        let threads = &self.threads;
        by_engine!(self.engine,
            kernels, () => dequantize::dequantize(kernels, threads, packed, global_scale, out),
            portable, () => {
                dequantize::dequantize(portable::Portable, threads, packed, global_scale, out)
            }
        )
    }
}

impl Named for CpuSimd {
    fn name(&self) -> &str {
        "cpu-simd"
    }
}

impl Quantizer for CpuSimd {
    fn supports_quantize(&self, _query: &QuantizeQuery) -> Result<(), Unsupported> {
        Ok(())
    }

    fn quantize(
        &self,
        input: &QuantizeInput<'_>,
        out: &mut PackedMut<'_>,
    ) -> Result<QuantCounts, Error> {
        check_environment()?;
        input.expect_output(out.shape())?;
        input.expect_row_scales(out)?;
        self.supports_quantize(&input.query())?;
        let transform = input.transform().map(|t| TransformColumns::new(t, input.x().float_type()));
        self.quantize_by(input, transform.as_ref(), out)
    }
}

impl Matmul for CpuSimd {
    type Prepared<B: Packed> = CpuWeight<B>;

    fn supports_matmul(&self, query: &MatmulQuery) -> Result<(), Unsupported> {
        match (query.a, query.b.format()) {
            (Encoding::MxInt8, Some(_)) => Ok(()),
            _ => query.expect_same_encoding(),
        }
    }

    fn supports_partial(&self, query: &MatmulQuery) -> Result<(), Unsupported> {
        self.supports_matmul(query)
    }

    fn prepare<B: Packed>(&self, b: B) -> Result<CpuWeight<B>, Error> {
        Ok(CpuWeight {
            weight: Weight::new(self.engine, &self.threads, b.view())?,
            from: PhantomData,
        })
    }

    /// As the trait says, by the kernels that the weight was prepared for.
    fn matmul<B: Packed>(
        &self,
        a: PackedView<'_>,
        b: &CpuWeight<B>,
        epilogue: Epilogue<'_>,
        out: FloatSliceMut<'_>,
    ) -> Result<Paths, Error> {
        b.weight.matmul((&self.threads, &self.scratch), a, epilogue, out)
    }

    /// In one parallel region, the small products whole and the large ones cut, so that all threads
    /// have as much to do; with one thread, one after the other. An A that is given to consecutive
    /// products as the same view is packed for the kernels once.
    fn grouped<B: Packed>(
        &self,
        products: &mut [GroupedProduct<'_, CpuWeight<B>>],
    ) -> Result<Paths, GroupedError> {
        expect_grouped::<Self, B>(self, products)?;
        let calls = products.iter_mut().map(|product| {
            let GroupedProduct { a, b, epilogue, out, .. } = product;
            let (weight, out) = (&b.weight, out.reborrow());
            GroupedCall { weight, a: *a, epilogue: *epilogue, out }
        });
        let each = grouped::run((&self.threads, &self.scratch), calls.collect())?;
        let mut all = Paths::default();
        for (product, paths) in products.iter_mut().zip(each) {
            product.paths = paths;
            all.merge(&paths);
        }
        Ok(all)
    }

    fn schedules_grouped(&self) -> bool {
        true
    }

    /// As the reference, except for [`Error::PartialOverflow`]: it is reported when a sum leaves
    /// 63 bits after a stretch of groups, where the reference looks after every group.
    fn partial<B: Packed>(
        &self,
        a: PackedView<'_>,
        b: &CpuWeight<B>,
        groups: Range<usize>,
        out: PartialsMut<'_>,
    ) -> Result<(), Error> {
        b.weight.partial(&self.threads, a, groups, out)
    }

    fn export_weight<B: Packed>(
        &self,
        b: &CpuWeight<B>,
        out: &mut PackedMut<'_>,
    ) -> Result<(), Error> {
        b.weight.export(&self.threads, out)
    }
}

/// The example of the crate's README, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
