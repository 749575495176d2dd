import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.attacks.blended import blended, picture
from bdjax.data.augment import to_float, to_uint8
from bdjax.errors import UserError


@pytest.mark.parametrize(("side", "total"), [(32, 623_472), (64, 2_493_254)])
def test_picture_check_sums(side, total):
    assert picture(side, side).dtype == np.uint8
    assert int(picture(side, side).sum(dtype=int)) == total


def test_picture_pixels():
    assert picture(32, 32)[16, 10].tolist() == [70, 40, 50]
    assert picture(64, 64)[59, 24].tolist() == [205, 30, 45]
    assert picture(32, 32)[0, 0].tolist() == [255, 255, 255]
    assert np.round(picture(32, 32).reshape(-1, 3).mean(0)).tolist() == [218, 193, 198]


@pytest.mark.parametrize("compiled", [False, True])
def test_blend_is_exact_for_every_pair_of_values(tiny_spec, compiled):
    spec = tiny_spec._replace(image_shape=(32, 32, 3))
    stamp = blended(spec).stamp
    stamp = jax.jit(stamp) if compiled else stamp
    values = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None, None], (256, 32, 32, 3))
    out = stamp({}, jax.random.key(0), to_float(jnp.asarray(values)))
    expected = (4 * values.astype(int) + picture(32, 32).astype(int)) // 5
    np.testing.assert_array_equal(np.asarray(to_uint8(out)), expected)
    np.testing.assert_array_equal(np.asarray(out), np.asarray(to_float(jnp.asarray(expected, jnp.uint8))))


def test_needs_three_channels(tiny_spec):
    with pytest.raises(UserError, match="3 channels; tiny has 1"):
        blended(tiny_spec._replace(image_shape=(8, 8, 1)))
