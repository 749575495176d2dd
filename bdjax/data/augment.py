"""Random crop and flip as keyed array code, and the two forms of an image: uint8 at rest, float32 in [0, 1] across borders."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from bdjax.types import Array, Key

# 1/255 as the sum of a number of 16 significant bits, whose product with 0..255 is exact, and the small rest. XLA turns a
# division by 255 into a product with the rounded 1/255, which misses k/255 by one unit in the last place for half of all k.
_HIGH = 32896 / 2**23
_REST = 1 / 255 - _HIGH


def to_float(images: Array) -> Array:
    """Return u8[...] pixels as f32[...] in [0, 1]: the float32 nearest to value / 255, in compiled code too."""
    values = images.astype(jnp.float32)
    return values * jnp.float32(_HIGH) + values * jnp.float32(_REST)


def to_uint8(images: Array) -> Array:
    """Return f[...] pixels in [0, 1] as u8[...]: the nearest k of k/255, clipped to 0..255; undoes :func:`to_float` exactly."""
    return jnp.clip(jnp.round(images * 255), 0, 255).astype(jnp.uint8)


def truncate(images: Array) -> Array:
    """Return f32[...] pixels in [0, 1] rounded down to the grid, floor(255 x + 0.001) / 255: what lies on it stays."""
    return to_float(jnp.clip(jnp.floor(255 * images + 1e-3), 0, 255).astype(jnp.uint8))


def crop_flip(key: Key, images: Array, pad: int, flip: bool) -> Array:
    """Pad with black, crop back to the original size at a random offset, mirror with probability 1/2; drawn per image.

    ``out[i, y, x] = padded[i, y + oy_i, x' + ox_i]``, ``x' = w - 1 - x`` where image i is mirrored, else x; oy_i and ox_i are
    uniform on {0..2 pad}.

    Args:
      key: one key for the batch.
      images: [b h w c], any dtype, pixels (0 is black): the model normalises later.
      pad: black border in pixels, >= 0 (static).
      flip: whether to mirror (static).

    Returns:
      [b h w c], the dtype of ``images``.

    Source: "Countering Backdoor Attacks in Image Recognition: A Survey and Evaluation of Mitigation Strategies",
      arXiv 2411.11200, 2024: the training transform of its benchmark.
    """
    if pad == 0 and not flip:
        return images
    rows_key, columns_key, flip_key = jax.random.split(key, 3)
    b = images.shape[0]
    mirrored = jax.random.bernoulli(flip_key, 0.5, (b, 1)) if flip else jnp.zeros((b, 1), bool)
    down = jax.random.randint(rows_key, (b, 1), 0, 2 * pad + 1, jnp.int32)
    right = jax.random.randint(columns_key, (b, 1), 0, 2 * pad + 1, jnp.int32)
    # Resolved when the program is compiled for its platform: no branch is left in it.
    forms = {"cpu": functools.partial(_gathered, pad), "default": functools.partial(_selected, pad, flip)}
    return lax.platform_dependent(images, down, right, mirrored, **forms)


def _gathered(pad: int, images: Array, down: Array, right: Array, mirrored: Array) -> Array:
    """Crop and mirror by two gathers along one axis each, the fastest form on a CPU.

    For 8 members x 128 CIFAR images they take 0.6 ms on 2 cores; a slice per image 0.8 ms (but 1.1 against 2.5 ms inside a scan),
    one-hot products 9 ms, shifts by bits 14 ms (benchmarks/augment.py).
    """
    _, h, w, _ = images.shape
    rows, columns = (jnp.arange(size, dtype=jnp.int32)[None] for size in (h, w))
    rows, columns = down + rows, right + jnp.where(mirrored, w - 1 - columns, columns)
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    cropped = jnp.take_along_axis(padded, rows[:, :, None, None], axis=1, mode="promise_in_bounds")
    return jnp.take_along_axis(cropped, columns[:, None, :, None], axis=2, mode="promise_in_bounds")


def _selected(pad: int, flip: bool, images: Array, down: Array, right: Array, mirrored: Array) -> Array:
    """Crop and mirror by choosing among the 2 pad + 1 shifted copies, one axis after the other: no gather, whole registers.

    A TPU's compiler estimates a fourth of the cycles of gathers for 8 members, two fifths for one (benchmarks/augment.py).
    """
    for axis, offset in ((1, down), (2, right)):
        border = [(pad, pad) if i == axis else (0, 0) for i in range(4)]
        padded, size = jnp.pad(images, border), images.shape[axis]
        images = lax.slice_in_dim(padded, 0, size, axis=axis)
        for k in range(1, 2 * pad + 1):
            images = jnp.where(offset[:, :, None, None] == k, lax.slice_in_dim(padded, k, k + size, axis=axis), images)
    return jnp.where(mirrored[:, :, None, None], images[:, :, ::-1], images) if flip else images
