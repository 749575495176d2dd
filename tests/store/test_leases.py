"""Who works on which cell: leases are exclusive, send heartbeats, and pass to others when their holder is gone."""

import json
import os
import time

import pytest

from bdjax.data import atomic
from bdjax.store import lease_files, leases
from bdjax.store.leases import Leases
from tests.store import leased
from tests.store.leased import CELL, path


@pytest.fixture
def said():
    return []


@pytest.fixture
def other(tmp_path):
    """Another process that holds the cell."""
    with leased.held(tmp_path) as process:
        yield process


def write(place, content):
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)


def someone(out, **fields):
    """A lease of a process on another machine, on a disk."""
    return leased.someone(out, write, **fields)


def test_a_lease_is_exclusive_and_given_back(tmp_path):
    with Leases(tmp_path) as one, Leases(tmp_path) as two:
        with one.lease(CELL) as first, two.lease(CELL) as second, two.lease("d" * 24) as another:
            assert first and another and not second
        with two.lease(CELL) as now:
            assert now
    assert not list((tmp_path / "claims").iterdir())


def test_the_file_of_a_lease_is_read_by_earlier_versions(tmp_path):
    with Leases(tmp_path) as one, one.lease(CELL):
        content = json.loads(path(tmp_path).read_bytes())
    assert set(content) == {"token", "place", "host", "pid", "started", "since", "beat", "hold"}
    assert (content["pid"], content["beat"], content["hold"]) == (os.getpid(), 0, "")


def test_a_heartbeat_says_how_far_the_work_is(tmp_path):
    far = ["epoch 120/600"]
    with Leases(tmp_path, heartbeat=0.01, note=lambda: far[0]) as one, one.lease(CELL):
        assert leases.read(path(tmp_path))[1].note == ""
        for text in ("epoch 120/600", "short", ""):
            far[0] = text
            deadline = time.monotonic() + 10
            while leases.read(path(tmp_path))[1].note != text:
                assert time.monotonic() < deadline
                time.sleep(0.005)


@pytest.mark.parametrize("note", ["", "epoch 1/2", '"' * 500, "ö…" * 300, "\\\n" * 99])
def test_a_lease_has_one_length_and_is_read_whatever_its_note(tmp_path, note):
    held = leases.own_lease("2026-01-01T00:00:00+00:00", 3, note)._replace(host="h" * 64, place="p" * 128, token="t" * 40)
    handle = os.open(tmp_path / "lease", os.O_CREAT | os.O_RDWR)
    lease_files._write(handle, held)
    os.close(handle)
    assert (tmp_path / "lease").stat().st_size == lease_files.LENGTH
    found = leases.read(tmp_path / "lease")[1]
    assert found._replace(note="") == held._replace(note="") and len(found.note) == min(len(note), lease_files.NOTE)


def test_a_lease_with_a_field_of_a_later_version_is_read(tmp_path):
    lease = someone(tmp_path)
    fields = json.loads(path(tmp_path).read_bytes())
    path(tmp_path).write_text(json.dumps({**fields, "colour": "blue"}))
    assert leases.read(path(tmp_path))[1] == lease


def test_one_of_many_takes_it(tmp_path):
    leased.one_of_many(tmp_path)


def test_one_of_many_takes_it_over(tmp_path):
    leased.one_takes_over(tmp_path, write)


def test_who_was_paused_finds_its_cell_lost(tmp_path):
    leased.lost_while_paused(tmp_path)


def test_a_living_process_keeps_its_cell_and_a_dead_one_loses_it_at_once(tmp_path, other, said):
    leased.lost_by_the_dead_alone(tmp_path, other, said.append)
    assert len(said) == 1 and f"process {other.pid}" in said[0] and CELL in said[0]


def test_a_killed_process_that_nobody_reaped_is_dead(tmp_path, other):
    other.kill()
    deadline = time.monotonic() + 10
    with Leases(tmp_path, timeout=3600) as mine:
        while time.monotonic() < deadline:
            with mine.lease(CELL) as got:
                if got:
                    return
            time.sleep(0.01)
    raise AssertionError("a zombie kept its cell")


def test_a_process_number_that_was_given_again_is_another_process(tmp_path, other):
    lease = leases.read(path(tmp_path))[1]
    assert not leases.holder_is_dead(lease)
    assert leases.holder_is_dead(lease._replace(started="1"))
    assert not leases.holder_is_dead(lease._replace(started="1", place="other machine"))  # nothing is known of processes there


def test_a_lease_without_heartbeats_is_taken_over_by_the_watchers_own_clock(tmp_path, said):
    someone(tmp_path)
    os.utime(path(tmp_path), (0, 0))  # clocks of other machines and file times say nothing: it was seen only now
    leased.lost_without_heartbeats(tmp_path, lambda: someone(tmp_path, heartbeat=1), said.append)
    assert "far" in said[0]


@pytest.mark.slow
def test_a_lease_with_heartbeats_is_left_alone(tmp_path):
    with Leases(tmp_path, heartbeat=0.05) as one, Leases(tmp_path, timeout=3) as two, one.lease(CELL):
        for _ in range(35):
            with two.lease(CELL) as got:
                assert not got
            time.sleep(0.1)


def test_a_lease_that_was_never_written_is_taken_over_after_a_while(tmp_path):
    path(tmp_path).parent.mkdir(parents=True)
    path(tmp_path).write_bytes(b"")
    with Leases(tmp_path, timeout=0.2) as mine:
        with mine.lease(CELL) as got:
            assert not got
        time.sleep(0.25)
        with mine.lease(CELL) as got:
            assert got


def test_taking_over_does_not_rob_whoever_was_faster(tmp_path):
    stale = someone(tmp_path)
    content = path(tmp_path).read_bytes()
    someone(tmp_path, heartbeat=7)  # the lease that was judged is gone; this one is alive
    with Leases(tmp_path) as mine:
        assert not mine._take_over(path(tmp_path), CELL, content, stale)
    assert leases.read(path(tmp_path))[1].heartbeat == 7


def test_who_loses_a_cell_does_not_give_back_the_next_owners(tmp_path):
    with Leases(tmp_path) as one, one.lease(CELL):
        path(tmp_path).unlink()
        someone(tmp_path)
    assert leases.read(path(tmp_path))[1].host == "far"


def test_what_the_dead_left_half_written_goes_and_nothing_else(tmp_path, other):
    dead = leases.read(path(tmp_path))[1].token
    folder = tmp_path / "records" / CELL
    folder.mkdir(parents=True)
    leavings = folder / f".x.parquet.{dead}.tmp"
    living = atomic.temporary_of(folder / "y.parquet")
    half = tmp_path / "models" / CELL / f".z.{dead}.tmp"
    half.mkdir(parents=True)
    (half / "state").write_text("half")
    for file in (leavings, living, folder / "whole.parquet"):
        file.write_text("x")
    other.kill()
    other.wait()
    with Leases(tmp_path, say=lambda _: None) as mine, mine.lease(CELL) as got:
        assert got
    assert not leavings.exists() and not half.exists() and living.exists() and (folder / "whole.parquet").exists()
