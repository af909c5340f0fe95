"""The module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Optional, Union

import torch
from torch import Tensor, nn

from .. import _core
from .._core import Fp4Error
from .._layer import Layer, options
from ._op import FLOATS, SCALES, STATE, as_numpy, given, layer_of, linear, to_tensor

NEEDED = ("e2m1", "scale_quant", "weight_global_scale")


def _scale_name(scale_dtype: Any) -> Optional[str]:
    """The name of a scale type, given by name or as a type of torch."""
    if scale_dtype is None or scale_dtype in SCALES:
        return None if scale_dtype is None else str(scale_dtype)
    for name, dtype in SCALES.items():
        if dtype == scale_dtype:
            return name
    raise TypeError(f"scale_dtype {scale_dtype!r}; expected 'e8m0', 'e4m3' or the float8 type")


class QuantLinear(nn.Module):
    """A linear layer whose weight is FP4 and whose activations are quantized on the way in.

    Takes what ``nn.Linear`` takes. Without ``e2m1`` it is an empty skeleton, to be filled by
    ``load_state_dict``, which replaces shape, format and transform; with it, the layer of the
    tensors given.

    Args:
        in_features, out_features: of the skeleton, or as the tensors have them.
        bias: a bias in the state is applied (``True``) or, unless it is zero, refused (``False``);
            or the bias itself, (out).
        device: of the buffers. Calls are computed on the CPU.
        dtype: of the transform: float32, float16 or bfloat16.
        transform: (Bt, Bt) or (in / Bt, Bt, Bt).
        e2m1: uint8 (out, in / 2), two codes a byte, low nibble first.
        scale_quant: (out, in / G) in float8_e8m0fnu or float8_e4m3fn; or uint8 with
        scale_dtype: one of these types, or ``"e8m0"`` or ``"e4m3"``.
        group_size: of the skeleton; 32, or 16 under e4m3, if ``None``.
        weight_global_scale: 1 if ``None``.
        activation_global_scale: the weight's if ``None``.
        activation_scale_scale: 1, with a warning, if ``None``; useful are 4 (MXFP4) and 6 (NVFP4).
        activation_encoding: ``"fp4"``, ``"mxint8"`` or ``"fp4-rows"``.
        quant_backend, matmul_backend: one of ``exact_fp4.backends()`` for a role; one that cannot
            is replaced, with a warning. The bits are the same.

    Raises:
        Fp4Error: tensors that do not make a layer.
    """

    e2m1: Optional[Tensor]
    scale_quant: Optional[Tensor]
    transform: Optional[Tensor]
    weight_global_scale: Tensor
    activation_global_scale: Tensor
    activation_scale_scale: Tensor
    activation_encoding: Optional[Tensor]
    bias: Optional[Tensor]

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: Union[bool, Tensor] = True,
        device: Any = None,
        dtype: Optional[torch.dtype] = None,
        *,
        transform: Optional[Tensor] = None,
        e2m1: Optional[Tensor] = None,
        scale_quant: Optional[Tensor] = None,
        scale_dtype: Any = None,
        group_size: Optional[int] = None,
        weight_global_scale: Any = None,
        activation_global_scale: Any = None,
        activation_scale_scale: Any = None,
        activation_encoding: Optional[str] = None,
        quant_backend: Optional[str] = None,
        matmul_backend: Optional[str] = None,
    ) -> None:
        super().__init__()
        if dtype is not None and dtype not in FLOATS:
            raise TypeError(f"dtype {dtype}; expected float32, float16 or bfloat16")
        self.quant_backend, self.matmul_backend = quant_backend, matmul_backend
        self._applies_bias = isinstance(bias, Tensor) or bool(bias)
        self._scale_type = _scale_name(scale_dtype)
        self._built_for = (int(in_features), int(out_features), 32, "e8m0", 1.0)
        for name in STATE:
            self.register_buffer(name, None)
        if e2m1 is None:
            if scale_quant is not None or transform is not None or isinstance(bias, Tensor):
                raise Fp4Error("tensors are given without e2m1; give all of them, or none")
            self._be_empty(group_size, weight_global_scale, device)
            self._note_scalars(activation_global_scale, activation_scale_scale)
            return
        parts = {
            "e2m1": e2m1,
            "scale_quant": scale_quant,
            "transform": transform if dtype is None or transform is None else transform.to(dtype),
            "weight_global_scale": 1.0 if weight_global_scale is None else weight_global_scale,
            "activation_global_scale": activation_global_scale,
            "activation_scale_scale": activation_scale_scale,
            "bias": bias if isinstance(bias, Tensor) else None,
        }
        tensors = {
            name: torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else torch.float32)
            for name, value in parts.items()
            if value is not None
        }
        layer = self._check(tensors, "", activation_encoding)
        for what, asked, got in (
            ("in_features", in_features, layer.in_features),
            ("out_features", out_features, layer.out_features),
            ("group_size", group_size, layer.group_size),
            ("scale_dtype", self._scale_type, layer.scale_type),
        ):
            if asked is not None and asked != got:
                raise Fp4Error(f"{what} {asked}, and the tensors have {got}")
        self._take(tensors, layer, None if device is None else torch.device(device))

    @classmethod
    def from_layer(cls, layer: Layer, **keywords: Any) -> "QuantLinear":
        """The module of a layer, as ``exact_fp4.open(path).layer(name)`` gives one.

        ``keywords``: bias (a tensor; else that of the layer), device, dtype, the backends.
        """
        state = {name: to_tensor(t) for name, t in layer._layer.state("").items()}
        state.pop("activation_encoding", None)
        own = state.pop("bias", None)
        keywords.setdefault("bias", own if own is not None else False)
        keywords["activation_encoding"] = layer.activation_encoding
        return cls(layer.in_features, layer.out_features, **state, **keywords)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, format: str = "nvfp4", **settings: Any
    ) -> "QuantLinear":
        """Quantizes the weight of a linear layer; ``settings`` as ``Layer.from_dense`` has them."""
        weight = linear.weight.detach()
        settings["transform"] = as_numpy(settings.get("transform"), "transform")
        layer = Layer.from_dense(as_numpy(weight, "weight"), format, **settings)
        bias = False if linear.bias is None else linear.bias.detach()
        return cls.from_layer(layer, bias=bias, device=weight.device)

    # Building and checking.

    def _be_empty(self, group_size: Optional[int], scale: Any, device: Any) -> None:
        """Makes a skeleton, if there can be one of this shape."""
        scale_type = self._scale_type or "e8m0"
        group = group_size if group_size is not None else (16 if scale_type == "e4m3" else 32)
        scale = 1.0 if scale is None else float(scale)
        self._built_for = (*self._built_for[:2], group, scale_type, scale)
        self._skeleton()
        for name in STATE[3:6]:
            value = 1.0 if name == "activation_scale_scale" else scale
            setattr(self, name, torch.tensor(value, dtype=torch.float32, device=device))

    def _note_scalars(self, global_scale: Any, scale_scale: Any) -> None:
        if global_scale is not None:
            self.activation_global_scale.fill_(float(global_scale))
        if scale_scale is not None:
            self.activation_scale_scale.fill_(float(scale_scale))

    def _skeleton(self) -> _core.Layer:
        return _core.Layer.empty(*self._built_for)

    def _check(
        self, tensors: Mapping[str, Tensor], prefix: str, encoding: Optional[str] = None
    ) -> _core.Layer:
        """The Rust layer of a state, which checks it; its tensors may be on other devices."""
        state = {}
        for name, tensor in tensors.items():
            if isinstance(tensor, Tensor) and tensor.device.type not in ("cpu", "meta"):
                tensor = tensor.cpu()
            state[prefix + name] = given(tensor, prefix + name)
        load = options(
            layout="native",
            scale_type=self._scale_type,
            activations=encoding,
            bias="apply" if self._applies_bias else "refuse",
        )
        return _core.Layer.from_state(state, prefix[:-1] if prefix else "", load)

    def _take(
        self, tensors: Mapping[str, Tensor], layer: _core.Layer, device: Optional[torch.device]
    ) -> None:
        """Takes checked tensors as buffers, with scalars as the layer has resolved them."""

        def scalar(value: float) -> Tensor:
            return torch.tensor(value, dtype=torch.float32)

        scales = tensors["scale_quant"].detach().view(SCALES[layer.scale_type])
        transform, bias = tensors.get("transform"), layer.bias
        codes = {"fp4": None, "mxint8": 1, "fp4-rows": 2}[layer.activation_encoding]
        taken: dict[str, Optional[Tensor]] = {
            "e2m1": tensors["e2m1"].detach(),
            "scale_quant": scales,
            "transform": None if transform is None else transform.detach(),
            "weight_global_scale": scalar(layer.weight_global_scale),
            "activation_global_scale": scalar(layer.activation_global_scale),
            "activation_scale_scale": scalar(layer.activation_scale_scale),
            "activation_encoding": None
            if codes is None
            else torch.tensor(codes, dtype=torch.uint8),
            "bias": None if bias is None else torch.from_numpy(bias),
        }
        for name, tensor in taken.items():
            setattr(self, name, tensor if tensor is None or device is None else tensor.to(device))

    # What nn.Module does with a state.

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Replaces the layer by the state under the prefix, or leaves it as it is."""
        for hook in self._load_state_dict_pre_hooks.values():
            hook(
                state_dict,
                prefix,
                local_metadata,
                strict,
                missing_keys,
                unexpected_keys,
                error_msgs,
            )
        own = {n: state_dict[prefix + n] for n in STATE if prefix + n in state_dict}
        if strict:
            known = {prefix + name for name in STATE}
            others = (key for key in state_dict if key.startswith(prefix) and key not in known)
            unexpected_keys.extend(others)
        missing = [prefix + name for name in NEEDED if name not in own]
        if missing:
            missing_keys.extend(missing)
            return
        try:
            layer = self._check(own, prefix)
        except (Fp4Error, TypeError) as error:
            hint = "; in Python, QuantLinear(..., bias=True)" if "Bias::Apply" in str(error) else ""
            error_msgs.append(f"{error}{hint}")
            return
        assign = local_metadata.get("assign_to_params_buffers", False)
        device = None if assign or self.device.type == "meta" else self.device
        if not assign:
            own = {name: tensor.detach().clone() for name, tensor in own.items()}
        self._take(own, layer, device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantLinear":
        """Moves all buffers, and changes the type of the transform alone."""
        moved: dict[str, Tensor] = {}
        for name in STATE:
            tensor = getattr(self, name)
            if tensor is None:
                continue
            if name == "transform":
                moved[name] = fn(tensor)
                if moved[name].dtype not in FLOATS:
                    raise TypeError(
                        f"a transform cannot be {moved[name].dtype}; expected float32, float16 or "
                        "bfloat16"
                    )
                continue
            # Bytes have no type to be changed.
            plain = tensor.reshape(-1).view(torch.uint8)
            became = fn(plain)
            if became.dtype == torch.uint8 and became.shape == plain.shape:
                moved[name] = became.view(tensor.dtype).reshape(tensor.shape)
        for name, tensor in moved.items():
            setattr(self, name, tensor)
        return self

    # What it is like.

    @property
    def in_features(self) -> int:
        """Input features."""
        return self._built_for[0] if self.e2m1 is None else 2 * self.e2m1.shape[1]

    @property
    def out_features(self) -> int:
        """Output features."""
        return self._built_for[1] if self.e2m1 is None else self.e2m1.shape[0]

    @property
    def group_size(self) -> int:
        """Elements that share a scale."""
        if self.e2m1 is None or self.scale_quant is None or self.scale_quant.shape[1] == 0:
            return self._built_for[2]
        return self.in_features // self.scale_quant.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the buffers are."""
        return self.weight_global_scale.device

    def layer(self) -> Layer:
        """The layer on NumPy arrays, with a copy of the weight."""
        return Layer._of(self._core_layer())

    def explain(self, rows: int = 1, dtype: torch.dtype = torch.float32) -> str:
        """Who would quantize and multiply, and why not the others."""
        return self._core_layer().explain(rows, FLOATS[dtype])

    def _core_layer(self) -> _core.Layer:
        if self.e2m1 is None:
            self._skeleton().prepare()  # says that it is empty
        tensors = tuple(getattr(self, name) for name in STATE)
        return layer_of(tensors, self.quant_backend, self.matmul_backend)

    def extra_repr(self) -> str:
        scales = "empty" if self.scale_quant is None else str(self.scale_quant.dtype)[6:]
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, scales={scales}, group_size={self.group_size}, "
            f"transform={self.transform is not None}"
        )

    def forward(self, input: Tensor) -> Tensor:
        """The outputs (..., out) of an input (..., in), in its type."""
        if self.e2m1 is None:
            self._skeleton().prepare()  # says that it is empty
        for what, device in (("the input", input.device), ("the layer", self.device)):
            if device.type not in ("cpu", "meta"):
                raise Fp4Error(
                    f"{what} is on {device}, and this layer computes on the CPU; move the module "
                    "and its inputs with .to('cpu')"
                )
        if self.device.type == "meta" and input.device.type != "meta":
            raise Fp4Error("the layer is on meta and has no bytes; load a state with assign=True")
        y: Tensor = linear(
            input, *(getattr(self, n) for n in STATE), self.quant_backend, self.matmul_backend
        )
        return y
