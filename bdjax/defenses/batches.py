"""Batches of the defender's clean rows: static shapes, rows that are absent last, and draws that padding does not change."""

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.types import Array, Bool, CleanSet, Float, Int, Key, Shaped


def masked_mean(values: Float[Array, " b"], mask: Shaped[Array | np.ndarray, " b"]) -> Float[Array, ""]:
    """sum(values mask) / max(sum(mask), 1)."""
    mask = mask.astype(values.dtype)
    return jnp.sum(values * mask) / jnp.maximum(jnp.sum(mask), 1)


@jax.jit
def training_rows(clean: CleanSet) -> Bool[Array, " n"]:
    """The rows that a defense may train on, neither padding nor validation."""
    return clean.role == 1


def bits_by_index(key: Key, index: Int[Array, " n"]) -> Shaped[Array, " n"]:
    """Random u32, each from ``key`` and its ``index`` alone: other entries, and how many there are, change nothing."""
    return jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i), dtype=jnp.uint32))(index)


def epoch_plan(key: Key, present: Bool[Array, " n"], batch: int) -> tuple[Int[Array, "trips b"], Float[Array, "trips b"]]:
    """Shuffle the present rows into batches of ``batch``; the last one keeps what is left.

    Args:
      key: key of the epoch.
      present: rows that are shuffled.
      batch: rows per batch, at least 1; fewer rows in all make one smaller batch.

    Returns:
      (rows, mask): full batches first, then the incomplete one, then empty ones. Each present row gets its random number by its
      place among the present ones, so padding changes no draw.
    """
    n = present.shape[0]
    size = min(batch, n)
    trips = -(-n // size)
    place = jnp.maximum(jnp.cumsum(present, dtype=jnp.int32) - 1, 0)
    order = jnp.lexsort((bits_by_index(key, place), ~present)).astype(jnp.int32)
    rows = jnp.zeros((trips * size,), jnp.int32).at[:n].set(order)
    mask = jnp.zeros((trips * size,), jnp.float32).at[:n].set(present[order].astype(jnp.float32))
    return rows.reshape(trips, size), mask.reshape(trips, size)
