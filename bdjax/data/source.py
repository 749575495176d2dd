"""What is known about a data set before a byte of it is read, and how its archives are found, checked and decoded."""

import hashlib
import io
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bdjax.errors import UserError
from bdjax.types import DataSpec, Split

DATA_DIR = "BDJAX_DATA_DIR"
SPLITS = ("train", "test")


class Source(NamedTuple):
    """One data set: its facts and the readers of its rows. Exactly one of ``rows`` and ``encoded`` is given."""

    spec: DataSpec
    counts: Mapping[str, tuple[int, ...]]  # {split: rows of each class}, asserted after reading
    version: int = 1  # raised whenever the same archives would give other arrays
    digest: str | None = None  # expected digest of the arrays; None where decoders may differ by a few pixel values
    folder: str = ""  # of the archives inside the data directory
    archives: Mapping[str, str] = {}  # {file name: sha256}
    rows: Callable[[str], Split] | None = None  # (split) -> host arrays: embedded data, no archives
    encoded: Callable[[Path, str], Iterator[tuple[bytes, int]]] | None = None
    # (folder, split) -> (JPEG or PNG file, label) of every row, in archive order


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


def locate(source: Source, data_dir: str | os.PathLike[str] | None) -> Path:
    """Find the folder that holds a data set's archives.

    Args:
      source: the data set.
      data_dir: the folder that holds ``source.folder``, or that folder itself; None: the environment's BDJAX_DATA_DIR.

    Raises:
      UserError: no folder is given, or one or more archives are missing from it.
    """
    name = source.spec.name
    given = data_dir if data_dir is not None else os.environ.get(DATA_DIR)
    advice = f"run `bdjax data prepare {name} --data-dir DIR`, DIR being the folder that holds {source.folder}/"
    if not given:
        raise UserError(f"{name} is not prepared and no data directory is given: {advice} (or set {DATA_DIR}).")
    root = Path(given).expanduser()
    if not root.is_dir():
        raise UserError(f"the data directory {root} does not exist: {advice}.")
    nested = root / source.folder
    folder = nested if nested.is_dir() else root
    missing = [file for file in source.archives if not (folder / file).is_file()]
    if missing:
        raise UserError(f"{name}: missing in {folder}: {', '.join(missing)}; put them there, then {advice}.")
    return folder


def check_archives(source: Source, folder: Path) -> None:
    """Compare every archive with its known sha256.

    Raises:
      UserError: an archive is truncated or altered.
    """
    for file, expected in source.archives.items():
        path = folder / file
        try:
            found = file_sha256(path)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}.") from error
        if found != expected:
            size = path.stat().st_size
            raise UserError(
                f"{path} ({size:,} bytes) is truncated or altered: its sha256 is {found[:12]}..., expected {expected[:12]}...; "
                "fetch the file again."
            )


def read_split(source: Source, split: str, rows: Iterable[tuple[bytes, int]]) -> Split:
    """Decode a split and check it against the facts of its source.

    Args:
      source: the data set.
      split: "train" or "test".
      rows: (image file, label) in archive order.

    Returns:
      Host arrays: images u8[n h w c], labels i32[n].

    Raises:
      UserError: an image cannot be decoded or has another shape, or the rows per class are not the known ones.
    """
    total = sum(source.counts[split])
    images = np.empty((total, *source.spec.image_shape), np.uint8)
    labels = np.empty((total,), np.int32)
    found = 0
    try:
        for data, label in rows:
            if found < total:
                images[found] = _decode(data, source.spec.image_shape)
                labels[found] = label
            found += 1
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{source.spec.name}: row {found} of the {split} split cannot be read: {error}.") from error
    if found != total:
        raise UserError(f"{source.spec.name}: the {split} split has {found:,} rows, expected {total:,}.")
    return check_facts(source, split, Split(_host(images), _host(labels)))


def check_facts(source: Source, split: str, rows: Split) -> Split:
    """Return ``rows`` if shape, dtype and rows per class are the known ones; raise :class:`UserError` otherwise."""
    images, labels = np.asarray(rows.images), np.asarray(rows.labels)
    expected = (len(labels), *source.spec.image_shape)
    if images.shape != expected or images.dtype != np.uint8 or labels.dtype != np.int32:
        raise UserError(
            f"{source.spec.name}: the {split} split is {images.dtype}{list(images.shape)} with {labels.dtype} labels, "
            f"expected uint8{list(expected)} with int32."
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < source.spec.classes:
        raise UserError(f"{source.spec.name}: labels of the {split} split lie outside 0..{source.spec.classes - 1}.")
    counts = tuple(int(count) for count in np.bincount(labels, minlength=source.spec.classes))
    if counts != source.counts[split]:
        raise UserError(f"{source.spec.name}: rows per class of the {split} split are {counts}, expected {source.counts[split]}.")
    return rows


def _decode(data: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError as error:
        raise UserError("reading image files needs Pillow: pip install pillow.") from error
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image.convert("RGB"))
    if pixels.shape != shape:
        raise UserError(f"an image is {list(pixels.shape)}, expected {list(shape)}.")
    return pixels


def _host(array: np.ndarray) -> Any:
    """Host arrays stand where the types say ``Array``: whoever computes with them moves them to a device."""
    return array
