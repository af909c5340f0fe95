"""Checkpoints of any layout."""

from __future__ import annotations

import os
from typing import Any, NamedTuple, Optional, Sequence, Union

from . import _core
from ._arrays import Array, typed
from ._core import Fp4Error
from ._layer import Layer, options

Path = Union[str, "os.PathLike[str]"]


class TensorInfo(NamedTuple):
    """Type and shape of a tensor."""

    dtype: str
    shape: tuple[int, ...]


class LayerInfo(NamedTuple):
    """What a quantized layer is like; ``experts`` of a 3-D weight, else ``None``."""

    layout: str
    format: Optional[str]
    out_features: int
    in_features: int
    experts: Optional[int]


class Checkpoint:
    """An open checkpoint; tensors are read when they are asked for. Made by :func:`open`."""

    __slots__ = ("_core",)

    def __init__(self, core: _core.Checkpoint) -> None:
        self._core = core

    @property
    def path(self) -> str:
        """Where it is."""
        return os.fspath(self._core.path)

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """Type and shape of every tensor by name."""
        tensors = self._core.tensors().items()
        return {name: TensorInfo(dtype, tuple(shape)) for name, (dtype, shape) in tensors}

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return self._core.has(name)

    def tensor(self, name: str) -> Array:
        """A tensor as a NumPy array (with the types of ``ml_dtypes``); GGUF's blocks are uint8."""
        return typed(self._core.tensor(name), name)

    def layers(self, **load: Any) -> dict[str, LayerInfo]:
        """The quantized layers by module; ``load`` as in :meth:`layer`.

        Raises:
            Fp4Error: a layer that is not whole, tensors that several layouts could explain.
        """
        good, bad = self._core.layers(options(**load))
        for module, error in bad.items():
            raise Fp4Error(f"layer `{module}`: {error}")
        return {module: LayerInfo(*about) for module, about in good.items()}

    def layer(self, module: str, **load: Any) -> Layer:
        """The layer of a module; an expert of a 3-D weight ``NAME`` is ``NAME.0``, ``NAME.1``, ...

        Args:
            layout: the layout by name, where the tensors allow several.
            scale_type: ``"e8m0"`` or ``"e4m3"`` for scale bytes stored as U8.
            activations: ``"fp4"``, ``"mxint8"`` or ``"fp4-rows"`` instead of what the file says.
            bias: of a native state: ``"refuse"`` (the default), ``"ignore"`` or ``"apply"``.
            foreign: other software wrote it: an absent scale-scale is its format's usual one.
        """
        return Layer._of(self._core.layer(module, options(**load)))

    def load_all(self, **load: Any) -> dict[str, Layer]:
        """All layers by module, the experts one by one; ``load`` as in :meth:`layer`."""
        layers = self._core.load_all(options(**load))
        return {module: Layer._of(layer) for module, layer in layers.items()}

    def __repr__(self) -> str:
        return f"Checkpoint({self.path!r}, {len(self._core.tensors())} tensors)"


def open(path: Path, *, config: Optional[Path] = None) -> Checkpoint:
    """Opens a checkpoint of any layout: a safetensors or GGUF file, or a folder of them.

    Args:
        path: the file or folder.
        config: the config.json that belongs to it, where it is elsewhere.

    Raises:
        Fp4Error: what is missing, or no checkpoint.
    """
    return Checkpoint(_core.Checkpoint(path, config))


def how(
    format: Optional[str] = None,
    *,
    recipe: Optional[str] = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    transform_block: Optional[int] = None,
    scale_rule: str = "search",
    weight_global_scale: Optional[float] = None,
    activation_global_scale: Optional[float] = None,
    activation_encoding: str = "fp4",
    strict: bool = False,
) -> dict[str, Any]:
    """How weights are chosen and quantized.

    Args:
        format: ``"mxfp4"`` or ``"nvfp4"``; without one, what no rule of the recipe matches stays
            dense.
        recipe: formats and settings by name, as TOML or JSON text.
        include: globs on full names, instead of the default choice by role.
        exclude: globs of what stays dense.
        transform_block: block of a Hadamard transform, 16 to 128; none if ``None``.
        scale_rule: how the scale bytes of weights are found: ``"search"``, ``"nearest"``, ``"floor"``,
            ``"rceil"``, ``"even"``, ``"four-six-mse"``, ``"modelopt"`` and others.
        weight_global_scale, activation_global_scale: the usual ones if ``None``.
        activation_encoding: ``"fp4"``, ``"mxint8"`` or ``"fp4-rows"``.
        strict: a weight that cannot be quantized, or a pattern that matches nothing, is an error.
    """
    return {
        "format": format,
        "recipe": recipe,
        "include": list(include),
        "exclude": list(exclude),
        "transform_block": transform_block,
        "scale_rule": scale_rule,
        "weight_global_scale": weight_global_scale,
        "activation_global_scale": activation_global_scale,
        "activation_encoding": activation_encoding,
        "strict": strict,
    }


def quantize_checkpoint(
    input: Path, output: Path, format: Optional[str] = None, **settings: Any
) -> dict[str, str]:
    """Quantizes the linear weights of a checkpoint to a new file or folder, as ``fp4 quantize``.

    ``settings``: recipe, include, exclude, transform_block, scale_rule, weight_global_scale,
    activation_global_scale, activation_encoding, strict, as the command's options. The output must
    not exist; it is whole or not there.

    Returns:
        Format by name of every weight that was quantized.

    Raises:
        Fp4Error: nothing to quantize, a recipe that cannot be followed, an output that exists.
    """
    if os.path.lexists(output):
        raise Fp4Error(f"{os.fspath(output)!r} exists; give another path, or remove it")
    done, _ = _core.quantize_checkpoint(input, output, how(format, **settings))
    return {name: form for name, _, form, _, _ in done}
