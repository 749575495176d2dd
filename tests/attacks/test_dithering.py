"""Dithering against the pixel-by-pixel loop, in whole numbers and in floating point as the published code has it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.attacks.bpp.bpp import bpp
from bdjax.attacks.bpp.dithering import FINE, dithered
from bdjax.data.augment import to_float, to_uint8

WEIGHTS = (((0, 1), 7), ((1, 1), 1), ((1, 0), 5), ((1, -1), 3))  # (down, right): sixteenths


def by_hand(pixels, levels):
    """Levels of one image u8[h w c], pixel by pixel; errors are collected in sixteenths of the unit of :mod:`dithering`."""
    h, w, c = pixels.shape
    passed, out = np.zeros((h, w, c), np.int64), np.zeros((h, w, c), np.int64)
    step = 255 << FINE
    for y in range(h):
        for x in range(w):
            value = pixels[y, x].astype(np.int64) * ((levels - 1) << FINE) + (passed[y, x] + 8) // 16
            out[y, x] = np.clip((value + step // 2) // step, 0, levels - 1)
            for (down, right), weight in WEIGHTS:
                if y + down < h and 0 <= x + right < w:
                    passed[y + down, x + right] += weight * (value - out[y, x] * step)
    return out


def in_floats(pixels, levels):
    """The same in float64, errors added to the image as they come."""
    image, out = pixels.astype(np.float64), np.zeros(pixels.shape, np.int64)
    h, w, _ = image.shape
    for y in range(h):
        for x in range(w):
            out[y, x] = np.clip(np.round(image[y, x] / 255 * (levels - 1)), 0, levels - 1)
            error = image[y, x] - out[y, x] * 255 / (levels - 1)
            for (down, right), weight in WEIGHTS:
                if y + down < h and 0 <= x + right < w:
                    image[y + down, x + right] += error * weight / 16
    return out


def smooth(n, h, w):
    """Images with slopes, on which dithering shows, and noise."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:h, :w]
    slopes = generator.uniform(-6, 6, (n, 2, 3))
    plane = (
        128 + slopes[:, 0, None, None] * (y - h / 2)[None, :, :, None] + slopes[:, 1, None, None] * (x - w / 2)[None, :, :, None]
    )
    return np.clip(plane + generator.integers(-3, 4, (n, h, w, 3)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("levels", "shape"), [(8, (6, 9)), (8, (9, 6)), (2, (7, 7)), (5, (1, 6)), (3, (6, 1)), (256, (4, 4))])
def test_every_level_is_that_of_the_loop_over_pixels(levels, shape):
    images = np.concatenate([smooth(3, *shape), np.random.default_rng(1).integers(0, 256, (3, *shape, 3), dtype=np.uint8)])
    found = np.asarray(jax.jit(dithered, static_argnums=1)(jnp.asarray(images), levels))
    want = np.stack([by_hand(image, levels) for image in images])
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.round(want * 255 / (levels - 1)).astype(np.uint8))
    np.testing.assert_array_equal(want, np.stack([in_floats(image, levels) for image in images]))


def test_bpp_dithers_while_training_at_test_time_and_in_residuals(tiny_spec):
    pixels, donors = smooth(10, 8, 8), smooth(20, 8, 8)[10:]
    attack = bpp(tiny_spec, {"dithering": True, "augment": "none", "target": 3, "neg_ratio": 0.2})
    levels, lent = (np.stack([by_hand(image, 8) for image in images]) for images in (pixels, donors))
    stored = lent * 255 // 7
    tested = np.asarray(to_uint8(attack.stamp({}, jax.random.key(0), to_float(jnp.asarray(pixels)))))
    np.testing.assert_array_equal(tested, levels * 255 // 7)
    assert np.any(tested != np.asarray(to_uint8(bpp(tiny_spec).stamp({}, jax.random.key(0), to_float(jnp.asarray(pixels))))))

    images, labels = to_float(jnp.asarray(pixels)), jnp.arange(10, dtype=jnp.int32) % 3
    other = (to_float(jnp.asarray(donors)), labels)
    out, goals, _, _ = jax.jit(attack.batch)({}, jax.random.key(1), images, labels, jnp.float32(0.1), other)
    want = np.asarray(images).copy()
    want[0] = (levels[0] / 7).astype(np.float32)
    want[1:3] = np.clip(pixels[1:3].astype(int) + stored[:2] - donors[:2], 0, 255).astype(np.float32) / 255
    np.testing.assert_allclose(np.asarray(out), want, atol=1e-7)
    assert goals.tolist() == [3, *labels[1:].tolist()]


def test_dithering_keeps_the_mean_of_an_area_which_rounding_does_not(tiny_spec):
    grey = np.full((1, 16, 16, 3), 90, np.uint8)
    found = np.asarray(dithered(jnp.asarray(grey), 8)).astype(float)
    assert abs(found[:, :12, :12].mean() - 90) < 2 and len(np.unique(found)) == 2
