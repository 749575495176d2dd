"""How many images the first tuning counts of what is pending."""

import pytest

from bdjax.data import load
from bdjax.sweep import expand, first_tuning
from bdjax.sweep.grid import Grid
from bdjax.sweep.pending import DefenseRun, Pending


@pytest.mark.parametrize(
    ("defense", "spc", "seen"),
    [
        # Of 10 rows a class fp keeps one to validate; of 4 it keeps all, and validates with one on top.
        (("ft", "fp"), (4, 10), 3 * (4 + 10) * 10 * 2 + 3 * (4 + 9) * 10 * 2),
        (("clp",), (4,), 0),  # its configuration names no epochs
    ],
)
def test_images_of_trainings_and_of_defenses_that_name_their_epochs(defense, spc, seen):
    config = {name: {"epochs": 3} for name in defense if name != "clp"}
    rows = dict(train_images=200, test_images=50, epochs=5, width=4)
    grid = Grid(dataset=("digits",), model=("cnn",), defense=defense, spc=spc, seeds=(0, 1), defense_config=config, **rows)
    (branch,) = expand.cells(grid)
    points = ("one", "two")
    runs = tuple(DefenseRun(cell, "", points) for cell in branch.defenses)
    dataset = load("digits", train_images=200, test_images=50)
    assert first_tuning._images(Pending(branch, dataset, (points,), runs)) == 5 * len(dataset.train.labels) * 2 + seen
