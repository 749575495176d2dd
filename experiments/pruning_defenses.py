"""The eight pruning and patching defenses against BadNets and Blended on CIFAR-10 and BadNets on GTSRB.

Command:      bdjax sweep experiments/pruning_defenses.py --data-dir DIR --out pruning
              small: bdjax sweep experiments/pruning_defenses.py --scale small --data-dir DIR --out pruning
              small, GTSRB: … --dataset gtsrb --attack badnets --spc 10 --out pruning_gtsrb
Hardware:     grid: one GPU, not run yet; small: 2 CPU cores
Time:         small: an hour
Expectation:  defenses that score channels find the few that carry a backdoor of a wide network; a small network has no channels
              to spare, and loses accuracy with them.
"""

import dataclasses

from bdjax.sweep.grid import Grid

grid = Grid(
    dataset=("cifar10", "gtsrb"),
    model=("preactresnet18",),
    attack=("badnets", "blended"),
    defense=("anp", "clp", "rnp", "awn", "bnp", "npd", "pbe", "mm_bd"),
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
    defense_config={"anp": {"iterations": 200, "batch": 128}, "npd": {"epochs": 20}},
    hyper={
        "anp": {"lr": (0.2, 0.05)},  # the paper's rate, for a tenth of the survey's iterations, and a milder one
        "rnp": {"lr": (1e-2,), "recover_lr": (0.2, 0.02)},  # the paper's; at the milder rate masks do not all fall to 0 at once
        "awn": {"lr": (0.1,)},
        "bnp": {"u": (3.0, 1.5)},
        "clp": {"u": (3.0, 1.5)},
    },
)
