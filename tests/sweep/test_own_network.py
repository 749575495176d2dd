"""A network of the user's own through a run and what follows it: resumed, edited, reproduced, defended again, exchanged."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from bdjax.cli import main as cli
from bdjax.errors import UserError
from bdjax.interop import import_torch
from bdjax.interop.state import from_state, to_state
from bdjax.results import member, recreate
from bdjax.results.cite import cite
from bdjax.results.reproduce import again
from bdjax.store import import_folder, records
from bdjax.store.leases import Leases
from bdjax.sweep import build, editions, expand, imported, manifest, pending, status
from bdjax.sweep.grid import Grid
from tests.examples import written
from tests.sweep.small import go, images, refused

GRID = Grid(
    defense="clp", poison_ratio=0.1, spc=2, width=4, epochs=1, batch=50, train_images=200, test_images=100, recipe={"lr": 0.1}
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The file's folder, the grid of its network, a folder of results, and its records."""
    folder = written(tmp_path_factory.mktemp("own"), "tiny")
    grid = dataclasses.replace(GRID, model=(f"{folder}/tiny.py:tiny",))
    return folder, grid, folder / "out", go(grid, folder / "out")


def hashes(grid):
    (branch,) = expand.cells(grid)
    return [build.cell_hash(cell, "d") for cell in (branch.train, *branch.defenses)]


@pytest.fixture
def edited(finished):
    """Its file with another text, for the length of a test."""
    file = finished[0] / "tiny.py"
    before = file.read_text()
    file.write_text(before.replace("stride=i", "stride=2"))
    yield
    file.write_text(before)


def test_it_is_trained_and_defended_and_its_records_name_it(finished):
    _, grid, out, frame = finished
    assert list(frame["status"]) == ["ok", "ok"] and set(frame["model"]) == set(grid.model) and set(frame["width"]) == {4}
    (branch,) = expand.cells(grid)
    for row in frame.iter_rows(named=True):
        about = json.loads(row["config"])["model"]
        assert about == {"name": grid.model[0], "width": 4, "depth": None, "precision": "float32", "source": branch.model.source}
        assert editions.changed(row["config"]) == ()
    assert {cell.state for cell in status.Watch(out).look().cells} == {"done"}
    assert f"% model {grid.model[0]}: nobody" in cite(records.read_rows(out))


def test_the_same_command_runs_nothing_twice_and_an_edit_makes_its_records_anew(finished, capsys):
    folder, grid, out, _ = finished
    before = hashes(grid)
    go(grid, out)
    assert "0 compile buckets to run" in capsys.readouterr().err
    file = folder / "tiny.py"
    text = file.read_text()
    file.write_text(text.replace("stride=i", "stride=2"))
    assert not set(before) & set(hashes(grid))
    file.write_text(text)
    assert hashes(grid) == before


def test_the_factorys_name_is_enough_where_it_is_the_only_one(finished):
    _, grid, out, _ = finished
    branches = expand.cells(dataclasses.replace(grid, model=(*grid.model, "cnn")))
    (branch,) = expand.select(branches, {"model": "tiny"})
    assert branch.train.model == grid.model[0]
    assert member.record(out, {"model": "tiny", "defense": "clp"})["model"] == grid.model[0]


def test_a_record_is_reproduced_and_its_defended_network_made_again(finished):
    out = finished[2]
    row = member.record(out, {"defense": "clp"})
    assert again(out, row, images()).verdict == "identical"
    found = member.find(out, {"defense": "clp"})
    defended = recreate.defend(found, member.network(found), images())
    assert defended.measured["acc"] == row["acc"] and defended.measured["asr"] == row["asr"]


def test_nothing_is_made_again_with_an_edited_file(finished, edited):
    out = finished[2]
    row = member.record(out, {"defense": "clp"})
    with pytest.raises(UserError, match=r"tiny\.py:tiny was edited since the record .* was [0-9a-f]{8}, and is [0-9a-f]{8}: put"):
        again(out, row, images())
    with pytest.raises(UserError, match=r"tiny\.py:tiny was edited since the record was made; the network"):
        member.network(member.find(out, {"defense": "clp"}))
    assert editions.changed(row["config"]) == ()  # whether its defense has another edition is not known


def test_cells_of_a_file_that_was_edited_are_outdated_and_not_waiting(finished, tmp_path, edited):
    file = finished[0] / "tiny.py"
    (branch,) = expand.cells(finished[1])
    with Leases(tmp_path) as mine:
        manifest.write(tmp_path, [pending.work_of(branch, images(), finished[1])], mine)
    assert {cell.state for cell in status.Watch(tmp_path).look().cells} == {"waiting"}
    now = file.read_text()
    file.write_text(now + "\n# edited again\n")
    found = status.Watch(tmp_path).look()
    assert {cell.state for cell in found.cells} == {"outdated"} and found.left == 0
    assert f"outdated: 2 cells of {finished[1].model[0]} before it was edited: they are made no more" in status.notes(found)


def test_its_weights_go_to_a_state_dict_and_come_back_by_their_addresses(finished):
    found = member.find(finished[2], {})
    model = member.network(found)
    state = to_state(model, found.variables)
    assert list(state)[:3] == ["conv1.weight", "bn1.weight", "bn1.bias"] and state["conv1.weight"].shape == (4, 3, 3, 3)
    back = from_state(model, state).variables
    for ours, theirs in zip(jax.tree.leaves(back), jax.tree.leaves(dict(found.variables)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.torch
def test_it_is_exported_imported_and_defended_again(finished, tmp_path, capsys, own_cache):
    _, grid, out, frame = finished
    file, name = tmp_path / "net.pt", grid.model[0]
    assert cli.main(["export-torch", str(out), str(file), "--kind", "state_dict"]) == 0
    arguments = [str(file), "--dataset", "digits", "--poison-ratio", "0.1", "--out", str(tmp_path / "in")]
    told = refused(capsys, "import-torch", *arguments)
    assert "those of no network of the table" in told
    assert cli.main(["import-torch", *arguments, "--model", name]) == 0
    assert f"--imported {tmp_path / 'in'} --model {name} --defense" in capsys.readouterr().out
    brought = import_folder.load(tmp_path / "in")
    assert (brought.model, brought.width) == (name, 4)
    untrained = {"epochs": None, "batch": None, "recipe": {}, "imported": str(tmp_path / "in")}
    again = go(dataclasses.replace(grid, **untrained), tmp_path / "out")
    assert sorted(again["acc"]) == sorted(frame["acc"]) and sorted(again["asr"]) == sorted(frame["asr"])


@pytest.mark.torch
def test_a_result_says_the_factorys_name_and_no_path_and_its_file_runs_no_code(finished, tmp_path):
    import torch

    _, grid, out, _ = finished
    file = tmp_path / "result.pt"
    assert cli.main(["export-torch", str(out), str(file), "--defense", "clp"]) == 0
    content = torch.load(file)
    assert content["model_name"] == "tiny"
    with pytest.raises(UserError, match=r"unknown model 'tiny'.* One of your own is named with --model path/to/file\.py:factory"):
        import_torch(file, tmp_path / "in", dataset="digits")
    torch.save({**content, "model_name": grid.model[0]}, file)
    with pytest.raises(UserError, match=r"unknown model .*tiny"):
        import_torch(file, tmp_path / "in", dataset="digits")


def test_an_import_folder_names_no_code_and_fits_the_network_as_it_is(finished, tmp_path, capsys):
    _, grid, out, _ = finished
    found = member.find(out, {})
    whole = import_of_one(out, found, grid.model[0])
    import_folder.save(tmp_path / "in", whole)
    told = refused(capsys, "check", "--imported", tmp_path / "in", "--defense", "clp", "--out", tmp_path / "out")
    assert f"holds networks {grid.model[0]}, a file of your own: name it with --model {grid.model[0]}; given cnn" in told
    other = expand.cells(dataclasses.replace(grid, width=6))[0].model
    with pytest.raises(
        UserError, match=r"are not .*tiny\.py:tiny as it is now: it returns float32\[4\] at .*it has to be float32\[6\]"
    ):
        imported.check_networks(str(tmp_path / "in"), other)


def import_of_one(out, found, model):
    """An import folder of this one network, with its triggered images."""
    return import_folder.Import(
        model=model, width=4, classes=10, image_shape=(16, 16, 3), dataset="digits",
        sources=(import_folder.File("net.pt", "0" * 64),), points=((0, 0.1),), variables=(found.variables,), network=(0,),
        kept=({},), triggered=recreate.triggered(found, images()),
    )  # fmt: skip


PLAIN = """
import flax.linen as nn
from bdjax.models.build import build
from bdjax.nn.layers import tap


class Plain(nn.Module):
    classes: int
    width: int

    @nn.compact
    def __call__(self, x, run, start):
        if start is None:
            x = nn.relu(nn.Conv(self.width, (3, 3), strides=2)(x))
        if start != "head":
            x = tap(x, "features", run).mean((1, 2))
        return nn.Dense(self.classes, name="linear")(tap(x, "head", run))


def plain(spec, width=8, **how):
    return build(Plain(spec.classes, width), factory=plain, spec=spec, width=width, how=how)
"""


def test_a_network_of_flaxs_own_layers_runs_and_is_refused_by_export_and_by_what_needs_its_addresses(tmp_path):
    (tmp_path / "plain.py").write_text(PLAIN)
    grid = dataclasses.replace(GRID, model=(f"{tmp_path}/plain.py:plain",), defense=("fp",), defense_config={"fp": {"epochs": 1}})
    frame = go(grid, tmp_path / "out")
    assert list(frame["status"]) == ["ok", "ok"]
    found = member.find(tmp_path / "out", {})
    assert found.variables["batch_stats"] == {}
    with pytest.raises(UserError, match=r"leaves with no place in a state dict: params/Conv_0/bias.*ArchSpec\.registered"):
        to_state(member.network(found), found.variables)
    with pytest.raises(UserError, match=r"clp needs convolutions, and .*plain\.py:plain names none in ArchSpec\.convs"):
        go(dataclasses.replace(grid, defense=("clp",), defense_config={}), tmp_path / "out")


def test_attacks_that_ask_for_the_network_get_its_name(finished):
    grid = dataclasses.replace(finished[1], attack=("low_frequency",))
    (branch,) = expand.cells(grid)
    assert branch.attack.config.architecture == grid.model[0]
    searching = dataclasses.replace(grid, attack_config={"low_frequency": {"trigger": "optimised"}})
    with pytest.raises(
        UserError, match=r"searches its trigger against a network of the table and not against .*architecture=cnn"
    ):
        expand.cells(searching)
    named = {"low_frequency": {"trigger": "optimised", "architecture": "cnn"}}
    assert expand.cells(dataclasses.replace(grid, attack_config=named))[0].attack.prepare is not None
