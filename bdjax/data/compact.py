"""Copies of a known data set that do not hold all of its classes."""

from collections.abc import Mapping, Sequence

from bdjax.data.source import Row
from bdjax.errors import UserError


def compact(
    names: Sequence[str], rows: Mapping[str, Sequence[Row]], title: str
) -> tuple[tuple[str, ...], dict[str, Sequence[Row]], str]:
    """Number the classes that have training rows 0, 1, 2 … in the order of their labels.

    Args:
      names: of all classes, by label.
      rows: {"train", "test"}.
      title: what lies where, for messages.

    Returns:
      (the names of the classes that are there, the rows with their new labels, a note where a class is missing, else "").

    Raises:
      UserError: fewer than 2 classes, no test row, or test rows of a class that has no training row.
    """
    present = sorted({row.label for row in rows["train"]})
    if len(present) < 2:
        raise UserError(f"{title}, and training images of {len(present)} classes; a data set needs at least 2.")
    if not rows["test"]:
        raise UserError(f"{title}, and no test image.")
    if extra := sorted({row.label for row in rows["test"]} - set(present)):
        raise UserError(f"{title}, and test images of the class {names[extra[0]]!r}, of which there is no training image.")
    if len(present) == len(names):
        return tuple(names), dict(rows), ""
    place = {label: rank for rank, label in enumerate(present)}
    moved = {split: [row._replace(label=place[row.label]) for row in some] for split, some in rows.items()}
    note = f"{title}, and {len(present)} of its {len(names)} classes, which are numbered 0 to {len(present) - 1} in their order"
    return tuple(names[label] for label in present), dict(moved), note
