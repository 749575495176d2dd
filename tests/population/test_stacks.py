"""Stacks of members: members come back as they went in, and leaves stay on the host or the device."""

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import population


def member(number, put):
    return {"weights": put(np.full((2, 3), number, np.float32)), "count": put(np.int32(number))}


def on_host(tree):
    return all(isinstance(leaf, np.ndarray | np.generic) for leaf in jax.tree.leaves(tree))


def on_device(tree):
    return all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tree))


def test_members_come_back_from_a_stack_where_they_were():
    for put, there in ((np.asarray, on_host), (jnp.asarray, on_device)):
        for count in (1, 3):
            members = [member(number, put) for number in range(count)]
            stacked = population.stack(members)
            assert there(stacked) and population.size(stacked) == count and stacked["weights"].shape == (count, 2, 3)
            assert jax.tree.all(jax.tree.map(np.array_equal, population.unstack(stacked), members))
            assert there(population.unstack(stacked))


def test_members_are_taken_by_number_by_slice_and_by_several_numbers():
    for put, there in ((np.asarray, on_host), (jnp.asarray, on_device)):
        stacked = population.stack([member(number, put) for number in range(4)])
        assert int(population.take(stacked, 2)["count"]) == 2 and population.take(stacked, 2)["weights"].shape == (2, 3)
        for index, counts in ((slice(2), [0, 1]), ([3, 0, 0], [3, 0, 0]), (np.array([1]), [1])):
            found = population.take(stacked, index)
            assert there(found) and found["count"].tolist() == counts


def test_keys_and_a_stack_of_both_kinds_are_stacked_on_the_device():
    keys = [jax.random.key(number) for number in range(2)]
    assert population.take(population.stack(keys), 1) == keys[1]
    assert on_device(population.stack([np.float32(1), jnp.float32(2)]))
