"""One convolution, several lowerings: the same function, chosen by measurement (``benchmarks/lowerings.py``).

``vmap`` over the *weights* of a native convolution becomes a grouped convolution. On a CPU four members then take up to 2.5 times
as long as one after another (benchmarks/results/lowerings_cpu.md), and inside a compiled loop the gradients fall to naive loops,
tens of times slower (benchmarks/results/population_scaling_cpu_cnn.md); on a GPU the backward pass is reported to pay for
members squared (jax-ml/jax#13800). The others keep a population fast:

* ``"unrolled"``: native convolutions, repeated per member by a ``vmap`` rule, in values and in both gradients;
* ``"mixed"``: the same with the formulation that is fastest on a CPU for each shape and each of the three maps, also in loops;
* ``"patches"``: shifted copies side by side and one matrix product.

In all three a 1x1 convolution is one matrix product.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bdjax.errors import choose
from bdjax.nn.bilinear import mutual_gradients
from bdjax.nn.lowerings import Choice, Shape, fastest_on_cpu, input_gradient, native, patches, product, transposes
from bdjax.types import Array, Float

LOWERINGS = ("native", "unrolled", "mixed", "patches")


def convolve(
    x: Float[Array, "b h w c"], kernel: Float[Any, "kh kw c d"], *, stride: int, padding: int, lowering: str
) -> Float[Array, "b _ _ d"]:
    """Cross-correlate images with a kernel, zero padding on both sides.

    Args:
      x: images.
      kernel: same dtype.
      stride: step in both directions.
      padding: zeros added on each side, also at stride 2 (unlike "SAME").
      lowering: one of :data:`LOWERINGS`; all agree to float error, in values and in first and second (reverse) derivatives.
    """
    choose("lowering", lowering, LOWERINGS)
    if lowering == "patches":
        return patches(x, kernel, stride, padding)
    if lowering == "native":
        return native(x, kernel, stride, padding)
    if kernel.shape[:2] == (1, 1) and padding == 0:  # over kernels, vmap makes it a batched product on any platform
        return product(x, kernel, stride, padding)
    return _chosen(x.shape[1:3], kernel, stride, padding, lowering)[0](x, kernel)


def convolve_transposed(
    g: Float[Array, "b _ _ d"],
    kernel: Float[Any, "kh kw c d"],
    *,
    stride: int,
    padding: int,
    size: tuple[int, int],
    lowering: str,
) -> Float[Array, "b _ _ c"]:
    """Transpose :func:`convolve` in its images: every number spreads the kernel over a map ``stride`` times as large.

    Args:
      g: of the shape that :func:`convolve` gives for images of this size.
      kernel: same dtype.
      stride: step in both directions of the convolution that this transposes.
      padding: zeros that it adds on each side.
      size: (h, w) of the result.
      lowering: one of :data:`LOWERINGS`.
    """
    choose("lowering", lowering, LOWERINGS)
    if lowering in ("patches", "native"):
        return input_gradient(patches if lowering == "patches" else native, g, kernel, stride, padding, size)
    return _chosen(size, kernel, stride, padding, lowering)[1](g, kernel)


def _chosen(
    size: tuple[int, ...], kernel: Float[Any, "kh kw c d"], stride: int, padding: int, lowering: str
) -> tuple[Callable[..., Array], ...]:
    (h, w), (kh, kw, c, d) = size, kernel.shape
    shape = Shape((kh, kw), stride, padding, (h, w), (c, d))
    return _maps(shape, fastest_on_cpu(shape) if lowering == "mixed" else transposes(native))


@functools.lru_cache(maxsize=1024)
def _maps(shape: Shape, choice: Choice) -> tuple[Callable[..., Array], Callable[..., Array], Callable[..., Array]]:
    """Return the three bilinear maps of a convolution, each the others' gradient, so that reverse over reverse stays closed."""
    window, stride, padding, size, _ = shape

    def output(x: Array, kernel: Array) -> Array:
        return choice.output(x, kernel, stride, padding)

    def to_input(g: Array, kernel: Array) -> Array:
        return choice.input_gradient(g, kernel, stride, padding, size)

    def to_kernel(x: Array, g: Array) -> Array:
        return choice.kernel_gradient(x, g, stride, padding, window)

    return mutual_gradients(
        _members_unrolled(output, merge_first=True),
        _members_unrolled(to_input, merge_first=True),
        _members_unrolled(to_kernel, merge_first=False),
    )


def _members_unrolled(f: Callable[[Array, Array], Array], *, merge_first: bool) -> Callable[[Array, Array], Array]:
    """``f`` with a ``vmap`` rule that repeats it per member instead of grouping channels."""
    mapped = jax.custom_batching.custom_vmap(f)

    @mapped.def_vmap
    def rule(size: int, batched: list[bool], a: Array, b: Array) -> tuple[Array, bool]:
        if merge_first and not batched[1]:  # one kernel for all: members are just more rows
            merged = mapped(a.reshape(-1, *a.shape[2:]), b)
            return merged.reshape(size, -1, *merged.shape[1:]), True
        # `mapped` again, not `f`: a second vmap around this one must find the rule too.
        rows = [mapped(a[i] if batched[0] else a, b[i] if batched[1] else b) for i in range(size)]
        return jnp.stack(rows), True

    return mapped


def lowering_here() -> str:
    """Return the lowering of networks that belong to an attack and not to a ``Model``: that of the default executions."""
    return {"cpu": "mixed", "tpu": "native"}.get(jax.default_backend(), "unrolled")
