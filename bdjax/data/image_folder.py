"""A folder ``<split>/<class>/<image>`` of image files."""

import functools
import os
from collections.abc import Iterable
from pathlib import Path

from bdjax.data.class_order import in_order
from bdjax.data.junk import passed_over
from bdjax.data.source import SPLITS, Listing, Row
from bdjax.errors import UserError

KINDS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".ppm", ".pgm", ".pbm", ".pnm", ".webp", ".gif", ".tif", ".tiff")
TRAIN, TEST = ("train", "training"), ("test", "testing", "val", "valid", "validation")  # in the order they are looked for
NEEDS = "train/<class>/<image> and test/<class>/<image> (or val/, valid/, validation/)"


def splits(folder: Path) -> dict[str, str]:
    """Return {"train", "test"} with the names of the folders that hold them; a split that is not there is left out.

    Where there are several for the test, it is the first that holds a class of the training folder, or else the first.
    """
    found = {}
    inside = {entry.name.lower(): entry.name for entry in sorted(folder.iterdir()) if entry.is_dir()}
    train = [inside[name] for name in TRAIN if name in inside]
    test = [inside[name] for name in TEST if name in inside]
    if train:
        found["train"] = train[0]
    if test:
        classes = {entry.name for entry in (folder / train[0]).iterdir() if entry.is_dir()} if len(test) > 1 and train else set()
        alike = [name for name in test if any((folder / name / label).is_dir() for label in classes)]
        found["test"] = (alike or test)[0]
    return found


def scan(folder: Path) -> Listing:
    """List a folder's images class by class, by file name; classes as :func:`bdjax.data.class_order.in_order` puts them.

    Raises:
      UserError: the splits have other classes, there are fewer than 2, a class has no image, or a file is no image.
    """
    places = splits(folder)
    classes = {split: _names(folder / places[split]) for split in SPLITS}
    for split, other in (SPLITS, SPLITS[::-1]):
        if odd := sorted(set(classes[split]) - set(classes[other])):
            one, two = places[split], places[other]
            raise UserError(f"{folder}: class {odd[0]!r} lies in {one}/ and not in {two}/; both need the same classes.")
    names = classes["train"]
    if len(names) < 2:
        raise UserError(f"{folder}: a data set needs at least 2 classes; {places['train']}/ holds {len(names)}.")
    rows: dict[str, list[Row]] = {}
    files = []
    for split in SPLITS:
        rows[split] = []
        for label, name in enumerate(names):
            place = folder / places[split] / name
            found = _images(place)
            rows[split] += image_rows(place, found, label)
            files += [f"{places[split]}/{name}/{file}" for file in found]
    return Listing(folder, tuple(names), rows, tuple(files))


def image_rows(folder: Path, names: Iterable[str], label: int) -> list[Row]:
    """Return the images of a folder as rows of one label; texts for paths, because there are many."""
    base = f"{folder}{os.sep}"
    return [Row(base + name, label, functools.partial(_bytes, base + name)) for name in names]


def image_names(folder: Path) -> list[str]:
    """Return the image files in a folder, sorted by name, junk and all other files left out."""
    return sorted(name for name in os.listdir(folder) if name.lower().endswith(KINDS) and not passed_over(name))


def _bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _names(folder: Path) -> list[str]:
    entries = _entries(folder)
    for entry in entries:
        if not entry.is_dir():
            raise UserError(f"{entry.path} lies beside the class folders; expected {folder}/<class>/<image>.")
    return in_order(entry.name for entry in entries)


def _images(folder: Path) -> list[str]:
    found = []
    for entry in _entries(folder):
        if not entry.is_file() or not entry.name.lower().endswith(KINDS):
            raise UserError(f"{entry.path} is no image file; allowed are {', '.join(KINDS)}.")
        found.append(entry.name)
    if not found:
        raise UserError(f"{folder} holds no image.")
    return found


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what lies in a folder, sorted by name, hidden files and junk left out."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not passed_over(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"cannot list {folder}: {error.strerror or error}.") from error
