"""The eight tuning defenses against BadNets and Blended on CIFAR-10 and BadNets on GTSRB, with few and with more clean samples.

Command:      bdjax sweep experiments/tuning_defenses.py --data-dir DIR --out tuning
              small: bdjax sweep experiments/tuning_defenses.py --scale small --data-dir DIR --out tuning
              small, GTSRB: … --dataset gtsrb --attack badnets --spc 10 --out tuning_gtsrb
Hardware:     grid: one GPU, not run yet; small: 2 CPU cores (experiments/results/tuning_defenses_cpu.md)
Time:         small: 45 minutes, GTSRB 25
Expectation:  with 100 per class every defense lowers BadNets' ASR (NC at a lower threshold: at the published one it flags no
              class of so small a network); with 10 per class far less.
"""

import dataclasses

from bdjax.sweep.grid import Grid

grid = Grid(
    dataset=("cifar10", "gtsrb"),
    model=("preactresnet18",),
    attack=("badnets", "blended"),
    defense=("ft", "fp", "nad", "nc", "ft_sam", "fst", "i_bau", "sau"),
    poison_ratio=(0.0, 0.1),
    spc=(10, 100),
    seeds=(0, 1, 2),
)
small = dataclasses.replace(
    grid,
    dataset=("cifar10",),
    model=("cnn",),
    width=16,
    train_images=5000,
    test_images=1000,
    epochs=15,
    batch=32,
    recipe={"lr": 0.03, "augment": "none"},  # crops hide or cut the corner patch: a small network needs far longer with them
    defense_config={
        "ft": {"epochs": 50},
        "fp": {"epochs": 50},
        "ft_sam": {"epochs": 30},
        "nc": {"search_epochs": 30, "epochs": 50},
        "fst": {"epochs": 50},  # longer than published: four steps an epoch, where a new head of this network needs more
        "sau": {"epochs": 10},
    },
    # A tenth of the steps at ten times the rate; FST's weight for a head of 64 inputs; NC's mitigation where nothing is flagged.
    hyper={
        "i_bau": {"lr": (1e-4, 1e-3)},
        "sau": {"lr": (1e-3,)},
        "fst": {"alpha": (0.2, 0.02)},
        "nc": {"outlier": (0.9,)},
    },
)
