"""What every defense of the table promises; adding an entry adds its tests. The tables' defaults run, shortened.

The repair of a small population is traced, compiled and run once per defense and profile; the tests read that one program. The
fast ones only trace it, but for one defense of each kind; what a defense computes, its own tests say.
"""

import dataclasses
import functools
import inspect
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.data import clean_subset
from bdjax.defenses.table import DEFENSES
from bdjax.errors import UserError
from bdjax.models.cnn import cnn
from bdjax.types import CleanSet, DefenderView, Defense, Model
from tests.golden import numbers
from tests.programs import check_export, dtypes_inside, exported
from tests.short import profiles, shortened

NEEDS = {"clean", "triggered", "test_accuracy"}
SPC = 4
SEARCHES = ("nc",)  # the losses of its trace are thousands, of a search in which rounding errors grow
ADDED = {"plug", "plug_stats", "bounds"}  # collections that a repair may add
BF16 = jnp.dtype(jnp.bfloat16)


@dataclasses.dataclass(frozen=True)
class Case:
    """A defense that repaired a population of three: the first member, the same with another key, and one that differs."""

    name: str
    profile: str
    model: Model
    defense: Defense
    run: Any  # the jitted repair of three members
    traces: list  # one entry per trace of it
    members: tuple  # (key, view, hyper) with the members on axis 0, as NumPy arrays

    @functools.cached_property
    def form(self):
        """What it returns for them, without the numbers."""
        return self.run.eval_shape(*self.members)

    @functools.cached_property
    def found(self):
        """What it returned for them, as NumPy arrays."""
        return jax.device_get(self.run(*self.members))


def subject(model, defense, dataset, seed):
    """A network of one seed and what its defender is given: what the defense needs, and nothing else."""
    variables = jax.tree.map(lambda x: np.asarray(x) + np.float32(0.05), started(model, seed))
    labels = np.asarray(dataset.train.labels)
    index, role = map(np.asarray, drawn(defense.validation, seed, labels.tobytes()))
    images = np.asarray(dataset.train.images)[index]
    fields = {
        "clean": CleanSet(images, labels[index], role, np.int32(SPC)),
        "triggered": np.maximum(images, np.uint8(40)),
        "test_accuracy": np.float32(0.5),
    }
    wanted = set(defense.needs) | ({"clean"} if "triggered" in defense.needs else set())
    return DefenderView(variables, **{field: fields[field] for field in wanted})


@functools.cache
def started(model, seed):
    return jax.device_get(jax.jit(model.init)(jax.random.key(seed)))


@functools.cache
def drawn(validation, seed, labels):
    return clean_subset.draw(jax.random.key(seed), jnp.asarray(np.frombuffer(labels, np.int32)), 4, SPC, validation)


def stacked(*members):
    keys = jax.random.wrap_key_data(np.stack([[0, seed] for seed, _, _ in members]).astype(np.uint32))
    return keys, *jax.tree.map(lambda *x: np.stack(x), *(member[1:] for member in members))


@functools.cache
def case_of(name, profile, dataset):
    model = cnn(dataset.spec, 4, lowering="patches")
    defense, traces = shortened(DEFENSES[name], model, profile), []

    def defend(key, view, hyper):
        traces.append(None)
        return defense.defend(key, view, hyper)

    run = jax.jit(jax.vmap(defend))
    one, other = (subject(model, defense, dataset, seed) for seed in (0, 1))
    halved = jax.tree.map(lambda x: (x / 2).astype(x.dtype), defense.hyper)
    members = stacked((0, one, defense.hyper), (1, one, defense.hyper), (0, other, halved))
    return Case(name, profile, model, defense, run, traces, members)


class Shared:
    """A data set that can be the key of a cache: it is the same object for all tests of a process."""

    def __init__(self, dataset):
        self.spec, self.train = dataset.spec, dataset.train


@pytest.fixture(scope="session")
def shared(tiny_dataset):
    return Shared(tiny_dataset)


@pytest.fixture(scope="module", autouse=True)
def one_formulation():
    """A network that a defense trains beside the model computes as the model does: that compiles faster for a population."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("bdjax.defenses.bti_dbf.generator.lowering_here", lambda: "patches")
        yield


@pytest.fixture(params=profiles(DEFENSES))
def case(request, shared):
    return case_of(*request.param.split("-"), shared)


# One that tunes, one that prunes without data, one that learns masks, one that adds a plug.
FIRST = ("ft", "clp", "anp", "npd")
COMPUTED = pytest.mark.parametrize("case", profiles(DEFENSES, later=lambda name: name not in FIRST), indirect=True)


def member(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


def same(a, b):
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y, equal_nan=True) for x, y in leaves)  # NaN: did not happen


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


def test_the_description_is_complete_and_rebuilds_the_defense(case):
    assert case.defense.needs <= NEEDS
    assert not case.defense.validation or "clean" in case.defense.needs
    assert None not in case.defense.config, "the profile's values must be filled in for the record"
    assert DEFENSES[case.name](case.model, case.defense.config, profile=case.profile).config == case.defense.config
    hash(case.defense.config)
    for leaf in jax.tree.leaves(case.defense.hyper):
        assert np.ndim(leaf) == 0 and np.asarray(leaf).dtype in (np.float32, np.int32)


def test_repair_keeps_structure_shapes_and_dtypes_and_says_what_it_did(case):
    before, found = case.members[1].variables, case.form
    assert set(found.variables) - set(before) <= ADDED
    chex.assert_trees_all_equal_shapes_and_dtypes({name: found.variables[name] for name in before}, dict(before))
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), found.variables)
    images = jax.ShapeDtypeStruct((2, *case.model.spec.image_shape), jnp.float32)
    logits = jax.eval_shape(lambda v, x: case.model.apply(v, x).logits, one, images)
    assert logits.shape == (2, case.model.spec.classes)
    assert hasattr(found.trace, "_fields") and jax.tree.leaves(found.trace)
    assert all(x.shape[0] == 3 for x in jax.tree.leaves(found.trace))
    for address, keep in (found.masks or {}).items():
        layer = before["params"][address]
        widths = {layer[leaf].shape[axis] for leaf, axis in (("scale", -1), ("kernel", -1), ("kernel", -2)) if leaf in layer}
        assert keep.shape[:-1] == (3,) and keep.shape[-1] in widths
    assert len(case.traces) == 1


@COMPUTED
def test_what_a_repair_returns_is_finite_and_its_masks_lie_between_0_and_1(case):
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(case.found.variables))
    assert all(np.all((keep >= 0) & (keep <= 1)) for keep in (case.found.masks or {}).values())


@COMPUTED
def test_results_are_those_of_the_edition(case):
    """What changes a method's results raises its edition: records of the edition before are then made again."""
    before, after = case.members[1].variables, case.found.variables
    ends = {f"trace.{field}": value for field, value in case.found.trace._asdict().items()}
    rough = case.name in SEARCHES
    numbers.check(
        f"defense/{case.name}-{case.profile}",
        case.defense.edition,
        rough=ends if rough else None,
        change={name: jax.tree.map(np.subtract, after[name], before[name]) for name in before},
        added={name: after[name] for name in after if name not in before},
        masks=case.found.masks or {},
        **({} if rough else ends),
    )


@COMPUTED
def test_one_program_serves_all_keys_networks_and_hyper_parameters(case):
    first, other_key, other_network = (member(case.found, i) for i in range(3))
    assert not same(first, other_key) if case.defense.keyed else same(first.variables, other_key.variables)
    assert not same(first.variables, other_network.variables)
    assert len(case.traces) == 1


def agree(one, other, hyper):
    """Two results of a repair are equal but for rounding; losses that are weighted by thousands weigh their rounding too."""
    for a, b in zip(jax.tree.leaves(one.masks), jax.tree.leaves(other.masks), strict=True):
        np.testing.assert_allclose(a, b, atol=0 if np.all(np.isin(b, (0, 1))) else 1e-5)
    weight = sum(map(float, jax.tree.leaves(hyper)))
    for a, b in zip(jax.tree.leaves(one.variables), jax.tree.leaves(other.variables), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 if weight < 2000 else 1e-3)


@COMPUTED
def test_the_same_key_gives_the_same_bits_and_a_member_does_not_depend_on_its_company(case):
    key, *rest = case.members
    assert same(jax.device_get(case.run(*case.members)), case.found)
    order = np.array([2, 0, 0])
    moved = jax.device_get(case.run(key[order], *jax.tree.map(lambda x: x[order], tuple(rest))))
    assert len(case.traces) == 1
    for place, i in enumerate(order):
        agree(member(moved, place), member(case.found, i), case.defense.hyper)


def test_what_is_not_named_in_needs_is_not_read(case):
    view = case.members[1]
    given = {field for field in NEEDS if getattr(view, field) is not None}
    assert given >= case.defense.needs and (given == case.defense.needs or "triggered" in case.defense.needs)
    assert case.form is not None  # it was traced, and the other fields are None: reading one would have failed


@pytest.mark.slow  # a second program each
@pytest.mark.parametrize("case", [f"{name}-corrected" for name in DEFENSES], indirect=True)
def test_a_member_alone_is_as_in_company(case):
    key, *rest = case.members
    alone = jax.device_get(jax.jit(case.defense.defend)(key[2], *member(tuple(rest), 2)))
    agree(alone, member(case.found, 2), case.defense.hyper)


@pytest.mark.slow
def test_the_program_is_the_same_for_every_platform(case):
    """Nothing in a repair knows a platform: see tests/test_export.py, which exports the rest of what runs."""
    check_export(exported(case.run, *case.members))
    assert len(case.traces) == 1


@pytest.mark.slow
def test_it_computes_in_the_models_precision_and_keeps_float32_variables(case):
    """A float32 network never meets bfloat16; of one in bfloat16 a repair that reads images computes in it."""
    assert BF16 not in dtypes_inside(case.run.trace(*case.members).jaxpr)
    assert len(case.traces) == 1
    half = shortened(DEFENSES[case.name], case.model.rebuild(dtype=BF16), case.profile)
    key, *rest = case.members
    program, found = jax.make_jaxpr(half.defend, return_shape=True)(key[0], *member(tuple(rest), 0))
    assert (BF16 in dtypes_inside(program)) == ("clean" in half.needs)
    assert {x.dtype for x in jax.tree.leaves(found.variables)} == {jnp.dtype(jnp.float32)}
