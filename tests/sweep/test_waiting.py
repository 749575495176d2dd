"""Who waits for others or asks how far they are reads no weights; who needs weights sees whether they are damaged."""

import dataclasses
import shutil

import pytest

from bdjax.errors import UserError
from bdjax.store import atomic, checkpoints, records
from bdjax.store.leases import Leases
from bdjax.sweep import working
from bdjax.sweep.status import Watch
from tests.opened import opened
from tests.sweep.small import GRID, go, stable

ALONE = {"members": 1, "images": 0}  # what a record says of its member's company


@pytest.fixture
def unfinished(population, tmp_path):
    """A copy of a finished sweep without the record of clp, and that record's file and cell."""
    out = shutil.copytree(population[0], tmp_path / "out")
    (path,) = (p for p in (out / "records").rglob("*.parquet") if records.read_file(p)[0]["defense"] == "clp")
    kept = tmp_path / path.name
    shutil.move(path, kept)
    return out, kept, path


def weights(out):
    """The files of trained members, the largest first."""
    files = (p for p in (out / "models").rglob("*") if p.is_file() and p.name != "manifest.json")
    return sorted(files, key=lambda p: p.stat().st_size, reverse=True)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(bytes(data))


def test_a_process_that_waits_for_others_opens_no_weights(population, unfinished, monkeypatch):
    out, kept, path = unfinished
    waits = []

    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 3:  # the other process has made the record
            shutil.copy(kept, path)

    monkeypatch.setattr(working.time, "sleep", wait)
    with Leases(out) as others, others.lease(path.parent.name) as granted, opened() as paths:
        assert granted
        assert stable(go(GRID, out)) == stable(population[1])
    assert len(waits) == 3
    assert not set(map(str, weights(out))) & set(paths)
    (manifest,) = (out / "models").rglob("manifest.json")
    assert str(manifest) in paths  # what is opened was noticed


def test_status_opens_nothing_of_trained_members(unfinished):
    out, *_ = unfinished
    with opened() as paths:
        assert {cell.state for cell in Watch(out).look().cells} == {"done", "waiting"}
    assert any(str(out / "records") in name for name in paths) and not any(str(out / "models") in name for name in paths)


def test_flipped_weights_are_named_and_trained_again_by_the_run_that_needs_them(population, unfinished, capfd):
    out, *_ = unfinished
    flip(weights(out)[0])
    assert stable(go(GRID, out)) == stable(population[1])
    err = capfd.readouterr().err
    assert err.count("does not match its checksum") == 1 and "trained, 4 members" in err
    assert len(list((out / "models").rglob("*.corrupt"))) == 1 and not list((out / "claims").iterdir())


def test_flipped_weights_that_nobody_needs_are_left_alone(population, tmp_path):
    out = shutil.copytree(population[0], tmp_path / "out")
    flip(weights(out)[0])
    go(GRID, out)
    assert not list((out / "models").rglob("*.corrupt"))


def test_weights_that_are_damaged_again_and_again_end_the_run_in_one_line(unfinished, monkeypatch):
    out, *_ = unfinished
    loads = []

    def damaged(*where):
        loads.append(where)
        raise atomic.Corrupt("the trained members are damaged")

    monkeypatch.setattr(checkpoints, "load", damaged)
    with pytest.raises(UserError, match="the trained members are damaged"):
        go(GRID, out)
    assert len(loads) == 2 and not list((out / "claims").iterdir())


@pytest.mark.slow  # it trains
def test_a_cell_that_was_lost_is_left_at_once_and_made_when_its_new_holder_gives_it_back(population, tmp_path, monkeypatch):
    answers, asked = [True, False, False, True], []

    def lost(self, cell):
        asked.append(cell)
        return answers.pop(0) if answers else False

    monkeypatch.setattr(Leases, "lost", lost)
    grid = dataclasses.replace(GRID, defense=("clp",), seeds=(0,), poison_ratio=(0.1,), defense_config={}, hyper={})
    found = go(grid, tmp_path, checkpoint_every=1e-6)
    sound = population[1].join(found, ["cell", "member"], "semi", maintain_order="left")
    assert len(found) == 2 and [row | ALONE for row in stable(found)] == [row | ALONE for row in stable(sound)]
    assert not answers and len(set(asked[:4])) == 1, "the training was not left and begun again"


def test_what_is_kept_of_finished_cells_is_removed_unless_somebody_works_there(population, tmp_path):
    out = shutil.copytree(population[0], tmp_path / "out")
    ours, theirs = sorted(path.name for path in (out / "records").iterdir())[:2]
    kept = [out / "running" / cell / "members" / "000000-000-000002" for cell in (ours, theirs, "cell-of-another-grid")]
    for path in kept:
        path.mkdir(parents=True)
    with Leases(out) as others, others.lease(theirs):
        go(GRID, out)
    assert [path.exists() for path in kept] == [False, True, True]
