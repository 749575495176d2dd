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
    datasets=("cifar10",),
    attacks=("badnets", "blended"),
    defenses=DEFENSES,
    poison_ratios=(0.05, 0.1),
    spc=(10,),
    seeds=(0, 1, 2),
    about="",
)
small = dataclasses.replace(
    _SURVEY["small"],
    models=("cnn", "preactresnet18"),
    width=8,
    attacks=grid.attacks,
    attack_recipe={name: _SURVEY["small"].attack_recipe[name] for name in grid.attacks},
    attack_config={},
    defenses=DEFENSES,
    defense_config={name: value for name, value in _SURVEY["small"].defense_config.items() if name in DEFENSES},
    poison_ratios=grid.poison_ratios,
    spc=(10,),
    hyper={name: value for name, value in _SURVEY["small"].hyper.items() if name in DEFENSES},
)
