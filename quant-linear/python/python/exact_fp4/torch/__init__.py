"""``QuantLinear``: the layer as a ``torch.nn.Module``; ``convert``: a model's linear layers to it.

The state is that of the Rust layer: ``e2m1``, ``scale_quant``, ``transform``,
``weight_global_scale``, ``activation_global_scale``, ``activation_scale_scale``,
``activation_encoding`` and ``bias``, all buffers. The Rust layer is made from them at the first
call, kept with ``e2m1``, and made again when one of them is replaced or written to.

Needs PyTorch 2.7 or newer (for ``torch.float8_e8m0fnu``). Computes on the CPU.
"""

try:
    import torch as _torch
except ImportError as error:
    raise ImportError(f"exact_fp4.torch needs PyTorch ({error}); pip install torch") from error

if not hasattr(_torch, "float8_e8m0fnu"):
    raise ImportError(f"PyTorch {_torch.__version__} has no float8_e8m0fnu; install 2.7 or newer")

from ._convert import convert
from ._module import QuantLinear

__all__ = ["QuantLinear", "convert"]
