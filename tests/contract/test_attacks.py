"""What every attack of the table promises; adding an entry adds its tests. The tables' defaults run, with shortened training.

A population's training is traced, compiled and run once per attack and profile; the tests of training read that one program.
"""

import functools
import inspect
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.attacks.table import ATTACKS
from bdjax.data.augment import to_float, to_uint8
from bdjax.errors import UserError
from bdjax.keys import root
from bdjax.models.cnn import cnn
from bdjax.population import members, prepare, take
from bdjax.train.experiment import attack_member, preparation, stage
from bdjax.types import Attack
from tests.golden import numbers
from tests.programs import check_export, exported
from tests.short import prepares, profiles, shortened_attack

ROWS = 160
NETS = ("bdjax.attacks.input_aware.networks", "bdjax.attacks.ssba.networks")
ROOT = root()
SEEDS = (0, 1, 2, 3)
READY = pytest.mark.parametrize("attack", profiles(ATTACKS, later=prepares), indirect=True)  # for tests that need a trigger


@functools.cache
def stamping(attack):
    return jax.jit(attack.stamp)


@functools.cache
def attack_of(name, profile, spec):
    return shortened_attack(ATTACKS[name], spec, profile)


@pytest.fixture(params=profiles(ATTACKS))
def attack(request, tiny_spec):
    return attack_of(*request.param.split("-"), tiny_spec)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache folder of this module's own: what an attack prepares is prepared once for all tests."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("BDJAX_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        for net in NETS:  # as the classifier below: one formulation for all members compiles faster than one each
            patched.setattr(f"{net}.lowering_here", lambda: "patches")
        yield


@pytest.fixture(scope="module")
def ready(tiny_dataset):
    """``ready(attack, key) -> trigger``, with what the attack prepares for the root key or for seed 0."""
    kept = {}

    def make(attack: Attack, key):
        if attack.prepare is not None and attack.config not in kept:
            data = stage(attack._replace(recipe=attack.recipe._replace(shared_trigger=False)), tiny_dataset, ROOT)
            every = prepare(attack, members(SEEDS, [0.1], ROWS)[0], tiny_dataset, data)  # all seeds of this module at once
            kept[attack.config] = (
                data.assets if data.assets is not None else jax.tree.map(lambda x: np.asarray(x)[0], every.assets)
            )
        return jax.jit(attack.init)(key, kept.get(attack.config))

    return make


class Population:
    """The training of four members of an attack, two seeds and two ratios, as one program."""

    def __init__(self, attack, dataset):
        self.attack, self.dataset, self.traces = attack, dataset, []
        self.data = stage(attack, dataset, ROOT)
        self.member = attack_member(cnn(dataset.spec, 4, lowering="patches"), attack, ROWS)

        def run(member, data):
            self.traces.append(None)
            return self.member(member, data)

        self.run = jax.jit(jax.vmap(run, in_axes=(0, None)))
        self.members = self.stack(SEEDS[:2], [0.0, 0.1])
        self.trained, self.counts = jax.device_get(self.run(self.members, self.data))

    def stack(self, seeds, ratios):
        return prepare(self.attack, members(seeds, ratios, ROWS)[0], self.dataset, self.data)


@pytest.fixture(scope="module")
def trained_by(tiny_dataset):
    """``trained_by(attack) -> Population``, once for all tests of an attack."""
    return functools.cache(lambda attack: Population(attack, tiny_dataset))


@pytest.fixture
def population(attack, trained_by):
    return trained_by(attack)


def same(a, b):
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize("name", ATTACKS)
def test_docstring_names_source_and_differences(name):
    text = inspect.getdoc(ATTACKS[name]) or ""
    assert "Source: " in text and "Differs: " in text and "Args:" in text and "Raises:" in text


@pytest.mark.parametrize("name", ATTACKS)
def test_mistakes_are_named(name, tiny_spec):
    with pytest.raises(UserError, match=r"unknown profile 'corrrected'.*'corrected'"):
        ATTACKS[name](tiny_spec, profile="corrrected")
    with pytest.raises(UserError, match=f"unknown field of {name} 'nonsense'"):
        ATTACKS[name](tiny_spec, {"nonsense": 1})


@pytest.mark.parametrize("name", ATTACKS)
def test_a_configuration_rebuilds_the_attack(name, tiny_spec):
    made = ATTACKS[name](tiny_spec)
    assert ATTACKS[name](tiny_spec, made.config).config == made.config == ATTACKS[name](tiny_spec, made.config._asdict()).config
    hash(made.config), hash(made.recipe)


@READY
def test_stamp_keeps_shape_dtype_range_and_grid_and_changes_the_image(attack, ready, tiny_dataset):
    trigger = ready(attack, jax.random.key(1))
    images = to_float(jnp.asarray(tiny_dataset.test.images[:6]))
    out = stamping(attack)(trigger, jax.random.key(0), images)
    chex.assert_trees_all_equal_shapes_and_dtypes(out, images)
    assert float(out.min()) >= 0 and float(out.max()) <= 1
    np.testing.assert_array_equal(out, jax.jit(lambda x: to_float(to_uint8(x)))(out))
    assert np.all(np.any(np.asarray(out) != np.asarray(images), (1, 2, 3)))
    assert same(out, stamping(attack)(trigger, jax.random.key(0), images))


@READY
def test_triggers_depend_on_the_key_unless_they_are_shared(attack, ready, tiny_dataset):
    images = to_float(jnp.asarray(tiny_dataset.test.images[:2]))
    a, b = ready(attack, jax.random.key(1)), ready(attack, jax.random.key(2))
    alike = same(stamping(attack)(a, jax.random.key(3), images), stamping(attack)(b, jax.random.key(4), images))
    assert alike == attack.recipe.shared_trigger


def test_selection_is_one_program_for_all_counts_and_nests(attack, tiny_dataset):
    labels = jnp.asarray(tiny_dataset.train.labels)
    chex.clear_trace_counter()
    select = jax.jit(chex.assert_max_traces(attack.select, n=1))
    sets = [np.asarray(select(jax.random.key(5), labels, jnp.int32(count))[0]) for count in (0, 3, 16, 40)]
    assert all(s.dtype == bool for s in sets)
    assert not select(jax.random.key(5), labels, jnp.int32(ROWS + 1))[1]
    together, feasible = jax.vmap(attack.select, in_axes=(None, None, 0))(
        jax.random.key(5), labels, jnp.array([3, 16], jnp.int32)
    )
    assert same(together, np.stack(sets[1:3])) and feasible.tolist() == [True, True]
    if attack.batch is not None:  # poisoned inside the batch: no row is chosen before
        assert not np.any(sets)
        return
    assert [s.sum() for s in sets] == [0, 3, 16, 40]
    assert all(not np.any(a & ~b) for a, b in itertools.pairwise(sets))
    assert same(sets[2], select(jax.random.key(5), labels, jnp.int32(16))[0])
    assert not same(sets[2], select(jax.random.key(6), labels, jnp.int32(16))[0])


def test_labels_change_for_some_class_and_stay_classes(attack):
    labels = jnp.arange(4, dtype=jnp.int32)
    out = attack.relabel(labels)
    chex.assert_trees_all_equal_shapes_and_dtypes(out, labels)
    assert np.any(np.asarray(out) != np.asarray(labels)) and np.all((np.asarray(out) >= 0) & (np.asarray(out) < 4))


@READY
def test_poison_inside_the_batch_has_one_program_for_all_ratios_and_leaves_ratio_zero_alone(attack, ready, tiny_dataset):
    if attack.batch is None:
        assert attack.update is None and not attack.recipe.second_batch  # they would have nobody to call them
        return
    chex.clear_trace_counter()
    poison = jax.jit(chex.assert_max_traces(attack.batch, n=1))
    trigger = ready(attack, jax.random.key(1))
    images, labels = to_float(jnp.asarray(tiny_dataset.train.images[:32])), jnp.asarray(tiny_dataset.train.labels[:32])
    other = (images[::-1], labels[::-1]) if attack.recipe.second_batch else None
    found = {r: poison(trigger, jax.random.key(2), images, labels, jnp.float32(r), other) for r in (0.0, 0.05, 0.1)}
    chex.assert_trees_all_equal_shapes_and_dtypes(*(out[:2] for out in found.values()), (images, labels))
    chex.assert_trees_all_equal_shapes_and_dtypes(*(out[3] for out in found.values()), trigger)
    assert same(found[0.0][1], labels) and float(found[0.0][2]) == 0
    moved = {r: int(np.sum(np.asarray(out[1]) != labels)) for r, out in found.items()}
    expected = {r: int(np.sum(np.asarray(attack.relabel(labels) != labels)[: int(32 * r)])) for r in found}
    assert moved == expected and expected[0.1] > 0  # the first floor(32 r) places carry the attack label


@READY
def test_members_of_all_ratios_train_in_one_program_and_repeat_with_their_keys(population):
    trained, counts = population.trained, population.counts
    assert trained.alive.tolist() == [True] * 4 and trained.feasible.tolist() == [True] * 4
    assert counts.clean.tolist() == [80] * 4 and np.all(counts.attacked + counts.recovered <= counts.triggered)
    leaves = trained.variables["params"]["linear"]["kernel"]
    assert len({leaf.tobytes() for leaf in leaves}) == 4  # every member its own network
    assert same(jax.device_get(population.run(population.members, population.data))[0], trained)
    other, _ = jax.device_get(population.run(population.stack(SEEDS[2:], [0.05, 0.1]), population.data))
    assert not same(trained.variables, other.variables)
    assert len(population.traces) == 1


def stamped(population, trigger):
    rows = to_float(jnp.asarray(population.dataset.test.images[:6]))
    return np.asarray(stamping(population.attack)(trigger, jax.random.key(0), rows))


def one_step(population, trigger):
    """What poison inside the batch and the trigger's own optimiser make of a trigger: long training is left to chance."""
    attack, rows = population.attack, population.dataset.train
    images, labels = to_float(jnp.asarray(rows.images[:32])), jnp.asarray(rows.labels[:32])
    other = (images[::-1], labels[::-1]) if attack.recipe.second_batch else None
    poison = jax.jit(attack.batch)(trigger, jax.random.key(2), images, labels, jnp.float32(0.1), other)
    slope = jax.tree.map(lambda x: np.sin(x) if x.dtype.kind == "f" else np.zeros(x.shape, jax.dtypes.float0), trigger)
    return {"batch": poison, "update": jax.jit(attack.update)(trigger, slope)}


def drawn(tree):
    """A tree of the same shapes with numbers that no training made; those of an optimiser and of statistics are positive."""
    generator = np.random.default_rng(3)

    def draw(path, leaf):
        if leaf.dtype.kind != "f":
            return np.asarray(leaf)
        least = 0.05 if any(part in jax.tree_util.keystr(path) for part in ("adam", "stat", "var")) else -0.3
        return generator.uniform(least, 0.3, leaf.shape).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, tree)


@READY
def test_results_are_those_of_the_edition(population, request):
    """What changes a method's results raises its edition: records of the edition before are then made again.

    Networks that an attack trains for itself end in places that depend on rounding: they are compared roughly, and what the
    attack does with drawn ones exactly.
    """
    attack, trained = population.attack, population.trained
    params, images = trained.variables["params"], population.data.test.triggered
    effect = jax.tree.map(lambda x: x[1::2] - x[::2], params)  # of ratio 0.1 on the weights of each seed
    always = dict(loss=trained.loss, statistics=trained.variables["batch_stats"])
    name = f"attack/{request.node.callspec.id}"
    one = take(trained.trigger, 1)
    if attack.prepare is None:
        images = stamped(population, one) if images is None else np.asarray(images, np.float64)
        numbers.check(name, attack.edition, **always, effect=effect, trigger=trained.trigger, triggered=images)
        return
    steps = one_step(population, drawn(one)) if attack.update else {}
    assets = population.data.assets if population.data.assets is not None else population.members.assets
    rough = dict(**always, effect=effect, assets=assets, triggered=stamped(population, one))
    numbers.check(name, attack.edition, rough, stamp=stamped(population, drawn(one)), **steps)


def agree(one, other, learns):
    """Two trained members are equal but for rounding.

    An attack that learns has an Adam, which turns the rounding error of a gradient of 0 into a whole step.
    """
    for a, b in zip(jax.tree.leaves(one.variables), jax.tree.leaves(other.variables), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3 if learns else 2e-5)


@READY
def test_a_member_does_not_depend_on_its_company(population):
    order = np.array([3, 0, 3, 1])
    trained, _ = jax.device_get(population.run(take(population.members, order), population.data))
    for place, i in enumerate(order):
        agree(take(trained, place), take(population.trained, i), population.attack.update)
    assert len(population.traces) == 1


@pytest.mark.slow  # a second program each
@pytest.mark.parametrize("attack", [f"{name}-corrected" for name in ATTACKS], indirect=True)
def test_a_member_alone_is_as_in_company(population):
    alone, _ = jax.device_get(jax.jit(population.member)(take(population.members, 3), population.data))
    agree(alone, take(population.trained, 3), population.attack.update)


@READY
@pytest.mark.slow
def test_the_program_is_the_same_for_every_platform(population):
    """Nothing in an attack knows a platform: see tests/test_export.py, which exports the rest of what runs."""
    check_export(exported(population.run, population.members, population.data))
    assert len(population.traces) == 1
    if population.attack.prepare is not None and population.attack.recipe.prepare_per == "seed":
        prepared = jax.vmap(preparation(population.attack, population.dataset), (0, None))
        check_export(exported(prepared, population.members.key, population.data))
