import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.defenses.batches import epoch_plan
from bdjax.defenses.nc import search as nc_search
from bdjax.defenses.nc.control import Rules, advance, first_control
from bdjax.defenses.nc.nc import NCHyper
from bdjax.defenses.nc.search import searcher, squashed, with_trigger
from bdjax.keys import Stream, step_key, stream
from bdjax.models.build import _standardise
from bdjax.models.cnn import cnn
from bdjax.types import DataSpec, Loop
from tests.defenses.plain_eval import knowing, searched, steered
from tests.defenses.plain_network import pixels

KEY = jax.random.key(17)
# Costs that move soon and classes that stop soon.
RULES = Rules(epochs=8, batch=12, patience=2, early_patience=2, early_ratio=0.95)
# The controller counts in 32 bits, so the costs are powers of 2.
LIVELY = {"search_lr": 0.4, "cost": 2**-6, "multiplier": 4.0, "threshold": 0.45}


def hyper64(**changed):
    return jax.tree.map(np.float64, NCHyper()._replace(**{**LIVELY, **changed}))


@functools.cache
def searching(model, rules=RULES):
    search = searcher(model, rules)
    return jax.jit(lambda variables, rows, hyper: search(KEY, variables, rows, jax.tree.map(jnp.asarray, hyper)))


def random_traces(seed, traces, epochs):
    """Success in runs of epochs, norms that mostly fall."""
    generator = np.random.default_rng(seed)
    change = generator.random((traces, epochs)) < generator.choice([0.05, 0.2, 0.5], (traces, 1))
    good = (np.cumsum(change, 1) + generator.integers(0, 2, (traces, 1))) % 2 == 0
    good[: traces // 10] = False
    success = np.where(good, generator.choice([0.98, 0.99, 1.0], good.shape), generator.choice([0.0, 0.5, 0.97], good.shape))
    fall = generator.choice([0.9, 0.995, 1.0], (traces, 1))
    size = 50 * fall ** np.arange(epochs)[None] * generator.uniform(0.97, 1.03, good.shape)
    return success, np.where(generator.random(good.shape) < 0.1, size[:, :1], size)


@pytest.mark.parametrize("rules", [Rules(), Rules(patience=2, early_patience=4, early_ratio=0.9)])
def test_the_controller_is_the_plain_loop_on_random_traces(rules):
    success, size = random_traces(rules.patience, 300, 80)
    success, size = success.astype(np.float32), size.astype(np.float32)
    hyper = jax.tree.map(jnp.asarray, NCHyper(threshold=np.float32(0.98), multiplier=np.float32(3)))

    @jax.jit
    @jax.vmap
    def run(success, size):
        def epoch(control, x):
            new, keep = advance(control, *x, hyper, rules)
            return new, (new, keep, control.done)

        return jax.lax.scan(epoch, first_control(hyper.cost), (success, size))[1]

    control, keep, was_done = jax.tree.map(np.asarray, run(success, size))
    names = ("up", "down", "up_seen", "down_seen", "waited", "best", "early_best", "done")
    stops, never = 0, 0
    for i in range(300):
        expected = steered(
            success[i], size[i], 1e-3, 3.0, np.float32(0.98), rules.patience, rules.early_patience, rules.early_ratio
        )
        ran = len(expected)
        stops += ran < 80
        never += np.isinf(expected[-1]["best"])
        assert np.flatnonzero(was_done[i]).tolist() == list(range(ran, 80))
        assert keep[i, :ran].tolist() == [state["keep"] for state in expected]
        for name in names:
            assert getattr(control, name)[i, :ran].tolist() == [state[name] for state in expected], (i, name)
        np.testing.assert_allclose(control.cost[i, :ran], [state["cost"] for state in expected], rtol=1e-5)
        for leaf in control:  # a class that has stopped stays as it is
            assert np.all(leaf[i, ran - 1 :] == leaf[i, ran - 1])
        assert not keep[i, ran:].any()
    assert stops > 30 and never > 10, "some traces must stop early, and some must never succeed"


def test_the_start_is_a_nearly_opaque_nearly_white_image():
    found = jax.jit(squashed)({"mask": np.ones((8, 8, 1), np.float32), "pattern": np.ones((8, 8, 3), np.float32)})
    np.testing.assert_allclose(np.asarray(found["mask"]), 0.8808, atol=1e-4)
    images = np.random.default_rng(0).random((2, 8, 8, 3)).astype(np.float32)
    m, q = np.tanh(1) / (2 + 1e-7) + 0.5, np.tanh(1) / (2 + 1e-7) + 0.5
    np.testing.assert_allclose(np.asarray(jax.jit(with_trigger)(found, images)), (1 - m) * images + m * q, rtol=1e-6)


@pytest.mark.parametrize("normalised", [True, False])
def test_the_pattern_is_normalised_per_channel_and_not_per_row_as_published(normalised):
    """The network sees (1 - m) norm(x) + m norm(q), each channel with its own constants; on GTSRB both ways are the same."""
    mean, std = (np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.25, 0.3])) if normalised else (np.zeros(3), np.ones(3))
    generator = np.random.default_rng(3)
    x, m, q = generator.random((2, 4, 5, 3)), generator.random((4, 5, 1)), generator.random((4, 5, 3))
    spec = DataSpec("small", (4, 5, 3), 4, tuple(mean), tuple(std), False, 0)
    seen = np.asarray(
        jax.jit(with_trigger)({"mask": m.astype(np.float32), "pattern": q.astype(np.float32)}, x.astype(np.float32))
    )
    seen = np.asarray(_standardise(jnp.asarray(seen), spec, jnp.float32))  # what a model does first
    per_channel, per_row = q.copy(), q.copy()
    for k in range(3):
        per_channel[:, :, k] = (q[:, :, k] - mean[k]) / std[k]
        per_row[k] = (q[k] - mean[k]) / std[k]
    images = (x - mean) / std
    np.testing.assert_allclose(seen, (1 - m) * images + m * per_channel, atol=1e-5)
    assert (np.abs(seen - ((1 - m) * images + m * per_row)).max() > 0.1) == normalised


@pytest.fixture(scope="module")
def known(plain_spec, variables, clean):
    """A network that separates the classes."""
    return knowing(plain_spec, variables, clean(5))


def test_the_search_is_the_one_written_out(model, known, clean, padded, wide, plain_spec):
    rows = padded(clean(5), 6)  # 20 rows that count: batches of 12 and 8, and an empty one
    found = jax.tree.map(np.asarray, searching(model)(wide(known), rows, hyper64()))
    planned, present = jax.jit(epoch_plan, static_argnums=2), np.asarray(rows.role) == 1
    plans = [planned(step_key(stream(KEY, Stream.ORDER), e), present, 12) for e in range(RULES.epochs)]
    expected = searched(plain_spec, wide(known), np.asarray(pixels(rows)), plans, RULES, hyper64())
    for name in ("mask", "pattern", "norm"):
        np.testing.assert_allclose(np.asarray(getattr(found, name)), expected[name], rtol=1e-9, atol=1e-10, err_msg=name)
    for name in ("success", "size", "cost"):
        np.testing.assert_allclose(np.asarray(getattr(found, name)), expected[name], rtol=1e-6, err_msg=name)
    # The case has everything: a class that stops, costs that rise and fall, and norms that differ.
    assert found.alive.all() and np.isnan(expected["size"]).any(0).tolist() == [False, False, False, True]
    assert np.nanmin(expected["cost"]) < 2**-6 < np.nanmax(expected["cost"]) and np.ptp(expected["norm"]) > 10


def test_absent_rows_change_nothing(model, known, clean, padded, wide, distance):
    alone, run = clean(5), searching(model)
    behind = jax.tree.map(lambda a: np.concatenate([a, np.full((6, *a.shape[1:]), 3, a.dtype)]), alone._replace(spc=alone.role))
    behind = behind._replace(role=np.where(np.arange(26) < 20, behind.role, np.int8(0)), spc=alone.spc)
    found, other = (run(wide(known), rows, hyper64()) for rows in (padded(alone, 6), behind))
    for a, b in zip(found, other, strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("field", LIVELY)
def test_each_hyper_parameter_matters(field, model, known, clean, padded, wide, distance):
    rows, run = padded(clean(5), 6), searching(model)
    changed = {"threshold": 0.9}.get(field, LIVELY[field] / 2)
    found, other = run(wide(known), rows, hyper64()), run(wide(known), rows, hyper64(**{field: changed}))
    assert distance(found.mask, other.mask) > 1e-3


def test_a_class_that_is_not_finite_is_frozen_and_marked_while_others_go_on(model, known, clean, padded, wide):
    # Raised twice, the cost is infinite; lowered first, it stays 0.
    found = searching(model)(wide(known), padded(clean(5), 6), hyper64(multiplier=1e30, threshold=0.8))
    ill = ~np.asarray(found.alive)
    assert 0 < ill.sum() < 4
    np.testing.assert_array_equal(ill, ~np.isfinite(np.nanmax(np.asarray(found.cost), 0)))
    assert all(np.isfinite(np.asarray(x)).all() for x in (found.mask, found.pattern, found.norm))
    size = np.asarray(found.size)
    assert np.all(size[-1, ill] == size[-2, ill]) and np.all(size[-1, ~ill] != size[-2, ~ill])


@pytest.mark.slow  # two more programs, one of them step by step
def test_how_many_classes_go_through_the_network_together_does_not_matter(
    monkeypatch, model, known, clean, padded, wide, distance
):
    rows = padded(clean(5), 6)
    found = searching(model)(wide(known), rows, hyper64())
    for at_once, loop in ((3 * 12, Loop()), (1, Loop("dispatch"))):  # three classes and one; one at a time
        monkeypatch.setattr(nc_search, "AT_ONCE", at_once)
        search = searcher(model.rebuild(loop=loop), RULES)
        run = jax.jit(search) if loop.kind == "scan" else search
        other = run(KEY, wide(known), rows, jax.tree.map(jnp.asarray, hyper64()))
        assert distance(other._replace(success=(), size=(), cost=()), found._replace(success=(), size=(), cost=())) < 1e-9
        np.testing.assert_allclose(np.asarray(other.size), np.asarray(found.size), rtol=1e-6)


def test_augmentation_draws_anew_for_every_step(tiny_spec, clean, variables):
    """With a rate of 0 nothing but the images differs from epoch to epoch."""
    rows = clean(2)
    seen = []

    def watching(found, images, **options):
        jax.debug.callback(lambda x: seen.append(np.array(x)), images, ordered=True)
        return model.apply(found, images, **options)

    model = cnn(tiny_spec, 4, lowering="patches")
    search = searcher(model._replace(apply=watching), Rules(epochs=2, batch=8))
    still = jax.tree.map(jnp.asarray, NCHyper(search_lr=np.float32(0)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nc_search, "AT_ONCE", 1)
        jax.jit(search)(KEY, variables, rows, still)
    jax.effects_barrier()
    assert len(seen) == 8  # two epochs of one batch and four classes
    assert all(np.array_equal(seen[0], x) for x in seen[1:4])  # the classes see the same batch
    m = q = np.tanh(1) / 2 + 0.5  # all ones at first: in pixels, whatever row or channel
    assert all(x.min() > m * q - 1e-5 and x.max() < m * q + 1 - m + 1e-5 for x in seen)
    assert not np.array_equal(np.sort(seen[0].sum((1, 2, 3))), np.sort(seen[4].sum((1, 2, 3))))
