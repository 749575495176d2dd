"""Snapshots of a running population: two are kept, a damaged one falls back to the one before, a finished cell leaves none."""

import shutil

import numpy as np

from bdjax.store.running import KEPT, Keeper, Snapshot


def keeper(out, members=("a", "b")):
    return Keeper(out, "cell", "set", members)


def snapshot(rounds, finished=0):
    state = np.full((2, 3), rounds, np.float32), np.arange(4, dtype=np.uint32)
    return Snapshot(2, finished, 0, rounds, 1.5, state, (np.arange(10 * finished, 11 * finished),) if finished else ())


def same(one, other):
    assert one[:5] == other[:5]
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
    assert len(list((tmp_path / "running" / "cell" / "set").glob("0*"))) == KEPT
    assert keeper(tmp_path, ("a", "c")).latest() is None  # of other members


def test_what_was_written_is_said(tmp_path):
    written = []
    writing = Keeper(tmp_path, "cell", "set", ("a", "b"), heard=lambda *told: written.append(told))
    writing.keep(snapshot(7))
    writing.wait()
    ((rounds, seconds),) = written
    assert rounds == 7 and 0 < seconds < 60


def test_a_damaged_one_falls_back_to_the_one_before(tmp_path):
    kept(tmp_path, snapshot(1), snapshot(2))
    newest = tmp_path / "running" / "cell" / "set" / "000000-000-000002"
    largest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    same(keeper(tmp_path).latest(), snapshot(1))
    assert not newest.exists()  # set aside, so that it is not met again


def grown(rounds, finished):
    """A snapshot whose results are those of the one before, and more."""
    return snapshot(rounds)._replace(finished=finished, results=(np.arange(finished), np.ones((finished, 2))))


def test_the_results_of_finished_members_are_written_once(tmp_path):
    kept(tmp_path, grown(5, 2), grown(9, 2), grown(1, 3))
    results = tmp_path / "running" / "cell" / "set-results"
    assert sorted(path.name for path in results.iterdir()) == ["000000-000002", "000002-000003"]
    going_on = keeper(tmp_path)
    same(going_on.latest(), grown(1, 3))
    with going_on:
        going_on.keep(grown(2, 6))
    assert sorted(path.name for path in results.iterdir())[-1] == "000003-000006"
    same(keeper(tmp_path).latest(), grown(2, 6))


def test_lost_results_fall_back_to_a_snapshot_that_needs_none_of_them(tmp_path):
    kept(tmp_path, grown(5, 2), grown(1, 3))
    shutil.rmtree(tmp_path / "running" / "cell" / "set-results" / "000002-000003")
    same(keeper(tmp_path).latest(), grown(5, 2))


def test_a_finished_cell_leaves_nothing(tmp_path):
    kept(tmp_path, snapshot(1)).clear()
    assert keeper(tmp_path).latest() is None and not (tmp_path / "running" / "cell" / "set").exists()


def test_what_cannot_be_written_is_said_and_ends_nothing(tmp_path):
    (tmp_path / "running").write_text("no folder")
    said = []
    with Keeper(tmp_path, "cell", "set", ("a", "b"), say=said.append) as writing:
        writing.keep(snapshot(1))
    assert len(said) == 1 and "cannot write" in said[0], said


def test_one_that_does_not_fit_is_removed_and_said(tmp_path):
    kept(tmp_path, snapshot(1))
    said = []
    again = Keeper(tmp_path, "cell", "set", ("a", "b"), say=said.append)
    assert again.latest() is not None and again.earlier == 1.5
    again.refuse("3 leaves for a tree of 4")
    assert again.latest() is None and again.earlier == 0 and "3 leaves" in said[0]
