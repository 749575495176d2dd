"""Grad-Prune beside the defenses of its paper, with the true trigger and with triggers made without knowing it.

Command:      bdjax sweep experiments/grad_prune.py --data-dir DIR --out grad_prune
              small: bdjax sweep experiments/grad_prune.py --scale small --data-dir DIR --out grad_prune
Hardware:     grid: one GPU, not run yet; small: 2 CPU cores (experiments/grad_prune.md)
Time:         small: half an hour per attack; one at a time with --only attack=NAME, fewer cells with --limit-cells
Expectation:  with the true trigger Grad-Prune removes each backdoor at a small cost of accuracy, also with few samples per class;
              with a synthesised trigger as far as that trigger resembles the true one.
"""

import dataclasses
import runpy
from pathlib import Path

from bdjax.sweep.grid import Grid

VARIANTS = "experiments/grad_prune_variants.py"  # relative, so that a cell has one name on every machine: run from the repository
WITHOUT_TRIGGER = (f"{VARIANTS}:universal", f"{VARIANTS}:sample", f"{VARIANTS}:generator")
ATTACKED: Grid = runpy.run_path(str(Path(__file__).with_name("attacks.py")))["small"]  # the same networks as in its table
SMALL_GENERATOR = {"generator_width": 8, "generator_levels": 3, "pretrain_epochs": 20, "mask_epochs": 10, "generator_epochs": 10}
CUTS = {
    "ft": {"epochs": 50},
    "fp": {"epochs": 50},
    "ft_sam": {"epochs": 30},
    "nc": {"search_epochs": 30, "epochs": 50},
    "anp": {"iterations": 200, "batch": 128},
    "grad_prune": {"rounds": 60, "epochs": 60},
    f"{VARIANTS}:universal": {"rounds": 60, "epochs": 60, "search_epochs": 30},
    f"{VARIANTS}:sample": {"rounds": 60, "epochs": 60},
    f"{VARIANTS}:generator": {"rounds": 60, "epochs": 60, **SMALL_GENERATOR},
}

grid = Grid(
    dataset=("cifar10", "gtsrb"),
    model=("preactresnet18",),
    attack=("badnets", "blended", "low_frequency", "bpp"),
    defense=("grad_prune", *WITHOUT_TRIGGER, "ft", "fp", "nad", "nc", "anp", "i_bau", "ft_sam", "clp"),
    poison_ratio=(0.0, 0.1),
    spc=(2, 10, 100),
    seeds=(0, 1, 2),
)
small = dataclasses.replace(
    ATTACKED,
    defense=grid.defense,
    poison_ratio=(0.1,),
    spc=grid.spc,
    defense_config=CUTS,
    hyper={"i_bau": {"lr": (1e-3,)}, "anp": {"lr": (0.05,)}, "nc": {"outlier": (0.9,)}},
)
