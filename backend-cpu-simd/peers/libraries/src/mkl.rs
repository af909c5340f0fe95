//! MKL's product of bytes with 32-bit sums: what the CPU does when nothing is quantized, unpacked
//! or scaled. The weight is packed beforehand, if that is faster.
//!
//! The environment decides at the first call which instructions MKL uses
//! (`MKL_ENABLE_INSTRUCTIONS`) and whose threads (`MKL_THREADING_LAYER`).

use std::ffi::{c_int, c_void};
use std::path::Path;
use std::time::Duration;

use fp4_peers_common::{Clock, Rng, Task, Work, fastest};
use libloading::Library;

const COL_MAJOR: c_int = 102;
const NO_TRANS: c_int = 111;
const TRANS: c_int = 112;
const PACKED: c_int = 151;
const A_MATRIX: c_int = 161;
const FIX_OFFSET: c_int = 173;

type SetThreads = unsafe extern "C" fn(c_int);
type PackSize = unsafe extern "C" fn(c_int, c_int, c_int, c_int) -> usize;
type Pack =
    unsafe extern "C" fn(c_int, c_int, c_int, c_int, c_int, c_int, *const i8, c_int, *mut c_void);
/// `cblas_gemm_s8u8s32`, whose A has a type, and `cblas_gemm_s8u8s32_compute`, whose A may be
/// packed: order, forms of A, B and the offset of C; M, N, K; alpha; A, its stride and offset; the
/// same of B; beta; C, its stride and offset.
type Gemm = unsafe extern "C" fn(
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    f32,
    *const c_void,
    c_int,
    i8,
    *const c_void,
    c_int,
    i8,
    f32,
    *mut i32,
    c_int,
    *const i32,
);

/// MKL's functions, loaded for ever.
#[derive(Clone, Copy)]
pub(crate) struct Mkl {
    set_threads: SetThreads,
    pack_size: PackSize,
    pack: Pack,
    gemm: Gemm,
    compute: Gemm,
}

impl Mkl {
    /// Loads `libmkl_rt` of the folder in `FP4_MKL`.
    ///
    /// # Errors
    /// What is missing.
    pub(crate) fn load() -> Result<Self, String> {
        let folder = std::env::var_os("FP4_MKL").ok_or("FP4_MKL names no folder")?;
        let path = Path::new(&folder).join("libmkl_rt.so.3");
        // SAFETY: the library is MKL's, by the variable's meaning, and its functions are as its
        // headers have them.
        unsafe {
            let library = Library::new(path).map_err(|e| e.to_string())?;
            let mkl = || -> Result<Self, libloading::Error> {
                Ok(Mkl {
                    set_threads: *library.get("MKL_Set_Num_Threads")?,
                    pack_size: *library.get("cblas_gemm_s8u8s32_pack_get_size")?,
                    pack: *library.get("cblas_gemm_s8u8s32_pack")?,
                    gemm: *library.get("cblas_gemm_s8u8s32")?,
                    compute: *library.get("cblas_gemm_s8u8s32_compute")?,
                })
            };
            let mkl = mkl().map_err(|e| e.to_string())?;
            std::mem::forget(library);
            Ok(mkl)
        }
    }

    /// The product of bytes of the task's shape.
    pub(crate) fn work(self, task: &Task) -> Result<Bytes, String> {
        let dims = [task.m, task.n, task.k].map(|dim| dim as c_int);
        let mut bytes = (Rng(8), Rng(9));
        let a: Vec<u8> = (0..task.m * task.k).map(|_| bytes.0.byte()).collect();
        // Seven bits: MKL without 8-bit dot products adds pairs in 16 bits.
        let w: Vec<i8> = (0..task.n * task.k).map(|_| bytes.1.byte() as i8 >> 1).collect();
        // SAFETY: MKL says how much it writes; the weight is (n, k), row-major.
        let packed = unsafe {
            (self.set_threads)(task.threads as c_int);
            let size = (self.pack_size)(A_MATRIX, dims[1], dims[0], dims[2]);
            // MKL wants its own alignment.
            let mut packed = vec![0u64; size / 8 + 16];
            let at = packed.as_mut_ptr().cast::<u8>();
            let at = at.add(at.align_offset(64)).cast();
            (self.pack)(
                COL_MAJOR,
                A_MATRIX,
                TRANS,
                dims[1],
                dims[0],
                dims[2],
                w.as_ptr(),
                dims[2],
                at,
            );
            packed
        };
        let y = vec![0i32; task.m * task.n];
        let mut work = Bytes { mkl: self, task: task.clone(), dims, a, w, packed, y, pack: true };
        let mut time = |pack| {
            work.pack = pack;
            fastest(Clock::of(task.threads), Duration::from_millis(10), || work.run())
        };
        work.pack = time(true) < time(false);
        Ok(work)
    }
}

/// A product of bytes.
pub(crate) struct Bytes {
    mkl: Mkl,
    task: Task,
    /// M, N and K.
    dims: [c_int; 3],
    a: Vec<u8>,
    w: Vec<i8>,
    packed: Vec<u64>,
    y: Vec<i32>,
    pack: bool,
}

impl Work for Bytes {
    fn run(&mut self) {
        let [m, n, k] = self.dims;
        let at = self.packed.as_ptr().cast::<u8>();
        let (gemm, form, w) = if self.pack {
            (self.mkl.compute, PACKED, at.wrapping_add(at.align_offset(64)).cast())
        } else {
            (self.mkl.gemm, TRANS, self.w.as_ptr().cast())
        };
        let (a, y) = (self.a.as_ptr().cast(), self.y.as_mut_ptr());
        // SAFETY: in columns, y is (n, m), the weight (n, k) and transposed, a (k, m).
        unsafe {
            gemm(
                COL_MAJOR, form, NO_TRANS, FIX_OFFSET, n, m, k, 1.0, w, k, 0, a, k, 0, 0.0, y, n,
                &0,
            );
        }
    }

    fn check(&mut self) -> Result<(), String> {
        self.run();
        let Task { m, n, k, .. } = self.task;
        let a = &self.a[(m - 1) * k..];
        let row = |w: &[i8]| a.iter().zip(w).map(|(&a, &w)| i32::from(a) * i32::from(w)).sum();
        let expected: Vec<i32> = self.w.chunks_exact(k).map(row).collect();
        if self.y[(m - 1) * n..] == expected { Ok(()) } else { Err("a wrong answer".into()) }
    }

    fn amount(&self) -> f64 {
        self.task.macs()
    }

    fn remark(&self) -> String {
        if self.pack { "packed".into() } else { "as it is".into() }
    }
}
