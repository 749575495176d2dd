"""Bpp's levels, its places in a batch and its residuals, against whole-number arithmetic."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.attacks.bpp.bpp import bpp, quantised
from bdjax.data.augment import to_float
from bdjax.errors import UserError

KEY, BATCH = jax.random.key(7), 128
STORED = [0, 36, 72, 109, 145, 182, 218, 255]
LARGEST = [18, 54, 91, 127, 163, 200, 236, 255]  # the largest value of each level


@pytest.fixture(scope="module")
def rows():
    g = np.random.default_rng(0)
    pixels = g.integers(0, 256, (2, BATCH, 8, 8, 3), dtype=np.uint8)
    return pixels, jnp.asarray(g.integers(0, 4, BATCH), jnp.int32)


def level(v):
    return np.searchsorted(LARGEST, v)


def test_published_thresholds_and_levels():
    fine, stored = quantised(8)
    np.testing.assert_array_equal(stored, np.array(STORED, np.uint8)[level(np.arange(256))])
    np.testing.assert_allclose(np.unique(fine) * 255, [0, 36.43, 72.86, 109.29, 145.71, 182.14, 218.57, 255], atol=0.006)
    np.testing.assert_array_equal(fine, (level(np.arange(256)) / 7).astype(np.float32))


@pytest.mark.parametrize("levels", [2, 3, 5, 16, 256])
def test_other_numbers_of_levels(levels):
    fine, stored = quantised(levels)
    k = np.rint(np.arange(256) / 255 * (levels - 1))  # no ties: see the docstring
    np.testing.assert_allclose(fine, k / (levels - 1), atol=1e-7)
    np.testing.assert_array_equal(stored, np.floor(k * 255 / (levels - 1) + 1e-9))
    assert len(np.unique(stored)) == levels


@pytest.mark.parametrize("compiled", [False, True])
def test_test_images_are_exact_for_every_value(tiny_spec, compiled):
    attack = bpp(tiny_spec)
    pixels = np.arange(768, dtype=np.uint16).astype(np.uint8).reshape(4, 8, 8, 3)
    stamp = jax.jit(attack.stamp) if compiled else attack.stamp
    out = stamp({}, KEY, to_float(jnp.asarray(pixels)))
    expected = np.array(STORED, np.uint8)[level(pixels)]
    np.testing.assert_array_equal(np.asarray(out), np.asarray(to_float(jnp.asarray(expected))))


def test_places_of_all_ratios_in_one_program(tiny_spec, rows):
    (pixels, donors), labels = rows
    attack = bpp(tiny_spec, {"augment": "none", "target": 3})
    images, other = to_float(jnp.asarray(pixels)), (to_float(jnp.asarray(donors)), labels)
    chex.clear_trace_counter()
    run = jax.jit(chex.assert_max_traces(attack.batch, n=1))
    residual = np.array(STORED)[level(donors[:12])] - donors[:12].astype(int)
    for ratio, n in [(0.0, 0), (0.01, 1), (0.05, 6), (0.1, 12)]:
        out, goals, loss, trigger = run({}, jax.random.key(1), images, labels, jnp.float32(ratio), other)
        chex.assert_trees_all_equal_shapes_and_dtypes((out, goals), (images, labels))
        assert float(loss) == 0 and trigger == {}
        expected = np.asarray(images).copy()
        expected[:n] = (level(pixels[:n]) / 7).astype(np.float32)
        if n:
            shifted = np.clip(pixels[12:24].astype(int) + residual, 0, 255)
            expected[12:24] = np.asarray(to_float(jnp.asarray(shifted, jnp.uint8)))
        np.testing.assert_array_equal(np.asarray(out), expected)
        assert np.asarray(goals).tolist() == [3] * n + np.asarray(labels)[n:].tolist()


@pytest.fixture(scope="module")
def alone(tiny_spec, rows):
    """(a function of one member's batch, what it takes for two members)"""
    attack = bpp(tiny_spec)
    images, other = to_float(jnp.asarray(rows[0])).reshape(8, 32, 8, 8, 3)[:4].reshape(2, 2, 32, 8, 8, 3)
    labels, keys, ratios = rows[1].reshape(4, 32)[:2], jax.random.split(KEY), jnp.array([0.1, 0.0], jnp.float32)

    def run(key, images, labels, ratio, other):
        return attack.batch({}, key, images, labels, ratio, (other, labels))

    return run, (keys, *(np.asarray(one) for one in (images, labels, ratios, other)))


def test_a_member_is_the_same_alone_and_in_company(alone):
    run, given = alone
    together, one = jax.device_get(jax.jit(jax.vmap(run))(*given)), jax.jit(run)
    for i in range(2):
        mine = jax.tree.map(lambda leaf, i=i: leaf[i], together)
        chex.assert_trees_all_equal(mine, jax.device_get(one(*(part[i] for part in given))))


@pytest.mark.slow  # every operation is a program of its own
def test_a_member_is_the_same_uncompiled(alone):
    run, given = alone
    first = [jnp.asarray(part[0]) for part in given]
    chex.assert_trees_all_equal(run(*first), jax.jit(run)(*first))


def test_one_augmentation_moves_triggered_and_clean_images_alike(tiny_spec):
    """Constant images keep their colour wherever they lie, and what comes from outside has the mean colour."""
    attack = bpp(tiny_spec._replace(image_shape=(16, 16, 3)))
    value = 100  # level 3: 109.29 of 255; the mean colour is 0.5
    images = to_float(jnp.full((32, 16, 16, 3), value, jnp.uint8))
    labels, run = jnp.zeros(32, jnp.int32), jax.jit(attack.batch)
    moved = set()
    for seed in range(6):
        out = np.asarray(run({}, jax.random.key(seed), images, labels, jnp.float32(0.1), (images, labels))[0])
        outside = out == 0.5
        assert np.all(outside == outside[:1, :, :, :1])
        np.testing.assert_array_equal(out[:3][~outside[:3]], np.float32(3 / 7))
        np.testing.assert_array_equal(np.floor(255 * out[3:6][~outside[3:6]] + 0.5), 109)
        np.testing.assert_array_equal(np.floor(255 * out[6:][~outside[6:]] + 0.5), value)
        moved.add(outside[0].tobytes())
    assert len(moved) > 3


def test_negatives_can_be_switched_off(tiny_spec, rows):
    attack = bpp(tiny_spec, {"neg_ratio": 0.0, "augment": "none"})
    assert not attack.recipe.second_batch and bpp(tiny_spec).recipe.second_batch
    images = to_float(jnp.asarray(rows[0][0]))
    out = jax.jit(attack.batch)({}, KEY, images, rows[1], jnp.float32(0.1), None)[0]
    np.testing.assert_array_equal(np.asarray(out)[12:], np.asarray(images)[12:])


def test_mistakes_are_named(tiny_spec):
    attack = bpp(tiny_spec, {"max_ratio": 0.8, "neg_ratio": 0.5})
    images, labels = jnp.zeros((10, 8, 8, 3), jnp.float32), jnp.zeros(10, jnp.int32)
    with pytest.raises(UserError, match=r"bpp.max_ratio 0.8 and bpp.neg_ratio 0.5 .* batches of 10: they need 8 .* and 5"):
        jax.eval_shape(attack.batch, {}, KEY, images, labels, jnp.float32(0.1), (images, labels))
    for levels in (1, 257):
        with pytest.raises(UserError, match=f"bpp.levels must lie in 2 … 256; given {levels}"):
            bpp(tiny_spec, {"levels": levels})
    with pytest.raises(UserError, match=r"bpp.neg_ratio must lie in \[0, 1\); given 1.0"):
        bpp(tiny_spec, {"neg_ratio": 1.0})
    with pytest.raises(UserError, match=r"unknown bpp\.augment 'one'"):
        bpp(tiny_spec, {"augment": "one"})
