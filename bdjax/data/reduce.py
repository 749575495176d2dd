"""Smaller data sets for short runs: balanced by class, the same for every seed, in the original order."""

from typing import Any

import jax
import numpy as np

from bdjax.keys import Stream, root, step_key, stream
from bdjax.types import Split

PARTS = {"train": 0, "test": 1}


def quotas(counts: np.ndarray, total: int) -> np.ndarray:
    """Share ``total`` rows among the classes as evenly as their sizes allow; leftovers go to the lowest labels.

    Args:
      counts: i64[k], rows of each class.
      total: 0..sum(counts).

    Returns:
      i64[k], sums to ``total``, never above ``counts``; rising with ``total`` in every class.
    """
    level = 0
    while np.minimum(counts, level + 1).sum() <= total and level < counts.max():
        level += 1
    share = np.minimum(counts, level)
    larger = np.flatnonzero(counts > level)
    share[larger[: total - share.sum()]] += 1
    return share


def reduced_rows(part: str, labels: np.ndarray, classes: int, total: int) -> np.ndarray:
    """Choose the rows of a reduced split; a smaller choice is part of a larger one.

    Args:
      part: "train" or "test".
      labels: i32[n].
      classes: number of classes.
      total: rows to choose, 0..n.

    Returns:
      i64[total], ascending. Drawn from ``Stream.REDUCE`` of root 0, whatever the root of a run.
    """
    labels = np.asarray(labels)
    key = step_key(stream(root(0), Stream.REDUCE), PARTS[part])
    order = np.asarray(jax.random.permutation(key, len(labels)))
    share = quotas(np.bincount(labels, minlength=classes), total)
    shuffled = labels[order]
    return np.sort(np.concatenate([order[shuffled == label][: share[label]] for label in range(classes)]))


def reduced(part: str, rows: Split, classes: int, total: int | None) -> Split:
    """Return the reduced split as host arrays in memory; ``total`` None or the size of the split: all rows.

    Args:
      part: "train" or "test".
      rows: images u8[n h w c], labels i32[n], host arrays.
      classes: number of classes.
      total: rows to keep.
    """
    if total is None or total == len(rows.labels):
        return rows
    chosen: Any = reduced_rows(part, np.asarray(rows.labels), classes, total)
    return Split(rows.images[chosen], rows.labels[chosen])
