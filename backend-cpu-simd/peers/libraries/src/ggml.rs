//! ggml's matrix product with quantized weights: activations in f32, which it quantizes to 8 bits
//! itself, and weights in its repacked form where it has one.
//!
//! Its libraries are prebuilt for each family of CPUs, and it chooses among them when it loads
//! them: the folder `bins/linux-x64` of npm's package `@node-llama-cpp/linux-x64`, named by
//! `FP4_GGML`. Types named in `FP4_GGML_WITHOUT_AMX`, with commas between them, are not given to
//! its AMX kernels: there are machines on which those end the process.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr::{null, null_mut};
use std::time::Duration;

use fp4_peers_common::{Clock, Data, Task, Work, fastest, last_level_cache};
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
    backend_buft_name: fn(Pointer) -> *const c_char;
    blck_size: fn(c_int) -> i64;
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
}

/// A product with its operands in ggml's memory.
struct Product {
    ggml: &'static Ggml,
    /// Of the weight, and of the rest.
    contexts: [Pointer; 2],
    buffers: [Pointer; 2],
    graph: Pointer,
    out: Pointer,
    outputs: usize,
}

/// A whole layer: copies of one product, each with a weight of its own.
pub(crate) struct Layer {
    task: Task,
    products: Vec<Product>,
    next: usize,
    way: String,
}

impl Work for Layer {
    fn run(&mut self) {
        self.products[self.next % self.products.len()].run();
        self.next += 1;
    }

    fn check(&mut self) -> Result<(), String> {
        self.products[0].run();
        let y = self.products[0].output();
        let last = &y[y.len() - self.task.n..];
        self.task.check(last, &self.task.expected([Data::Gaussian; 2]))
    }

    fn amount(&self) -> f64 {
        self.task.macs()
    }

    fn remark(&self) -> String {
        self.way.clone()
    }
}

impl Ggml {
    /// Loads the libraries of the folder in `FP4_GGML`, for ever.
    ///
    /// # Errors
    /// What is missing.
    pub(crate) fn load() -> Result<&'static Self, String> {
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
            // ggml has threads of its own: it is never closed.
            std::mem::forget(libraries);
            Ok(Box::leak(Box::new(Ggml { functions, backend, device, extra, set_threads })))
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

    /// The product of the task by a weight in the type `name`, in the fastest of the ways that this
    /// build of ggml has for it: a buffer of another form (repacked, AMX's tiles), or as it is.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn work(&'static self, name: &str, task: &Task) -> Result<Layer, String> {
        let ty = self.type_of(name).ok_or("ggml has no such type")?;
        // SAFETY: the type is one of ggml's.
        let block = unsafe { (self.functions.blck_size)(ty) } as usize;
        if !task.k.is_multiple_of(block) {
            return Err(format!("K is no multiple of {block}"));
        }
        let mut ways = self.buffer_types();
        let without = std::env::var("FP4_GGML_WITHOUT_AMX").unwrap_or_default();
        if without.split(',').any(|ty| ty == name) {
            ways.retain(|&way| self.name_of(way) != "AMX");
        }
        ways.push(null_mut());
        let blocks = self.quantized(ty, task);
        let mut best: Option<(f64, Pointer)> = None;
        for &way in &ways {
            let Some(product) = self.product(way, ty, task, &blocks) else { continue };
            let once = || product.run();
            let seconds = fastest(Clock::of(task.threads), Duration::from_millis(10), once);
            if best.is_none_or(|(best, _)| seconds < best) {
                best = Some((seconds, way));
            }
        }
        let (_, way) = best.ok_or("ggml has no such product")?;
        let copies = task.copies(blocks.len(), last_level_cache());
        let product = || self.product(way, ty, task, &blocks).ok_or("no memory for ggml");
        let products = (0..copies).map(|_| product()).collect::<Result<_, _>>()?;
        let way = if way.is_null() { "plain".into() } else { self.name_of(way) };
        Ok(Layer { task: task.clone(), products, next: 0, way })
    }

    /// The types of buffers that have forms of their own for weights.
    fn buffer_types(&self) -> Vec<Pointer> {
        if self.extra.is_null() {
            return vec![];
        }
        // SAFETY: the pointers before the null one, which belong to ggml.
        (0..).map(|at| unsafe { *self.extra.add(at) }).take_while(|of| !of.is_null()).collect()
    }

    /// The name of a type of buffer.
    fn name_of(&self, way: Pointer) -> String {
        // SAFETY: the type of buffer is ggml's, and its name lives as long as ggml.
        let name = unsafe { CStr::from_ptr((self.functions.backend_buft_name)(way)) };
        name.to_string_lossy().into_owned()
    }

    /// The weight in the type's blocks.
    fn quantized(&self, ty: c_int, task: &Task) -> Vec<u8> {
        let w = task.distinct(Data::Gaussian);
        let (rows, k) = ((w.len() / task.k) as i64, task.k as i64);
        // SAFETY: the type is one of ggml's, and `blocks` has room for its rows.
        unsafe {
            let mut blocks = vec![0u8; rows as usize * (self.functions.row_size)(ty, k)];
            let to = blocks.as_mut_ptr().cast();
            (self.functions.quantize_chunk)(ty, w.as_ptr(), to, 0, rows, k, null());
            task.repeated(&blocks)
        }
    }

    /// The product with the weight in a buffer of this type, or as it is if that is null; `None` if
    /// the type of buffer has no form of the weight.
    fn product(
        &'static self,
        way: Pointer,
        ty: c_int,
        task: &Task,
        blocks: &[u8],
    ) -> Option<Product> {
        let a = task.activations(Data::Gaussian);
        let f = &self.functions;
        let dims = [task.m, task.n, task.k].map(|dim| dim as i64);
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
            let buffer = if way.is_null() {
                (f.backend_alloc_ctx_tensors)(contexts[0], self.backend)
            } else {
                (f.backend_alloc_ctx_tensors_from_buft)(contexts[0], way)
            };
            let outputs = task.m * task.n;
            let buffers = [buffer, null_mut()];
            let mut product = Product { ggml: self, contexts, buffers, graph, out, outputs };
            if buffer.is_null() || !(f.backend_dev_supports_op)(self.device, out) {
                return None;
            }
            product.buffers[1] = (f.backend_alloc_ctx_tensors)(contexts[1], self.backend);
            assert!(!product.buffers[1].is_null(), "no memory for ggml");
            (f.backend_tensor_set)(weight, blocks.as_ptr().cast(), 0, blocks.len());
            (f.backend_tensor_set)(activations, a.as_ptr().cast(), 0, size_of_val(&a[..]));
            (self.set_threads)(self.backend, task.threads as c_int);
            Some(product)
        }
    }
}

impl Product {
    /// Multiplies.
    fn run(&self) {
        let ggml = self.ggml;
        // SAFETY: the graph's tensors all have memory.
        let status = unsafe { (ggml.functions.backend_graph_compute)(ggml.backend, self.graph) };
        assert_eq!(status, 0, "ggml's status");
    }

    /// The product that [`run`](Self::run) left, (m, n).
    fn output(&self) -> Vec<f32> {
        let mut y = vec![0f32; self.outputs];
        let (get, size) = (self.ggml.functions.backend_tensor_get, size_of_val(&y[..]));
        // SAFETY: `y` is as large as the tensor.
        unsafe { get(self.out, y.as_mut_ptr().cast(), 0, size) };
        y
    }
}

impl Drop for Product {
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
