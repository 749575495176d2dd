"""The depthwise convolution as shifted multiply-adds over the taps that ever see data.

On a map smaller than its kernel the outer taps only ever meet padding: at 32 pixels 275,184 of EfficientNet-B3's 371,520
depthwise weights. They cannot change the result, so no multiplication is spent on them; on a 1x1 map one multiplication per
channel is left. The parameters keep the full kernels: scores that look at raw weights count dead taps too.

On a CPU a native grouped convolution is one to two orders of magnitude slower for one network, and up to three under ``vmap``
over kernels, at all shapes of the two networks that ``benchmarks/savings.py`` measures. Element-wise operations stay element-wise
under ``vmap`` on any platform, so there is one form and no choice to make.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from bdjax.errors import UserError
from bdjax.nn.bilinear import mutual_gradients
from bdjax.nn.initial import he_fan_out, parameter
from bdjax.nn.layers import Pass, tap
from bdjax.nn.normalisation import at_least_float32
from bdjax.types import Array, Float


class _Axis(NamedTuple):
    """One direction of the map: the live taps, and the zeros around the data that they alone need."""

    size: int  # positions in
    out: int  # positions out
    window: int
    first: int  # live tap
    live: int  # taps from there
    low: int
    high: int  # negative where the stride ends before the data do
    stride: int


def live_taps(size: int, window: int, stride: int, padding: int) -> slice:
    """Return the taps of a convolution that see data, in one direction: output o reads position ``o stride + tap - padding``.

    Args:
      size: positions of the map.
      window: taps.
      stride: step.
      padding: zeros on each side, fewer than ``window``.

    Returns:
      The smallest range that holds every tap that reads a position of the map for some output.

    Raises:
      UserError: a window that does not fit into the padded map, or a padding that leaves outputs without data.
    """
    if size < 1 or stride < 1 or not 0 <= padding < window <= size + 2 * padding:
        raise UserError(
            "a window must fit into its padded map and exceed the padding; given "
            f"window {window}, padding {padding}, stride {stride} on {size} positions"
        )
    outputs = (size + 2 * padding - window) // stride + 1
    live = [t for t in range(window) if any(0 <= o * stride + t - padding < size for o in range(outputs))]
    return slice(live[0], live[-1] + 1)


def depthwise(x: Float[Any, "b h w c"], kernel: Float[Any, "kh kw 1 _"], *, stride: int, padding: int) -> Float[Array, "b _ _ c"]:
    """Cross-correlate every channel with its own kernel, zero padding on both sides.

    ``y[b, u, v, c] = sum_ij x[b, u stride + i - padding, v stride + j - padding, c] kernel[i, j, 0, c]`` over the live taps.
    Reverse over reverse differentiation is closed; forward mode is not there. Products are added up at least in float32.

    Args:
      x: images.
      kernel: f[kh kw 1 c], same dtype; the gradient of taps that see no data is exactly 0.
      stride: step in both directions, at least 1.
      padding: zeros added on each side, also at stride 2 (unlike "SAME"); fewer than kh and kw.

    Raises:
      UserError: shapes that do not belong together.
    """
    if x.ndim != 4 or kernel.ndim != 4 or kernel.shape[2:] != (1, x.shape[-1]):
        raise UserError(f"depthwise needs x [b h w c] and a kernel [kh kw 1 c]; given {list(x.shape)} and {list(kernel.shape)}")
    axes = (_axis(x.shape[1], kernel.shape[0], stride, padding), _axis(x.shape[2], kernel.shape[1], stride, padding))
    return _maps(axes)[0](x, kernel)


def _axis(size: int, window: int, stride: int, padding: int) -> _Axis:
    taps = live_taps(size, window, stride, padding)
    out = (size + 2 * padding - window) // stride + 1
    low, live = padding - taps.start, taps.stop - taps.start
    return _Axis(size, out, window, taps.start, live, low, stride * (out - 1) + live - low - size, stride)


@functools.lru_cache(maxsize=256)
def _maps(axes: tuple[_Axis, _Axis]) -> tuple[Callable[..., Array], Callable[..., Array], Callable[..., Array]]:
    """Return the three bilinear maps, each the others' gradient, so that reverse over reverse stays closed."""
    return mutual_gradients(*(functools.partial(f, axes) for f in (_output, _input_gradient, _kernel_gradient)))


def _output(axes: tuple[_Axis, _Axis], x: Array, kernel: Array) -> Array:
    rows, columns = axes
    padded = _pad(x, *((axis.low, axis.high, 0) for axis in axes))
    down, right = (axis.stride * (axis.out - 1) + 1 for axis in axes)
    products = (
        _times(padded[:, i : i + down : rows.stride, j : j + right : columns.stride], weight)
        for i, j, weight in _live(axes, kernel)
    )
    return _total(products).astype(x.dtype)


def _input_gradient(axes: tuple[_Axis, _Axis], g: Array, kernel: Array) -> Array:
    """Return the same multiply-adds on the output's cotangent, with the kernel turned round.

    With stride s every s-th position of the map sees the same taps: each of the s² kinds of positions is added up on its own,
    without the zeros that a cotangent spread by the stride would bring, and then the kinds are put between each other.
    """
    rows, columns = axes
    weights = {(i, j): weight for i, j, weight in _live(axes, kernel)}
    before = [axis.live // axis.stride + 1 for axis in axes]  # rows of zeros: more than any tap reaches back or ahead
    padded = _pad(g, *((low, low + axis.size - axis.out, 0) for axis, low in zip(axes, before, strict=True)))

    def kind(down: int, right: int) -> Array:
        terms = [
            _times(padded[:, u : u + _count(rows), v : v + _count(columns)], weights[i, j])
            for i, u in _reads(rows, down, before[0])
            for j, v in _reads(columns, right, before[1])
        ]
        none = jnp.zeros((g.shape[0], _count(rows), _count(columns), g.shape[3]), at_least_float32(g.dtype))
        return _total(iter(terms or [none])).astype(g.dtype)

    # Spread and added up: of every sum all terms but one are 0. Stacked and reshaped they would be moved twice.
    parts = []
    for down in range(rows.stride):
        for right in range(columns.stride):
            spread = ((at, axis.stride - 1 - at, axis.stride - 1) for at, axis in ((down, rows), (right, columns)))
            parts.append(_pad(kind(down, right), *spread))
    return functools.reduce(jnp.add, parts)[:, : rows.size, : columns.size]


def _count(axis: _Axis) -> int:
    """Positions of one kind in one direction, of the first and largest kind."""
    return -(-axis.size // axis.stride)


def _reads(axis: _Axis, kind: int, before: int) -> Iterator[tuple[int, int]]:
    """(tap, where its first product reads the padded cotangent): position p of the map meets output (p + low - tap) / s."""
    for tap_index in range(axis.live):
        away = kind + axis.low - tap_index
        if away % axis.stride == 0:
            yield tap_index, before + away // axis.stride


def _kernel_gradient(axes: tuple[_Axis, _Axis], x: Array, g: Array) -> Array:
    # Resolved when the program is compiled for its platform: no branch is left in it.
    forms = {"cpu": functools.partial(_taps_by_rows, axes), "default": functools.partial(_taps_at_once, axes)}
    live = lax.platform_dependent(x, g, **forms)
    dead = [(axis.first, axis.window - axis.first - axis.live) for axis in axes]
    return jnp.pad(live.astype(x.dtype)[:, :, None], (*dead, (0, 0), (0, 0)))


def _taps_by_rows(axes: tuple[_Axis, _Axis], x: Array, g: Array) -> Float[Array, "_ _ c"]:
    """Add up the rows of products in one fused loop before the reduction.

    On a CPU the products of a reduction over leading axes are written to memory one by one, 5 times slower for 8 members.
    """
    rows, columns = axes
    padded = _pad(x, *((axis.low, axis.high, 0) for axis in axes))
    right = columns.stride * (columns.out - 1) + 1
    sums = []
    for i in range(rows.live):
        row = [
            _total(_times(padded[:, u * rows.stride + i, j : j + right : columns.stride], g[:, u]) for u in range(rows.out))
            for j in range(columns.live)
        ]
        sums.append(jnp.sum(jnp.stack(row), (1, 2)))
    return jnp.stack(sums)


def _taps_at_once(axes: tuple[_Axis, _Axis], x: Array, g: Array) -> Float[Array, "_ _ c"]:
    """Reduce the products of every tap as they are made, which an accelerator does in one pass."""
    rows, columns = axes
    padded = _pad(x, *((axis.low, axis.high, 0) for axis in axes))
    down, right = (axis.stride * (axis.out - 1) + 1 for axis in axes)

    def tap_sum(i: int, j: int) -> Array:
        return jnp.sum(_times(padded[:, i : i + down : rows.stride, j : j + right : columns.stride], g), (0, 1, 2))

    return jnp.stack([jnp.stack([tap_sum(i, j) for j in range(columns.live)]) for i in range(rows.live)])


def _live(axes: tuple[_Axis, _Axis], kernel: Array) -> Iterator[tuple[int, int, Array]]:
    rows, columns = axes
    live = kernel[rows.first : rows.first + rows.live, columns.first : columns.first + columns.live, 0]
    return ((i, j, live[i, j][None, None, None]) for i in range(rows.live) for j in range(columns.live))


def _pad(x: Array, rows: tuple[int, int, int], columns: tuple[int, int, int]) -> Array:
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), rows, columns, (0, 0, 0)))


def _times(a: Array, b: Array) -> Array:
    wide = at_least_float32(a.dtype)
    return a.astype(wide) * b.astype(wide)


def _total(terms: Iterator[Array]) -> Array:
    return functools.reduce(jnp.add, terms)


class DepthwiseConv(nn.Module):
    """Depthwise convolution without bias, padding ``window // 2``; its address is the module's path.

    The kernel f[window window 1 c] starts by :func:`bdjax.nn.initial.he_fan_out`: a std of sqrt(2 / (c window²)).
    ``dtype`` None is that of the pass.
    """

    window: int
    stride: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Any, "b h w c"], run: Pass) -> Float[Array, "b _ _ c"]:
        kernel = parameter(self, "kernel", he_fan_out, (self.window, self.window, 1, x.shape[-1]))
        if run.shaping:
            return x[:, :: self.stride, :: self.stride]
        dtype = self.dtype or run.dtype or kernel.dtype
        y = depthwise(x.astype(dtype), kernel.astype(dtype), stride=self.stride, padding=self.window // 2)
        return tap(y, "/".join(self.path), run)
