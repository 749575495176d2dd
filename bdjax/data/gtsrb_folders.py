"""GTSRB unpacked: as its archives lay it out, as torchvision does, and as its copy on Kaggle does."""

import collections
import functools
import os
from collections.abc import Iterator
from pathlib import Path

from bdjax.data.annotations import class_rows, labels_of
from bdjax.data.compact import compact
from bdjax.data.image_folder import image_names, image_rows
from bdjax.data.source import SPLITS, Layout, Listing, Row
from bdjax.errors import UserError
from bdjax.types import DataSpec

TRUTH = "GT-final_test.csv"
HOMES = ("", "gtsrb", "GTSRB")
TRAINING = {"unpacked": "Final_Training/Images", "torchvision": "Training"}
# Of the archive that torchvision fetches, which holds 26,640 training images; the rest came later.
FEWER: tuple[int, ...] = (150, 1500, 1500, 960, 1320, 1260, 300, 960, 960, 990, 1350, 900, 1410, 1440, 540, 420, 300)
FEWER += (750, 810, 150, 240, 240, 270, 360, 180, 1020, 420, 180, 360, 180, 300, 540, 180, 480, 300, 810, 270, 150, 1380)
FEWER += (210, 240, 180, 180)
TESTED: tuple[int, ...] = (60, 720, 750, 450, 660, 630, 150, 450, 450, 480, 660, 420, 690, 720, 270, 210, 150, 360, 390)
TESTED += (60, 90, 90, 120, 150, 90, 480, 180, 60, 150, 90, 150, 270, 60, 210, 120, 390, 120, 60, 690, 90, 90, 60, 90)


def layouts(spec: DataSpec) -> tuple[Layout, ...]:
    """Return the three layouts; ``spec`` are the facts of the data set."""
    fewer = {"train": FEWER, "test": TESTED}
    return (
        Layout(
            "kaggle",
            "Train/<class>/, Test/ and Test.csv (GTSRB as Kaggle has it)",
            _kaggle_at,
            functools.partial(_kaggle, spec),
            True,
        ),
        *(
            Layout(
                key,
                f"GTSRB/{training}/<class>/, GTSRB/Final_Test/Images/ and {TRUTH}",
                functools.partial(_at, key),
                functools.partial(_folders, spec, key),
                True,
                (fewer,) if key == "torchvision" else (),
            )
            for key, training in TRAINING.items()
        ),
    )


def _at(key: str, path: Path) -> Path | None:
    return next((path / home for home in HOMES if _training(path / home, key)), None)


def _training(base: Path, key: str) -> Path | None:
    """Return the folder of the classes: a number of five digits each."""
    place = TRAINING[key]
    for folder in (base / place, base / "GTSRB" / place, base / "GTSRB_Final_Training_Images" / "GTSRB" / place):
        if folder.is_dir() and next(_class_folders(folder), None):
            return folder
    return None


def _class_folders(folder: Path) -> Iterator[Path]:
    return (entry for entry in folder.iterdir() if entry.name.isdecimal() and entry.is_dir())


def _folders(spec: DataSpec, key: str, base: Path) -> Listing:
    """Return the official and torchvision's folders; annotation files beside the images are compared where they are."""
    training = _training(base, key)
    assert training is not None
    homes = (base, base / "GTSRB", base / "GTSRB_Final_Test_Images" / "GTSRB")
    tested = next((home / "Final_Test" / "Images" for home in homes if (home / "Final_Test" / "Images").is_dir()), None)
    if tested is None:
        raise UserError(f"{base} lacks GTSRB/Final_Test/Images; unpack GTSRB_Final_Test_Images.zip there.")
    beside = (*homes[:2], tested, tested.parent, base / "GTSRB_Final_Test_GT", base.parent)
    truth = next((home / TRUTH for home in beside if (home / TRUTH).is_file()), None)
    if truth is None:
        raise UserError(f"{base} lacks {TRUTH}, which holds the labels of the test images; unpack GTSRB_Final_Test_GT.zip there.")
    files = []
    for table in sorted(training.glob("*/GT-*.csv")):
        number = int(table.parent.name)
        for file, label in _table(spec, table):
            if label != number:
                raise UserError(f"{table} gives {file} the class {label}, its folder {number}.")
        labels_of(str(table), _table(spec, table), image_names(table.parent), f"{table.parent}")
        files.append(table)
    rows = {"train": _by_class(spec, training), "test": _listed(spec, tested, truth)}
    return _listing(spec, base, rows, [*files, truth])


def _kaggle_at(path: Path) -> Path | None:
    for base in (path / home for home in HOMES):
        tables = any((base / name).is_file() for name in ("Train.csv", "Test.csv", "Meta.csv"))
        training = _named(base, "Train")
        if tables and training is not None and next(_class_folders(training), None):
            return base
    return None


def _named(base: Path, name: str) -> Path | None:
    """Return a folder of this name, or of the same in small letters, which copies of the same images have there."""
    return next((base / some for some in (name, name.lower()) if (base / some).is_dir()), None)


def _kaggle(spec: DataSpec, base: Path) -> Listing:
    training, tested = _named(base, "Train"), _named(base, "Test")
    assert training is not None
    truth = base / "Test.csv"
    if tested is None or not truth.is_file():
        missing = (
            "Test/, the folder of the test images" if tested is None else "Test.csv, which holds the labels of the test images"
        )
        raise UserError(f"{base} lacks {missing}; unpack it again.")
    rows = {"train": _by_class(spec, training), "test": _listed(spec, tested, truth)}
    tables = [truth]
    if (table := base / "Train.csv").is_file():
        listed = [("/".join(file.split("/")[-2:]), label) for file, label in _table(spec, table)]
        there = ["/".join(row.name.split(os.sep)[-2:]) for row in rows["train"]]
        found = labels_of(str(table), listed, there, str(training))
        for file, row in zip(there, rows["train"], strict=True):
            if found[file] != row.label:
                raise UserError(f"{table} gives {file} the class {found[file]}, its folder {row.label}.")
        tables.append(table)
    return _listing(spec, base, rows, tables)


def _listing(spec: DataSpec, base: Path, rows: dict[str, list[Row]], tables: list[Path]) -> Listing:
    files = [*(row.name for split in SPLITS for row in rows[split]), *map(str, tables)]
    classes, moved, note = compact(spec.class_names, rows, f"{base}: it has the layout of {spec.name}")
    if collections.Counter(row.label for row in rows["train"]) == dict(enumerate(FEWER)):
        note = f"{base}: these are the 26,640 training images of GTSRB that torchvision fetches; the survey's are 39,209"
    home = f"{base}{os.sep}"
    inside = tuple(file.removeprefix(home) if file.startswith(home) else os.path.relpath(file, base) for file in files)
    return Listing(base, classes, moved, inside, spec.image_shape[:2], flip=spec.flip, pad=spec.pad, note=note)


def _by_class(spec: DataSpec, training: Path) -> list[Row]:
    """Return training rows by class number, by file name within a class: the order of the archive."""
    rows = []
    for folder in sorted(_class_folders(training), key=lambda entry: int(entry.name)):
        if int(folder.name) >= spec.classes:
            raise UserError(f"{folder} is no class of {spec.name}; allowed are 0 to {spec.classes - 1}.")
        rows += image_rows(folder, image_names(folder), int(folder.name))
    return rows


def _listed(spec: DataSpec, tested: Path, truth: Path) -> list[Row]:
    """Return test rows by file name, with the labels of a table."""
    listed = [(file.rpartition("/")[2], label) for file, label in _table(spec, truth)]
    found = labels_of(str(truth), listed, image_names(tested), str(tested))
    return [row for name in sorted(found) for row in image_rows(tested, (name,), found[name])]


def _table(spec: DataSpec, path: Path) -> list[tuple[str, int]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    return class_rows(str(path), text, spec.classes)
