"""The layer on NumPy arrays."""

from __future__ import annotations

import os
from typing import Any, Mapping, Optional, Union

import numpy as np
import numpy.typing as npt

from . import _core
from ._arrays import (
    Array,
    Dtype,
    dense,
    dense_transform,
    float32,
    float_name,
    given,
    result,
    typed,
)
from ._core import Fp4Error
from ._ops import Packed


def options(
    layout: Optional[str] = None,
    scale_type: Optional[str] = None,
    activations: Optional[str] = None,
    bias: str = "refuse",
    foreign: bool = False,
) -> dict[str, Any]:
    """What a state does not say for itself.

    Args:
        layout: the layout by name, where the tensors allow several.
        scale_type: ``"e8m0"`` or ``"e4m3"`` for scale bytes stored as U8.
        activations: ``"fp4"``, ``"mxint8"`` or ``"fp4-rows"`` instead of what the state says.
        bias: of a native state: ``"refuse"``, ``"ignore"`` or ``"apply"``.
        foreign: other software wrote it: an absent scale-scale is its format's usual one.
    """
    return {
        "layout": layout,
        "scale_type": scale_type,
        "activations": activations,
        "bias": bias,
        "foreign": foreign,
    }


class Layer:
    """A linear layer in FP4: ``layer(x)`` is x * W^T, plus a bias if it has one.

    The weight is stored in 4 bits, activations are quantized on the way in, the product is exact
    and rounded once: a row's bits do not depend on batch, threads or backend. Layers are immutable;
    any number of threads may call one.
    """

    __slots__ = ("_layer",)
    _layer: _core.Layer

    def __init__(self) -> None:
        raise TypeError(
            "use Layer.from_dense, Layer.from_state or exact_fp4.open(path).layer(name)"
        )

    @classmethod
    def _of(cls, core: _core.Layer) -> Layer:
        layer = cls.__new__(cls)
        layer._layer = core
        return layer

    @classmethod
    def from_dense(
        cls,
        weight: Any,
        format: str = "nvfp4",
        *,
        transform: Any = None,
        scale_rule: str = "search",
        weight_global_scale: Optional[float] = None,
        activation_global_scale: Optional[float] = None,
        activation_encoding: str = "fp4",
        bias: Any = None,
    ) -> Layer:
        """Quantizes a dense weight (out, in), after the transform if there is one.

        Scales that are ``None`` are the usual ones: of MXFP4 1 for the weight and 1/3 for
        activations; of NVFP4 amax / 2688 for the weight and 0.1 for activations. A weight that is
        in the format already gets the one that it had. ``scale_rule`` names how the scale bytes of
        the weight are found, as ``fp4 quantize --scale-rule``.
        """
        a, values = dense(weight, "weight")
        if a.ndim != 2:
            raise Fp4Error(f"weight has shape {a.shape}; expected (out, in)")
        return cls._of(
            _core.Layer.from_dense(
                values,
                list(a.shape),
                format,
                dense_transform(transform),
                scale_rule,
                weight_global_scale,
                activation_global_scale,
                activation_encoding,
                float32(bias, "bias"),
            )
        )

    @classmethod
    def from_state(cls, state: Mapping[str, Any], prefix: str = "", **load: Any) -> Layer:
        """The layer of tensors by name; ``load`` are the options of :meth:`Checkpoint.layer`."""
        return cls._of(_core.Layer.from_state(given(state), prefix, options(**load)))

    def __call__(self, x: Any, *, dtype: Optional[Dtype] = None) -> Array:
        """The outputs (..., out) for ``x`` (..., in), in the type of ``x`` or in ``dtype``."""
        a, values = dense(x, "x")
        name = values[1] if dtype is None else float_name(dtype)
        y = self._layer.forward(values, list(a.shape), name)
        return result(y, name, (*a.shape[:-1], self.out_features))

    def state_dict(self, prefix: str = "") -> dict[str, Array]:
        """The state: a copy of every tensor, by name under the prefix."""
        state = self._layer.state(prefix)
        return {name: typed(tensor, name) for name, tensor in state.items()}

    def save(self, path: Union[str, os.PathLike[str]], prefix: str = "") -> None:
        """Writes the state to a safetensors file, whole or not at all."""
        self._layer.save(path, prefix)

    def weight(self) -> Packed:
        """The packed weight, a copy."""
        codes, scales, rows, k, spec = self._layer.weight()
        return Packed(
            codes.reshape(rows, k // spec.per_byte),
            scales.reshape(rows, k // spec.group_size),
            spec,
        )

    @property
    def transform(self) -> Optional[Array]:
        """The block transform, a copy, or ``None``."""
        stored = self._layer.transform
        return None if stored is None else result(stored[0], stored[1], stored[2])

    @property
    def bias(self) -> Optional[npt.NDArray[np.float32]]:
        """The bias, a copy, or ``None``."""
        return self._layer.bias

    def with_bias(self, bias: Any) -> Layer:
        """The same layer, weight shared, with a bias (out), or with none."""
        return self._of(self._layer.with_bias(float32(bias, "bias")))

    def with_activations(self, encoding: str) -> Layer:
        """The same layer, weight shared, with activations as fp4, mxint8 or fp4-rows."""
        return self._of(self._layer.with_activations(encoding))

    def with_dtype(self, dtype: Dtype) -> Layer:
        """The same layer with its transform in another type, each value rounded once."""
        return self._of(self._layer.with_dtype(float_name(dtype)))

    def with_backends(self, quantizer: Optional[str] = None, matmul: Optional[str] = None) -> Layer:
        """The same layer with a backend for each role; ``None`` is the fastest that can.

        One that cannot do its role is replaced, with a warning.
        """
        return self._of(self._layer.with_backends(quantizer, matmul))

    def explain(self, rows: int = 1, dtype: Dtype = "float32") -> str:
        """Who would quantize and multiply, and why not the others."""
        return self._layer.explain(rows, float_name(dtype))

    @property
    def in_features(self) -> int:
        """Input features, K."""
        return self._layer.in_features

    @property
    def out_features(self) -> int:
        """Output features, N."""
        return self._layer.out_features

    @property
    def format(self) -> Optional[str]:
        """mxfp4 or nvfp4."""
        return self._layer.format

    @property
    def name(self) -> Optional[str]:
        """Its name in messages: the module that it was loaded from."""
        return self._layer.name

    @property
    def weight_global_scale(self) -> float:
        """Global scale of the weight."""
        return self._layer.weight_global_scale

    @property
    def activation_global_scale(self) -> float:
        """Global scale of activations, resolved."""
        return self._layer.activation_global_scale

    @property
    def activation_scale_scale(self) -> float:
        """Scale-scale of activations, resolved."""
        return self._layer.activation_scale_scale

    @property
    def activation_encoding(self) -> str:
        """How activations are quantized: fp4, mxint8 or fp4-rows."""
        return self._layer.activation_encoding

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self._layer.state(""), self.name)

    def __repr__(self) -> str:
        name = f"{self.name}: " if self.name else ""
        return (
            f"Layer({name}{self.in_features} -> {self.out_features}, {self.format}, "
            f"activations {self.activation_encoding}, bias={self.bias is not None})"
        )


def _unpickled(state: dict[str, Any], name: Optional[str]) -> Layer:
    """A layer of its state, on the backends that are the fastest here."""
    layer = _core.Layer.from_state(state, "", options(layout="native", bias="apply"))
    return Layer._of(layer if name is None else layer.with_name(name))
