"""A user's own data set is a folder, of one of two kinds; its path stands wherever the name of a data set does.

* Images: ``train/<class>/<image>`` and ``test/<class>/<image>`` (:mod:`bdjax.data.image_folder`); numbered class folders in the
  order of their numbers.
* Arrays: ``train_images.npy``, ``train_labels.npy``, ``test_images.npy``, ``test_labels.npy`` (:mod:`bdjax.data.array_folder`).

Either may hold a ``dataset.json`` (:mod:`bdjax.data.settings`).
"""

from pathlib import Path

from bdjax.data import array_folder, image_folder
from bdjax.data.array_folder import ARRAYS
from bdjax.data.source import SPLITS
from bdjax.errors import UserError
from bdjax.types import Dataset, DataSpec


def kind(path: Path) -> str:
    """Return "images" or "arrays"; raise :class:`UserError` where a folder holds neither, both, or a part of one."""
    images = [split for split in SPLITS if (path / split).is_dir()]
    arrays = [file for file in ARRAYS if (path / file).is_file()]
    if images and arrays:
        raise UserError(f"{path} holds folders ({', '.join(images)}) and arrays ({', '.join(arrays)}); only one kind is allowed.")
    if len(images) == len(SPLITS):
        return "images"
    if len(arrays) == len(ARRAYS):
        return "arrays"
    needed = f"train/<class>/<image> and test/<class>/<image>, or {', '.join(ARRAYS)}"
    raise UserError(f"{path} holds no data set: needed are {needed}.")


def facts(path: Path, root: Path, taken: tuple[str, ...]) -> tuple[DataSpec, dict[str, int]]:
    """Return (facts, {split: rows}) of a folder, decoding its images into the cache if that was not done yet.

    Args:
      path: of the folder.
      root: of the cache.
      taken: names of the built-in data sets, which a folder must not have.

    Raises:
      UserError: the folder holds no data set, or an image or array in it is wrong.
    """
    if kind(path) == "images":
        return image_folder.facts(path, root, taken)
    return array_folder.facts(path, taken)


def read(path: Path, root: Path, taken: tuple[str, ...]) -> Dataset:
    """Return the data set in a folder, memory-mapped; arguments and errors of :func:`facts`."""
    if kind(path) == "images":
        return image_folder.read(path, root, taken)
    return array_folder.read(path, taken)


def prepare(path: Path, root: Path, taken: tuple[str, ...]) -> Path:
    """Decode the images of a folder into the cache and return where; :class:`UserError` for arrays, which need none."""
    if kind(path) == "arrays":
        raise UserError(f"{path} holds arrays: there is nothing to prepare.")
    return image_folder.prepare(path, root, taken)
