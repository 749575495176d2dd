"""The grid of the storm: small networks on the embedded data set, trainings and defenses long enough to be hit in the middle."""

import os

from bdjax.sweep.grid import Grid

SIZE = float(os.environ.get("BDJAX_STORM_SIZE", "1"))  # of the trainings and defenses, in shares of the full ones


def _some(number: int) -> int:
    return max(int(number * SIZE), 2)


_LONG = {
    "ft": {"epochs": _some(600), "batch": 25},
    "anp": {"iterations": _some(1000), "batch": 25},
    "nad": {"teacher_epochs": _some(150), "epochs": _some(150), "batch": 25},
}
grid = Grid(
    attack=("badnets", "blended", "wanet"),
    defense=("ft", "anp", "nad", "clp"),
    poison_ratio=(0.1,),
    seeds=(0, 1),
    spc=(5,),
    width=4,
    epochs=_some(200),
    batch=50,
    train_images=200,
    test_images=100,
    defense_config=_LONG,
)
