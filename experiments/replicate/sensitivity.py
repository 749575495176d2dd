"""Each defense along its main hyper-parameter, all values of it one population.

Command:      bdjax sweep experiments/replicate/sensitivity.py --data-dir DIR --out sensitivity
              small: bdjax sweep experiments/replicate/sensitivity.py --scale small --data-dir DIR --out sensitivity
              the pictures: bdjax report sensitivity
Hardware:     grid: one GPU, not run yet; small: 2 CPU cores
Time:         small: an hour
Expectation:  the published values are for longer schedules and larger networks; some defenses do nothing at them here.
"""

import dataclasses
import runpy
from pathlib import Path

_SURVEY = runpy.run_path(str(Path(__file__).parents[1] / "survey.py"))

HYPER = {
    "ft": {"lr": (1e-3, 1e-2, 1e-1)},
    "fp": {"tolerance": (0.05, 0.1, 0.3)},
    "nad": {"beta3": (100.0, 1000.0, 10000.0)},
    "nc": {"outlier": (0.9, 1.5, 2.0)},
    "ft_sam": {"rho": (0.5, 2.0, 8.0)},
    "fst": {"alpha": (0.002, 0.02, 0.2)},
    "i_bau": {"lr": (1e-4, 1e-3, 1e-2)},
    "sau": {"lr": (1e-4, 1e-3, 1e-2)},
    "anp": {"tolerance": (0.05, 0.1, 0.3), "lr": (0.05,)},
    "clp": {"u": (1.0, 1.5, 2.0, 3.0, 4.0)},
    "rnp": {"lr": (1e-3, 1e-2, 1e-1), "recover_lr": (0.02,)},
    "awn": {"lr": (1e-2, 1e-1, 1.0)},
    "bnp": {"u": (1.0, 1.5, 2.0, 3.0, 4.0)},
    "npd": {"bound": (1.0, 3.0, 9.0)},
    "pbe": {"radius": (0.005, 0.02, 0.08)},
    "mm_bd": {"lr": (1e-3, 1e-2, 1e-1)},
    "grad_prune": {"tolerance": (0.1, 0.3, 0.5)},
    "ims": {"l1": (0.025, 0.25, 2.5)},
    "bti_dbf": {"lr": (1e-4, 1e-3, 1e-2)},
    "nft": {"l1": (1e-4, 1e-3, 1e-2)},
    "fmp": {"epsilon": (1 / 255, 4 / 255, 16 / 255)},
}
grid = dataclasses.replace(
    _SURVEY["grid"],
    dataset=("cifar10",),
    model=("preactresnet18",),
    attack=("badnets", "blended"),
    defense=tuple(HYPER),
    poison_ratio=(0.1,),
    spc=(10, 100),
    seeds=(0, 1, 2),
    hyper=HYPER,
    about="",
)
small = dataclasses.replace(
    _SURVEY["small"],
    attack=grid.attack,
    attack_recipe={name: _SURVEY["small"].attack_recipe[name] for name in grid.attack},
    attack_config={},
    defense=grid.defense,
    defense_config={name: value for name, value in _SURVEY["small"].defense_config.items() if name in HYPER},
    spc=(10,),
    hyper=HYPER,
)
