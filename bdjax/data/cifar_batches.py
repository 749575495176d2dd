"""The files of CIFAR-10 and CIFAR-100: pickled batches or binary records, in a folder or in their tar archive."""

import functools
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bdjax.data.compact import compact
from bdjax.data.images import plain
from bdjax.data.pickles.arrays import unpickled
from bdjax.data.source import SPLITS, UNREADABLE, Layout, Listing, Row
from bdjax.errors import UserError
from bdjax.types import DataSpec

PIXELS = 3 * 32 * 32  # the red, green and blue planes of an image
SUFFIXES = (".tar.gz", ".tgz", ".tar")


class Form(NamedTuple):
    """One of the releases: which files it consists of."""

    key: str
    spec: DataSpec
    home: str  # the folder in its archive
    archive: str
    train: tuple[str, ...]  # files, in the order of the rows
    test: tuple[str, ...]
    meta: str  # the file with the names of the classes
    label: int | str  # binary: the place of the label among ``head`` bytes; pickled: its key
    names: str = ""  # pickled: the key of the names of the classes
    head: int = 1  # binary: bytes before the pixels of a record

    @property
    def files(self) -> tuple[str, ...]:
        """All files."""
        return (*self.train, *self.test, self.meta)

    def batches(self, split: str) -> tuple[str, ...]:
        """Return the files of "train" or "test"."""
        return self.train if split == "train" else self.test


def at(form: Form, path: Path) -> Path | None:
    """Return the folder or the archive in which the files of a form lie: ``path``, or one inside it under its usual name."""
    if path.is_file():
        return path if path.name.endswith(SUFFIXES) and _is_archive(form, path) else None
    for folder in (path, path / form.home):
        if all((folder / file).is_file() for file in (form.train[0], form.test[0], form.meta)):
            return folder
    return path / form.archive if (path / form.archive).is_file() else None


def _is_archive(form: Form, path: Path) -> bool:
    """Return whether a tar archive has all files of a form."""
    try:
        with tarfile.open(path) as archive:
            return set(form.files) <= {member.name.rpartition("/")[2] for member in archive}
    except UNREADABLE:
        return False


def layout(form: Form) -> Layout:
    """Return the form as a layout of an unpacked copy, or of its archive wherever that lies."""
    needs = f"{form.home}/ with {form.train[0]}, {form.test[0]} and {form.meta} (or {form.archive})"
    return Layout(form.key, needs, functools.partial(at, form), functools.partial(listing, form))


def listing(form: Form, place: Path) -> Listing:
    """List the rows, which are read batch by batch when they are decoded; see :class:`bdjax.data.source.Layout`."""
    names, labels = _classes_and_labels(form, place, tuple(_stamp(file) for file in _all(form, place)))
    batches = _Batches(form, place)
    rows = {
        split: [
            Row(f"{place}: row {row} of {batch}", int(label), functools.partial(batches.pixels, batch, row))
            for batch in form.batches(split)
            for row, label in enumerate(labels[batch])
        ]
        for split in SPLITS
    }
    classes, moved, note = compact(names, rows, f"{place}: it has the layout of {form.spec.name}")
    files = ("",) if place.is_file() else form.files
    return Listing(place, classes, moved, files, (32, 32), flip=form.spec.flip, pad=form.spec.pad, note=note)


def encoded(form: Form, folder: Path, split: str) -> Iterator[Row]:
    """Yield every row of a split of the archive in ``folder``, in the order of the batches.

    Raises:
      UserError: a batch is missing or no whole number of records, holds other labels, or the class names are others.
    """
    path = folder / form.archive
    files = members(path, (*form.batches(split), form.meta))
    names = _names(form, path, files[form.meta])
    if names != form.spec.class_names:
        raise UserError(
            f"{path}: {form.meta} names the classes {', '.join(names[:10])}; expected {', '.join(form.spec.class_names[:10])}."
        )
    for batch in form.batches(split):
        pixels, labels = _parsed(form, path, batch, files.pop(batch), form.spec.classes)
        for row, label in enumerate(labels):
            yield Row(f"{path}: row {row} of {batch}", int(label), functools.partial(_image, pixels, row))


def members(place: Path, names: Iterable[str]) -> dict[str, bytes]:
    """Return the bytes of files in a folder or a tar archive, by their names without folders; an archive is read once.

    Raises:
      UserError: a file is missing or cannot be read.
    """
    wanted, found = set(names), {}
    try:
        if place.is_file():
            with tarfile.open(place) as archive:  # from front to back: going back would inflate it again
                for member in archive:
                    name = member.name.rpartition("/")[2]
                    if name in wanted and (stream := archive.extractfile(member)) is not None:
                        found[name] = stream.read()
        else:
            found = {name: (place / name).read_bytes() for name in wanted if (place / name).is_file()}
    except UNREADABLE as error:
        raise UserError(f"{place} cannot be read: {plain(error)}; it may be incomplete: fetch it again.") from error
    if missing := sorted(wanted - found.keys()):
        raise UserError(f"{place} lacks {', '.join(missing)}; fetch or unpack it again.")
    return found


class _Batches:
    """The batches that are being read: one of a folder, all of a split of an archive, which is read from front to back."""

    def __init__(self, form: Form, place: Path) -> None:
        self.form, self.place = form, place
        self.loaded: dict[str, np.ndarray] = {}

    def pixels(self, batch: str, row: int) -> np.ndarray:
        """Return an image, u8[32 32 3], of a batch that is read if need be."""
        if batch not in self.loaded:
            split = next(split for split in SPLITS if batch in self.form.batches(split))
            wanted = self.form.batches(split) if self.place.is_file() else (batch,)
            self.loaded = {
                name: _parsed(self.form, self.place, name, data, None)[0] for name, data in members(self.place, wanted).items()
            }
        return _image(self.loaded[batch], row)


def _image(pixels: np.ndarray, row: int) -> np.ndarray:
    return np.ascontiguousarray(pixels[row].reshape(3, 32, 32).transpose(1, 2, 0))


def _all(form: Form, place: Path) -> list[Path]:
    return [place] if place.is_file() else [place / file for file in form.files]


def _stamp(file: Path) -> tuple[int, int]:
    if not file.is_file():
        return (0, 0)  # what is missing is said by whoever reads it
    state = file.stat()
    return state.st_size, state.st_mtime_ns


@functools.lru_cache(maxsize=4)
def _classes_and_labels(
    form: Form, place: Path, stamps: tuple[tuple[int, int], ...]
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Return the names of the classes and the labels of every batch; read once while sizes and times of change stay."""
    files = members(place, form.files)
    names = _names(form, place, files.pop(form.meta))
    return names, {batch: _parsed(form, place, batch, data, len(names))[1].copy() for batch, data in files.items()}


def _names(form: Form, place: Path, data: bytes) -> tuple[str, ...]:
    """Return the names of the classes, by label."""
    if isinstance(form.label, int):
        names = tuple(data.decode("utf-8", "replace").split())
    else:
        names = tuple(_text(name) for name in _mapping(place, form.meta, data, form.names)[form.names])
    if not names:
        raise UserError(f"{place}: {form.meta} names no class.")
    return names


def _parsed(form: Form, place: Path, batch: str, data: bytes, classes: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(pixels u8[n 3072], labels i64[n]) of a batch; ``classes`` None: the labels were looked at before."""
    if isinstance(form.label, int):
        size = form.head + PIXELS
        if len(data) % size or not data:
            raise UserError(f"{place}: {batch} has {len(data):,} bytes, no multiple of the {size} of a record.")
        records = np.frombuffer(data, np.uint8).reshape(-1, size)
        pixels, labels = records[:, form.head :], records[:, form.label].astype(np.int64)
    else:
        found = _mapping(place, batch, data, "data", form.label)
        pixels, labels = np.asarray(found["data"]), np.asarray(found[form.label])
        if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != PIXELS:
            raise UserError(
                f"{place}: the data of {batch} are {pixels.dtype}{list(pixels.shape)}; uint8[rows, {PIXELS}] is needed."
            )
        if labels.dtype.kind not in "iu" or labels.shape != (len(pixels),):
            raise UserError(f"{place}: {batch} has {len(pixels):,} images and {labels.size:,} labels of type {labels.dtype}.")
    if classes is not None and len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        odd = labels.max() if labels.max() >= classes else labels.min()
        raise UserError(f"{place}: {batch} holds the label {odd}; allowed are 0 to {classes - 1}.")
    return pixels, labels


def _mapping(place: Path, file: str, data: bytes, *needed: str) -> dict[str, Any]:
    """Return a pickled dictionary with its keys as texts, after a look for those that are needed."""
    try:
        found = unpickled(data)
    except UserError as error:
        raise UserError(f"{place}: {file} cannot be read: {error}.") from None
    if not isinstance(found, dict):
        raise UserError(f"{place}: {file} holds no dictionary.")
    entries = {_text(key): value for key, value in found.items()}
    for key in needed:
        if key not in entries:
            raise UserError(f"{place}: {file} has no {key!r}; it has {', '.join(map(repr, list(entries)[:6]))}.")
    return entries


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
