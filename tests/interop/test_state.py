"""State dicts to variables and back, in NumPy alone."""

import jax
import numpy as np
import pytest

from bdjax import tree
from bdjax.errors import UserError
from bdjax.interop import from_state, recognise, to_state
from bdjax.interop.layout import layout
from bdjax.models import MODELS
from tests.interop.checkpoints import random_state, reduced, same_bits, spec


@pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param(name, size, marks=pytest.mark.slow if size == 64 and name.startswith(("eff", "mob")) else ())
        for name in sorted(MODELS)
        for size in (32, 64)
    ],
)
def test_round_trips(name, size):
    """torch -> bdjax -> torch keeps every bit; bdjax -> torch -> bdjax does where nothing is folded."""
    model = reduced(name, 43, size)
    state = random_state(model)
    imported = from_state(model, state)
    form = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.tree.structure(imported.variables) == jax.tree.structure(form)
    shapes = jax.tree.map(lambda ours, theirs: (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype), imported.variables, form)
    assert all(jax.tree.leaves(shapes))
    assert same_bits(to_state(model, imported.variables, imported.kept), state)

    generator = np.random.default_rng(1)
    variables = jax.tree.map(lambda leaf: generator.standard_normal(leaf.shape, np.float32), form)
    again = from_state(model, to_state(model, variables)).variables
    for path, leaf in tree.flatten(variables).items():
        if model.name == "vgg19_bn" and path == "params/classifier_0/kernel":
            np.testing.assert_allclose(tree.get(again, path), leaf, atol=1e-6)
        else:
            np.testing.assert_array_equal(tree.get(again, path), leaf)


@pytest.mark.slow
def test_round_trip_at_full_width():
    model = MODELS["mobilenet_v3_large"](spec(43))
    state = random_state(model)
    imported = from_state(model, state)
    assert same_bits(to_state(model, imported.variables, imported.kept), state)


def test_layouts_by_hand():
    """conv [out, in, kh, kw] -> [kh, kw, in, out], linear [out, in] -> [in, out], norms by name."""
    model = reduced("cnn", 5)
    state = random_state(model)
    params, statistics = (from_state(model, state).variables[part] for part in ("params", "batch_stats"))
    assert params["conv2"]["kernel"][0, 2, 1, 3] == state["conv2.weight"][3, 1, 0, 2]
    assert params["linear"]["kernel"][2, 4] == state["linear.weight"][4, 2]
    np.testing.assert_array_equal(params["bn1"]["scale"], state["bn1.weight"])
    np.testing.assert_array_equal(statistics["bn1"]["mean"], state["bn1.running_mean"])
    np.testing.assert_array_equal(statistics["bn1"]["var"], state["bn1.running_var"])
    assert all(leaf.flags["C_CONTIGUOUS"] and leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))


def test_counts_of_batches_may_be_absent_and_become_0():
    model = reduced("cnn")
    state = {name: value for name, value in random_state(model).items() if not name.endswith("tracked")}
    imported = from_state(model, state)
    assert imported.kept == {}
    back = to_state(model, imported.variables)
    assert list(back) == [tensor.name for tensor in layout(model)]
    count = back["bn1.num_batches_tracked"]
    assert count == 0 and count.dtype == np.int64 and count.shape == ()


def test_the_order_of_names_and_a_prefix_do_not_matter():
    model = reduced("preactresnet18")
    state = random_state(model)
    shuffled = {f"module.{name}": state[name] for name in sorted(state, reverse=True)}
    imported = from_state(model, shuffled)
    assert same_bits(to_state(model, imported.variables, imported.kept), state)


def test_masks_of_norms_are_multiplied_in_and_noise_is_dropped():
    model = reduced("preactresnet18")
    state = random_state(model)
    masked, mask = dict(state), np.float32([0, 1, 0.5, 1])
    masked["layer1.0.bn1.neuron_mask"] = mask
    for suffix in ("neuron_noise", "neuron_noise_bias"):
        masked[f"layer1.0.bn1.{suffix}"] = np.full(4, np.nan, np.float32)
    got = from_state(model, masked).variables["params"]["layer1_0"]["bn1"]["scale"]
    np.testing.assert_array_equal(got, state["layer1.0.bn1.weight"] * mask)
    masked["layer1.0.bn1.neuron_mask"] = mask[:3]
    with pytest.raises(UserError, match=r"layer1\.0\.bn1\.neuron_mask \[3\] belongs to layer1\.0\.bn1\.weight, which is \[4\]"):
        from_state(model, masked)


def test_half_precision_is_widened():
    model = reduced("cnn")
    state = random_state(model)
    half = {name: value.astype(np.float16) if value.dtype == np.float32 else value for name, value in state.items()}
    got = from_state(model, half).variables["params"]["linear"]["bias"]
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, half["linear.bias"].astype(np.float32))


def test_double_precision_is_rounded():
    model = reduced("cnn")
    state = random_state(model)
    double = {name: value.astype(np.float64) / 3 if value.dtype == np.float32 else value for name, value in state.items()}
    got = from_state(model, double).variables["params"]["linear"]["bias"]
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, double["linear.bias"].astype(np.float32))


def test_other_numbers_are_refused():
    model = reduced("cnn")
    state = random_state(model)
    for value, text in (
        (state["linear.bias"].astype(np.int32), r"linear\.bias is int32; .* must be float32"),
        (state["linear.bias"].astype(np.float64) * 1e300, r"linear\.bias has \d+ NaN or infinite values of 10"),
        (np.full(10, np.nan, np.float32), r"linear\.bias has 10 NaN or infinite values of 10"),
    ):
        with pytest.raises(UserError, match=text):
            from_state(model, {**state, "linear.bias": value})


@pytest.mark.parametrize("name", sorted(MODELS))
def test_recognise(name):
    for depth in (None, 1) if name != "cnn" else (None,):
        model = reduced(name, 43, **({"depth": depth} if depth else {}))
        found = recognise(random_state(model))
        assert found == (name, model.width, 43, depth)


def test_recognise_knows_only_the_table():
    assert recognise({}) is None
    state = random_state(reduced("cnn"))
    assert recognise({**state, "extra.weight": np.zeros(3, np.float32)}) is None
    assert recognise({"fc.weight": np.zeros((2, 2), np.float32)}) is None


def test_a_wrong_number_of_classes():
    state = random_state(reduced("vgg19_bn", 43))
    text = (
        r"^the file has 43 classes \(classifier\.6\.weight \[43, 256\]\), the model 10: classifier\.6\.weight is \[43, 256\], not"
    )
    with pytest.raises(UserError, match=text + r" \[10, 256\]; classifier\.6\.bias is \[43\], not \[10\]$"):
        from_state(reduced("vgg19_bn", 10), state)


def test_a_wrong_network():
    state = random_state(reduced("mobilenet_v3_large"))
    with pytest.raises(UserError) as error:
        from_state(reduced("efficientnet_b3"), state)
    text = str(error.value)
    assert text.startswith("the file holds mobilenet_v3_large (width 8, 10 classes), not efficientnet_b3 (width 8, 10 classes): ")
    assert "features.1.0.block.0.0.weight [5, 1, 3, 3] is missing" in text or "is missing" in text
    assert text.endswith(" in all)") and text.count(";") == 4


def test_a_wrong_width_and_a_wrong_depth():
    state = random_state(reduced("preactresnet18"))
    with pytest.raises(UserError, match=r"the file has width 4 \(conv1\.weight \[4, 3, 3, 3\]\), the model 8: conv1\.weight is"):
        from_state(MODELS["preactresnet18"](spec(), 8), state)
    with pytest.raises(UserError, match=r"holds preactresnet18 \(width 4, 10 classes\), not .*depth 1\): layer1\.1\.bn1"):
        from_state(reduced("preactresnet18", depth=1), state)


def test_names_that_belong_nowhere():
    model = reduced("cnn")
    state = random_state(model)
    with pytest.raises(UserError, match=r"no network of the table .*: fc\.weight \[2\] is unexpected$"):
        from_state(model, {**state, "fc.weight": np.zeros(2, np.float32)})
    del state["conv2.weight"]
    with pytest.raises(UserError, match=r"conv2\.weight \[8, 4, 3, 3\] is missing"):
        from_state(model, state)


def test_a_swapped_shape_within_the_right_network():
    model = reduced("cnn")
    state = random_state(model)
    state["conv2.weight"] = state["conv2.weight"].transpose(1, 0, 2, 3)
    with pytest.raises(
        UserError, match=r"^the file's tensors do not fit cnn .*: conv2\.weight is \[4, 8, 3, 3\], not \[8, 4, 3, 3\]$"
    ):
        from_state(model, state)


def test_what_cannot_be_exported():
    model = reduced("cnn")
    variables = from_state(model, random_state(model)).variables
    with pytest.raises(UserError, match="carries plug, plug_stats, which"):
        to_state(model, {**variables, "plug": {}, "plug_stats": {}})
    stacked = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), variables)
    with pytest.raises(UserError, match=r"float32\[2, 3, 3, 3, 4\], cnn \(width 4\) of one member has float32\[3, 3, 3, 4\]"):
        to_state(model, stacked)
    with pytest.raises(UserError, match="float64"):
        to_state(model, jax.tree.map(lambda leaf: leaf.astype(np.float64), variables))
    with pytest.raises(UserError, match=r"cnn has no batch_stats/layer1_0/bn1/mean"):
        to_state(model, from_state(reduced("preactresnet18"), random_state(reduced("preactresnet18"))).variables)
    missing = {**variables, "params": {k: v for k, v in variables["params"].items() if k != "conv2"}}
    with pytest.raises(UserError, match="lack params/conv2/kernel"):
        to_state(model, missing)
    with pytest.raises(UserError, match="kept tensors of another network: fc"):
        to_state(model, variables, {"fc": np.zeros(1)})
