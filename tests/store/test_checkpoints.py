"""Trained members on disk: they come back as they were stored, or they are named, moved aside and made again."""

import errno
import json
import os

import numpy as np
import pytest

from bdjax.errors import UserError
from bdjax.store import atomic, checkpoint_manifest, checkpoints
from tests.opened import opened

CELL = "c" * 24


def members(n=3):
    names = tuple(f"m{i}" for i in range(n))
    variables = {"params": {"conv": {"kernel": np.arange(n * 4, dtype=np.float32).reshape(n, 4)}}}
    return checkpoints.Stored(names, variables, (np.arange(n, dtype=np.int32),))


def test_trained_members_come_back_in_any_order_and_from_several_sets(tmp_path):
    checkpoints.save(tmp_path, CELL, "a", members())
    checkpoints.save(tmp_path, CELL, "b", members(1)._replace(members=("other",)))
    places = checkpoints.find(tmp_path, CELL)
    assert places == {"m0": ("a", 0), "m1": ("a", 1), "m2": ("a", 2), "other": ("b", 0)}
    stored = checkpoints.load(tmp_path, CELL, [places["m2"], places["other"], places["m0"]])
    assert stored.members == ("m2", "other", "m0")
    assert stored.variables["params"]["conv"]["kernel"][:, 0].tolist() == [8.0, 0.0, 0.0]
    assert stored.trigger[0].tolist() == [2, 0, 0]


def test_a_trigger_without_arrays_comes_back(tmp_path):
    checkpoints.save(tmp_path, CELL, "a", members()._replace(trigger=()))
    assert checkpoints.load(tmp_path, CELL, [("a", 1)]).trigger == ()


@pytest.mark.parametrize("harm", ["missing", "flipped", "manifest"])
def test_a_damaged_checkpoint_is_named_and_quarantined(tmp_path, capsys, harm):
    path = checkpoints.save(tmp_path, CELL, "a", members())
    victim = max((p for p in (path / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    if harm == "missing":
        victim.unlink()
    elif harm == "flipped":
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 1
        victim.write_bytes(bytes(data))
    else:
        (path / "manifest.json").write_text('{"members": ["m0"')
    with pytest.raises(atomic.Corrupt):
        checkpoints.load(tmp_path, CELL, [("a", 0)])
    assert checkpoints.find(tmp_path, CELL) == {}
    assert str(path) in capsys.readouterr().err and not path.exists()
    assert checkpoints.find(tmp_path, CELL) == {}  # what was quarantined is not read again


def test_a_checkpoint_is_replaced_as_a_whole(tmp_path):
    checkpoints.save(tmp_path, CELL, "a", members())
    checkpoints.save(tmp_path, CELL, "a", members(2))
    assert set(checkpoints.find(tmp_path, CELL)) == {"m0", "m1"}


def test_a_full_disk_while_saving_members_is_one_clear_line(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        checkpoints.save(tmp_path, CELL, "a", members())
    monkeypatch.undo()
    assert checkpoints.find(tmp_path, CELL) == {}


def files(path):
    """The files of a checkpoint, the largest first."""
    return sorted((p for p in (path / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size, reverse=True)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def test_looking_for_trained_members_opens_their_manifest_alone(tmp_path):
    for name in "ab":
        checkpoints.save(tmp_path, CELL, name, members())
    base = tmp_path / "models" / CELL
    with opened() as paths:
        assert set(checkpoints.find(tmp_path, CELL)) == {"m0", "m1", "m2"}
    read = [path for path in paths if str(base) in path and not os.path.isdir(path)]
    assert read == [str(base / name / "manifest.json") for name in "ab"]
    with opened() as paths:  # reading is noticed
        checkpoints.load(tmp_path, CELL, [("a", 0)])
    assert str(files(base / "a")[0]) in paths


def test_a_flipped_byte_is_found_when_the_members_are_loaded(tmp_path, capsys):
    path = checkpoints.save(tmp_path, CELL, "a", members())
    flip(files(path)[0])
    assert set(checkpoints.find(tmp_path, CELL)) == {"m0", "m1", "m2"} and capsys.readouterr().err == ""
    with pytest.raises(UserError, match=r"are damaged \(.* does not match its checksum\); the same run makes them again"):
        checkpoints.load(tmp_path, CELL, [("a", 0)])
    assert "a.corrupt" in capsys.readouterr().err and not path.exists()
    assert checkpoints.find(tmp_path, CELL) == {}


def test_every_damaged_checkpoint_that_is_asked_for_is_quarantined_at_once(tmp_path, capsys):
    paths = [checkpoints.save(tmp_path, CELL, name, members(1)._replace(members=(name,))) for name in "abc"]
    for path in paths[:2]:
        flip(files(path)[0])
    with pytest.raises(atomic.Corrupt):
        checkpoints.load(tmp_path, CELL, [(name, 0) for name in "abc"])
    assert capsys.readouterr().err.count("is corrupt") == 2 and set(checkpoints.find(tmp_path, CELL)) == {"c"}


def test_a_checkpoint_of_another_size_is_quarantined_where_it_is_looked_for(tmp_path, capsys):
    path = checkpoints.save(tmp_path, CELL, "a", members())
    victim = files(path)[0]
    victim.write_bytes(victim.read_bytes()[:-1])
    assert checkpoints.find(tmp_path, CELL) == {} and "is not as long as it was" in capsys.readouterr().err


def test_a_manifest_without_sizes_of_an_earlier_version_is_read(tmp_path):
    path = checkpoints.save(tmp_path, CELL, "a", members())
    manifest = json.loads((path / "manifest.json").read_bytes())
    (path / "manifest.json").write_text(json.dumps({name: manifest[name] for name in ("members", "files")}))
    places = checkpoints.find(tmp_path, CELL)
    assert checkpoints.load(tmp_path, CELL, [places["m1"]]).members == ("m1",)
    files(path)[0].unlink()
    assert checkpoints.find(tmp_path, CELL) == {}


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_read_again(tmp_path):
    path = checkpoints.save(tmp_path, CELL, "a", members())
    seen = []

    def compare(manifest):
        seen.append(manifest.members)
        if len(seen) == 1:
            checkpoints.save(tmp_path, CELL, "a", members(2))
            raise atomic.Corrupt("its files were those of the next one")
        return manifest.members

    assert checkpoint_manifest.check(path, compare) == ["m0", "m1"] and len(seen) == 2
