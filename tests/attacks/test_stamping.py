"""A triggered copy of the data, computed once and gathered, equals a trigger stamped on every batch: bit for bit.

`experiment.stage` computes the copies (`Data.triggered`), `trainer` gathers from them where the attack's trigger is shared
and acts before the augmentation, and stamps in the batch where it is given none.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.attacks.table import ATTACKS
from bdjax.data.augment import to_float
from bdjax.keys import root
from bdjax.models.cnn import cnn
from bdjax.population import members
from bdjax.train import experiment
from bdjax.train.evaluate import apply_trigger
from bdjax.train.experiment import stage
from bdjax.train.trainer import trainer
from bdjax.types import ArchSpec, Loop, Model, Output
from tests.later import some_later
from tests.toy import one

SHARED = ("badnets", "blended")


def attack_on(name, dataset, **recipe):
    attack = ATTACKS[name](dataset.spec)
    return attack._replace(recipe=attack.recipe._replace(**{"epochs": 2, "batch": 40, **recipe}))


@pytest.fixture(scope="module")
def dataset(tiny_dataset):
    """Flipped and cropped while training."""
    return tiny_dataset._replace(spec=tiny_dataset.spec._replace(flip=True))


@pytest.fixture(scope="module")
def staged(dataset):
    """``f(attack name) -> data``, staged in several chunks, the last one shorter."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(experiment, "CHUNK", 50)
        yield functools.cache(lambda name: stage(attack_on(name, dataset), dataset, root()))


@pytest.mark.parametrize("name", SHARED)
def test_gathering_copies_equals_stamping_the_gathered_rows(name, dataset, staged):
    attack, data = attack_on(name, dataset), staged(name)
    rows = np.random.default_rng(3).permutation(160)[:64]
    images, gathered = np.asarray(data.train.images)[rows], np.asarray(data.triggered)[rows]
    assert gathered.dtype == np.uint8 and np.any(gathered != images)
    trigger, key = jax.jit(lambda key: attack.init(key, None))(jax.random.key(1)), jax.random.key(2)

    def live(images):
        return attack.stamp(trigger, key, to_float(images))

    for run in (live, jax.jit(live)):
        np.testing.assert_array_equal(run(jax.device_put(images)), to_float(jax.device_put(gathered)))
    stamp = jax.jit(lambda images: apply_trigger(attack, trigger, key, images))
    np.testing.assert_array_equal(stamp(images), gathered)
    np.testing.assert_array_equal(np.asarray(data.test.triggered)[7], stamp(np.asarray(data.test.images)[7:8])[0])


def witness(spec, batch):
    """A "network" that learns one number and returns the images it was trained on as its statistics."""

    def init(key):
        return {"params": {"w": jnp.float32(0)}, "batch_stats": {"images": jnp.zeros((batch, *spec.image_shape), jnp.float32)}}

    def apply(variables, images, *, train=False, key=None):
        logits = variables["params"]["w"] * jnp.ones((images.shape[0], 1)) * jnp.arange(4.0)[None]
        return Output(logits, {**variables, "batch_stats": {"images": images}}, {})

    return Model(init, apply, lambda **fields: None, spec, ArchSpec((), (), (), (), (), ""), "witness", 1, Loop())


@pytest.mark.parametrize("name", some_later(SHARED, SHARED[1:]))
def test_the_network_sees_the_same_bits(name, dataset, staged):
    data = staged(name)
    run = trainer(witness(dataset.spec, 40), attack_on(name, dataset), 160)

    @jax.jit
    def alone(member, stamped):
        return run(member, data.train, stamped, None).variables["batch_stats"]["images"]

    ready, live = (np.asarray(alone(one(ratio=0.5), stamped)) for stamped in (data.triggered, None))
    clean = np.asarray(alone(one(ratio=0.0), None))
    assert np.any(ready != clean) and np.any(clean > 0)  # some rows are poisoned, some are not
    assert 5 < np.sum(np.any(ready != clean, (1, 2, 3))) < 35
    np.testing.assert_array_equal(ready, live)
    stack = members([0, 1], [0.5], 160)[0]
    both = [np.asarray(jax.jit(jax.vmap(alone, (0, None)))(stack, stamped)) for stamped in (data.triggered, None)]
    np.testing.assert_array_equal(*both)
    np.testing.assert_array_equal(both[0][0], ready)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED)
def test_training_ends_alike(name, dataset, staged):
    data = staged(name)
    run = trainer(cnn(dataset.spec, 2), attack_on(name, dataset), 160)
    program = jax.jit(lambda m, s: run(m, data.train, s, None))
    ready, live = (jax.device_get(program(one(ratio=0.5), s)) for s in (data.triggered, None))
    assert ready.loss[1] < ready.loss[0]
    for a, b in zip(jax.tree.leaves((ready.variables, ready.loss)), jax.tree.leaves((live.variables, live.loss)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)  # the same batches in another program: only float order is free


def test_a_trigger_after_the_augmentation_never_takes_the_copies(dataset, staged):
    """Copies are stamped before a crop: a recipe that crops first must stamp the cropped images."""
    attack, data = attack_on("badnets", dataset, augment="before"), staged("badnets")
    run = trainer(witness(dataset.spec, 40), attack, 160)
    program = jax.jit(lambda s: run(one(ratio=1.0), data.train, s, None).variables["batch_stats"]["images"])
    images = [np.asarray(program(s)) for s in (np.full(data.triggered.shape, 123, np.uint8), None)]
    np.testing.assert_array_equal(*images)
    assert np.all(images[0][:, -3:, -3:] == 1)  # no crop cut the patch
