//! ggml's matrix product with quantized weights: activations in f32, which it quantizes to 8 bits
//! itself, and weights in its repacked form where it has one.
//!
//! Its libraries are prebuilt for each family of CPUs, and it chooses among them when it loads
//! them: the folder `bins/linux-x64` of npm's package `@node-llama-cpp/linux-x64`, named by
//! `FP4_GGML`. Without that there are no such peers, and the bench says so.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr::{null, null_mut};

use libloading::Library;

type Pointer = *mut c_void;
type ExtraBuffers = unsafe extern "C" fn(Pointer) -> *const Pointer;
type SetThreads = unsafe extern "C" fn(Pointer, c_int);

#[repr(C)]
struct InitParams {
    size: usize,
    buffer: Pointer,
    no_alloc: bool,
}

/// Declares the functions that are used, and looks them up.
macro_rules! functions {
    ($($name:ident: fn($($arg:ty),*) $(-> $result:ty)?;)*) => {
        struct Functions {
            $($name: unsafe extern "C" fn($($arg),*) $(-> $result)?,)*
        }

        impl Functions {
            /// # Safety
            /// The libraries are ggml's.
            unsafe fn find(libraries: &[Library]) -> Option<Self> {
                Some(Functions { $(
                    // SAFETY: the functions are declared as ggml's headers have them.
                    $name: unsafe {
                        let name = concat!("ggml_", stringify!($name));
                        *libraries.iter().find_map(|library| library.get(name).ok())?
                    },
                )* })
            }
        }
    };
}

functions! {
    backend_load_all_from_path: fn(*const c_char);
    backend_init_by_type: fn(c_int, *const c_char) -> Pointer;
    backend_get_device: fn(Pointer) -> Pointer;
    backend_dev_backend_reg: fn(Pointer) -> Pointer;
    backend_dev_supports_op: fn(Pointer, Pointer) -> bool;
    backend_reg_get_proc_address: fn(Pointer, *const c_char) -> Pointer;
    backend_alloc_ctx_tensors: fn(Pointer, Pointer) -> Pointer;
    backend_alloc_ctx_tensors_from_buft: fn(Pointer, Pointer) -> Pointer;
    backend_buffer_free: fn(Pointer);
    backend_graph_compute: fn(Pointer, Pointer) -> c_int;
    backend_tensor_set: fn(Pointer, *const c_void, usize, usize);
    backend_tensor_get: fn(Pointer, Pointer, usize, usize);
    init: fn(InitParams) -> Pointer;
    free: fn(Pointer);
    tensor_overhead: fn() -> usize;
    graph_overhead: fn() -> usize;
    new_tensor_2d: fn(Pointer, c_int, i64, i64) -> Pointer;
    mul_mat: fn(Pointer, Pointer, Pointer) -> Pointer;
    new_graph: fn(Pointer) -> Pointer;
    build_forward_expand: fn(Pointer, Pointer);
    type_name: fn(c_int) -> *const c_char;
    row_size: fn(c_int, i64) -> usize;
    quantize_chunk: fn(c_int, *const f32, Pointer, i64, i64, i64, *const f32) -> usize;
}

/// ggml, loaded, with its backend for CPUs.
pub(crate) struct Ggml {
    functions: Functions,
    backend: Pointer,
    device: Pointer,
    /// The types of buffers that repack weights, ended by a null pointer.
    extra: *const Pointer,
    set_threads: SetThreads,
    /// In this order, and never closed: ggml has threads of its own.
    _libraries: std::mem::ManuallyDrop<Vec<Library>>,
}

/// A product with its operands in ggml's memory.
pub(crate) struct Product<'g> {
    ggml: &'g Ggml,
    /// Of the weight, and of the rest.
    contexts: [Pointer; 2],
    buffers: [Pointer; 2],
    graph: Pointer,
    out: Pointer,
    outputs: usize,
    /// True if the weight is repacked.
    pub(crate) repacked: bool,
}

impl Ggml {
    /// Loads the libraries of the folder in `FP4_GGML`.
    pub(crate) fn load() -> Result<Self, String> {
        let folder = std::env::var_os("FP4_GGML").ok_or("FP4_GGML names no folder")?;
        let folder = Path::new(&folder);
        let named = |start: &str| {
            let mut entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            entries.find(|e| e.file_name().to_string_lossy().starts_with(start)).map(|e| e.path())
        };
        let mut libraries = vec![];
        for start in ["libggml-base", "libggml."] {
            let path = named(start).ok_or_else(|| format!("{}: no {start}", folder.display()))?;
            // SAFETY: the library is ggml's, by the variable's meaning.
            libraries.push(unsafe { Library::new(path) }.map_err(|e| e.to_string())?);
        }
        let path =
            CString::new(folder.as_os_str().as_encoded_bytes()).map_err(|e| e.to_string())?;
        // SAFETY: ggml's functions as its headers have them; what it returns is checked.
        unsafe {
            let functions = Functions::find(&libraries).ok_or("a function is missing")?;
            (functions.backend_load_all_from_path)(path.as_ptr());
            let backend = (functions.backend_init_by_type)(0, null());
            if backend.is_null() {
                return Err("no library for this CPU".into());
            }
            let device = (functions.backend_get_device)(backend);
            let registry = (functions.backend_dev_backend_reg)(device);
            let find = |name: &CStr| {
                let found = (functions.backend_reg_get_proc_address)(registry, name.as_ptr());
                if found.is_null() { Err(format!("{name:?} is missing")) } else { Ok(found) }
            };
            let extra = find(c"ggml_backend_dev_get_extra_bufts")?;
            let extra = std::mem::transmute::<Pointer, ExtraBuffers>(extra)(device);
            let set_threads = find(c"ggml_backend_set_n_threads")?;
            let set_threads = std::mem::transmute::<Pointer, SetThreads>(set_threads);
            let _libraries = std::mem::ManuallyDrop::new(libraries);
            Ok(Ggml { functions, backend, device, extra, set_threads, _libraries })
        }
    }

    /// The number of a type, such as `mxfp4`.
    fn type_of(&self, name: &str) -> Option<c_int> {
        (0..64).find(|&ty| {
            // SAFETY: it returns a string that lives for ever, or null.
            let found = unsafe { (self.functions.type_name)(ty) };
            // SAFETY: as above.
            !found.is_null() && unsafe { CStr::from_ptr(found) }.to_bytes() == name.as_bytes()
        })
    }

    /// The product of `a` (m, k) with `w` (n, k) in the type `name`, if there is such a type, on so
    /// many threads.
    pub(crate) fn product(
        &self,
        name: &str,
        shape: [usize; 3],
        [a, w]: [&[f32]; 2],
        threads: usize,
    ) -> Option<Product<'_>> {
        let ty = self.type_of(name)?;
        // SAFETY: the pointers before the null one, which belong to ggml.
        let extra = (0..).map(|at| unsafe { *self.extra.add(at) }).take_while(|of| !of.is_null());
        let extra: Vec<_> = if self.extra.is_null() { vec![] } else { extra.collect() };
        let mut ways = extra.into_iter().map(Some).chain([None]);
        ways.find_map(|buffers| self.product_in(buffers, ty, shape, [a, w], threads))
    }

    /// The same with the weight in a buffer of this type, or as it is; `None` if the type of buffer
    /// has no form of the weight.
    fn product_in(
        &self,
        buffers: Option<Pointer>,
        ty: c_int,
        [m, n, k]: [usize; 3],
        [a, w]: [&[f32]; 2],
        threads: usize,
    ) -> Option<Product<'_>> {
        assert_eq!((a.len(), w.len()), (m * k, n * k));
        let f = &self.functions;
        let dims = [m, n, k].map(|dim| dim as i64);
        // SAFETY: tensors are made in contexts that are large enough for them, their data in
        // buffers made for those, and what is copied has the tensors' sizes.
        unsafe {
            let context = |bytes: usize| {
                let size = 8 * (f.tensor_overhead)() + bytes;
                (f.init)(InitParams { size, buffer: null_mut(), no_alloc: true })
            };
            let contexts = [context(0), context((f.graph_overhead)())];
            let weight = (f.new_tensor_2d)(contexts[0], ty, dims[2], dims[1]);
            let activations = (f.new_tensor_2d)(contexts[1], 0, dims[2], dims[0]);
            let out = (f.mul_mat)(contexts[1], weight, activations);
            let graph = (f.new_graph)(contexts[1]);
            (f.build_forward_expand)(graph, out);
            let buffer = match buffers {
                Some(ty) => (f.backend_alloc_ctx_tensors_from_buft)(contexts[0], ty),
                None => (f.backend_alloc_ctx_tensors)(contexts[0], self.backend),
            };
            let mut product = Product {
                ggml: self,
                contexts,
                buffers: [buffer, null_mut()],
                graph,
                out,
                outputs: m * n,
                repacked: buffers.is_some(),
            };
            if buffer.is_null() || !(f.backend_dev_supports_op)(self.device, out) {
                return None;
            }
            product.buffers[1] = (f.backend_alloc_ctx_tensors)(contexts[1], self.backend);
            assert!(!product.buffers[1].is_null(), "no memory for ggml");
            let mut blocks = vec![0u8; n * (f.row_size)(ty, dims[2])];
            let to = blocks.as_mut_ptr().cast();
            (f.quantize_chunk)(ty, w.as_ptr(), to, 0, dims[1], dims[2], null());
            (f.backend_tensor_set)(weight, blocks.as_ptr().cast(), 0, blocks.len());
            (f.backend_tensor_set)(activations, a.as_ptr().cast(), 0, size_of_val(a));
            (self.set_threads)(self.backend, threads as c_int);
            Some(product)
        }
    }
}

impl Product<'_> {
    /// Multiplies.
    pub(crate) fn run(&self) {
        let ggml = self.ggml;
        // SAFETY: the graph's tensors all have memory.
        let status = unsafe { (ggml.functions.backend_graph_compute)(ggml.backend, self.graph) };
        assert_eq!(status, 0, "ggml's status");
    }

    /// The product that [`run`](Self::run) left, (m, n).
    pub(crate) fn output(&self) -> Vec<f32> {
        let mut y = vec![0f32; self.outputs];
        let (get, size) = (self.ggml.functions.backend_tensor_get, size_of_val(&y[..]));
        // SAFETY: `y` is as large as the tensor.
        unsafe { get(self.out, y.as_mut_ptr().cast(), 0, size) };
        y
    }
}

impl Drop for Product<'_> {
    fn drop(&mut self) {
        let f = &self.ggml.functions;
        // SAFETY: both are this product's own, and nothing uses them after it.
        unsafe {
            self.buffers
                .iter()
                .filter(|of| !of.is_null())
                .for_each(|&of| (f.backend_buffer_free)(of));
            self.contexts.iter().for_each(|&of| (f.free)(of));
        }
    }
}
