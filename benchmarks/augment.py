"""Time the ways to crop and flip a batch: what `bdjax.data.augment.crop_flip` rests on.

Run: python benchmarks/augment.py

2 CPU cores shared with other work, jax 0.10.2, uint8, best of 9 after one warm-up call, ms per call, alone / inside a scan:

| members x images | two gathers | slices | one gather | one-hot products | shifts by bits |
|---|---|---|---|---|---|
| 1 x 64 | 0.22 / 0.23 | 0.21 / 0.12 | 0.20 / 0.18 | 0.56 / 0.53 | 1.01 / 0.90 |
| 8 x 64 | 0.33 / 1.15 | 0.44 / 1.10 | 0.69 / 0.76 | 3.66 / 3.89 | 7.05 / 6.63 |
| 8 x 128 | 0.58 / 2.52 | 0.84 / 1.11 | 0.66 / 2.13 | 8.99 / 11.24 | 13.81 / 13.32 |

All are small beside a training step. Two gathers stay: on a CPU steps are dispatched, not scanned.
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from bdjax.data.augment import crop_flip
from bdjax.types import Array, Key

PAD = 4


def _draws(key: Key, b: int) -> tuple[Array, Array, Array]:
    rows_key, columns_key, flip_key = jax.random.split(key, 3)
    mirrored = jax.random.bernoulli(flip_key, 0.5, (b, 1))[:, 0]
    return (
        jax.random.randint(rows_key, (b, 1), 0, 2 * PAD + 1, jnp.int32)[:, 0],
        jax.random.randint(columns_key, (b, 1), 0, 2 * PAD + 1, jnp.int32)[:, 0],
        mirrored,
    )


def _padded(images: Array) -> Array:
    return jnp.pad(images, ((0, 0), (PAD, PAD), (PAD, PAD), (0, 0)))


def two_gathers(key: Key, images: Array) -> Array:
    """What the package does."""
    return crop_flip(key, images, PAD, True)


def slices(key: Key, images: Array) -> Array:
    """A dynamic slice per image."""
    b, h, w, c = images.shape
    top, left, mirrored = _draws(key, b)
    cut = jax.vmap(lambda image, y, x: jax.lax.dynamic_slice(image, (y, x, 0), (h, w, c)))(_padded(images), top, left)
    return jnp.where(mirrored[:, None, None, None], cut[:, :, ::-1], cut)


def one_gather(key: Key, images: Array) -> Array:
    """One gather with an index per pixel."""
    b, h, w, _ = images.shape
    top, left, mirrored = _draws(key, b)
    columns = jnp.where(mirrored[:, None], w - 1 - jnp.arange(w)[None], jnp.arange(w)[None]) + left[:, None]
    rows = jnp.arange(h)[None] + top[:, None]
    return _padded(images)[jnp.arange(b)[:, None, None], rows[:, :, None], columns[:, None, :]]


def one_hot_products(key: Key, images: Array) -> Array:
    """Two matrix products with one-hot matrices."""
    b, h, w, _ = images.shape
    top, left, mirrored = _draws(key, b)
    columns = jnp.where(mirrored[:, None], w - 1 - jnp.arange(w)[None], jnp.arange(w)[None]) + left[:, None] - PAD
    pick_rows = jax.nn.one_hot(jnp.arange(h)[None] + top[:, None] - PAD, h)
    pick_columns = jax.nn.one_hot(columns, w)
    half = jnp.einsum("bij,bjwc->biwc", pick_rows, images.astype(jnp.float32))
    return jnp.einsum("bkw,biwc->bikc", pick_columns, half).astype(images.dtype)


def shifts_by_bits(key: Key, images: Array) -> Array:
    """Shifts by 8, 4, 2, 1 pixels, each kept or not."""
    b, h, w, _ = images.shape
    top, left, mirrored = _draws(key, b)
    out = _padded(images)
    out = jnp.where(mirrored[:, None, None, None], out[:, :, ::-1], out)
    left = jnp.where(mirrored, 2 * PAD - left, left)
    for axis, size, offset in ((1, h, top), (2, w, left)):
        for bit in reversed(range((2 * PAD).bit_length())):
            step = 1 << bit
            kept = size + min(step - 1, 2 * PAD)
            missing = max(0, step + kept - out.shape[axis])
            wide = jnp.pad(out, [(0, missing if i == axis else 0) for i in range(4)])
            moved = jax.lax.slice_in_dim(wide, step, step + kept, axis=axis)
            stayed = jax.lax.slice_in_dim(wide, 0, kept, axis=axis)
            out = jnp.where((((offset >> bit) & 1) == 1)[:, None, None, None], moved, stayed)
    return out


def _best(call: Callable[[Array, Array], Array], keys: Key, images: Array, repeats: int) -> float:
    jax.block_until_ready(call(keys, images))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call(keys, images))
        times.append(time.perf_counter() - start)
    return min(times) * 1e3


def main() -> None:
    """Print one line per way: ms per call for a population outside a loop, and per step of a scan."""
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, uint8 [members, b, 32, 32, 3], ms per call, best of 9")
    for members, b in ((1, 64), (8, 64), (8, 128)):
        images = jax.random.randint(jax.random.key(1), (members, b, 32, 32, 3), 0, 256, jnp.int32).astype(jnp.uint8)
        keys = jax.random.split(jax.random.key(0), members)
        expected = jax.vmap(two_gathers)(keys, images)
        for way in (two_gathers, slices, one_gather, one_hot_products, shifts_by_bits):
            mapped = jax.vmap(way)
            alone = jax.jit(mapped)
            looped = jax.jit(
                lambda keys, images, mapped=mapped: jax.lax.scan(lambda x, _: (mapped(keys, x), None), images, None, length=4)[0]
            )
            equal = bool(jnp.all(alone(keys, images) == expected))
            outside, inside = _best(alone, keys, images, 9), _best(looped, keys, images, 5) / 4
            print(f"{members} x {b:3d}  {way.__name__:17s} alone {outside:6.2f}  in a scan {inside:6.2f}  same result: {equal}")


if __name__ == "__main__":
    main()
