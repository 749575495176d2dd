"""Dropout and stochastic depth inside the networks."""

import functools

import jax
import numpy as np
import pytest

from bdjax.models.efficientnet import _blocks, efficientnet_b3
from tests.later import some_later
from tests.networks import DROPPING, EXACT, INVERTED, SLOWEST, drawn, reduced, shapes, spec

IMAGES = np.random.default_rng(0).random((4, 32, 32, 3), np.float32)


@functools.cache
def heads(name):
    """``f(keys, x, train) -> logits`` of the linear layers alone; VGG, EfficientNet and MobileNet have dropout there."""
    model = reduced(name, drop=True)
    variables = drawn(model)

    @functools.partial(jax.jit, static_argnames="train")
    def run(keys, x, train=True):
        return jax.vmap(lambda key: model.apply(variables, x, train=train, key=key, start="head").logits)(keys)

    return run


def features(name, rows):
    inputs = drawn(reduced(name))["params"][reduced(name).arch.heads[0]]["kernel"].shape[0]
    return np.abs(np.random.default_rng(1).normal(size=(rows, inputs)).astype(np.float32)) + np.float32(0.5)


@pytest.mark.parametrize("name", DROPPING)
def test_the_heads_draws_depend_on_the_key_alone(name):
    x, keys = features(name, 64), jax.random.key_data(jax.random.split(jax.random.key(0)))
    keys = jax.random.wrap_key_data(np.asarray(keys)[[0, 0, 1]])
    first, again, other = np.asarray(heads(name)(keys, x))
    np.testing.assert_array_equal(again, first)
    assert np.mean(np.any(other != first, 1)) > 0.9
    plain, same = np.asarray(heads(name)(keys[1:], x, train=False))
    np.testing.assert_array_equal(same, plain)
    assert np.any(plain != first)


@pytest.mark.parametrize("name", some_later(INVERTED, SLOWEST))
def test_dropout_before_the_last_layer_keeps_the_mean(name):
    x = features(name, 8)
    draws = np.asarray(heads(name)(jax.random.split(jax.random.key(5), 2000), x), np.float64)
    (plain,) = np.asarray(heads(name)(jax.random.split(jax.random.key(5), 1), x, train=False))
    assert np.max(np.abs(np.mean(draws, 0) - plain) / (np.std(draws, 0) / np.sqrt(2000))) < 5


@pytest.mark.slow
def test_stochastic_depth_drops_or_keeps_whole_samples_at_its_rate():
    """The first residual block: 40 passes over four images in train mode."""
    model = efficientnet_b3(spec(), 5, depth=2)
    variables, rate = drawn(model), 0.2 * 3 / 26  # block 3 of 26
    before, branch, after = ends = ("features_2_0/block_3_1", "features_2_1/block_3_1", "stage2")
    run = jax.jit(lambda key: model.apply(variables, IMAGES, train=True, key=key, record=ends).taps, compiler_options=EXACT)
    kept, total = 0, 0
    for key in jax.random.split(jax.random.key(0), 40):
        taps = jax.device_get(run(key))
        for sample, want in zip(taps[after] - taps[before], taps[branch] / (1 - rate), strict=True):
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


@pytest.mark.slow
def test_drop_false_is_the_network_without_draws():
    kept, without = reduced("efficientnet_b3", drop=True), reduced("efficientnet_b3")
    key = jax.random.key(0)

    def program(model, **how):
        return str(jax.make_jaxpr(lambda v: model.apply(v, IMAGES, **how).logits)(shapes(model)))

    plain = program(without, train=True)
    assert "random_bits" not in plain and "random_bits" in program(kept, train=True, key=key)
    assert program(without, train=True, key=key) == plain
    assert program(kept) == program(kept, key=key) == program(without)
