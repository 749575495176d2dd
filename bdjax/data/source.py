"""What is known about a data set before a byte of it is read, and the checks of the rows that come out of its archives."""

import hashlib
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bdjax.data.images import decoded
from bdjax.errors import UserError
from bdjax.types import DataSpec, Split

try:
    from lzma import LZMAError
except ImportError:  # a Python built without it still reads the archives that do not need it
    LZMAError = zlib.error  # type: ignore[misc, assignment]

SPLITS = ("train", "test")
# What the readers of archives and images raise for bytes that are not what they should be.
UNREADABLE: tuple[type[Exception], ...] = (OSError, EOFError, KeyError, ValueError, SyntaxError, RuntimeError)
UNREADABLE += (zipfile.BadZipFile, tarfile.TarError, zlib.error, LZMAError)


class Edition(NamedTuple):
    """One release of a data set: which archives it consists of and how their rows are read."""

    name: str
    counts: Mapping[str, tuple[int, ...]]  # {split: rows of each class}, asserted after reading
    archives: Mapping[str, str] = {}  # {file name: "sha256:..." or "md5:..."}
    encoded: Callable[[Path, str], Iterator[tuple[bytes, int]]] | None = None
    # (folder, split) -> (image file as bytes, label) of every row, in archive order
    urls: Mapping[str, str] = {}  # {file name: where it can be fetched}; empty: nowhere
    resize: bool = False  # images come in any size and are resized to that of the data set


class Source(NamedTuple):
    """One data set: its facts and its editions, the official one first. Embedded data have ``rows`` and one edition."""

    spec: DataSpec
    editions: tuple[Edition, ...]
    version: int = 1  # raised whenever the same archives would give other arrays
    digest: str | None = None  # expected digest of the arrays; None where decoders may differ by a few pixel values
    folder: str = ""  # of the archives inside the data directory
    rows: Callable[[str], Split] | None = None  # (split) -> host arrays: embedded data, no archives

    @property
    def counts(self) -> Mapping[str, tuple[int, ...]]:
        """{split: rows of each class} of the official edition."""
        return self.editions[0].counts

    @property
    def archives(self) -> Mapping[str, str]:
        """{file name: digest} of the official edition."""
        return self.editions[0].archives


def digest(train: Split, test: Split) -> str:
    """Return the sha256 of a data set's pixels and labels: train images, train labels, test images, test labels.

    Args:
      train: images u8[n h w c] and labels i32[n], host arrays.
      test: likewise.
    """
    total = hashlib.sha256()
    for array in (*train, *test):
        host = np.ascontiguousarray(array)
        total.update(f"{host.dtype.str} {host.shape};".encode())
        total.update(host.data)
    return total.hexdigest()


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_split(source: Source, edition: Edition, split: str, rows: Iterable[tuple[bytes, int]]) -> Split:
    """Decode a split and check it against the facts of its edition.

    Args:
      source: the data set.
      edition: the release that ``rows`` come from.
      split: "train" or "test".
      rows: (image file, label) in archive order.

    Returns:
      Host arrays: images u8[n h w c], labels i32[n].

    Raises:
      UserError: an image cannot be decoded or has another shape, or the rows per class are not the known ones.
    """
    total = sum(edition.counts[split])
    images = np.empty((total, *source.spec.image_shape), np.uint8)
    labels = np.empty((total,), np.int32)
    found = 0
    try:
        for data, label in rows:
            if found < total:
                images[found] = decoded(data, source.spec.image_shape, edition.resize)
                labels[found] = label
            found += 1
    except UNREADABLE as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{source.spec.name}: row {found} of the {split} split cannot be read: {error}.") from error
    if found != total:
        raise UserError(f"{source.spec.name}: the {split} split has {found:,} rows, expected {total:,}.")
    return check_facts(source, edition, split, Split(_host(images), _host(labels)))


def check_facts(source: Source, edition: Edition, split: str, rows: Split) -> Split:
    """Return ``rows`` if shape, dtype and rows per class are those of the edition; raise :class:`UserError` otherwise."""
    images, labels = np.asarray(rows.images), np.asarray(rows.labels)
    name, classes = source.spec.name, source.spec.classes
    expected = (len(labels), *source.spec.image_shape)
    if images.shape != expected or images.dtype != np.uint8 or labels.dtype != np.int32:
        raise UserError(
            f"{name}: the {split} split is {images.dtype}{list(images.shape)} with {labels.dtype} labels, "
            f"expected uint8{list(expected)} with int32."
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise UserError(f"{name}: labels of the {split} split lie outside 0..{classes - 1}.")
    counts = np.bincount(labels, minlength=classes)
    wrong = np.flatnonzero(counts != np.asarray(edition.counts[split]))
    if len(wrong):
        shown = ", ".join(f"class {k} has {counts[k]:,} rows, expected {edition.counts[split][k]:,}" for k in wrong[:4])
        more = f" (and {len(wrong) - 4} more classes)" if len(wrong) > 4 else ""
        raise UserError(f"{name}: in the {split} split {shown}{more}.")
    return rows


def _host(array: np.ndarray) -> Any:
    """Host arrays stand where the types say ``Array``: whoever computes with them moves them to a device."""
    return array
