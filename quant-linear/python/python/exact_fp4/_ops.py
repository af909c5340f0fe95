"""Quantize, dequantize, multiply, transform, swizzle."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional, Union

import numpy as np
import numpy.typing as npt

from . import _core
from ._arrays import (
    Array,
    Bytes,
    Dtype,
    dense,
    dense_transform,
    float32,
    float_name,
    raw,
    result,
    rows_of,
    uint8,
)
from ._core import Fp4Error, Spec


def _spec(spec: Union[Spec, str]) -> Spec:
    return spec if isinstance(spec, Spec) else Spec(spec)


@dataclass(frozen=True, eq=False)
class Packed:
    """A packed matrix: codes, scale bytes and their settings.

    ``codes``: uint8 (..., K / 2), two codes a byte, low nibble first; (..., K) for MXINT8.
    ``scales``: uint8 (..., K / G), row-major. ``spec``: format and global scale.
    ``row_scales``: float32 (...), the global scales of rows that have their own.
    ``counts``: what quantizing did.
    """

    codes: Bytes
    scales: Bytes
    spec: Spec
    row_scales: Optional[npt.NDArray[np.float32]] = None
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in elements."""
        return (*self.codes.shape[:-1], self.codes.shape[-1] * self.spec.per_byte)

    def dequantize(self, dtype: Dtype = "float32") -> Array:
        """The values; see :func:`dequantize`."""
        return dequantize(self, dtype)

    def _operand(self, what: str) -> tuple[Bytes, Bytes, int, int, Spec]:
        codes, scales = uint8(self.codes, f"{what}.codes"), uint8(self.scales, f"{what}.scales")
        if codes.ndim < 1 or codes.shape[:-1] != scales.shape[:-1]:
            raise Fp4Error(
                f"{what}: codes of shape {codes.shape} and scales of shape {scales.shape}; "
                "expected the same dimensions but the last"
            )
        k = codes.shape[-1] * self.spec.per_byte
        return raw(codes), raw(scales), rows_of(codes.shape), k, self.spec


def quantize(
    x: Any,
    spec: Union[Spec, str] = "nvfp4",
    *,
    transform: Any = None,
    scales: Any = None,
    backend: Optional[str] = None,
) -> Packed:
    """Quantizes the rows of ``x`` (..., K), after the transform if there is one.

    Args:
        x: float32, float16 or bfloat16.
        spec: the settings, or ``"mxfp4"``, ``"nvfp4"`` or ``"mxint8"`` for the usual ones.
        transform: (Bt, Bt), or (K / Bt, Bt, Bt), with Bt 16, 32, 64 or 128.
        scales: uint8 (..., K / G), to be used instead of computed ones.
        backend: one of :func:`backends`; the fastest that can if it is ``None``.

    Raises:
        Fp4Error: a K that is no whole groups, a transform or scales that do not fit.
        TypeError: another type.
    """
    spec = _spec(spec)
    a, values = dense(x, "x")
    if a.ndim < 1:
        raise Fp4Error("x has no dimensions; expected (..., K)")
    lead, k = a.shape[:-1], a.shape[-1]
    given = None if scales is None else raw(uint8(scales, "scales"))
    codes, scale_bytes, row_scales, counts = _core.quantize(
        values, rows_of(a.shape), k, spec, dense_transform(transform), given, backend
    )
    return Packed(
        codes.reshape(*lead, k // spec.per_byte),
        scale_bytes.reshape(*lead, k // spec.group_size),
        spec,
        None if row_scales is None else row_scales.reshape(lead),
        counts,
    )


def dequantize(packed: Packed, dtype: Dtype = "float32") -> Array:
    """The values of a packed matrix, (..., K), each rounded once to ``dtype``.

    Raises:
        Fp4Error: buffers that do not fit each other.
    """
    name = float_name(dtype)
    scales = float32(packed.row_scales, "row_scales")
    if packed.spec.row_scales and scales is None:
        raise Fp4Error("the settings ask for row scales, and there are none")
    values = _core.dequantize(packed._operand("packed"), scales, name)
    return result(values, name, packed.shape)


def matmul(
    a: Packed,
    b: Packed,
    *,
    alpha: Optional[float] = None,
    bias: Any = None,
    dtype: Dtype = "float32",
    backend: Optional[str] = None,
) -> Array:
    """A times the transpose of B: exact, rounded once to float32, times ``alpha``, plus the bias.

    Args:
        a: (..., K) in the format of ``b``, or MXINT8.
        b: (N, K) in MXFP4 or NVFP4.
        alpha: the product of both global scales if it is ``None``; of ``b`` alone where the rows
            of ``a`` have scales of their own, which are applied.
        bias: (N), added in float32 before the last rounding.
        dtype: of the result, (..., N).

    Raises:
        Fp4Error: operands that cannot be multiplied.
    """
    name = float_name(dtype)
    one, other = a._operand("a"), b._operand("b")
    if b.codes.ndim != 2:
        raise Fp4Error(f"b has shape {b.shape}; expected (N, K)")
    scales = float32(a.row_scales, "a.row_scales")
    values = _core.matmul(one, other, alpha, scales, float32(bias, "bias"), name, backend)
    return result(values, name, (*a.codes.shape[:-1], b.codes.shape[0]))


def transform(x: Any, matrix: Any) -> Array:
    """The rows of ``x`` (..., K) after the block transform, in their type.

    Args:
        matrix: (Bt, Bt), or (K / Bt, Bt, Bt): row j of a block holds the weights of output j.
    """
    a, values = dense(x, "x")
    if a.ndim < 1:
        raise Fp4Error("x has no dimensions; expected (..., K)")
    given = dense_transform(matrix)
    if given is None:
        raise TypeError("matrix is None; expected an array")
    return result(_core.transform(values, a.shape[-1], given), values[1], a.shape)


def amax(x: Any, *, transform: Any = None) -> float:
    """The largest magnitude of ``x`` (..., K), after the transform; NaN if a value is NaN."""
    a, values = dense(x, "x")
    if a.ndim < 1:
        raise Fp4Error("x has no dimensions; expected (..., K)")
    return _core.amax(values, a.shape[-1], dense_transform(transform))


def hadamard(block: int = 32) -> npt.NDArray[np.float32]:
    """The orthonormal Hadamard matrix (block, block) in float32; block is 16, 32, 64 or 128."""
    return _core.hadamard(block).reshape(block, block)


def swizzle(scales: Any) -> Bytes:
    """The 128x4 layout of scale bytes (rows, cols), one dimension, padded with zeros."""
    a = uint8(scales, "scales", rank=2)
    return _core.swizzle(raw(a), a.shape[0], a.shape[1])


def unswizzle(swizzled: Any, rows: int, cols: int) -> Bytes:
    """Scale bytes (rows, cols) of their 128x4 layout; what the padding holds is dropped."""
    a = uint8(swizzled, "swizzled")
    return _core.unswizzle(raw(a), rows, cols).reshape(rows, cols)


def backends() -> list[str]:
    """Names of the backends that run here, fastest first."""
    return _core.backends()[0]
