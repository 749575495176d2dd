"""Leases: which process works on which cell, so that several may share a folder of results without a server.

``out/claims/<cell>.json`` exists while a process works on the cell. It is created exclusively, and its holder writes
heartbeats, a number that grows. A lease without heartbeats is taken over after a timeout, one whose holder died on the same
machine at once. Nobody's clock is compared with another's: a process measures with its own how long a lease has not changed. A
holder that was paused for longer than the timeout learns from its next heartbeat that it lost the lease: it says so, leaves the
cell at the end of the segment that it computes, and leaves the new holder's lease alone. Records are written atomically under
names made of their content, so that even two processes on one cell leave one record. How leases are kept is in
:mod:`bdjax.store.lease_files` (on a disk) and :mod:`bdjax.store.lease_objects` (in an object store).
"""

import contextlib
import os
import shutil
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bdjax.data.atomic import token
from bdjax.errors import UserError
from bdjax.store import objects, remote_checkpoints, rows
from bdjax.store.lease_files import Lease, LeasesOnDisk, read
from bdjax.store.lease_objects import RELEASED, in_store
from bdjax.store.location import Location

HEARTBEAT = 5.0  # seconds between two heartbeats
TIMEOUT = 60.0  # seconds without one after which a lease is taken over; file systems over a network may show a change late

_OPEN: "weakref.WeakSet[Leases]" = weakref.WeakSet()  # of this process, for one that ends without leaving their blocks


def release_all() -> None:
    """Release every lease of this process and remove what it has half-written, just before it ends."""
    for leases in list(_OPEN):
        leases.release_all()


class Leases:
    """The leases of this process on the cells of one folder; a context manager, which releases all of them at its end.

    Args:
      out: folder of results.
      heartbeat: seconds between two heartbeats.
      timeout: seconds without a heartbeat after which another process's lease is taken over.
      say: called with a line for every lease that is taken over or lost, and with what a store cannot do.
      note: says how far the work is; asked at every heartbeat.
    """

    def __init__(
        self,
        out: Location,
        *,
        heartbeat: float = HEARTBEAT,
        timeout: float = TIMEOUT,
        say: Callable[[str], None] = print,
        note: Callable[[], str] = str,
    ):
        self.folder, self.out, self.interval, self.timeout, self.say = out / "claims", out, heartbeat, timeout, say
        self.note = note
        self._backend: Any = None  # chosen when the block begins, for that asks the store
        self._ours: dict[str, tuple[Any, str]] = {}  # cell: the backend's handle of its lease, and since when
        self._seen: dict[str, tuple[bytes, float]] = {}  # cell: content of another's lease, and when it was first seen so
        self._lost: set[str] = set()  # cells of ours that another process took over
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._send_heartbeats, name="bdjax-leases", daemon=True)

    def __enter__(self) -> "Leases":
        self._backend = LeasesOnDisk(self.folder) if isinstance(self.folder, Path) else in_store(self.folder, self.say)
        _OPEN.add(self)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        _OPEN.discard(self)
        self._stop.set()
        self._thread.join()
        for cell in list(self._ours):
            self._release(cell)

    def release_all(self) -> None:
        """Release all leases while the work under them goes on: the process is about to end."""
        self._stop.set()
        for cell in list(self._ours):
            with contextlib.suppress(OSError, UserError, KeyError):  # the main thread may be releasing it too
                clean(self.out, cell, token())
                self._release(cell)

    @contextlib.contextmanager
    def lease(self, cell: str) -> Iterator[bool]:
        """Hold the lease of a cell for as long as the block runs; yields False where another process holds it."""
        granted = self._acquire(cell)
        try:
            yield granted
        finally:
            if granted:
                self._release(cell)

    def lost(self, cell: str) -> bool:
        """Return whether another process has taken over the lease of a cell that this one acquired, as of the last heartbeat."""
        with self._lock:
            return cell in self._lost

    def _path(self, cell: str) -> Location:
        return self.folder / f"{cell}.json"

    def _acquire(self, cell: str) -> bool:
        path = self._path(cell)
        since = rows.now()
        if self._keep(cell, since, self._backend.acquire(path, lambda: own_lease(since))):
            return True
        found = read(path)
        if found is None:  # it was released just now; the next round sees
            return False
        content, lease = found
        first = self._seen.get(cell)
        if first is None or first[0] != content:
            first = self._seen[cell] = (content, time.monotonic())
        free = content == RELEASED or (lease is not None and holder_is_dead(lease))
        if not free and time.monotonic() - first[1] < self.timeout:
            return False
        return self._take_over(path, cell, content, lease)

    def _keep(self, cell: str, since: str, handle: Any) -> bool:
        """Remember that a lease is ours, if it is: the backend gave a handle of it."""
        if handle is None:
            return False
        with self._lock:
            self._ours[cell] = handle, since
            self._lost.discard(cell)
        self._seen.pop(cell, None)
        return True

    def _take_over(self, path: Location, cell: str, content: bytes, lease: Lease | None) -> bool:
        """Acquire another process's lease, if it is still the one that was judged."""
        since = rows.now()
        gone, handle = self._backend.take_over(path, content, lambda: own_lease(since))
        ours = self._keep(cell, since, handle)
        if gone and lease is not None:
            clean(self.out, cell, lease.token)
            self.say(f"taking over cell {cell} from process {lease.pid} on {lease.host}, which stopped without giving it back")
        return ours

    def _release(self, cell: str) -> None:
        with self._lock:  # a heartbeat under way ends first
            handle, _ = self._ours.pop(cell)
        self._backend.release(self._path(cell), handle)

    def _send_heartbeats(self) -> None:
        number = 0
        while not self._stop.wait(self.interval):
            number += 1
            self._renew(number)

    def _renew(self, number: int) -> None:
        """Send a heartbeat for every lease of ours, and learn which ones we lost."""
        lost, note = [], self.note()
        with self._lock:
            for cell, (handle, since) in self._ours.items():
                if cell in self._lost:
                    continue
                with contextlib.suppress(OSError, UserError):  # a full disk must not end the work: the next one may succeed
                    if not self._backend.renew(self._path(cell), handle, own_lease(since, number, note)):
                        lost.append(cell)
            self._lost.update(lost)
        for cell in lost:
            with contextlib.suppress(OSError, ValueError):  # a closed terminal must not end the heartbeats of the other cells
                self.say(
                    f"lost cell {cell}: another process took it over, as this one gave no sign of life for too long; "
                    "this one leaves it after the segment that it computes"
                )


def own_lease(since: str, heartbeat: int = 0, note: str = "") -> Lease:
    """Return what a lease of this process says."""
    pid = os.getpid()
    return Lease(token(), process_space(), socket.gethostname(), pid, _started(pid), since, heartbeat, note=note)


def process_space() -> str:
    """Return where a process number means the same process: machine, boot, namespace of processes."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # both are Linux's
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def _started(pid: int) -> str | None:
    """Return when a process began, in ticks since the boot; None where the system does not say, "" for one that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return None


def holder_is_dead(lease: Lease) -> bool:
    """Return whether the holder of a lease is known to be dead, which can be known only of processes of this machine."""
    if lease.place != process_space():
        return False
    try:
        os.kill(lease.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return lease.started is not None and _started(lease.pid) != lease.started


def clean(out: Location, cell: str, dead: str) -> None:
    """Remove what a dead process, known by its token, left half-written of a cell."""
    if not isinstance(out, Path):
        remote_checkpoints.clean(out / "models" / cell, dead)
        for name in {path.split("/")[0] for path in objects.listing(out / "running" / cell)}:
            remote_checkpoints.clean(out / "running" / cell / name, dead)
        return
    running = out / "running" / cell
    folders = [*(out / kind / cell for kind in ("records", "models", "arrays")), *running.glob("*/")]
    for path in (path for folder in (*folders, out / "failures", out / "sweeps") for path in folder.glob(f".*.{dead}.tmp")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
