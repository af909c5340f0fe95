"""The layer on NumPy arrays, its state, and checkpoints of every layout."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest
from conftest import ROOT, bits

import exact_fp4 as fp4

FOREIGN = ROOT / "quant-linear" / "tests" / "vectors"


def dense(rng, out=24, k=64):
    return rng.normal(size=(out, k)).astype(np.float32)


@pytest.mark.parametrize("form", ["mxfp4", "nvfp4"])
@pytest.mark.parametrize("encoding", ["fp4", "mxint8", "fp4-rows"])
def test_a_layer_is_quantize_then_matmul(rng, form, encoding):
    if (form, encoding) == ("mxfp4", "fp4-rows"):
        with pytest.raises(fp4.Fp4Error, match="row scales"):
            fp4.Layer.from_dense(dense(rng), form, activation_encoding=encoding)
        return
    w, x, bias = dense(rng), dense(rng, 5), rng.normal(size=24).astype(np.float32)
    # By the contract's rule, which `quantize` has; by itself a layer searches.
    layer = fp4.Layer.from_dense(
        w, form, activation_encoding=encoding, bias=bias, scale_rule="nearest"
    )
    weight = layer.weight()
    np.testing.assert_array_equal(
        weight.codes, fp4.quantize(w, fp4.Spec.for_weight(form, np.abs(w).max())).codes
    )
    spec = {
        "fp4": fp4.Spec(form),
        "mxint8": fp4.Spec("mxint8"),
        "fp4-rows": fp4.Spec("nvfp4", row_scales=True),
    }[encoding]
    expected = fp4.matmul(fp4.quantize(x, spec), weight, bias=bias)
    np.testing.assert_array_equal(bits(layer(x)), bits(expected))
    for dtype in (np.float16, ml_dtypes.bfloat16):
        y = layer(x.astype(dtype))
        assert y.dtype == dtype and y.shape == (5, 24)
        assert layer(x.astype(dtype), dtype="float32").dtype == np.float32


def test_a_transform_is_applied_to_both_sides(rng):
    w, x, t = dense(rng), dense(rng, 5), fp4.hadamard(32)
    layer = fp4.Layer.from_dense(w, "mxfp4", transform=t)
    expected = fp4.matmul(fp4.quantize(x, "mxfp4", transform=t), layer.weight())
    np.testing.assert_array_equal(bits(layer(x)), bits(expected))
    np.testing.assert_array_equal(layer.transform, t)
    half = layer.with_dtype("bfloat16")
    assert half.transform.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(bits(half.transform), bits(t.astype(ml_dtypes.bfloat16)))
    np.testing.assert_array_equal(half.weight().codes, layer.weight().codes)


def test_a_state_comes_back_bit_for_bit(rng, tmp_path):
    bias = rng.normal(size=24).astype(np.float32)
    layer = fp4.Layer.from_dense(
        dense(rng), transform=fp4.hadamard(16), activation_encoding="mxint8", bias=bias
    )
    x = dense(rng, 3)
    state = layer.state_dict("a.b")
    assert state["a.b.scale_quant"].dtype == ml_dtypes.float8_e4m3fn
    assert state["a.b.weight_global_scale"].shape == ()
    again = fp4.Layer.from_state(state, "a.b", bias="apply")
    np.testing.assert_array_equal(bits(again(x)), bits(layer(x)))
    path = tmp_path / "layer.safetensors"
    layer.save(path, "a.b")
    loaded = fp4.open(path).layer("a.b", bias="apply")
    assert loaded.name == "a.b" and loaded.activation_encoding == "mxint8"
    np.testing.assert_array_equal(bits(loaded(x)), bits(layer(x)))
    with pytest.raises(fp4.Fp4Error, match="`a.b.bias` holds a bias that is not zero"):
        fp4.open(path).layer("a.b")
    without = fp4.open(path).layer("a.b", bias="ignore")
    np.testing.assert_array_equal(bits(without(x)), bits(layer.with_bias(None)(x)))


def test_scale_rules_by_name(rng):
    w = dense(rng)
    for rule, scale in [("nearest", 1 / 3), ("search", 1), ("even", 1)]:
        layer = fp4.Layer.from_dense(w, "mxfp4", scale_rule=rule)
        assert layer.weight_global_scale == np.float32(scale)
    # What is in the format stays as it is.
    values = layer.weight().dequantize()
    again = fp4.Layer.from_dense(values, "mxfp4")
    np.testing.assert_array_equal(again.weight().dequantize(), values)
    with pytest.raises(fp4.Fp4Error, match="floor is not for e4m3 scales; choose nearest, search"):
        fp4.Layer.from_dense(w, "nvfp4", scale_rule="floor")
    with pytest.raises(fp4.Fp4Error, match="unknown scale rule: expected nearest, floor"):
        fp4.Layer.from_dense(w, "nvfp4", scale_rule="best")


def test_states_that_are_none(rng):
    state = fp4.Layer.from_dense(dense(rng)).state_dict()

    def changed(**tensors):
        return {k: v for k, v in {**state, **tensors}.items() if v is not None}

    plain = state["scale_quant"].view(np.uint8)
    for bad, text in [
        (changed(e2m1=None), "tensor `e2m1` is missing"),
        (changed(weight_global_scale=None), "`weight_global_scale` is missing"),
        (changed(e2m1=state["e2m1"][:3]), "`scale_quant` has shape"),
        (changed(e2m1=state["e2m1"].astype(np.int8)), "`e2m1` is I8"),
        (changed(scale_quant=plain), "`scale_quant` is U8"),
        (changed(weight_global_scale=np.float32(-1)), "global scale"),
        (changed(weight_global_scale=np.float32([1, 2])), "`weight_global_scale` has shape"),
        (changed(activation_encoding=np.uint8(9)), "`activation_encoding` is 9"),
        (changed(transform=np.ones((8, 8), np.float32)), "`transform` has shape"),
    ]:
        with pytest.raises(fp4.Fp4Error, match=text):
            fp4.Layer.from_state(bad, layout="native")
    layer = fp4.Layer.from_state(changed(scale_quant=plain), scale_type="e4m3")
    np.testing.assert_array_equal(layer.weight().codes, state["e2m1"])
    for options, text in [
        ({"layout": "none"}, "no layout is named `none`"),
        ({"bias": "maybe"}, "expected refuse, ignore or apply"),
        ({"activations": "fp8"}, "expected fp4, mxint8 or fp4-rows"),
        ({"scale_type": "e5m2"}, "expected e8m0 or e4m3"),
    ]:
        with pytest.raises(fp4.Fp4Error, match=text):
            fp4.Layer.from_state(state, **options)


def test_what_is_absent_is_resolved_with_a_warning(rng):
    state = fp4.Layer.from_dense(dense(rng)).state_dict()
    del state["activation_global_scale"], state["activation_scale_scale"]
    with pytest.warns(fp4.Fp4Warning, match="activation_scale_scale is absent and taken as 1"):
        layer = fp4.Layer.from_state(state, layout="native")
    assert layer.activation_global_scale == layer.weight_global_scale
    assert layer.activation_scale_scale == 1.0


def test_a_backend_that_cannot_is_replaced_with_a_warning(rng):
    layer, x = fp4.Layer.from_dense(dense(rng)), dense(rng, 3)
    named = layer.with_backends("none-such", "reference")
    with pytest.warns(fp4.Fp4Warning, match="`none-such` cannot quantize here"):
        y = named(x)
    np.testing.assert_array_equal(bits(y), bits(layer(x)))
    assert "reference: chosen" in named.explain(4)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(fp4.Fp4Warning):
            layer.with_backends(None, "none-such")(x)


def test_inputs_that_do_not_fit(rng):
    layer = fp4.Layer.from_dense(dense(rng))
    for x, error, text in [
        (np.ones((2, 32), np.float32), fp4.Fp4Error, "the last dimension must be 64"),
        (np.float32(1).reshape(()), fp4.Fp4Error, "the last dimension must be 64"),
        (np.ones((2, 64)), TypeError, "x is float64"),
    ]:
        with pytest.raises(error, match=text):
            layer(x)
    assert layer(np.ones((0, 3, 64), np.float16)).shape == (0, 3, 24)
    assert layer(np.ones(64, np.float32)).shape == (24,)
    with pytest.raises(TypeError, match="from_dense"):
        fp4.Layer()
    with pytest.raises(fp4.Fp4Error, match="expected \\(out, in\\)"):
        fp4.Layer.from_dense(np.ones(64, np.float32))


@pytest.mark.filterwarnings("ignore:.*activations (saturate|vanish)")
def test_checkpoints_of_every_layout_open_and_their_layers_run(caplog):
    caplog.set_level("INFO", "exact_fp4")
    files = sorted([*FOREIGN.glob("*.safetensors"), *FOREIGN.glob("*.gguf")])
    layouts, ran = set(), 0
    for path in files:
        checkpoint = fp4.open(path)
        assert checkpoint.tensors
        try:
            about = checkpoint.layers()
        except fp4.Fp4Error as error:
            # A file that two layouts could explain says so.
            assert "could be" in str(error), (path, error)
            continue
        for module, info in about.items():
            layouts.add(info.layout)
            name = module if info.experts is None else f"{module}.0"
            layer = checkpoint.layer(name, bias="ignore")
            assert (layer.in_features, layer.out_features) == (info.in_features, info.out_features)
            y = layer(np.ones((2, info.in_features), np.float32))
            assert y.shape == (2, info.out_features) and np.array_equal(y[0], y[1], equal_nan=True)
            ran += 1
    assert len(layouts) >= 10, layouts
    assert ran > len(files) / 2
    # Other software's activations that are quantized another way here: said by `logging`.
    assert any("its activations" in record.getMessage() for record in caplog.records)


def test_a_layer_is_pickled_and_copied(rng):
    bias = rng.normal(size=24).astype(np.float32)
    layer = fp4.Layer.from_dense(dense(rng), transform=fp4.hadamard(16), bias=bias)
    x = dense(rng, 3)
    for again in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        np.testing.assert_array_equal(bits(again(x)), bits(layer(x)))
        assert again.name is None


def test_load_all_is_each_layer(rng, tmp_path):
    from exact_fp4 import _core
    from exact_fp4._arrays import given

    layers = {f"m.{i}": fp4.Layer.from_dense(dense(rng)) for i in range(3)}
    state = {}
    for name, layer in layers.items():
        state.update(layer.state_dict(name))
    path = tmp_path / "all.safetensors"
    _core.write_safetensors(path, given(state))
    loaded = fp4.open(path).load_all()
    assert list(loaded) == list(layers)
    x = dense(rng, 2)
    for name, layer in layers.items():
        np.testing.assert_array_equal(loaded[name](x), layer(x))


def test_paths_that_are_no_checkpoint(tmp_path):
    empty = tmp_path / "empty.safetensors"
    empty.write_bytes(b"")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(b"\xff" * 20)
    for path, text in [
        (tmp_path / "none", "cannot be read"),
        (tmp_path / "nothing", "cannot be read"),
        (empty, "empty.safetensors"),
        (cut, "cut.safetensors"),
    ]:
        with pytest.raises(fp4.Fp4Error, match=text):
            fp4.open(path)
    with pytest.raises(TypeError):
        fp4.open(None)


def test_quantize_checkpoint_as_the_command_does(rng, tmp_path):
    from exact_fp4 import _core
    from exact_fp4._arrays import given

    source, to = tmp_path / "dense.safetensors", tmp_path / "fp4.safetensors"
    w = dense(rng)
    tensors = {"l.0.proj.weight": w, "l.1.proj.weight": dense(rng), "norm.weight": w[0]}
    _core.write_safetensors(source, given(tensors))
    recipe = '[[rules]]\nmatch = "l.0.*"\nformat = "mxfp4"\n'
    done = fp4.quantize_checkpoint(source, to, recipe=recipe, scale_rule="nearest")
    assert done == {"l.0.proj.weight": "mxfp4"}
    layer = fp4.open(to).layer("l.0.proj")
    np.testing.assert_array_equal(layer.weight().codes, fp4.quantize(w, "mxfp4").codes)
    with pytest.raises(fp4.Fp4Error, match="exists"):
        fp4.quantize_checkpoint(source, to, "nvfp4")
    for settings, text in [
        ({}, "give a format"),
        ({"recipe": "rules = 3"}, "recipe"),
        ({"format": "nvfp4", "exclude": ["*"]}, "nothing|no "),
        ({"format": "mxfp4", "activation_encoding": "fp4-rows"}, "row scales"),
    ]:
        other = tmp_path / "other.safetensors"
        with pytest.raises(fp4.Fp4Error, match=text):
            fp4.quantize_checkpoint(source, other, **settings)
        assert not other.exists()
