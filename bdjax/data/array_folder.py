"""A folder of four NumPy files: arrays of the user's own, so that the command line can read them too."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from bdjax.data import labels as rules
from bdjax.data.arrays import checked_images, from_arrays
from bdjax.data.atomic import OWNER_ONLY, opened, replace_file
from bdjax.data.images import plain
from bdjax.data.settings import CHECKS, SETTINGS, settings, title
from bdjax.errors import UserError
from bdjax.types import Dataset, DataSpec

ARRAYS = ("train_images.npy", "train_labels.npy", "test_images.npy", "test_labels.npy")
KEYS = ("name", "classes", "flip", "pad", "mean", "std", "class_names")  # what is written
SETTABLE = (*KEYS, "channels")


def write_arrays(path: str | Path, dataset: Dataset) -> Path:
    """Write a data set into a folder that ``load(path)`` and ``--dataset path`` read.

    Args:
      path: of the folder; made if need be. Arrays that are there are replaced.
      dataset: for example from :func:`bdjax.data.from_arrays`; its ``spec.name`` must not be that of a built-in data set.

    Returns:
      The folder.

    Raises:
      UserError: the name is taken, labels are no classes of it, or the folder cannot be written or holds folders of images.
    """
    from bdjax.data.table import DATASETS

    folder, spec = Path(path).expanduser(), dataset.spec
    if spec.name in DATASETS:
        raise UserError(f"{spec.name} is a built-in data set; give yours another name: dataset.spec._replace(name=...).")
    if any((folder / split).is_dir() for split in ("train", "test")):
        raise UserError(f"{folder} holds folders of images; choose an empty one for arrays.")
    content = {key: getattr(spec, key) for key in KEYS}
    for label_title, split in (("train_labels", dataset.train), ("test_labels", dataset.test)):
        found = rules.checked(split.labels, label_title)
        rules.in_range(found, spec.classes, label_title)
    if spec.class_names and len(spec.class_names) != spec.classes:
        raise UserError(f"class_names has {len(spec.class_names)} names for {spec.classes} classes.")
    what, fits = CHECKS["name"]
    if not fits(spec.name):
        raise UserError(f"the data set is named {spec.name!r}; in a folder the name must be {what}.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ARRAYS[-1]).unlink(missing_ok=True)  # so that a half-written folder is no data set
        for file, array in zip(ARRAYS, (*dataset.train, *dataset.test), strict=True):
            with opened(folder / file, mode=OWNER_ONLY) as stream:
                np.save(stream, np.asarray(array), allow_pickle=False)
        replace_file(folder / SETTINGS, json.dumps(content, indent=1).encode(), mode=OWNER_ONLY)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}.") from error
    return folder


def read(path: Path, taken: tuple[str, ...]) -> Dataset:
    """Return the data set in a folder of arrays, the images memory-mapped.

    Args:
      path: of the folder, which holds ``ARRAYS`` and perhaps ``dataset.json``.
      taken: names it must not have.

    Returns:
      The data set. What ``dataset.json`` does not say is as :func:`bdjax.data.from_arrays` has it, but for the padding: an eighth
      of the shorter side.

    Raises:
      UserError: an array cannot be read, or has another dtype, shape or range; a wrong setting.
    """
    stamps = tuple((file.stat().st_size, file.stat().st_mtime_ns) for file in _files(path) if file.is_file())
    return _read(path.resolve(), taken, stamps)


def facts(path: Path, taken: tuple[str, ...]) -> tuple[DataSpec, dict[str, int]]:
    """Return (facts, {split: rows}) of a folder of arrays; arguments and errors of :func:`read`."""
    dataset = read(path, taken)
    return dataset.spec, {"train": len(dataset.train.labels), "test": len(dataset.test.labels)}


def _files(path: Path) -> list[Path]:
    return [path / name for name in (*ARRAYS, SETTINGS)]


@functools.lru_cache(maxsize=8)
def _read(path: Path, taken: tuple[str, ...], stamps: tuple[tuple[int, int], ...]) -> Dataset:
    """As long as sizes and times of change stay, a folder is summed once: a plan asks for its facts many times."""
    given = settings(path, SETTABLE)
    arrays: list[Any] = []
    for file in ARRAYS:
        try:
            with (path / file).open("rb") as stream:
                np.lib.format.read_magic(stream)  # np.load would take an archive of several arrays too
            arrays.append(np.load(path / file, mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path / file} cannot be read as an array: {plain(error)}; write it with np.save.") from error
    for i in (0, 2):
        arrays[i] = _channels(checked_images(f"the images in {path / ARRAYS[i]}", arrays[i]), given, path / SETTINGS)
    options = {key: given[key] for key in ("classes", "flip") if key in given}
    pad = given.get("pad", min(arrays[0].shape[1:3], default=0) // 8)
    class_names = tuple(given.get("class_names", ()))
    try:
        dataset = from_arrays(*arrays, name=title(path, given, taken), pad=pad, class_names=class_names, **options)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    channels = dataset.spec.image_shape[2]
    spec = dataset.spec
    for key in ("mean", "std"):
        if len(given.get(key, spec.mean)) != channels:
            raise UserError(f"{path / SETTINGS}: {key} has {len(given[key])} numbers for {channels} channels.")
    mean, std = (tuple(map(float, values)) for values in (given.get("mean", spec.mean), given.get("std", spec.std)))
    return dataset._replace(spec=spec._replace(mean=mean, std=std))


def _channels(images: np.ndarray, given: dict[str, Any], where: Path) -> np.ndarray:
    """Greyscale images as three equal channels where the settings say so, without a copy."""
    wanted: int = given["channels"] if "channels" in given else images.shape[3]
    if wanted < images.shape[3]:
        raise UserError(f"{where}: channels is 1, the images have 3; write greyscale images, or leave the key out.")
    return np.broadcast_to(images, (*images.shape[:3], wanted))
