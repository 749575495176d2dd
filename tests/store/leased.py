"""What is true of leases wherever they lie: on a disk, in an emulated store, in a server that speaks S3."""

import threading
import time

from bdjax.store.leases import Leases

CELL = "c" * 24


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
