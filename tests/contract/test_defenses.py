"""What every defense of the table promises; adding an entry adds its tests. The tables' defaults run, shortened."""

import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.data import clean_subset
from bdjax.defenses import DEFENSES
from bdjax.errors import UserError
from bdjax.models import cnn
from bdjax.types import PROFILES, CleanSet, DefenderView
from tests.short import REFUSED, shortened

EVERY = [(name, profile) for name in DEFENSES for profile in PROFILES if (name, profile) not in REFUSED]
NEEDS = {"clean", "triggered", "test_accuracy"}
SPC = 4
# Attention losses weigh 1000 times as much as the cross-entropy, and rounding with them.
TOLERANCE = {"nad": 1e-3}
SOFT = {"awn", "ims", "nft"}  # their masks are any numbers in [0, 1], and rounded as such
ADDED = {"plug", "plug_stats", "bounds"}  # collections that a repair may add
# These read all clean rows as they are: the order, which is all that a key decides, changes no more than rounding.
KEYLESS = {("clp", "corrected"), ("clp", "reference"), ("bnp", "corrected"), ("mm_bd", "reference")}


@functools.cache
def built(name, profile, spec):
    """The defense with few iterations, its jitted repair, and how often that was traced."""
    model = cnn(spec, 4, lowering="patches")
    defense = shortened(DEFENSES[name], model, profile)
    traces = []

    def repair(key, view, hyper):
        traces.append(None)
        return defense.repair(key, view, hyper)

    return model, defense, jax.jit(repair), traces


@pytest.fixture(params=EVERY, ids=["-".join(pair) for pair in EVERY])
def case(request, tiny_spec):
    return built(*request.param, tiny_spec)


@pytest.fixture(scope="module")
def views(tiny_dataset):
    """``views(model, defense, seed) -> DefenderView`` with what the defense needs and nothing else."""

    def make(model, defense, seed):
        key = jax.random.key(seed)
        variables = jax.tree.map(lambda x: x + 0.05, model.init(key))
        labels = jnp.asarray(tiny_dataset.train.labels)
        index, role = clean_subset.draw(key, labels, 4, SPC, defense.validation)
        images = jnp.asarray(tiny_dataset.train.images)[index]
        fields = {
            "clean": CleanSet(images, labels[index], role, jnp.int32(SPC)),
            "triggered": jnp.maximum(images, jnp.uint8(40)),
            "test_accuracy": jnp.float32(0.5),
        }
        wanted = set(defense.needs) | ({"clean"} if "triggered" in defense.needs else set())
        return DefenderView(variables, **{field: fields[field] for field in wanted})

    return make


def arrays(tree):
    return jax.tree.map(jnp.asarray, tree)


def same(a, b):
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(x), np.asarray(y), equal_nan=True) for x, y in leaves)  # NaN: did not happen


@pytest.mark.parametrize("name", DEFENSES)
def test_docstring_names_source_and_differences(name):
    text = inspect.getdoc(DEFENSES[name]) or ""
    assert "Source: " in text and "Differs: " in text and "Args:" in text and "Returns:" in text and "Raises:" in text


@pytest.mark.parametrize("name", DEFENSES)
def test_mistakes_are_named(name, tiny_spec):
    model = cnn(tiny_spec, 4)
    with pytest.raises(UserError, match=r"unknown profile 'referense'.*'reference'"):
        DEFENSES[name](model, profile="referense")
    with pytest.raises(UserError, match=f"unknown field of {name} 'nonsense'"):
        DEFENSES[name](model, {"nonsense": 1})


def test_the_description_is_complete_and_rebuilds_the_defense(case, request):
    model, defense, _, _ = case
    name, profile = request.node.callspec.params["case"]
    assert defense.needs <= NEEDS
    assert not defense.validation or "clean" in defense.needs
    assert None not in defense.config, "the profile's values must be filled in for the record"
    assert DEFENSES[name](model, defense.config, profile=profile).config == defense.config
    hash(defense.config)
    for leaf in jax.tree.leaves(defense.hyper):
        assert np.ndim(leaf) == 0 and np.asarray(leaf).dtype in (np.float32, np.int32)


def test_repair_keeps_structure_shapes_and_dtypes_and_says_what_it_did(case, views):
    model, defense, repair, _ = case
    view = views(model, defense, 0)
    found = repair(jax.random.key(0), view, arrays(defense.hyper))
    assert set(found.variables) - set(view.variables) <= ADDED
    chex.assert_trees_all_equal_shapes_and_dtypes({name: found.variables[name] for name in view.variables}, dict(view.variables))
    logits = jax.jit(model.apply)(found.variables, jnp.zeros((2, *model.spec.image_shape))).logits
    assert logits.shape == (2, model.spec.classes)
    assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(found.variables))
    assert hasattr(found.trace, "_fields") and all(isinstance(x, jax.Array) for x in jax.tree.leaves(found.trace))
    for address, keep in (found.masks or {}).items():
        layer = view.variables["params"][address]
        assert keep.shape in ((layer.get("scale", layer.get("kernel")).shape[-1],), layer.get("kernel", keep[None]).shape[-2:-1])
        assert np.all((np.asarray(keep) >= 0) & (np.asarray(keep) <= 1))


def test_one_program_serves_all_keys_members_and_hyper_parameters(case, views, request):
    model, defense, repair, traces = case
    hyper = arrays(defense.hyper)
    first = repair(jax.random.key(0), views(model, defense, 0), hyper)
    assert same(first, repair(jax.random.key(0), views(model, defense, 0), hyper))
    other = repair(jax.random.key(1), views(model, defense, 0), hyper)
    if request.node.callspec.params["case"] in KEYLESS:
        assert same(first.variables, other.variables)
    else:
        assert not same(first, other)
    moved = repair(jax.random.key(0), views(model, defense, 1), jax.tree.map(lambda x: x / 2, hyper))
    assert not same(first.variables, moved.variables)
    assert len(traces) == 1


@pytest.mark.parametrize("name", DEFENSES)
def test_members_together_equal_members_alone(name, tiny_spec, views):
    model, defense, repair, _ = built(name, "corrected", tiny_spec)
    stack = functools.partial(jax.tree.map, lambda *x: jnp.stack(x))
    several = [
        (jax.random.key(s), views(model, defense, s), jax.tree.map(lambda x, s=s: x / (1 + s), arrays(defense.hyper)))
        for s in (0, 1)
    ]
    together = jax.jit(jax.vmap(defense.repair))(*stack(*several))
    for i, one in enumerate(several):
        alone, member = repair(*one), jax.tree.map(lambda x, i=i: x[i], together)
        chex.assert_trees_all_close(member.variables, alone.variables, rtol=1e-4, atol=TOLERANCE.get(name, 1e-5))
        chex.assert_trees_all_close(member.masks, alone.masks, atol=1e-5 if name in SOFT else 0)


def test_what_is_not_named_in_needs_is_not_read(case, views):
    model, defense, repair, _ = case
    view = views(model, defense, 0)
    given = {field for field in NEEDS if getattr(view, field) is not None}
    assert given >= defense.needs and (given == defense.needs or "triggered" in defense.needs)
    repair(jax.random.key(0), view, arrays(defense.hyper))  # the other fields are None: reading one would fail
