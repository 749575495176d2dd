"""Stacks of members: pytrees with the members on axis 0 of every leaf. Nothing else stacks or slices members.

A leaf stays where it is: NumPy arrays are stacked and sliced on the host, JAX arrays on the device.
"""

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
    """Return the members of all seeds x ratios, seeds outermost, stacked on axis 0.

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
    """Return the number of members of a stack."""
    return jax.tree.leaves(stacked)[0].shape[0]


def stack(members: Sequence[Any]) -> Any:
    """Return single members, pytrees of one structure, as a stack.

    Args:
      members: at least one.

    Returns:
      A pytree of arrays with one more axis, the first: on the host where the leaves of all members are there.
    """

    def join(*leaves: Any) -> Any:
        if any(isinstance(leaf, jax.Array) for leaf in leaves):
            return leaves[0][None] if len(leaves) == 1 else jnp.stack(leaves)
        return np.stack(leaves)

    return jax.tree.map(join, *members)


def unstack(stacked: Any) -> list[Any]:
    """Return the members of a stack one by one, without the axis of members; the inverse of :func:`stack`."""
    return [take(stacked, index) for index in range(size(stacked))]


def take(stacked: Any, index: int | slice | Sequence[int] | np.ndarray) -> Any:
    """Return members of a stack.

    Args:
      stacked: the members on axis 0 of every leaf.
      index: as of NumPy. A number gives that member without the axis of members; a slice or several numbers give a stack.
        A number may be repeated: that is how a hyper-parameter axis multiplies trained members.
    """
    if isinstance(index, int | slice):
        return jax.tree.map(lambda leaf: leaf[index], stacked)
    on_host = np.asarray(index, np.int32)
    on_device = jnp.asarray(on_host)
    return jax.tree.map(lambda leaf: leaf[on_host if isinstance(leaf, np.ndarray) else on_device], stacked)


def concatenate(stacks: Sequence[Any]) -> Any:
    """Return several stacks of members as one."""
    return stacks[0] if len(stacks) == 1 else jax.tree.map(lambda *x: jnp.concatenate(x), *stacks)
