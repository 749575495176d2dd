"""How a lease is acquired, renewed, released and taken over on a disk, and what its file says.

On a disk all of it is exact: files are created exclusively, and one process alone replaces or removes a file, which it has locked
(``flock``) while it does; a file system that knows no such locks leaves a moment in which two may believe they took it over.
Leases in an object store are in :mod:`bdjax.store.lease_objects`.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bdjax.data.atomic import temporary_of
from bdjax.store import location
from bdjax.store.atomic import writing
from bdjax.store.location import Location


class Lease(NamedTuple):
    """What the file of a lease says of its holder."""

    token: str  # of the process
    place: str  # where process numbers mean the same: machine, boot and process namespace
    host: str
    pid: int
    started: str | None  # when the process began, by its system; tells it from a later one with the same number
    since: str  # when the lease was acquired, ISO 8601, by the holder's clock
    heartbeat: int  # grows while the holder lives
    acquisition: str = ""  # in a store: name of this one time that the lease was acquired
    note: str = ""  # how far the work is, in words


_IN_FILES = {"heartbeat": "beat", "acquisition": "hold"}  # fields that have another name in the files


NOTE = 120  # characters of a note at most
LENGTH = 1000  # bytes of a lease's file on a disk


def encode(lease: Lease) -> bytes:
    """Return the content of the file of a lease; a note is cut, and one that is empty is not there, as in earlier versions."""
    note = lease.note.encode("ascii", "replace").decode()[:NOTE]
    fields = {_IN_FILES.get(field, field): value for field, value in lease._asdict().items() if field != "note"}
    return json.dumps({**fields, "note": note} if note else fields).encode()


def decode(content: bytes) -> Lease | None:
    """Return what the content of a lease's file says; None for one whose holder died between creating and writing it."""
    fields = {name: field for field, name in _IN_FILES.items()}
    try:
        found = {fields.get(name, name): value for name, value in json.loads(content).items()}
        return Lease(**{name: value for name, value in found.items() if name in Lease._fields})
    except (ValueError, TypeError, AttributeError):
        return None


def read(path: Location) -> tuple[bytes, Lease | None] | None:
    """Return the content of a lease's file and what it says, if that can be read; None where there is no file."""
    try:
        content = location.read_bytes(path)
    except FileNotFoundError:
        return None
    return content, decode(content)


class LeasesOnDisk:
    """Leases as files: created exclusively, renewed through their open file, taken over by replacing the file."""

    def __init__(self, folder: Path):
        """Make the folder of the leases."""
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def acquire(self, path: Path, lease: Callable[[], Lease]) -> int | None:
        """Create a lease and return its open file, or None where it exists already."""
        with writing(path):
            try:
                handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
            except FileExistsError:
                return None
            _write(handle, lease())
        return handle

    def take_over(self, path: Path, content: bytes, lease: Callable[[], Lease]) -> tuple[bool, int | None]:
        """Acquire another process's lease if it still has this content.

        Returns:
          Whether it did, and our open file; None where somebody else was faster.
        """
        try:
            theirs = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            return False, None
        try:
            if not (_locked(theirs) and _is(theirs, path) and os.pread(theirs, 2 * LENGTH, 0) == content):
                return False, None
            with writing(path):
                return True, _replaced(path, lease())
        finally:
            os.close(theirs)  # which unlocks it

    def renew(self, path: Path, handle: int, lease: Lease) -> bool:
        """Write the next heartbeat; return False where the lease was taken over and another process's is in its place."""
        _write(handle, lease)
        return _is(handle, path)

    def release(self, path: Path, handle: int) -> None:
        """Remove a lease, unless it was taken over meanwhile."""
        with contextlib.suppress(OSError):
            if _locked(handle) and _is(handle, path):
                path.unlink()
        os.close(handle)


def _locked(handle: int) -> bool:
    """Lock an open file until it is closed; False where another process has locked it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _is(handle: int, path: Path) -> bool:
    """Whether an open file is still the one at a path."""
    try:
        return os.fstat(handle).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


def _replaced(path: Path, lease: Lease) -> int:
    """Put our lease in the place of a file; return it open."""
    aside = temporary_of(path)
    handle = os.open(aside, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
    try:
        _write(handle, lease)
        os.replace(aside, path)
    except BaseException:
        os.close(handle)
        aside.unlink(missing_ok=True)
        raise
    return handle


def _write(handle: int, lease: Lease) -> None:
    os.pwrite(handle, encode(lease).ljust(LENGTH), 0)  # all of one length: a heartbeat replaces the last one
