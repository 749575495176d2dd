"""Files of a folder of results: written so that they are complete or absent, and quarantined where they are damaged.

On a disk :mod:`bdjax.data.atomic` writes them. In an object store every upload is atomic by itself; a file server that fsspec
reaches (``sftp://``) may keep part of one, which its checksum then shows.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from bdjax.data import atomic
from bdjax.data.atomic import temporary_of, token
from bdjax.errors import UserError
from bdjax.population import hosts
from bdjax.store import location, objects
from bdjax.store.location import Location

ADVICE = "free some space or choose another --out; the same command goes on where this one stopped"
_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_WRITE_ERRORS = (*_FULL, errno.EROFS, errno.EACCES)


class Corrupt(UserError):
    """A stored file is not what was written; the message says why."""


@contextlib.contextmanager
def writing(path: Location) -> Iterator[None]:
    """Turn what goes wrong while the block writes below ``path`` into a :class:`UserError` of one line."""
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
    """Return the place that a path or URL names, made if need be, after something was written there.

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


def probed(out: str | os.PathLike[str] | Location) -> Location:
    """As :func:`writable`, but folders that were not there are not there afterwards either."""
    place = location.locate(out)
    made = [folder for folder in (place, *place.parents) if not os.path.exists(folder)] if isinstance(place, Path) else []
    try:
        return writable(place)
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # another process has begun to write there
                folder.rmdir()


def replace_file(path: Location, data: bytes) -> None:
    """Write a file so that it is complete or absent; of several processes that run the same program, only the first one writes.

    Raises:
      UserError: it cannot be written, the disk is full, or the store cannot be reached.
    """
    if not hosts.is_leader():
        return
    if not isinstance(path, Path):
        objects.put(path, data)
        return
    with writing(path):
        atomic.replace_file(path, data)


def quarantine(path: Location, reason: str) -> None:
    """Name a damaged file or folder on stderr and move it to ``<name>.corrupt``, where nothing reads it."""
    target, number = path.with_name(path.name + ".corrupt"), 1
    while location.exists(target):
        number += 1
        target = path.with_name(f"{path.name}.corrupt{number}")
    try:
        location.move(path, target)
    except FileNotFoundError:  # another process that shares the folder was faster
        return
    print(f"bdjax: {path} is corrupt ({reason}); moved to {target.name}, its work is redone by the next run", file=sys.stderr)
