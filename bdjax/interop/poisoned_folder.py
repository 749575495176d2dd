"""A poisoned data set as a folder of PNG files with an index, or as NumPy arrays; each is read by ``--dataset FOLDER`` too."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bdjax.data import write_arrays
from bdjax.data.images import portable
from bdjax.data.poisoned_export import FORMAT, MANIFEST
from bdjax.data.settings import SETTINGS
from bdjax.errors import UserError
from bdjax.results.poisoned import PoisonedSet
from bdjax.store.files import refuse_existing
from bdjax.store.hashing import array_digest
from bdjax.types import Dataset, DataSpec, Split, Triggered

FORMS = ("images", "arrays")
VERSION, INDEX = 1, "index.csv"
TRIGGERED = "test_triggered"


class Content(NamedTuple):
    """What is written."""

    spec: DataSpec  # of the data set, under the name that the folder's has
    triggered: Triggered
    train: PoisonedSet | None = None  # None: the triggered test images alone are written
    test: Split | None = None  # clean test images, where there is a training set


def check_place(path: Path, overwrite: bool) -> None:
    """Refuse a folder that may not be replaced: one that exists, or that holds anything but an export of this kind.

    Raises:
      UserError: as said.
    """
    refuse_existing(path, overwrite)
    if path.exists() and not _is_export(path):
        raise UserError(f"{path} holds no data that were exported by bdjax, so it is not replaced; choose another name")


def _is_export(path: Path) -> bool:
    try:
        return bool(json.loads((path / MANIFEST).read_bytes())["format"] == FORMAT)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def arrays_of(content: Content) -> dict[str, np.ndarray]:
    """{name: array} of everything that is written, in the order of the rows of the data set."""
    found: dict[str, Any] = {}
    if content.train is not None and content.test is not None:
        found |= {"train_images": content.train.images, "train_labels": content.train.labels}
        found |= {"train_true_labels": content.train.true_labels, "train_poisoned": content.train.poisoned}
        found |= {"test_images": content.test.images, "test_labels": content.test.labels}
    made = content.triggered
    found |= {f"{TRIGGERED}_images": made.images, f"{TRIGGERED}_true_labels": made.labels}
    found |= {f"{TRIGGERED}_attack_labels": made.attack_labels, f"{TRIGGERED}_rows": made.index}
    return {name: np.asarray(array) for name, array in found.items()}


def write(folder: Path, content: Content, form: str, manifest: Mapping[str, Any]) -> None:
    """Write a data set into a folder that is made here.

    Args:
      folder: does not exist yet.
      content: what is written.
      form: one of :data:`FORMS`.
      manifest: what is known of it; the form, the numbers of rows and the digest of every array are added.
    """
    folder.mkdir(parents=True)
    arrays = arrays_of(content)
    if form == "images":
        _write_images(folder, content)
    else:
        _write_arrays(folder, content, arrays)
    rows = {name.removesuffix("_images"): len(array) for name, array in arrays.items() if name.endswith("_images")}
    digests = {name: array_digest([array]) for name, array in arrays.items()}
    known = {"format": FORMAT, "version": VERSION, "form": form, **manifest, "rows": rows, "digests": digests}
    (folder / MANIFEST).write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def _write_arrays(folder: Path, content: Content, arrays: Mapping[str, np.ndarray]) -> None:
    """A file per array; those of a data set as :func:`bdjax.data.write_arrays` has them."""
    if content.train is not None and content.test is not None:
        train = Split(content.train.images, content.train.labels)  # type: ignore[arg-type]  # host arrays, as of a data set
        write_arrays(folder, Dataset(content.spec, train, content.test, ""))
    for name, array in arrays.items():
        if not (folder / f"{name}.npy").exists():
            np.save(folder / f"{name}.npy", array, allow_pickle=False)


class _Part(NamedTuple):
    """A split as files."""

    split: str
    images: np.ndarray  # u8[n h w c]
    rows: np.ndarray  # i64[n]
    folders: np.ndarray  # i32[n], the class by which an image is filed
    labels: np.ndarray  # i32[n], what a network is trained to answer, or is to answer where it is attacked
    true_labels: np.ndarray  # i32[n]
    poisoned: np.ndarray  # bool[n]


def _parts(content: Content) -> Iterator[_Part]:
    """Training images are filed by the label that is trained on, test images by their true one."""
    train, test, made = content.train, content.test, content.triggered
    if train is not None and test is not None:
        yield _Part("train", train.images, np.arange(len(train.labels)), train.labels, *train[1:])
        labels = np.asarray(test.labels)
        rows, never = np.arange(len(labels)), np.zeros(len(labels), bool)
        yield _Part("test", np.asarray(test.images), rows, labels, labels, labels, never)
    always = np.ones(len(made.labels), bool)
    yield _Part(TRIGGERED, made.images, made.index, made.labels, made.attack_labels, made.labels, always)


def _write_images(folder: Path, content: Content) -> None:
    """``<split>/<class>/<row>.png``, where the class is a number with leading zeros, so that every reader sorts classes alike."""
    import polars as pl

    index = []
    for part in _parts(content):
        files = _write_split(folder, part, content.spec.classes)
        columns = {
            "row": part.rows,
            "label": part.labels,
            "true_label": part.true_labels,
            "poisoned": part.poisoned.astype(np.int8),
        }
        index.append(pl.DataFrame({"split": [part.split] * len(files), "file": files, **columns}))
    pl.concat(index, how="vertical_relaxed").write_csv(folder / INDEX)
    if content.train is not None:
        spec = content.spec
        settings = {"name": spec.name, "channels": spec.image_shape[2], "flip": spec.flip, "pad": spec.pad}
        if spec.class_names:
            settings["class_names"] = list(spec.class_names)
        (folder / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def _write_split(folder: Path, part: _Part, classes: int) -> list[str]:
    """Write the images of a split and return their files; every class has a folder, also one without images."""
    wide, digits = len(str(classes - 1)), max(5, len(str(int(part.rows.max(initial=0)))))
    for label in range(classes):
        (folder / part.split / f"{label:0{wide}}").mkdir(parents=True)
    places = zip(part.folders.tolist(), part.rows.tolist(), strict=True)
    files = [f"{part.split}/{label:0{wide}}/{row:0{digits}}.png" for label, row in places]
    for file, image in zip(files, part.images, strict=True):
        (folder / file).write_bytes(portable(image, image.shape))
    return files
