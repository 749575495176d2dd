"""Random crop and flip as keyed array code, and the two forms of an image: uint8 at rest, float32 in [0, 1] across borders."""

import jax
import jax.numpy as jnp

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
    b, h, w, _ = images.shape
    rows = jnp.broadcast_to(jnp.arange(h, dtype=jnp.int32), (b, h))
    columns = jnp.broadcast_to(jnp.arange(w, dtype=jnp.int32), (b, w))
    if flip:
        mirrored = jax.random.bernoulli(flip_key, 0.5, (b, 1))
        columns = jnp.where(mirrored, w - 1 - columns, columns)
    rows = rows + jax.random.randint(rows_key, (b, 1), 0, 2 * pad + 1, jnp.int32)
    columns = columns + jax.random.randint(columns_key, (b, 1), 0, 2 * pad + 1, jnp.int32)
    # Two gathers along one axis each: 0.6 ms for 8 members x 128 CIFAR images on 2 CPU cores; a slice per image 0.8 ms (but 1.1
    # against 2.5 ms inside a scan), one-hot products 9 ms, shifts by bits 14 ms (benchmarks/augment.py).
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    cropped = jnp.take_along_axis(padded, rows[:, :, None, None], axis=1, mode="promise_in_bounds")
    return jnp.take_along_axis(cropped, columns[:, None, :, None], axis=2, mode="promise_in_bounds")
