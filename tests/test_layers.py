"""Masked batch statistics, taps, bounds and the plug."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.initial import drawer
from bdjax.layers import Conv, Pass, tap
from bdjax.normalisation import batch_norm, normalise


def running(d, dtype=jnp.float32):
    return {"mean": jnp.full(d, 2.0, dtype), "var": jnp.full(d, 3.0, dtype)}


def plain(x, mask, scale, bias, eps):
    """Batch-norm as the textbook has it, for autodiff."""
    weight = mask.reshape(-1, *(1,) * (x.ndim - 1)) * jnp.ones_like(x)
    axes = tuple(range(x.ndim - 1))
    n = jnp.sum(weight, axes)
    shape = (1,) * (x.ndim - 1) + (-1,)
    mean = (jnp.sum(weight * x, axes) / n).reshape(shape)
    var = (jnp.sum(weight * jnp.square(x - mean), axes) / n).reshape(shape)
    return (x - mean) / jnp.sqrt(var + eps) * scale.reshape(shape) + bias.reshape(shape)


@pytest.mark.parametrize("shape", [(20, 1, 1, 2), (5, 3, 2, 2), (2, 1, 1, 2)])
def test_statistics_over_the_rows_that_count_equal_a_smaller_batch(shape):
    """Running variance takes n / (n - 1): 20/19 for 20 rows on a 1x1 map, 2 for two rows."""
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), shape, jnp.float64)
        garbage = jnp.concatenate([x, jnp.full((3, *shape[1:]), 1e6, jnp.float64)])
        mask = jnp.asarray([1.0] * shape[0] + [0.0] * 3, jnp.float64)
        scale, bias = jnp.asarray([2.0, 3.0], jnp.float64), jnp.asarray([0.5, -1.0], jnp.float64)
        y, new = batch_norm(garbage, mask, running(2, jnp.float64), scale, bias, 1e-5, 0.1)
        n = shape[0] * shape[1] * shape[2]
        flat = np.asarray(x).reshape(n, 2)
        np.testing.assert_allclose(new["mean"], 0.9 * 2 + 0.1 * flat.mean(0), atol=1e-12)
        np.testing.assert_allclose(new["var"], 0.9 * 3 + 0.1 * flat.var(0) * n / (n - 1), atol=1e-12)
        want = plain(garbage, mask, scale, bias, 1e-5)
        np.testing.assert_allclose(y[: shape[0]], want[: shape[0]], atol=1e-10)
        alone, same = batch_norm(x, None, running(2, jnp.float64), scale, bias, 1e-5, 0.1)
        np.testing.assert_allclose(alone, y[: shape[0]], atol=1e-10)
        for name in same:
            np.testing.assert_allclose(same[name], new[name], atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_the_gradient_and_its_gradient_equal_autodiff_of_the_textbook(masked):
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(1), 4)
        x = 3 + 2 * jax.random.normal(keys[0], (6, 3, 2, 4), jnp.float64)
        scale, bias, weight = (jax.random.normal(k, s, jnp.float64) for k, s in zip(keys[1:], [(4,), (4,), x.shape], strict=True))
        mask = jnp.asarray([1, 1, 0, 1, 1, 0], jnp.float64) if masked else None

        def ours(x, scale, bias):
            return jnp.sum(weight * jnp.tanh(batch_norm(x, mask, running(4, jnp.float64), scale, bias, 1e-3, 0.1)[0]))

        def textbook(x, scale, bias):
            return jnp.sum(weight * jnp.tanh(plain(x, jnp.ones(6) if mask is None else mask, scale, bias, 1e-3)))

        def second(f):
            def norm(*arguments):
                return sum(jnp.sum(jnp.sin(g)) for g in jax.grad(f, argnums=(0, 1, 2))(*arguments))

            return jax.grad(norm, argnums=(0, 1, 2))

        for make in (lambda f: jax.grad(f, argnums=(0, 1, 2)), second):
            for got, want in zip(make(ours)(x, scale, bias), make(textbook)(x, scale, bias), strict=True):
                assert float(jnp.max(jnp.abs(want))) > 0.1
                np.testing.assert_allclose(got, want, atol=1e-10)


def test_one_pass_keeps_the_variance_of_values_far_from_zero():
    """Moments about the running mean: 1000 deviations from zero, E[x²] - E[x]² in float32 is off by per cents."""
    x = 1000 + jax.random.normal(jax.random.key(0), (64, 4, 4, 3))
    stats = {"mean": jnp.full(3, 999.5), "var": jnp.ones(3)}
    y, new = batch_norm(x, None, stats, jnp.ones(3), jnp.zeros(3), 0.0, 1.0)
    np.testing.assert_allclose(new["var"], np.asarray(x, np.float64).reshape(-1, 3).var(0, ddof=1), rtol=1e-4)
    np.testing.assert_allclose(jnp.std(y, (0, 1, 2)), 1, rtol=1e-3)


def test_no_row_at_all_stays_finite():
    y, new = batch_norm(jnp.ones((2, 1, 1, 3)), jnp.zeros(2), running(3), jnp.ones(3), jnp.zeros(3), 1e-5, 0.1)
    assert all(bool(jnp.all(jnp.isfinite(v))) for v in (y, *new.values()))


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
    layer, bound = Conv(64, 3), 1 / np.sqrt(3 * 3 * 16)
    kernel = drawer(lambda key: layer.init(key, jnp.zeros((1, 4, 4, 16)), Pass()))(jax.random.key(0))["params"]["kernel"]
    assert float(jnp.max(jnp.abs(kernel))) <= bound
    assert float(jnp.std(kernel)) == pytest.approx(bound / np.sqrt(3), rel=0.02)
