"""`exact_fp4.torch`: the module's semantics, its state, and conversion of models."""

import copy
import io
import threading
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import exact_fp4 as fp4  # noqa: E402
from exact_fp4.torch import QuantLinear, convert  # noqa: E402
from exact_fp4.torch import _op as ft  # noqa: E402

FLOATS = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture
def linear():
    torch.manual_seed(3)
    return torch.nn.Linear(64, 24)


@pytest.fixture
def module(linear):
    return QuantLinear.from_linear(linear, "nvfp4")


@pytest.fixture
def x():
    torch.manual_seed(4)
    return torch.randn(5, 64)


def same(a, b):
    assert a.dtype == b.dtype and a.shape == b.shape
    wide = {2: torch.int16, 4: torch.int32}[a.element_size()]
    assert torch.equal(a.view(wide), b.view(wide))


def snapshot(module):
    return {
        n: (b.dtype, tuple(b.shape), b.reshape(-1).view(torch.uint8).tolist())
        for n, b in module.named_buffers()
    }


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("form", ["mxfp4", "nvfp4"])
def test_a_module_is_the_layer_on_numpy(linear, x, form, dtype):
    module = QuantLinear.from_linear(linear, form)
    weight, bias = (p.detach().numpy() for p in (linear.weight, linear.bias))
    layer = fp4.Layer.from_dense(weight, form, bias=bias)
    x = x.to(dtype)
    y = module(x)
    assert y.dtype == dtype and y.shape == (5, 24)
    same(y, torch.from_numpy(layer(x.float().numpy(), dtype="float32")).to(dtype))
    error = (y.float() - linear(x.float())).norm() / linear(x.float()).norm()
    assert error < 0.3


def test_the_constructor_takes_what_linear_takes():
    for arguments in ((64, 24), (64, 24, False), (64, 24, True, "cpu", torch.bfloat16)):
        module = QuantLinear(*arguments)
        assert (module.in_features, module.out_features) == (64, 24)
        assert module.group_size == 32 and module.e2m1 is None
        for name in ("weight_global_scale", "activation_global_scale", "activation_scale_scale"):
            scalar = getattr(module, name)
            assert scalar.dim() == 0 and scalar.dtype == torch.float32 and scalar == 1
        with pytest.raises(fp4.Fp4Error, match="was built empty \\(24 x 64\\)"):
            module(torch.ones(2, 64))
    assert not list(QuantLinear(64, 24).parameters())


@pytest.mark.parametrize("form", ["mxfp4", "nvfp4"])
@pytest.mark.parametrize("encoding", ["fp4", "mxint8"])
@pytest.mark.parametrize("block", [None, 16])
def test_a_state_goes_into_an_empty_skeleton(linear, x, form, encoding, block):
    transform = None if block is None else torch.from_numpy(fp4.hadamard(block))
    made = QuantLinear.from_linear(linear, form, transform=transform, activation_encoding=encoding)
    state = made.state_dict()
    assert state["weight_global_scale"].dim() == 0
    # Of another shape and format than the state.
    empty = QuantLinear(32, 8)
    empty.load_state_dict(state)
    assert snapshot(empty) == snapshot(made)
    assert (empty.in_features, empty.out_features) == (64, 24)
    assert empty.group_size == (16 if form == "nvfp4" else 32)
    same(empty(x), made(x))
    # It holds tensors of its own.
    state["e2m1"].zero_()
    assert empty.e2m1.any()
    # And back into a module that had a transform and MXINT8.
    other = QuantLinear.from_linear(
        linear, "mxfp4", transform=torch.from_numpy(fp4.hadamard(32)), activation_encoding="mxint8"
    )
    other.load_state_dict(empty.state_dict())
    assert snapshot(other) == snapshot(empty)


def test_states_pass_through_files_of_torch_and_of_ours(module, x, tmp_path):
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    empty = QuantLinear(64, 24)
    empty.load_state_dict(torch.load(buffer, weights_only=True))
    same(empty(x), module(x))
    path = tmp_path / "layer.safetensors"
    module.layer().save(path, "m")
    loaded = QuantLinear.from_layer(fp4.open(path).layer("m", bias="apply"))
    assert snapshot(loaded) == snapshot(module)
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(module.state_dict(), path)
    same(torch.from_numpy(fp4.open(path).layer("", bias="apply")(x.numpy())), module(x))


def test_bias_true_applies_and_false_refuses(linear, module, x):
    state = module.state_dict()
    applies = QuantLinear(64, 24, bias=True)
    applies.load_state_dict(state)
    same(applies(x), module(x))
    refuses = QuantLinear(64, 24, bias=False)
    with pytest.raises(RuntimeError, match="bias` holds a bias that is not zero.*bias=True"):
        refuses.load_state_dict(state)
    assert refuses.e2m1 is None
    state["bias"].zero_()
    refuses.load_state_dict(state)
    assert refuses.bias is None
    del state["bias"]
    applies = QuantLinear(64, 24, bias=True)
    applies.load_state_dict(state)
    same(applies(x), refuses(x))


@pytest.mark.parametrize(
    "change, text",
    [
        (lambda s: s.pop("e2m1"), "Missing key.*e2m1"),
        (lambda s: s.pop("weight_global_scale"), "Missing key.*weight_global_scale"),
        (lambda s: s.update(weight=torch.ones(2)), "Unexpected key.*weight"),
        (lambda s: s.update(e2m1=s["e2m1"][:3]), "scale_quant` has shape"),
        (lambda s: s.update(e2m1=s["e2m1"].float()), "e2m1` is F32"),
        (lambda s: s.update(scale_quant=s["scale_quant"].view(torch.uint8)), "is U8"),
        (lambda s: s.update(weight_global_scale=torch.tensor(-1.0)), "global scale"),
        (lambda s: s.update(transform=torch.ones(8, 8)), "transform` has shape"),
        (lambda s: s.update(transform=torch.ones(16, 16, dtype=torch.int32)), "transform` is I32"),
        (lambda s: s.update(bias=torch.ones(5)), "bias` has shape"),
        (lambda s: s.update(activation_encoding=torch.tensor(7, dtype=torch.uint8)), "is 7"),
        (lambda s: s.update(bias=torch.ones(24, dtype=torch.complex64)), "complex64"),
    ],
)
def test_a_state_that_is_none_leaves_the_module_as_it_was(module, x, change, text):
    net = torch.nn.Sequential(module)
    before, y = snapshot(module), module(x)
    state = dict(copy.deepcopy(module.state_dict()))
    change(state)
    with pytest.raises(RuntimeError, match=text):
        net.load_state_dict({f"0.{name}": tensor for name, tensor in state.items()})
    assert snapshot(module) == before
    same(module(x), y)


def test_scalars_are_widened_and_what_is_absent_is_resolved(module, x):
    state = module.state_dict()
    state["weight_global_scale"] = torch.tensor([0.25], dtype=torch.float16)
    del state["activation_global_scale"], state["activation_scale_scale"]
    empty = QuantLinear(64, 24)
    with pytest.warns(fp4.Fp4Warning, match="taken as 1"):
        empty.load_state_dict(state)
    for name, value in (
        ("weight_global_scale", 0.25),
        ("activation_global_scale", 0.25),
        ("activation_scale_scale", 1.0),
    ):
        scalar = getattr(empty, name)
        assert (scalar.dtype, scalar.dim(), scalar.item()) == (torch.float32, 0, value)
    assert set(empty.state_dict()) == set(module.state_dict())


def test_to_a_type_changes_the_transform_alone_and_once(linear, x):
    torch.manual_seed(5)
    t = torch.randn(4, 16, 16)
    made = QuantLinear.from_linear(linear, transform=t)
    before = snapshot(made)
    for dtype, convert_to in (
        (torch.bfloat16, lambda m: m.to(torch.bfloat16)),
        (torch.float16, lambda m: m.half()),
        (torch.bfloat16, lambda m: m.bfloat16()),
        (torch.float16, lambda m: m.type(torch.float16)),
    ):
        module = convert_to(copy.deepcopy(made))
        after = snapshot(module)
        same(module.transform, t.to(dtype))
        assert {n: b for n, b in after.items() if n != "transform"} == {
            n: b for n, b in before.items() if n != "transform"
        }
        layer = made.layer().with_dtype({torch.float16: "f16", torch.bfloat16: "bf16"}[dtype])
        same(module(x), torch.from_numpy(layer(x.numpy())))
    with pytest.raises(TypeError, match="a transform cannot be torch.float64"):
        made.double()
    assert snapshot(made) == before


def test_meta_has_shapes_and_no_bytes(module, x):
    state = module.state_dict()
    meta = copy.deepcopy(module).to("meta")
    assert meta(x.to("meta")).shape == (5, 24)
    with pytest.raises(fp4.Fp4Error, match="meta"):
        meta(x)
    with pytest.raises(fp4.Fp4Error, match="meta"):
        meta.layer()
    meta.load_state_dict(state, assign=True)
    same(meta(x), module(x))
    assert meta.e2m1.data_ptr() == state["e2m1"].data_ptr()
    skeleton = QuantLinear(64, 24, device="meta")
    skeleton.load_state_dict(state)
    same(skeleton(x), module(x))


def test_a_device_that_there_is_not_leaves_the_module_as_it_was(module, x):
    if torch.cuda.is_available():
        moved = copy.deepcopy(module).to("cuda")
        with pytest.raises(fp4.Fp4Error, match="is on cuda:0.*to\\('cpu'\\)"):
            moved(x)
        assert snapshot(moved.to("cpu")) == snapshot(module)
        return
    before = snapshot(module)
    with pytest.raises((RuntimeError, AssertionError)):
        module.to("cuda")
    assert snapshot(module) == before and module.device.type == "cpu"


def test_flushed_subnormals_of_the_caller_change_no_bit(module, x):
    y = module(x)
    if not torch.set_flush_denormal(True):
        pytest.fail("this CPU cannot flush subnormals")
    try:
        same(module(x), y)
        # Threads begin as the one that makes them.
        with pytest.raises(fp4.Fp4Error, match="subnormal|flush"):
            fp4.set_threads(2)
    finally:
        torch.set_flush_denormal(False)
    fp4.set_threads(0)
    same(module(x), y)


def test_leading_dimensions_and_no_rows(module, x):
    y = module(x)
    same(module(x[2]), y[2])
    same(module(x.reshape(1, 5, 1, 64)), y.reshape(1, 5, 1, 24))
    assert module(torch.ones(0, 3, 64)).shape == (0, 3, 24)
    wide = torch.zeros(5, 128)
    wide[:, ::2] = x
    same(module(wide[:, ::2]), y)
    same(module(x.t().contiguous().t()), y)


@pytest.mark.parametrize(
    "bad, error, text",
    [
        (torch.ones(2, 32), fp4.Fp4Error, "the last dimension must be 64"),
        (torch.tensor(1.0), fp4.Fp4Error, "the last dimension must be 64"),
        (torch.ones(2, 64, dtype=torch.float64), TypeError, "the input is torch.float64"),
        (torch.ones(2, 64, dtype=torch.int32), TypeError, "the input is torch.int32"),
    ],
)
def test_inputs_that_do_not_fit(module, bad, error, text):
    with pytest.raises(error, match=text):
        module(bad)


def test_a_written_or_replaced_buffer_is_seen(linear, module, x):
    y = module(x)
    with torch.no_grad():
        module.weight_global_scale.mul_(2)
    same(module(x), torch.from_numpy(module.layer()(x.numpy())))
    assert not torch.equal(module(x), y)
    with torch.no_grad():
        module.weight_global_scale.div_(2)
    same(module(x), y)
    with torch.no_grad():
        module.e2m1[3] = 0
    assert torch.equal(module(x)[:, 3], module.bias[3].expand(5))
    module.e2m1 = QuantLinear.from_linear(linear).e2m1
    same(module(x), y)
    module.bias = None
    same(module(x), torch.from_numpy(module.layer()(x.numpy())))
    assert module.layer().bias is None


def test_the_layer_is_made_once_and_goes_with_the_module(module, x, monkeypatch):
    made = []
    from_state = ft._core.Layer.from_state

    class Counted:
        @staticmethod
        def from_state(*arguments):
            made.append(1)
            return from_state(*arguments)

    monkeypatch.setattr(ft._core, "Layer", Counted)
    kept = len(ft._BUILT)
    for _ in range(3):
        module(x)
    assert len(made) == 1
    clone = copy.deepcopy(module)
    clone(x)
    assert len(made) == 2 and len(ft._BUILT) == kept + 2
    del clone
    assert len(ft._BUILT) == kept + 1
    threads = [threading.Thread(target=module, args=(x,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 2


def test_a_backend_that_cannot_is_replaced_with_a_warning(linear, module, x):
    state = module.state_dict()
    named = QuantLinear(64, 24, quant_backend="none-such", matmul_backend="reference")
    named.load_state_dict(state)
    with pytest.warns(fp4.Fp4Warning, match="`none-such` cannot quantize here"):
        y = named(x)
    same(y, module(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        named(x)
    assert "reference: chosen" in named.explain()


def test_compiled_it_is_one_graph_with_the_same_bits(module, x, monkeypatch):
    made = []
    check = ft.given
    monkeypatch.setattr(ft, "given", lambda t, n: made.append(n) or check(t, n))
    net = torch.nn.Sequential(module, torch.nn.ReLU())
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        expected = net(x)
        same(compiled(x), expected)
        made.clear()
        same(compiled(x), expected)
        same(compiled(x[:3]), expected[:3])
        assert not made  # the kept layer was found again
        module.weight_global_scale.mul_(2)
        same(compiled(x), net(x))
    torch.library.opcheck(
        torch.ops.exact_fp4.linear.default,
        (x, *(getattr(module, n) for n in ft.STATE), None, None),
        test_utils=("test_faketensor",),
    )


def test_exported_it_keeps_its_op(module, x):
    program = torch.export.export(torch.nn.Sequential(module), (x,))
    assert "exact_fp4.linear" in str(program.graph)
    same(program.module()(x), module(x))


def test_inference_mode_and_gradients(module, x):
    with torch.inference_mode():
        y = module(x)
    same(y.clone(), module(x))
    out = module(x.clone().requires_grad_())
    with pytest.raises((RuntimeError, NotImplementedError)):
        out.sum().backward()


def test_parts_given_to_the_constructor(module, x):
    parts = {n: getattr(module, n) for n in ft.STATE if getattr(module, n) is not None}
    same(QuantLinear(64, 24, **parts)(x), module(x))
    raw = {**parts, "scale_quant": parts["scale_quant"].view(torch.uint8)}
    for scale in ("e4m3", torch.float8_e4m3fn):
        again = QuantLinear(64, 24, scale_dtype=scale, **raw)
        assert again.scale_quant.dtype == torch.float8_e4m3fn
        same(again(x), module(x))
    for change, error, text in [
        ({**raw}, fp4.Fp4Error, "is U8"),
        ({**parts, "group_size": 32}, fp4.Fp4Error, "group_size 32, and the tensors have 16"),
        ({**parts, "scale_dtype": "e8m0"}, fp4.Fp4Error, "scale_dtype e8m0, and the tensors"),
        ({"scale_quant": parts["scale_quant"]}, fp4.Fp4Error, "without e2m1"),
        ({**parts, "scale_quant": None}, fp4.Fp4Error, "`scale_quant` is missing"),
        ({**parts, "e2m1": parts["e2m1"].tolist()}, fp4.Fp4Error, "`e2m1` is F32"),
        ({"scale_dtype": "e5m2"}, TypeError, "expected 'e8m0', 'e4m3'"),
        ({"dtype": torch.float64}, TypeError, "dtype torch.float64"),
        ({"group_size": 48}, fp4.Fp4Error, "48"),
    ]:
        with pytest.raises(error, match=text):
            QuantLinear(64, 24, **change)
    with pytest.raises(fp4.Fp4Error, match="in_features 32, and the tensors have 64"):
        QuantLinear(32, 24, **parts)
    with pytest.raises(fp4.Fp4Error, match="40"):
        QuantLinear(40, 24)


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj, self.k_proj = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64, bias=False)
        self.attention = torch.nn.MultiheadAttention(64, 2)
        self.odd = torch.nn.Linear(20, 4)
        self.lm_head = torch.nn.Linear(64, 32)

    def forward(self, x):
        return self.lm_head(self.q_proj(x) + self.k_proj(x))


def test_convert_takes_linear_layers_by_role(x):
    torch.manual_seed(6)
    model = Block().eval()
    y = model(x)
    weight = model.q_proj.weight.detach().numpy()
    formats = convert(model, "nvfp4")
    assert formats == {"q_proj": "nvfp4", "k_proj": "nvfp4"}
    for name in ("odd", "lm_head"):
        assert type(getattr(model, name)) is torch.nn.Linear
    assert type(model.attention.out_proj) is not QuantLinear
    assert model.q_proj.bias is not None and model.k_proj.bias is None
    assert not model.q_proj.training
    codes = fp4.Layer.from_dense(weight).weight().codes
    np.testing.assert_array_equal(model.q_proj.e2m1.numpy(), codes)
    assert (model(x) - y).norm() / y.norm() < 0.3
    # Its state goes into a model converted from other weights.
    other = Block().eval()
    convert(other, "mxfp4")
    other.load_state_dict(model.state_dict())
    same(other(x), model(x))


def test_convert_follows_a_recipe_and_ties(tmp_path):
    recipe = {
        "tie": ["qkv"],
        "rules": [
            {"match": "k_proj*", "format": "nvfp4"},
            {"match": "q_proj*", "format": "nvfp4", "transform": "none"},
            {"names": ["lm_head.weight"], "format": "mxfp4", "activations": "mxint8"},
        ],
    }
    model = Block()
    assert convert(model, recipe) == {"q_proj": "nvfp4", "k_proj": "nvfp4", "lm_head": "mxfp4"}
    assert model.q_proj.weight_global_scale == model.k_proj.weight_global_scale
    assert model.lm_head.activation_encoding == 1
    text = '[[rules]]\nmatch = "q_*"\nformat = "mxfp4"\n'
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    for given in (text, path, str(path)):
        assert convert(Block(), given) == {"q_proj": "mxfp4"}


def test_a_conversion_that_fails_changes_nothing():
    for recipe, error, text in [
        ("no-such-file.toml", fp4.Fp4Error, "cannot be read"),
        ({"rules": [{"match": "*"}]}, fp4.Fp4Error, "rule 1 of the recipe has no format"),
        ({"rules": [{"names": ["odd.weight"], "format": "nvfp4"}]}, fp4.Fp4Error, "odd.weight"),
        ({"rule": []}, fp4.Fp4Error, "recipe"),
        (7, TypeError, "recipe is a int"),
    ]:
        model = Block()
        with pytest.raises(error, match=text):
            convert(model, recipe)
        assert all(type(m) is not QuantLinear for m in model.modules())
    with pytest.raises(fp4.Fp4Error, match="from_linear"):
        convert(torch.nn.Linear(64, 64))
    with pytest.raises(fp4.Fp4Error):
        convert(torch.nn.ReLU())


def test_dlpack_of_torch_is_read_by_the_functions(x):
    for dtype in FLOATS:
        t = x.to(dtype)
        expected = fp4.quantize(x.to(dtype).float().numpy())
        np.testing.assert_array_equal(fp4.quantize(t).codes, expected.codes)
    with pytest.raises(TypeError, match="x cannot be read through DLPack: .*detach"):
        fp4.quantize(x.clone().requires_grad_())
    with pytest.raises(TypeError, match="x cannot be read through DLPack: .*meta"):
        fp4.quantize(x.to("meta"))
