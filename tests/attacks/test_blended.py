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
    with pytest.raises(UserError, match=r"3 channels; tiny has 1: .* put {.channels.: 3} into a dataset.json .* with --dataset"):
        blended(tiny_spec._replace(image_shape=(8, 8, 1)))


@pytest.mark.parametrize(("alpha", "part"), [(0.2, (1, 5)), (0.05, (1, 20)), (0.125, (1, 8)), (0.29, (29, 100)), (1.0, (1, 1))])
def test_other_shares_are_exact_too(tiny_spec, alpha, part):
    stamp = blended(tiny_spec, {"alpha": alpha, "test_alpha": alpha}).stamp
    values = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None, None], (256, 8, 8, 3))
    out = np.asarray(to_uint8(stamp({}, jax.random.key(0), to_float(jnp.asarray(values)))))
    share, whole = part
    np.testing.assert_array_equal(out, ((whole - share) * values.astype(int) + share * picture(8, 8).astype(int)) // whole)


def test_training_has_its_own_share_where_it_is_given(tiny_spec):
    assert blended(tiny_spec).train_stamp is None
    attack = blended(tiny_spec, {"alpha": 0.1, "test_alpha": 0.5})
    black = jnp.zeros((1, 8, 8, 3), jnp.float32)
    for stamp, whole in ((attack.train_stamp, 10), (attack.stamp, 2)):
        found = np.asarray(to_uint8(stamp({}, jax.random.key(0), black)))[0]
        np.testing.assert_array_equal(found, picture(8, 8) // whole)


@pytest.mark.parametrize("config", [{"alpha": 0.0}, {"test_alpha": 1.001}, {"alpha": 0.0005}, {"alpha": 0.2003}])
def test_shares_out_of_range(tiny_spec, config):
    (field,) = config
    with pytest.raises(UserError, match=f"blended.{field} must lie in 0.001 … 1, in steps of 0.001"):
        blended(tiny_spec, config)
