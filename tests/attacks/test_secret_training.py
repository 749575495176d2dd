"""The training of SSBA's networks, a step at a time; whether they learn is a slow test of ``test_ssba.py``."""

import jax
import numpy as np

from bdjax.attacks.ssba import training
from bdjax.attacks.ssba.training import Settings, train

SETTINGS = Settings(width=2, bits=3, epochs=1, batch=16, lr=1e-3, ramp=None)


def test_a_step_is_adams_and_the_same_key_makes_the_same_networks(tiny_dataset):
    """The first step of Adam moves a parameter by the learning rate, towards where its loss falls."""
    images = tiny_dataset.train.images[:16]  # one step
    programs = training._programs(2, 3, 16, images.shape)
    begin = jax.tree.map(np.asarray, programs.start(jax.random.split(jax.random.key(1), 3)[0]).params)
    (one, measured), (again, _), (other, _) = (train(jax.random.key(k), images, SETTINGS) for k in (1, 1, 2))
    assert jax.tree.all(jax.tree.map(np.array_equal, one, again))
    assert not np.array_equal(one["encoder"]["c1"]["conv"]["kernel"], other["encoder"]["c1"]["conv"]["kernel"])
    moved = jax.tree.map(lambda before, after: np.abs(after - before), begin, one)
    assert all(distance.max() <= 1.01e-3 for distance in jax.tree.leaves(moved))
    np.testing.assert_allclose(moved["decoder"]["logits"]["bias"], 1e-3, rtol=1e-3)
    for name in ("c1", "c9", "out"):  # slopes are as small there as what Adam adds below its fraction
        assert (moved["encoder"][name]["conv"]["kernel"] > 0).mean() > 0.1, name
    assert float(measured.weight) == 0 and measured.ramp.tolist() == [0, 1] and 0 <= float(measured.bit_accuracy) <= 1
