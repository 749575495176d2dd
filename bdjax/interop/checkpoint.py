"""What a checkpoint file of other software holds, as plain arrays."""

from typing import NamedTuple

import numpy as np

from bdjax.errors import UserError
from bdjax.types import Triggered


class Checkpoint(NamedTuple):
    """A file as it is: nothing is checked against a network yet. None = the file does not say."""

    state: dict[str, np.ndarray]
    model: str | None = None
    classes: int | None = None
    image_shape: tuple[int, int, int] | None = None
    dataset: str | None = None
    triggered: Triggered | None = None
    key: str = ""  # where the weights lie in the file; "" = they are the file
    others: tuple[str, ...] = ()  # keys of further state dicts in the file


def check_triggered(triggered: Triggered, image_shape: tuple[int, ...], classes: int) -> None:
    """Check dtypes, shapes and ranges.

    Raises:
      UserError: one of them is wrong.
    """
    images, labels, attack_labels, index, rows = triggered
    n = len(images)
    if images.dtype != np.uint8 or images.shape != (n, *image_shape):
        raise UserError(
            f"triggered images are {images.dtype}{list(images.shape)}, not uint8[n, {', '.join(map(str, image_shape))}]"
        )
    for name, array in (("true labels", labels), ("attack labels", attack_labels), ("indices", index)):
        if array.shape != (n,) or array.dtype.kind != "i":
            raise UserError(f"the {name} of {n} triggered images are {array.dtype}{list(array.shape)}")
    for name, array in (("true label", labels), ("attack label", attack_labels)):
        if n and not 0 <= int(array.min()) <= int(array.max()) < classes:
            raise UserError(f"a triggered image has the {name} {int(array.max())}; there are {classes} classes")
    if len(set(index.tolist())) != n or (n and int(index.min()) < 0) or (rows and n and int(index.max()) >= rows):
        raise UserError(f"the indices of the triggered images are not {n} different rows of the test set")
