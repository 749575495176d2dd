"""What is known about a data set before a byte of it is read, and the checks of the rows that come out of its archives."""

import hashlib
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bdjax.data.images import decoded, plain
from bdjax.errors import UserError
from bdjax.types import DataSpec, Split

try:
    from lzma import LZMAError
except ImportError:  # a Python built without it still reads the archives that do not need it
    LZMAError = zlib.error  # type: ignore[misc, assignment]

SPLITS = ("train", "test")
PIECE = 1 << 24  # bytes
# What the readers of archives and images raise for bytes that are not what they should be.
UNREADABLE: tuple[type[Exception], ...] = (OSError, EOFError, KeyError, ValueError, SyntaxError, RuntimeError)
UNREADABLE += (zipfile.BadZipFile, tarfile.TarError, zlib.error, LZMAError)


class Row(NamedTuple):
    """One image before it is read."""

    name: str  # where it lies, for messages
    label: int
    read: Callable[[], bytes | np.ndarray]  # an image file, or pixels u8[h w c]


class Edition(NamedTuple):
    """One release of a data set: which archives it consists of and how their rows are read."""

    name: str
    counts: Mapping[str, tuple[int, ...]]  # {split: rows of each class}, asserted after reading
    archives: Mapping[str, str] = {}  # {file name: "sha256:..." or "md5:..."}; {}: an unpacked copy, see ``content``
    encoded: Callable[[Path, str], Iterable[Row]] | None = None  # (folder, split) -> every row, in archive order
    urls: Mapping[str, str] = {}  # {file name: where it can be fetched}; empty: nowhere
    resize: bool = False  # images come in any size and are resized to that of the data set
    first: tuple[int, ...] = ()  # labels of the first training rows, where the counts alone do not identify the data set
    content: str = ""  # sha256 over the files of an unpacked copy


class Listing(NamedTuple):
    """What lies in a folder: the names of the classes by label, and every image in the order of the data set."""

    folder: Path
    classes: tuple[str, ...]
    rows: Mapping[str, Sequence[Row]]  # {"train", "test"}, in the order of the data set
    files: tuple[str, ...]  # paths inside the folder of all that decides pixels, labels and order
    size: tuple[int, int] | None = None  # (h, w) that images are scaled to unless dataset.json says otherwise
    channels: int = 3
    flip: bool = False
    pad: int | None = None  # pixels; None: an eighth of the shorter side
    note: str = ""  # what the user should know about how it was read; printed when it is decoded
    home: Path | None = None  # whose name and dataset.json count; None: ``folder``
    spare: str = ""  # the name of the data set where that of the folder is a built-in one's; "": that is refused


class Layout(NamedTuple):
    """One way in which the files of a data set lie in a folder, recognised by what is there."""

    key: str  # a short word, which names caches
    needs: str  # what has to be there, for messages
    at: Callable[[Path], Path | None]  # (folder) -> the folder (or archive) that holds it, itself or one inside; None: none
    listing: Callable[[Path], Listing]  # (what ``at`` gave) -> its images; raises UserError for what is missing or wrong
    resize: bool = False  # images come in any size
    counts: tuple[Mapping[str, tuple[int, ...]], ...] = ()  # of complete copies that are not those of an edition


class Source(NamedTuple):
    """One data set: its facts and its editions, the official one first. Embedded data have ``rows`` and one edition."""

    spec: DataSpec
    editions: tuple[Edition, ...]
    version: int = 1  # raised whenever the same archives would give other arrays
    digest: str | None = None  # expected digest of the arrays; None where decoders may differ by a few pixel values
    folder: str = ""  # of the archives inside the data directory
    rows: Callable[[str], Split] | None = None  # (split) -> host arrays: embedded data, no archives
    layouts: tuple[Layout, ...] = ()  # in which unpacked copies are read

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
      train: images u8[n h w c] and labels i32[n], host arrays, read piece by piece.
      test: likewise.
    """
    total = hashlib.sha256()
    for array in (*train, *test):
        host = np.asarray(array)
        total.update(head(host))
        for piece in pieces(host):
            total.update(np.ascontiguousarray(piece).data)
    return total.hexdigest()


def head(array: Any) -> bytes:
    """Return what stands before the bytes of an array in :func:`digest`; of the array its dtype and shape are used."""
    return f"{array.dtype.str} {array.shape};".encode()


def pieces(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yield an array in runs of rows of at most :data:`PIECE` bytes, or of one row: an array on a disk is never all in memory."""
    rows = max(1, PIECE * len(array) // max(array.nbytes, 1))
    for start in range(0, len(array), rows):
        yield array[start : start + rows]


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_rows(source: Source, edition: Edition, split: str, rows: Iterable[Row]) -> Iterator[tuple[np.ndarray, int]]:
    """Yield (pixels u8[h w c], label) of every row of a split; at the end, check them against the facts of the edition.

    Args:
      source: the data set.
      edition: the release that ``rows`` come from.
      split: "train" or "test".
      rows: in archive order.

    Raises:
      UserError: an image cannot be decoded or has another shape, or the rows per class are not the known ones.
    """
    total = sum(edition.counts[split])
    labels: list[int] = []
    row: Row | None = None
    try:
        for row in rows:
            if len(labels) < total:
                yield decoded(row.read(), source.spec.image_shape, edition.resize), row.label
            labels.append(row.label)
            row = None
    except UNREADABLE as error:
        if isinstance(error, UserError) and row is None:
            raise
        where = "" if row is None else f" {row.name}:"
        reason = str(error).rstrip(".") if isinstance(error, UserError) else plain(error)
        raise UserError(f"{source.spec.name}: row {len(labels)} of the {split} split cannot be read:{where} {reason}.") from error
    if len(labels) != total:
        raise UserError(f"{source.spec.name}: the {split} split has {len(labels):,} rows, expected {total:,}.")
    check_counts(source, edition, split, np.asarray(labels, np.int32))


def check_facts(source: Source, edition: Edition, split: str, rows: Split) -> Split:
    """Return ``rows`` if shape, dtype and rows per class are those of the edition; raise :class:`UserError` otherwise."""
    images, labels = np.asarray(rows.images), np.asarray(rows.labels)
    name = source.spec.name
    expected = (len(labels), *source.spec.image_shape)
    if images.shape != expected or images.dtype != np.uint8 or labels.dtype != np.int32:
        raise UserError(
            f"{name}: the {split} split is {images.dtype}{list(images.shape)} with {labels.dtype} labels, "
            f"expected uint8{list(expected)} with int32."
        )
    check_counts(source, edition, split, labels)
    return rows


def check_counts(source: Source, edition: Edition, split: str, labels: np.ndarray) -> None:
    """Raise :class:`UserError` if the rows per class are not those of the edition, or other labels come first.

    Args:
      source: the data set.
      edition: a release of it.
      split: "train" or "test".
      labels: i32[n], in the order of the rows.
    """
    name, classes = source.spec.name, source.spec.classes
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise UserError(f"{name}: labels of the {split} split lie outside 0..{classes - 1}.")
    counts = np.bincount(labels, minlength=classes)
    wrong = np.flatnonzero(counts != np.asarray(edition.counts[split]))
    if len(wrong):
        shown = ", ".join(f"class {k} has {counts[k]:,} rows, expected {edition.counts[split][k]:,}" for k in wrong[:4])
        more = f" (and {len(wrong) - 4} more classes)" if len(wrong) > 4 else ""
        raise UserError(f"{name}: in the {split} split {shown}{more}.")
    first = tuple(labels[: len(edition.first)].tolist())
    if split == "train" and first != edition.first:
        raise UserError(f"{name}: the first training labels are {first}, expected {edition.first}; it is another data set.")
