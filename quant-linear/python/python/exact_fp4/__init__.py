"""FP4 (MXFP4 and NVFP4) quantization and FP4 x FP4 matrix multiplication whose bits never change.

Arrays are NumPy's, or anything with ``__dlpack__`` on the CPU, in float32, float16 or bfloat16
(``ml_dtypes``). Inputs are read where they are, without a copy, if they are contiguous; the
interpreter's lock is released meanwhile, so do not write to an input while another thread works on
it. Errors are :class:`Fp4Error`, a ``ValueError``; an argument of another type is a ``TypeError``.
"""

import os as _os

from . import _core
from ._checkpoint import Checkpoint, LayerInfo, TensorInfo, open, quantize_checkpoint
from ._core import Fp4Error, Fp4Warning, Spec, __version__, set_threads, threads
from ._layer import Layer
from ._ops import (
    Packed,
    amax,
    backends,
    dequantize,
    hadamard,
    matmul,
    quantize,
    swizzle,
    transform,
    unswizzle,
)

__all__ = [
    "Checkpoint",
    "Fp4Error",
    "Fp4Warning",
    "Layer",
    "LayerInfo",
    "Packed",
    "Spec",
    "TensorInfo",
    "__version__",
    "amax",
    "backends",
    "dequantize",
    "hadamard",
    "matmul",
    "open",
    "quantize",
    "quantize_checkpoint",
    "set_threads",
    "swizzle",
    "threads",
    "transform",
    "unswizzle",
]

if hasattr(_os, "register_at_fork"):
    _os.register_at_fork(
        before=_core._before_fork,
        after_in_parent=_core._after_fork_in_parent,
        after_in_child=_core._after_fork_in_child,
    )
