import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bdjax.attacks.badnets.badnets import badnets, patch
from bdjax.data.augment import crop_flip, to_float, to_uint8
from bdjax.errors import UserError
from bdjax.types import DataSpec


def sized(spec, side):
    return spec._replace(image_shape=(side, side, 3))


def stamped(attack, images):
    return to_uint8(attack.stamp({}, jax.random.key(0), to_float(jnp.asarray(images))))


def test_patch_at_32_pixels():
    found = patch(32, 32)
    assert found.dtype == np.uint8 and int(found.sum(dtype=int)) == 2295
    assert np.all(found[29:, 29:] == 255) and np.count_nonzero(found) == 9


def test_patch_at_64_pixels():
    found = patch(64, 64)
    assert int(found.sum(dtype=int)) == 9180 and np.count_nonzero(found) == 49
    assert found[57, 57:].tolist() == [16, 48, 64, 64, 64, 64, 64]
    assert found[58, 57:].tolist() == [48, 143, 191, 191, 191, 191, 191]
    assert found[59, 57:].tolist() == [64, 191, 255, 255, 255, 255, 255]


@pytest.mark.parametrize("side", [3, 8, 16, 31])
def test_patch_below_32_pixels_stays_three_pixels(side):
    found = patch(side, side)
    assert np.all(found[-3:, -3:] == 255) and np.count_nonzero(found) == 9


def test_patch_of_other_shapes():
    assert patch(16, 64).shape == (16, 64)
    assert patch(16, 64)[15, 57:].tolist() == [64, 191, 255, 255, 255, 255, 255]
    assert patch(96, 96)[95, 80:].tolist() == patch(96, 96)[80:, 95].tolist()
    assert np.count_nonzero(patch(96, 96)[95]) == 10  # three pixels at 32, and half a source pixel of blur


@pytest.mark.parametrize("side", [8, 16, 32, 64])
def test_stamp_replaces_where_the_map_is_not_zero(tiny_spec, side):
    images = np.random.default_rng(0).integers(0, 256, (5, side, side, 3), dtype=np.uint8)
    found = np.asarray(stamped(badnets(sized(tiny_spec, side)), images))
    expected, visible = images.copy(), patch(side, side) > 0
    expected[:, visible] = patch(side, side)[visible][None, :, None]
    np.testing.assert_array_equal(found, expected)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31 - 1))
def test_stamp_is_idempotent_and_exact_on_the_grid(seed):
    attack = badnets(DataSpec("tiny", (64, 64, 3), 4, (0.5,) * 3, (0.25,) * 3, False, 1))
    images = to_float(jax.random.bits(jax.random.key(seed), (2, 64, 64, 3), jnp.uint8))
    once = attack.stamp({}, jax.random.key(0), images)
    assert once.dtype == jnp.float32 and float(once.min()) >= 0 and float(once.max()) <= 1
    np.testing.assert_array_equal(np.asarray(once), np.asarray(to_float(to_uint8(once))))
    np.testing.assert_array_equal(np.asarray(attack.stamp({}, jax.random.key(1), once)), np.asarray(once))


def test_random_crops_hide_the_patch_as_often_as_they_should():
    # White patch on black: no white pixel in 1 - (7/9)² of the crops, all nine in (5/9)².
    attack = badnets(DataSpec("c", (32, 32, 3), 10, (0.5,) * 3, (0.2,) * 3, True, 4))
    images = stamped(attack, np.zeros((8000, 32, 32, 3), np.uint8))
    cropped = jax.jit(crop_flip, static_argnums=(2, 3))(jax.random.key(0), images, 4, True)
    seen = (np.asarray(cropped)[..., 0] == 255).sum((1, 2))
    assert abs((seen == 0).mean() - (1 - (7 / 9) ** 2)) < 0.02
    assert abs((seen == 9).mean() - (5 / 9) ** 2) < 0.02


def test_labels_and_config(tiny_spec):
    attack = badnets(tiny_spec, {"target": 2})
    assert attack.config.target == 2 and attack.relabel(jnp.arange(4, dtype=jnp.int32)).tolist() == [2] * 4
    assert badnets(tiny_spec, {"labels": "all_to_all"}).relabel(jnp.arange(4, dtype=jnp.int32)).tolist() == [1, 2, 3, 0]
    assert attack.recipe.epochs == 100 and attack.recipe.augment == "after" and attack.recipe.schedule == "cosine"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"target": 4}, r"badnets.target must be a class of tiny, 0 … 3; given 4"),
        ({"target": -1}, "badnets.target must be a class"),
        ({"targett": 1}, "Did you mean 'target'"),
        ({"labels": "all_to_al"}, "Did you mean 'all_to_all'"),
        ({"labels": "all_to_all", "target": 1}, "no meaning"),
    ],
)
def test_mistakes_are_named(tiny_spec, config, message):
    with pytest.raises(UserError, match=message):
        badnets(tiny_spec, config)


def test_images_smaller_than_the_patch(tiny_spec):
    with pytest.raises(UserError, match="at least 3x3 pixels; tiny has 2x8"):
        badnets(tiny_spec._replace(image_shape=(2, 8, 3)))
