"""Backdoors are learned where there is poison and only there; minutes, so `slow` or on real archives."""

import jax
import numpy as np
import pytest

from bdjax import data, experiment, population
from bdjax.attacks import ATTACKS
from bdjax.keys import root
from bdjax.models import cnn


def attacked(dataset, name, seeds, width, **recipe):
    """ACC f64[seeds, 2], ASR f64[seeds, 2] at ratios 0 and 0.1."""
    attack = ATTACKS[name](dataset.spec)
    attack = attack._replace(recipe=attack.recipe._replace(**recipe))
    shared = experiment.stage(attack, dataset, root())
    rows = len(dataset.train.labels)
    execution = population.default_execution(model="cnn")
    model = population.adapt(cnn(dataset.spec, width), execution)
    stack, _ = population.members(seeds, [0.0, 0.1], rows)
    trained, counts = population.run(experiment.attack_member(model, attack, rows), stack, (shared,), execution)
    assert bool(np.all(trained.alive)) and bool(np.all(trained.feasible))
    counts = jax.tree.map(lambda x: np.asarray(x, np.float64).reshape(len(seeds), 2), counts)
    return counts.correct / counts.clean, counts.attacked / counts.triggered


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_digits_are_backdoored_at_ten_percent_and_not_at_zero(name):
    acc, asr = attacked(data.load("digits"), name, [0, 1, 2], 8, epochs=25, lr=0.1)
    assert acc.min() > 0.9
    assert asr[:, 1].min() > 0.9
    # A model that nobody attacked calls some triggered images the target: one in seven under a blended picture, for some seeds.
    assert asr[:, 0].max() < 0.3 and np.median(asr[:, 0]) < 0.1


@pytest.mark.real_data
def test_cifar10_is_backdoored_at_ten_percent_and_not_at_zero():
    """Without crops, which hide or cut the patch in 69 % of the draws and delay the backdoor beyond what a test can train."""
    dataset = data.load("cifar10", train_images=5000, test_images=1000)
    acc, asr = attacked(dataset, "badnets", [0, 1], 16, epochs=12, batch=32, lr=0.03, augment="none")
    assert acc.min() > 0.4  # chance is 0.1
    assert asr[:, 1].min() > 0.8
    assert asr[:, 0].max() < 0.2
