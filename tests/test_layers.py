"""Masked batch statistics, taps, bounds and the plug."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.layers import Pass, batch_statistics, normalise, tap, uniform_fan_in


def running(d, dtype=jnp.float32):
    return {"mean": jnp.full(d, 2.0, dtype), "var": jnp.full(d, 3.0, dtype)}


@pytest.mark.parametrize("shape", [(20, 1, 1, 2), (5, 3, 2, 2), (2, 1, 1, 2)])
def test_statistics_over_the_rows_that_count_equal_a_smaller_batch(shape):
    """Running variance takes n / (n - 1): 20/19 for 20 rows on a 1x1 map, 2 for two rows."""
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), shape, jnp.float64)
        garbage = jnp.concatenate([x, jnp.full((3, *shape[1:]), 1e6, jnp.float64)])
        mask = jnp.asarray([1.0] * shape[0] + [0.0] * 3, jnp.float64)
        mean, var, new = batch_statistics(garbage, mask, running(2, jnp.float64), 0.1)
        n = shape[0] * shape[1] * shape[2]
        flat = np.asarray(x).reshape(n, 2)
        np.testing.assert_allclose(mean, flat.mean(0), atol=1e-12)
        np.testing.assert_allclose(var, flat.var(0), atol=1e-12)
        np.testing.assert_allclose(new["mean"], 0.9 * 2 + 0.1 * flat.mean(0), atol=1e-12)
        np.testing.assert_allclose(new["var"], 0.9 * 3 + 0.1 * flat.var(0) * n / (n - 1), atol=1e-12)
        for a, b in zip(batch_statistics(x, None, running(2, jnp.float64), 0.1)[:2], (mean, var), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)


def test_no_row_at_all_stays_finite():
    mean, var, new = batch_statistics(jnp.ones((2, 1, 1, 3)), jnp.zeros(2), running(3), 0.1)
    assert all(bool(jnp.all(jnp.isfinite(v))) for v in (mean, var, *new.values()))


def test_normalise_by_hand():
    x = jnp.asarray([[1.0, 10.0], [3.0, 30.0]])
    got = normalise(x, jnp.asarray([1.0, 20.0]), jnp.asarray([3.0, 99.0]), jnp.asarray([2.0, 1.0]), jnp.asarray([5.0, 0.0]), 1.0)
    np.testing.assert_allclose(got, [[5.0, -1.0], [7.0, 1.0]], atol=1e-6)


def test_a_tap_bounds_records_and_measures():
    x = jnp.asarray([[1.0, 5.0], [7.0, 2.0]])
    run = Pass(record={"a": None, "b": lambda t, mask: jnp.sum(t * mask[:, None], 0)}, bounds={"a": jnp.asarray([3.0, jnp.inf])})
    run.mask = jnp.asarray([1.0, 0.0])
    bounded = tap(x, "a", run)
    np.testing.assert_array_equal(bounded, [[1, 5], [3, 2]])
    np.testing.assert_array_equal(tap(x, "b", run), x)
    np.testing.assert_array_equal(run.taps["a"], bounded)
    np.testing.assert_array_equal(run.taps["b"], [1, 5])


def test_initial_weights_follow_the_fan_in():
    kernel = uniform_fan_in(jax.random.key(0), (3, 3, 16, 64))
    bound = 1 / np.sqrt(3 * 3 * 16)
    assert float(jnp.max(jnp.abs(kernel))) <= bound
    assert float(jnp.std(kernel)) == pytest.approx(bound / np.sqrt(3), rel=0.02)
