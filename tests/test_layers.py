"""Masked batch statistics, taps, bounds and the plug."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.initial import drawer
from bdjax.layers import Conv, Pass, tap
from bdjax.normalisation import batch_norm, normalise


def running(d, dtype=np.float32):
    return {"mean": np.full(d, 2, dtype), "var": np.full(d, 3, dtype)}


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
        x = np.random.default_rng(0).normal(size=shape)
        garbage, mask = np.concatenate([x, np.full((3, *shape[1:]), 1e6)]), np.repeat([1.0, 0.0], [shape[0], 3])
        scale, bias = np.asarray([2.0, 3.0]), np.asarray([0.5, -1.0])
        norm = jax.jit(lambda x, mask: batch_norm(x, mask, running(2, np.float64), scale, bias, 1e-5, 0.1))
        y, new = jax.device_get(norm(garbage, mask))
        n = shape[0] * shape[1] * shape[2]
        flat = x.reshape(n, 2)
        np.testing.assert_allclose(new["mean"], 0.9 * 2 + 0.1 * flat.mean(0), atol=1e-12)
        np.testing.assert_allclose(new["var"], 0.9 * 3 + 0.1 * flat.var(0) * n / (n - 1), atol=1e-12)
        want = jax.jit(lambda x, mask: plain(x, mask, scale, bias, 1e-5))(garbage, mask)
        np.testing.assert_allclose(y[: shape[0]], want[: shape[0]], atol=1e-10)
        alone, same = jax.device_get(norm(x, None))
        np.testing.assert_allclose(alone, y[: shape[0]], atol=1e-10)
        for name in same:
            np.testing.assert_allclose(same[name], new[name], atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_the_gradient_and_its_gradient_equal_autodiff_of_the_textbook(masked):
    with jax.enable_x64(True):
        generator = np.random.default_rng(1)
        x = 3 + 2 * generator.normal(size=(6, 3, 2, 4))
        scale, bias, weight = (generator.normal(size=s) for s in ((4,), (4,), x.shape))
        mask = np.asarray([1, 1, 0, 1, 1, 0], np.float64) if masked else None

        def ours(x, scale, bias):
            return jnp.sum(weight * jnp.tanh(batch_norm(x, mask, running(4, np.float64), scale, bias, 1e-3, 0.1)[0]))

        def textbook(x, scale, bias):
            return jnp.sum(weight * jnp.tanh(plain(x, np.ones(6) if mask is None else mask, scale, bias, 1e-3)))

        def second(f):
            def norm(*arguments):
                return sum(jnp.sum(jnp.sin(g)) for g in jax.grad(f, argnums=(0, 1, 2))(*arguments))

            return jax.grad(norm, argnums=(0, 1, 2))

        def both(f):
            return jax.jit(lambda *arguments: (*jax.grad(f, argnums=(0, 1, 2))(*arguments), *second(f)(*arguments)))

        for got, want in zip(both(ours)(x, scale, bias), both(textbook)(x, scale, bias), strict=True):
            assert np.max(np.abs(want)) > 0.1
            np.testing.assert_allclose(got, want, atol=1e-10)


def test_one_pass_keeps_the_variance_of_values_far_from_zero():
    """Moments about the running mean: 1000 deviations from zero, E[x²] - E[x]² in float32 is off by per cents."""
    x = 1000 + np.random.default_rng(0).normal(size=(64, 4, 4, 3)).astype(np.float32)
    ones, zeros = np.ones(3, np.float32), np.zeros(3, np.float32)
    stats = {"mean": np.full(3, 999.5, np.float32), "var": ones}
    y, new = jax.jit(lambda x: batch_norm(x, None, stats, ones, zeros, 0.0, 1.0))(x)
    np.testing.assert_allclose(new["var"], np.asarray(x, np.float64).reshape(-1, 3).var(0, ddof=1), rtol=1e-4)
    np.testing.assert_allclose(np.std(np.asarray(y), (0, 1, 2)), 1, rtol=1e-3)


def test_no_row_at_all_stays_finite():
    ones, zeros = np.ones(3, np.float32), np.zeros(3, np.float32)
    norm = jax.jit(lambda x, mask: batch_norm(x, mask, running(3), ones, zeros, 1e-5, 0.1))
    y, new = jax.device_get(norm(np.ones((2, 1, 1, 3), np.float32), np.zeros(2, np.float32)))
    assert all(np.all(np.isfinite(v)) for v in (y, *new.values()))


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


def test_a_bound_below_0_acts_as_0_and_has_no_slope():
    """Behind a ReLU it is what a cut before the ReLU does: relu(min(x, Z)) = min(relu(x), max(Z, 0))."""
    before = jnp.asarray([[-2.0, -1.0, 3.0, 4.0, 5.0]])
    bounds = jnp.asarray([-1.0, -2.0, -3.0, 2.0, 9.0])
    published = jnp.maximum(jnp.minimum(before, bounds[None]), 0)

    def bounded(z, x):
        return tap(x, "a", Pass(bounds={"a": z}))

    np.testing.assert_array_equal(bounded(bounds, jnp.maximum(before, 0)), published)
    np.testing.assert_array_equal(published, [[0, 0, 0, 2, 5]])
    # Activations that go below 0 themselves keep what lies there.
    np.testing.assert_array_equal(bounded(bounds, before), [[-2, -1, 0, 2, 5]])
    slope = jax.grad(lambda z: jnp.sum(bounded(z, jnp.maximum(before, 0))))
    np.testing.assert_array_equal(slope(bounds), [0, 0, 0, 1, 0])
    assert np.isnan(bounded(jnp.asarray([np.nan] * 5), before)).all()  # nothing that is not finite is hidden


def test_initial_weights_follow_the_fan_in():
    layer, bound = Conv(64, 3), 1 / np.sqrt(3 * 3 * 16)
    draw = drawer(lambda key: layer.init(key, jnp.zeros((1, 4, 4, 16)), Pass()))
    kernel = np.asarray(jax.jit(draw)(jax.random.key(0))["params"]["kernel"])
    assert float(np.max(np.abs(kernel))) <= bound
    assert float(np.std(kernel)) == pytest.approx(bound / np.sqrt(3), rel=0.02)
