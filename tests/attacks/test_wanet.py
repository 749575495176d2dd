"""WaNet's field, its places in a batch, its cross images and its test images, against NumPy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.attacks.wanet.wanet import draw_field, wanet
from bdjax.attacks.wanet.warp import bicubic
from bdjax.data.augment import to_float, to_uint8
from bdjax.errors import UserError

KEY, SIDE, BATCH = jax.random.key(7), 16, 128


@pytest.fixture(scope="module")
def spec():
    from bdjax.types import DataSpec

    return DataSpec("small", (SIDE, SIDE, 3), 4, (0.5, 0.4, 0.3), (0.25, 0.25, 0.25), True, 2)


@pytest.fixture(scope="module")
def rows():
    g = np.random.default_rng(0)
    pixels = g.integers(0, 256, (BATCH, SIDE, SIDE, 3), dtype=np.uint8)
    return to_float(jnp.asarray(pixels)), jnp.asarray(g.integers(0, 4, BATCH), jnp.int32)


def warp_grid(field, strength, noise=None):
    """The published formulas, float64 [2 h w]: clip(identity + s U / size) and, with noise, clip(that + noise / size)."""
    h, w = field.shape[1:]
    size = np.array([w, h])[:, None, None]
    identity = np.stack(np.meshgrid(-1 + 2 * np.arange(w) / (w - 1), -1 + 2 * np.arange(h) / (h - 1)))
    grid = np.clip(identity + strength * field.astype(np.float64) / size, -1, 1)
    return grid if noise is None else np.clip(grid + noise.astype(np.float64) / size, -1, 1)


def read_by_hand(images, grid):
    """Images f64[n h w c] read at a grid in [-1, 1]; the four neighbours by explicit indices."""
    h, w = grid.shape[1:]
    x, y = (grid[0] + 1) * (w - 1) / 2, (grid[1] + 1) * (h - 1) / 2
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    x1, y1 = np.minimum(x0 + 1, w - 1), np.minimum(y0 + 1, h - 1)
    a, b = (x - x0)[None, :, :, None], (y - y0)[None, :, :, None]
    images = np.asarray(images, np.float64)
    top = (1 - a) * images[:, y0, x0] + a * images[:, y0, x1]
    return (1 - b) * top + b * ((1 - a) * images[:, y1, x0] + a * images[:, y1, x1])


def bent_by_hand(images, field, strength):
    return read_by_hand(images, warp_grid(field, strength))


def cross_noise(key, cross, height, width):
    """The draws of the cross images, as the attack makes them: f32[cross 2 h w] on ±1."""
    _, noise_key, _ = jax.random.split(key, 3)
    return np.asarray(jax.random.uniform(noise_key, (cross, 2, height, width), jnp.float32, -1, 1))


def test_field_is_the_enlarged_normalised_noise():
    field = np.asarray(draw_field(KEY, 4, 32, 32))
    assert field.shape == (2, 32, 32) and field.dtype == np.float32
    inverse = np.linalg.pinv(bicubic(32, 4))
    coarse = inverse @ field.astype(np.float64) @ inverse.T
    np.testing.assert_allclose(bicubic(32, 4) @ coarse @ bicubic(32, 4).T, field, atol=1e-5)
    assert abs(np.abs(coarse).mean() - 1) < 1e-5


def test_typical_displacements_at_32_pixels():
    fields = jax.jit(jax.vmap(lambda key: draw_field(key, 4, 32, 32)))(jax.random.split(KEY, 200))
    moved = np.abs(np.asarray(fields)) * 0.5 * 31 / 64  # pixels per axis
    assert abs(moved.mean() - 0.19) < 0.01
    largest = moved.max((1, 2, 3))
    assert 0.45 < np.median(largest) < 0.55 and largest.max() < 0.9


def test_test_images_are_bent_and_rounded_down(spec, rows):
    attack = wanet(spec)
    trigger = attack.init(KEY, None)
    images = rows[0][:6]
    exact = 255 * bent_by_hand(images, np.asarray(trigger["field"]), 0.5)
    out = np.asarray(to_uint8(jax.jit(attack.stamp)(trigger, KEY, images)))
    assert np.all((out <= exact + 2e-3) & (out > exact - 1))
    assert np.mean(out != np.asarray(to_uint8(images))) > 0.5
    flat = to_float(jnp.broadcast_to(jnp.arange(256, dtype=jnp.uint8)[:, None, None, None], (256, SIDE, SIDE, 3)))
    np.testing.assert_array_equal(np.asarray(jax.jit(attack.stamp)(trigger, KEY, flat)), np.asarray(flat))  # no level is lost


def test_places_of_all_ratios_in_one_program(spec, rows):
    images, labels = rows
    attack = wanet(spec, {"augment": "none", "target": 3})
    trigger = attack.init(KEY, None)
    chex.clear_trace_counter()
    run = jax.jit(chex.assert_max_traces(attack.batch, n=1))
    bent = bent_by_hand(images, np.asarray(trigger["field"]), 0.5)
    crossed = []
    for ratio, n in [(0.0, 0), (0.01, 1), (0.05, 6), (0.1, 12)]:
        out, goals, loss, after = run(trigger, jax.random.key(1), images, labels, jnp.float32(ratio), None)
        chex.assert_trees_all_equal_shapes_and_dtypes((out, goals), (images, labels))
        assert float(loss) == 0 and after is not trigger and np.array_equal(after["field"], trigger["field"])
        expected = np.asarray(images).copy()
        expected[:n] = bent[:n]
        moved = np.any(np.asarray(out) != np.asarray(images), (1, 2, 3))
        assert np.flatnonzero(moved).tolist() == [*range(n), *range(12, 12 + 2 * n)]
        np.testing.assert_allclose(np.asarray(out)[:12], expected[:12], atol=2e-6)
        np.testing.assert_array_equal(np.asarray(out)[36:], expected[36:])
        crossed.append(np.asarray(out)[12:36])
        assert np.asarray(goals).tolist() == [3] * n + np.asarray(labels)[n:].tolist()
    for few, n in [(1, 1), (2, 6)]:
        np.testing.assert_array_equal(crossed[few][: 2 * n], crossed[3][: 2 * n])  # ratios share their draws


@pytest.mark.parametrize("strength", [0.5, 6.0])
def test_cross_images_are_bent_by_the_field_and_the_noise(spec, strength):
    """Against the published formulas in float64, on images that are no squares; positions end at the border twice."""
    height, width = 10, 14
    attack = wanet(spec._replace(image_shape=(height, width, 3)), {"augment": "none", "strength": strength})
    trigger, key = attack.init(KEY, None), jax.random.key(5)
    images = jnp.asarray(np.random.default_rng(1).uniform(size=(40, height, width, 3)), jnp.float32)
    out, goals, _, _ = jax.jit(attack.batch)(trigger, key, images, jnp.arange(40, dtype=jnp.int32) % 4, jnp.float32(0.1), None)
    field, noise = np.asarray(trigger["field"]), cross_noise(key, 8, height, width)
    grids = [warp_grid(field, strength, e) for e in noise]  # four places for triggered images, eight for cross images
    expected = np.concatenate([read_by_hand(images[4 + i : 5 + i], grid) for i, grid in enumerate(grids)])
    np.testing.assert_allclose(np.asarray(out)[4:12], expected, atol=2e-6 * max(1, strength))
    np.testing.assert_array_equal(np.asarray(out)[12:], np.asarray(images)[12:])
    assert np.asarray(goals)[4:].tolist() == [i % 4 for i in range(4, 40)]  # they keep their labels
    # What it must not be: noise alone, or positions that end at the border once, after both displacements.
    size = np.array([width, height])[:, None, None]
    once = [np.clip(warp_grid(0 * field, 0) + (strength * field + e) / size, -1, 1) for e in noise]
    alone = [warp_grid(0 * field, 0, e) for e in noise]
    assert np.abs(np.stack(grids) - alone).max() > 0.01 and (np.abs(np.stack(grids) - once).max() > 0.01)


def shift_of_ramps(out, side):
    """Displacements f[n 2 h w] in pixels of images that were ramps, whose bilinear values are positions."""
    y, x = np.mgrid[:side, :side]
    return np.stack([out[..., 0] * (side - 1) - x, out[..., 1] * (side - 1) - y], 1)


def test_cross_images_at_32_pixels_follow_the_field_and_spread_as_published(spec):
    """The mean shift of a batch's cross images is the field; their shifts spread by .344 pixels, by noise alone .280."""
    side = 32
    attack = wanet(spec._replace(image_shape=(side, side, 3)), {"augment": "none"})
    y, x = np.mgrid[:side, :side] / (side - 1)
    ramps = jnp.broadcast_to(jnp.asarray(np.stack([x, y, 0 * x], -1), jnp.float32)[None], (BATCH, side, side, 3))
    labels = jnp.zeros(BATCH, jnp.int32)

    @jax.jit
    @jax.vmap
    def run(key):
        trigger = attack.init(key, None)
        return trigger["field"], attack.batch(trigger, key, ramps, labels, jnp.float32(0.1), None)[0][12:36]

    fields, images = (np.asarray(x, np.float64) for x in run(jax.random.split(KEY, 8)))
    spread, noise = [], []
    for field, out in zip(fields, images, strict=True):
        shift, bent = shift_of_ramps(out, side), (warp_grid(field, 0.5) - warp_grid(field, 0)) * (side - 1) / 2
        assert np.corrcoef(shift.mean(0).ravel(), bent.ravel())[0, 1] > 0.9
        spread.append(shift.std())
        noise.append((shift - bent)[..., 1:-1, 1:-1].std())  # nothing is cut inside the border
        # Fresh per image, per pixel and per axis: what is left behind the field is no pattern.
        rest = (shift - bent)[:, :, 1:-1, 1:-1]
        assert abs(np.corrcoef(rest[0].ravel(), rest[1].ravel())[0, 1]) < 0.1
        assert abs(np.corrcoef(rest[:, 0].ravel(), rest[:, 1].ravel())[0, 1]) < 0.05
    assert abs(np.mean(spread) - 0.344) < 0.015 and abs(np.mean(noise) - 0.280) < 0.003


def test_cross_images_are_fresh_in_every_batch(spec, rows):
    attack = wanet(spec, {"augment": "none"})
    trigger, run = attack.init(KEY, None), jax.jit(attack.batch)
    first, again = (np.asarray(run(trigger, jax.random.key(k), *rows, jnp.float32(0.1), None)[0]) for k in (2, 3))
    assert np.all(np.any(first[12:36] != again[12:36], (1, 2, 3)))
    np.testing.assert_array_equal(first[:12], again[:12])  # the trigger is the field, and draws nothing


@pytest.mark.parametrize("augment", ["batch", "none"])
def test_a_member_is_the_same_alone_and_in_company(tiny_spec, augment):
    attack = wanet(tiny_spec, {"augment": augment})
    g = np.random.default_rng(1)
    images = jnp.asarray(g.uniform(size=(2, 32, 8, 8, 3)), jnp.float32)
    labels = jnp.asarray(g.integers(0, 4, (2, 32)), jnp.int32)
    keys, ratios = jax.random.split(KEY), jnp.array([0.1, 0.0], jnp.float32)

    def run(key, images, labels, ratio):
        return attack.batch(attack.init(key, None), key, images, labels, ratio, None)

    together = jax.jit(jax.vmap(run))(keys, images, labels, ratios)
    alone = run if augment == "none" else jax.jit(run)  # uncompiled too
    for i in range(2):
        one = alone(keys[i], images[i], labels[i], ratios[i])
        chex.assert_trees_all_close(jax.tree.map(lambda leaf, i=i: leaf[i], together), one, atol=1e-6)


def test_all_to_all_and_no_cross_images(tiny_spec):
    attack = wanet(tiny_spec, {"labels": "all_to_all", "cross_ratio": 0, "augment": "none"})
    images, labels = jnp.full((20, 8, 8, 3), 0.5, jnp.float32), jnp.arange(20, dtype=jnp.int32) % 4
    _, goals, _, _ = jax.jit(attack.batch)(attack.init(KEY, None), KEY, images, labels, jnp.float32(0.1), None)
    assert np.asarray(goals).tolist() == [1, 2, *np.asarray(labels)[2:].tolist()]


def test_mistakes_are_named(tiny_spec):
    with pytest.raises(UserError, match=r"wanet.max_ratio 0.5 is too large for batches of 32: it needs 16 .* and 32"):
        attack = wanet(tiny_spec, {"max_ratio": 0.5})
        jax.eval_shape(attack.batch, attack.init(KEY, None), KEY, *(jnp.zeros(s, d) for s, d in SHAPES), jnp.float32(0.1), None)
    for field, value in [("grid", 1), ("cross_ratio", -1), ("strength", -0.5)]:
        with pytest.raises(UserError, match=f"wanet.{field} must be at least"):
            wanet(tiny_spec, {field: value})
    with pytest.raises(UserError, match=r"unknown wanet\.augment 'batches'.*'batch'"):
        wanet(tiny_spec, {"augment": "batches"})
    with pytest.raises(UserError, match="at least 2x2 pixels; tiny has 1x8"):
        wanet(tiny_spec._replace(image_shape=(1, 8, 3)))


SHAPES = [((32, 8, 8, 3), jnp.float32), ((32,), jnp.int32)]
