"""Models: their linear layers to FP4."""

from __future__ import annotations

import json
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any, Optional

from torch import nn

from .. import _core
from .._checkpoint import how
from .._core import Fp4Error
from .._layer import Layer, options
from ._module import QuantLinear
from ._op import given

FORMATS = ("mxfp4", "nvfp4")


def _recipe(recipe: Any) -> tuple[Optional[str], Optional[str]]:
    """Format and text of a recipe: a format, TOML or JSON text, a dictionary, or a file."""
    if recipe is None or (isinstance(recipe, str) and recipe in FORMATS):
        return recipe, None
    if isinstance(recipe, Mapping):
        return None, json.dumps(recipe)
    if isinstance(recipe, str) and ("\n" in recipe or "{" in recipe or "[[" in recipe):
        return None, recipe
    if isinstance(recipe, (str, os.PathLike)):
        path = pathlib.Path(recipe)
        try:
            return None, path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise Fp4Error(f"the recipe {str(path)!r} cannot be read: {error}") from error
    raise TypeError(f"recipe is a {type(recipe).__name__}; expected a format, text, dict or path")


def convert(
    model: nn.Module, recipe: Any = "nvfp4", *, format: Optional[str] = None, **settings: Any
) -> dict[str, str]:
    """Quantizes linear layers of a model in place, by the rules of ``fp4 quantize``.

    The ``nn.Linear`` modules (no subclasses: those often read the weight themselves) become
    :class:`QuantLinear`. Which of them, and how, is decided by their names as ``fp4 quantize``
    decides: heads, routers and the like stay dense. If anything fails, the model is as it was.

    Args:
        recipe: a format; or formats and settings by name: TOML or JSON text, a dictionary, a path.
        format: beside a recipe: the format of what no rule matches, which else stays dense.
        settings: those of ``exact_fp4.quantize_checkpoint``.

    Returns:
        Format by name of every layer converted.

    Raises:
        Fp4Error: nothing to quantize, a recipe that cannot be followed.
    """
    named, text = _recipe(recipe)
    request = how(format or named, recipe=text, **settings)
    modules = dict(model.named_modules(remove_duplicate=False))
    linear = {name: m for name, m in modules.items() if type(m) is nn.Linear}
    if "" in linear:
        raise Fp4Error("the model is a linear layer itself; use QuantLinear.from_linear")
    first: dict[int, str] = {}
    for name, module in linear.items():
        first.setdefault(id(module), name)
    made: dict[int, tuple[QuantLinear, str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        dense, packed = (pathlib.Path(folder) / f"{name}.safetensors" for name in ("dense", "fp4"))
        weights = {}
        for name in first.values():
            weight = linear[name].weight.detach()
            if weight.is_meta:
                raise Fp4Error(f"`{name}.weight` is on meta and has no values; load it first")
            weights[f"{name}.weight"] = given(weight.cpu(), f"{name}.weight")
        _core.write_safetensors(dense, weights)
        done, _ = _core.quantize_checkpoint(dense, packed, request)
        checkpoint = _core.Checkpoint(packed)
        for _, name, form, _, _ in done:
            old = linear[name]
            layer = Layer._of(checkpoint.layer(name, options()))
            bias = False if old.bias is None else old.bias.detach()
            new = QuantLinear.from_layer(layer, bias=bias, device=old.weight.device)
            made[id(old)] = (new.train(old.training), form)
    formats = {}
    for name, old in linear.items():
        if id(old) in made:
            parent, _, last = name.rpartition(".")
            new, formats[name] = made[id(old)]
            setattr(modules[parent], last, new)
    return formats
