"""BadNets and Blended on CIFAR-10, repaired by FT, FP and CLP with 10 clean samples per class.

Command:      bdjax sweep experiments/cifar10_badnets.py --data-dir DIR --out results/cifar10_badnets [--scale small]
Hardware:     grid: one GPU; small: 2 CPU cores
Time:         to be measured
Expectation:  ratio 0.1: ASR at least 0.9 before any defense and ACC far above chance; ratio 0: ASR at the rate at which a model
              that was never attacked calls triggered images the target.
"""

import dataclasses

from bdjax.sweep.plan import Grid

grid = Grid(
    datasets=("cifar10",),
    models=("preactresnet18",),
    attacks=("badnets", "blended"),
    defenses=("ft", "fp", "clp"),
    poison_ratios=(0.0, 0.05, 0.1),
    spc=(10,),
    seeds=(0, 1, 2, 3),
)
small = dataclasses.replace(
    grid,
    models=("cnn",),
    width=16,
    poison_ratios=(0.0, 0.1),
    seeds=(0, 1),
    epochs=20,
    train_images=5000,
    test_images=1000,
    recipe={"lr": 0.1},
    defense_config={"ft": {"epochs": 20}, "fp": {"epochs": 20}},
)
