"""Which process works on which cell, so that several may share a folder of results without a server.

``out/claims/<cell>.json`` exists while a process works on the cell. It is created exclusively and beats: its owner writes a
number that grows. A claim that stops beating is taken over after a while, one whose process died on the same machine at once.
Nobody's clock is compared with another's: a watcher times with its own how long a claim has not changed. Records are written
whole under names made of their content, so that even two processes on one cell would leave one record.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bdjax.sweep import rows
from bdjax.sweep.store import temporary_of, token, writing

BEAT = 5.0  # seconds between beats
PATIENCE = 60.0  # seconds without one after which a claim is taken over; file systems over a network may show a change late


class Claim(NamedTuple):
    """What a claim says."""

    token: str  # of the process
    place: str  # where process numbers mean the same: machine, boot and process namespace
    host: str
    pid: int
    started: str | None  # of the process, by its system; tells it from a later one with the same number
    since: str  # ISO 8601, by the owner's clock
    beat: int


class Claims:
    """The claims of this process on the cells of one folder; a context manager, which gives all of them back.

    Args:
      out: folder of results.
      beat: seconds between beats.
      patience: seconds without a beat after which another's claim is taken over.
      say: told of every claim that is taken over.
    """

    def __init__(self, out: Path, *, beat: float = BEAT, patience: float = PATIENCE, say: Callable[[str], None] = print):
        self.folder, self.out, self.every, self.patience, self.say = out / "claims", out, beat, patience, say
        self._held: dict[str, tuple[int, str]] = {}  # cell: file descriptor, and since when
        self._seen: dict[str, tuple[bytes, float]] = {}  # cell: content of another's claim, and when it was first seen so
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._beat, name="bdjax-claims", daemon=True)

    def __enter__(self) -> "Claims":
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()
        for cell in list(self._held):
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

    def _take(self, cell: str) -> bool:
        path = self.folder / f"{cell}.json"
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

    def _create(self, path: Path, cell: str) -> bool:
        with writing(path):
            try:
                handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
            except FileExistsError:
                return False
            since = rows.now()
            _write(handle, ours(since))
        with self._lock:
            self._held[cell] = handle, since
        self._seen.pop(cell, None)
        return True

    def _take_over(self, path: Path, cell: str, content: bytes, claim: Claim | None) -> bool:
        """Put another's claim aside, if it is still the one that was judged; renaming lets one taker alone succeed."""
        aside = temporary_of(path)
        try:
            os.rename(path, aside)
        except FileNotFoundError:
            return False
        right = aside.read_bytes() == content
        if not right:  # somebody was faster, and it is that one's claim we moved: put it back unless there is a new one
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
        aside.unlink(missing_ok=True)
        if right and claim is not None:
            clean(self.out, cell, claim.token)
            self.say(f"taking over cell {cell} from process {claim.pid} on {claim.host}, which stopped without giving it back")
        return right

    def _release(self, cell: str) -> None:
        with self._lock:
            handle, _ = self._held.pop(cell)
        path = self.folder / f"{cell}.json"
        with contextlib.suppress(OSError):
            if os.fstat(handle).st_ino == path.stat().st_ino:  # unless it was taken over meanwhile
                path.unlink()
        os.close(handle)

    def _beat(self) -> None:
        number = 0
        while not self._stop.wait(self.every):
            number += 1
            with self._lock:
                for handle, since in self._held.values():
                    with contextlib.suppress(OSError):  # a full disk must not end the work: the next beat may succeed
                        _write(handle, ours(since, number))


def _write(handle: int, claim: Claim) -> None:
    os.pwrite(handle, json.dumps(claim._asdict()).ljust(400).encode(), 0)  # one length: a beat replaces the last one


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


def read(path: Path) -> tuple[bytes, Claim | None] | None:
    """The content of a claim, and what it says if it can be read; None where there is none."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return content, Claim(**json.loads(content))
    except (ValueError, TypeError):  # its owner died between creating and writing it
        return content, None


def clean(out: Path, cell: str, dead: str) -> None:
    """Remove what a dead process left half-written of a cell."""
    import shutil

    folders = [out / kind / cell for kind in ("records", "models", "arrays")]
    for path in (path for folder in (*folders, out / "failures", out / "sweeps") for path in folder.glob(f".*.{dead}.tmp")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
