"""Time the ways to crop and flip a batch: what `bdjax.data.augment.crop_flip` rests on.

Run: python -m benchmarks.augment
     python -m benchmarks.augment --kind v5e      what a TPU's compiler estimates instead (pip install libtpu)

2 CPU cores shared with other work, jax 0.10.2, uint8, best of 9 after one warm-up call, ms per call, alone / inside a scan:

| members x images | two gathers | slices | one gather | one-hot products | shifts by bits |
|---|---|---|---|---|---|
| 1 x 64 | 0.22 / 0.23 | 0.21 / 0.12 | 0.20 / 0.18 | 0.56 / 0.53 | 1.01 / 0.90 |
| 8 x 64 | 0.33 / 1.15 | 0.44 / 1.10 | 0.69 / 0.76 | 3.66 / 3.89 | 7.05 / 6.63 |
| 8 x 128 | 0.58 / 2.52 | 0.84 / 1.11 | 0.66 / 2.13 | 8.99 / 11.24 | 13.81 / 13.32 |

All are small beside a training step, and two gathers stay on a CPU.

Estimated by the TPU's compiler libtpu 0.0.52 (v5e, jax 0.10.2): cycles per member of a batch of 128, its result in bfloat16.

| members | two gathers | selections | slices | one gather | one-hot products | shifts by bits |
|---|---|---|---|---|---|---|
| 1 | 234,222 | 93,961 | 1,368,336 | 1,129,040 | 123,716 | 139,789 |
| 8 | 185,198 | 43,524 | 804,346 | 85,654 | 58,564 | 91,101 |
"""

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from bdjax.data import augment
from bdjax.population import estimated, targets
from bdjax.population.chips import TPUS
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
    """What the package does on a CPU."""
    down, right, mirrored = (draw.reshape(-1, 1) for draw in _draws(key, images.shape[0]))
    return augment._gathered(PAD, images, down, right, mirrored)


def selections(key: Key, images: Array) -> Array:
    """What the package does on an accelerator: a choice among shifted copies, one axis after the other."""
    down, right, mirrored = (draw.reshape(-1, 1) for draw in _draws(key, images.shape[0]))
    return augment._selected(PAD, True, images, down, right, mirrored)


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


WAYS = (two_gathers, selections, slices, one_gather, one_hot_products, shifts_by_bits)


def estimate(kind: str) -> None:
    """Print the cycles per member that a TPU's compiler estimates for each way, its result turned into bfloat16."""
    device = SingleDeviceSharding(targets.topology(kind)[0])
    for members, b in ((1, 128), (8, 128)):
        images = jax.ShapeDtypeStruct((members, b, 32, 32, 3), jnp.uint8, sharding=device)
        keys = jax.ShapeDtypeStruct((members, 2), jnp.uint32, sharding=device)
        for way in WAYS:

            def one(words: Array, batch: Array, way: Callable[[Key, Array], Array] = way) -> Array:
                return augment.to_float(way(jax.random.wrap_key_data(words), batch)).astype(jnp.bfloat16)

            text = jax.jit(jax.vmap(one)).lower(keys, images).compile().as_text()
            print(f"{members} x {b:3d}  {way.__name__:17s} {estimated.cost(text).total / members:9,.0f} cycles", flush=True)


def main() -> None:
    """Print one line per way: ms per call for a population outside a loop, and per step of a scan; or a TPU's estimates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=list(TPUS), help="of a TPU, whose compiler is asked; default: time it here")
    args = parser.parse_args()
    if args.kind:
        estimate(args.kind)
        return
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, uint8 [members, b, 32, 32, 3], ms per call, best of 9")
    for members, b in ((1, 64), (8, 64), (8, 128)):
        images = jax.random.randint(jax.random.key(1), (members, b, 32, 32, 3), 0, 256, jnp.int32).astype(jnp.uint8)
        keys = jax.random.split(jax.random.key(0), members)
        expected = jax.vmap(two_gathers)(keys, images)
        for way in WAYS:
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
