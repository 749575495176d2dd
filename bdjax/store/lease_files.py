"""How a claim is made, kept, given back and taken: as a file of a disk, and as an object of a store.

On a disk all of it is exact. In a store creating is exact where the store can create exclusively, but nothing can be removed on a
condition: of two processes that take over a claim at the same moment both may believe for a while that they hold the cell. Both
then make the same records and write them whole under the same names.
"""

import contextlib
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bdjax.errors import UserError
from bdjax.store import location, objects
from bdjax.store.atomic import temporary_of, writing
from bdjax.store.location import Location

if TYPE_CHECKING:
    from upath import UPath


class Claim(NamedTuple):
    """What a claim says."""

    token: str  # of the process
    place: str  # where process numbers mean the same: machine, boot and process namespace
    host: str
    pid: int
    started: str | None  # of the process, by its system; tells it from a later one with the same number
    since: str  # ISO 8601, by the owner's clock
    beat: int
    hold: str = ""  # in a store: of this one time that the cell is held


def read(path: Location) -> tuple[bytes, Claim | None] | None:
    """The content of a claim, and what it says if it can be read; None where there is none."""
    try:
        content = location.read_bytes(path)
    except FileNotFoundError:
        return None
    try:
        return content, Claim(**json.loads(content))
    except (ValueError, TypeError):  # its owner died between creating and writing it
        return content, None


class Disk:
    """Claims as files: created exclusively, beaten through their open file, taken by renaming."""

    def begin(self, folder: Path, say: Callable[[str], None]) -> None:
        """Make the folder of claims."""
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def create(self, path: Path, claim: Callable[[], Claim]) -> int | None:
        """Make a claim; gives its open file, or None where there is one."""
        with writing(path):
            try:
                handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
            except FileExistsError:
                return None
            _write(handle, claim())
        return handle

    def beat(self, path: Path, handle: int, claim: Claim) -> None:
        """Give a sign of life."""
        _write(handle, claim)

    def release(self, path: Path, handle: int) -> None:
        """Give a claim back, unless it was taken over meanwhile."""
        with contextlib.suppress(OSError):
            if os.fstat(handle).st_ino == path.stat().st_ino:
                path.unlink()
        os.close(handle)

    def take(self, path: Path, content: bytes) -> bool:
        """Remove another's claim if it is still the one that was judged; renaming lets one taker alone succeed."""
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
        return right


def _write(handle: int, claim: Claim) -> None:
    os.pwrite(handle, json.dumps(claim._asdict()).ljust(400).encode(), 0)  # one length: a beat replaces the last one


class Store:
    """Claims as objects: created exclusively where the store can, beaten by writing them again, taken by removing them."""

    def __init__(self) -> None:
        self._exclusive = True

    def begin(self, folder: "UPath", say: Callable[[str], None]) -> None:
        """Learn whether the store creates objects exclusively, and say so if it does not."""
        self._exclusive = objects.creates_exclusively(folder)
        if not self._exclusive:
            say(f"{folder.protocol}:// does not create objects exclusively: let one process alone work on {folder.parent}")

    def create(self, path: "UPath", claim: Callable[[], Claim]) -> str | None:
        """Make a claim; gives the name of this hold, or None where there is a claim."""
        hold = uuid.uuid4().hex[:12]
        return hold if objects.create(path, _content(claim()._replace(hold=hold)), self._exclusive) else None

    def beat(self, path: "UPath", handle: str, claim: Claim) -> None:
        """Give a sign of life, unless the claim was taken over meanwhile."""
        if self._ours(path, handle):
            objects.put(path, _content(claim._replace(hold=handle)))

    def release(self, path: "UPath", handle: str) -> None:
        """Give a claim back, unless it was taken over meanwhile."""
        with contextlib.suppress(UserError):  # others wait until it is stale
            if self._ours(path, handle):
                objects.remove(path)

    def take(self, path: "UPath", content: bytes) -> bool:
        """Remove another's claim if it is still the one that was judged."""
        found = read(path)
        if found is None or found[0] != content:
            return False
        objects.remove(path)
        return True

    def _ours(self, path: "UPath", handle: str) -> bool:
        found = read(path)
        return found is not None and found[1] is not None and found[1].hold == handle


def _content(claim: Claim) -> bytes:
    return json.dumps(claim._asdict()).encode()


def keeper(folder: Location) -> Any:
    """What keeps the claims of a folder: a :class:`Disk` or a :class:`Store`."""
    return Disk() if isinstance(folder, Path) else Store()
