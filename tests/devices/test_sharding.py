"""Members spread over eight simulated devices equal the same members on one, and no step talks between devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import population
from bdjax.models import cnn
from bdjax.population import Execution, adapt, members, run
from bdjax.population.execute import compiled
from bdjax.training import trainer
from bdjax.types import Split
from tests.toy import patch_attack

TOLERANCE = 1e-5  # float32, after 12 steps; a member alone, in company and sharded differ by the order of sums only


def setting(dataset, execution):
    train = trainer(adapt(cnn(dataset.spec, 2), execution), patch_attack(epochs=3), 160)
    data = Split(jnp.asarray(dataset.train.images), jnp.asarray(dataset.train.labels))
    return (lambda member, split: train(member, split, None, None)), data


ONE = Execution("vmap", "patches", "scan")


@pytest.mark.parametrize("count", [1, 3, 8])
def test_sharded_equals_unsharded_and_alone(count, tiny_dataset):
    assert jax.local_device_count() == 8
    stack = members(range(count), [0.1], 160)[0]
    eight = ONE._replace(devices=8)
    function, data = setting(tiny_dataset, ONE)
    together, spread = (run(function, stack, (data,), e) for e in (ONE, eight))
    alone = run(function, population.take(stack, [count - 1]), (data,), ONE)
    for a, b, c in zip(*(jax.tree.leaves(t.variables) for t in (together, spread, alone)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(a[-1], c[0], rtol=0, atol=TOLERANCE)


def test_no_collective_is_compiled(tiny_dataset):
    function, data = setting(tiny_dataset, ONE)
    program = compiled(function, True, 8, 1)
    text = program.lower(members(range(8), [0.1], 160)[0], data).compile().as_text()
    assert not re.findall(r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter", text)


def test_same_key_same_bits_and_another_seed_differs(tiny_dataset):
    for execution in (ONE, Execution("vmap", "unrolled", "dispatch"), ONE._replace(devices=8)):
        function, data = setting(tiny_dataset, execution)
        stack = members([0, 1], [0.1], 160)[0]
        first, second = (run(function, stack, (data,), execution) for _ in range(2))
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
            np.testing.assert_array_equal(a, b)
        weights = first.variables["params"]["conv1"]["kernel"]
        assert float(jnp.max(jnp.abs(weights[0] - weights[1]))) > 0.01
