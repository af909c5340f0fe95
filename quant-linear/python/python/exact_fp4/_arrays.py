"""Arrays in and out: what the extension takes is bytes and the name of their type."""

from __future__ import annotations

import ctypes
import math
from typing import Any, Optional, Sequence, Union

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ._core import Fp4Error

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
# Bytes of dense values, and the name of their type.
Dense = "tuple[Bytes, str]"

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = {np.dtype(np.float32): "f32", np.dtype(np.float16): "f16", BFLOAT16: "bf16"}
FLOATS_BY_NAME = {name: dtype for dtype, name in FLOATS.items()}
EXPECTED = "float32, float16 or bfloat16 (ml_dtypes)"

# The types of safetensors that NumPy, or ml_dtypes, has too.
TYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(dtype)
    for name, dtype in [
        ("BOOL", np.bool_),
        ("U8", np.uint8),
        ("I8", np.int8),
        ("U16", np.uint16),
        ("I16", np.int16),
        ("U32", np.uint32),
        ("I32", np.int32),
        ("U64", np.uint64),
        ("I64", np.int64),
        ("F16", np.float16),
        ("BF16", ml_dtypes.bfloat16),
        ("F32", np.float32),
        ("F64", np.float64),
        ("F8_E4M3", ml_dtypes.float8_e4m3fn),
        ("F8_E5M2", ml_dtypes.float8_e5m2),
        ("F8_E8M0", ml_dtypes.float8_e8m0fnu),
    ]
}
TYPE_NAMES = {dtype: name for name, dtype in TYPES.items()}


class _Retyped:
    """A DLPack producer whose bfloat16, which NumPy does not have, reads as uint16."""

    # Where the type's code and bits are in a DLManagedTensor: after data, device and rank.
    CODE, BITS = 20, 21
    UINT, BFLOAT = 1, 4

    def __init__(self, producer: Any) -> None:
        self.producer = producer
        self.is_bfloat16 = False

    def __dlpack_device__(self) -> Any:
        return self.producer.__dlpack_device__()

    def __dlpack__(self, **_: Any) -> Any:
        # Without a version asked for, the capsule is of the first form.
        capsule = self.producer.__dlpack__()
        get = ctypes.pythonapi.PyCapsule_GetPointer
        get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        at = get(capsule, b"dltensor")
        code = ctypes.c_uint8.from_address(at + self.CODE)
        if (code.value, ctypes.c_uint8.from_address(at + self.BITS).value) == (self.BFLOAT, 16):
            # The capsule is ours alone, and so is the description in it.
            code.value, self.is_bfloat16 = self.UINT, True
        return capsule


# DLPack's numbers of devices whose memory the CPU reads: itself, and pinned memory of others.
_HOST = (1, 3, 11)


def array(x: Any, what: str) -> Array:
    """``x`` as a NumPy array, without a copy."""
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{what} is a masked array, whose mask would be lost; fill it first")
    if isinstance(x, (np.ndarray, np.generic)):
        return np.asarray(x)
    if not hasattr(x, "__dlpack__") or not hasattr(x, "__dlpack_device__"):
        kind = type(x).__name__
        raise TypeError(f"{what} is a {kind}; expected a NumPy array, or an object with DLPack")
    try:
        device, number = x.__dlpack_device__()
    except (RuntimeError, ValueError) as error:
        raise TypeError(f"{what} cannot be read through DLPack: {error}") from error
    if int(device) not in _HOST:
        raise Fp4Error(
            f"{what} is in the memory of device {int(device)}:{number} (DLPack's numbers), which "
            "is not read here; copy it to the CPU"
        )
    retyped = _Retyped(x)
    try:
        taken = np.from_dlpack(retyped)
    except (BufferError, RuntimeError, ValueError) as error:
        raise TypeError(f"{what} cannot be read through DLPack: {error}") from error
    return taken.view(BFLOAT16) if retyped.is_bfloat16 else taken


def contiguous(a: Array) -> Array:
    """``a``, or a copy of it where it is not contiguous, aligned and in native order."""
    if not a.dtype.isnative:
        a = a.astype(a.dtype.newbyteorder("="))
    return np.require(np.asarray(a), requirements=["C_CONTIGUOUS", "ALIGNED"])


def raw(a: Array) -> Bytes:
    """The bytes of a contiguous array."""
    return a.reshape(-1).view(np.uint8)


def dense(x: Any, what: str) -> tuple[Array, tuple[Bytes, str]]:
    """Dense values: the array, and what the extension takes."""
    a = contiguous(array(x, what))
    name = FLOATS.get(a.dtype)
    if name is None:
        raise TypeError(f"{what} is {a.dtype}; expected {EXPECTED}, convert it with .astype")
    return a, (raw(a), name)


def dense_transform(x: Any) -> Optional[tuple[Bytes, str, list[int]]]:
    """A transform, if there is one."""
    if x is None:
        return None
    a, (values, name) = dense(x, "transform")
    return values, name, list(a.shape)


def uint8(x: Any, what: str, rank: Optional[int] = None) -> Array:
    """Codes or scale bytes: uint8, or a float8 type of the same bytes."""
    a = contiguous(array(x, what))
    if a.dtype in (TYPES["F8_E4M3"], TYPES["F8_E8M0"]):
        a = a.view(np.uint8)
    if a.dtype != np.uint8:
        raise TypeError(f"{what} is {a.dtype}; expected uint8")
    if rank is not None and a.ndim != rank:
        raise Fp4Error(f"{what} has shape {a.shape}; expected {rank} dimensions")
    return a


def float32(x: Any, what: str) -> Optional[Bytes]:
    """The bytes of float32 values, if there are any; other floats are widened, float64 is not."""
    if x is None:
        return None
    a, (values, name) = dense(x, what)
    return values if name == "f32" else raw(a.astype(np.float32))


def float_name(dtype: Any) -> str:
    """The name of a float type: a NumPy type, or a name."""
    names = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
    if isinstance(dtype, str) and (dtype in names or dtype in FLOATS_BY_NAME):
        return names.get(dtype, dtype)
    try:
        name = FLOATS.get(np.dtype(dtype))
    except TypeError:
        name = None
    if name is None:
        raise TypeError(f"dtype {dtype!r}; expected {EXPECTED}")
    return name


def result(values: Array, name: str, shape: Sequence[int]) -> Array:
    """What the extension gives, as an array of its type and shape."""
    typed: Array = values.view(FLOATS_BY_NAME[name]).reshape(shape)
    return typed


def rows_of(shape: Sequence[int]) -> int:
    """The product of all dimensions but the last."""
    return math.prod(shape[:-1])


def type_name(a: Array, what: str) -> str:
    """The name that safetensors has for the type of an array."""
    name = TYPE_NAMES.get(a.dtype)
    if name is None:
        raise TypeError(f"{what} is {a.dtype}, which safetensors has no type for")
    return name


def typed(tensor: tuple[str, list[int], Bytes], name: str) -> Array:
    """A tensor of safetensors as an array."""
    dtype, shape, data = tensor
    if dtype not in TYPES:
        raise Fp4Error(f"tensor `{name}` is {dtype}, which NumPy has no type for")
    return data.view(TYPES[dtype]).reshape(shape)


def given(tensors: Any) -> dict[str, tuple[str, list[int], Bytes]]:
    """Arrays by name, as the extension takes them."""
    out = {}
    for name, x in tensors.items():
        a = contiguous(array(x, name))
        out[str(name)] = (type_name(a, name), list(a.shape), raw(a))
    return out


Dtype = Union[str, npt.DTypeLike]
