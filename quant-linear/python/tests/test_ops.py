"""The functions against an oracle of their own, and what holds for any input."""

import copy
import pickle

import ml_dtypes
import numpy as np
import oracle
import pytest
from conftest import bits

import exact_fp4 as fp4

FLOATS = [np.float32, np.float16, ml_dtypes.bfloat16]


def matrix(rng, rows, k, dtype=np.float32):
    spread = np.exp(rng.normal(0, 2, (rows, 1)))
    return (rng.normal(size=(rows, k)) * spread).astype(dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("form", ["mxfp4", "nvfp4"])
def test_quantize_and_dequantize_are_the_oracles(rng, form, dtype):
    for rows, k in ((1, 32), (7, 96), (33, 256)):
        x = matrix(rng, rows, k, dtype)
        spec = fp4.Spec(form)
        packed = fp4.quantize(x, form)
        settings = (spec.scale_type, spec.group_size, spec.global_scale)
        codes, scales = oracle.quantize(x, *settings, spec.scale_scale)
        np.testing.assert_array_equal(packed.scales, scales)
        np.testing.assert_array_equal(packed.codes, codes)
        expected = oracle.values(codes, scales, *settings)
        np.testing.assert_array_equal(bits(packed.dequantize()), bits(expected))
        rounded = packed.dequantize(dtype)
        assert rounded.dtype == dtype
        np.testing.assert_array_equal(bits(rounded), bits(expected.astype(dtype)))


def test_matmul_is_the_oracles_and_alpha_is_both_global_scales(rng):
    a, b = (fp4.quantize(matrix(rng, rows, 160), "nvfp4") for rows in (9, 21))
    expected = oracle.matmul_nvfp4((a.codes, a.scales), (b.codes, b.scales), np.float32(0.1) ** 2)
    y = fp4.matmul(a, b)
    np.testing.assert_array_equal(bits(y), bits(expected))
    plain = oracle.matmul_nvfp4((a.codes, a.scales), (b.codes, b.scales), 3.0)
    bias = rng.normal(size=21).astype(np.float32)
    np.testing.assert_array_equal(fp4.matmul(a, b, alpha=3.0, bias=bias), plain + bias)


def test_a_row_does_not_know_its_batch(rng):
    b = fp4.quantize(matrix(rng, 40, 128))
    x = matrix(rng, 17, 128)
    all_rows = fp4.matmul(fp4.quantize(x), b)
    for i in range(17):
        alone = fp4.matmul(fp4.quantize(x[i : i + 1]), b)
        np.testing.assert_array_equal(bits(all_rows[i : i + 1]), bits(alone))


def test_leading_dimensions_stay(rng):
    x = matrix(rng, 24, 64).reshape(2, 3, 4, 64)
    b = fp4.quantize(matrix(rng, 5, 64))
    packed = fp4.quantize(x)
    assert packed.codes.shape == (2, 3, 4, 32) and packed.scales.shape == (2, 3, 4, 4)
    assert packed.shape == x.shape == packed.dequantize().shape
    y = fp4.matmul(packed, b)
    assert y.shape == (2, 3, 4, 5)
    one = fp4.quantize(x[1, 2, 3])
    assert one.codes.shape == (32,)
    np.testing.assert_array_equal(fp4.matmul(one, b), y[1, 2, 3])


def test_zero_sizes():
    for shape in ((0, 64), (3, 0), (0, 0), (2, 0, 32)):
        packed = fp4.quantize(np.zeros(shape, np.float32), "mxfp4")
        assert packed.dequantize().shape == shape
    b = fp4.quantize(np.ones((4, 32), np.float32), "mxfp4")
    none = fp4.quantize(np.zeros((0, 32), np.float32), "mxfp4")
    assert fp4.matmul(none, b).shape == (0, 4)
    assert fp4.matmul(b, none).shape == (4, 0)
    empty = fp4.quantize(np.zeros((2, 0), np.float32), "mxfp4")
    np.testing.assert_array_equal(fp4.matmul(empty, empty), np.zeros((2, 2), np.float32))
    assert fp4.swizzle(np.zeros((0, 7), np.uint8)).shape == (0,)


def test_a_product_too_large_for_memory_is_an_error():
    rows = np.zeros((3_000_000, 0), np.float32)
    packed = fp4.quantize(rows, "mxfp4")
    many = fp4.Packed(np.broadcast_to(np.uint8(0), (3_000_000, 0)), packed.scales, packed.spec)
    with pytest.raises(fp4.Fp4Error, match="no memory for an output of 9000000000000 values"):
        fp4.matmul(many, many)


def test_rows_without_columns_may_be_any_number():
    rows = np.zeros((2**60, 0), np.float32)
    assert fp4.quantize(rows).codes.shape == (2**60, 0)
    with pytest.raises(fp4.Fp4Error, match="no memory"):
        fp4.quantize(rows, fp4.Spec("nvfp4", row_scales=True))
    empty = np.zeros((0, 0), np.float32)
    layer = fp4.Layer.from_dense(empty, activation_encoding="fp4-rows")
    with pytest.raises(fp4.Fp4Error, match="no memory"):
        layer(rows)


def test_strides_orders_and_readonly_give_the_same_bits(rng):
    x = matrix(rng, 16, 128)
    expected = fp4.quantize(x)

    def same(a):
        got = fp4.quantize(a)
        np.testing.assert_array_equal(got.codes, expected.codes)
        np.testing.assert_array_equal(got.scales, expected.scales)

    same(np.asfortranarray(x))
    wide = np.zeros((16, 256), np.float32)
    wide[:, ::2] = x
    same(wide[:, ::2])
    same(x[::-1][::-1])
    same(x.astype(">f4"))
    buffer = np.zeros(x.nbytes + 1, np.uint8)
    buffer[1:] = x.view(np.uint8).reshape(-1)
    unaligned = buffer[1:].view(np.float32).reshape(x.shape)
    assert not unaligned.flags.aligned
    same(unaligned)
    readonly = x.copy()
    readonly.flags.writeable = False
    same(readonly)
    assert not readonly.flags.writeable
    np.testing.assert_array_equal(readonly, x)


def test_inputs_are_not_copied(rng):
    import tracemalloc

    x = matrix(rng, 512, 4096)
    tracemalloc.start()
    fp4.amax(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < x.nbytes / 10, peak


def test_dlpack_of_another_library_and_of_bfloat16(rng):
    class Producer:
        """A library whose arrays have DLPack and nothing else; `code` is the type it names."""

        def __init__(self, a, code=None):
            self.a, self.code = a, code

        def __dlpack_device__(self):
            return self.a.__dlpack_device__()

        def __dlpack__(self, **_):
            import ctypes

            capsule = self.a.__dlpack__()
            if self.code is not None:
                get = ctypes.pythonapi.PyCapsule_GetPointer
                get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
                at = get(capsule, b"dltensor")
                ctypes.c_uint8.from_address(at + 20).value = self.code
            return capsule

    x = matrix(rng, 4, 64)
    for dtype in (np.float32, np.float16):
        a = x.astype(dtype)
        np.testing.assert_array_equal(fp4.quantize(Producer(a)).codes, fp4.quantize(a).codes)
    a = x.astype(ml_dtypes.bfloat16)
    packed = fp4.quantize(Producer(a.view(np.uint16), code=4))
    np.testing.assert_array_equal(packed.codes, fp4.quantize(a).codes)


def test_hadamard_and_its_amax(rng):
    h = fp4.hadamard(64)
    np.testing.assert_allclose(h @ h.T, np.eye(64), atol=1e-6)
    x = matrix(rng, 8, 128)
    y = fp4.transform(x, h)
    np.testing.assert_allclose(y, (x.reshape(8, 2, 64) @ h.T).reshape(8, 128), rtol=1e-4, atol=1e-4)
    assert fp4.amax(x, transform=h) == np.abs(y).max()
    x[3, 5] = np.nan
    assert np.isnan(fp4.amax(x))


def test_counts():
    x = np.zeros((1, 32), np.float32)
    x[0, 0], x[0, 20] = 1e30, np.nan
    counts = fp4.quantize(x).counts
    assert counts["elements"] == 32 and counts["groups"] == 2
    assert counts["clipped"] == 1 and counts["scale_max"] == 1 and counts["nan_groups"] == 1


def test_a_spec_is_a_value():
    spec = fp4.Spec("nvfp4", global_scale=0.25, tie="up", row_scales=True)
    assert (spec.format, spec.element, spec.scale_type, spec.group_size) == (
        "nvfp4",
        "e2m1",
        "e4m3",
        16,
    )
    assert (spec.global_scale, spec.scale_scale, spec.tie) == (0.25, 6.0, "up")
    for one in (spec, fp4.Spec("mxint8"), fp4.Spec(scale_type="e8m0", group_size=128)):
        for again in (pickle.loads(pickle.dumps(one)), copy.deepcopy(one)):
            assert again == one and hash(again) == hash(one)
    assert spec != fp4.Spec("nvfp4", global_scale=0.5, tie="up", row_scales=True)
    weight = fp4.Spec.for_weight("nvfp4", 2688.0)
    assert weight.global_scale == 1.0
    assert "nvfp4" in repr(weight) and "global_scale=1.0" in repr(weight)


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"format": "fp5"}, "unknown encoding: expected mxfp4, nvfp4 or mxint8"),
        ({"format": "nvfp4", "global_scale": 0.0}, "global scale"),
        ({"format": "nvfp4", "global_scale": float("nan")}, "global scale"),
        ({"format": "nvfp4", "tie": "odd"}, "expected even, zero, down or up"),
        ({"format": "mxfp4", "row_scales": True}, "row scales"),
        ({"format": "mxint8", "global_scale": 2.0}, "mxint8 has no global scale"),
        ({"scale_type": "e8m0", "group_size": 48}, "48"),
        ({}, "give a format"),
    ],
)
def test_settings_that_are_none(settings, text):
    with pytest.raises(fp4.Fp4Error, match=text):
        fp4.Spec(**settings)
