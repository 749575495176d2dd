"""While the tests run, the shapes that annotations name are checked at every call."""

import inspect

import jax.numpy as jnp
import jaxtyping
import pytest

from bdjax.attacks import slots
from bdjax.defenses.mm_bd import _largest
from bdjax.metrics import rates
from bdjax.nn.pooling import max_pool
from bdjax.train.trainer import cross_entropy


def test_another_rank_and_unequal_lengths_are_refused_and_closures_are_checked_too():
    with pytest.raises(jaxtyping.TypeCheckError, match="max_pool"):
        max_pool(jnp.zeros((4, 4, 3)))
    with pytest.raises(jaxtyping.TypeCheckError, match="labels"):
        cross_entropy(jnp.zeros((3, 2)), jnp.zeros(4, jnp.int32))
    with pytest.raises(jaxtyping.TypeCheckError, match="count"):
        slots.select(0.5, "wanet")(None, jnp.zeros(4, jnp.int32), jnp.zeros(2, jnp.int32))
    with pytest.raises(jaxtyping.TypeCheckError, match="mask"):
        _largest(jnp.zeros((3, 2)), jnp.zeros(4))


@pytest.mark.parametrize("function", [max_pool, cross_entropy, slots.count, _largest, rates])
def test_every_room_is_checked(function):
    assert hasattr(function, "__wrapped__") and inspect.unwrap(function) is not function
