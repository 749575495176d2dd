"""Formulations of one convolution, and which is fastest for which shape (``benchmarks/lowerings.py``).

A formulation computes a convolution of images f[b h w c] with a kernel f[kh kw c d]. Its gradients are its transposes; with
stride 1 the input gradient is again a convolution, of the output gradient with the flipped kernel, and takes any formulation.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bdjax.types import Array, Float

Formulation = Callable[[Array, Array, int, int], Array]
_LAYOUT = ("NHWC", "HWIO", "NHWC")
_LANES = 16  # float32 numbers in the vector register of a CPU with AVX-512


def native(x: Float[Array, "b h w c"], kernel: Float[Any, "kh kw c d"], stride: int, padding: int) -> Float[Array, "b _ _ d"]:
    """Convolve as the platform does."""
    pads = [(padding, padding)] * 2
    return lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=_LAYOUT)


def patches(x: Float[Array, "b h w c"], kernel: Float[Any, "kh kw c d"], stride: int, padding: int) -> Float[Array, "b _ _ d"]:
    """Convolve by shifted copies side by side and one matrix product."""
    kh, kw, c, d = kernel.shape
    height, width = _output_size(x, kernel, stride, padding)
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    bottom, right = stride * (height - 1) + 1, stride * (width - 1) + 1
    shifted = [x[:, i : i + bottom : stride, j : j + right : stride] for i in range(kh) for j in range(kw)]
    return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(kh * kw * c, d)


def product(x: Float[Array, "b h w c"], kernel: Float[Any, "1 1 c d"], stride: int, padding: int) -> Float[Array, "b _ _ d"]:
    """Convolve with a 1x1 kernel as one matrix product over all positions."""
    assert kernel.shape[:2] == (1, 1) and padding == 0
    x = x[:, ::stride, ::stride]
    return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:3], -1)


def packed(x: Float[Array, "b h w c"], kernel: Float[Any, "kh kw c d"], stride: int, padding: int) -> Float[Array, "b _ _ d"]:
    """Convolve with two neighbouring output columns as channels: few output channels fill the vector units.

    The kernel is one column wider and a third of its products are with zeros (3x3), which pays where d channels fill half of
    what the CPU multiplies at once. Stride 1 and an even output width only.
    """
    kh, kw, c, d = kernel.shape
    height, width = _output_size(x, kernel, stride, padding)
    assert stride == 1 and width % 2 == 0
    both = jnp.stack([jnp.pad(kernel, ((0, 0), (j, 1 - j), (0, 0), (0, 0))) for j in range(2)], axis=3)
    both = both.reshape(kh, kw + 1, c, 2 * d)
    pads = [(padding, padding)] * 2
    y = lax.conv_general_dilated(x, both, (1, 2), pads, dimension_numbers=_LAYOUT)
    return y.reshape(x.shape[0], height, width, d)


def _output_size(x: Array, kernel: Array, stride: int, padding: int) -> tuple[int, int]:
    height, width = ((x.shape[1 + a] + 2 * padding - kernel.shape[a]) // stride + 1 for a in range(2))
    return height, width


def input_gradient(
    formulation: Formulation,
    g: Float[Array, "b _ _ d"],
    kernel: Float[Any, "kh kw c d"],
    stride: int,
    padding: int,
    size: tuple[int, int],
) -> Float[Array, "b _ _ c"]:
    """Transpose a formulation in its images; ``size`` is their (h, w)."""
    x = jax.ShapeDtypeStruct((g.shape[0], *size, kernel.shape[2]), g.dtype)
    return jax.linear_transpose(lambda x: formulation(x, kernel, stride, padding), x)(g)[0]


def flipped(
    formulation: Formulation, g: Float[Array, "b _ _ d"], kernel: Float[Any, "kh kw c d"], padding: int
) -> Float[Array, "b _ _ c"]:
    """Return the input gradient at stride 1, as a convolution with the flipped kernel."""
    return formulation(g, kernel[::-1, ::-1].swapaxes(2, 3), 1, kernel.shape[0] - 1 - padding)


def kernel_gradient(
    formulation: Formulation,
    x: Float[Array, "b h w c"],
    g: Float[Array, "b _ _ d"],
    stride: int,
    padding: int,
    window: tuple[int, int],
) -> Float[Array, "_ _ c d"]:
    """Transpose a formulation in its kernel; ``window`` is its (kh, kw)."""
    kernel = jax.ShapeDtypeStruct((*window, x.shape[3], g.shape[3]), x.dtype)
    return jax.linear_transpose(lambda k: formulation(x, k, stride, padding), kernel)(g)[0]


# XLA's CPU compiler rewrites a convolution to the layout its fast kernels take (batch, space, channels in the images, space,
# in, out in the kernel) in the entry computation only; in the body of a loop any other falls to naive loops, tens of times
# slower (jax-ml/jax#12868; jax 0.10 and 0.11; benchmarks/results/population_scaling_cpu_cnn.md). JAX's own transposes are in
# other layouts; these two are the same sums, asked for in that one.


def canonical_input_gradient(
    g: Float[Array, "b _ _ d"], kernel: Float[Any, "kh kw c d"], stride: int, padding: int, size: tuple[int, int]
) -> Float[Array, "b _ _ c"]:
    """Return the input gradient as a native convolution of the dilated output gradient with the flipped kernel."""
    pads = []
    for length, out, k in zip(size, g.shape[1:3], kernel.shape[:2], strict=True):
        low = k - 1 - padding
        pads.append((low, length + k - 1 - (stride * (out - 1) + 1) - low))
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    return lax.conv_general_dilated(g, turned, (1, 1), pads, lhs_dilation=(stride, stride), dimension_numbers=_LAYOUT)


def canonical_kernel_gradient(
    x: Float[Array, "b h w c"],
    g: Float[Array, "b _ _ d"],
    stride: int,
    padding: int,
    window: tuple[int, int],
    *,
    move_first: bool = True,
) -> Float[Array, "_ _ c d"]:
    """Return the kernel gradient as a native convolution of channels with channels; the batch is summed over like input channels.

    With ``move_first`` the operands are moved in memory on their own: else the moves are fused with what made x and g, and both
    are computed again in the wrong order.
    """
    pads = []
    for length, out, k in zip(x.shape[1:3], g.shape[1:3], window, strict=True):
        pads.append((padding, k - 1 + stride * (out - 1) + 1 - length - padding))
    by_channel, as_kernel = x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3)
    if move_first:
        by_channel, as_kernel = lax.optimization_barrier((by_channel, as_kernel))
    dilation = (stride, stride)
    y = lax.conv_general_dilated(by_channel, as_kernel, (1, 1), pads, rhs_dilation=dilation, dimension_numbers=_LAYOUT)
    return y.transpose(1, 2, 0, 3)


class Shape(NamedTuple):
    """What a choice may depend on."""

    window: tuple[int, int]
    stride: int
    padding: int
    size: tuple[int, int]  # of the images
    channels: tuple[int, int]  # c, d


class Choice(NamedTuple):
    """How each of the three maps is computed."""

    output: Formulation
    input_gradient: Callable[[Array, Array, int, int, tuple[int, int]], Array]  # (g, kernel, stride, padding, size)
    kernel_gradient: Callable[[Array, Array, int, int, tuple[int, int]], Array]  # (x, g, stride, padding, window)


def transposes(formulation: Formulation) -> Choice:
    """Return a formulation and its transposes."""
    to_input, to_kernel = (functools.partial(f, formulation) for f in (input_gradient, kernel_gradient))
    return Choice(formulation, to_input, to_kernel)


def fastest_on_cpu(shape: Shape) -> Choice:
    """Return what was fastest on a CPU with AVX-512, and inside loops (benchmarks/results/lowerings_cpu.md)."""
    choice = Choice(native, canonical_input_gradient, canonical_kernel_gradient)
    if shape.stride > 1:
        # The canonical input gradient convolves a map that is mostly zeros.
        return choice._replace(input_gradient=transposes(patches).input_gradient)
    keeps_size = shape.window == (2 * shape.padding + 1,) * 2
    if keeps_size and shape.size[1] % 2 == 0:
        c, d = shape.channels
        if d <= _LANES:
            choice = choice._replace(output=packed)
        if c <= _LANES:
            choice = choice._replace(input_gradient=lambda g, kernel, stride, padding, size: flipped(packed, g, kernel, padding))
    return choice
