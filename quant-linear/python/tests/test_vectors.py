"""The golden vectors of conformance/vectors, through the Python interface, bit for bit."""

import json

import ml_dtypes
import numpy as np
import pytest
from conftest import ROOT, bits

import exact_fp4 as fp4

VECTORS = ROOT / "conformance" / "vectors"
TYPES = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}


class File:
    def __init__(self, name):
        self.manifest = json.loads((VECTORS / f"{name}.json").read_text())
        self.file = fp4.open(VECTORS / f"{name}.safetensors")
        self.names = self.file.tensors

    def get(self, case, column):
        name = f"{case}.{column}"
        return self.file.tensor(name) if name in self.names else None

    def cases(self, column):
        return sorted(n[: -len(column) - 1] for n in self.names if n.endswith(f".{column}"))


def same_scales(got, expected, kind):
    """Either NaN of e4m3 is a NaN."""
    if kind == "e4m3":
        got, expected = (np.where(a & 127 == 127, 127, a) for a in (got, expected))
    np.testing.assert_array_equal(got, expected)


def names(letter):
    found = sorted(path.stem for path in VECTORS.glob(f"{letter}_*.safetensors"))
    assert found
    return found


@pytest.mark.parametrize("name", names("b"))
def test_quantize_in_four_tie_modes_and_dequantize(name):
    file = File(name)
    config = file.manifest["config"]
    kind = config["scale_dtype"]
    for case in file.manifest["families"]:
        x, scales = file.get(case, "x"), file.get(case, "scales")
        settings = {
            "scale_type": kind,
            "group_size": config["G"],
            "global_scale": file.get(case, "gs")[0],
            "scale_scale": config["ss"],
        }
        for tie in ("even", "zero", "down", "up"):
            spec = fp4.Spec(tie=tie, **settings)
            for given in (None, scales):
                packed = fp4.quantize(x, spec, scales=given)
                same_scales(packed.scales, scales, kind)
                np.testing.assert_array_equal(packed.codes, file.get(case, f"codes_{tie}"))
        packed = fp4.Packed(file.get(case, "codes_even"), scales, fp4.Spec(**settings))
        np.testing.assert_array_equal(bits(packed.dequantize()), bits(file.get(case, "dq")))


@pytest.mark.parametrize("name", names("c"))
def test_transform_then_quantize(name):
    file = File(name)
    for case, about in file.manifest["cases"].items():
        form, scale_scale = about["config"].split("_")[0], float(about["config"].split("_ss")[1])
        gs = file.get(case, "gs")[0]
        spec = fp4.Spec(form, global_scale=gs, scale_scale=scale_scale)
        x, t = file.get(case, "x"), file.get(case, "T")
        y = fp4.transform(x, t)
        assert y.dtype == x.dtype
        np.testing.assert_array_equal(bits(y.astype(np.float32)), bits(file.get(case, "y_f32")))
        packed = fp4.quantize(x, spec, transform=t)
        np.testing.assert_array_equal(packed.codes, file.get(case, "codes_even"))
        same_scales(packed.scales, file.get(case, "scales"), spec.scale_type)


@pytest.mark.parametrize("name", names("d"))
def test_swizzle_both_ways(name):
    file = File(name)
    for case in file.cases("in"):
        scales, expected = file.get(case, "in"), file.get(case, "out")
        np.testing.assert_array_equal(fp4.swizzle(scales), expected)
        dirty = expected.copy()
        dirty[fp4.swizzle(np.ones_like(scales)) == 0] = 0xEE
        np.testing.assert_array_equal(fp4.unswizzle(dirty, *scales.shape), scales)


@pytest.mark.parametrize("name", names("e") + names("j") + [n for n in names("i") if "mat" in n])
def test_matmul_in_three_output_types_on_every_backend(name):
    file = File(name)
    form = "mxfp4" if "mxfp4" in name else "nvfp4"
    compared = 0
    for case in file.cases("alpha"):
        int8 = file.get(case, "a_codes")
        a_codes = file.get(case, "a") if int8 is None else int8
        rows = file.get(case, "row_scales")
        a_spec = fp4.Spec(form if int8 is None else "mxint8")
        a = fp4.Packed(a_codes, file.get(case, "a_scales"), a_spec, rows)
        b = fp4.Packed(file.get(case, "b"), file.get(case, "b_scales"), fp4.Spec(form))
        for i, alpha in enumerate(file.get(case, "alpha")):
            for kind, column in (("f32", "y32"), ("f16", "y_f16"), ("bf16", "y_bf16")):
                for backend in (None, "reference") if i == 0 else (None,):
                    y = fp4.matmul(
                        a, b, alpha=alpha, bias=file.get(case, "bias"), dtype=kind, backend=backend
                    )
                    assert y.dtype == TYPES[kind]
                    expected = file.get(case, f"{column}_bits")[i]
                    np.testing.assert_array_equal(bits(y), bits(expected.view(y.dtype)))
                    compared += y.size
    assert compared > 100


def test_mxint8_quantize_and_dequantize():
    file = File("i_mxint8_quantize")
    for case in file.cases("x_bits"):
        x = file.get(case, "x_bits").view(TYPES[case.split("_")[0]])
        packed = fp4.quantize(x, "mxint8")
        np.testing.assert_array_equal(packed.codes, file.get(case, "codes"))
        np.testing.assert_array_equal(packed.scales, file.get(case, "scales"))
        dq = file.get(case, "dq_bits").view(np.float32)
        np.testing.assert_array_equal(bits(packed.dequantize()), bits(dq))


def test_row_scales():
    file = File("k_rows_nvfp4")
    spec = fp4.Spec("nvfp4", row_scales=True)
    for case in file.cases("x_bits"):
        x = file.get(case, "x_bits").view(TYPES[case.split("_")[0]])
        packed = fp4.quantize(x, spec)
        np.testing.assert_array_equal(packed.row_scales, file.get(case, "row_scales"))
        np.testing.assert_array_equal(packed.codes, file.get(case, "codes"))
        same_scales(packed.scales, file.get(case, "scales"), "e4m3")


def test_safetensors_own_reader_sees_the_same_bytes():
    safetensors = pytest.importorskip("safetensors.numpy")
    theirs = safetensors.load_file(VECTORS / "d_swizzle.safetensors")
    ours = fp4.open(VECTORS / "d_swizzle.safetensors")
    assert set(theirs) == set(ours.tensors)
    for name, expected in theirs.items():
        np.testing.assert_array_equal(ours.tensor(name), expected)
