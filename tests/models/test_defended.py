"""The defenses run on every published network, with its dropout, several linear layers and depthwise convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import tree
from bdjax.defenses import DEFENSES
from bdjax.types import CleanSet, DefenderView
from tests.networks import DROPPING, PUBLISHED, drawn, reduced

ROWS, CLASSES = 15, 5


def clean():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (ROWS, 32, 32, 3), dtype=np.uint8)
    role = np.where(np.arange(ROWS) % 3 == 0, 2, 1).astype(np.int8)  # one validation row per class
    return CleanSet(jnp.asarray(images), jnp.arange(ROWS, dtype=jnp.int32) // 3, jnp.asarray(role), jnp.int32(3))


def repaired(model, name, **config):
    variables = drawn(model)
    defense = DEFENSES[name](model, config)
    view = DefenderView(variables, clean() if "clean" in defense.needs else None)
    found = jax.jit(defense.repair)(jax.random.key(0), view, jax.tree.map(jnp.asarray, defense.hyper))
    assert jax.tree.structure(found.variables) == jax.tree.structure(variables)
    for a, b in zip(jax.tree.leaves(found.variables), jax.tree.leaves(variables), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype and bool(jnp.all(jnp.isfinite(a)))
    return variables, found


def network(name):
    return reduced(name, classes=CLASSES, lowering="mixed", **({"drop": True} if name in DROPPING else {}))


SHORTEST = {"epochs": 1, "batch": 15, "teacher_epochs": 1, "search_epochs": 1, "rounds": 1, "iterations": 1, "attack_steps": 1}


@pytest.mark.slow  # compiling: 20 seconds each
@pytest.mark.parametrize("method", ["nad", "nc", "ft_sam", "fst", "i_bau", "sau"])
@pytest.mark.parametrize("name", PUBLISHED)
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
        assert all(bool(jnp.any(tree.get(before["params"], k) != tree.get(found.variables["params"], k))) for k in kernels)


@pytest.mark.parametrize("name", PUBLISHED)
def test_fine_pruning_cuts_inputs_of_the_first_linear_layer_and_no_other_and_its_tuning_moves_every_layer(name):
    model = network(name)
    before, found = repaired(model, "fp", epochs=2, batch=8, granularity=0.25)
    assert bool(found.trace.alive)
    for address in [address for _, address in model.arch.registered] + list(model.arch.heads):
        one, other = (tree.get(v["params"], address) for v in (before, found.variables))
        assert all(bool(jnp.any(one[leaf] != other[leaf])) for leaf in one.keys() & {"kernel", "scale"}), address
    first, *others = model.arch.heads
    assert list(found.masks) == [first]
    keep, kernel = np.asarray(found.masks[first]), np.asarray(tree.get(found.variables["params"], first)["kernel"])
    assert keep.shape == (kernel.shape[0],) and set(keep) <= {0.0, 1.0}
    pruned = int(found.trace.pruned[int(found.trace.level)])
    assert int(np.sum(keep == 0)) == pruned
    assert not np.any(kernel[keep == 0]) and np.all(np.abs(kernel[keep == 1]).sum(1) > 0)
    assert all(np.all(np.abs(tree.get(found.variables["params"], head)["kernel"]).sum(1) > 0) for head in others)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_loud_channel_is_pruned_in_any_kind_of_layer(name):
    """CLP on the first norm, the last one, and in the middle; what it prunes has scale and bias 0."""
    model = reduced(name)
    variables = drawn(model)
    norms = model.arch.norms
    loud = [norms[i] for i in (0, len(norms) // 2, -1)]
    scales = {f"{norm}/scale": tree.get(variables["params"], f"{norm}/scale").at[0].set(1e4) for norm in loud}
    variables = {**variables, "params": tree.replace(variables["params"], scales)}
    defense = DEFENSES["clp"](model)
    found = defense.repair(jax.random.key(0), DefenderView(variables), defense.hyper._replace(u=jnp.float32(0.5)))
    assert set(found.masks) == set(norms)
    for norm in loud:
        after = tree.get(found.variables["params"], norm)
        assert float(found.masks[norm][0]) == float(after["scale"][0]) == float(after["bias"][0]) == 0
