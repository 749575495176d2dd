"""A long computation of a population in segments, between which the host is asked: to keep what is there, or to stop.

Every segment is the same compiled program, called with another offset; the state stays on the devices and its buffers are reused.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bdjax.population import execute
from bdjax.population.execution import Execution
from bdjax.train.segmented import Segmented

TARGET = 60.0  # seconds of a segment


class Pace:
    """How many rounds the next segment has: one at first, then as many as take :data:`TARGET` seconds at the rate so far.

    Args:
      seconds: of a segment.
    """

    def __init__(self, seconds: float = TARGET) -> None:
        self.seconds, self._rate = seconds, 0.0

    def rounds(self, left: int) -> int:
        """Of the next segment, at least one."""
        return max(1, min(left, int(self.seconds * self._rate)))

    def took(self, rounds: int, seconds: float) -> None:
        """A segment took so long; the first one, which may have compiled, is forgotten with the second."""
        self._rate = rounds / max(seconds, 1e-6)


def run(
    work: Segmented,
    stacked: Any,
    shared: tuple[Any, ...],
    execution: Execution,
    *,
    pace: Pace,
    between: Callable[[Any, int], None],
    state: Any = None,
    done: int = 0,
) -> Any:
    """Run members that fit at once, segment by segment.

    Args:
      work: what one member computes.
      stacked: the members, as many as :func:`bdjax.population.execute.at_once` says.
      shared: what all members read.
      execution: how; several devices take their part of the members each.
      pace: decides the length of the segments.
      between: ``(state, rounds done)``, called after every segment but the last. The state is on the devices; it must be copied
        before the function returns, as the next segment takes its buffers.
      state: with ``done``, where to go on; None = at the beginning.
      done: rounds that ``state`` has behind it.

    Returns:
      The results, stacked on axis 0.
    """
    if state is None:
        state, done = execute.call(work.begin, stacked, shared, execution), 0
    while done < work.length:
        count, start = pace.rounds(work.length - done), time.perf_counter()
        part = jnp.int32(done), jnp.int32(count), *shared
        state = jax.block_until_ready(execute.call(work.advance, state, part, execution, donate=True))
        pace.took(count, time.perf_counter() - start)
        done += count
        if done < work.length:
            between(state, done)
    return execute.call(work.end, state, shared, execution)
