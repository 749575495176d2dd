"""Grad-Prune beside the defenses of its paper, with the true trigger and with triggers made without knowing it.

Command:      bdjax sweep experiments/grad_prune.py --data-dir DIR --out grad_prune
              small: bdjax sweep experiments/grad_prune.py --scale small --data-dir DIR --out grad_prune
Hardware:     grid: one GPU; small: 2 CPU cores; neither run yet
Time:         unknown; one attack at a time with --only attack=NAME, fewer cells with --limit-cells
Expectation:  with the true trigger Grad-Prune removes each backdoor at a small cost of accuracy, also with few samples per class;
              with a synthesised trigger as far as that trigger resembles the true one.
"""

import dataclasses

from bdjax.sweep.plan import Grid

VARIANTS = "experiments/grad_prune_variants.py"  # relative, so that a cell has one name on every machine: run from the repository
WITHOUT_TRIGGER = (f"{VARIANTS}:universal", f"{VARIANTS}:sample", f"{VARIANTS}:generator")
CUTS = {
    "ft": {"epochs": 50},
    "fp": {"epochs": 50},
    "ft_sam": {"epochs": 30},
    "nc": {"search_epochs": 30, "epochs": 50},
    "anp": {"iterations": 200, "batch": 128},
    "grad_prune": {"rounds": 60, "epochs": 60},
    f"{VARIANTS}:universal": {"rounds": 60, "epochs": 60, "search_epochs": 30},
    f"{VARIANTS}:sample": {"rounds": 60, "epochs": 60},
    f"{VARIANTS}:generator": {"rounds": 60, "epochs": 60},
}

grid = Grid(
    datasets=("cifar10", "gtsrb"),
    models=("preactresnet18",),
    attacks=("badnets", "blended", "low_frequency", "bpp"),
    defenses=("grad_prune", *WITHOUT_TRIGGER, "ft", "fp", "nad", "nc", "anp", "i_bau", "ft_sam", "clp"),
    poison_ratios=(0.0, 0.1),
    spc=(2, 10, 100),
    seeds=(0, 1, 2),
)
small = dataclasses.replace(
    grid,
    datasets=("cifar10",),
    models=("cnn",),
    attacks=("badnets", "blended"),
    poison_ratios=(0.1,),
    width=16,
    train_images=5000,
    test_images=1000,
    epochs=15,
    batch=32,
    recipe={"lr": 0.03, "augment": "none"},  # crops hide or cut the corner patch: a small network needs far longer with them
    defense_config=CUTS,
    hyper={"i_bau": {"lr": (1e-3,)}, "anp": {"lr": (0.05,)}, "nc": {"outlier": (0.9,)}},
)
