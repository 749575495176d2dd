"""Members spread over eight simulated devices equal the same members on one, and no step talks between devices."""

import functools
import re

import jax
import numpy as np
import pytest

from bdjax import population
from bdjax.models.cnn import cnn
from bdjax.population import Execution, adapt, members, run
from bdjax.population.execute import compiled
from bdjax.train.trainer import trainer
from bdjax.types import Split
from tests.later import some_later
from tests.toy import patch_attack

TOLERANCE = 1e-5  # float32, after 12 steps; a member alone, in company and sharded differ by the order of sums only


@pytest.fixture(scope="module")
def setting(tiny_dataset):
    """``f(execution) -> (function of a member, data)``; the same function whatever the devices, so that programs are shared."""
    data = Split(jax.device_put(tiny_dataset.train.images), jax.device_put(tiny_dataset.train.labels))

    @functools.cache
    def function(execution):
        train = trainer(adapt(cnn(tiny_dataset.spec, 2), execution), patch_attack(epochs=3), 160)
        return lambda member, split: train(member, split, None, None)

    return lambda execution: (function(execution._replace(devices=1)), data)


ONE = Execution("vmap", "patches", "scan")


def agree(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("count", some_later([1, 3, 8], [1, 8]))
def test_sharded_equals_unsharded_and_alone(count, setting):
    assert jax.local_device_count() == 8
    stack = members(range(count), [0.1], 160)[0]
    function, data = setting(ONE)
    last = population.take(stack, [count - 1])
    together, spread, alone = (
        jax.device_get(run(function, who, (data,), e).variables)
        for who, e in ((stack, ONE), (stack, ONE._replace(devices=8)), (last, ONE))
    )
    jax.tree.map(agree, together, spread)
    jax.tree.map(lambda a, b: agree(a[-1], b[0]), together, alone)


@pytest.mark.parametrize(
    "execution", [ONE, ONE._replace(devices=8), pytest.param(Execution("vmap", "unrolled", "dispatch"), marks=pytest.mark.slow)]
)
def test_same_key_same_bits_and_another_seed_differs(execution, setting):
    function, data = setting(execution)
    stack = members([0, 1, 2], [0.1], 160)[0]
    first, second = (jax.device_get(run(function, stack, (data,), execution)) for _ in range(2))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)
    weights = first.variables["params"]["conv1"]["kernel"]
    assert np.max(np.abs(weights[0] - weights[1])) > 0.01


def test_no_collective_is_compiled(setting):
    function, data = setting(ONE)
    program = compiled(function, True, 8, 1)
    text = program.lower(members(range(8), [0.1], 160)[0], data).compile().as_text()
    assert not re.findall(r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter", text)
