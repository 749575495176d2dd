"""An attack of which only triggered test images are known."""

import jax
import numpy as np
import pytest

from bdjax.attacks.stored import Config, stored
from bdjax.attacks.table import ATTACKS, IMAGES_ONLY
from bdjax.errors import UserError
from bdjax.train.experiment import stage
from bdjax.types import Triggered

KNOWN = Config("abc", 1)
IMAGES = Triggered(np.full((3, 8, 8, 3), 7, np.uint8), np.int32([0, 2, 3]), np.int32([1, 1, 1]), np.arange(3), 80)


def make(spec, config=None, **settings):
    return stored(KNOWN, lambda: IMAGES, "folder")(spec, config, **settings)


def test_networks_are_measured_on_the_images_it_brings(tiny_spec, tiny_dataset):
    data = stage(make(tiny_spec), tiny_dataset, jax.random.key(0))
    np.testing.assert_array_equal(data.test.triggered, IMAGES.images)
    np.testing.assert_array_equal(data.test.truth, IMAGES.labels)
    np.testing.assert_array_equal(data.test.attack_labels, IMAGES.attack_labels)
    assert data.triggered is None and len(data.test.images) == len(tiny_dataset.test.labels)


def test_it_may_be_given_what_a_record_says_of_it_and_nothing_else(tiny_spec):
    assert make(tiny_spec, KNOWN._asdict(), profile="reference").config == make(tiny_spec).config == KNOWN
    with pytest.raises(UserError, match="images of folder are others than those that the configuration names"):
        make(tiny_spec, {"images": "abd"})
    with pytest.raises(UserError, match="images of folder have their attack labels: a target has no effect"):
        make(tiny_spec, {"target": 2})
    with pytest.raises(UserError, match="unknown field of stored 'labels'"):
        make(tiny_spec, {"labels": "all_to_all"})


def test_it_neither_selects_nor_triggers_nor_relabels(tiny_spec):
    attack = make(tiny_spec)
    for function in (attack.select, attack.stamp, attack.relabel):
        with pytest.raises(UserError, match=r"only the stored test images are known.*name the attack with --attack"):
            function(None)


def test_only_an_import_folder_brings_it(tiny_spec):
    assert not ATTACKS.keys() & IMAGES_ONLY.keys()
    assert all(make(tiny_spec).triggered is None for make in ATTACKS.values())
