"""Ways to compute a convolution and its two gradients, for ``benchmarks/lowerings.py``: the package's and its rivals.

A *one-member map* is f(a, b) of output (x, kernel), input gradient (g, kernel) or kernel gradient (x, g); ``over_members`` turns
it into a program for a leading axis of members.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bdjax.nn import lowerings
from bdjax.types import Array
from benchmarks.shapes import Shape

DIRECTIONS = ("output", "input gradient", "kernel gradient")
TRIPS = 3  # of the loop in the "in a scan" candidates
Map = Callable[[Array, Array], Array]
Forward = Callable[[Array, Array, int, int], Array]


class Candidate(NamedTuple):
    """``how``: "unrolled" (members one after another in one program), "vmap" or "scan" (unrolled, inside a loop of TRIPS)."""

    name: str
    one: Map
    how: str = "unrolled"
    layout: str = "NHWC"

    @property
    def contends(self) -> bool:
        """Whether a layer could use it as it is: loops are shown for comparison, another layout means another network."""
        return self.how != "scan" and self.layout == "NHWC"


def candidates(shape: Shape, direction: str, batch: int) -> Iterator[Candidate]:
    """Everything to be timed for one shape and direction, the native convolution first."""
    native = _GROUPED if shape.kind == "depthwise" else lowerings.native
    maps = {"native": native, **_FORMULATIONS[shape.kind]}
    at_stride_1 = direction == "input gradient" and shape.stride == 1
    for name, forward in maps.items():
        if name.startswith("packed") and (shape.stride > 1 or shape.output_size % int(name[-1])):
            continue
        if name.startswith("live") and _live(shape.window, shape.size, shape.stride, shape.padding) == (0, shape.window):
            continue
        one = _flipped(forward, shape) if at_stride_1 else transposed(forward, shape, direction, batch)
        yield Candidate(name, one)
        if not name.startswith("packed"):
            yield Candidate(f"{name}, vmap", one, "vmap")
        if name in ("native", "patches"):
            yield Candidate(f"{name}, in a scan", one, "scan")
        if at_stride_1 and name == "patches":
            yield Candidate("patches, transposed", transposed(forward, shape, direction, batch))
    yield Candidate("native NCHW", transposed(_nchw(shape), shape, direction, batch, "NCHW"), layout="NCHW")
    if shape.kind != "depthwise" and direction == "input gradient" and shape.stride > 1:
        yield Candidate("phases", functools.partial(_phases, shape=shape))
    if shape.kind != "depthwise" and direction != "output":
        one = functools.partial(_canonical, shape=shape, direction=direction)
        yield from (Candidate("canonical", one), Candidate("canonical, in a scan", one, "scan"))
    if shape.kind == "dense" and direction == "kernel gradient":
        moved = functools.partial(_canonical, shape=shape, direction=direction, move_first=True)
        yield Candidate("canonical, moved first", moved)
        if shape.stride == 1:
            rows = functools.partial(_row_products, shape=shape)
            yield from (Candidate("row products", rows), Candidate("row products, vmap", rows, "vmap"))


def transposed(forward: Forward, shape: Shape, direction: str, batch: int, layout: str = "NHWC") -> Map:
    """A direction's one-member map from a formulation of the output, by linear transposition."""
    if direction == "output":
        return lambda x, k: forward(x, k, shape.stride, shape.padding)
    if direction == "input gradient":
        n, c = shape.size, shape.channels_in
        image = (batch, c, n, n) if layout == "NCHW" else (batch, n, n, c)

        def input_gradient(g: Array, k: Array) -> Array:
            x = jax.ShapeDtypeStruct(image, g.dtype)
            return jax.linear_transpose(lambda x: forward(x, k, shape.stride, shape.padding), x)(g)[0]

        return input_gradient
    window = kernel_shape(shape, layout)

    def kernel_gradient(x: Array, g: Array) -> Array:
        k = jax.ShapeDtypeStruct(window, x.dtype)
        return jax.linear_transpose(lambda k: forward(x, k, shape.stride, shape.padding), k)(g)[0]

    return kernel_gradient


def kernel_shape(shape: Shape, layout: str = "NHWC") -> tuple[int, ...]:
    """Dimensions of one member's kernel: HWIO beside NHWC, OIHW beside NCHW."""
    fan_in = 1 if shape.kind == "depthwise" else shape.channels_in
    window, d = (shape.window, shape.window), shape.channels_out
    return (d, fan_in, *window) if layout == "NCHW" else (*window, fan_in, d)


def over_members(candidate: Candidate) -> Map:
    """The program for a leading axis of members."""
    if candidate.how == "vmap":
        return jax.vmap(candidate.one)

    def unrolled(a: Array, b: Array) -> Array:
        return jnp.stack([candidate.one(a[i], b[i]) for i in range(a.shape[0])])

    def looped(a: Array, b: Array) -> Array:
        out = jax.eval_shape(unrolled, a, b)
        # Factors of one that the compiler cannot know: without them it moves the convolution out of the loop.
        ones = 1 + 0 * jnp.resize(b, (TRIPS,))

        def trip(last: Array, one: Array) -> tuple[Array, None]:
            return unrolled(a, b * jnp.broadcast_to(one, b.shape)), None

        return lax.scan(trip, jnp.zeros(out.shape, out.dtype), ones)[0]

    return looped if candidate.how == "scan" else unrolled


def _flipped(forward: Forward, shape: Shape) -> Map:
    if shape.kind == "depthwise":
        return lambda g, k: forward(g, k[::-1, ::-1], 1, shape.padding)
    return lambda g, k: lowerings.flipped(forward, g, k, shape.padding)


def _nchw(shape: Shape) -> Forward:
    groups = shape.channels_in if shape.kind == "depthwise" else 1

    def forward(x: Array, k: Array, stride: int, padding: int) -> Array:
        pads = [(padding, padding)] * 2
        layout = ("NCHW", "OIHW", "NCHW")
        return lax.conv_general_dilated(x, k, (stride, stride), pads, dimension_numbers=layout, feature_group_count=groups)

    return forward


def _grouped(x: Array, k: Array, stride: int, padding: int, right: int | None = None) -> Array:
    pads = [(padding, padding if right is None else right)] * 2
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, k, (stride, stride), pads, dimension_numbers=layout, feature_group_count=k.shape[3])


_GROUPED: Forward = _grouped


def _live(window: int, size: int, stride: int, padding: int) -> tuple[int, int]:
    """First and one past the last tap that ever meets an image position."""
    out = (size + 2 * padding - window) // stride + 1
    taps = [i for i in range(window) if any(0 <= stride * y + i - padding < size for y in range(out))]
    return taps[0], taps[-1] + 1


def _taps(
    x: Array, window: int, stride: int, padding: int, live: tuple[int, int] | None = None
) -> Iterator[tuple[int, int, Array]]:
    """For each tap (i, j) the positions it meets, f[b h' w' c]; with ``live`` = (first, last + 1) only those taps."""
    size = x.shape[1]
    out = (size + 2 * padding - window) // stride + 1
    low, high = live or (0, window)
    reach = stride * (out - 1) + 1
    left = padding - low
    right = reach - 1 + high - low - size - left
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (left, right, 0), (left, right, 0), (0, 0, 0)))
    for i in range(high - low):
        for j in range(high - low):
            yield i + low, j + low, x[:, i : i + reach : stride, j : j + reach : stride]


def _row_patches(x: Array, k: Array, stride: int, padding: int) -> Array:
    """Column shifts side by side, one product per kernel row."""
    kh, kw, c, d = k.shape
    out = (x.shape[1] + 2 * padding - kh) // stride + 1
    reach = stride * (out - 1) + 1
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    wide = jnp.concatenate([x[:, :, j : j + reach : stride] for j in range(kw)], axis=-1)
    return sum(wide[:, i : i + reach : stride] @ k[i].reshape(kw * c, d) for i in range(kh))


def _shifted_products(x: Array, k: Array, stride: int, padding: int) -> Array:
    return sum(part @ k[i, j] for i, j, part in _taps(x, k.shape[0], stride, padding))


def _packed(q: int) -> Forward:
    """``lowerings.packed`` for q neighbouring output columns."""

    def forward(x: Array, k: Array, stride: int, padding: int) -> Array:
        kh, kw, c, d = k.shape
        b, h, w, _ = x.shape
        wide = jnp.stack([jnp.pad(k, ((0, 0), (j, q - 1 - j), (0, 0), (0, 0))) for j in range(q)], axis=3)
        wide = wide.reshape(kh, kw + q - 1, c, q * d)
        pads = [(padding, padding)] * 2
        y = lax.conv_general_dilated(x, wide, (1, q), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return y.reshape(b, h + 2 * padding - kh + 1, w + 2 * padding - kw + 1, d)

    return forward


def _einsum(x: Array, k: Array, stride: int, padding: int) -> Array:
    return jnp.einsum("bhwc,cd->bhwd", x[:, ::stride, ::stride], k[0, 0])


def _multiply_add(x: Array, k: Array, stride: int, padding: int) -> Array:
    return sum(part * _spread(k[i, j, 0], part) for i, j, part in _taps(x, k.shape[0], stride, padding))


def _live_multiply_add(x: Array, k: Array, stride: int, padding: int) -> Array:
    live = _live(k.shape[0], x.shape[1], stride, padding)
    return sum(part * _spread(k[i, j, 0], part) for i, j, part in _taps(x, k.shape[0], stride, padding, live))


def _live_native(x: Array, k: Array, stride: int, padding: int) -> Array:
    low, high = _live(k.shape[0], x.shape[1], stride, padding)
    out = (x.shape[1] + 2 * padding - k.shape[0]) // stride + 1
    left = padding - low
    right = stride * (out - 1) + high - low - x.shape[1] - left
    return _grouped(x, k[low:high, low:high], stride, left, right)


def _depthwise_patches(x: Array, k: Array, stride: int, padding: int) -> Array:
    parts = jnp.stack([part for _, _, part in _taps(x, k.shape[0], stride, padding)], axis=3)
    return jnp.einsum("bhwtc,tc->bhwc", parts, k.reshape(-1, k.shape[3]))


def _spread(channel: Array, like: Array) -> Array:
    return jnp.broadcast_to(channel, like.shape)


def _phases(g: Array, k: Array, shape: Shape) -> Array:
    """Input gradient of a strided convolution: one small dense convolution per residue of the position, interleaved."""
    s, n, p = shape.stride, shape.size, shape.padding
    b, out, _, _ = g.shape
    cells = -(-(n + 2 * p) // s)
    rows = []
    for r in range(s):
        columns = []
        for q in range(s):
            part = k[r::s, q::s]
            if 0 in part.shape:
                columns.append(jnp.zeros((b, cells, cells, k.shape[2]), g.dtype))
                continue
            pads = [(t - 1, cells - out) for t in part.shape[:2]]
            flipped = part[::-1, ::-1].swapaxes(2, 3)
            columns.append(lax.conv_general_dilated(g, flipped, (1, 1), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")))
        rows.append(jnp.stack(columns, axis=3))
    whole = jnp.stack(rows, axis=2).reshape(b, s * cells, s * cells, k.shape[2])
    return whole[:, p : p + n, p : p + n]


def _canonical(a: Array, b: Array, shape: Shape, direction: str, move_first: bool = False) -> Array:
    """The gradients in the one layout that XLA's CPU compiler keeps fast inside loops."""
    if direction == "input gradient":
        return lowerings.canonical_input_gradient(a, b, shape.stride, shape.padding, (shape.size, shape.size))
    window = (shape.window, shape.window)
    return lowerings.canonical_kernel_gradient(a, b, shape.stride, shape.padding, window, move_first=move_first)


def _row_products(x: Array, g: Array, shape: Shape) -> Array:
    """Kernel gradient at stride 1: the output gradient's column shifts side by side, one product per kernel row."""
    n, p, window = shape.output_size, shape.padding, shape.window
    x = jnp.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
    shifted = [jnp.pad(g, ((0, 0), (0, 0), (j, window - 1 - j), (0, 0))) for j in range(window)]
    wide = jnp.concatenate(shifted, axis=-1).reshape(-1, window * g.shape[3])
    rows = [x[:, i : i + n].reshape(-1, x.shape[3]).T @ wide for i in range(window)]
    return jnp.stack(rows).reshape(window, x.shape[3], window, g.shape[3]).swapaxes(1, 2)


_FORMULATIONS: dict[str, dict[str, Forward]] = {
    "dense": {
        "patches": lowerings.patches,
        "row patches": _row_patches,
        "shifted products": _shifted_products,
        "packed 2": lowerings.packed,
        "packed 4": _packed(4),
    },
    "pointwise": {"einsum": _einsum, "product": lowerings.product},
    "depthwise": {
        "multiply-add": _multiply_add,
        "live multiply-add": _live_multiply_add,
        "live native": _live_native,
        "patches": _depthwise_patches,
    },
}
