"""Bad input: clear errors, nothing written, the interpreter alive."""

import ml_dtypes
import numpy as np
import pytest

import exact_fp4 as fp4
from exact_fp4 import _core

X = np.ones((4, 64), np.float32)
B = fp4.quantize(X)


@pytest.mark.parametrize(
    "x, error, text",
    [
        (X.astype(np.float64), TypeError, "x is float64; expected float32, float16 or bfloat16"),
        (X.astype(np.int32), TypeError, "x is int32"),
        (X.astype(np.complex64), TypeError, "x is complex64"),
        (X.astype(object), TypeError, "x is object"),
        (X.astype(ml_dtypes.float8_e4m3fn), TypeError, "x is float8_e4m3fn"),
        (np.array(["a"]), TypeError, "x is <U1"),
        ([[1.0] * 32], TypeError, "x is a list; expected a NumPy array, or an object with DLPack"),
        (None, TypeError, "x is a NoneType"),
        ("nvfp4", TypeError, "x is a str"),
        (np.ma.masked_array(X, X > 0), TypeError, "masked"),
        (np.float32(3).reshape(()), fp4.Fp4Error, "no dimensions"),
        (np.ones((2, 40), np.float32), fp4.Fp4Error, "40"),
    ],
)
def test_values_that_cannot_be_quantized(x, error, text):
    with pytest.raises(error, match=text):
        fp4.quantize(x)


def test_a_device_that_is_not_the_cpu():
    class Elsewhere:
        def __dlpack_device__(self):
            return 2, 1

        def __dlpack__(self, **_):
            raise AssertionError("not read")

    with pytest.raises(fp4.Fp4Error, match="device 2:1 .* copy it to the CPU"):
        fp4.quantize(Elsewhere())


def test_a_producer_that_fails():
    class Fails:
        def __dlpack_device__(self):
            return 1, 0

        def __dlpack__(self, **_):
            raise BufferError("not today")

    with pytest.raises(TypeError, match="x cannot be read through DLPack: not today"):
        fp4.quantize(Fails())


@pytest.mark.parametrize(
    "call, error, text",
    [
        (lambda: fp4.quantize(X, transform=np.eye(8, dtype="f4")), fp4.Fp4Error, "8"),
        (lambda: fp4.quantize(X, transform=np.eye(128, dtype="f4")), fp4.Fp4Error, "64"),
        (lambda: fp4.quantize(X, transform=np.ones((16, 32), "f4")), fp4.Fp4Error, "32"),
        (lambda: fp4.quantize(X, transform=np.eye(16)), TypeError, "transform is float64"),
        (lambda: fp4.quantize(X, scales=np.ones(3, np.uint8)), fp4.Fp4Error, "16"),
        (lambda: fp4.quantize(X, scales=np.ones((4, 4), np.int8)), TypeError, "scales is int8"),
        (lambda: fp4.quantize(X, backend="gpu"), fp4.Fp4Error, "no backend is named `gpu`"),
        (lambda: fp4.quantize(X, "fp8"), fp4.Fp4Error, "expected mxfp4, nvfp4 or mxint8"),
        (lambda: fp4.dequantize(B, np.float64), TypeError, "expected float32"),
        (lambda: fp4.dequantize(B, "fp8"), TypeError, "expected float32"),
        (lambda: fp4.swizzle(np.ones(4, np.uint8)), fp4.Fp4Error, "expected 2 dimensions"),
        (lambda: fp4.unswizzle(np.ones(4, np.uint8), 1, 1), fp4.Fp4Error, "512"),
        (lambda: fp4.unswizzle(np.ones(4, np.uint8), 2**62, 2**62), fp4.Fp4Error, "address"),
        (lambda: fp4.unswizzle(np.ones(4, np.uint8), -1, 1), OverflowError, "negative"),
        (lambda: fp4.hadamard(48), fp4.Fp4Error, "48"),
        (lambda: fp4.transform(X, None), TypeError, "matrix is None"),
        (lambda: fp4.set_threads(2000), fp4.Fp4Error, "give 1 to 1024"),
    ],
)
def test_arguments_that_do_not_fit(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_operands_that_do_not_fit():
    mx = fp4.quantize(X, "mxfp4")
    for a, b, text in [
        (mx, B, "e8m0"),
        (B, fp4.quantize(X, "mxint8"), "int8"),
        (fp4.quantize(np.ones((4, 32), "f4")), B, "64"),
        (B, fp4.quantize(X[0]), "expected \\(N, K\\)"),
        (fp4.Packed(B.codes[:, :16], B.scales, B.spec), B, "16 elements, expected 8"),
        (fp4.Packed(B.codes, B.scales[:2], B.spec), B, "the same dimensions"),
        (fp4.Packed(B.codes, B.scales, fp4.Spec("nvfp4", row_scales=True)), B, "row scales"),
        (fp4.Packed(B.codes, B.scales, B.spec, np.ones(3, "f4")), B, "row scales"),
        (B, fp4.Packed(B.codes, B.scales, fp4.Spec("nvfp4", row_scales=True)), "a weight has not"),
        (fp4.quantize(X, fp4.Spec(scale_type="e8m0", group_size=64)), mx, "64"),
    ]:
        with pytest.raises(fp4.Fp4Error, match=text):
            fp4.matmul(a, b)
    with pytest.raises(fp4.Fp4Error, match="bias"):
        fp4.matmul(B, B, bias=np.ones(5, np.float32))
    with pytest.raises(TypeError, match="codes is float32"):
        fp4.matmul(fp4.Packed(X, B.scales, B.spec), B)


def test_the_extension_alone_refuses_what_the_wrappers_never_pass():
    flat = np.ones(256, np.uint8)
    spec = fp4.Spec("nvfp4")
    for x, text in [
        ((flat[::2], "f32"), "not contiguous"),
        ((flat[1:], "f32"), "no values of 4 bytes"),
        ((flat[1:-3], "f32"), "no values of 4 bytes"),
        ((flat, "f64"), "unknown float type"),
        ((flat, "f32"), "64"),
    ]:
        with pytest.raises(fp4.Fp4Error, match=text):
            _core.quantize(x, 2, 64, spec, None, None, None)
    with pytest.raises(fp4.Fp4Error):
        _core.quantize((flat, "f32"), 2**60, 2**60, spec, None, None, None)
    with pytest.raises(TypeError):
        _core.quantize((X, "f32"), 4, 64, spec, None, None, None)
    with pytest.raises(TypeError):
        _core.quantize((flat.reshape(16, 16), "f32"), 4, 16, spec, None, None, None)


def test_an_error_is_a_value_error_and_names_are_not_printed_raw():
    assert issubclass(fp4.Fp4Error, ValueError)
    with pytest.raises(ValueError) as error:
        fp4.quantize(X, "a\x1b[31m")
    assert "\x1b" not in str(error.value)
    with pytest.raises(ValueError) as error:
        fp4.quantize(X, backend="a\nb")
    assert "\n" not in str(error.value)
