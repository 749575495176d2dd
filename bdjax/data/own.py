"""From a listing of images to a data set: decoded once into the cache, image by image."""

import functools
import hashlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bdjax.data import cache as files
from bdjax.data import room
from bdjax.data.images import decoded, plain
from bdjax.data.settings import SETTINGS, settings, title
from bdjax.data.source import SPLITS, UNREADABLE, Listing, Row, file_sha256
from bdjax.errors import UserError
from bdjax.types import Dataset, DataSpec

KEYS = ("name", "image_size", "channels", "value_range", "flip", "pad", "class_names")
DECODING = ("image_size", "channels", "value_range")  # of these, what decides the arrays
VERSION = 2  # raised whenever the same files would give other arrays


def facts(listing: Listing, root: Path, taken: tuple[str, ...]) -> tuple[DataSpec, dict[str, int]]:
    """Return (facts, {split: rows}) of listed images; see :func:`bdjax.data.folder.facts`."""
    given = _settings(listing)
    place, source = _place(listing, given, root)
    content = files.manifest(place, source)
    if content is None:
        _build(listing, given, root, taken)
        content = files.manifest(place, source)
    if content is None:
        raise UserError(f"the cache in {place} cannot be read back after it was written: is the disk sound?")
    return _spec(listing, given, content["found"], taken), {split: len(listing.rows[split]) for split in SPLITS}


def read(listing: Listing, root: Path, taken: tuple[str, ...]) -> Dataset:
    """Return the data set of listed images, memory-mapped from the cache; see :func:`bdjax.data.folder.read`.

    Mean and deviation are those of the training rows; the padding is an eighth of the shorter side unless ``dataset.json`` or the
    layout says otherwise.

    Args:
      listing: the images.
      root: of the cache.
      taken: names it must not have.

    Raises:
      UserError: an image cannot be decoded, or has another size than the first one; a wrong setting; no room.
    """
    given = _settings(listing)
    place, source = _place(listing, given, root)
    _title(listing, given, taken)  # refused before minutes of decoding
    cached = files.read(place, source)
    if cached is None:
        _build(listing, given, root, taken)
        cached = files.read(place, source)
    content = files.manifest(place, source)
    if cached is None or content is None:
        raise UserError(f"the cache in {place} cannot be read back after it was written: is the disk sound?")
    return Dataset(_spec(listing, given, content["found"], taken), cached[0]["train"], cached[0]["test"], cached[1])


def prepare(listing: Listing, root: Path, taken: tuple[str, ...]) -> Path:
    """Decode listed images into the cache, whether or not they are there; arguments and errors of :func:`read`."""
    return _build(listing, _settings(listing), root, taken)


def content(listing: Listing) -> str:
    """Return the sha256 over path, size and bytes of every file of a listing; each is read once while size and time stay."""
    stamps = []
    for name in listing.files:
        try:
            state = _at(listing.folder, name).stat()
        except OSError as error:
            raise UserError(f"cannot read {_at(listing.folder, name)}: {error.strerror or error}.") from error
        stamps.append((name, state.st_size, state.st_mtime_ns))
    return _content(listing.folder.resolve(), tuple(stamps))


def _at(folder: Path, name: str) -> Path:
    """Return a file of a listing; an archive is its own only file, ""."""
    return folder / name if name else folder


@functools.lru_cache(maxsize=8)
def _content(folder: Path, stamps: tuple[tuple[str, int, int], ...]) -> str:
    """Hash every file; as long as sizes and times of change stay, once: a plan asks for the facts many times."""
    total = hashlib.sha256()
    for path, size, _ in stamps:
        try:
            total.update(f"{path}\0{size}\0{file_sha256(_at(folder, path))}\n".encode(errors="surrogateescape"))
        except OSError as error:
            raise UserError(f"cannot read {_at(folder, path)}: {error.strerror or error}.") from error
    return total.hexdigest()


def _settings(listing: Listing) -> dict[str, Any]:
    home = listing.home or listing.folder
    return settings(home, KEYS) if home.is_dir() else {}


def _title(listing: Listing, given: dict[str, Any], taken: tuple[str, ...]) -> str:
    home = listing.home or listing.folder
    return listing.spare if listing.spare and home.resolve().name in taken and "name" not in given else title(home, given, taken)


def _place(listing: Listing, given: Mapping[str, Any], root: Path) -> tuple[Path, dict[str, Any]]:
    """Return the cache folder, named by what decides the arrays: content of the files, decoding, order of the classes."""
    source = {"folder": content(listing), "version": VERSION, **{key: given.get(key) for key in DECODING}}
    source["layout"] = [*(listing.size or ()), listing.channels]
    source["classes"] = list(listing.classes)  # their order says which label an image has
    key = hashlib.sha256(repr(sorted(source.items())).encode()).hexdigest()[:16]
    return root / "datasets" / f"folder-{key}", source


def _build(listing: Listing, given: dict[str, Any], root: Path, taken: tuple[str, ...]) -> Path:
    name = _title(listing, given, taken)
    place, source = _place(listing, given, root)
    if listing.note:
        print(f"bdjax: note: {listing.note}", file=sys.stderr)
    with files.written_in(root):  # say so before minutes of decoding
        place.mkdir(parents=True, exist_ok=True)
    size = given.get("image_size", listing.size)
    channels = given.get("channels", listing.channels)
    total = sum(len(listing.rows[split]) for split in SPLITS)
    if size is not None:
        room.check(name, total, (*size, channels), place)  # before an image of that size is made
    how = functools.partial(decoded, resize=size is not None, channels=channels, value_range=_range(given))
    first = listing.rows["train"][0]
    shape = _decode(first, how, (*size, channels) if size is not None else None, first).shape
    splits = {
        split: files.Pieces(len(listing.rows[split]), shape, _decoded(listing.rows[split], how, shape, first)) for split in SPLITS
    }
    files.write(place, name, splits, source)
    return place


def _range(given: Mapping[str, Any]) -> tuple[float, float] | None:
    return tuple(given["value_range"]) if "value_range" in given else None


def _decoded(rows: Any, how: Any, shape: tuple[int, int, int], first: Row) -> Iterator[tuple[np.ndarray, int]]:
    for row in rows:
        yield _decode(row, how, shape, first), row.label


def _decode(row: Row, how: Any, shape: tuple[int, int, int] | None, first: Row) -> np.ndarray:
    """Decode an image; where they are not scaled, the first one's size binds all others."""
    try:
        pixels: np.ndarray = how(row.read(), shape if how.keywords["resize"] else None)
    except UserError as error:
        raise UserError(f"{row.name} cannot be read as an image: {error}") from None
    except OSError as error:
        raise UserError(f"{row.name} cannot be read: {error.strerror or plain(error)}.") from error
    except UNREADABLE as error:
        raise UserError(f"{row.name} cannot be read: {plain(error)}.") from error
    if shape is not None and pixels.shape != shape:
        h, w, _ = pixels.shape
        raise UserError(
            f"{row.name} is {h}x{w} (height x width), {first.name} is {shape[0]}x{shape[1]}; all images need one size. To scale "
            f'them put {{"image_size": [{shape[0]}, {shape[1]}]}} into {SETTINGS} in the folder.'
        )
    return pixels


def _spec(listing: Listing, given: dict[str, Any], noted: Mapping[str, Any], taken: tuple[str, ...]) -> DataSpec:
    h, w, c = noted["image_shape"]
    return DataSpec(
        name=_title(listing, given, taken),
        image_shape=(h, w, c),
        classes=len(listing.classes),
        mean=tuple(noted["mean"]),
        std=tuple(noted["std"]),
        flip=given.get("flip", listing.flip),
        pad=given.get("pad", min(h, w) // 8 if listing.pad is None else listing.pad),
        class_names=_class_names(listing, given),
    )


def _class_names(listing: Listing, given: Mapping[str, Any]) -> tuple[str, ...]:
    """What the settings call the classes, in the order of their folders; else the names of the folders."""
    names = tuple(given.get("class_names", listing.classes))
    if len(names) != len(listing.classes):
        raise UserError(f"{listing.folder}: class_names of {SETTINGS} has {len(names)} names for {len(listing.classes)} classes.")
    return names
