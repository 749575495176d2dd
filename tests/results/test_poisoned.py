"""What an attack makes of a data set is what training and measuring see, whichever way the attack comes by its trigger."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import population
from bdjax.attacks import ATTACKS
from bdjax.data.augment import to_float, to_uint8
from bdjax.errors import UserError
from bdjax.keys import Stream, member_key, root, stream
from bdjax.models import by_name
from bdjax.results.poisoned import require_fixed, training_set, triggered_set
from bdjax.results.triggers import unlearned
from bdjax.train.experiment import attack_member, stage
from bdjax.types import Dataset, Recipe, Split

FIXED = ("badnets", "blended", "sig", "low_frequency")
ROOT = 5


def made(name, spec, **recipe):
    attack = ATTACKS[name](spec, {"target": 1})
    return attack._replace(recipe=attack.recipe._replace(**recipe))


@pytest.fixture
def coloured(tiny_spec):
    """BadNets with a corner in a member's own colour, which is stamped in every batch; ``draws``: in another one each time."""

    def make(draws=False):
        def stamp(trigger, key, images):
            colour = jax.random.uniform(key, (3,)) if draws else trigger["colour"]
            return images.at[:, -3:, -3:].set(to_float(to_uint8(colour)))

        recipe = Recipe(shared_trigger=False, epochs=1, batch=40)
        return made("badnets", tiny_spec)._replace(
            init=lambda key, assets: {"colour": jax.random.uniform(key, (3,))}, stamp=stamp, recipe=recipe
        )

    return make


@pytest.mark.parametrize("name", FIXED)
def test_rows_are_selected_and_triggered_as_in_a_run(tiny_dataset, name):
    """Against the hooks themselves: the member's key selects, the trigger that all share is put on."""
    attack, (images, labels) = made(name, tiny_dataset.spec), tiny_dataset.train
    found = training_set(attack, name, tiny_dataset, stage(attack, tiny_dataset, root(ROOT)), seed=3, ratio=0.1, root_number=ROOT)
    chosen, _ = attack.select(stream(member_key(root(ROOT), 3), Stream.SELECT), jnp.asarray(labels), jnp.int32(16))
    np.testing.assert_array_equal(found.poisoned, chosen)
    assert found.poisoned.sum() == 16 and found.images.dtype == np.uint8
    triggered = np.round(255 * np.asarray(attack.stamp({}, root(ROOT), jnp.asarray(images / np.float32(255))))).astype(np.uint8)
    np.testing.assert_array_equal(found.images, np.where(found.poisoned[:, None, None, None], triggered, images))
    assert (found.images[found.poisoned] != images[found.poisoned]).any((1, 2, 3)).all()
    np.testing.assert_array_equal(found.labels, np.where(found.poisoned, 1, labels))
    np.testing.assert_array_equal(found.true_labels, labels)
    assert (labels[found.poisoned] == 1).all() == (name == "sig")  # which poisons the target class alone


@pytest.mark.parametrize("name", [*FIXED, "coloured"])
def test_training_on_the_set_gives_the_network_of_the_attack(tiny_dataset, coloured, name):
    """With crops and flips: clean training on what was exported ends, bit for bit, where the attack on the data set ends."""
    spec = tiny_dataset.spec
    attack = coloured() if name == "coloured" else made(name, spec, epochs=1, batch=40)
    data, count = stage(attack, tiny_dataset, root(ROOT)), len(tiny_dataset.train.labels)
    found = training_set(attack, name, tiny_dataset, data, seed=3, ratio=0.1, root_number=ROOT)
    clean = stage(attack, Dataset(spec, Split(found.images, found.labels), tiny_dataset.test, ""), root(ROOT))
    train = jax.jit(attack_member(by_name("cnn", spec, width=4), attack, count))
    networks = []
    for ratio, rows in ((0.1, data), (0.0, clean), (0.0, data)):
        member = population.take(population.members([3], [ratio], count, root_number=ROOT)[0], 0)
        networks.append(jax.tree.leaves(train(member, rows)[0].variables))
    attacked, again, never = networks
    assert all((a == b).all() for a, b in zip(attacked, again, strict=True))
    assert any((a != b).any() for a, b in zip(attacked, never, strict=True))


@pytest.mark.parametrize("name", ["badnets", "wanet", "bpp"])
def test_triggered_test_images_are_those_that_are_measured(tiny_dataset, name):
    attack = made(name, tiny_dataset.spec)
    data = stage(attack, tiny_dataset, root(ROOT))
    trigger = None if data.test.triggered is not None else unlearned(attack, tiny_dataset, 3, ROOT)
    found = triggered_set(attack, tiny_dataset, data, trigger)
    images, labels = tiny_dataset.test
    np.testing.assert_array_equal(found.index, np.flatnonzero(labels != 1))  # the target class does not count
    assert found.rows == len(labels) and (found.attack_labels == 1).all()
    np.testing.assert_array_equal(found.labels, labels[found.index])
    key = root(ROOT) if trigger is None else stream(member_key(root(ROOT), 3), Stream.TRIGGER)
    value = attack.init(stream(root(ROOT), Stream.TRIGGER) if trigger is None else key, None)
    want = attack.stamp(value, key, jnp.asarray(images[found.index] / np.float32(255)))
    np.testing.assert_array_equal(found.images, np.round(255 * np.asarray(want)).astype(np.uint8))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("wanet", "wanet poisons inside the batch: which images carry its trigger is drawn anew in every step"),
        ("bpp", "bpp poisons inside the batch"),
        ("input_aware", "input_aware poisons inside the batch"),
    ],
)
def test_an_attack_inside_the_batch_has_no_set(tiny_spec, name, why):
    with pytest.raises(UserError, match=f"^{why}.*, so there is no poisoned training set to export; --test-only exports"):
        require_fixed(made(name, tiny_spec), name)


def test_a_trigger_that_changes_meanwhile_has_no_set(tiny_dataset, tiny_spec, coloured):
    fixed = made("badnets", tiny_spec)
    require_fixed(fixed, "badnets")
    with pytest.raises(UserError, match=r"^mine learns its trigger while the network is trained, so"):
        require_fixed(fixed._replace(update=lambda trigger, gradient: trigger), "mine")
    with pytest.raises(
        UserError, match=r"^the trigger of badnets comes after the crops and flips of every step \(recipe.augment"
    ):
        require_fixed(made("badnets", tiny_spec, augment="before"), "badnets")
    drawn = coloured(draws=True)
    with pytest.raises(UserError, match=r"^mine draws a part of its trigger anew in every step, so"):
        training_set(drawn, "mine", tiny_dataset, stage(drawn, tiny_dataset, root(0)), seed=0, ratio=0.1)


@pytest.mark.parametrize(
    ("name", "ratio", "why"),
    [("sig", 0.5, "sig cannot poison 80 rows"), ("badnets", 0.001, "badnets poisons no row at ratio 0.001")],
)
def test_a_ratio_that_cannot_be_carried_out_is_refused(tiny_dataset, name, ratio, why):
    attack = made(name, tiny_dataset.spec)
    with pytest.raises(UserError, match=why):
        training_set(attack, name, tiny_dataset, stage(attack, tiny_dataset, root(0)), seed=0, ratio=ratio)


def test_at_ratio_0_nothing_is_poisoned(tiny_dataset):
    attack = made("badnets", tiny_dataset.spec)
    found = training_set(attack, "badnets", tiny_dataset, stage(attack, tiny_dataset, root(0)), seed=0, ratio=0.0)
    assert not found.poisoned.any()
    np.testing.assert_array_equal(found.images, tiny_dataset.train.images)
    np.testing.assert_array_equal(found.labels, tiny_dataset.train.labels)
