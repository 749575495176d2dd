"""A triggered copy of the data, computed once and gathered, equals a trigger stamped on every batch: bit for bit.

`experiment.stage` computes the copies (`Data.stamped`), `training.trainer` gathers from them where the attack's trigger is shared
and acts before the augmentation, and stamps in the batch where it is given none.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import experiment
from bdjax.attacks import ATTACKS
from bdjax.data.augment import to_float
from bdjax.evaluation import stamp_images
from bdjax.experiment import stage
from bdjax.keys import root
from bdjax.models import cnn
from bdjax.population import members
from bdjax.training import trainer
from bdjax.types import ArchSpec, Loop, Model, Output
from tests.toy import one

SHARED = ("badnets", "blended")


def attack_on(name, dataset, **recipe):
    attack = ATTACKS[name](dataset.spec)
    return attack._replace(recipe=attack.recipe._replace(**{"epochs": 2, "batch": 40, **recipe}))


@pytest.fixture
def dataset(tiny_dataset, monkeypatch):
    """Flipped and cropped while training, and staged in several chunks, the last one shorter."""
    monkeypatch.setattr(experiment, "CHUNK", 50)
    return tiny_dataset._replace(spec=tiny_dataset.spec._replace(flip=True))


@pytest.mark.parametrize("name", SHARED)
def test_gathering_copies_equals_stamping_the_gathered_rows(name, dataset):
    attack = attack_on(name, dataset)
    data = stage(attack, dataset, root())
    rows = jax.random.permutation(jax.random.key(3), 160)[:64]
    gathered = data.stamped[rows]
    assert gathered.dtype == jnp.uint8 and bool(jnp.any(gathered != data.train.images[rows]))
    trigger, key = attack.init(jax.random.key(1), None), jax.random.key(2)

    def live(images):
        return attack.stamp(trigger, key, to_float(images))

    for run in (live, jax.jit(live)):
        np.testing.assert_array_equal(run(data.train.images[rows]), to_float(gathered))
    np.testing.assert_array_equal(stamp_images(attack, trigger, key, data.train.images[rows]), gathered)
    np.testing.assert_array_equal(data.test.triggered[7], stamp_images(attack, trigger, key, data.test.images[7:8])[0])


def witness(spec, batch):
    """A "network" that learns one number and returns the images it was trained on as its statistics."""

    def init(key):
        return {"params": {"w": jnp.float32(0)}, "batch_stats": {"images": jnp.zeros((batch, *spec.image_shape), jnp.float32)}}

    def apply(variables, images, *, train=False, key=None):
        logits = variables["params"]["w"] * jnp.ones((images.shape[0], 1)) * jnp.arange(4.0)[None]
        return Output(logits, {**variables, "batch_stats": {"images": images}}, {})

    return Model(init, apply, lambda **fields: None, spec, ArchSpec((), (), (), (), (), ""), "witness", 1, Loop())


@pytest.mark.parametrize("name", SHARED)
def test_the_network_sees_the_same_bits(name, dataset):
    attack = attack_on(name, dataset)
    data = stage(attack, dataset, root())
    run = trainer(witness(dataset.spec, 40), attack, 160)

    def seen(member, stamped):
        return run(member, data.train, stamped, None).variables["batch_stats"]["images"]

    ready, live = (jax.jit(seen)(one(ratio=0.5), stamped) for stamped in (data.stamped, None))
    clean = jax.jit(seen)(one(ratio=0.0), None)
    assert bool(jnp.any(ready != clean)) and bool(jnp.any(clean > 0))  # some rows are poisoned, some are not
    assert 5 < int(jnp.sum(jnp.any(ready != clean, (1, 2, 3)))) < 35
    np.testing.assert_array_equal(ready, live)
    stack = members([0, 1], [0.5], 160)[0]
    both = [jax.jit(jax.vmap(seen, (0, None)))(stack, stamped) for stamped in (data.stamped, None)]
    np.testing.assert_array_equal(*both)
    np.testing.assert_array_equal(both[0][0], ready)


@pytest.mark.parametrize("name", SHARED)
def test_training_ends_alike(name, dataset):
    attack = attack_on(name, dataset)
    data = stage(attack, dataset, root())
    run = trainer(cnn(dataset.spec, 2), attack, 160)
    ready, live = (jax.jit(lambda m, s: run(m, data.train, s, None))(one(ratio=0.5), s) for s in (data.stamped, None))
    assert float(ready.loss[1]) < float(ready.loss[0])
    for a, b in zip(jax.tree.leaves((ready.variables, ready.loss)), jax.tree.leaves((live.variables, live.loss)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)  # the same batches in another program: only float order is free


def test_a_trigger_after_the_augmentation_never_takes_the_copies(dataset):
    """Copies are stamped before a crop: a recipe that crops first must stamp the cropped images."""
    attack = attack_on("badnets", dataset, augment="before")
    data = stage(attack, dataset, root())
    run = trainer(witness(dataset.spec, 40), attack, 160)
    wrong = jnp.full_like(data.stamped, 123)
    images = [
        jax.jit(lambda s: run(one(ratio=1.0), data.train, s, None).variables["batch_stats"]["images"])(s) for s in (wrong, None)
    ]
    np.testing.assert_array_equal(*images)
    assert bool(jnp.all(images[0][:, -3:, -3:] == 1))  # no crop cut the patch
