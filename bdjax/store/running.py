"""What a population has computed so far, kept while it runs, so that a killed run goes on there.

``out/running/<cell>/<members>/<number>/`` is a checkpoint as those of trained members are (:mod:`bdjax.store.checkpoints`): the
leaves of the state on the devices, and a few numbers. The two newest are kept; a damaged one is quarantined, and the one before
counts. The results of members that have come to their end are written once, into ``<members>-results/<first>-<last>/`` beside
them. The folder of the cell goes when it is finished.
"""

import shutil
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bdjax.errors import first_line
from bdjax.population import hosts
from bdjax.population.snapshots import Snapshot
from bdjax.store import checkpoints, objects
from bdjax.store.atomic import Corrupt, quarantine
from bdjax.store.location import Location

KEPT = 2

_OPEN: "weakref.WeakSet[Keeper]" = weakref.WeakSet()  # of this process, for one that ends without leaving their blocks


def finish_all() -> None:
    """Wait until all that this process keeps is written, just before it ends."""
    for keeper in list(_OPEN):
        keeper.wait()


def cells(out: Location) -> set[str]:
    """Return the hashes of the cells of which anything is kept."""
    base = out / "running"
    if isinstance(base, Path):
        return {path.name for path in base.iterdir()} if base.is_dir() else set()
    return {name.partition("/")[0] for name in objects.listing(base)}


class Keeper:
    """Writes and reads the snapshots of a cell and member set; writing goes on beside the computation, one at a time.

    A context manager, at whose end everything is written. What cannot be written is said, and ends nothing: the work goes on, and
    the next snapshot may succeed.

    Args:
      out: folder of the sweep.
      cell: hash of the cell.
      name: hash of the member set.
      members: hashes of the members.
      say: gets a line about what could not be written or read.
      heard: called with the rounds of a snapshot when it is written, and the seconds that took; from the thread that writes.
    """

    def __init__(
        self,
        out: Location,
        cell: str,
        name: str,
        members: Sequence[str] = (),
        *,
        say: Callable[[str], None] = print,
        heard: Callable[[int, float], None] | None = None,
    ) -> None:
        self.cell: Any = out / "running" / cell
        self.base: Any = self.cell / name
        self.done: Any = self.cell / f"{name}-results"
        self.members, self.say, self._heard = tuple(members), say, heard
        self.earlier = 0.0  # seconds of the work that the snapshot holds from which this run went on
        self._writing: threading.Thread | None = None
        self._finished = 0  # members whose results are written

    def __enter__(self) -> "Keeper":
        _OPEN.add(self)
        return self

    def __exit__(self, *_: Any) -> None:
        self.wait()
        _OPEN.discard(self)

    def keep(self, snapshot: Snapshot) -> None:
        """Begin to write a snapshot, once the one before is written."""
        if not hosts.is_leader():
            return
        self.wait()
        self._writing = threading.Thread(target=self._write, args=(snapshot,), name="bdjax-snapshot")
        self._writing.start()

    def wait(self) -> None:
        """Wait until everything is written."""
        writing = self._writing
        if writing is not None:
            writing.join()

    def latest(self) -> Snapshot | None:
        """Return the newest snapshot that is not damaged; None where there is none of these members."""
        found: Snapshot | None = hosts.broadcast(self._latest() if hosts.is_leader() else None)
        self.earlier, self._finished = (0.0, 0) if found is None else (found.seconds, found.finished)
        return found

    def refuse(self, reason: str) -> None:
        """Begin anew: the newest snapshot does not fit."""
        self.earlier, self._finished = 0.0, 0
        self.say(f"what an earlier run kept of this cell does not fit, and is made again: {reason}")
        self.clear()

    def _latest(self) -> Snapshot | None:
        for path in reversed(self._there()):
            try:
                members, tree = checkpoints.load_tree(path)
                at_once, finished, stage, rounds = (int(number) for number in tree["position"])
                state, results = checkpoints.in_order(tree["state"]), self._results(finished)
                found = Snapshot(at_once, finished, stage, rounds, float(tree["seconds"]), state, results)
            except (Corrupt, KeyError, TypeError, ValueError) as reason:
                quarantine(path, str(reason))
                continue
            if members == self.members:
                return found
        return None

    def _results(self, finished: int) -> tuple[np.ndarray, ...]:
        """The leaves of the results of the first members, of as many as have finished; raises Corrupt where any are not there."""
        parts: list[tuple[np.ndarray, ...]] = []
        there, first = [path.name for path in checkpoints.complete(self.done)], 0
        while first < finished:
            lasts = [last for name in there for start, last in [_range(name)] if start == first and last <= finished]
            if not lasts:
                raise Corrupt(f"the results of member {first + 1} are not there")
            path = self.done / f"{first:06d}-{max(lasts):06d}"
            try:
                parts.append(checkpoints.in_order(checkpoints.load_tree(path)[1]))
            except Corrupt as reason:
                quarantine(path, str(reason))
                raise
            first = max(lasts)
        return tuple(np.concatenate(leaves) for leaves in zip(*parts, strict=True))

    def clear(self) -> None:
        """Remove all that is kept of the cell: it is finished."""
        self.wait()
        if hosts.is_leader():
            _remove(self.cell)

    def _write(self, snapshot: Snapshot) -> None:
        tree = {
            "position": np.array(snapshot[:4], np.int64),
            "seconds": np.float64(snapshot.seconds),
            "state": dict(checkpoints.enumerated(snapshot.state)),
        }
        name, began = f"{snapshot.finished:06d}-{snapshot.stage:03d}-{snapshot.rounds:06d}", time.monotonic()
        try:
            if snapshot.finished > self._finished:
                new = dict(checkpoints.enumerated([leaf[self._finished :] for leaf in snapshot.results]))
                part = f"{self._finished:06d}-{snapshot.finished:06d}"
                checkpoints.save_tree(self.done / part, self.members, new)
                self._finished = snapshot.finished
            checkpoints.save_tree(self.base / name, self.members, tree)
            for old in self._there()[:-KEPT]:
                _remove(old)
            if self._heard is not None:
                self._heard(snapshot.rounds, time.monotonic() - began)
        except Exception as error:  # a full disk or an unreachable store must not end the work
            self.say(f"this cell could not be kept as it is now: {first_line(error)}; the work goes on")

    def _there(self) -> list[Location]:
        """Folders of the complete snapshots, the newest last."""
        return list(checkpoints.complete(self.base))


def _range(name: str) -> tuple[int, int]:
    """The first and the last member of a part, by its name."""
    first, last = name.split("-")
    return int(first), int(last)


def _remove(path: Location) -> None:
    if isinstance(path, Path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        objects.remove_folder(path)
