"""The published code's behaviour, profile "reference", beside the same cells of the survey, which are "corrected".

Command:      bdjax sweep experiments/replicate/reference.py --data-dir DIR --out reference
              small: bdjax sweep experiments/replicate/reference.py --scale small --data-dir DIR --out reference
Hardware:     grid: GPUs, not run yet; small: 2 CPU cores
Time:         small: a quarter of an hour (experiments/replicate/README.md)
Expectation:  MM-BD does nothing in "reference"; Neural Cleanse is missing, for its published mitigation cannot run; on a network
              without running variances near 0 and on images whose normalised range is not cut, many others hardly differ.
"""

import dataclasses
import runpy
from pathlib import Path

from bdjax.sweep.grid import Grid

_SURVEY = runpy.run_path(str(Path(__file__).parents[1] / "survey.py"))


def _published(survey: Grid) -> Grid:
    """A grid of the survey in the profile "reference": what has none, and its settings, are left out."""
    kept = tuple(name for name in survey.defense if name != "nc")
    of_kept = ({name: value for name, value in of.items() if name != "nc"} for of in (survey.defense_config, survey.hyper))
    defense_config, hyper = of_kept
    return dataclasses.replace(
        survey, profile="reference", defense=kept, defense_config=defense_config, hyper=hyper, about="", poison_ratio=(0.1,)
    )


grid = _published(_SURVEY["grid"])
small = dataclasses.replace(_published(_SURVEY["small"]), attack=("badnets", "blended"), spc=(10,))
small = dataclasses.replace(
    small,
    attack_recipe={name: small.attack_recipe[name] for name in small.attack},
    attack_config={},
)
