"""A running population on the host: its leaves as plain arrays, and back onto the devices."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np


class Snapshot(NamedTuple):
    """A population between two segments, on the host."""

    at_once: int  # members that run together
    finished: int  # members whose results are there
    stage: int  # of the function, that the running members are in
    rounds: int  # of it that they have behind them
    seconds: float  # that all of this took, without compiling
    state: tuple[np.ndarray, ...]  # leaves of the running members' state
    results: tuple[np.ndarray, ...]  # leaves of the results of the finished ones; empty where none is


class Misfit(ValueError):
    """A snapshot of something else."""


class Keeper(Protocol):
    """Who keeps snapshots."""

    def keep(self, snapshot: Snapshot) -> None:
        """Keep a snapshot; it may be written beside what is computed next."""


def leaves(tree: Any) -> tuple[np.ndarray, ...]:
    """Return the leaves of a tree on the host, keys as their words."""
    return tuple(np.asarray(jax.device_get(_words(leaf))) for leaf in jax.tree.leaves(tree))


def tree(like: Any, found: Sequence[np.ndarray]) -> Any:
    """Return the tree whose :func:`leaves` these are.

    Args:
      like: a tree of the same structure and dtypes, of shapes.
      found: its leaves.

    Raises:
      Misfit: they are not those of such a tree.
    """
    shapes, structure = jax.tree.flatten(like)
    if len(shapes) != len(found):
        raise Misfit(f"{len(found)} leaves for a tree of {len(shapes)}")
    return jax.tree.unflatten(structure, [_leaf(shape, leaf) for shape, leaf in zip(shapes, found, strict=True)])


def _words(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def _leaf(like: Any, found: np.ndarray) -> Any:
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(found))
    if (like.dtype, like.shape[1:]) != (found.dtype, found.shape[1:]):
        raise Misfit(f"a leaf of {found.dtype}{list(found.shape)} where {like.dtype}{list(like.shape)} is expected")
    return jnp.asarray(found)
