"""Bicubic fields and bilinear reading, against published values, NumPy and PyTorch."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.attacks.wanet.warp import bend, bicubic, ending_inside, enlarge


def by_hand(images, shift):
    """Bilinear reading on the grid [-1, 1], pixel by pixel in float64."""
    n, h, w, _ = images.shape
    out = np.zeros(images.shape)
    for i in range(n):
        for y in range(h):
            for x in range(w):
                dx, dy = shift[i % len(shift), :, y, x].astype(np.float64)
                gx = np.clip(-1 + 2 * (x + dx) / (w - 1), -1, 1)
                gy = np.clip(-1 + 2 * (y + dy) / (h - 1), -1, 1)
                px, py = (gx + 1) * (w - 1) / 2, (gy + 1) * (h - 1) / 2
                for qy in range(h):
                    for qx in range(w):
                        weight = max(0, 1 - abs(px - qx)) * max(0, 1 - abs(py - qy))
                        out[i, y, x] += weight * images[i, qy, qx]
    return out


def test_published_values_of_the_field():
    a = jnp.linspace(-1, 1, 16, dtype=jnp.float32).reshape(1, 4, 4)
    u = np.asarray(enlarge(a, 32, 32))[0]
    np.testing.assert_allclose(u[0, :4], [-1, -0.990292, -0.980404, -0.970152], atol=1e-6)
    np.testing.assert_allclose([u[5, 7], u[16, 16], u[31, 31]], [-0.713243, 0.024269, 1], atol=1e-6)


def test_constant_maps_stay_constant_and_corners_stay_in_place():
    np.testing.assert_allclose(bicubic(17, 5).sum(1), 1, atol=1e-12)
    a = jax.random.normal(jax.random.key(0), (2, 4, 3), jnp.float32)
    u = np.asarray(enlarge(a, 9, 12))
    assert u.shape == (2, 9, 12)
    np.testing.assert_allclose(u[:, [0, 0, -1, -1], [0, -1, 0, -1]], np.asarray(a)[:, [0, 0, -1, -1], [0, -1, 0, -1]], atol=1e-6)


@pytest.mark.torch
def test_enlargement_is_that_of_pytorch():
    torch = pytest.importorskip("torch")
    a = np.random.default_rng(0).uniform(-1, 1, (2, 4, 4)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(torch.tensor(a)[None], size=(16, 20), mode="bicubic", align_corners=True)[0]
    np.testing.assert_allclose(np.asarray(enlarge(jnp.asarray(a), 16, 20)), theirs.numpy(), atol=2e-6)


@pytest.mark.torch
def test_bending_is_that_of_pytorch():
    torch = pytest.importorskip("torch")
    g = np.random.default_rng(1)
    images, shift = g.uniform(size=(3, 8, 6, 3)).astype(np.float32), g.uniform(-2, 2, (3, 2, 8, 6)).astype(np.float32)
    x = -1 + 2 * (np.arange(6) + shift[:, 0]) / 5
    y = -1 + 2 * (np.arange(8)[:, None] + shift[:, 1]) / 7
    grid = torch.tensor(np.clip(np.stack([x, y], -1), -1, 1), dtype=torch.float32)
    theirs = torch.nn.functional.grid_sample(torch.tensor(images).permute(0, 3, 1, 2), grid, align_corners=True)
    ours = np.asarray(bend(jnp.asarray(images), jnp.asarray(shift)))
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1).numpy(), atol=1e-5)


@pytest.mark.parametrize("fields", [1, 2])
def test_bending_by_hand(fields):
    g = np.random.default_rng(2)
    images, shift = g.uniform(size=(2, 4, 6, 2)).astype(np.float32), g.uniform(-1.5, 1.5, (fields, 2, 4, 6)).astype(np.float32)
    for run in (bend, jax.jit(bend)) if fields == 1 else (jax.jit(bend),):
        out = run(jnp.asarray(images), jnp.asarray(shift))
        chex.assert_type(out, jnp.float32)
        np.testing.assert_allclose(np.asarray(out), by_hand(images, shift), atol=2e-6)


def test_a_displacement_that_ends_inside_stops_at_the_border_of_its_axis():
    shift = np.zeros((1, 2, 2, 4), np.float32)
    shift[0, 0], shift[0, 1] = [[-1, -2, 0.25, 0.5], [9, 9, 9, -9]], [[-1, 0.5, 3, 0], [1, -0.5, -3, 0]]
    found = np.asarray(ending_inside(jnp.asarray(shift)))
    np.testing.assert_array_equal(found[0, 0], [[0, -1, 0.25, 0], [3, 2, 1, -3]])  # columns 0 to 3
    np.testing.assert_array_equal(found[0, 1], [[0, 0.5, 1, 0], [0, -0.5, -1, 0]])  # rows 0 and 1


def test_whole_pixels_and_the_border():
    image = jnp.asarray(np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1))
    run = jax.jit(bend)
    right, down = np.zeros((1, 2, 4, 4), np.float32), np.zeros((1, 2, 4, 4), np.float32)
    right[:, 0], down[:, 1] = 1, -9
    np.testing.assert_array_equal(np.asarray(run(image, jnp.zeros((1, 2, 4, 4), jnp.float32))), np.asarray(image))
    np.testing.assert_array_equal(np.asarray(run(image, jnp.asarray(right)))[0, 0, :, 0], [1, 2, 3, 3])
    np.testing.assert_array_equal(np.asarray(run(image, jnp.asarray(down)))[0, :, 2, 0], [2, 2, 2, 2])
