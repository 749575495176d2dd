"""Which process works on which cell, so that several may share a folder of results without a server.

``out/claims/<cell>.json`` exists while a process works on the cell. It is created exclusively and beats: its owner writes a
number that grows. A claim that stops beating is taken over after a while, one whose process died on the same machine at once.
Nobody's clock is compared with another's: a watcher times with its own how long a claim has not changed. Records are written
whole under names made of their content, so that even two processes on one cell would leave one record. How claims are kept on a
disk and in an object store is told in :mod:`bdjax.store.lease_files`.
"""

import contextlib
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bdjax.errors import UserError
from bdjax.store import remote_checkpoints, rows
from bdjax.store.atomic import token
from bdjax.store.lease_files import Claim, keeper, read
from bdjax.store.location import Location

BEAT = 5.0  # seconds between beats
PATIENCE = 60.0  # seconds without one after which a claim is taken over; file systems over a network may show a change late


_OPEN: "weakref.WeakSet[Claims]" = weakref.WeakSet()  # of this process, for one that ends without leaving their blocks


def give_all_back() -> None:
    """Give back every cell that this process holds, and remove what it has half-written of them, just before it ends."""
    for claims in list(_OPEN):
        claims.give_back()


class Claims:
    """The claims of this process on the cells of one folder; a context manager, which gives all of them back.

    Args:
      out: folder of results.
      beat: seconds between beats.
      patience: seconds without a beat after which another's claim is taken over.
      say: told of every claim that is taken over.
    """

    def __init__(self, out: Location, *, beat: float = BEAT, patience: float = PATIENCE, say: Callable[[str], None] = print):
        self.folder, self.out, self.every, self.patience, self.say = out / "claims", out, beat, patience, say
        self._keeper = keeper(self.folder)
        self._held: dict[str, tuple[Any, str]] = {}  # cell: what the keeper gave for it, and since when
        self._seen: dict[str, tuple[bytes, float]] = {}  # cell: content of another's claim, and when it was first seen so
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._beat, name="bdjax-claims", daemon=True)

    def __enter__(self) -> "Claims":
        self._keeper.begin(self.folder, self.say)
        _OPEN.add(self)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        _OPEN.discard(self)
        self._stop.set()
        self._thread.join()
        for cell in list(self._held):
            self._release(cell)

    def give_back(self) -> None:
        """Give all cells back while the work on them is under way: the process is about to end."""
        self._stop.set()
        for cell in list(self._held):
            with contextlib.suppress(OSError, UserError, KeyError):  # the main thread may be giving it back too
                clean(self.out, cell, token())
                self._release(cell)

    @contextlib.contextmanager
    def holding(self, cell: str) -> Iterator[bool]:
        """Hold a cell for as long as the block runs; gives False where another process holds it."""
        got = self._take(cell)
        try:
            yield got
        finally:
            if got:
                self._release(cell)

    def _path(self, cell: str) -> Location:
        return self.folder / f"{cell}.json"

    def _take(self, cell: str) -> bool:
        path = self._path(cell)
        if self._create(path, cell):
            return True
        found = read(path)
        if found is None:  # it was given back just now; the next round sees
            return False
        content, claim = found
        first = self._seen.get(cell)
        if first is None or first[0] != content:
            first = self._seen[cell] = (content, time.monotonic())
        dead = claim is not None and gone(claim)
        if not dead and time.monotonic() - first[1] < self.patience:
            return False
        return self._take_over(path, cell, content, claim) and self._create(path, cell)

    def _create(self, path: Location, cell: str) -> bool:
        since = rows.now()
        handle = self._keeper.create(path, lambda: ours(since))
        if handle is None:
            return False
        with self._lock:
            self._held[cell] = handle, since
        self._seen.pop(cell, None)
        return True

    def _take_over(self, path: Location, cell: str, content: bytes, claim: Claim | None) -> bool:
        """Put another's claim aside, if it is still the one that was judged."""
        right: bool = self._keeper.take(path, content)
        if right and claim is not None:
            clean(self.out, cell, claim.token)
            self.say(f"taking over cell {cell} from process {claim.pid} on {claim.host}, which stopped without giving it back")
        return right

    def _release(self, cell: str) -> None:
        with self._lock:  # a beat under way ends first
            handle, _ = self._held.pop(cell)
        self._keeper.release(self._path(cell), handle)

    def _beat(self) -> None:
        number = 0
        while not self._stop.wait(self.every):
            number += 1
            with self._lock:
                for cell, (handle, since) in self._held.items():
                    with contextlib.suppress(OSError, UserError):  # a full disk must not end the work: the next beat may succeed
                        self._keeper.beat(self._path(cell), handle, ours(since, number))


def ours(since: str, beat: int = 0) -> Claim:
    """A claim of this process."""
    return Claim(token(), place(), socket.gethostname(), os.getpid(), _started(os.getpid()), since, beat)


def place() -> str:
    """Where a process number means the same process: machine, boot, namespace of processes."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # both are Linux's
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def _started(pid: int) -> str | None:
    """When a process began, in ticks since the boot; None where the system does not tell, "" for one that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return None


def gone(claim: Claim) -> bool:
    """Whether the process of a claim is known to be dead: only of processes of this place can that be known."""
    if claim.place != place():
        return False
    try:
        os.kill(claim.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return claim.started is not None and _started(claim.pid) != claim.started


def clean(out: Location, cell: str, dead: str) -> None:
    """Remove what a dead process left half-written of a cell."""
    import shutil

    if not isinstance(out, Path):
        remote_checkpoints.clean(out / "models" / cell, dead)
        return
    folders = [out / kind / cell for kind in ("records", "models", "arrays")]
    for path in (path for folder in (*folders, out / "failures", out / "sweeps") for path in folder.glob(f".*.{dead}.tmp")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
