"""Atomic writes: a file or folder is complete under its name, or it is not there.

It is written beside its place under a temporary name, flushed to the disk and renamed. Everything in this package that is written
so is written by this module; :mod:`bdjax.store.atomic` adds object stores and messages for a folder of results.
"""

import contextlib
import errno
import functools
import itertools
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

OWNER_ONLY = 0o600  # permissions of what is kept in the cache of one user

_COUNTER = itertools.count()
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES)  # folders of some file systems, and those that may not be listed


@functools.cache
def _token(pid: int) -> str:
    return f"{pid}-{uuid.uuid4().hex[:12]}"


def token() -> str:
    """Return a name of this process that no other process has, on any machine."""
    return _token(os.getpid())


def temporary_of(path: Path) -> Path:
    """Return a path beside ``path`` that nobody else writes to, for what is to become ``path``; it ends in ``.<token>.tmp``."""
    return path.with_name(f".{path.name}.{next(_COUNTER)}.{token()}.tmp")


@contextlib.contextmanager
def replacing(path: Path, *, sync_files: bool = True) -> Iterator[Path]:
    """Yield a temporary path to write a file or folder to, which becomes ``path`` when the block ends without an error.

    Args:
      path: what is made or replaced; the folder it lies in is made if need be. A file never replaces a folder.
      sync_files: flush every written file to the disk before the rename, so that it survives a power failure. A folder whose
        files are compared with their checksums whenever they are read can do without.

    Raises:
      OSError: it cannot be written. What lay at ``path`` is still there, and the temporary path is gone.
    """
    temporary = temporary_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if sync_files:
            for file in temporary.rglob("*") if temporary.is_dir() else (temporary,):
                if file.is_file():
                    _sync(file)
        _rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # where nothing could be written there is nothing to remove
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink(missing_ok=True)
        raise
    try:
        _sync(path.parent)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


def _rename(temporary: Path, path: Path) -> None:
    """Give what was written its name; a folder cannot be renamed onto one that holds files, so that one steps aside first."""
    if not temporary.is_dir() or not path.is_dir() or path.is_symlink():
        os.replace(temporary, path)
        return
    old = temporary_of(path)
    os.replace(path, old)
    try:
        os.replace(temporary, path)
    except BaseException:
        os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def opened(path: Path, *, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Yield a stream whose content becomes the file ``path`` when the block ends without an error.

    Args:
      path: of the file.
      mode: its permissions, before the process's umask is applied.

    Raises:
      OSError: as of :func:`replacing`.
    """
    with (
        replacing(path) as temporary,
        os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream,
    ):
        yield stream


def replace_file(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Write a file of these bytes; arguments and errors of :func:`opened`."""
    with opened(path, mode=mode) as stream:
        stream.write(data)


def _sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
