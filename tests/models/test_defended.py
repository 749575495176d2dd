"""The defenses run on every published network, with its dropout, several linear layers and depthwise convolutions."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import tree
from bdjax.defenses.table import DEFENSES
from bdjax.types import CleanSet, DefenderView
from tests.later import some_later
from tests.networks import DROPPING, INVERTED, PUBLISHED, SLOWEST, drawn, reduced, shapes
from tests.short import shortened

ROWS, CLASSES = 15, 5


def clean():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (ROWS, 32, 32, 3), dtype=np.uint8)
    role = np.where(np.arange(ROWS) % 3 == 0, 2, 1).astype(np.int8)  # one validation row per class
    return CleanSet(images, np.arange(ROWS, dtype=np.int32) // 3, role, np.int32(3))


def repaired(model, name, **config):
    """The variables before and what the defense made of them, in NumPy."""
    variables = drawn(model)
    defense = DEFENSES[name](model, config)
    view = DefenderView(variables, clean() if "clean" in defense.needs else None)
    found = jax.device_get(jax.jit(defense.defend)(jax.random.key(0), view, defense.hyper))
    variables = jax.device_get(variables)
    kept = {collection: found.variables[collection] for collection in variables}
    assert jax.tree.structure(kept) == jax.tree.structure(variables)
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(variables), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype and np.all(np.isfinite(a))
    return variables, found


def network(name):
    return reduced(name, classes=CLASSES, lowering="mixed", **({"drop": True} if name in DROPPING else {}))


LENGTHS = ("epochs", "teacher_epochs", "search_epochs", "rounds", "iterations", "attack_steps")
LENGTHS += ("unlearn_epochs", "recover_epochs", "warmup_epochs", "attempts")
SHORTEST = {"batch": 15, **dict.fromkeys(LENGTHS, 1)}


TRACED = [*itertools.product(SLOWEST, DEFENSES), *((name, "bti_dbf") for name in PUBLISHED if name not in INVERTED)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), TRACED)
def test_defenses_can_be_traced_on_networks_that_take_too_long_to_compile(name, method):
    """With the shapes and dtypes of its variables. What EfficientNet computes MobileNet shows below, whose parts are the same."""
    model = network(name)
    defense = shortened(DEFENSES[method], model)
    view = DefenderView(shapes(model), clean(), clean().images)
    found = jax.eval_shape(defense.defend, jax.random.key(0), view, jax.tree.map(jnp.asarray, defense.hyper))
    chex.assert_trees_all_equal_shapes_and_dtypes({k: found.variables[k] for k in view.variables}, dict(view.variables))


COMPUTED = [name for name in PUBLISHED if name not in SLOWEST]


@pytest.mark.slow  # compiling: 10 seconds each
@pytest.mark.parametrize(
    ("name", "method"),
    [*itertools.product(COMPUTED, ["nad", "nc", "ft_sam", "fst", "i_bau", "sau"]), *((name, "ft_sam") for name in SLOWEST)],
)
def test_tuning_defenses_run_on_every_network(name, method):
    """Second derivatives, perturbed inputs and attention maps, through every kind of layer."""
    model = network(name)
    fields = DEFENSES[method](model).config._fields
    before, found = repaired(model, method, **{k: v for k, v in SHORTEST.items() if k in fields})
    assert bool(found.trace.alive)
    if method == "nc":
        start = (np.tanh(1) / 2 + 0.5) * 32 * 32
        assert np.all(np.abs(np.asarray(found.trace.norm) - start) > 1)  # the masks moved
    else:
        kernels = [f"{address}/kernel" for kind, address in model.arch.registered if kind == "conv"]
        assert all(np.any(tree.get(before["params"], k) != tree.get(found.variables["params"], k)) for k in kernels)


@pytest.mark.slow  # compiling: 10 seconds each
@pytest.mark.parametrize(
    ("name", "method"),
    [
        *itertools.product(COMPUTED, ["anp", "rnp", "awn", "bnp", "npd", "pbe", "mm_bd"]),
        *((name, "anp") for name in SLOWEST),
    ],
)
def test_pruning_and_patching_defenses_run_on_every_network(name, method):
    """Masked norms, a plug, bounds and perturbed images, through every kind of layer."""
    model = network(name)
    fields = DEFENSES[method](model).config._fields
    before, found = repaired(model, method, **{k: v for k, v in SHORTEST.items() if k in fields})
    assert bool(getattr(found.trace, "alive", True))
    if method in ("anp", "rnp", "awn", "bnp"):
        assert set(found.masks) == set(model.arch.norms)  # every norm has its mask
        assert all(found.masks[norm].shape == tree.get(before["params"], norm)["scale"].shape for norm in found.masks)
    if method in ("anp", "rnp"):
        assert np.any(np.asarray(found.trace.masks) < 1)  # the masks moved
    if method == "npd":
        assert set(found.variables) - set(before) == {"plug", "plug_stats"}
        width = found.variables["plug"]["kernel"].shape[-1]
        assert np.any(found.variables["plug"]["kernel"][0, 0] != np.eye(width))
    if method == "mm_bd":
        assert set(found.variables["bounds"]) == set(model.arch.activations)
    if method == "pbe":
        kernels = [f"{address}/kernel" for kind, address in model.arch.registered if kind == "conv"]
        assert all(np.any(tree.get(before["params"], k) != tree.get(found.variables["params"], k)) for k in kernels)


@pytest.mark.slow  # compiling: 10 seconds each
@pytest.mark.parametrize("name", COMPUTED)
def test_nft_scales_every_norm_and_nothing_else_and_its_bounds_fall_in_the_order_of_registration(name):
    model = network(name)
    before, found = repaired(model, "nft", epochs=2, batch=15)
    assert bool(found.trace.alive)
    order = [address for kind, address in model.arch.registered if kind == "norm"]
    assert set(found.masks) == set(order)
    for i, norm in enumerate(order, 1):
        mask = np.asarray(found.masks[norm])
        assert mask.min() >= 0.8 * np.exp(-0.5 * i) - 1e-6 and mask.max() <= 1
        scale = np.asarray(tree.get(before["params"], norm)["scale"]) * mask
        np.testing.assert_allclose(np.asarray(tree.get(found.variables["params"], norm)["scale"]), scale, rtol=1e-6)
        old, new = (tree.get(v["batch_stats"], norm)["mean"] for v in (before, found.variables))
        assert np.all(old != new)
    assert any(np.any(mask < 1) for mask in found.masks.values())
    after = tree.flatten(found.variables["params"])
    rest = {path: leaf for path, leaf in tree.flatten(before["params"]).items() if not path.endswith("scale")}
    assert all(np.array_equal(np.asarray(leaf), np.asarray(after[path])) for path, leaf in rest.items())


@pytest.mark.slow  # compiling: 10 seconds each
@pytest.mark.parametrize("name", COMPUTED)
def test_ims_scales_every_convolution_with_its_bias_and_nothing_else(name):
    """Those of squeeze-and-excitation too, under masks that fall fast enough to see."""
    model = network(name)
    variables, rounds = drawn(model), dict.fromkeys(("start_rounds", "search_rounds", "settle_rounds"), 1)
    defense = DEFENSES["ims"](model, {**rounds, "inner_steps": 2, "batch": 8})
    hyper = defense.hyper._replace(lr=np.float32(0.2), slope=np.float32(4), l1=np.float32(0))
    found = jax.device_get(jax.jit(defense.defend)(jax.random.key(0), DefenderView(variables, clean()), hyper))
    variables = jax.device_get(variables)
    assert bool(found.trace.alive) and found.trace.rounds.tolist() == [1, 1, 1] and float(found.trace.size[2]) > 0
    convs = [address for kind, address in model.arch.registered if kind == "conv"]
    assert set(found.masks) == set(convs)
    every = np.concatenate([np.asarray(found.masks[conv]) for conv in convs])
    assert np.mean(every < 0.99) > 0.1 and every.min() > 0 and every.shape == found.trace.masks.shape
    scaled = {}
    for conv in convs:
        for leaf, value in tree.get(variables["params"], conv).items():  # a kernel, and a bias where there is one
            scaled[f"{conv}/{leaf}"] = value * found.masks[conv].reshape((1,) * (value.ndim - 1) + (-1,))
    for path, leaf in tree.flatten(found.variables["params"]).items():
        expected = scaled.get(path, tree.get(variables["params"], path))
        np.testing.assert_allclose(np.asarray(leaf), np.asarray(expected), rtol=1e-6 if path in scaled else 0)
    for a, b in zip(jax.tree.leaves(found.variables["batch_stats"]), jax.tree.leaves(variables["batch_stats"]), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_fine_pruning_cuts_inputs_of_the_first_linear_layer_and_no_other_and_its_tuning_moves_every_layer(name):
    model = network(name)
    before, found = repaired(model, "fp", epochs=2, batch=8, granularity=0.25)
    assert bool(found.trace.alive)
    for address in [address for _, address in model.arch.registered] + list(model.arch.heads):
        one, other = (tree.get(v["params"], address) for v in (before, found.variables))
        assert all(np.any(one[leaf] != other[leaf]) for leaf in one.keys() & {"kernel", "scale"}), address
    first, *others = model.arch.heads
    assert list(found.masks) == [first]
    keep, kernel = np.asarray(found.masks[first]), np.asarray(tree.get(found.variables["params"], first)["kernel"])
    assert keep.shape == (kernel.shape[0],) and set(keep) <= {0.0, 1.0}
    pruned = int(found.trace.pruned[int(found.trace.level)])
    assert int(np.sum(keep == 0)) == pruned
    assert not np.any(kernel[keep == 0]) and np.all(np.abs(kernel[keep == 1]).sum(1) > 0)
    assert all(np.all(np.abs(tree.get(found.variables["params"], head)["kernel"]).sum(1) > 0) for head in others)


@pytest.mark.parametrize("name", some_later(PUBLISHED, SLOWEST))
def test_a_loud_channel_is_pruned_in_any_kind_of_layer(name):
    """CLP on the first norm, the last one, and in the middle; what it prunes has scale and bias 0."""
    model = reduced(name)
    variables = drawn(model)
    norms = model.arch.norms
    loud = [norms[i] for i in (0, len(norms) // 2, -1)]
    scales = {path: np.array(tree.get(variables["params"], path)) for path in (f"{norm}/scale" for norm in loud)}
    for scale in scales.values():
        scale[0] = 1e4
    variables = {**variables, "params": tree.replace(variables["params"], scales)}
    defense = DEFENSES["clp"](model)
    hyper = defense.hyper._replace(u=np.float32(0.5))
    found = jax.device_get(jax.jit(defense.defend)(jax.random.key(0), DefenderView(variables), hyper))
    assert set(found.masks) == set(norms)
    for norm in loud:
        after = tree.get(found.variables["params"], norm)
        assert float(found.masks[norm][0]) == float(after["scale"][0]) == float(after["bias"][0]) == 0
