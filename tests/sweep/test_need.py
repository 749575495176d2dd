"""What memory the cells of a grid need, by the estimate that decides how many workers a machine gets."""

import dataclasses

import pytest

from bdjax.errors import UserError
from bdjax.population import Execution, activation_bytes, footprint, members
from bdjax.population.execution import CPU
from bdjax.sweep import expand
from bdjax.sweep import run as runs
from bdjax.sweep.estimate import _abstract
from bdjax.sweep.grid import Grid
from bdjax.sweep.need import PROCESS, needs, needs_on
from bdjax.sweep.summary import member_bytes
from bdjax.train.experiment import attack_member

GRID = Grid(
    dataset=("digits",), model=("cnn",), attack=("badnets", "blended"), defense=("clp",), poison_ratio=(0.0, 0.1),
    seeds=(0, 1, 2), width=4, batch=50, train_images=200, test_images=100,
)  # fmt: skip
IMAGE = 3 * 16 * 16 + 4  # bytes, with the label


def estimated(execution, grid=GRID):
    branches = expand.cells(grid)
    return needs(grid, branches, [execution] * len(branches), None)


def test_a_member_needs_its_state_and_what_its_gradient_reads_and_all_share_the_images():
    first, second = estimated(Execution("sequential"))
    model = expand.cells(GRID)[0].model
    assert first.member == second.member == member_bytes(model) + activation_bytes(model, 50)
    assert first.images == 2 * 300 * IMAGE
    assert first.least == first.most == PROCESS + 3 * 300 * IMAGE + first.member
    assert [one.title.split(" / ")[-1] for one in (first, second)] == ["badnets", "blended"]


@pytest.mark.parametrize(
    ("execution", "fewest", "most"),
    [
        (Execution("sequential"), 1, 1),
        (Execution("vmap"), 1, 6),  # fewer where all do not fit
        (Execution("map", chunk=4), 4, 4),
        (Execution("sequential", devices=2), 2, 2),
    ],
)
def test_the_execution_says_how_many_members_run_at_once(execution, fewest, most):
    assert {(one.fewest, one.all) for one in estimated(execution)} == {(fewest, most)}


def test_the_estimate_is_of_the_cells_that_are_asked_for_as_they_run():
    options = {"only": {"attack": "blended"}, "limit": None, "execution": {"strategy": "vmap"}, "tuned": False, "data_dir": None}
    (one,) = needs_on(False, GRID, options)
    assert (one.title.endswith("blended"), one.all) == (True, 6)
    (one,) = needs_on(True, GRID, options)  # on an accelerator, which is not here
    assert one.all == 1
    with pytest.raises(UserError, match="strategy"):
        needs_on(False, GRID, {**options, "execution": {"strategy": "vmp"}})


@pytest.mark.slow
def test_the_estimate_is_near_what_the_compiler_says():
    """Where activations are more than a few megabytes."""
    grid, rows = dataclasses.replace(GRID, width=32, batch=128), (200, 100)
    branch = expand.cells(grid)[0]
    stacked = members([0], [0.1], rows[0])[0]
    data = _abstract(branch.model.spec, branch.attack, rows)
    found = footprint(lambda model: attack_member(model, branch.attack, rows[0]), branch.model, stacked, (data,), CPU)
    assert 0.8 < estimated(CPU, grid)[0].member / found.per_member < 1.5


def test_a_worker_runs_its_part_of_the_training_cells_with_their_defenses(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(runs, "work_off", lambda unfinished, *_: begun.extend(unfinished))
    runs.run(GRID, tmp_path, part=[1], tuned=False)
    ((work, _),) = begun
    assert work.branch.train.attack == "blended" and [cell.cell.defense for cell in work.defenses] == ["clp"]
