"""Two networks of width 8, two poison ratios, two attacks: what do a defense's results vary with?

Command:      bdjax sweep experiments/replicate/variation.py --data-dir DIR --out variation
              small: bdjax sweep experiments/replicate/variation.py --scale small --data-dir DIR --out variation
Hardware:     grid: one GPU, not run yet; small: 2 CPU cores
Time:         small: half an hour
Expectation:  the attack and the network matter more than which of two poison ratios it was.
"""

import dataclasses
import runpy
from pathlib import Path

_SURVEY = runpy.run_path(str(Path(__file__).parents[1] / "survey.py"))

DEFENSES = ("ft", "fp", "nad", "fst", "clp", "rnp", "bnp", "npd", "grad_prune")
grid = dataclasses.replace(
    _SURVEY["grid"],
    dataset=("cifar10",),
    attack=("badnets", "blended"),
    defense=DEFENSES,
    poison_ratio=(0.05, 0.1),
    spc=(10,),
    seeds=(0, 1, 2),
    about="",
)
small = dataclasses.replace(
    _SURVEY["small"],
    model=("cnn", "preactresnet18"),
    width=8,
    attack=grid.attack,
    attack_recipe={name: _SURVEY["small"].attack_recipe[name] for name in grid.attack},
    attack_config={},
    defense=DEFENSES,
    defense_config={name: value for name, value in _SURVEY["small"].defense_config.items() if name in DEFENSES},
    poison_ratio=grid.poison_ratio,
    spc=(10,),
    hyper={name: value for name, value in _SURVEY["small"].hyper.items() if name in DEFENSES},
)
