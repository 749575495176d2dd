"""Smooth displacement fields and the images they bend."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.types import Array, Float

A = -0.75  # the coefficient of the cubic kernel


@functools.lru_cache(maxsize=16)
def bicubic(size: int, points: int) -> Float[np.ndarray, "size points"]:
    """Return the matrix that enlarges ``points`` equispaced values to ``size``, first and last in place.

    M[i, clamp(⌊p⌋ - 1 + d, 0, points - 1)] += w_d, d = 0 … 3, p = (points - 1) i / (size - 1), t = p - ⌊p⌋,
    w = (f2(1 + t), f1(t), f1(1 - t), f2(2 - t)), f1(z) = (A + 2) z³ - (A + 3) z² + 1, f2(z) = A z³ - 5 A z² + 8 A z - 4 A.

    Args:
      size: at least 2.
      points: at least 2.

    Source: R. Keys, "Cubic Convolution Interpolation for Digital Image Processing", IEEE Transactions on Acoustics, Speech, and
      Signal Processing 29, 1981.
    Differs: A = -0.75 and repeated border values, as PyTorch has it; Keys and most libraries take A = -0.5.
    """
    place = np.arange(size) * ((points - 1) / (size - 1))
    first = np.floor(place).astype(int)
    t = place - first

    def near(z: np.ndarray) -> np.ndarray:
        return (A + 2) * z**3 - (A + 3) * z**2 + 1

    def far(z: np.ndarray) -> np.ndarray:
        return A * z**3 - 5 * A * z**2 + 8 * A * z - 4 * A

    matrix = np.zeros((size, points))
    for d, weight in enumerate((far(1 + t), near(t), near(1 - t), far(2 - t))):
        np.add.at(matrix, (np.arange(size), np.clip(first - 1 + d, 0, points - 1)), weight)
    matrix.setflags(write=False)  # the cached array is shared
    return matrix


def enlarge(coarse: Float[Array, "d k l"], height: int, width: int) -> Float[Array, "d h w"]:
    """Bicubic enlargement of maps, corners kept: M_height coarse M_widthᵀ."""
    rows, columns = (
        jnp.asarray(bicubic(size, points), coarse.dtype) for size, points in zip((height, width), coarse.shape[-2:], strict=True)
    )
    highest = jax.lax.Precision.HIGHEST  # accelerators round the factors otherwise
    return jnp.einsum("ik,dkl,jl->dij", rows, coarse, columns, precision=highest)


def ending_inside(shift: Float[Array, "n 2 h w"]) -> Float[Array, "n 2 h w"]:
    """Return the displacement whose positions end at the border pixels: clip(p + shift, 0, size - 1) - p per pixel p and axis.

    :func:`bend` does the same to the sum of all displacements; this is for one that is limited before another is added.

    Args:
      shift: in pixels: to the right, then down.
    """
    h, w = shift.shape[2:]
    x = jnp.arange(w, dtype=shift.dtype)[None, None, :]
    y = jnp.arange(h, dtype=shift.dtype)[None, :, None]
    return jnp.stack([jnp.clip(shift[:, 0], -x, w - 1 - x), jnp.clip(shift[:, 1], -y, h - 1 - y)], 1)


def bend(images: Float[Array, "n h w c"], shift: Float[Array, "#n 2 h w"]) -> Float[Array, "n h w c"]:
    """Read every pixel at a displaced position, bilinearly; positions end at the border pixels.

    out[i, y, x] = in[i, clip(y + dy, 0, h - 1), clip(x + dx, 0, w - 1)], (dx, dy) = shift[i, :, y, x].

    Args:
      images: at least 2x2 pixels; the result has their range but for rounding.
      shift: a field for every image, or one for all alike, in pixels: to the right, then down.

    Differs: the published codes of WaNet give the position as (g + 1)(w - 1)/2 of a grid g in [-1, 1]; this is the same position
      in pixels. They bend normalised images; the weights add up to 1, so bending and normalising commute.
    """
    n, h, w, c = images.shape
    x = jnp.clip(jnp.arange(w, dtype=jnp.float32)[None, None, :] + shift[:, 0], 0, w - 1)
    y = jnp.clip(jnp.arange(h, dtype=jnp.float32)[None, :, None] + shift[:, 1], 0, h - 1)
    left, top = jnp.minimum(jnp.floor(x), w - 2), jnp.minimum(jnp.floor(y), h - 2)  # the last pixel: weight 1 to the right
    right, down = x - left, y - top
    corner = (top.astype(jnp.int32) * w + left.astype(jnp.int32)).reshape(shift.shape[0], h * w, 1)
    flat = images.reshape(n, h * w, c)

    def read(offset: int, weight: Array) -> Array:
        pixels = jnp.take_along_axis(flat, corner + offset, axis=1, mode="promise_in_bounds")
        return pixels * weight.reshape(corner.shape)

    above = read(0, (1 - down) * (1 - right)) + read(1, (1 - down) * right)
    below = read(w, down * (1 - right)) + read(w + 1, down * right)
    return (above + below).reshape(images.shape)
