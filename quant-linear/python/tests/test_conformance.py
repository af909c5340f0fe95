"""The answerer of exported vectors: what it writes, what it refuses."""

import json
import subprocess
import sys

import numpy as np
import pytest

import exact_fp4 as fp4
from exact_fp4 import _core, conformance
from exact_fp4._arrays import given


def export(folder, rng):
    """An export of two cases, as `fp4-conformance vectors export` writes one."""
    x = rng.normal(size=(3, 64)).astype(np.float32)
    b = fp4.quantize(rng.normal(size=(5, 64)).astype(np.float32))
    a = fp4.quantize(x)
    tensors = {
        "0.x": x,
        "1.a_codes": a.codes,
        "1.a_scales": a.scales,
        "1.b_codes": b.codes,
        "1.b_scales": b.scales,
    }
    bits = lambda value: int(np.float32(value).view(np.uint32))  # noqa: E731
    quantize = {
        "operation": "quantize",
        "scale_type": "e4m3",
        "group": 16,
        "global_scale_bits": bits(0.1),
        "scale_scale_bits": bits(6.0),
        "tie": "even",
    }
    matmul = {
        "operation": "matmul",
        "format": "nvfp4",
        "shape": [3, 5, 64],
        "alpha_bits": bits(0.5),
        "output": "f16",
    }
    cases = {"0": {"request": quantize}, "1": {"request": matmul}}
    manifest = {"schema": conformance.SCHEMA, "name": "all", "cases": cases}
    folder.mkdir()
    (folder / "all.json").write_text(json.dumps(manifest))
    _core.write_safetensors(folder / "all.safetensors", given(tensors))
    return a, b


def test_both_operations_are_answered(rng, tmp_path):
    a, b = export(tmp_path / "in", rng)
    assert conformance.answer(tmp_path / "in", tmp_path / "out") == (1, 2)
    got = fp4.open(tmp_path / "out" / "all.safetensors")
    assert set(got.tensors) == {"0.codes", "0.scales", "1.y"}
    np.testing.assert_array_equal(got.tensor("0.codes"), a.codes)
    np.testing.assert_array_equal(got.tensor("0.scales"), a.scales)
    y = fp4.matmul(a, b, alpha=0.5, dtype="float16")
    np.testing.assert_array_equal(got.tensor("1.y"), y)


def test_the_command_says_what_is_wrong_and_fails(tmp_path):
    for arguments in ([], [str(tmp_path), str(tmp_path / "out")]):
        run = subprocess.run(
            [sys.executable, "-m", "exact_fp4.conformance", *arguments],
            capture_output=True,
            text=True,
        )
        assert run.returncode == 2 and run.stderr
    assert "holds no manifest" in run.stderr
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(fp4.Fp4Error, match="is no manifest"):
        conformance.answer(tmp_path, tmp_path / "out")
