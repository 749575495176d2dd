"""Dropout and stochastic depth inside the networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.models import efficientnet_b3
from bdjax.models.efficientnet import _blocks
from tests.networks import DROPPING, drawn, reduced, spec

IMAGES = jax.random.uniform(jax.random.key(0), (4, 32, 32, 3))


@functools.cache
def heads(name):
    """``f(key, x, train) -> logits`` of the linear layers alone; VGG, EfficientNet and MobileNet have dropout there."""
    model = reduced(name, drop=True)
    variables = drawn(model)
    inputs = variables["params"][model.arch.heads[0]]["kernel"].shape[0]
    x = jnp.abs(jax.random.normal(jax.random.key(1), (64, inputs))) + 0.5

    @functools.partial(jax.jit, static_argnames="train")
    def run(key, train=True):
        return model.apply(variables, x, train=train, key=key, start="head").logits

    return run


@pytest.mark.parametrize("name", DROPPING)
def test_the_heads_draws_depend_on_the_key_alone(name):
    run = heads(name)
    first = run(jax.random.key(0))
    np.testing.assert_array_equal(run(jax.random.key(0)), first)
    assert np.mean(np.any(np.asarray(run(jax.random.key(1)) != first), 1)) > 0.9
    plain = run(jax.random.key(0), train=False)
    np.testing.assert_array_equal(run(jax.random.key(1), train=False), plain)
    assert bool(jnp.any(plain != first))


@pytest.mark.parametrize("name", ["efficientnet_b3", "mobilenet_v3_large"])
def test_dropout_before_the_last_layer_keeps_the_mean(name):
    run = heads(name)
    draws = jax.vmap(run)(jax.random.split(jax.random.key(5), 2000))
    error = np.asarray(jnp.std(draws, 0)) / np.sqrt(2000)
    assert float(np.max(np.abs(np.asarray(jnp.mean(draws, 0) - run(jax.random.key(0), train=False))) / error)) < 5


@functools.cache
def branch():
    """The first residual block with its input and output: ``f(key) -> (in, out)`` of features_2_1, train mode."""
    model = efficientnet_b3(spec(), 5, depth=2)
    variables = drawn(model)
    ends = ("features_2_0/block_3_1", "features_2_1/block_3_1", "stage2")

    @jax.jit
    def run(key):
        out = model.apply(variables, IMAGES, train=True, key=key, record=ends)
        return out.taps

    return run


def test_stochastic_depth_keeps_or_drops_whole_samples_at_its_rate():
    rate = 0.2 * 3 / 26  # block 3 of 26
    kept, total = 0, 0
    for seed in range(40):
        taps = branch()(jax.random.key(seed))
        added = np.asarray(taps["stage2"] - taps["features_2_0/block_3_1"])
        whole = np.asarray(taps["features_2_1/block_3_1"]) / (1 - rate)
        for sample, want in zip(added, whole, strict=True):
            if np.any(sample):
                np.testing.assert_allclose(sample, want, rtol=1e-3, atol=1e-4)
                kept += 1
            total += 1
    assert 0 < total - kept < 20  # 3.7 of 160 expected


def test_rates_count_blocks_of_the_whole_network_and_the_first_of_a_stage_has_no_residual():
    every = {block.name: block for block in _blocks(40, None, True)}
    assert len(every) == 26
    assert every["features_1_1"].rate == pytest.approx(0.0077, abs=5e-5)
    assert every["features_7_1"].rate == pytest.approx(0.1923, abs=5e-5)
    assert [name for name, block in every.items() if not block.residual] == [f"features_{s}_0" for s in range(1, 8)]
    for name, block in {block.name: block for block in _blocks(40, 2, True)}.items():
        assert (block.rate, block.residual) == (every[name].rate, every[name].residual)
    assert {block.rate for block in _blocks(40, None, False)} == {0.0}


def test_drop_false_is_the_network_without_draws():
    kept, without = reduced("efficientnet_b3", drop=True), reduced("efficientnet_b3")
    variables = drawn(kept)
    plain = jax.jit(lambda v: without.apply(v, IMAGES, train=True).logits)(variables)
    keyed = jax.jit(lambda v: without.apply(v, IMAGES, train=True, key=jax.random.key(0)).logits)(variables)
    np.testing.assert_array_equal(plain, keyed)
    evaluated = [jax.jit(lambda v, m=m: m.apply(v, IMAGES).logits)(variables) for m in (kept, without)]
    np.testing.assert_array_equal(*evaluated)
