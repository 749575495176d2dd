"""Stacks of members: make them, count them, take some, join them."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.keys import member_key, root
from bdjax.train.trainer import poison_count
from bdjax.types import Member


def members(
    seeds: Sequence[int], ratios: Sequence[float], rows: int, *, root_number: int = 0, spc: int = 0, hyper: Any = ()
) -> tuple[Member, list[tuple[int, float]]]:
    """All seeds x ratios, seeds outermost, stacked on axis 0.

    Args:
      seeds: non-negative integers; a member's key comes from its seed alone.
      ratios: poison ratios in [0, 1] of all training rows.
      rows: number of training rows.
      root_number: root of all keys.
      spc: clean samples per class.
      hyper: pytree of scalars, the same for all.

    Returns:
      The stacked members and their (seed, ratio).
    """
    points = list(itertools.product(seeds, ratios))
    keys = jax.vmap(member_key, in_axes=(None, 0))(root(root_number), jnp.asarray([seed for seed, _ in points], jnp.uint32))
    ratio = jnp.asarray([r for _, r in points], jnp.float32)
    count = jnp.asarray([poison_count(r, rows) for _, r in points], jnp.int32)
    repeated = jax.tree.map(lambda x: jnp.full((len(points),), x), hyper)
    return Member(keys, ratio, count, jnp.full((len(points),), spc, jnp.int32), repeated), points


def size(stacked: Any) -> int:
    """Number of members of a stack."""
    return jax.tree.leaves(stacked)[0].shape[0]


def take(stacked: Any, index: Sequence[int] | np.ndarray) -> Any:
    """The members at ``index`` (repetition allowed: that is how a hyper-parameter axis multiplies trained members)."""
    rows = jnp.asarray(np.asarray(index, np.int32))
    return jax.tree.map(lambda x: x[rows], stacked)


def concatenate(stacks: Sequence[Any]) -> Any:
    """Several stacks of members as one."""
    return stacks[0] if len(stacks) == 1 else jax.tree.map(lambda *x: jnp.concatenate(x), *stacks)
