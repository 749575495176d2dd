"""One population over the devices of several processes, which may be on several machines.

Every process runs the same calls in the same order; the members are split over all devices of all of them. What one process alone
can know (what a folder holds, how much memory is free) the first one broadcasts to the others.

Source: JAX's documentation of multi-controller programs, ``jax.distributed``.
"""

import contextlib
import pickle
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bdjax.errors import UserError


def join(coordinator: str | None = None, processes: int | None = None, index: int | None = None) -> None:
    """Make this process one of several; to be called before any device is used.

    Args:
      coordinator: HOST:PORT on which the first process listens; None = as the cluster says (TPU pods, SLURM, Open MPI).
      processes: how many there are; None likewise.
      index: of this one, from 0; None likewise.

    Raises:
      UserError: the others cannot be reached, or the cluster says nothing.
    """
    try:
        jax.distributed.initialize(coordinator, processes, index)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes of this run did not come together: {str(error).splitlines()[0]}") from error


def is_multiprocess() -> bool:
    """Return whether this process is one of several that run the same program."""
    return jax.process_count() > 1


def is_leader() -> bool:
    """Return whether this process decides and writes: the first of several, or the only one."""
    return jax.process_index() == 0


def broadcast(value: Any) -> Any:
    """Return the first process's value in every process, once all of them have called this; plain Python objects.

    What is unpickled was pickled by the same program in a process of the same run; nothing from outside is read.
    """
    if not is_multiprocess():
        return value
    from jax.experimental.multihost_utils import broadcast_one_to_all

    encoded = np.frombuffer(pickle.dumps(value), np.uint8) if is_leader() else np.zeros(0, np.uint8)
    length = int(broadcast_one_to_all(np.int64(encoded.size)))
    padded = np.zeros(length, np.uint8)
    padded[: encoded.size] = encoded
    return pickle.loads(np.asarray(broadcast_one_to_all(padded)).tobytes())


class Preempted(KeyboardInterrupt):
    """One of the processes of this run is about to be taken away, and all of them have agreed to end here."""


def preempted(number: int) -> bool:
    """Return whether one of several processes was told to end, as all of them find at the same number.

    JAX hears of SIGTERM in each of them, and lets them agree on the number at which they end together.

    Args:
      number: grows by one with every call, in every process alike.
    """
    if not is_multiprocess():
        return False
    from jax.experimental.multihost_utils import reached_preemption_sync_point

    try:
        return bool(reached_preemption_sync_point(number))
    except RuntimeError:  # the service was switched off by its flag
        return False


def end_together() -> None:
    """Leave the other processes once all of them have called this, so that none takes the others' end for a failure."""
    if is_multiprocess():
        with contextlib.suppress(RuntimeError):
            jax.distributed.shutdown()


def spread(tree: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    """Return arrays that every process has in full as arrays over the mesh; those that are so already stay as they are."""
    sharding = NamedSharding(mesh, spec)
    if not is_multiprocess():
        return jax.device_put(tree, sharding)

    def one(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return leaf
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            words = one(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(one, tree)


def gather(tree: Any) -> Any:
    """Return arrays over the mesh as arrays that every process has in full."""
    if not is_multiprocess():
        return tree
    from jax.experimental.multihost_utils import process_allgather

    def one(leaf: Any) -> Any:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(one(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        return process_allgather(leaf, tiled=True)

    return jax.tree.map(one, tree)
