//! exact-fp4 for Python: arguments, types, errors, and calls without the interpreter's lock. Every
//! rule is in fp4-core and quant-linear. What Python users see is in `python/exact_fp4`.

mod arrays;
mod call;
mod checkpoint;
mod error;
mod layer;
mod ops;
mod said;
mod spec;
mod state;

use pyo3::prelude::*;

/// What `exact_fp4` is made of; use that.
#[pymodule]
mod _core {
    use super::*;

    #[pymodule_export]
    use crate::call::{
        _after_fork_in_child, _after_fork_in_parent, _before_fork, set_threads, threads,
    };
    #[pymodule_export]
    use crate::checkpoint::{Checkpoint, quantize_checkpoint, write_safetensors};
    #[pymodule_export]
    use crate::error::{Fp4Error, Fp4Warning};
    #[pymodule_export]
    use crate::layer::Layer;
    #[pymodule_export]
    use crate::ops::{
        amax, backends, dequantize, hadamard, isa, matmul, quantize, swizzle, transform, unswizzle,
    };
    #[pymodule_export]
    use crate::spec::{_spec, Spec};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        crate::said::install();
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
