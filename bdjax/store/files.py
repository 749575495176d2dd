"""Files and folders that appear complete or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from bdjax.errors import UserError


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise :class:`UserError` if something lies at ``path`` that may not be replaced."""
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists already; choose another name or allow overwriting")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write a file or folder to; renamed to ``path`` at the end, removed if anything goes wrong.

    Raises:
      UserError: nothing can be written there, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # where nothing could be written there is nothing to remove
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    for file in [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]:
        with open(file, "rb+") as handle:
            os.fsync(handle.fileno())
