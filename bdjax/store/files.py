"""Files and folders that a user names for export: never overwritten by accident, and complete or absent."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from bdjax.data import atomic
from bdjax.errors import UserError


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise :class:`UserError` if something lies at ``path`` that may not be replaced."""
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists already; choose another name or allow overwriting")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write a file or folder to, which becomes ``path`` when the block ends without an error.

    Raises:
      UserError: nothing can be written there, or the disk is full.
    """
    try:
        with atomic.replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
