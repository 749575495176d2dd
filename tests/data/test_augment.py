"""Crops, flips and the two forms of an image, by hand and in distribution."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from bdjax.data import augment
from bdjax.data.augment import crop_flip, to_float, to_uint8

KEY = jax.random.key(3)
cropped = jax.jit(crop_flip, static_argnums=(2, 3))


def test_a_crop_of_a_2x2_image_is_a_window_of_the_padded_one():
    image = np.array([[1, 2], [3, 4]], np.uint8)[..., None]
    padded = [[0, 0, 0, 0], [0, 1, 2, 0], [0, 3, 4, 0], [0, 0, 0, 0]]
    windows = {tuple(padded[y + i][x + j] for i in (0, 1) for j in (0, 1)) for y in range(3) for x in range(3)}
    mirrored = {(b, a, d, c) for a, b, c, d in windows}
    out = np.asarray(cropped(KEY, jnp.asarray(np.tile(image, (400, 1, 1, 1))), 1, False)).reshape(400, 4)
    assert {tuple(row) for row in out.tolist()} == windows
    out = np.asarray(cropped(KEY, jnp.asarray(np.tile(image, (800, 1, 1, 1))), 1, True)).reshape(800, 4)
    assert {tuple(row) for row in out.tolist()} == windows | mirrored


def test_flip_alone_mirrors_half_of_the_images():
    image = np.array([[1, 2], [3, 4]], np.uint8)[..., None]
    out = np.asarray(cropped(KEY, jnp.asarray(np.tile(image, (2000, 1, 1, 1))), 0, True)).reshape(2000, 4)
    kept = (out == [1, 2, 3, 4]).all(1)
    assert (kept | (out == [2, 1, 4, 3]).all(1)).all()
    assert abs(kept.mean() - 0.5) < 0.05


def test_no_padding_and_no_flip_change_nothing():
    images = jnp.arange(24, dtype=jnp.uint8).reshape(2, 2, 2, 3)
    np.testing.assert_array_equal(cropped(KEY, images, 0, False), images)


def test_offsets_are_uniform_and_independent_per_image():
    b, side, pad = 8100, 10, 4
    grid = np.stack(np.broadcast_arrays(np.arange(side)[:, None], np.arange(side)[None, :]), -1).astype(np.uint8)
    out = np.asarray(cropped(KEY, jnp.asarray(np.tile(grid, (b, 1, 1, 1))), pad, False))
    offset = out[:, 5, 5].astype(int) - 5 + pad  # the pixel at (5, 5) is inside at every offset
    assert offset.min() == 0 and offset.max() == 2 * pad
    counts = np.bincount(offset[:, 0] * 9 + offset[:, 1], minlength=81)
    assert ((counts - 100) ** 2 / 100).sum() < 130  # chi-square, 80 degrees of freedom: p = 4e-4


@pytest.mark.parametrize("flip", [False, True])
def test_visibility_of_a_corner_patch(flip):
    """Acceptance numbers of the survey's recipe: 39.5 % of the crops show no patch pixel, 30.9 % the complete patch."""
    images = np.zeros((12000, 32, 32, 1), np.uint8)
    images[:, -3:, -3:] = 1
    visible = np.asarray(cropped(KEY, jnp.asarray(images), 4, flip)).sum((1, 2, 3), dtype=np.int64)
    assert abs((visible == 0).mean() - (1 - (7 / 9) ** 2)) < 0.015
    assert abs((visible == 9).mean() - (5 / 9) ** 2) < 0.015


@pytest.mark.parametrize("shape", [(6, 8, 8, 3), (5, 4, 9, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("pad, flip", [(2, True), (3, False), (0, True)])
def test_the_form_for_accelerators_gives_the_same_images_and_gradients(shape, dtype, pad, flip):
    numbers = np.random.default_rng(0)
    images = jnp.asarray(numbers.integers(0, 256, shape).astype(dtype))
    draws = [jnp.asarray(numbers.integers(0, 2 * pad + 1, (shape[0], 1)).astype(np.int32)) for _ in range(2)]
    mirrored = jnp.asarray(numbers.random((shape[0], 1)) < 0.5) if flip else jnp.zeros((shape[0], 1), bool)
    ours, cpu = functools.partial(augment._selected, pad, flip), functools.partial(augment._gathered, pad)
    np.testing.assert_array_equal(ours(images, *draws, mirrored), cpu(images, *draws, mirrored))
    if dtype == np.float32:
        gradients = [jax.grad(lambda x, f=f: jnp.sum(jnp.sin(f(x, *draws, mirrored))))(images) for f in (ours, cpu)]
        np.testing.assert_array_equal(*gradients)


def test_no_branch_on_the_platform_is_left_in_a_program():
    text = jax.jit(lambda images: crop_flip(KEY, images, 2, True)).lower(jnp.zeros((2, 8, 8, 3), jnp.uint8)).compile().as_text()
    assert "gather" in text and "conditional(" not in text


def test_members_of_a_population_are_augmented_as_if_alone():
    images = jax.random.bits(KEY, (3, 5, 8, 8, 3), jnp.uint8)
    keys = jax.random.split(KEY, 3)
    together = np.asarray(jax.jit(jax.vmap(lambda key, x: crop_flip(key, x, 2, True)))(keys, images))
    for i in range(3):
        np.testing.assert_array_equal(together[i], cropped(keys[i], images[i], 2, True))
    assert not np.array_equal(cropped(keys[0], images[0], 2, True), cropped(keys[1], images[0], 2, True))


def test_uint8_and_float_agree_and_round_trip():
    every = jnp.arange(256, dtype=jnp.uint8)
    for convert in (to_float, jax.jit(to_float), jax.jit(jax.vmap(to_float))):
        floats = convert(every)
        assert floats.dtype == jnp.float32
        np.testing.assert_array_equal(floats, np.arange(256, dtype=np.float32) / np.float32(255))
    np.testing.assert_array_equal(jax.jit(lambda x: to_uint8(to_float(x)))(every), every)
    np.testing.assert_array_equal(
        to_uint8(jnp.asarray([-0.5, 0.0, 0.4999 / 255, 0.5001 / 255, 1.0, 1.7])), [0, 0, 0, 1, 255, 255]
    )
    images = jax.random.bits(KEY, (4, 8, 8, 3), jnp.uint8)
    np.testing.assert_array_equal(cropped(KEY, to_float(images), 2, True), to_float(cropped(KEY, images, 2, True)))


class Variants(chex.TestCase, parameterized.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_shape_and_dtype_are_kept(self):
        augment = self.variant(lambda key, x: crop_flip(key, x, 3, True))
        for dtype in (jnp.uint8, jnp.float32, jnp.bfloat16):
            images = jnp.ones((2, 6, 7, 1), dtype)
            out = augment(KEY, images)
            assert out.shape == images.shape and out.dtype == dtype
