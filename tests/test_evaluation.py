"""Counts against a plain loop, padded last batches, per-member triggers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.evaluation import EvalSet, evaluator, finite, stamp_images
from bdjax.models import cnn
from bdjax.types import Attack, Loop, Recipe


def stamp(trigger, key, images):
    return images.at[:, :2, :2].set(trigger["level"])


ATTACK = Attack(lambda k, a: {}, lambda *a: None, stamp, lambda y: jnp.zeros_like(y), Recipe())


@pytest.mark.parametrize("loop", [Loop("scan"), Loop("dispatch")])
@pytest.mark.parametrize("batch", [7, 80, 512])
def test_counts_equal_a_plain_loop(tiny_dataset, loop, batch):
    model = cnn(tiny_dataset.spec, 2, loop=loop)
    variables = model.init(jax.random.key(3))
    images, labels = jnp.asarray(tiny_dataset.test.images), jnp.asarray(tiny_dataset.test.labels)
    trigger = {"level": jnp.float32(1)}
    triggered = stamp_images(ATTACK, trigger, jax.random.key(0), images)
    assert triggered.dtype == jnp.uint8 and int(triggered[0, 0, 0, 0]) == 255
    np.testing.assert_array_equal(triggered[:, 2:], images[:, 2:])
    clean = np.asarray(jnp.argmax(model.apply(variables, jnp.float32(1 / 255) * images.astype(jnp.float32)).logits, -1))
    bad = np.asarray(jnp.argmax(model.apply(variables, jnp.float32(1 / 255) * triggered.astype(jnp.float32)).logits, -1))
    y = np.asarray(labels)
    want = [80, (clean == y).sum(), (y != 0).sum(), (bad[y != 0] == 0).sum(), (bad == y)[y != 0].sum()]
    goals = ATTACK.relabel(labels)
    got = evaluator(model, None, batch)(variables, EvalSet(images, labels, triggered, goals))
    assert [int(c) for c in got] == [int(w) for w in want]
    own = evaluator(model, ATTACK, batch)(variables, EvalSet(images, labels, None, goals), trigger, jax.random.key(0))
    assert [int(c) for c in own] == [int(w) for w in want]


@pytest.mark.parametrize("rows", [5, 80, 133])
def test_triggered_rows_of_their_own_may_be_fewer_or_more_than_the_test_rows(tiny_dataset, rows):
    model = cnn(tiny_dataset.spec, 2)
    variables = model.init(jax.random.key(3))
    images, labels = jnp.asarray(tiny_dataset.test.images), jnp.asarray(tiny_dataset.test.labels)
    generator = np.random.default_rng(0)
    triggered = jnp.asarray(generator.integers(0, 256, (rows, *tiny_dataset.spec.image_shape), np.uint8))
    truth, goals = (jnp.asarray(generator.integers(0, 4, rows), jnp.int32) for _ in range(2))

    def predicted(x):
        return np.asarray(jnp.argmax(model.apply(variables, jnp.float32(1 / 255) * x.astype(jnp.float32)).logits, -1))

    counted = np.asarray(goals != truth)
    bad = predicted(triggered)
    want = [80, (predicted(images) == labels).sum(), counted.sum(), (bad == goals)[counted].sum(), (bad == truth)[counted].sum()]
    got = evaluator(model, None, 32)(variables, EvalSet(images, labels, triggered, goals, truth))
    assert [int(c) for c in got] == [int(w) for w in want]
    assert 0 < want[2] < rows or rows == 5


def test_finite_looks_at_every_floating_leaf():
    tree = {"a": jnp.ones(3), "n": jnp.arange(3)}
    assert bool(finite(tree))
    for bad in (jnp.nan, jnp.inf):
        assert not bool(finite({**tree, "b": jnp.asarray([0.0, bad])}))
