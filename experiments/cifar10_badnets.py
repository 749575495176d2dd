"""BadNets and Blended on CIFAR-10, defended by FT, FP and CLP with 10 and with 100 clean samples per class.

Command:      bdjax sweep experiments/cifar10_badnets.py --data-dir DIR --out results/cifar10_badnets [--scale small]
Hardware:     grid: one GPU, not run yet; small: 2 CPU cores
Time:         small: under 10 minutes
Expectation:  small, ratio 0.1: ASR 0.93, ACC 0.52 before any defense (3 seeds); ratio 0: ASR 0.05, the rate at which a model
              that was never attacked calls triggered images the target. FP and CLP lower the ASR more than FT does.
"""

import dataclasses

from bdjax.sweep.grid import Grid

grid = Grid(
    dataset=("cifar10",),
    model=("preactresnet18",),
    attack=("badnets", "blended"),
    defense=("ft", "fp", "clp"),
    poison_ratio=(0.0, 0.05, 0.1),
    spc=(10, 100),
    seeds=(0, 1, 2, 3),
)
small = dataclasses.replace(
    grid,
    model=("cnn",),
    attack=("badnets",),
    width=16,
    poison_ratio=(0.0, 0.1),
    seeds=(0, 1, 2),
    epochs=15,
    batch=32,
    train_images=5000,
    recipe={"lr": 0.03, "augment": "none"},  # crops hide or cut the corner patch: a small network needs far longer with them
    defense_config={"ft": {"epochs": 20}, "fp": {"epochs": 20}},
)
