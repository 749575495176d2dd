"""Labels are whole numbers from 0 on, and every class has rows: what is wrong is one line, and what to do about it."""

import sys
from typing import Any

import numpy as np

from bdjax.errors import UserError

NAMED = 5  # classes named in a message at most


def checked(labels: Any, title: str) -> np.ndarray:
    """Return labels as i32[n].

    Args:
      labels: integers[n] of any width.
      title: of the array, for messages.

    Raises:
      UserError: another dtype or shape, or a negative label.
    """
    array = np.asarray(labels)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise UserError(f"{title} are {array.dtype}{list(array.shape)}; integers of shape [rows] are needed.{_remedy(array)}")
    if array.size and int(array.min()) < 0:
        low, high = int(array.min()), int(array.max())
        raise UserError(f"{title} range from {low} to {high}; allowed are 0 to {max(high, 0)}.{_shift(low)}")
    if array.size and int(array.max()) > np.iinfo(np.int32).max:
        raise UserError(f"{title} hold {int(array.max())}; a label is the number of a class, from 0 on.")
    return array.astype(np.int32)


def in_range(labels: np.ndarray, classes: int, title: str) -> None:
    """Raise :class:`UserError` for a label that is no class."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise UserError(f"{title} range from {low} to {high}; allowed are 0 to {classes - 1}.{_shift(low)}")


def every_class(labels: np.ndarray, classes: int, title: str, *, given: bool, names: tuple[str, ...] = ()) -> None:
    """Say which classes have no rows: a warning on stderr where the number of classes was given, else an error.

    Args:
      labels: i32[n] in 0 … classes-1.
      classes: number of classes.
      title: of the array, for messages.
      given: whether somebody said that there are so many.
      names: of the classes, or empty.

    Raises:
      UserError: the labels alone say how many classes there are, and one of them has no row.
    """
    empty = np.flatnonzero(np.bincount(labels, minlength=classes) == 0).tolist()
    if not empty:
        return
    low, high = int(labels.min()), int(labels.max())
    listed = ", ".join(f"{k} ({names[k]!r})" if names and names[k] != str(k) else str(k) for k in empty[:NAMED])
    more = f" and {len(empty) - NAMED} more" if len(empty) > NAMED else ""
    what = f"class {listed} has no rows" if len(empty) == 1 else f"classes {listed}{more} have no rows"
    text = f"{title} range from {low} to {high} and {what}"
    if given:
        advice = " (do the labels start at 1? they should start at 0)" if empty == [0] else ""
        print(f"bdjax: warning: {text}; it can be neither learned nor sampled{advice}", file=sys.stderr)
        return
    if low > 0 and empty == list(range(low)):
        raise UserError(f"{text}; labels start at 0: give labels - {low}.")
    raise UserError(
        f"{text}; number the classes 0 to {classes - 1 - len(empty)}, or say that there are {classes} with classes={classes} "
        "(in a folder of arrays, in its dataset.json)."
    )


def _shift(low: int) -> str:
    """Return what to do about labels that do not start at 0."""
    if low == 0:
        return ""
    return f" Labels start at 0: give labels {'-' if low > 0 else '+'} {abs(low)}, if that is all."


def _remedy(array: np.ndarray) -> str:
    """Return what to do about labels of another kind, where it is known."""
    number = np.issubdtype(array.dtype, np.number)
    if array.ndim == 2 and array.shape[1] == 1 and number:
        return " Give labels[:, 0], as integers."
    if array.ndim == 2 and array.size and number and set(np.unique(array).tolist()) <= {0, 1}:
        return " They look one-hot: give labels.argmax(1)."
    if array.ndim == 1 and np.issubdtype(array.dtype, np.floating):
        integral = bool(np.isfinite(array).all() and (array == np.round(array)).all())
        return " Give labels.astype(int)." if integral else " They are not whole numbers."
    if array.ndim == 1 and array.dtype.kind in "US":
        return " Give numbers: numpy.unique(labels, return_inverse=True)[1], and the names as class_names."
    return ""
