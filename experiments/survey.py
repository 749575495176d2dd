"""The whole survey: 8 attacks, 3 data sets, 4 architectures, 3 poison ratios and none, 21 defenses, 2, 10 and 100 clean samples per class.

Command:      bdjax plan --file experiments/survey.py      what it costs, before anything runs
              bdjax sweep experiments/survey.py --data-dir DIR --out survey      on every machine that sees the folder, or --ray ADDRESS
              part of it: --only attack=badnets model=preactresnet18, --limit-cells N
              small: bdjax sweep experiments/survey.py --scale small --data-dir DIR --out survey-small
Hardware:     grid: GPUs, not run yet; small: 2 CPU cores (experiments/results/survey_small)
Time:         grid: bdjax plan tells for the accelerator at hand; small: two hours, in three processes or one
Expectation:  no defense is best everywhere: what works depends on attack, architecture, ratio and the clean samples at hand.
"""

import dataclasses
import runpy
from pathlib import Path

from bdjax.attacks import ATTACKS
from bdjax.defenses import DEFENSES
from bdjax.sweep.plan import Grid

ATTACKED: Grid = runpy.run_path(str(Path(__file__).with_name("attacks.py")))["small"]  # the same networks as in its table

grid = Grid(
    datasets=("cifar10", "gtsrb", "tiny_imagenet"),
    models=("preactresnet18", "vgg19_bn", "efficientnet_b3", "mobilenet_v3_large"),
    attacks=tuple(ATTACKS),
    defenses=tuple(DEFENSES),
    poison_ratios=(0.0, 0.01, 0.05, 0.1),
    spc=(2, 10, 100),
    seeds=tuple(range(9)),
    about="The survey ran 122,236: its axes with 9 runs each are 16 x 8 x 3 x 4 x 3 x 3 x 9 = 124,416, of which some cannot be "
    "drawn. Here come five newer defenses and models nobody attacked; a defense without clean data counts once for every spc.",
)
