"""A folder ``<split>/<class>/<image>`` of image files, decoded once into the cache."""

import functools
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bdjax.data import cache as files
from bdjax.data.arrays import moments
from bdjax.data.class_order import by_value, in_order
from bdjax.data.images import decoded
from bdjax.data.settings import SETTINGS, settings, title
from bdjax.data.source import SPLITS, file_sha256
from bdjax.errors import UserError
from bdjax.types import Dataset, DataSpec, Split

KINDS = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".webp")
KEYS = ("name", "image_size", "flip", "pad")
VERSION = 1  # raised whenever the same files would give other arrays


class Scan(NamedTuple):
    """What lies in a folder: the classes in the order of their labels (:func:`bdjax.data.class_order.in_order`: numbered ones by
    value), and every image with its label, class by class, by file name."""

    folder: Path
    classes: tuple[str, ...]
    images: Mapping[str, tuple[tuple[str, int], ...]]  # {split: (path inside the folder, label)}
    content: str  # sha256 over path, size and sha256 of every image


def scan(folder: Path) -> Scan:
    """List a folder's images and hash them.

    Raises:
      UserError: the splits have other classes, there are fewer than 2, a class has no image, or a file is no image.
    """
    classes = {split: _names(folder / split) for split in SPLITS}
    for split, other in (SPLITS, SPLITS[::-1]):
        if odd := sorted(set(classes[split]) - set(classes[other])):
            raise UserError(f"{folder}: class {odd[0]!r} lies in {split}/ and not in {other}/; both need the same classes.")
    names = classes["train"]
    if len(names) < 2:
        raise UserError(f"{folder}: a data set needs at least 2 classes; train/ holds {len(names)}.")
    images, stamps = {}, []
    for split in SPLITS:
        rows = []
        for label, name in enumerate(names):
            found = _images(folder / split / name)
            rows += [(f"{split}/{name}/{file}", label) for file, _, _ in found]
            stamps += [(f"{split}/{name}/{file}", size, changed) for file, size, changed in found]
        images[split] = tuple(rows)
    return Scan(folder, tuple(names), images, _content(folder.resolve(), tuple(stamps)))


def facts(path: Path, root: Path, taken: tuple[str, ...]) -> tuple[DataSpec, dict[str, int]]:
    """Return (facts, {split: rows}) of a folder of images; see :func:`bdjax.data.folder.facts`."""
    found, given = scan(path), settings(path, KEYS)
    place, source = _place(found, given, root)
    content = files.manifest(place, source)
    if content is None:
        _build(found, given, root)
        content = files.manifest(place, source)
    if content is None:
        raise UserError(f"the cache in {place} cannot be read back after it was written: is the disk sound?")
    return _spec(found, given, content["found"], taken), {split: len(found.images[split]) for split in SPLITS}


def read(path: Path, root: Path, taken: tuple[str, ...]) -> Dataset:
    """Return the data set in a folder of images, memory-mapped from the cache; see :func:`bdjax.data.folder.read`.

    Rows come class by class, in the order of the file names. Mean and deviation are those of the training rows, the padding is an
    eighth of the shorter side unless ``dataset.json`` says otherwise, greyscale images become RGB.

    Args:
      path: of the folder.
      root: of the cache.
      taken: names it must not have.

    Raises:
      UserError: see :func:`scan`; an image cannot be decoded, or has another size than the first one.
    """
    found, given = scan(path), settings(path, KEYS)
    place, source = _place(found, given, root)
    title(path, given, taken)  # refused before minutes of decoding
    held = files.read(place, source)
    if held is None:
        _build(found, given, root)
        held = files.read(place, source)
    content = files.manifest(place, source)
    if held is None or content is None:
        raise UserError(f"the cache in {place} cannot be read back after it was written: is the disk sound?")
    return Dataset(_spec(found, given, content["found"], taken), held[0]["train"], held[0]["test"], held[1])


def prepare(path: Path, root: Path, taken: tuple[str, ...]) -> Path:
    """Decode a folder's images into the cache, whether or not they are there; arguments and errors of :func:`read`."""
    found, given = scan(path), settings(path, KEYS)
    title(path, given, taken)
    return _build(found, given, root)


def _names(folder: Path) -> list[str]:
    entries = _entries(folder)
    for entry in entries:
        if not entry.is_dir():
            raise UserError(f"{entry.path} lies beside the class folders; expected {folder}/<class>/<image>.")
    return in_order(entry.name for entry in entries)


def _images(folder: Path) -> list[tuple[str, int, int]]:
    found = []
    for entry in _entries(folder):
        if not entry.is_file() or not entry.name.lower().endswith(KINDS):
            raise UserError(f"{entry.path} is no image file; allowed are {', '.join(KINDS)}.")
        found.append((entry.name, entry.stat().st_size, entry.stat().st_mtime_ns))
    if not found:
        raise UserError(f"{folder} holds no image.")
    return found


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, sorted by name, hidden files left out."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"cannot list {folder}: {error.strerror or error}.") from error


@functools.lru_cache(maxsize=8)
def _content(folder: Path, stamps: tuple[tuple[str, int, int], ...]) -> str:
    """Hash every image; as long as sizes and times of change stay, once: a plan asks for the facts many times."""
    total = hashlib.sha256()
    for path, size, _ in stamps:
        try:
            total.update(f"{path}\0{size}\0{file_sha256(folder / path)}\n".encode(errors="surrogateescape"))
        except OSError as error:
            raise UserError(f"cannot read {folder / path}: {error.strerror or error}.") from error
    return total.hexdigest()


def _place(found: Scan, given: dict[str, Any], root: Path) -> tuple[Path, dict[str, Any]]:
    """The cache folder, named by what decides the arrays: the files' content and the size they are scaled to."""
    source = {"folder": found.content, "image_size": given.get("image_size"), "version": VERSION}
    if by_value(found.classes):  # earlier versions sorted the same folders by text
        source["order"] = "by value"
    key = hashlib.sha256(repr(sorted(source.items())).encode()).hexdigest()[:16]
    return root / "datasets" / f"folder-{key}", source


def _build(found: Scan, given: dict[str, Any], root: Path) -> Path:
    place, source = _place(found, given, root)
    with files.written_in(root):
        place.mkdir(parents=True, exist_ok=True)
    shape = (*given["image_size"], 3) if "image_size" in given else None
    splits = {}
    first = found.folder / found.images["train"][0][0]
    for split in SPLITS:
        rows: np.ndarray | None = None
        for row, (name, _) in enumerate(found.images[split]):
            pixels = _decode(found.folder / name, shape, "image_size" in given, first)
            shape = pixels.shape  # type: ignore[assignment]  # h, w, 3 of the first image bind all others
            if rows is None:
                rows = np.empty((len(found.images[split]), *pixels.shape), np.uint8)
            rows[row] = pixels
        images: Any = rows
        labels: Any = np.array([label for _, label in found.images[split]], np.int32)
        splits[split] = Split(images, labels)
    mean, std = moments(np.asarray(splits["train"].images))
    files.write(place, splits, source, {"mean": mean, "std": std, "image_shape": shape})
    return place


def _decode(path: Path, shape: tuple[int, int, int] | None, resize: bool, first: Path) -> np.ndarray:
    try:
        pixels = decoded(path.read_bytes(), None if not resize else shape, resize)
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{path} cannot be read as an image: {error}.") from error
    if shape is not None and pixels.shape != shape:
        h, w, _ = pixels.shape
        raise UserError(
            f"{path} is {h}x{w} (height x width), {first} is {shape[0]}x{shape[1]}; all images need one size. To scale them put "
            f'{{"image_size": [{shape[0]}, {shape[1]}]}} into {SETTINGS} in the folder.'
        )
    return pixels


def _spec(found: Scan, given: dict[str, Any], noted: Mapping[str, Any], taken: tuple[str, ...]) -> DataSpec:
    h, w, c = noted["image_shape"]
    return DataSpec(
        name=title(found.folder, given, taken),
        image_shape=(h, w, c),
        classes=len(found.classes),
        mean=tuple(noted["mean"]),
        std=tuple(noted["std"]),
        flip=given.get("flip", False),
        pad=given.get("pad", min(h, w) // 8),
        class_names=found.classes,
    )
