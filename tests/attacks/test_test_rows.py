"""How many triggered test images count: those that the attack moves to another label."""

import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.attacks.table import ATTACKS
from bdjax.data import spec

# Test images per data set and those of class 0 (CIFAR-10 and GTSRB as published; Tiny-ImageNet's validation split).
SIZES = {"cifar10": (10_000, 1_000), "gtsrb": (12_630, 60), "tiny_imagenet": (10_000, 50)}


@pytest.mark.parametrize(("dataset", "counted"), [("cifar10", 9_000), ("gtsrb", 12_570), ("tiny_imagenet", 9_950)])
@pytest.mark.parametrize("name", ATTACKS)
def test_all_to_one_leaves_the_target_class_out(name, dataset, counted):
    total, target = SIZES[dataset]
    labels = jnp.asarray(np.r_[np.zeros(target, np.int32), 1 + np.arange(total - target, dtype=np.int32) % 9])
    goals = ATTACKS[name](spec(dataset)).relabel(labels)
    assert int(jnp.sum(goals != labels)) == counted and not np.any(goals)


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "sig"])
def test_all_to_all_counts_every_test_image(name):
    labels = jnp.arange(100, dtype=jnp.int32) % 10
    goals = ATTACKS[name](spec("cifar10"), {"labels": "all_to_all"}).relabel(labels)
    np.testing.assert_array_equal(goals, (np.asarray(labels) + 1) % 10)


def test_a_clean_label_attack_has_one_target():
    assert not hasattr(ATTACKS["sig"](spec("cifar10")).config, "labels")
