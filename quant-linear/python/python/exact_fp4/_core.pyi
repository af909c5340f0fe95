"""What the extension offers; `exact_fp4` makes the interface of it."""

import os
from typing import Any, Mapping, Optional, Sequence, Union, final

import numpy as np
import numpy.typing as npt

_Bytes = npt.NDArray[np.uint8]
_Dense = tuple[_Bytes, str]
_DenseTransform = tuple[_Bytes, str, list[int]]
_Tensor = tuple[str, list[int], _Bytes]
_Path = Union[str, os.PathLike[str]]

__all__ = [
    "Checkpoint",
    "Fp4Error",
    "Fp4Warning",
    "Layer",
    "Spec",
    "__version__",
    "_after_fork_in_child",
    "_after_fork_in_parent",
    "_before_fork",
    "_spec",
    "amax",
    "backends",
    "dequantize",
    "hadamard",
    "isa",
    "matmul",
    "quantize",
    "quantize_checkpoint",
    "set_threads",
    "swizzle",
    "threads",
    "transform",
    "unswizzle",
    "write_safetensors",
]

__version__: str

class Fp4Error(ValueError):
    """What was given, what was expected, what to do: the text of the Rust crates."""

class Fp4Warning(UserWarning):
    """What the Rust crates warn of."""

@final
class Spec:
    """Checked settings of a quantization.

    Args:
        format: ``"mxfp4"``, ``"nvfp4"`` or ``"mxint8"``; or, instead:
        scale_type, group_size: ``"e8m0"`` or ``"e4m3"``; 16, 32, 64 or 128.
        global_scale, scale_scale: the format's usual ones, or 1, if ``None``.
        tie: how a value between two codes is rounded: ``"even"``, ``"zero"``, ``"down"``, ``"up"``.
        row_scales: a global scale of its own for each row (NVFP4).

    Raises:
        Fp4Error: settings that are none.
    """

    def __new__(
        cls,
        format: Optional[str] = None,
        *,
        scale_type: Optional[str] = None,
        group_size: Optional[int] = None,
        global_scale: Optional[float] = None,
        scale_scale: Optional[float] = None,
        tie: str = "even",
        row_scales: bool = False,
    ) -> Spec: ...
    @staticmethod
    def for_weight(format: str, amax: float) -> Spec:
        """The usual settings of a weight whose largest magnitude, transformed, is ``amax``."""
    @property
    def format(self) -> Optional[str]: ...
    @property
    def element(self) -> str: ...
    @property
    def scale_type(self) -> str: ...
    @property
    def group_size(self) -> int: ...
    @property
    def global_scale(self) -> float: ...
    @property
    def scale_scale(self) -> float: ...
    @property
    def tie(self) -> str: ...
    @property
    def row_scales(self) -> bool: ...
    @property
    def per_byte(self) -> int: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...
    def __reduce__(self) -> tuple[Any, Any]: ...

@final
class Layer:
    @staticmethod
    def from_dense(
        weight: _Dense,
        shape: Sequence[int],
        format: str,
        transform: Optional[_DenseTransform],
        scale_rule: str,
        weight_global_scale: Optional[float],
        activation_global_scale: Optional[float],
        activation_encoding: str,
        bias: Optional[_Bytes],
    ) -> Layer: ...
    @staticmethod
    def from_state(
        state: Mapping[str, _Tensor], prefix: str, options: Mapping[str, Any]
    ) -> Layer: ...
    @staticmethod
    def empty(
        in_features: int,
        out_features: int,
        group_size: int,
        scale_type: str,
        global_scale: float,
    ) -> Layer: ...
    def with_backends(self, quantizer: Optional[str], matmul: Optional[str]) -> Layer: ...
    def with_name(self, name: str) -> Layer: ...
    def with_dtype(self, dtype: str) -> Layer: ...
    def with_activations(self, name: str) -> Layer: ...
    def with_bias(self, bias: Optional[_Bytes]) -> Layer: ...
    def forward(
        self, x: _Dense, shape: Sequence[int], dtype: Optional[str]
    ) -> npt.NDArray[Any]: ...
    def state(self, prefix: str) -> dict[str, _Tensor]: ...
    def save(self, path: _Path, prefix: str = "") -> None: ...
    def weight(self) -> tuple[_Bytes, _Bytes, int, int, Spec]: ...
    def explain(self, rows: int = 1, dtype: str = "f32") -> str: ...
    def prepare(self) -> None: ...
    @property
    def transform(self) -> Optional[tuple[npt.NDArray[Any], str, list[int]]]: ...
    @property
    def in_features(self) -> int: ...
    @property
    def out_features(self) -> int: ...
    @property
    def format(self) -> Optional[str]: ...
    @property
    def group_size(self) -> int: ...
    @property
    def scale_type(self) -> str: ...
    @property
    def name(self) -> Optional[str]: ...
    @property
    def is_empty(self) -> bool: ...
    @property
    def weight_global_scale(self) -> float: ...
    @property
    def activation_global_scale(self) -> float: ...
    @property
    def activation_scale_scale(self) -> float: ...
    @property
    def activation_encoding(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def bias(self) -> Optional[npt.NDArray[np.float32]]: ...

@final
class Checkpoint:
    def __new__(cls, path: _Path, config: Optional[_Path] = None) -> Checkpoint: ...
    @property
    def path(self) -> os.PathLike[str]: ...
    def tensors(self) -> dict[str, tuple[str, list[int]]]: ...
    def has(self, name: str) -> bool: ...
    def tensor(self, name: str) -> _Tensor: ...
    def layers(
        self, options: Mapping[str, Any]
    ) -> tuple[dict[str, tuple[str, Optional[str], int, int, Optional[int]]], dict[str, str]]: ...
    def layer(self, module: str, options: Mapping[str, Any]) -> Layer: ...
    def load_all(self, options: Mapping[str, Any]) -> dict[str, Layer]: ...

_Operand = tuple[_Bytes, _Bytes, int, int, Spec]

def quantize(
    x: _Dense,
    rows: int,
    k: int,
    spec: Spec,
    transform: Optional[_DenseTransform],
    scales: Optional[_Bytes],
    backend: Optional[str],
) -> tuple[_Bytes, _Bytes, Optional[npt.NDArray[np.float32]], dict[str, int]]: ...
def dequantize(packed: _Operand, row_scales: Optional[_Bytes], dtype: str) -> npt.NDArray[Any]: ...
def matmul(
    a: _Operand,
    b: _Operand,
    alpha: Optional[float],
    row_scales: Optional[_Bytes],
    bias: Optional[_Bytes],
    dtype: str,
    backend: Optional[str],
) -> npt.NDArray[Any]: ...
def transform(x: _Dense, k: int, transform: _DenseTransform) -> npt.NDArray[Any]: ...
def amax(x: _Dense, k: int, transform: Optional[_DenseTransform]) -> float: ...
def hadamard(block: int) -> npt.NDArray[np.float32]: ...
def swizzle(scales: _Bytes, rows: int, cols: int) -> _Bytes: ...
def unswizzle(swizzled: _Bytes, rows: int, cols: int) -> _Bytes: ...
def backends() -> tuple[list[str], list[tuple[str, str]]]: ...
def isa() -> str: ...
def set_threads(threads: int) -> None:
    """Sets the number of threads that calls run on; the bits are the same with any.

    Args:
        threads: 1 to 1024, or 0 for one for each core.
    """

def threads() -> int:
    """The number of threads that calls run on."""

def quantize_checkpoint(
    input: _Path, output: _Path, how: Mapping[str, Any]
) -> tuple[list[tuple[str, str, str, float, Optional[str]]], list[tuple[str, str]]]: ...
def write_safetensors(path: _Path, tensors: Mapping[str, _Tensor]) -> None: ...
def _spec(
    format: Optional[str],
    scale_type: str,
    group_size: int,
    global_scale: float,
    scale_scale: float,
    tie: str,
    row_scales: bool,
) -> Spec: ...
def _before_fork() -> None: ...
def _after_fork_in_parent() -> None: ...
def _after_fork_in_child() -> None: ...
