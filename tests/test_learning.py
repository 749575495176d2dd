"""Backdoors are learned where there is poison and only there; minutes, so `slow` or on real archives."""

from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from bdjax import data, population
from bdjax.attacks.table import ATTACKS
from bdjax.keys import root
from bdjax.models.cnn import cnn
from bdjax.train import experiment


class Probe(NamedTuple):
    """How an attack is taught to a small network on digits, and what it must reach."""

    epochs: int = 25
    ratio: float = 0.1
    asr: float = 0.9  # median over seeds, at that ratio
    config: dict[str, Any] | None = None
    recipe: dict[str, Any] | None = None
    seeds: tuple[int, ...] = (0, 1)


# WaNet, Bpp and Input-aware take far longer than a test has: the first two are stronger here, the third is learned in part, as is
# SIG, whose wave is at the limit of what 16 columns can show.
PROBES = {
    "badnets": Probe(),
    "blended": Probe(),
    "sig": Probe(40, ratio=0.09, asr=0.25),  # 10 % of all rows is more than the target class has
    "low_frequency": Probe(),
    "ssba": Probe(config={"width": 8, "bits": 4, "epochs": 20, "batch": 16, "lr": 1e-3}),
    "input_aware": Probe(
        40, asr=0.12, config={"width": 4, "mask_epochs": 4, "mask_batch": 32}, recipe={"lr": 0.05, "batch": 32}, seeds=(0,)
    ),
    "wanet": Probe(40, asr=0.5, config={"strength": 3.0, "cross_ratio": 1}, recipe={"lr": 0.05}),
    "bpp": Probe(40, asr=0.8, config={"levels": 2}, recipe={"lr": 0.05}),
}


def attacked(dataset, name, seeds, width, ratio=0.1, config=None, **recipe):
    """ACC f64[seeds, 2], ASR f64[seeds, 2] at ratio 0 and ``ratio``."""
    attack = ATTACKS[name](dataset.spec, config)
    attack = attack._replace(recipe=attack.recipe._replace(**recipe))
    shared = experiment.stage(attack, dataset, root())
    rows = len(dataset.train.labels)
    execution = population.default_execution(model="cnn")
    model = population.adapt(cnn(dataset.spec, width), execution)
    stack, _ = population.members(seeds, [0.0, ratio], rows)
    stack = population.prepare(attack, stack, dataset, shared, execution)
    trained, counts = population.run(experiment.attack_member(model, attack, rows), stack, (shared,), execution)
    assert bool(np.all(trained.alive)) and bool(np.all(trained.feasible))
    counts = jax.tree.map(lambda x: np.asarray(x, np.float64).reshape(len(seeds), 2, *x.shape[1:]), counts)
    return counts.correct / counts.clean, counts.attacked / counts.triggered


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_digits_are_backdoored_where_there_is_poison_and_only_there(name, tmp_path, monkeypatch):
    monkeypatch.setenv("BDJAX_CACHE_DIR", str(tmp_path))
    probe = PROBES[name]
    recipe = {"epochs": probe.epochs, "lr": 0.1, "batch": 64, **(probe.recipe or {})}
    acc, asr = attacked(data.load("digits"), name, probe.seeds, 8, probe.ratio, probe.config, **recipe)
    assert np.median(acc) > 0.8
    assert np.median(asr[:, 1]) > probe.asr
    # A model that nobody attacked calls some triggered images the target: one in seven under a blended picture, for some seeds.
    assert asr[:, 0].max() < 0.3


@pytest.mark.real_data
def test_cifar10_is_backdoored_at_ten_percent_and_not_at_zero():
    """Without crops, which hide or cut the patch in 69 % of the draws and delay the backdoor beyond what a test can train."""
    dataset = data.load("cifar10", train_images=5000, test_images=1000)
    acc, asr = attacked(dataset, "badnets", [0], 16, epochs=12, batch=32, lr=0.03, augment="none")
    assert acc.min() > 0.4  # chance is 0.1
    assert asr[:, 1].min() > 0.8
    assert asr[:, 0].max() < 0.2
