"""One convolution, several lowerings: the same function, chosen by measurement (``benchmarks/population_scaling.py``).

``vmap`` over the *weights* of a native convolution becomes a grouped convolution, which is 10 to 40 times slower than a plain
loop on a CPU and is reported to pay for members squared in the backward pass on a GPU. The others keep a population fast:

* ``"unrolled"``: native convolutions, repeated per member by a ``vmap`` rule, in values and in both gradients;
* ``"patches"``: shifted copies side by side and one matrix product: the one to use inside a compiled loop on a CPU.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bdjax.errors import choose
from bdjax.types import Array

LOWERINGS = ("native", "unrolled", "patches")
_LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolve(x: Array, kernel: Array, *, stride: int, padding: int, lowering: str) -> Array:
    """Cross-correlate images with a kernel, zero padding on both sides.

    Args:
      x: f[b h w c].
      kernel: f[kh kw c d], same dtype.
      stride: step in both directions.
      padding: zeros added on each side, also at stride 2 (unlike "SAME").
      lowering: one of :data:`LOWERINGS`; all agree to float error, in values and in first and second (reverse) derivatives.

    Returns:
      f[b h' w' d].
    """
    choose("lowering", lowering, LOWERINGS)
    if lowering == "patches":
        return _patches(x, kernel, stride, padding)
    if lowering == "unrolled":
        return _unrolled(stride, padding, x.shape[1:3], kernel.shape[:2])[0](x, kernel)
    return _native(x, kernel, stride, padding)


def _native(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    pads = [(padding, padding)] * 2
    return lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=_LAYOUT)


def _patches(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    kh, kw, c, d = kernel.shape
    height = (x.shape[1] + 2 * padding - kh) // stride + 1
    width = (x.shape[2] + 2 * padding - kw) // stride + 1
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    bottom, right = stride * (height - 1) + 1, stride * (width - 1) + 1
    shifted = [x[:, i : i + bottom : stride, j : j + right : stride] for i in range(kh) for j in range(kw)]
    return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(kh * kw * c, d)


@functools.lru_cache(maxsize=1024)
def _unrolled(
    stride: int, padding: int, size: tuple[int, int], window: tuple[int, int]
) -> tuple[Callable[..., Array], Callable[..., Array], Callable[..., Array]]:
    """The three bilinear maps of a convolution, each the others' gradient, so that reverse over reverse stays closed."""

    def forward(x: Array, kernel: Array) -> Array:
        return _native(x, kernel, stride, padding)

    def input_gradient(g: Array, kernel: Array) -> Array:
        x = jax.ShapeDtypeStruct((g.shape[0], *size, kernel.shape[2]), g.dtype)
        return jax.linear_transpose(lambda x: forward(x, kernel), x)(g)[0]

    def kernel_gradient(x: Array, g: Array) -> Array:
        kernel = jax.ShapeDtypeStruct((*window, x.shape[3], g.shape[3]), x.dtype)
        return jax.linear_transpose(lambda k: forward(x, k), kernel)(g)[0]

    out = _bilinear(_members_unrolled(forward, merge_first=True))
    dx = _bilinear(_members_unrolled(input_gradient, merge_first=True))
    dk = _bilinear(_members_unrolled(kernel_gradient, merge_first=False))
    # <c, out(x, k)> = <dx(c, k), x> = <dk(x, c), k>: the cotangents of each map are the other two.
    out.defvjp(lambda x, k: (out(x, k), (x, k)), lambda r, c: (dx(c, r[1]), dk(r[0], c)))
    dx.defvjp(lambda g, k: (dx(g, k), (g, k)), lambda r, c: (out(c, r[1]), dk(c, r[0])))
    dk.defvjp(lambda x, g: (dk(x, g), (x, g)), lambda r, c: (dx(r[1], c), out(r[0], c)))
    return out, dx, dk


def _bilinear(f: Callable[[Array, Array], Array]) -> Any:
    return jax.custom_vjp(lambda a, b: f(a, b))


def _members_unrolled(f: Callable[[Array, Array], Array], *, merge_first: bool) -> Callable[[Array, Array], Array]:
    """``f`` with a ``vmap`` rule that repeats it per member instead of grouping channels."""
    mapped = jax.custom_batching.custom_vmap(f)

    @mapped.def_vmap
    def rule(size: int, batched: tuple[bool, bool], a: Array, b: Array) -> tuple[Array, bool]:
        if merge_first and not batched[1]:  # one kernel for all: members are just more rows
            merged = mapped(a.reshape(-1, *a.shape[2:]), b)
            return merged.reshape(size, -1, *merged.shape[1:]), True
        # `mapped` again, not `f`: a second vmap around this one must find the rule too.
        rows = [mapped(a[i] if batched[0] else a, b[i] if batched[1] else b) for i in range(size)]
        return jnp.stack(rows), True

    return mapped
