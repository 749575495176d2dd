"""A data set from the user's own arrays."""

from typing import Any

import numpy as np

from bdjax.data import labels as rules
from bdjax.data.images import plain
from bdjax.data.source import digest, pieces
from bdjax.errors import UserError
from bdjax.types import Dataset, DataSpec, Split

COUNTED = 1 << 20  # pixels at once


def from_arrays(
    images: Any,
    labels: Any,
    test_images: Any,
    test_labels: Any,
    *,
    name: str = "arrays",
    classes: int | None = None,
    pad: int = 4,
    flip: bool = False,
    class_names: tuple[str, ...] = (),
) -> Dataset:
    """Make a data set from arrays; mean and standard deviation per channel are those of the training rows.

    Args:
      images: u8[n h w c], c = 1 or 3.
      labels: integers[n], 0..classes-1.
      test_images: u8[m h w c], same h, w, c.
      test_labels: integers[m], 0..classes-1.
      name: of the data set, for records.
      classes: number of classes; None: the largest training label + 1, and then every class must have training rows. Where it is
        given, a class without any is a warning.
      pad: zero padding of the random crop while training, pixels, >= 0.
      flip: random horizontal flip while training.
      class_names: one per class, or empty.

    Returns:
      The data set. A channel that never varies gets the standard deviation 1.

    Raises:
      UserError: an array has another dtype, shape or range, or a class has no training rows.
    """
    train = _split("images", images, "labels", labels)
    test = _split("test_images", test_images, "test_labels", test_labels)
    shape = train.images.shape[1:]
    if test.images.shape[1:] != shape:
        raise UserError(f"test_images are {list(test.images.shape[1:])}, images are {list(shape)}; both must be the same.")
    count = int(train.labels.max()) + 1 if classes is None else classes
    for title, split in (("labels", train), ("test_labels", test)):
        rules.in_range(np.asarray(split.labels), count, title)
    if count < 2:
        raise UserError(f"a data set needs at least 2 classes; the labels give {count}.")
    if pad < 0:
        raise UserError(f"pad is {pad}; it must be 0 or more pixels.")
    if class_names and len(class_names) != count:
        raise UserError(f"class_names has {len(class_names)} names for {count} classes.")
    rules.every_class(np.asarray(train.labels), count, "labels", given=classes is not None, names=tuple(class_names))
    mean, std = moments(np.asarray(train.images))
    h, w, c = shape
    facts = DataSpec(name, (h, w, c), count, mean, std, flip, pad, tuple(class_names))
    return Dataset(facts, train, test, digest(train, test))


def moments(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of u8[n h w c], on the [0, 1] scale; 0 deviation becomes 1.

    Exact: computed from the counts of the 256 values, in float64.
    """
    counts = np.zeros((images.shape[-1], 256), np.int64)
    for piece in pieces(images):
        count_values(piece, counts)
    return moments_of(counts)


def count_values(images: np.ndarray, counts: np.ndarray) -> None:
    """Add to ``counts`` i64[c 256] how often each value occurs in each channel of u8[... c]."""
    for channel in range(images.shape[-1]):
        flat = np.ascontiguousarray(images[..., channel]).ravel()
        for start in range(0, len(flat), COUNTED):  # bincount makes integers of 8 bytes of its argument
            counts[channel] += np.bincount(flat[start : start + COUNTED], minlength=256)


def moments_of(counts: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return what :func:`moments` does, from the counts of the values i64[c 256]."""
    values = np.arange(256) / 255.0
    mean, std = [], []
    for channel in counts:
        share = channel / channel.sum()
        centre = float(share @ values)
        spread = float(np.sqrt(share @ (values - centre) ** 2))
        mean.append(centre)
        std.append(spread if spread > 0 else 1.0)
    return tuple(mean), tuple(std)


def checked_images(title: str, images: Any) -> np.ndarray:
    """Return ``images`` as they are if they are u8[n h w 1|3]; nothing is converted, because what values mean is not guessed.

    Args:
      title: what they are, for messages.
      images: an array, or what NumPy makes one of.

    Raises:
      UserError: another dtype or shape, with the way to the right one.
    """
    array = _array(title, images)
    needed = "uint8 values 0..255 of shape [rows, height, width, 1 or 3] are needed"
    if array.dtype == object:
        raise UserError(f"{title} are objects, as of images of several sizes; {needed}: scale them to one size, np.stack(...).")
    if array.dtype != np.uint8:
        raise UserError(f"{title} are {array.dtype}; {needed}{_to_bytes(array)}.")
    if array.ndim != 4 or array.shape[-1] not in (1, 3) or 0 in array.shape:
        raise UserError(f"{title} have shape {list(array.shape)}; [rows, height, width, 1 or 3] is needed{_to_shape(array)}.")
    return array


def _to_bytes(array: np.ndarray) -> str:
    """How an array of another dtype becomes bytes, by its values."""
    if array.dtype == bool:
        return ": 255 * images.astype(np.uint8)"
    if array.size == 0 or array.dtype.kind not in "iuf":
        return ""
    extremes = [(piece.min(), piece.max()) for piece in pieces(array)]
    low, high = min(one for one, _ in extremes), max(one for _, one in extremes)
    if not np.isfinite([low, high]).all():
        return "; they hold NaN or infinite values"
    span = f"; theirs go from {low:g} to {high:g}"
    if low < 0:
        return f"{span}: undo the normalisation, which the model does itself, then np.round(255 * images).astype(np.uint8)"
    if array.dtype.kind == "f" and high <= 1:
        return f"{span}: np.round(255 * images).astype(np.uint8)"
    if high <= 255:
        return f"{span}: np.round(images).astype(np.uint8)"
    full = f": np.round(images / {257 if high <= 65535 else high / 255:g}).astype(np.uint8)"
    return f"{span}{full if array.dtype.kind != 'f' else ''}"


def _to_shape(array: np.ndarray) -> str:
    """How an array of another shape gets the right one, where that can be seen."""
    if array.ndim == 3 and array.shape[-1] not in (1, 3):
        return ", greyscale images as images[..., None]"
    if array.ndim == 4 and array.shape[1] in (1, 3):
        return ", channels last: images.transpose(0, 2, 3, 1)"
    if array.ndim == 4 and array.shape[-1] == 4:
        return ", without transparency: images[..., :3]"
    return ""


def _array(title: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values)
    except Exception as error:  # lists of several lengths; tensors on another device
        raise UserError(f"{title} cannot be made one array: {plain(error)}.") from error


def _split(image_title: str, images: Any, label_title: str, labels: Any) -> Any:
    images, labels = checked_images(image_title, images), rules.checked(_array(label_title, labels), label_title)
    if len(labels) != len(images):
        raise UserError(f"{label_title} has {len(labels):,} rows, {image_title} {len(images):,}.")
    return Split(images, labels)
