"""The op ``exact_fp4::linear``: tensors to the Rust layer, which is kept, and its call."""

# Annotations must be types, not text: the schema of the custom op is read from them.
import threading
from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .. import _core
from .._arrays import result
from .._core import Fp4Error
from .._layer import options

# The names of a state, in the order of the op's arguments.
STATE = (
    "e2m1",
    "scale_quant",
    "transform",
    "weight_global_scale",
    "activation_global_scale",
    "activation_scale_scale",
    "activation_encoding",
    "bias",
)

FLOATS = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
SCALES = {"e8m0": torch.float8_e8m0fnu, "e4m3": torch.float8_e4m3fn}
_TYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e8m0fnu: "F8_E8M0",
}
_OF_TYPES = {name: dtype for dtype, name in _TYPES.items()}


def _bytes(tensor: Tensor, name: str) -> Any:
    """The bytes of a tensor of the CPU, without a copy if it is contiguous."""
    if tensor.device.type != "cpu":
        raise Fp4Error(
            f"`{name}` is on {tensor.device}, and this layer computes on the CPU; move the module "
            "and its inputs with .to('cpu')"
        )
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()


def given(tensor: Tensor, name: str) -> tuple[str, list[int], Any]:
    """A tensor as the extension takes it."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"`{name}` is a {type(tensor).__name__}; expected a tensor")
    dtype = _TYPES.get(tensor.dtype)
    if dtype is None:
        raise TypeError(f"`{name}` is {tensor.dtype}, which no state holds")
    return dtype, list(tensor.shape), _bytes(tensor, name)


def to_tensor(tensor: tuple[str, list[int], Any]) -> Tensor:
    """A tensor that the extension gives."""
    dtype, shape, data = tensor
    return torch.from_numpy(data).view(_OF_TYPES[dtype]).reshape(shape)


def _dense(x: Tensor, what: str) -> tuple[Any, str]:
    name = FLOATS.get(x.dtype)
    if name is None:
        raise TypeError(f"{what} is {x.dtype}; expected float32, float16 or bfloat16")
    return _bytes(x, what), name


class _Built:
    """A Rust layer, and the tensors that it was made of, but ``e2m1``, which it is kept with."""

    def __init__(self, layer: _core.Layer, others: list[Optional[Tensor]]) -> None:
        self.layer = layer
        # Held, so that no other tensor comes to lie where one of them was.
        self.others = others


_BUILT: Any = WeakTensorKeyDictionary()
_LOCK = threading.Lock()
# Layers kept with one `e2m1`: several modules may share it.
_KEPT = 4


def _stamp(tensor: Optional[Tensor]) -> Any:
    """What changes if the tensor does. Tensors of inference mode do not count their writes."""
    if tensor is None:
        return None
    version = 0 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), version, tensor.dtype, tuple(tensor.shape)


def layer_of(
    tensors: tuple[Optional[Tensor], ...], quantizer: Optional[str], matmul: Optional[str]
) -> _core.Layer:
    """The Rust layer of a state: the one kept, if nothing has changed since."""
    e2m1 = tensors[0]
    key = (tuple(map(_stamp, tensors)), quantizer, matmul)
    with _LOCK:
        built = _BUILT.get(e2m1, {}).get(key)
    if built is not None:
        return built.layer
    state = {name: given(t, name) for name, t in zip(STATE, tensors) if t is not None}
    layer = _core.Layer.from_state(state, "", options(layout="native", bias="apply"))
    layer = layer.with_backends(quantizer, matmul)
    with _LOCK:
        kept = _BUILT.setdefault(e2m1, {})
        if len(kept) >= _KEPT:
            kept.clear()
        kept[key] = _Built(layer, list(tensors[1:]))
    return layer


@torch.library.custom_op("exact_fp4::linear", mutates_args=())
def linear(
    x: Tensor,
    e2m1: Tensor,
    scale_quant: Tensor,
    transform: Optional[Tensor],
    weight_global_scale: Tensor,
    activation_global_scale: Optional[Tensor],
    activation_scale_scale: Optional[Tensor],
    activation_encoding: Optional[Tensor],
    bias: Optional[Tensor],
    quant_backend: Optional[str],
    matmul_backend: Optional[str],
) -> Tensor:
    values = _dense(x, "the input")
    tensors = (
        e2m1,
        scale_quant,
        transform,
        weight_global_scale,
        activation_global_scale,
        activation_scale_scale,
        activation_encoding,
        bias,
    )
    layer = layer_of(tensors, quant_backend, matmul_backend)
    y = layer.forward(values, list(x.shape), None)
    if x.dtype != torch.float32:
        y = y.view(np.int16)
    return torch.from_numpy(y).view(x.dtype).reshape(*x.shape[:-1], e2m1.shape[0])


@linear.register_fake
def _(
    x: Tensor,
    e2m1: Tensor,
    scale_quant: Tensor,
    transform: Optional[Tensor],
    weight_global_scale: Tensor,
    activation_global_scale: Optional[Tensor],
    activation_scale_scale: Optional[Tensor],
    activation_encoding: Optional[Tensor],
    bias: Optional[Tensor],
    quant_backend: Optional[str],
    matmul_backend: Optional[str],
) -> Tensor:
    if x.dtype not in FLOATS:
        raise TypeError(f"the input is {x.dtype}; expected float32, float16 or bfloat16")
    return x.new_empty((*x.shape[:-1], e2m1.shape[0]))


def as_numpy(x: Any, what: str) -> Any:
    """A tensor as NumPy's array; all else as it is."""
    if not isinstance(x, Tensor):
        return x
    data, name = _dense(x.detach(), what)
    return result(data, name, tuple(x.shape))
