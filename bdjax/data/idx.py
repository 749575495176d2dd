"""IDX, the files of MNIST and of data sets in its form: a header of sizes before unsigned bytes, compressed by gzip or not."""

import functools
import gzip
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from bdjax.data.compact import compact
from bdjax.data.images import plain
from bdjax.data.source import SPLITS, UNREADABLE, Layout, Listing, Row
from bdjax.errors import UserError
from bdjax.types import DataSpec

STEMS = {"train": "train", "test": "t10k"}
PARTS = {"images": 3, "labels": 1}  # with their number of axes


def layout(spec: DataSpec, homes: tuple[str, ...]) -> Layout:
    """Return the layout of a data set in this form.

    Args:
      spec: its facts.
      homes: folders that may hold the files, beside the one that is looked at.
    """
    needs = ", ".join(_names(split, part)[0] for split in SPLITS for part in PARTS) + " (or .gz)"
    return Layout("idx", needs, _at(homes), functools.partial(listing, spec))


def _at(homes: tuple[str, ...]) -> Callable[[Path], Path | None]:
    def at(path: Path) -> Path | None:
        """Return the folder that holds the training images or the test images: ``path`` or one of ``homes`` in it."""
        places = (path, path / "raw", *(path / home for home in homes))
        return next((place for place in places if any(_file(place, split, "images") for split in SPLITS)), None)

    return at


def listing(spec: DataSpec, place: Path) -> Listing:
    """List the rows; see :class:`bdjax.data.source.Layout`. Labels beyond those of the data set are classes named by number."""
    rows = {split: list(encoded(place, split)) for split in SPLITS}
    most = max(row.label for some in rows.values() for row in some)
    names = spec.class_names if most < spec.classes else tuple(map(str, range(most + 1)))
    classes, moved, note = compact(names, rows, f"{place}: it has the layout of {spec.name}")
    files = tuple(_found(place, split, part).name for split in SPLITS for part in PARTS)
    return Listing(place, classes, moved, files, channels=1, flip=spec.flip, pad=spec.pad, note=note)


def encoded(folder: Path, split: str) -> Iterator[Row]:
    """Yield every row of a split, in the order of the files; pixels u8[h w 1].

    Raises:
      UserError: a file is missing, damaged or of another form, or images and labels differ in number.
    """
    path = _found(folder, split, "images")
    count, labels = _header(path, "images")[0][0], _array(_found(folder, split, "labels"), "labels")
    if count != len(labels):
        raise UserError(
            f"{folder}: {path.name} has {count:,} images, {_found(folder, split, 'labels').name} {len(labels):,} labels."
        )
    pixels = functools.cache(functools.partial(_array, path, "images"))
    for row, label in enumerate(labels):
        yield Row(f"{path}: image {row}", int(label), lambda row=row: pixels()[row][:, :, None])  # type: ignore[misc]


def _names(split: str, part: str) -> tuple[str, ...]:
    kind = f"idx{PARTS[part]}-ubyte"
    return tuple(f"{STEMS[split]}-{part}{join}{kind}{end}" for end in ("", ".gz") for join in ("-", "."))


def _file(place: Path, split: str, part: str) -> Path | None:
    return next((place / name for name in _names(split, part) if (place / name).is_file()), None)


def _found(place: Path, split: str, part: str) -> Path:
    path = _file(place, split, part)
    if path is None:
        raise UserError(f"{place} lacks {_names(split, part)[0]} (or .gz).")
    return path


def _bytes(path: Path, size: int = -1) -> bytes:
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as stream:
            return stream.read(size)
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read: {plain(error)}; fetch it again.") from error


def _header(path: Path, part: str, data: bytes | None = None) -> tuple[tuple[int, ...], int]:
    """(the sizes of the axes, the length of the header) of a file."""
    axes, data = PARTS[part], _bytes(path, 16) if data is None else data
    length = 4 + 4 * axes
    if len(data) < length or data[:4] != bytes((0, 0, 8, axes)):
        raise UserError(
            f"{path} is no IDX file of {part}: it begins with {data[:4]!r}, expected {bytes((0, 0, 8, axes))!r} (unsigned bytes, "
            f"{axes} ax{'e' if axes > 1 else 'i'}s)."
        )
    return struct.unpack(f">{axes}I", data[4:length]), length


def _array(path: Path, part: str) -> np.ndarray:
    data = _bytes(path)
    sizes, length = _header(path, part, data)
    wanted, found = int(np.prod([int(size) for size in sizes], dtype=object)), len(data) - length
    if found != wanted:
        raise UserError(
            f"{path} is truncated or damaged: {found:,} bytes follow its header instead of {wanted:,}; fetch it again."
        )
    return np.frombuffer(data, np.uint8, offset=length).reshape(sizes)
