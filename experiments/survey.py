"""The whole survey as one grid: 8 attacks, 3 data sets, 4 architectures, 4 poison ratios, 21 defenses, 3 sizes of the clean set.

Command:      bdjax plan --file experiments/survey.py           what it costs, before anything runs
              bdjax sweep experiments/survey.py --data-dir DIR --out survey
              the same on every machine that sees the folder, or --ray ADDRESS; part of it: --only attack=badnets, --limit-cells N
              small: bdjax sweep experiments/survey.py --scale small --data-dir DIR --out survey_small
              its models that nobody attacked: … --scale small --only attack=badnets --poison-ratio 0 --out survey_small
Hardware:     grid: GPUs, not run yet; small: 2 CPU cores (experiments/results/survey_small/)
Time:         bdjax plan tells; small: about two hours, of which half an hour trains the attacked networks
Expectation:  no defense is best everywhere: what works depends on attack, architecture, ratio and the clean samples at hand.
"""

import dataclasses
import runpy
from pathlib import Path

from bdjax.attacks.table import ATTACKS
from bdjax.defenses.table import DEFENSES
from bdjax.sweep.grid import Grid

ATTACKED: Grid = runpy.run_path(str(Path(__file__).with_name("attacks.py")))["small"]  # the same networks as in its table

grid = Grid(
    dataset=("cifar10", "gtsrb", "tiny_imagenet"),
    model=("preactresnet18", "vgg19_bn", "efficientnet_b3", "mobilenet_v3_large"),
    attack=tuple(ATTACKS),
    defense=tuple(DEFENSES),
    poison_ratio=(0.0, 0.01, 0.05, 0.1),
    spc=(2, 10, 100),
    seeds=tuple(range(9)),
    about="The survey ran 122,236: its axes with 9 runs each are 16 x 8 x 3 x 4 x 3 x 3 x 9 = 124,416, of which some cannot be "
    "drawn. Here come five newer defenses and models nobody attacked; a defense without clean data counts once for every spc.",
)
small = dataclasses.replace(
    ATTACKED,
    defense=grid.defense,
    poison_ratio=(0.1,),
    spc=(2, 10),
    # Lengths that a CPU has, and rates for as few steps; the longest methods are cut further than in experiments/results/.
    defense_config={
        "ft": {"epochs": 50},
        "fp": {"epochs": 50},
        "ft_sam": {"epochs": 30},
        "nc": {"search_epochs": 15, "epochs": 50},
        "fst": {"epochs": 50},
        "sau": {"epochs": 10},
        "anp": {"iterations": 100, "batch": 64},
        "npd": {"epochs": 20},
        "grad_prune": {"rounds": 60, "epochs": 60},
        "ims": {"start_rounds": 20, "search_rounds": 30, "settle_rounds": 30, "inner_steps": 5},
        "nft": {"epochs": 50},
        "fmp": {"prune_one_in": 16},
        "bti_dbf": dict(
            generator_width=8, generator_levels=3, pretrain_epochs=20, rounds=2, mask_epochs=10, generator_epochs=10,
            unlearn_epochs=15,
        ),
    },
    hyper={
        "i_bau": {"lr": (1e-3,)},
        "sau": {"lr": (1e-3,)},
        "fst": {"alpha": (0.02,)},
        "nc": {"outlier": (0.9,)},
        "anp": {"lr": (0.05,)},
        "rnp": {"lr": (1e-2,), "recover_lr": (0.02,)},
        "awn": {"lr": (0.1,)},
        "bnp": {"u": (1.5,)},
        "clp": {"u": (1.5,)},
        "bti_dbf": {"lr": (1e-3,)},
        "ims": {"l1": (0.25,)},
        "grad_prune": {"tolerance": (0.3,)},
    },
)  # fmt: skip
