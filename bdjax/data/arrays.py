"""A data set from the user's own arrays."""

from typing import Any

import numpy as np

from bdjax.data import labels as rules
from bdjax.data.source import digest
from bdjax.errors import UserError
from bdjax.types import Dataset, DataSpec, Split


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
    values = np.arange(256) / 255.0
    mean, std = [], []
    for channel in range(images.shape[-1]):
        share = np.bincount(np.ascontiguousarray(images[..., channel]).ravel(), minlength=256) / images[..., channel].size
        centre = float(share @ values)
        spread = float(np.sqrt(share @ (values - centre) ** 2))
        mean.append(centre)
        std.append(spread if spread > 0 else 1.0)
    return tuple(mean), tuple(std)


def _split(image_title: str, images: Any, label_title: str, labels: Any) -> Any:
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise UserError(f"{image_title} are {images.dtype}; uint8 values 0..255 are needed.")
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise UserError(f"{image_title} have shape {list(images.shape)}; [rows, height, width, 1 or 3] is needed.")
    labels = rules.checked(labels, label_title)
    if len(labels) != len(images):
        raise UserError(f"{label_title} has {len(labels):,} rows, {image_title} {len(images):,}.")
    return Split(images, labels)
