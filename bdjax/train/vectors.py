"""All vectors of a network side by side in one buffer while it is trained.

A network has few large kernels and many short vectors: scales, biases and running statistics of its norms, or masks of a defense.
A step treats every leaf on its own, and an accelerator pays the start of a program part for each, however short it is. Side by
side the same sums take one part.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bdjax.types import Array, ArrayTree


class _Layout(NamedTuple):
    """What a packed tree looks like (static)."""

    structure: Any
    leaves: tuple[tuple[tuple[int, ...], str], ...]  # (shape, dtype), in the order of the tree

    @property
    def dtypes(self) -> list[str]:
        """Of the vectors."""
        return sorted({dtype for shape, dtype in self.leaves if len(shape) <= 1})


@jax.tree_util.register_pytree_node_class
class Packed:
    """A pytree with its vectors side by side; itself a pytree, of the buffers."""

    def __init__(self, vectors: dict[str, Array], others: list[Array], layout: _Layout) -> None:
        self.vectors = vectors  # {dtype: all leaves with at most one axis, f[total]}
        self.others = others  # the leaves with more axes, in the order of the tree
        self._layout = layout

    def tree_flatten(self) -> tuple[Any, _Layout]:
        """The buffers, and how they are read."""
        return (self.vectors, self.others), self._layout

    @classmethod
    def tree_unflatten(cls, layout: _Layout, buffers: Any) -> "Packed":
        """The inverse of :meth:`tree_flatten`."""
        vectors, others = buffers
        return cls(vectors, others, layout)

    @property
    def tree(self) -> Any:
        """The pytree; the gradient of this is :func:`pack` of the gradient."""
        others, vectors = iter(self.others), {}
        for dtype in self._layout.dtypes:
            sizes = [math.prod(shape) for shape, of in self._layout.leaves if len(shape) <= 1 and of == dtype]
            vectors[dtype] = iter(lax.split(self.vectors[dtype], sizes))
        parts = [next(vectors[of]).reshape(shape) if len(shape) <= 1 else next(others) for shape, of in self._layout.leaves]
        return jax.tree.unflatten(self._layout.structure, parts)


def pack_all(variables: Mapping[str, ArrayTree]) -> dict[str, Packed]:
    """Pack every collection of some variables."""
    return {name: pack(tree) for name, tree in variables.items()}


def unpack_all(packed: Mapping[str, Packed]) -> dict[str, Any]:
    """Return the variables whose collections these are; the inverse of :func:`pack_all`."""
    return {name: one.tree for name, one in packed.items()}


def pack(tree: ArrayTree) -> Packed:
    """Put the vectors of a pytree side by side."""
    leaves, structure = jax.tree.flatten(tree)
    layout = _Layout(structure, tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves))
    vectors = {
        dtype: jnp.concatenate([leaf.reshape(-1) for leaf in leaves if leaf.ndim <= 1 and str(leaf.dtype) == dtype])
        for dtype in layout.dtypes
    }
    return Packed(vectors, [leaf for leaf in leaves if leaf.ndim > 1], layout)
