"""What is true of leases wherever they lie: on a disk, in an emulated store, in a server that speaks S3."""

import contextlib
import subprocess
import sys
import threading
import time

import pytest

from bdjax.store import lease_files, leases
from bdjax.store.conditional import Conditional
from bdjax.store.lease_objects import RELEASED
from bdjax.store.leases import Leases

CELL = "c" * 24
HOLD = f"""
import sys, time
from bdjax.store.leases import Leases
from bdjax.store.location import locate
with Leases(locate(sys.argv[1])) as mine, mine.lease("{CELL}") as got:
    assert got
    print("held", flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def held(out, before=""):
    """Another process that holds the cell while the block runs; ``before`` is Python that it runs first."""
    process = subprocess.Popen([sys.executable, "-c", before + HOLD, str(out)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def path(out):
    """Where the cell's lease lies."""
    return out / "claims" / f"{CELL}.json"


def someone(out, write, **fields):
    """A lease of a process on another machine, which will never send a heartbeat; ``write(place, content)`` keeps it."""
    far = {"token": "elsewhere", "place": "other machine", "host": "far", **fields}
    lease = leases.own_lease("2026-01-01T00:00:00+00:00")._replace(**far)
    write(path(out), lease_files.encode(lease))
    return lease


def one_of_many(out):
    """Of eight that try at once, one gets the cell."""
    got, gate = [], threading.Barrier(8)

    def take(mine):
        gate.wait()
        with mine.lease(CELL) as mine_now:
            got.append(mine_now)
            gate.wait()  # nobody gives it back before everybody has tried

    everyone = [Leases(out).__enter__() for _ in range(8)]
    threads = [threading.Thread(target=take, args=(mine,)) for mine in everyone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine in everyone:
        mine.__exit__()
    assert sum(got) == 1


def is_free(out):
    """Nobody holds the cell."""
    found = leases.read(path(out))
    return found is None or found[0] == RELEASED


@contextlib.contextmanager
def in_step(many):
    """In a store, ``many`` that take over a lease have all read it before the first one replaces it."""
    gate, plain = threading.Barrier(many), Conditional.write

    def write(self, place, data, version):
        if version is not None and data != RELEASED:
            gate.wait(60)
        return plain(self, place, data, version)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Conditional, "write", write)
        yield


def one_takes_over(out, write, rounds=20, many=4):
    """Of many that take over a dead lease at the same moment one gets it, every time; ``write`` as of :func:`someone`."""
    with contextlib.ExitStack() as stack:
        everyone = [stack.enter_context(Leases(out, heartbeat=3600, timeout=3600, say=lambda _: None)) for _ in range(many)]
        stack.enter_context(in_step(many))
        for number in range(rounds):
            got, gate = [], threading.Barrier(many)

            def take(mine, got=got, gate=gate):
                with mine.lease(CELL) as now:
                    got.append(now)
                    gate.wait(60)  # nobody gives it back before everybody has tried

            someone(out, write, heartbeat=number, place=leases.process_space(), started="long ago")  # its process is gone
            threads = [threading.Thread(target=take, args=(mine,)) for mine in everyone]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sorted(got) == [False] * (many - 1) + [True], f"round {number}"
            assert is_free(out)


def lost_while_paused(out):
    """A holder that was paused for longer than the timeout finds its cell lost, and leaves the next one's lease alone."""
    for heartbeats in (0, 2):
        said = []
        with (
            Leases(out, heartbeat=3600, say=said.append) as paused,
            Leases(out, heartbeat=3600, timeout=0, say=lambda _: None) as other,
        ):
            said.clear()
            block = paused.lease(CELL)
            assert block.__enter__() and not paused.lost(CELL)
            with other.lease(CELL) as got:
                theirs = leases.read(path(out))
                for number in range(heartbeats):
                    paused._renew(number + 1)
                assert got and paused.lost(CELL) is (heartbeats > 0) and not other.lost(CELL)
                assert [line.partition(":")[0] for line in said] == [f"lost cell {CELL}"] * paused.lost(CELL)
                block.__exit__(None, None, None)
                other._renew(1)
                assert not other.lost(CELL) and leases.read(path(out))[1] == theirs[1]._replace(heartbeat=1)
            assert is_free(out)
            with paused.lease(CELL) as again:
                assert again and not paused.lost(CELL)


def lost_by_the_dead_alone(out, other, say):
    """A process keeps the cell while it lives, whatever the timeout, and loses it when it is dead."""
    with Leases(out, timeout=3600, say=say) as mine:
        with mine.lease(CELL) as got:
            assert not got
        other.kill()
        other.wait()
        with mine.lease(CELL) as got:
            assert got


def lost_without_heartbeats(out, renew, say):
    """Another machine's lease is taken over by the watcher's own clock; ``renew`` makes it send a heartbeat meanwhile."""
    with Leases(out, timeout=0.3, say=say) as mine:
        with mine.lease(CELL) as got:
            assert not got
        renew()  # its time starts again
        time.sleep(0.35)
        with mine.lease(CELL) as got:
            assert not got
        time.sleep(0.35)
        with mine.lease(CELL) as got:
            assert got
