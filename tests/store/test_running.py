"""Snapshots of a running population: two are kept, a damaged one falls back to the one before, a finished cell leaves none."""

import numpy as np
import pytest

from bdjax.errors import UserError
from bdjax.store.running import KEPT, Keeper, Snapshot


def keeper(out, members=("a", "b")):
    return Keeper(out, "cell", "set", members)


def snapshot(rounds, finished=0):
    state = np.full((2, 3), rounds, np.float32), np.arange(4, dtype=np.uint32)
    return Snapshot(2, finished, rounds, state, (np.array([finished]),) if finished else ())


def same(one, other):
    assert one[:3] == other[:3]
    for mine, its in zip((*one.state, *one.results), (*other.state, *other.results), strict=True):
        np.testing.assert_array_equal(mine, its)
        assert mine.dtype == its.dtype


def kept(out, *snapshots):
    writing = keeper(out)
    for one in snapshots:
        writing.keep(one)
    writing.wait()
    return writing


def test_the_newest_of_two_comes_back(tmp_path):
    assert keeper(tmp_path).latest() is None
    kept(tmp_path, snapshot(1), snapshot(20), snapshot(3, finished=2))
    same(keeper(tmp_path).latest(), snapshot(3, finished=2))
    assert len([path for path in (tmp_path / "running" / "cell" / "set").iterdir() if path.is_dir()]) == KEPT
    assert keeper(tmp_path, ("a", "c")).latest() is None  # of other members


def test_who_goes_on_hears_where(tmp_path):
    heard = []
    listening = Keeper(tmp_path, "cell", "set", ("a", "b"), resumed=lambda *numbers: heard.append(numbers))
    assert listening.latest() is None and heard == []
    kept(tmp_path, snapshot(3, finished=2))
    listening.latest()
    assert heard == [(2, 2, 3)]


def test_a_damaged_one_falls_back_to_the_one_before(tmp_path):
    kept(tmp_path, snapshot(1), snapshot(2))
    newest = tmp_path / "running" / "cell" / "set" / "000000-000002"
    largest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    same(keeper(tmp_path).latest(), snapshot(1))
    assert not newest.exists()  # set aside, so that it is not met again


def test_a_finished_cell_leaves_nothing(tmp_path):
    kept(tmp_path, snapshot(1)).clear()
    assert keeper(tmp_path).latest() is None and not (tmp_path / "running" / "cell" / "set").exists()


def test_what_cannot_be_written_is_said_at_the_next_chance(tmp_path):
    (tmp_path / "running").write_text("no folder")
    writing = keeper(tmp_path)
    writing.keep(snapshot(1))
    with pytest.raises(UserError, match="cannot write"):
        writing.wait()
    writing.wait()  # said once
