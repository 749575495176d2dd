"""One uint8 array file per split, checked by hash whenever it is opened, memory-mapped, written atomically."""

import contextlib
import functools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bdjax.data.source import SPLITS, digest, file_sha256
from bdjax.errors import UserError
from bdjax.types import Split

CACHE_DIR = "BDJAX_CACHE_DIR"
MANIFEST = "manifest.json"
FIELDS = ("images", "labels")


def cache_root(cache: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of everything bdjax can rebuild: ``cache``, BDJAX_CACHE_DIR, XDG_CACHE_HOME/bdjax or ~/.cache/bdjax.

    Raises:
      UserError: none of these is given and the user has no home.
    """
    if cache is not None:
        return Path(cache).expanduser()
    if given := os.environ.get(CACHE_DIR):
        return Path(given).expanduser()
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given).expanduser() / "bdjax"
    try:
        return Path("~/.cache/bdjax").expanduser()
    except RuntimeError:
        raise UserError(f"this user has no home folder for the cache; set {CACHE_DIR} to a folder with room") from None


@contextlib.contextmanager
def written_in(folder: Path) -> Iterator[None]:
    """Turn a failure to write into ``folder`` (permissions, a full disk) into a :class:`UserError` of one line."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to the cache folder {folder}: {error.strerror or error}; set {CACHE_DIR} to a folder with room."
        ) from error


def replace_file(path: Path, write: Callable[[Any], Any]) -> None:
    """Write a file under a temporary name, flush it, rename it: readers see the old file or the whole new one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def write(folder: Path, splits: Mapping[str, Split], source: Mapping[str, Any], found: Mapping[str, Any] | None = None) -> None:
    """Write the splits of a data set; the manifest comes last, so that a half-written folder is no cache.

    Args:
      folder: of this data set alone; made if need be.
      splits: {"train", "test"}: images u8[n h w c], labels i32[n], host arrays.
      source: JSON facts that decide whether the cache is still the right one.
      found: JSON facts about the rows, for :func:`manifest`.

    Raises:
      UserError: the folder cannot be written to, or the disk is full.
    """
    with written_in(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)
        files = {}
        for split in SPLITS:
            for field, array in zip(FIELDS, splits[split], strict=True):
                path = folder / f"{split}_{field}.npy"
                host = np.ascontiguousarray(array)
                replace_file(path, functools.partial(np.save, arr=host, allow_pickle=False))
                files[path.name] = {"shape": list(host.shape), "dtype": host.dtype.str, "sha256": file_sha256(path)}
        total = digest(splits["train"], splits["test"])
        content = {"source": dict(source), "found": dict(found or {}), "digest": total, "files": files}
        replace_file(folder / MANIFEST, lambda stream: stream.write(json.dumps(content, indent=1).encode()))


def manifest(folder: Path, source: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what :func:`write` noted, without opening the arrays; None: there is no cache for this source, or it is damaged.

    Args:
      folder: what :func:`write` was given.
      source: what :func:`write` was given.
    """
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
        return content if content["source"] == dict(source) else None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        _name_damage(folder / MANIFEST, str(error))
        return None


def read(folder: Path, source: Mapping[str, Any]) -> tuple[dict[str, Split], str] | None:
    """Open the cached splits of a data set, memory-mapped.

    Args:
      folder: what :func:`write` was given.
      source: what :func:`write` was given.

    Returns:
      ({"train", "test"}, digest), or None: there is no cache for this source, or it is damaged, which is named on stderr.
    """
    content = manifest(folder, source)
    if content is None:
        return None
    try:
        splits = {}
        for split in SPLITS:
            arrays = []
            for field in FIELDS:
                path = folder / f"{split}_{field}.npy"
                if file_sha256(path) != content["files"][path.name]["sha256"]:
                    _name_damage(path, "its bytes are not those that were written")
                    return None
                arrays.append(np.load(path, mmap_mode="r", allow_pickle=False))
            splits[split] = Split(*arrays)
        return splits, str(content["digest"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        _name_damage(folder, str(error))
        return None


def _name_damage(path: Path, reason: str) -> None:
    print(f"bdjax: warning: the cache file {path} is damaged ({reason}); it is rebuilt", file=sys.stderr)
