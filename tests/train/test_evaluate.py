"""Counts against a plain loop, padded last batches, per-member triggers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.models.cnn import cnn
from bdjax.train.evaluate import EvalSet, apply_trigger, evaluator, finite
from bdjax.types import Attack, Loop, Recipe


def stamp(trigger, key, images):
    return images.at[:, :2, :2].set(trigger["level"])


ATTACK = Attack(lambda k, a: {}, lambda *a: None, stamp, lambda y: jnp.zeros_like(y), Recipe())


@pytest.fixture(scope="module")
def model(tiny_dataset):
    return cnn(tiny_dataset.spec, 2)


@pytest.fixture(scope="module")
def variables(model):
    return jax.jit(model.init)(jax.random.key(3))


@pytest.fixture(scope="module")
def predicted(model, variables):
    """Classes of u8 images, in one pass."""
    run = jax.jit(lambda x: jnp.argmax(model.apply(variables, jnp.float32(1 / 255) * x.astype(jnp.float32)).logits, -1))
    return lambda images: np.asarray(run(images))


def counted(run, loop):
    """A dispatched loop runs un-jitted around its compiled steps."""
    return run if loop.kind == "dispatch" else jax.jit(run)


def flat(counts):
    """All counts in their order, those by class last, one after the other."""
    return np.concatenate([np.ravel(count) for count in counts]).tolist()


def by_class(labels, clean, truth, goals, bad, classes):
    """The counts of every true class, by a plain loop."""
    hit = goals != truth
    each = [(labels == k, (labels == k) & (clean == k), hit & (truth == k)) for k in range(classes)]
    rows = [[a.sum(), b.sum(), c.sum(), (bad == goals)[c].sum(), (bad == truth)[c].sum()] for a, b, c in each]
    return np.transpose(rows).ravel().tolist()


SLOW = pytest.mark.slow
LOOPS = [(Loop(kind), batch) for kind in ("scan", "dispatch") for batch in (7, 80, 512)]
LOOPS = [pytest.param(*case, marks=[SLOW] * (case[0].kind == "dispatch" and case[1] > 7)) for case in LOOPS]


@pytest.mark.parametrize(("loop", "batch"), LOOPS)
def test_counts_equal_a_plain_loop(tiny_dataset, model, variables, predicted, loop, batch):
    images, y = tiny_dataset.test.images, tiny_dataset.test.labels
    trigger = {"level": np.float32(1)}
    triggered = np.asarray(jax.jit(lambda x: apply_trigger(ATTACK, trigger, jax.random.key(0), x))(images))
    assert triggered.dtype == np.uint8 and triggered[0, 0, 0, 0] == 255
    np.testing.assert_array_equal(triggered[:, 2:], images[:, 2:])
    clean, bad = predicted(images), predicted(triggered)
    want = [80, (clean == y).sum(), (y != 0).sum(), (bad[y != 0] == 0).sum(), (bad == y)[y != 0].sum()]
    classes = tiny_dataset.spec.classes
    want += np.bincount(clean, minlength=classes).tolist() + by_class(y, clean, y, np.zeros_like(y), bad, classes)
    model, goals = model.rebuild(loop=loop), np.zeros_like(y)
    got = counted(evaluator(model, None, batch), loop)(variables, jax.device_put(EvalSet(images, y, triggered, goals)))
    assert flat(got) == [int(w) for w in want]
    stamped = jax.device_put(EvalSet(images, y, None, goals))
    own = counted(evaluator(model, ATTACK, batch), loop)(variables, stamped, jax.device_put(trigger), jax.random.key(0))
    assert flat(own) == [int(w) for w in want]


@pytest.mark.parametrize("rows", [5, 80, 133])
def test_triggered_rows_of_their_own_may_be_fewer_or_more_than_the_test_rows(tiny_dataset, model, variables, predicted, rows):
    images, labels = tiny_dataset.test.images, tiny_dataset.test.labels
    generator = np.random.default_rng(0)
    triggered = generator.integers(0, 256, (rows, *tiny_dataset.spec.image_shape), np.uint8)
    truth, goals = (generator.integers(0, 4, rows).astype(np.int32) for _ in range(2))
    hit, bad = goals != truth, predicted(triggered)
    clean = predicted(images)
    want = [80, (clean == labels).sum(), hit.sum(), (bad == goals)[hit].sum(), (bad == truth)[hit].sum()]
    got = jax.jit(evaluator(model, None, 32))(variables, EvalSet(images, labels, triggered, goals, truth))
    want += [*np.bincount(clean, minlength=4), *by_class(labels, clean, truth, goals, bad, 4)]
    assert flat(got) == [int(w) for w in want]
    for name, each in got.by_class._asdict().items():
        assert each.sum() == getattr(got, name)
    assert 0 < want[2] < rows or rows == 5


def test_finite_looks_at_every_floating_leaf():
    tree = {"a": np.ones(3, np.float32), "n": np.arange(3)}
    look = jax.jit(finite)
    assert bool(look(tree))
    for bad in (np.nan, np.inf):
        assert not bool(look({**tree, "b": np.float32([0, bad])}))
