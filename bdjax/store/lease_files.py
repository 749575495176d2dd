"""How a lease is acquired, renewed, released and taken over on a disk, and what its file says.

On a disk all of it is exact: files are created exclusively, and renaming lets one process alone take a dead one's file away.
Leases in an object store are in :mod:`bdjax.store.lease_objects`.
"""

import contextlib
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
    """Leases as files: created exclusively, renewed through their open file, taken over by renaming."""

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
        """Remove another process's lease if it still has this content, and acquire it.

        Returns:
          Whether it was removed, and our open file, or None where somebody else acquired it in between.
        """
        removed = self._remove_unchanged(path, content)
        return removed, self.acquire(path, lease) if removed else None

    def renew(self, path: Path, handle: int, lease: Lease) -> bool:
        """Write the next heartbeat; return False where the lease was taken over and another process's is in its place."""
        _write(handle, lease)
        with contextlib.suppress(FileNotFoundError):  # a process that looks whether it may take it over has put it aside
            return os.fstat(handle).st_ino == path.stat().st_ino
        return True

    def release(self, path: Path, handle: int) -> None:
        """Remove a lease, unless it was taken over meanwhile."""
        with contextlib.suppress(OSError):
            if os.fstat(handle).st_ino == path.stat().st_ino:
                path.unlink()
        os.close(handle)

    def _remove_unchanged(self, path: Path, content: bytes) -> bool:
        """Remove another process's lease if it still has this content; renaming lets one process alone succeed."""
        aside = temporary_of(path)
        try:
            os.rename(path, aside)
        except FileNotFoundError:
            return False
        unchanged = aside.read_bytes() == content
        if not unchanged:  # somebody was faster, and this is the next holder's lease: put it back unless there is a new one
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
        aside.unlink(missing_ok=True)
        return unchanged


def _write(handle: int, lease: Lease) -> None:
    os.pwrite(handle, encode(lease).ljust(LENGTH), 0)  # all of one length: a heartbeat replaces the last one
