"""Files of a folder of results: written so that they are complete or absent, and set aside where they are damaged.

On a disk a file is written under a temporary name, synced and renamed. In an object store every upload is whole by itself; a file
server that fsspec reaches (``sftp://``) may keep part of one, which its checksum then tells.
"""

import contextlib
import errno
import functools
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

from bdjax.errors import UserError
from bdjax.population import hosts
from bdjax.store import location, objects
from bdjax.store.location import Location

ADVICE = "free some space or choose another --out; the same command goes on where this one stopped"
_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_WRITE_ERRORS = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES)


class Corrupt(Exception):
    """A stored file is not what was written; the message says why."""


@contextlib.contextmanager
def writing(path: Location) -> Iterator[None]:
    """Turn what goes wrong while writing below ``path`` into one clear line."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        advice = ADVICE if error.errno in _FULL else "choose another --out"
        raise UserError(f"cannot write {path}: {error.strerror or error}; {advice}") from error
    except Exception as error:
        # The checkpoint library reports a full disk in exceptions of its own.
        text = str(error).lower()
        known = [code for code in _WRITE_ERRORS if os.strerror(code).lower() in text]
        if not known:
            raise
        advice = ADVICE if known[0] in _FULL else "choose another --out"
        raise UserError(f"cannot write {path}: {os.strerror(known[0])}; {advice}") from error


def writable(out: str | os.PathLike[str] | Location) -> Location:
    """The place that a path or URL names, made if need be.

    Raises:
      UserError: nothing can be written there, or it is a URL of an unknown kind.
    """
    place = location.locate(out)
    if not isinstance(place, Path):
        uploaded = place / f".probe.{token()}"
        objects.put(uploaded, b"bdjax")
        objects.remove(uploaded)
        return place
    location.check_name(str(place.absolute()))
    with writing(place):
        if place.is_file():
            raise UserError(f"cannot write {place}: it is a file, and results need a folder; choose another --out")
        place.mkdir(parents=True, exist_ok=True)
        probe = temporary_of(place / "probe")
        with open(probe, "wb") as file:
            probe.unlink()  # at once: a process that is killed here leaves nothing
            file.write(b"bdjax")
            file.flush()
    return place


@functools.cache
def _token(pid: int) -> str:
    return f"{pid}-{uuid.uuid4().hex[:12]}"


def token() -> str:
    """A name of this process that no other has, on any machine."""
    return _token(os.getpid())


def temporary_of(path: Path) -> Path:
    """Where this process writes what will be ``path``, beside it."""
    return path.with_name(f".{path.name}.{token()}.tmp")


def replace_file(path: Location, data: bytes) -> None:
    """Write a file so that it is complete or absent, whatever happens; of processes that run the same, the first one writes."""
    if not hosts.is_leader():
        return
    if not isinstance(path, Path):
        objects.put(path, data)
        return
    temporary = temporary_of(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename inside ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def set_aside(path: Location, reason: str) -> None:
    """Name a corrupt file or folder on stderr and move it to ``<name>.corrupt``."""
    target, number = path.with_name(path.name + ".corrupt"), 1
    while location.exists(target):
        number += 1
        target = path.with_name(f"{path.name}.corrupt{number}")
    try:
        location.move(path, target)
    except FileNotFoundError:  # another process that shares the folder was faster
        return
    print(f"bdjax: {path} is corrupt ({reason}); moved to {target.name}, its work is redone by the next run", file=sys.stderr)
