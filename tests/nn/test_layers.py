"""Masked batch statistics, taps, bounds and the plug."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.nn.initial import Drawer
from bdjax.nn.layers import Conv, Pass, tap
from bdjax.nn.normalisation import batch_norm, normalise, pivot
from benchmarks.norm_moments import gradient_error


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


@pytest.mark.parametrize("away", [0.0, 999.5, -1e5])
def test_one_pass_keeps_the_variance_wherever_the_running_mean_lies(away):
    """1000 deviations from zero, E[x²] - E[x]² in float32 is off by per cents, and so are moments about a far running mean."""
    x = 1000 + np.random.default_rng(0).normal(size=(64, 4, 4, 3)).astype(np.float32)
    ones, zeros = np.ones(3, np.float32), np.zeros(3, np.float32)
    stats = {"mean": np.full(3, away, np.float32), "var": ones}
    y, new = jax.jit(lambda x: batch_norm(x, None, stats, ones, zeros, 0.0, 1.0))(x)
    np.testing.assert_allclose(new["var"], np.asarray(x, np.float64).reshape(-1, 3).var(0, ddof=1), rtol=1e-4)
    np.testing.assert_allclose(np.std(np.asarray(y), (0, 1, 2)), 1, rtol=1e-3)


HARD = {  # images whose every fourth position is as unlike the others as can be
    "noise": lambda g, shape: g.normal(size=shape),
    "one bright corner": lambda g, shape: g.normal(size=shape) + 30 * (np.arange(shape[1]) == 0)[:, None, None],
    "the part stands apart": lambda g, shape: (
        g.normal(size=shape) + 1e3 * ((np.arange(shape[1]) % 4 == 0)[:, None, None] & (np.arange(shape[2]) % 4 == 0)[:, None])
    ),
    "mostly 0": lambda g, shape: np.maximum(g.normal(size=shape) - 2, 0),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", HARD)
def test_the_moments_are_taken_close_to_the_mean_of_the_batch(kind, masked):
    """At most sqrt(15) deviations from it, in the rows that count; a row that does not count may hold anything."""
    x = HARD[kind](np.random.default_rng(0), (6, 8, 12, 3)).astype(np.float32)
    weight = np.asarray([1, 0, 1, 1, 0, 1], np.float32).reshape(-1, 1, 1, 1) if masked else None
    if masked:
        x[[1, 4]] = 1e6
    counted = (x if weight is None else x[weight[:, 0, 0, 0] > 0]).astype(np.float64)
    off = np.abs(np.asarray(pivot(jnp.asarray(x), weight)) - counted.mean((0, 1, 2))) / counted.std((0, 1, 2))
    assert np.all(off <= np.sqrt(15) + 1e-3) and (kind != "the part stands apart" or np.all(off > 3.8))


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_gradients_in_float32_do_not_depend_on_where_the_running_mean_lies(dtype):
    """Against float64: the running statistics say nothing about the batch, as those of a network in another's place."""
    generator = np.random.default_rng(2)
    x = (generator.normal(size=(8, 6, 6, 5)) + generator.uniform(-3, 3, 5)).astype(dtype)
    scale, weight = generator.normal(size=5), generator.normal(size=x.shape)
    mask = np.asarray([1, 1, 0, 1, 1, 1, 0, 1])

    def gradient(away, kind):
        stats = {"mean": np.full(5, away, kind), "var": np.ones(5, kind)}

        def loss(x, scale):
            y, _ = batch_norm(x, mask.astype(kind), stats, scale, np.zeros(5, kind), 1e-5, 0.1)
            return jnp.sum(jnp.asarray(weight, kind) * jnp.tanh(y.astype(kind)))

        given = x.astype(kind) if dtype == np.float32 or kind == np.float64 else jnp.asarray(x)
        return [np.asarray(g, np.float64) for g in jax.jit(jax.grad(loss, argnums=(0, 1)))(given, scale.astype(kind))]

    with jax.enable_x64(True):
        want = gradient(0.0, np.float64)
        for far in gradient(1e3, np.float64)[0] - want[0], gradient(1e3, np.float64)[1] - want[1]:
            np.testing.assert_allclose(far, 0, atol=1e-10)
    for away in (0.0, 300.0, -2e4):
        for got, exact in zip(gradient(away, np.float32), want, strict=True):
            error = np.linalg.norm(got - exact) / np.linalg.norm(exact)
            assert error < (2e-6 if dtype == np.float32 else 2e-2), (away, error)


@pytest.mark.parametrize("mean", [0.0, 0.37, -50.0])
def test_a_channel_that_is_0_everywhere_gives_its_bias_to_the_last_bit(mean):
    """A pruned filter's: what is left over, divided by sqrt(eps), would wake it."""
    generator = np.random.default_rng(3)
    x = generator.normal(size=(4, 5, 5, 2)).astype(np.float32) * np.asarray([0, 1], np.float32)
    stats = {"mean": np.full(2, mean, np.float32), "var": np.ones(2, np.float32)}
    bias = np.asarray([0.3, 0.0], np.float32)
    norm = jax.jit(lambda x, mask: batch_norm(x, mask, stats, np.asarray([7, 7], np.float32), bias, 1e-5, 0.1))
    for mask in (None, np.asarray([1, 0, 1, 1], np.float32)):
        y, new = jax.device_get(norm(x, mask))
        assert np.all(y[..., 0] == bias[0]) and np.std(y[..., 1]) > 1
        assert new["mean"][0] == np.float32(0.9) * np.float32(mean)


@pytest.mark.slow
def test_gradients_of_efficientnet_with_random_running_statistics():
    """Half of all parameters have a gradient within 1e-3 of that in float64, as in PyTorch; about the running mean: 0.25."""
    assert gradient_error("efficientnet_b3", 40, 32, 16, 5.0, seed=0) < 1e-4


@pytest.mark.slow
def test_gradients_of_a_network_with_relu_and_random_running_statistics():
    """The least of three seeds: where the input of a ReLU lies within rounding of 0, either side is right."""
    assert min(gradient_error("preactresnet18", 16, 32, 16, 5.0, seed=seed) for seed in range(3)) < 1e-5


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
    draw = Drawer(lambda key, mutable: layer.init(key, jnp.zeros((1, 4, 4, 16)), Pass(), mutable=mutable))
    kernel = np.asarray(jax.jit(draw)(jax.random.key(0))["params"]["kernel"])
    assert float(np.max(np.abs(kernel))) <= bound
    assert float(np.std(kernel)) == pytest.approx(bound / np.sqrt(3), rel=0.02)
