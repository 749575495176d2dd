"""Key streams never move, and a member is the same in any population."""

import jax
import numpy as np

from bdjax.keys import Stream, member_key, root, step_key, stream
from bdjax.population import members


def data(key):
    return np.asarray(jax.random.key_data(key))


def test_member_seven_is_the_same_in_any_population():
    alone = member_key(root(), 7)
    many, points = members(range(10), [0.0, 0.1], 100)
    assert points[14] == (7, 0.0)
    for i in (14, 15):
        np.testing.assert_array_equal(data(many.key[i]), data(alone))


def test_streams_steps_seeds_and_roots_differ():
    keys = [stream(member_key(root(r), s), role) for r in (0, 1) for s in (0, 1, 2) for role in Stream]
    keys += [step_key(keys[0], 1), step_key(keys[0], 2)]
    assert len({tuple(data(k)) for k in keys}) == len(keys)


def test_the_numbers_of_the_streams_are_part_of_every_result():
    published = ["INIT", "ORDER", "SELECT", "AUGMENT", "TRIGGER", "BATCH", "NETWORK", "CLEAN", "DEFENSE", "PREPARE"]
    assert [role.name for role in Stream][: len(published)] == published
    assert [int(role) for role in Stream] == list(range(len(Stream)))
    member = member_key(root(), 3)
    np.testing.assert_array_equal(data(stream(member, Stream.CLEAN)), data(jax.random.fold_in(member, 7)))
