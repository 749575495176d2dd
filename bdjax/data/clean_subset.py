"""The defender's clean rows: a few of every class, nested in their number, drawn from a key alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.types import Array, Key

ABSENT, TRAIN, VALIDATION = 0, 1, 2


def rows_per_class(spc: int, validation: bool) -> tuple[int, int, int]:
    """Return how many rows of a class are for (training, validation, both together).

    Args:
      spc: samples per class, >= 1.
      validation: whether the method holds out validation rows: a tenth of ``spc``, rounded down; where that is 0, one row on top.

    Returns:
      (2, 1, 3), (9, 1, 10), (90, 10, 100) for spc 2, 10, 100 with validation; (spc, 0, spc) without.
    """
    if not validation:
        return spc, 0, spc
    held_out = spc // 10
    if held_out == 0:
        return spc, 1, spc + 1
    return spc - held_out, held_out, spc


def infeasible(labels: Any, classes: int, spc: int, validation: bool = False) -> str | None:
    """Say on the host why a clean subset cannot be drawn.

    Args:
      labels: i32[n], host array.
      classes: number of classes.
      spc: samples per class.
      validation: see :func:`rows_per_class`.

    Returns:
      The reason (for an ``infeasible`` record, or the text of an error), or None: every class has enough rows. A class of exactly
      the drawn size is enough.
    """
    total = rows_per_class(spc, validation)[2]
    counts = np.bincount(np.asarray(labels), minlength=classes)
    label = int(np.argmin(counts))
    if counts[label] >= total:
        return None
    extra = f" ({total} with the validation row)" if total > spc else ""
    return f"spc {spc}{extra} is larger than class {label}, which has {counts[label]} rows"


def draw(key: Key, labels: Array, classes: int, spc: int, validation: bool = False) -> tuple[Array, Array]:
    """Draw the clean subset of one member, without replacement.

    Every class has one random order; a subset takes its first rows. For one key a smaller ``spc`` is therefore a prefix of a
    larger one, class by class, with validation rows or without. Validation rows take the first ranks.

    Args:
      key: ``stream(member_key, Stream.CLEAN)``.
      labels: i32[n], values 0..classes-1.
      classes: number of classes k (static).
      spc: samples per class (static).
      validation: see :func:`rows_per_class` (static).

    Returns:
      (index i32[k t], role i8[k t]), t rows per class, class-major and rank-minor. Role 1: train, 2: validation, 0: the class has
      too few rows (:func:`infeasible`) and the index is 0.

    Source: the survey's protocol, per-class draws with the first ranks held out for validation.
    Differs: a class of exactly t rows is enough (the published code wants one more); classes come in the order of their labels,
      not of first appearance; the draw is a JAX key's, equal in distribution.
    """
    _, held_out, total = rows_per_class(spc, validation)
    rows = labels.shape[0]
    noise = jax.random.bits(key, (rows,), jnp.uint32)
    _, _, order = jax.lax.sort((labels.astype(jnp.int32), noise, jnp.arange(rows, dtype=jnp.int32)), num_keys=2)
    counts = jnp.zeros((classes,), jnp.int32).at[labels].add(1)
    starts = jnp.cumsum(counts, dtype=jnp.int32) - counts
    ranks = jnp.arange(total, dtype=jnp.int32)
    present = ranks[None, :] < counts[:, None]
    place = jnp.where(present, starts[:, None] + ranks[None, :], 0)
    index = jnp.where(present, order[place], 0)
    roles = jnp.where(ranks < held_out, VALIDATION, TRAIN).astype(jnp.int8)
    role = jnp.where(present, roles[None, :], jnp.int8(ABSENT))
    return index.reshape(-1), role.reshape(-1)
