"""Files that a user gives to an attack: read once, known by their content and not by their path, and kept."""

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bdjax.data.cache import cache_root
from bdjax.data.source import file_sha256
from bdjax.errors import UserError
from bdjax.train import assets

NAMED = "sha256:"  # how a record names a file: followed by the hash of its bytes


class Given(NamedTuple):
    """A file that a field of a configuration names."""

    array: np.ndarray  # what was read of it; shared, and not to be written to
    name: str  # "sha256:…", the value of the field in records and in the hash of a cell


def given(field: str, text: str, read: Callable[..., np.ndarray], *how: Any) -> Given:
    """Read a file that the user names, or what was kept of one that a record names.

    What was read is kept in the cache folder under the hash of the file's bytes, so that records hold no path, an edited file is
    a new experiment, a copy elsewhere is the same one, and a record can be run again while the file lies somewhere else.

    Args:
      field: the field of the configuration, for messages, e.g. "blended.picture".
      text: path of the file, or "sha256:…" as a record has it.
      read: ``read(field, path, *how) -> array``, a function of a module.
      how: numbers on which the result depends, e.g. the size of the images.

    Raises:
      UserError: there is no such file, it cannot be read, or what a record names was never read on this machine.
    """
    if text.startswith(NAMED):
        if not re.fullmatch(NAMED + "[0-9a-f]{64}", text):
            raise UserError(f"{field}: {text!r} is no name of a file in a record; it is {NAMED} and 64 hexadecimal digits")
        found = assets.load(_place(text, read, how))
        if found is None:
            raise UserError(
                f"{field}: the file {text} of this record is not kept on this machine; name the file itself once, with "
                f"`bdjax check --config {field}=PATH` and the settings of the record"
            )
        return Given(found["array"], text)
    path = Path(text).expanduser()
    try:
        if not path.is_file():
            raise UserError(f"{field}: {path} is {'no file' if path.exists() else 'not there'}; name an existing file")
        stamp = path.stat()
        return _read(field, path.resolve(), (stamp.st_mtime_ns, stamp.st_size), read, how)
    except OSError as error:
        raise UserError(f"{field}: {path} cannot be read: {error.strerror or error}") from None


@functools.lru_cache(maxsize=32)
def _read(field: str, path: Path, stamp: tuple[int, int], read: Callable[..., np.ndarray], how: tuple[Any, ...]) -> Given:
    array, name = read(field, path, *how), NAMED + file_sha256(path)
    array.setflags(write=False)
    if not (kept := _place(name, read, how)).is_file():
        assets.save(kept, {"array": array})
    return Given(array, name)


def _place(name: str, read: Callable[..., np.ndarray], how: tuple[Any, ...]) -> Path:
    form = "-".join([read.__name__.strip("_"), *map(str, how)])
    return cache_root() / "given" / f"{name.removeprefix(NAMED)}-{form}.npz"
