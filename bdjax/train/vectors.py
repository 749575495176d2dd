"""All vectors of a network side by side in one buffer while it is trained.

A network has few large kernels and many short vectors: scales, biases and running statistics of its norms. A step treats every
leaf on its own, and an accelerator pays the start of a program part for each, however short it is: of PreActResNet-18's step on a
TPU 144 of 231 parts are of this kind (benchmarks/results/accelerators_tpu.md). Side by side the same sums take one part.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

from bdjax.types import Array


class Packed(NamedTuple):
    """A pytree with its vectors side by side."""

    vectors: dict[str, Array]  # by dtype: all leaves with at most one axis, f[total]
    others: list[Array]  # the leaves with more axes, in the order of the tree


class Packing:
    """How variables of one structure are packed, each collection on its own.

    Args:
      variables: {collection: tree of arrays, or of their shapes}; only structure, shapes and dtypes are kept.
    """

    def __init__(self, variables: Mapping[str, chex.ArrayTree]) -> None:
        self._collections = {name: _Collection(tree) for name, tree in variables.items()}

    def pack(self, variables: Mapping[str, chex.ArrayTree]) -> dict[str, Packed]:
        """Put the vectors of each collection side by side."""
        return {name: collection.pack(variables[name]) for name, collection in self._collections.items()}

    def unpack(self, packed: Mapping[str, Packed]) -> dict[str, Any]:
        """Give the variables back; the gradient of this is :meth:`pack` of the gradient."""
        return {name: collection.unpack(packed[name]) for name, collection in self._collections.items()}


class _Collection:
    def __init__(self, tree: chex.ArrayTree) -> None:
        leaves, self._structure = jax.tree.flatten(tree)
        self._shapes = [(leaf.shape, str(leaf.dtype)) for leaf in leaves]
        self._dtypes = sorted({dtype for shape, dtype in self._shapes if len(shape) <= 1})

    def pack(self, tree: chex.ArrayTree) -> Packed:
        leaves = self._structure.flatten_up_to(tree)
        vectors = {
            dtype: jnp.concatenate([leaf.reshape(-1) for leaf in leaves if leaf.ndim <= 1 and leaf.dtype == dtype])
            for dtype in self._dtypes
        }
        return Packed(vectors, [leaf for leaf in leaves if leaf.ndim > 1])

    def unpack(self, packed: Packed) -> Any:
        others, vectors = iter(packed.others), {}
        for dtype in self._dtypes:
            sizes = [math.prod(shape) for shape, of in self._shapes if len(shape) <= 1 and of == dtype]
            vectors[dtype] = iter(lax.split(packed.vectors[dtype], sizes))
        leaves = [next(vectors[of]).reshape(shape) if len(shape) <= 1 else next(others) for shape, of in self._shapes]
        return jax.tree.unflatten(self._structure, leaves)
