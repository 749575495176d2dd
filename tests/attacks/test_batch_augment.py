"""Crop, rotation and flip of a whole batch, step by step in NumPy and in distribution."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.attacks.batch_augment import Moves, batch_augment, border, draw, move
from bdjax.errors import UserError

KEY = jax.random.key(4)
FILL = (0.5, 0.25, 0.125)


def images_of(b, h, w):
    return np.random.default_rng(0).uniform(size=(b, h, w, 3)).astype(np.float32)


def moved_by_hand(image, pad, down, right, angle, flip):
    """The three steps one after the other, float64."""
    h, w, _ = image.shape
    padded = np.empty((h + 2 * pad, w + 2 * pad, 3))
    padded[:] = FILL
    padded[pad : pad + h, pad : pad + w] = image
    cropped = padded[pad + down : pad + down + h, pad + right : pad + right + w]
    rotated = np.empty((h, w, 3))
    rotated[:] = FILL
    cy, cx = (h - 1) / 2, (w - 1) / 2
    for y in range(h):
        for x in range(w):
            u, v = x - cx, y - cy
            sy = int(np.rint(math.sin(angle) * u + math.cos(angle) * v + cy))
            sx = int(np.rint(math.cos(angle) * u - math.sin(angle) * v + cx))
            if 0 <= sy < h and 0 <= sx < w:
                rotated[y, x] = cropped[sy, sx]
    return rotated[:, ::-1] if flip else rotated


@pytest.mark.parametrize("compiled", [False, True])
def test_moves_by_hand(compiled):
    cases = [(0, 0, 0.0, False), (-5, 5, 0.0, True), (3, -2, 0.17, False), (-4, 1, -0.11, True), (0, 0, 0.05, False)]
    down, right, angle, flip = zip(*cases, strict=True)
    moves = Moves(jnp.array(down, jnp.int32), jnp.array(right, jnp.int32), jnp.array(angle, jnp.float32), jnp.array(flip, bool))
    images = images_of(5, 9, 12)
    run = jax.jit(move, static_argnums=2) if compiled else move
    out = np.asarray(run(jnp.asarray(images), moves, FILL))
    for i, case in enumerate(cases):
        np.testing.assert_array_equal(out[i], moved_by_hand(images[i], 5, *case).astype(np.float32), err_msg=str(case))


def test_one_move_serves_the_whole_batch():
    images = images_of(4, 32, 32)
    one = Moves(jnp.array([2], jnp.int32), jnp.array([-1], jnp.int32), jnp.array([0.1], jnp.float32), jnp.array([True]))
    out = np.asarray(jax.jit(move, static_argnums=2)(jnp.asarray(images), one, FILL))
    for i in range(4):
        np.testing.assert_array_equal(out[i], moved_by_hand(images[i], 2, 2, -1, 0.1, True).astype(np.float32))


def test_what_comes_from_outside_is_zero_once_normalised(tiny_spec):
    spec = tiny_spec._replace(mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.243, 0.261), image_shape=(16, 16, 3))
    away = Moves(jnp.array([16], jnp.int32), jnp.array([0], jnp.int32), jnp.array([0.0], jnp.float32), jnp.array([False]))
    out = np.asarray(jax.jit(move, static_argnums=2)(jnp.ones((1, 16, 16, 3), jnp.float32), away, spec.mean))
    assert np.all((out - np.float32(spec.mean)) / np.float32(spec.std) == 0)


def test_draws_follow_the_recipe():
    n = 40_000
    moves = jax.tree.map(np.asarray, jax.jit(draw, static_argnums=(1, 2, 3))(KEY, n, 5, True))
    still = (moves.down == 0) & (moves.right == 0)
    assert abs(still.mean() - (0.2 + 0.8 / 121)) < 0.01
    for offset in (moves.down, moves.right):
        assert offset.min() == -5 and offset.max() == 5
        counts = np.bincount(offset[~still] + 5, minlength=11) / n
        assert np.all(np.abs(np.delete(counts, 5) - 0.8 / 11) < 0.006)
    assert abs(np.corrcoef(moves.down, moves.right)[0, 1]) < 0.03
    turned = moves.angle[moves.angle != 0]
    assert abs(len(turned) / n - 0.5) < 0.01
    assert abs(turned.mean()) < 0.003 and np.abs(turned).max() <= math.radians(10) + 1e-6
    np.testing.assert_allclose(np.quantile(np.abs(turned), [0.25, 0.5, 0.75]), np.radians([2.5, 5, 7.5]), atol=0.004)
    assert abs(moves.flip.mean() - 0.5) < 0.01


def test_border_shrinks_with_small_images():
    assert [border(side, side) for side in (64, 32, 16, 8)] == [5, 5, 2, 1]
    assert border(8, 64) == 1


@pytest.mark.parametrize("how", ["batch", "sample", "none"])
def test_draws_per_batch_and_per_image(tiny_spec, how):
    spec = tiny_spec._replace(flip=True, image_shape=(16, 16, 3))
    one = images_of(1, 16, 16)
    images = jnp.asarray(np.repeat(one, 40, 0))
    kinds = []
    run = jax.jit(lambda key, images: batch_augment(key, images, spec, how))
    for seed in range(8):
        out = np.asarray(run(jax.random.key(seed), images))
        assert out.shape == images.shape and out.dtype == np.float32
        kinds.append({row.tobytes() for row in out})
    if how == "none":
        assert all(kind == {one.tobytes()} for kind in kinds)
    elif how == "batch":
        assert all(len(kind) == 1 for kind in kinds) and len(set.union(*kinds)) > 4
    else:
        assert all(len(kind) > 20 for kind in kinds)


def test_members_are_augmented_as_if_alone(tiny_spec):
    keys, images = jax.random.split(KEY, 3), jnp.asarray(images_of(15, 8, 8).reshape(3, 5, 8, 8, 3))
    run = jax.jit(lambda k, x: batch_augment(k, x, tiny_spec))
    together = jax.jit(jax.vmap(run))(keys, images)
    for i in range(3):
        np.testing.assert_array_equal(together[i], run(keys[i], images[i]))


def test_unknown_way_is_named(tiny_spec):
    with pytest.raises(UserError, match=r"unknown augment 'smaple'.*'sample'"):
        batch_augment(KEY, jnp.zeros((1, 8, 8, 3), jnp.float32), tiny_spec, "smaple")
