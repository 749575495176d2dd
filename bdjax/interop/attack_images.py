"""The stored test images of a BackdoorBench attack: as tuples in the checkpoint, or as PNG files in a folder beside it."""

from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from bdjax.data.images import opened
from bdjax.data.pickles.numpy_stand_ins import Array
from bdjax.data.pickles.torch_stand_ins import Picture
from bdjax.errors import UserError
from bdjax.interop.checkpoint import Triggered

FOLDER = "bd_test_dataset"


def read_images(stored: Mapping[str, Any], folder: Path) -> Triggered:
    """Return the triggered rows of a stored test set, in its order.

    Args:
      stored: the checkpoint's ``bd_test``.
      folder: of the checkpoint. Image files are looked for in it by the last three parts of their stored path, whatever machine
        wrote that.

    Raises:
      UserError: a part, an image or an image file is missing, or images have several sizes.
    """
    try:
        entries = stored["bd_data_container"]["data_dict"]
        order = _numbers(stored["original_index_array"]).astype(np.int64)
        marked = _numbers(stored["poison_indicator"])
    except (KeyError, TypeError) as error:
        raise UserError(f"its stored test set has no {error}, so it is not what BackdoorBench writes") from None
    chosen = [i for i in order.tolist() if not 0 <= i < len(marked) or marked[i] != 0]
    images: list[np.ndarray] = []
    labels: list[int] = []
    goals: list[int] = []
    for i in chosen:
        if i not in entries:
            raise UserError(f"test image {i} is marked as triggered but not stored")
        image, goal, truth = _entry(entries[i], i, folder)
        if images and image.shape != images[0].shape:
            raise UserError(f"test image {i} is {list(image.shape)}, test image {chosen[0]} {list(images[0].shape)}")
        images.append(image)
        labels.append(truth)
        goals.append(goal)
    if not images:
        raise UserError("its stored test set holds no triggered image")
    index = np.asarray(chosen, np.int64)
    return Triggered(np.stack(images), np.asarray(labels, np.int32), np.asarray(goals, np.int32), index, len(marked))


def _numbers(value: Any) -> np.ndarray:
    array = value.value if isinstance(value, Array) else np.asarray(value)
    if array.ndim != 1 or array.dtype.kind not in "biuf":
        raise UserError("its stored test set has an index list that is not a list of numbers")
    return array


def _entry(entry: Any, i: int, folder: Path) -> tuple[np.ndarray, int, int]:
    """(u8[h w c], attack label, true label)."""
    try:
        if isinstance(entry, Mapping):
            goal, truth = entry["other_info"]
            return _open(_beside(entry["path"], folder), i), int(goal), int(truth)
        image, goal, truth = entry
        if not isinstance(image, Picture):
            raise TypeError
        return image.pixels(), int(goal), int(truth)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError):
        raise UserError(f"test image {i} is stored in a form that is not BackdoorBench's") from None


def _beside(path: str, folder: Path) -> Path:
    parts = PureWindowsPath(path).parts[-3:]  # knows both separators
    if len(parts) < 3 or ".." in parts or any(":" in part for part in parts):
        raise UserError(f"the stored path {path!r} does not end in folder, class and file")
    return folder.joinpath(*parts)


def _open(path: Path, i: int) -> np.ndarray:
    try:
        image = opened(path.read_bytes(), ("PNG",))
    except FileNotFoundError:
        raise UserError(
            f"test image {i} is missing: {path}; copy the folder {FOLDER} beside the checkpoint, or import without images"
        ) from None
    except OSError as error:
        raise UserError(f"test image {i} cannot be read: {path} ({error.strerror or error})") from None
    except UserError as error:
        raise UserError(f"test image {i} cannot be read: {path}: {error}") from None
    if image.mode not in ("RGB", "L"):
        raise UserError(f"test image {i} has mode {image.mode!r}; allowed: RGB, L: {path}")
    pixels = np.array(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def write_images(triggered: Triggered, written: Path, final: Path) -> dict[str, Any]:
    """Write image files and return what a checkpoint stores about them.

    Args:
      triggered: the images.
      written: folder to write to.
      final: the folder's path once it is in place, for the stored paths.
    """
    from PIL import Image

    entries = {}
    for image, truth, goal, i in zip(*triggered[:4], strict=True):
        file = f"{int(truth)}/{int(i)}.png"
        (written / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image if image.shape[-1] == 3 else image[:, :, 0]).save(written / file)
        entries[int(i)] = {"path": f"{final}/{file}", "other_info": [int(goal), int(truth)]}
    index = triggered.index.astype(np.int64)
    marked = np.zeros(triggered.rows or int(index.max()) + 1)
    marked[index] = 1
    return {
        "bd_data_container": {"save_folder_path": str(final), "data_dict": entries, "save_file_format": ".png"},
        "getitem_all": True,
        "getitem_all_switch": False,
        "original_index_array": index,
        "poison_indicator": marked,
        "save_folder_path": str(final),
    }
