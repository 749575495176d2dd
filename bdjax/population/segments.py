"""A long computation of a population in segments, between which the host keeps what is there.

Every segment is the same compiled program, called with another offset; the state stays on the devices and its buffers are reused.
A run that was killed goes on at the last snapshot and ends with the same bits as one that was not.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.population import execute, snapshots
from bdjax.population.execution import Execution
from bdjax.population.snapshots import Keeper, Snapshot
from bdjax.population.stacks import concatenate, size, take
from bdjax.train.segmented import Segmented

SECONDS = 5.0, 60.0  # of a segment: the least and the most
COST = 0.01  # of a segment that keeping its end may take


class Pace:
    """How many rounds the next segment has: one at first, then as many as fill its seconds at the rate of the last one.

    Segments are short where keeping what is there costs little, and grow to a minute where it costs much.
    """

    def __init__(self) -> None:
        self._seconds, self._rate = SECONDS[0], 0.0

    def rounds(self, left: int) -> int:
        """Of the next segment, at least one."""
        return max(1, min(left, int(self._seconds * self._rate)))

    def took(self, rounds: int, seconds: float) -> None:
        """A segment took so long."""
        self._rate = rounds / max(seconds, 1e-6)

    def kept(self, seconds: float) -> None:
        """The host was busy for so long with keeping its end."""
        self._seconds = min(max(SECONDS[0], seconds / COST), SECONDS[1])


def run(
    work: Segmented,
    stacked: Any,
    shared: tuple[Any, ...],
    execution: Execution,
    *,
    keeper: Keeper | None = None,
    pace: Pace | None = None,
) -> Any:
    """Run a computation of one member for all members, as :func:`bdjax.population.execute.run` does, segment by segment.

    Args:
      work: what one member computes.
      stacked: pytree with the members on axis 0 of every leaf.
      shared: what all members read.
      execution: how.
      keeper: gets a snapshot after every segment and after every chunk of members, and gives the one to go on from; None =
        nothing is kept.
      pace: decides the length of the segments; None = :class:`Pace`.

    Returns:
      The results, stacked on axis 0 in the members' order.
    """
    kept, pace = None if keeper is None else keeper.latest(), pace or Pace()
    at_once, finished = (0, 0) if kept is None else kept[:2]
    going_on = None
    if kept is not None:
        begin = jax.vmap(work.begin, in_axes=(0, *(None,) * len(shared)))
        like = jax.eval_shape(begin, take(stacked, [0] * at_once), *shared)
        going_on = snapshots.tree(like, kept.state), kept.rounds
    before = () if kept is None else kept.results

    def chunk(members: Any, done: int, results: Any) -> Any:
        nonlocal going_on
        (state, rounds), going_on = going_on or (None, 0), None
        so_far = _joined(before, snapshots.leaves(results))

        def keep(state: Any, rounds: int) -> None:
            if keeper is not None:
                keeper.keep(Snapshot(size(members), done, rounds, snapshots.leaves(state), so_far))

        return _through(work, members, shared, execution, pace, keep, state, rounds)

    rest = execute.in_chunks(chunk, stacked, execution, at_once, finished)
    return concatenate([snapshots.tree(rest, before), rest]) if before else rest


def _joined(before: tuple[Any, ...], after: tuple[Any, ...]) -> tuple[Any, ...]:
    """Leaves of the results of some members, and of others after them; either may be empty."""
    if before and after:
        return tuple(np.concatenate(pair) for pair in zip(before, after, strict=True))
    return before or after


def _through(
    work: Segmented, members: Any, shared: Any, execution: Execution, pace: Pace, keep: Any, state: Any, rounds: int
) -> Any:
    """Run members that fit at once from where they are to their end."""
    if state is None:
        state = execute.call(work.begin, members, shared, execution)
    while rounds < work.length:
        count, start = pace.rounds(work.length - rounds), time.perf_counter()
        part = jnp.int32(rounds), jnp.int32(count), *shared
        state = jax.block_until_ready(execute.call(work.advance, state, part, execution, donate=True))
        pace.took(count, time.perf_counter() - start)
        rounds, start = rounds + count, time.perf_counter()
        keep(state, rounds)
        pace.kept(time.perf_counter() - start)
    return execute.call(work.end, state, shared, execution)
