"""What a population has computed so far, kept while it runs, so that a killed run goes on there.

``out/running/<cell>/<members>/<number>/`` is a checkpoint as those of trained members are (:mod:`bdjax.store.checkpoints`): the
leaves of the state on the devices and of the results of members that have come to their end, and a few numbers. The two newest
are kept; a damaged one is quarantined, and the one before counts. The folder goes when the cell is finished.
"""

import contextlib
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bdjax.population import hosts
from bdjax.population.snapshots import Snapshot
from bdjax.store import checkpoints, objects
from bdjax.store.atomic import Corrupt, quarantine
from bdjax.store.location import Location

KEPT = 2


class Keeper:
    """Writes and reads the snapshots of a cell and member set; writing goes on beside the computation, one at a time.

    Args:
      out: folder of the sweep.
      cell: hash of the cell.
      name: hash of the member set.
      members: hashes of the members.
      resumed: called with the numbers of the snapshot that :meth:`latest` gives: members at once, finished ones, and rounds.
    """

    def __init__(
        self,
        out: Location,
        cell: str,
        name: str,
        members: Sequence[str] = (),
        *,
        resumed: Callable[[int, int, int], None] | None = None,
    ) -> None:
        self.base: Any = out / "running" / cell / name
        self.members = tuple(members)
        self._resumed = resumed
        self._writing: threading.Thread | None = None
        self._failed: BaseException | None = None

    def keep(self, snapshot: Snapshot) -> None:
        """Begin to write a snapshot, once the one before is written.

        Raises:
          UserError: the one before could not be written.
        """
        if not hosts.is_leader():
            return
        self.wait()
        self._writing = threading.Thread(target=self._write, args=(snapshot,), name="bdjax-snapshot")
        self._writing.start()

    def wait(self) -> None:
        """Wait until everything is written; raises UserError where something could not be."""
        if self._writing is not None:
            self._writing.join()
            self._writing = None
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed

    def latest(self) -> Snapshot | None:
        """Return the newest snapshot that is not damaged; None where there is none of these members."""
        found = hosts.broadcast(self._latest() if hosts.is_leader() else None)
        if found is not None and self._resumed is not None:
            self._resumed(*found[:3])
        return found

    def _latest(self) -> Snapshot | None:
        for path in reversed(self._there()):
            try:
                members, tree = checkpoints.load_tree(path)
                at_once, finished, rounds = (int(number) for number in tree["numbers"])
                state, results = (checkpoints.in_order(tree[part]) for part in ("state", "results"))
                found = Snapshot(at_once, finished, rounds, state, results)
            except (Corrupt, KeyError, TypeError, ValueError) as reason:
                quarantine(path, str(reason))
                continue
            if members == self.members:
                return found
        return None

    def clear(self) -> None:
        """Remove all snapshots: the cell is finished."""
        with contextlib.suppress(Exception):  # what could not be written is not needed any more
            self.wait()
        if hosts.is_leader():
            _remove(self.base)

    def _write(self, snapshot: Snapshot) -> None:
        tree = {
            "numbers": np.array(snapshot[:3], np.int64),
            "state": dict(checkpoints.enumerated(snapshot.state)),
            "results": dict(checkpoints.enumerated(snapshot.results)),
        }
        try:
            checkpoints.save_tree(self.base / f"{snapshot.finished:06d}-{snapshot.rounds:06d}", self.members, tree)
            for old in self._there()[:-KEPT]:
                _remove(old)
        except BaseException as error:
            self._failed = error

    def _there(self) -> list[Location]:
        """Folders of the complete snapshots, the newest last."""
        return list(checkpoints.complete(self.base))


def _remove(path: Location) -> None:
    if isinstance(path, Path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        objects.remove_folder(path)
