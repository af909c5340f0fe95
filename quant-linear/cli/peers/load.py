"""Loads FP4 checkpoints with the library that a layout belongs to, and writes the values it gives.

    load.py PEER JOBS

runs in the environment of that library. JOBS is a JSON file, a list of {"in", "out"}: a folder (or
a .gguf file), and where the values go: a safetensors file of f32 tensors, named as `fp4 dequantize`
names them. It prints one JSON line for each job: {"how": TEXT} or {"error": TEXT}.

Nothing here computes a value: each is what the library's own code returns.

A folder with the `config.json` of a whole model is loaded as a model. The file of a source that is
no whole model goes through the library's own code for one layer, with the same config block.
"""

import importlib.metadata
import json
import os
import re
import sys
import traceback
from pathlib import Path

# Nothing is looked up anywhere.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"


class Cannot(Exception):
    """The library has no way to load such a file here."""


# ---------------------------------------------------------------- what the torch loaders share


def config_of(folder):
    path = folder / "config.json"
    return json.loads(path.read_text()) if path.exists() else {}


def is_model(folder, foreign=r"\.experts\.\w+\.\d+\.|\.biases$"):
    """Is this a whole model, with the names that transformers gives its tensors?

    Not: DeepSeek's own names; slices of 3-D experts, which are one tensor in transformers; MLX's
    affine layers, which `fp4 convert` carries along and only MLX can read.
    """
    from safetensors import safe_open

    config = config_of(folder)
    if not config.get("architectures") or config["model_type"] == "deepseek_v4":
        return False
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "np") as file:
            if any(re.search(foreign, name) for name in file.keys()):
                return False
    return True


def tensors_of(folder):
    from safetensors.torch import load_file

    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(path))
    return tensors


def layers_of(tensors, suffix):
    """The modules that have a tensor of this name, each with all of its own tensors."""
    for name in sorted(tensors):
        if name.endswith("." + suffix):
            module = name[: -len(suffix) - 1]
            own = {
                key[len(module) + 1 :]: value
                for key, value in tensors.items()
                if key.rpartition(".")[0] == module
            }
            yield module, own


def pretrained(folder, **settings):
    """The model as transformers loads it. A tensor missing or left over is an error."""
    import torch
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, local_files_only=True, **settings
    )
    wrong = {kind: sorted(map(str, names)) for kind, names in info.items() if names}
    if wrong:
        raise ValueError(f"from_pretrained reports {wrong}")
    return model


# ---------------------------------------------------------------- one function for each library


def compressed_tensors(folder):
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    def values(own, scheme):
        # As the compressor does it, whose decompress() has no argument for f32 and rounds to bf16.
        packed = own["weight_packed"]
        rows, half = packed.shape
        compressor = BaseCompressor.get_value_from_registry(scheme.format)
        return dequantize(
            x_q=unpack_fp4_from_uint8(packed, rows, 2 * half, dtype=torch.float32),
            scale=compressor._decompress_scale(own["weight_scale"], torch.float32),
            args=scheme.weights,
            global_scale=own.get("weight_global_scale"),
            dtype=torch.float32,
        )

    packed = [module for module, _ in layers_of(tensors_of(folder), "weight_packed")]
    if is_model(folder):
        from transformers import CompressedTensorsConfig

        if any("embed" in module for module in packed):
            # transformers initializes embeddings before it loads them, and a compressed one has no
            # `weight`. MXFP4 is exact in the bf16 in which it decompresses.
            model = pretrained(folder, quantization_config=CompressedTensorsConfig(dequantize=True))
            found = {f"{module}.weight": model.get_submodule(module).weight for module in packed}
            return "transformers from_pretrained(dequantize=True)", found
        # Kept compressed, as it is served.
        model = pretrained(folder, quantization_config=CompressedTensorsConfig(dequantize=False))
        modules = [
            (name, leaf) for name, leaf in model.named_modules() if hasattr(leaf, "weight_packed")
        ]
        found = {
            f"{name}.weight": values(leaf.state_dict(), leaf.quantization_scheme)
            for name, leaf in modules
        }
        return "transformers from_pretrained, compressed_tensors dequantize", found
    config = QuantizationConfig.model_validate(config_of(folder)["quantization_config"])
    found = {}
    for module, own in layers_of(tensors_of(folder), "weight_packed"):
        groups = config.config_groups.values()
        scheme = next(group for group in groups if {module, "Linear"} & set(group.targets))
        found[f"{module}.weight"] = values(own, scheme)
    return "compressed_tensors dequantize by the written config", found


def auto_round(folder):
    if is_model(folder):
        model = pretrained(folder, device_map="cpu")
        found = {
            f"{name}.weight": module.dequant_weight_online()
            for name, module in model.named_modules()
            if hasattr(module, "dequant_weight_online")
        }
        return "transformers from_pretrained, dequant_weight_online", found
    import torch
    from auto_round.experimental.qmodules.mx import MXFP4QuantLinear
    from auto_round.experimental.qmodules.nvfp4 import NVFP4QuantLinear
    from auto_round.schemes import QuantizationScheme

    block = config_of(folder)["quantization_config"]
    fields = QuantizationScheme.get_attributes()
    found = {}
    for module, own in layers_of(tensors_of(folder), "weight_packed"):
        settings = {**block, **block.get("extra_config", {}).get(module, {})}
        scheme = QuantizationScheme.from_dict({k: v for k, v in settings.items() if k in fields})
        rows, half = own["weight_packed"].shape
        kind = {"mx_fp": MXFP4QuantLinear, "nv_fp": NVFP4QuantLinear}[scheme.data_type]
        layer = kind(half * 2, rows, scheme, dtype=torch.float32)
        own.pop("bias", None)
        if "weight_global_scale" in own:
            own.setdefault("input_global_scale", torch.ones(1))
        layer.load_state_dict(own)
        found[f"{module}.weight"] = layer.dequant_weight_online()
    return "its QuantLinear by the written config", found


def modelopt(folder):
    import torch
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    found = {}
    for module, own in layers_of(tensors_of(folder), "weight_scale_2"):
        rows, half = own["weight"].shape
        tensor = NVFP4QTensor(torch.Size([rows, half * 2]), torch.float32, own["weight"])
        found[f"{module}.weight"] = tensor.dequantize(
            dtype=torch.float32,
            scale=own["weight_scale"],
            double_scale=own["weight_scale_2"],
            block_sizes={-1: 16},
        )
    return "NVFP4QTensor.dequantize (it has no loader of its own exports)", found


def comfyui(folder):
    import comfy_kitchen
    import torch
    from safetensors import safe_open

    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})["_quantization_metadata"])
            for module, settings in header["layers"].items():
                if settings != {"format": "nvfp4"}:
                    raise ValueError(f"the header says {settings} of {module}")
                own = [
                    file.get_tensor(f"{module}.{name}")
                    for name in ("weight", "weight_scale_2", "weight_scale")
                ]
                found[f"{module}.weight"] = comfy_kitchen.dequantize_nvfp4(*own, torch.float32)
    return "dequantize_nvfp4 of the layers in _quantization_metadata", found


def quark(folder):
    if not is_model(folder):
        raise Cannot("Quark loads whole models only, and the source is none")
    import torch
    from quark.torch import import_model_from_safetensors
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model = import_model_from_safetensors(model, str(folder), device="cpu")
    found = {}
    for module, _ in layers_of(tensors_of(folder), "weight_scale"):
        layer = model.get_submodule(module)
        found[f"{module}.weight"] = layer.weight_quantizer(layer.weight)
    return "import_model_from_safetensors, its weight quantizer", found


def gpt_oss(folder):
    tensors = tensors_of(folder)
    stems = [name[: -len("_blocks")] for name in tensors if name.endswith("_blocks")]
    if is_model(folder):
        from transformers import Mxfp4Config

        model = pretrained(folder, quantization_config=Mxfp4Config(dequantize=True))
        how, values = "transformers from_pretrained(dequantize=True)", model.get_parameter
    else:
        import torch
        from transformers.integrations.mxfp4 import convert_moe_packed_tensors

        how = "transformers convert_moe_packed_tensors"

        def values(stem):
            return convert_moe_packed_tensors(
                tensors[f"{stem}_blocks"], tensors[f"{stem}_scales"], dtype=torch.float32
            )

    # In transformers the inputs come before the outputs.
    return how, {stem: values(stem).transpose(-1, -2) for stem in stems}


def deepseek(folder):
    import torch
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    found = {}
    for module, own in layers_of(tensors_of(folder), "scale"):
        # Of the same names: F8_E4M3 is block FP8, I8 is FP4.
        if own["weight"].dtype == torch.int8:
            op = Fp8Dequantize(None)
            found[f"{module}.weight"] = op._dequantize_one(
                own["weight"], own["scale"], torch.float32
            )
    return "transformers Fp8Dequantize", found


def fp_quant(folder):
    if not is_model(folder):
        raise Cannot("its loader takes whole models only, and the source is none")
    try:
        pretrained(folder, device_map="cpu")
    except (NotImplementedError, ImportError) as error:
        raise Cannot(str(error)) from error
    raise RuntimeError("its loader runs here now: compare the values")


def torchao(folder):
    from safetensors import safe_open
    from safetensors.torch import load_file
    from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict

    import torch

    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        tensors, left = unflatten_tensor_state_dict(load_file(path), metadata)
        if left:
            raise ValueError(f"the library leaves {sorted(left)}")
        quantized = {name: t for name, t in tensors.items() if type(t) is not torch.Tensor}
        found.update({name: t.dequantize(torch.float32) for name, t in quantized.items()})
    return "unflatten_tensor_state_dict, dequantize", found


# The models among the sources that mlx-lm has code for; others are read layer by layer.
MLX_MODELS = ("llama", "gpt_oss", "qwen3_5_moe")


def mlx(folder):
    import mlx.core as mx
    import mlx.nn as nn

    def values(weight, scales, globals_, settings):
        settings = {key: settings[key] for key in ("mode", "group_size", "bits")}
        settings["dtype"] = mx.float32
        if globals_ is None:
            return mx.dequantize(weight, scales, **settings)
        each = range(len(globals_))
        of = [mx.dequantize(weight[e], scales[e], global_scale=globals_[e], **settings) for e in each]
        return mx.stack(of)

    found = {}
    config = config_of(folder)
    whole = is_model(folder, foreign=r"\.experts\.\w+\.\d+\.")
    # mlx-lm's gpt-oss looks for the first sliding layer, and fails if there is none.
    if config.get("model_type") == "gpt_oss":
        whole = whole and "sliding_attention" in config["layer_types"]
    if whole and config["model_type"] in MLX_MODELS:
        from mlx.utils import tree_flatten
        from mlx_lm.utils import load_model

        model, _ = load_model(folder)
        leaves = tree_flatten(
            model.leaf_modules(), is_leaf=lambda leaf: isinstance(leaf, nn.Module)
        )
        for name, leaf in leaves:
            settings = {key: getattr(leaf, key, None) for key in ("mode", "group_size", "bits")}
            if settings["mode"] in ("mxfp4", "nvfp4"):
                globals_ = getattr(leaf, "global_scale", None)
                found[f"{name}.weight"] = values(leaf.weight, leaf.scales, globals_, settings)
        return "mlx_lm load_model, mx.dequantize", found
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors.update(mx.load(str(path)))
    block = config["quantization"]
    plain = {key: value for key, value in block.items() if not isinstance(value, dict)}
    for name in sorted(tensors):
        if name.endswith(".scales"):
            module = name.removesuffix(".scales")
            settings = block.get(module, plain)
            globals_ = tensors.get(f"{module}.global_scale")
            weight = tensors[f"{module}.weight"]
            found[f"{module}.weight"] = values(weight, tensors[name], globals_, settings)
    return "mx.load, mx.dequantize by the written config", found


def gguf(path):
    import numpy as np
    from gguf import GGMLQuantizationType as Type
    from gguf import GGUFReader
    from gguf.quants import dequantize

    tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    found = {}
    for name, tensor in tensors.items():
        if tensor.tensor_type not in (Type.MXFP4, Type.NVFP4):
            continue
        values = dequantize(tensor.data, tensor.tensor_type)
        scale = tensors.get(f"{name.removesuffix('.weight')}.scale")
        if scale is not None:
            # llama.cpp multiplies by it after the product; gguf has no code for it.
            factors = scale.data.reshape([-1] + [1] * (values.ndim - 1))
            with np.errstate(over="ignore", invalid="ignore"):
                values = values * factors
        found[name] = values
    return "GGUFReader, quants.dequantize (times .scale)", found


# Layout: its reader, and the packages whose versions the table names.
PEERS = {
    "compressed-tensors": (compressed_tensors, ["compressed-tensors", "transformers"]),
    "auto-round": (auto_round, ["auto-round", "transformers"]),
    "modelopt": (modelopt, ["nvidia-modelopt"]),
    "comfyui": (comfyui, ["comfy-kitchen"]),
    "quark": (quark, ["amd-quark", "transformers"]),
    "gpt-oss": (gpt_oss, ["transformers"]),
    "deepseek": (deepseek, ["transformers"]),
    "fp-quant": (fp_quant, ["transformers"]),
    "torchao": (torchao, ["torchao"]),
    "mlx": (mlx, ["mlx", "mlx-lm"]),
    "gguf": (gguf, ["gguf"]),
}


def save(found, path):
    """Writes the values as f32 in a safetensors file."""
    import numpy as np
    from safetensors.numpy import save_file

    arrays = {}
    for name, value in found.items():
        if hasattr(value, "detach"):
            value = value.detach().numpy()
        value = np.ascontiguousarray(np.array(value))
        if value.dtype != np.float32:
            raise ValueError(f"`{name}` came as {value.dtype}, not as f32")
        arrays[name] = value
    save_file(arrays, path)


def main():
    read, packages = PEERS[sys.argv[1]]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    # What the libraries print goes to stderr; stdout is ours.
    ours, sys.stdout = sys.stdout, sys.stderr
    for job in json.loads(Path(sys.argv[2]).read_text()):
        try:
            how, found = read(Path(job["in"]))
            save(found, job["out"])
            said = {"how": how}
        except Exception as error:
            traceback.print_exc()
            said = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps({**said, "versions": versions}), file=ours, flush=True)


if __name__ == "__main__":
    main()
