"""How a lease is acquired, renewed, released and taken over: as a file on a disk, and as an object in a store.

On a disk all of it is exact. In a store creating is exact where the store can create exclusively, but nothing can be removed on a
condition: of two processes that take over a lease at the same moment both may believe for a while that they hold it. Both then
make the same records and write them atomically under the same names.
"""

import contextlib
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bdjax.data.atomic import temporary_of
from bdjax.errors import UserError
from bdjax.store import location, objects
from bdjax.store.atomic import writing
from bdjax.store.location import Location

if TYPE_CHECKING:
    from upath import UPath


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


def read(path: Location) -> tuple[bytes, Lease | None] | None:
    """Return the content of a lease's file and what it says, if that can be read; None where there is no file."""
    try:
        content = location.read_bytes(path)
    except FileNotFoundError:
        return None
    fields = {name: field for field, name in _IN_FILES.items()}
    try:
        found = {fields.get(name, name): value for name, value in json.loads(content).items()}
        return content, Lease(**{name: value for name, value in found.items() if name in Lease._fields})
    except (ValueError, TypeError, AttributeError):  # its holder died between creating and writing it
        return content, None


class LeasesOnDisk:
    """Leases as files: created exclusively, renewed through their open file, taken over by renaming."""

    def prepare(self, folder: Path, say: Callable[[str], None]) -> None:
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

    def renew(self, path: Path, handle: int, lease: Lease) -> None:
        """Write the next heartbeat."""
        _write(handle, lease)

    def release(self, path: Path, handle: int) -> None:
        """Remove a lease, unless it was taken over meanwhile."""
        with contextlib.suppress(OSError):
            if os.fstat(handle).st_ino == path.stat().st_ino:
                path.unlink()
        os.close(handle)

    def remove_unchanged(self, path: Path, content: bytes) -> bool:
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


class LeasesInStore:
    """Leases as objects: created exclusively where the store can, renewed by writing them again, taken over by removing them."""

    def __init__(self) -> None:
        self._exclusive = True

    def prepare(self, folder: "UPath", say: Callable[[str], None]) -> None:
        """Learn whether the store creates objects exclusively, and say so if it does not."""
        self._exclusive = objects.creates_exclusively(folder)
        if not self._exclusive:
            say(f"{folder.protocol}:// does not create objects exclusively: let one process alone work on {folder.parent}")

    def acquire(self, path: "UPath", lease: Callable[[], Lease]) -> str | None:
        """Create a lease and return the name of this acquisition, or None where it exists already."""
        acquisition = uuid.uuid4().hex[:12]
        created = objects.create(path, encode(lease()._replace(acquisition=acquisition)), self._exclusive)
        return acquisition if created else None

    def renew(self, path: "UPath", handle: str, lease: Lease) -> None:
        """Write the next heartbeat, unless the lease was taken over meanwhile."""
        if self._is_ours(path, handle):
            objects.put(path, encode(lease._replace(acquisition=handle)))

    def release(self, path: "UPath", handle: str) -> None:
        """Remove a lease, unless it was taken over meanwhile."""
        with contextlib.suppress(UserError):  # others wait until it times out
            if self._is_ours(path, handle):
                objects.remove(path)

    def remove_unchanged(self, path: "UPath", content: bytes) -> bool:
        """Remove another process's lease if it still has this content."""
        found = read(path)
        if found is None or found[0] != content:
            return False
        objects.remove(path)
        return True

    def _is_ours(self, path: "UPath", handle: str) -> bool:
        found = read(path)
        return found is not None and found[1] is not None and found[1].acquisition == handle


def backend(folder: Location) -> Any:
    """Return how the leases below a folder are kept: :class:`LeasesOnDisk` or :class:`LeasesInStore`."""
    return LeasesOnDisk() if isinstance(folder, Path) else LeasesInStore()
