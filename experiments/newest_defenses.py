"""IMS, BTI-DBF, NFT and FMP against BadNets and Blended, with few and with more clean samples.

Command:      bdjax sweep experiments/newest_defenses.py --data-dir DIR --out newest
              small: bdjax sweep experiments/newest_defenses.py --scale small --data-dir DIR --out newest
Hardware:     grid: one GPU, not run yet; small: 2 CPU cores (experiments/results/newest_defenses_cpu.md)
Time:         small: BadNets half an hour without BTI-DBF at 100 per class, which takes longer than all others
Expectation:  with 100 per class each lowers the ASR of both attacks, IMS and BTI-DBF only at rates for so small a network.
"""

import dataclasses
import runpy
from pathlib import Path

from bdjax.sweep.grid import Grid

ATTACKED: Grid = runpy.run_path(str(Path(__file__).with_name("attacks.py")))["small"]  # the same networks as in its table

grid = Grid(
    dataset=("cifar10", "gtsrb"),
    model=("preactresnet18",),
    attack=("badnets", "blended"),
    defense=("ims", "bti_dbf", "nft", "fmp"),
    poison_ratio=(0.0, 0.1),
    spc=(10, 100),
    seeds=(0, 1, 2),
)
small = dataclasses.replace(
    ATTACKED,
    attack=grid.attack,
    attack_recipe={name: ATTACKED.attack_recipe[name] for name in grid.attack},
    attack_config={},
    defense=grid.defense,
    poison_ratio=(0.1,),
    spc=grid.spc,
    defense_config={
        "ims": {"start_rounds": 50, "search_rounds": 60, "settle_rounds": 60, "inner_steps": 10},
        "bti_dbf": {
            "generator_width": 8,
            "generator_levels": 3,
            "pretrain_epochs": 20,
            "rounds": 2,
            "mask_epochs": 10,
            "generator_epochs": 10,
            "unlearn_epochs": 15,
        },
        "nft": {"epochs": 50},
        "fmp": {"prune_one_in": 16},  # one of 64 is none of the channels of this network's first layers
    },
    hyper={"bti_dbf": {"lr": (1e-4, 1e-3)}},  # the published rate, and one for a tenth of the steps
)
