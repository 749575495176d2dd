"""Leases in an object store: exclusive, with heartbeats, taken from the dead; and processes that share a sweep there."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from bdjax.store import checkpoint_manifest, conditional, leases, location, objects, records
from bdjax.store.lease_objects import RELEASED
from bdjax.store.leases import Leases
from bdjax.store.rows import VOLATILE
from tests.store import leased
from tests.store.leased import CELL, path
from tests.sweep import bucket
from tests.sweep.bucket import Bucket, Conditions
from tests.sweep.small import EXECUTION

URL = "bucket://results/run"
REGISTERED = "from tests.sweep import bucket; bucket.register()\n"
GRID = """
from bdjax.sweep.grid import Grid

grid = Grid(
    attack=("badnets", "blended"), defense=("ft", "clp"), poison_ratio=(0.0, 0.1), seeds=(0, 1), spc=(2,), width=4,
    epochs=3, batch=50, train_images=200, test_images=100, defense_config={"ft": {"epochs": 2}},
)
"""
WORKER = """
import sys
from bdjax.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def out(tmp_path, monkeypatch):
    """The URL of a folder in an empty bucket, as a place."""
    bucket.register()
    (tmp_path / "results").mkdir()
    monkeypatch.setenv(bucket.ROOT, str(tmp_path))
    return location.locate(URL)


@pytest.fixture
def plain(out, monkeypatch):
    """The same where nobody knows how to ask the store for conditions; objects are created exclusively all the same."""
    monkeypatch.delitem(conditional.CLIENTS, bucket.PACKAGE)
    return out


@pytest.fixture
def other(out):
    """Another process that holds the cell."""
    with leased.held(URL, REGISTERED) as process:
        yield process


def someone(out, **fields):
    """A lease of a process on another machine, in an object store."""
    return leased.someone(out, objects.put, **fields)


def test_a_lease_is_exclusive_and_given_back(out):
    with Leases(out) as one, Leases(out) as two:
        with one.lease(CELL) as first, two.lease(CELL) as second, two.lease("d" * 24) as another:
            assert first and another and not second
        with two.lease(CELL) as now:
            assert now
    assert objects.listing(out) == {}


def test_one_of_many_takes_it(out, monkeypatch):
    monkeypatch.setenv(bucket.LATENCY, "0.02")
    leased.one_of_many(out)


def test_a_living_process_keeps_its_cell_and_a_dead_one_loses_it_at_once(out, other):
    said = []
    leased.lost_by_the_dead_alone(out, other, said.append)
    assert len(said) == 1 and f"process {other.pid}" in said[0] and CELL in said[0]


def test_a_lease_without_heartbeats_is_taken_over_by_the_watchers_own_clock(out):
    said = []
    someone(out)
    leased.lost_without_heartbeats(out, lambda: someone(out, heartbeat=1), said.append)
    assert "far" in said[0]


def test_a_lease_with_heartbeats_is_left_alone(out):
    with Leases(out, heartbeat=0.05) as one, Leases(out, timeout=1) as two, one.lease(CELL):
        for _ in range(15):
            with two.lease(CELL) as got:
                assert not got
            time.sleep(0.1)
        assert leases.read(path(out))[1].heartbeat > 5


def test_taking_over_does_not_rob_whoever_was_faster(out):
    stale = someone(out)
    content = objects.get(path(out))
    someone(out, heartbeat=7)
    with Leases(out) as mine:
        assert not mine._take_over(path(out), CELL, content, stale)
    assert leases.read(path(out))[1].heartbeat == 7


@pytest.mark.parametrize("kind", ["out", "plain"])
def test_who_loses_a_cell_neither_renews_nor_releases_the_next_owners(request, kind):
    place, said = request.getfixturevalue(kind), []
    with Leases(place, heartbeat=0.05, say=said.append) as one, one.lease(CELL):
        someone(place, heartbeat=7)
        time.sleep(0.3)
        assert one.lost(CELL) and said[-1].startswith(f"lost cell {CELL}: ")
    assert leases.read(path(place))[1].heartbeat == 7


def test_one_of_many_takes_it_over(out):
    leased.one_takes_over(out, objects.put)


def test_who_was_paused_finds_its_cell_lost(out):
    leased.lost_while_paused(out)


def test_who_was_paused_finds_its_cell_lost_without_conditions(plain):
    leased.lost_while_paused(plain)


def test_requests_that_were_sent_twice_do_not_lose_the_lease(out, monkeypatch):
    requests, write = [], Conditions.write

    def twice(self, name, data, version):  # as a client does that got no answer
        requests.append(version is None)
        write(self, name, data, version)
        return write(self, name, data, version)

    someone(out)
    with Leases(out, heartbeat=3600, timeout=0, say=lambda _: None) as mine:
        monkeypatch.setattr(Conditions, "write", twice)
        with mine.lease(CELL) as taken_over:
            mine._renew(1)
            assert taken_over and not mine.lost(CELL) and requests == [True, False, False]
        with mine.lease(CELL) as created:
            assert created and requests[3:] == [True]
    assert objects.listing(out) == {}


def test_an_answer_that_never_came_does_not_lose_the_lease(out, monkeypatch):
    write = Conditions.write

    def unanswered(self, name, data, version):
        write(self, name, data, version)
        raise TimeoutError

    with Leases(out, heartbeat=3600) as mine:
        for number in (1, 3):  # the next request is a heartbeat, or gives the cell back
            with mine.lease(CELL) as got:
                monkeypatch.setattr(Conditions, "write", unanswered)
                mine._renew(number)
                monkeypatch.setattr(Conditions, "write", write)
                assert got and leases.read(path(out))[1].heartbeat == number
                if number == 1:
                    mine._renew(2)
                    assert leases.read(path(out))[1].heartbeat == 2
                assert not mine.lost(CELL)
            assert objects.listing(out) == {}


def test_where_nothing_is_removed_on_a_condition_a_cell_is_given_back_all_the_same(out, monkeypatch):
    monkeypatch.setattr(Conditions, "remove", lambda self, name, version: self.fs.rm_file(name))
    said = []
    with Leases(out, timeout=3600, say=said.append) as one, Leases(out, timeout=3600, say=said.append) as two:
        for mine in (one, two, one):
            with mine.lease(CELL) as got:
                assert got
            assert leases.read(path(out)) == (RELEASED, None)
    assert said == []
    leased.one_takes_over(out, objects.put, rounds=5)
    leased.lost_while_paused(out)


def test_an_answer_that_was_lost_does_not_lose_the_lease_without_conditions(plain, monkeypatch):
    pipe_file = Bucket.pipe_file

    def twice(self, name, value, mode="overwrite", **kwargs):
        pipe_file(self, name, value, mode=mode)
        if mode == "create":
            pipe_file(self, name, value, mode=mode)

    with Leases(plain, say=lambda _: None) as mine:
        monkeypatch.setattr(Bucket, "pipe_file", twice)
        with mine.lease(CELL) as got:
            assert got
    assert objects.listing(plain) == {}


@pytest.mark.parametrize("ignored", ["write", "remove"])
def test_a_condition_that_is_ignored_is_found_out(out, monkeypatch, ignored):
    heed = getattr(Conditions, ignored)

    def careless(self, name, *arguments):
        *rest, version = arguments
        return heed(self, name, *rest, version and self.version(name))

    monkeypatch.setattr(Conditions, ignored, careless)
    found = conditional.tried(out)
    assert found == "its server ignores it" if ignored == "write" else not found.removes
    assert objects.listing(out) == {}


def test_a_condition_that_is_refused_is_found_out(out, monkeypatch):
    write = Conditions.write

    def refuse(self, name, data, version):
        if version is not None:
            raise OSError("not implemented")
        return write(self, name, data, version)

    monkeypatch.setattr(Conditions, "write", refuse)
    said = []
    with Leases(out, say=said.append) as mine, mine.lease(CELL) as got:
        assert got
    assert said == [
        "bucket:// does not replace objects on a condition (not implemented): "
        "when a process is cut off, two others may take over its cell at once; they make the same records"
    ]
    assert objects.listing(out) == {}


def test_a_store_that_does_not_create_exclusively_is_named(plain, monkeypatch):
    pipe_file, said = Bucket.pipe_file, []

    def careless(self, name, value, mode="overwrite", **kwargs):
        pipe_file(self, name, value)

    monkeypatch.setattr(Bucket, "pipe_file", careless)
    with Leases(plain, say=said.append) as one, Leases(plain, say=said.append) as two:
        assert said == [f"bucket:// does not create objects exclusively: let one process alone work on {URL}"] * 2
        with one.lease(CELL) as first, two.lease(CELL) as second:
            assert first and not second
    monkeypatch.setattr(Bucket, "pipe_file", bucket.AbstractFileSystem.pipe_file)  # looks, then writes
    assert not objects.creates_exclusively(plain)


def test_what_the_dead_uploaded_half_goes_and_nothing_else(out, other):
    dead = leases.read(path(out))[1].token
    base = out / "models" / CELL
    manifest = {"members": ["m"], "files": {}, "state": f"state.{dead}.0"}
    keep = [f"a/state.{dead}.0/x", "a/state.living.0/x", "a/manifest.json", f"b/state.{dead}x.0/x"]
    for name in (*keep, f"a/state.{dead}.1/x", f"b/state.{dead}.2/deep/x"):
        objects.put(base / name, json.dumps(manifest).encode())
    other.kill()
    other.wait()
    with Leases(out, say=lambda _: None) as mine, mine.lease(CELL) as got:
        assert got
    assert sorted(objects.listing(base)) == sorted(keep)
    assert checkpoint_manifest.members_of(base / "a") == ["m"]


@pytest.mark.slow  # several processes, each of which compiles
def test_processes_share_a_sweep_and_one_may_be_killed(out, tmp_path, monkeypatch):
    monkeypatch.setenv(bucket.LATENCY, "0.01")
    (tmp_path / "grid.py").write_text(GRID)
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

    def start(where):
        command = [sys.executable, "-c", REGISTERED + WORKER, "sweep", str(tmp_path / "grid.py"), "--out", str(where), *EXECUTION]
        return subprocess.Popen(command, env={**os.environ, **cache}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def ended(process):
        text, _ = process.communicate(timeout=300)
        assert process.returncode == 0, text

    def rows(where):
        return [{name: value for name, value in row.items() if name not in VOLATILE} for row in records.read_rows(where)]

    def holder():
        held = [found[1] for each in location.files(out / "claims", "*.json") if (found := leases.read(each)) and found[1]]
        return next((lease.pid for lease in held if any(worker.pid == lease.pid for worker in workers)), None)

    ended(start(tmp_path / "alone"))
    workers = [start(URL) for _ in range(2)]
    while (pid := holder()) is None or not objects.listing(out / "records"):
        assert any(worker.poll() is None for worker in workers)
        time.sleep(0.02)
    victim = next(worker for worker in workers if worker.pid == pid)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    workers = [worker for worker in workers if worker is not victim] + [start(URL)]
    for worker in workers:
        ended(worker)
    assert rows(out) == rows(tmp_path / "alone") and len(rows(out)) == 24
    found = [
        (row["cell"], row["member"]) for each in location.files(out / "records", "*/*.parquet") for row in records.read_file(each)
    ]
    assert len(found) == len(set(found)), "a member has several records"
    # The victim may have died between its last record and giving the cell back; nobody asks for that cell again.
    left = [leases.read(each)[1].pid for each in location.files(out / "claims", "*.json")]
    assert left in ([], [victim.pid])
    states = {tuple(name.split("/")[:3]) for name in objects.listing(out / "models") if "/state." in name}
    assert len(states) == 2, "weights were left over"
