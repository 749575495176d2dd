"""Key streams: every random draw of a member comes from ``stream(member_key(seed), role)``.

A member's key depends on its seed alone. Members that differ in poison ratio, samples per class or hyper-parameters share all
draws, so that comparisons are paired and poison sets and clean subsets are nested. A stream is a ``fold_in`` of its role:
adding a role never moves another.
"""

from enum import IntEnum

import jax

from bdjax.types import Array, Key


class Stream(IntEnum):
    """Roles of random draws. The numbers are part of every published result: append, never renumber."""

    INIT = 0  # initial weights
    ORDER = 1  # batch order while training
    SELECT = 2  # which rows are poisoned
    AUGMENT = 3  # crops and flips while training
    TRIGGER = 4  # the trigger's own draws
    BATCH = 5  # poison inside the batch
    NETWORK = 6  # dropout and stochastic depth while training
    CLEAN = 7  # the defender's clean subset
    DEFENSE = 8  # everything a defense draws
    PREPARE = 9  # an attack's preparation (encoders, mask networks)
    REDUCE = 10  # the reduced training set, drawn from `root` alone: the same for every seed
    OTHER_ORDER = 11  # batch order of the second batch


def root(number: int = 0) -> Key:
    """The root of all keys of a run; ``number`` is recorded with every result."""
    return jax.random.key(number)


def member_key(root_key: Key, seed: int | Array) -> Key:
    """The key of the member with this seed: the same in any population."""
    return jax.random.fold_in(root_key, seed)


def stream(key: Key, role: Stream) -> Key:
    """The key of one role of a member."""
    return jax.random.fold_in(key, int(role))


def step_key(key: Key, step: int | Array) -> Key:
    """The key of one step (or epoch) of a stream."""
    return jax.random.fold_in(key, step)
