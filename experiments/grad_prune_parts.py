"""What of Grad-Prune's effect is drift of the norms, what is pruning and what is tuning, against every attack.

Command:      bdjax sweep experiments/grad_prune_parts.py --data-dir DIR --out grad_prune_parts
              small: bdjax sweep experiments/grad_prune_parts.py --scale small --data-dir DIR --out grad_prune_parts
              pictures: python experiments/grad_prune_pictures.py grad_prune_parts --save parts.png
Hardware:     grid: one GPU, not run yet; small: 2 CPU cores (experiments/grad_prune.md)
Time:         small: an hour; one attack at a time with --only attack=NAME
Expectation:  the published procedure's effect is mostly that of the drift: without pruning a single filter it is as large.
"""

import dataclasses
import runpy
from pathlib import Path

from bdjax.sweep.grid import Grid

VARIANTS = "experiments/grad_prune_variants.py"  # relative, so that a cell has one name on every machine: run from the repository
PARTS = ("published", "published_rounds", "drift", "pruning", "drift_pruning", "tuning")
DEFENSES = ("grad_prune", *(f"{VARIANTS}:{part}" for part in PARTS))
ATTACKED: Grid = runpy.run_path(str(Path(__file__).with_name("attacks.py")))["small"]  # the same networks as in its table

grid = Grid(
    dataset=("cifar10",),
    model=("preactresnet18",),
    attack=ATTACKED.attack,
    defense=DEFENSES,
    poison_ratio=(0.1,),
    spc=(10, 100),
    seeds=(0, 1, 2),
    # The published tolerance, and one that lets a small network lose more for its few filters.
    hyper={name: {"tolerance": (0.1, 0.3)} for name in DEFENSES if not name.endswith(":tuning")},
)
small = dataclasses.replace(
    ATTACKED,
    defense=DEFENSES,
    poison_ratio=(0.1,),
    spc=(10,),
    hyper=grid.hyper,
    defense_config={name: {"rounds": 60, "epochs": 60} for name in DEFENSES},
)
