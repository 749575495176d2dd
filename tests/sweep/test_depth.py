"""A network with fewer blocks per stage: --depth reaches training, repairs and records."""

import dataclasses
import json

import pytest

from bdjax.cli import main as cli
from bdjax.errors import UserError
from bdjax.models import MODELS
from bdjax.results import member
from bdjax.store import records
from bdjax.sweep.build import cell_hash, describe
from bdjax.sweep.expand import cells
from bdjax.sweep.grid import Grid
from tests.sweep.small import EXECUTION, refused

pytestmark = pytest.mark.usefixtures("own_cache")
SMALL = ["--width", "2", "--epochs", "1", "--batch", "20", "--train-images", "40", "--test-images", "20", "--poison-ratio", "0.1"]
GRID = Grid(model=("preactresnet18",), width=2, defense=("clp",))


def hashes(grid):
    (branch,) = cells(grid)
    return [cell_hash(cell, "0" * 64) for cell in (branch.train, *branch.defenses)]


@pytest.mark.parametrize("command", ["run", "check", "plan"])
def test_cnn_has_none(capsys, command):
    assert "cnn has no depth to reduce" in refused(capsys, command, *SMALL, "--depth", "1")
    assert "depth 0 is not allowed" in refused(capsys, command, *SMALL, "--model", "preactresnet18", "--depth", "0")


@pytest.mark.slow
def test_a_shallow_network_runs_and_its_record_says_so(tmp_path):
    arguments = ["--model", "preactresnet18", "--depth", "1", *SMALL, *EXECUTION, "--defense", "none"]
    assert cli.main(["run", *arguments, "--out", str(tmp_path)]) == 0
    frame = records.read(tmp_path)
    assert frame.height == 1 and set(frame["status"]) == {"ok"}
    assert all(json.loads(config)["model"]["depth"] == 1 for config in frame["config"])
    found = member.find(tmp_path, {})
    model = member.network(found)
    assert (model.name, model.width, model.depth) == ("preactresnet18", 2, 1)
    assert {name.split("/")[0] for name in model.arch.norms} & {"layer1_0", "layer1_1"} == {"layer1_0"}
    assert "layer1_1" not in found.variables["params"]


def test_depth_is_part_of_the_experiment():
    whole, one = hashes(GRID), hashes(dataclasses.replace(GRID, depth=1))
    assert len({*whole, *one}) == 4
    (branch,) = cells(dataclasses.replace(GRID, depth=1))
    assert describe(branch.train, "")["model"] == {"name": "preactresnet18", "width": 2, "depth": 1, "precision": "float32"}


@pytest.mark.parametrize("name", [name for name in MODELS if name != "cnn"])
def test_every_published_network_can_be_cut(name):
    (branch,) = cells(dataclasses.replace(GRID, dataset=("cifar10",), model=(name,), depth=1))
    assert describe(branch.train, "")["model"]["depth"] == 1
    with pytest.raises(UserError, match="cnn has no depth"):
        cells(dataclasses.replace(GRID, dataset=("cifar10",), model=(name, "cnn"), depth=1))
