"""One uint8 array file per split, checked by hash whenever it is opened, memory-mapped, written atomically."""

import contextlib
import hashlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bdjax.data import room
from bdjax.data.arrays import count_values, moments_of
from bdjax.data.atomic import OWNER_ONLY, opened, replace_file
from bdjax.data.source import PIECE, SPLITS, file_sha256
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


def try_writing(folder: Path) -> None:
    """Make a folder and write into it, so that one that cannot be written to is found before hours of work.

    Raises:
      OSError: it cannot.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


class Pieces(NamedTuple):
    """The rows of a split that are decoded while they are written, so that a split is never in memory as a whole."""

    total: int
    shape: tuple[int, int, int]  # h, w, c
    rows: Iterable[tuple[np.ndarray, int]]  # (pixels u8[h w c], label), ``total`` of them


def write(
    folder: Path, title: str, splits: Mapping[str, Pieces], source: Mapping[str, Any], found: Mapping[str, Any] | None = None
) -> None:
    """Write the splits of a data set; the manifest comes last, so that a half-written folder is no cache.

    Args:
      folder: of this data set alone; made if need be.
      title: of the data set, for messages.
      splits: {"train", "test"}, of one shape.
      source: JSON facts that decide whether the cache is still the right one.
      found: JSON facts about the rows, for :func:`manifest`; mean and deviation of the training rows are added to them.

    Raises:
      UserError: the rows do not fit the memory or the disk, the folder cannot be written to, or what the rows raise.
    """
    with written_in(folder):
        folder.mkdir(parents=True, exist_ok=True)
        room.check(title, sum(part.total for part in splits.values()), splits["train"].shape, folder)
        (folder / MANIFEST).unlink(missing_ok=True)
        try:
            files, total, counts = _write_arrays(folder, splits)
        except BaseException:
            for name in _names():
                with contextlib.suppress(OSError):
                    (folder / name).unlink()
            raise
        mean, std = moments_of(counts)
        noted = {"mean": mean, "std": std, "image_shape": splits["train"].shape, **(found or {})}
        content = {"source": dict(source), "found": noted, "digest": total, "files": files}
        replace_file(folder / MANIFEST, json.dumps(content, indent=1).encode(), mode=OWNER_ONLY)


def _names() -> list[str]:
    return [f"{split}_{field}.npy" for split in SPLITS for field in FIELDS]


def _write_arrays(folder: Path, splits: Mapping[str, Pieces]) -> tuple[dict[str, Any], str, np.ndarray]:
    """Write the four arrays; return what the manifest says of each, the digest of all, and the counts of the training values."""
    files: dict[str, Any] = {}
    total = hashlib.sha256()
    counts = np.zeros((splits["train"].shape[2], 256), np.int64)
    for split in SPLITS:
        part, labels = splits[split], np.zeros(splits[split].total, np.int32)

        def images(part: Pieces = part, labels: np.ndarray = labels, split: str = split) -> Iterator[np.ndarray]:
            for block in _blocks(part, labels):
                if split == "train":
                    count_values(block, counts)
                yield block

        for name, shape, dtype, blocks in (
            (f"{split}_images.npy", (part.total, *part.shape), np.dtype(np.uint8), images()),
            (f"{split}_labels.npy", (part.total,), np.dtype(np.int32), iter([labels])),
        ):
            seal = hashlib.sha256()
            with opened(folder / name, mode=OWNER_ONLY) as stream:
                _write_array(shape, dtype, blocks, (seal, total), stream)
            files[name] = {"shape": list(shape), "dtype": dtype.str, "sha256": seal.hexdigest()}
    return files, total.hexdigest(), counts


def _blocks(part: Pieces, labels: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the images of a split in runs of at most ``PIECE`` bytes, or one image; their labels go into ``labels``."""
    size = max(1, PIECE // max(int(np.prod(part.shape)), 1))
    block, row = np.empty((min(size, part.total), *part.shape), np.uint8), 0
    for pixels, label in part.rows:
        block[row % size], labels[row] = pixels, label
        row += 1
        if row % size == 0:
            yield block
    if row % size:
        yield block[: row % size]
    assert row == part.total, "rows that were promised and did not come"


def _write_array(
    shape: tuple[int, ...], dtype: np.dtype, blocks: Iterable[np.ndarray], seals: tuple[Any, Any], stream: Any
) -> None:
    """Write an array as ``np.save`` does, block by block; its file is added to the first digest, its content to the second."""
    begin = io.BytesIO()
    np.lib.format.write_array_header_1_0(begin, {"descr": dtype.str, "fortran_order": False, "shape": shape})
    stream.write(begin.getvalue())
    seals[0].update(begin.getvalue())
    seals[1].update(f"{dtype.str} {shape};".encode())
    for block in blocks:
        stream.write(block.data)
        for seal in seals:
            seal.update(block.data)


def manifest(folder: Path, source: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what :func:`write` noted, without opening the arrays; None: there is no cache for this source, or it is damaged.

    Args:
      folder: what :func:`write` was given.
      source: what :func:`write` was given.
    """
    content = noted(folder)
    return content if content is not None and content["source"] == dict(source) else None


def noted(folder: Path) -> dict[str, Any] | None:
    """Return what :func:`write` noted there for whatever source; None: there is no cache, or it is damaged."""
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
        return content if isinstance(content["source"], dict) else None
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
