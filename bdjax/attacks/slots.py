"""Poison inside the batch: which places of a shuffled batch carry the trigger, for any ratio in one program.

The batch is shuffled, so its first places are as good as any. A place whose turn does not come at a member's ratio keeps its
clean image and its true label.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from bdjax.errors import UserError
from bdjax.types import Array, Bool, Float, Int, Key


def select(max_ratio: float, owner: str) -> Callable[[Key, Array, Array], tuple[Array, Array]]:
    """Return the selection of an attack without a fixed poison set: no row; feasible up to ``max_ratio`` of the rows.

    Args:
      max_ratio: the largest ratio its places are made for, in (0, 1].
      owner: the attack's name, for messages.

    Raises:
      UserError: not in that range.
    """
    if not 0 < max_ratio <= 1:
        raise UserError(f"{owner}.max_ratio must lie in (0, 1]; given {max_ratio}")

    def none(key: Key, labels: Int[Array, " n"], count: Int[Array, ""]) -> tuple[Bool[Array, " n"], Bool[Array, ""]]:
        rows = labels.shape[0]
        return jnp.zeros(rows, bool), count <= round(max_ratio * rows)

    return none


def most(batch: int, max_ratio: float) -> int:
    """Return how many places may carry the trigger, floor(batch max_ratio) and at least 1, whatever the ratio (static)."""
    return max(math.floor(batch * max_ratio + 1e-6), 1)


def count(key: Key, ratio: Float[Array, ""], batch: int) -> Int[Array, ""]:
    """Return how many images of this batch carry the trigger.

    floor(ratio batch) where that is at least 1; else one with probability ratio batch. So the share of triggered images is
    floor(ratio batch) / batch and not the ratio: 9.375 % for 10 % of 128.

    Args:
      key: drawn from where less than one image is due.
      ratio: poison ratio; may be traced.
      batch: number of images in the batch.

    Source: "Countering Backdoor Attacks in Image Recognition: A Survey and Evaluation of Mitigation Strategies",
      arXiv 2411.11200, 2024: what its benchmark does for attacks that poison inside the batch.
    """
    due = ratio * batch
    number = jnp.floor(due + 1e-4).astype(jnp.int32)  # a float32 ratio of 1/128 times 128 may miss 1
    return jnp.where(number >= 1, number, jax.random.bernoulli(key, jnp.clip(due, 0, 1)).astype(jnp.int32))


def active(number: Int[Array, ""], places: int) -> Bool[Array, " places"]:
    """Return which places carry the trigger: the first ``number`` of them."""
    return jnp.arange(places, dtype=jnp.int32) < number


def relabelled(hit: Bool[Array, " places"], labels: Int[Array, " b"], relabel: Callable[[Array], Array]) -> Int[Array, " b"]:
    """Return labels with the attack label at those of the first places that carry the trigger."""
    first, rest = labels[: hit.shape[0]], labels[hit.shape[0] :]
    return jnp.concatenate([jnp.where(hit, relabel(first), first), rest])


def per_epoch(ratio: float, rows: int, batch: int) -> int:
    """Return how many images carry the trigger in one epoch, on average, rounded; a host number, for the record."""
    return round(expected(ratio, rows, batch))


def expected(ratio: float, rows: int, batch: int) -> float:
    """Return how many images carry the trigger in one epoch, on average; a host number."""
    size = min(batch, rows)
    due = math.floor(ratio * size + 1e-4) or ratio * size
    return due * (rows // size)
