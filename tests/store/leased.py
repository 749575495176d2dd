"""What is true of leases wherever they lie: on a disk, in an emulated store, in a server that speaks S3."""

import contextlib
import subprocess
import sys
import threading
import time

from bdjax.store import lease_files, leases
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
    lease = leases.own_lease("2026-01-01T00:00:00+00:00")._replace(token="elsewhere", place="other machine", host="far", **fields)
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
