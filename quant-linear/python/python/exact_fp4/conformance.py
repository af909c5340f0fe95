"""Answers the vectors that ``fp4-conformance vectors export`` writes.

usage: python -m exact_fp4.conformance VECTORS ANSWERS

    fp4-conformance vectors export VECTORS --profile quick
    python -m exact_fp4.conformance VECTORS ANSWERS
    fp4-conformance vectors verify VECTORS ANSWERS

Exit code: 0 if every case is answered, 2 for bad usage or files that cannot be read.
"""

from __future__ import annotations

import functools
import json
import pathlib
import sys
from typing import Any, Callable, Mapping, Optional

import numpy as np

from . import Checkpoint, Fp4Error, Packed, Spec, _core, matmul, open, quantize
from ._arrays import FLOATS_BY_NAME, Array, given

SCHEMA = "fp4-conformance-vectors/1"


def _f32(bits: int) -> float:
    return float(np.uint32(bits).view(np.float32))


def _quantize(request: Mapping[str, Any], tensor: Callable[[str], Any]) -> dict[str, Array]:
    if request.get("element") == "int8":
        spec = Spec("mxint8")
    else:
        spec = Spec(
            scale_type=request["scale_type"],
            group_size=request["group"],
            global_scale=_f32(request["global_scale_bits"]),
            scale_scale=_f32(request["scale_scale_bits"]),
            tie=request["tie"],
        )
    transform, scales = tensor("transform"), tensor("given_scales")
    packed = quantize(tensor("x"), spec, transform=transform, scales=scales)
    return {"codes": packed.codes, "scales": packed.scales}


def _matmul(request: Mapping[str, Any], tensor: Callable[[str], Any]) -> dict[str, Array]:
    b = Spec(request["format"])
    a = Spec(request.get("activations", request["format"]))
    y = matmul(
        Packed(tensor("a_codes"), tensor("a_scales"), a),
        Packed(tensor("b_codes"), tensor("b_scales"), b),
        alpha=_f32(request["alpha_bits"]),
        dtype=FLOATS_BY_NAME[request["output"]],
    )
    return {"y": y}


def _tensor(file: Checkpoint, number: str, name: str) -> Optional[Array]:
    """The tensor of a case, or ``None`` if it has none of this name."""
    full = f"{number}.{name}"
    return file.tensor(full) if file.has(full) else None


def answer(vectors: pathlib.Path, answers: pathlib.Path) -> tuple[int, int]:
    """Answers every file of a folder; the numbers of files and cases.

    Raises:
        Fp4Error: a file that is none of the schema, or none at all.
    """
    manifests = sorted(vectors.glob("*.json"))
    if not manifests:
        raise Fp4Error(f"{vectors} holds no manifest; export vectors to it")
    answers.mkdir(parents=True, exist_ok=True)
    cases = 0
    for path in manifests:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest.get("schema") != SCHEMA:
            raise Fp4Error(f"{path} is no manifest of {SCHEMA}")
        file, out = open(path.with_suffix(".safetensors")), {}
        for number, case in manifest["cases"].items():
            request = case["request"]

            tensor = functools.partial(_tensor, file, number)
            do = {"quantize": _quantize, "matmul": _matmul}[request["operation"]]
            found = do(request, tensor)
            out.update({f"{number}.{name}": value for name, value in found.items()})
            cases += 1
        _core.write_safetensors(answers / f"{path.stem}.safetensors", given(out))
    return len(manifests), cases


def main() -> int:
    """The command."""
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        files, cases = answer(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
    except (Fp4Error, OSError, ValueError, KeyError) as error:
        print(f"exact_fp4.conformance: {error}", file=sys.stderr)
        return 2
    print(f"answered: {files} files, {cases} cases")
    return 0


if __name__ == "__main__":
    sys.exit(main())
