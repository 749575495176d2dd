"""A long computation of a population in segments, between which the host keeps what is there.

A segment is some rounds of a stage of the function (:mod:`bdjax.train.cuts`): the same compiled program, called with another
offset; what it works on stays on the devices and its buffers are reused. A run that was killed goes on at the last snapshot and
ends with the same bits as one that was not.
"""

import functools
import itertools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.population import execute, hosts, snapshots
from bdjax.population.execution import Execution, check, default_execution
from bdjax.population.snapshots import Keeper, Snapshot
from bdjax.population.stacks import concatenate, size, take
from bdjax.population.stopwatch import Stopwatch
from bdjax.train import cuts
from bdjax.train.cuts import Cut, Part, Reached

SECONDS = 5.0, 60.0  # between two snapshots: the least and the most
COST = 0.01  # of the time between two snapshots that keeping one may take


class Pace:
    """How many rounds the next segment has, and whether its end is kept.

    A segment has as many rounds as fill its seconds at the rate of the last one. Where keeping costs little they are few, and
    they grow to a minute where it costs much; what is over before is never kept.

    Args:
      seconds: between two snapshots; None = as said above.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self._fixed = seconds is not None
        self._seconds, self._rate, self._since = SECONDS[0] if seconds is None else seconds, 0.0, 0.0

    def rounds(self, left: int) -> int:
        """Of the next segment, at least one."""
        return max(1, min(left, int((self._seconds - self._since) * self._rate)))

    def took(self, rounds: int, seconds: float) -> None:
        """A segment took so long, without compiling."""
        self._rate = rounds / max(seconds, 1e-6)
        self._since += seconds

    @property
    def due(self) -> bool:
        """Whether what is there is to be kept."""
        return self._since >= 0.8 * self._seconds

    def kept(self, seconds: float) -> None:
        """The host was busy for so long with keeping it."""
        self._since = 0.0
        if not self._fixed:
            self._seconds = min(max(SECONDS[0], seconds / COST), SECONDS[1])


class Abandoned(Exception):
    """The host has asked to go no further with this computation: somebody else has gone on with it."""


class Running(NamedTuple):
    """Members between two segments."""

    before: tuple[Any, ...]  # (carry, records) of the stages that are over
    carry: Any  # of the stage they are in
    records: Any  # of its rounds so far; None where there are none
    rounds: int  # of this stage


class _Stage:
    """A stage of a function of one member, as programs."""

    def __init__(self, function: Callable[..., Any], number: int) -> None:
        self.function, self.number = function, number
        self.length: int | None = None  # in rounds, once it was entered; None = there is no such stage, the function ends

    def enter(self, held: Any, *shared: Any) -> Any:
        """``((one, before), *shared)`` -> the carry with which the stage begins, or the function's result."""
        one, before = held
        try:
            with cuts.set_to(Cut(before, None)):
                result = self.function(one, *shared)
        except Reached as reached:
            self.length = reached.length
            return reached.value
        self.length = None
        return result

    def advance(self, held: Any, first: Any, count: Any, *shared: Any) -> Any:
        """``((one, before, carry), first, count, *shared)`` -> (the same after these rounds, their records)."""
        one, before, carry = held
        try:
            with cuts.set_to(Cut(before, Part(carry, first, count))):
                self.function(one, *shared)
        except Reached as reached:
            return (one, before, reached.value[0]), reached.value[1]
        raise AssertionError("the function ended before its stage")


@functools.lru_cache(maxsize=8)
def _stages(function: Callable[..., Any]) -> dict[int, _Stage]:
    """The stages of a function that were met, so that a program is compiled once."""
    return {}


def _stage(function: Callable[..., Any], number: int) -> _Stage:
    met = _stages(function)
    if number not in met:
        met[number] = _Stage(function, number)
    return met[number]


def run(
    function: Callable[..., Any],
    stacked: Any,
    shared: tuple[Any, ...] = (),
    execution: Execution | None = None,
    *,
    keeper: Keeper | None = None,
    pace: Pace | None = None,
    kept: Snapshot | None = None,
    abandoned: Callable[[], bool] = lambda: False,
) -> Any:
    """Run a function of one member for all members, as :func:`bdjax.population.execute.run` does, segment by segment.

    Args:
      function: of one member.
      stacked: pytree with the members on axis 0 of every leaf.
      shared: what all members read.
      execution: how; None = :func:`bdjax.population.execution.default_execution`.
      keeper: gets snapshots; None = nothing is kept.
      pace: decides the length of the segments; None = :class:`Pace`.
      kept: the snapshot to go on from, one of the same function and members; None = from the beginning.
      abandoned: asked after every segment; where it is true, the computation ends there and nothing is kept.

    Returns:
      The results, stacked on axis 0 in the members' order.

    Raises:
      Misfit: the snapshot is one of something else.
      Abandoned: that was asked for.
    """
    execution = check(execution or default_execution())
    pace = pace or Pace()
    going_on = None if kept is None else _restored(function, stacked, shared, execution, kept)
    at_once, finished, before = (0, 0, ()) if kept is None else (kept.at_once, kept.finished, kept.results)

    numbers = itertools.count()
    with Stopwatch() as watch:

        def chunk(members: Any, done: int, results: Any) -> Any:
            nonlocal going_on
            start, going_on = going_on, None
            so_far = functools.cache(lambda: _joined(before, snapshots.leaves(results)))

            def keep(now: Running) -> None:
                ending = hosts.preempted(next(numbers))
                if hosts.broadcast(abandoned()):
                    raise Abandoned
                if keeper is not None and (ending or hosts.broadcast(pace.due)):
                    began, seconds = time.perf_counter(), watch.seconds + (kept.seconds if kept else 0.0)
                    state = snapshots.leaves(hosts.gather(now[:3]))
                    keeper.keep(Snapshot(size(members), done, len(now.before), now.rounds, seconds, state, so_far()))
                    pace.kept(time.perf_counter() - began)
                if ending:
                    raise hosts.Preempted

            return _through(_Work(function, shared, execution, pace, watch, keep), members, start)

        rest = execute.in_chunks(chunk, stacked, execution, at_once, finished)
    return concatenate([snapshots.tree(rest, before), rest]) if before else rest


def _joined(before: tuple[Any, ...], after: tuple[Any, ...]) -> tuple[Any, ...]:
    """Leaves of the results of some members, and of others after them; either may be empty."""
    if before and after:
        return tuple(np.concatenate(pair) for pair in zip(before, after, strict=True))
    return before or after


class _Work(NamedTuple):
    """What all members are run through."""

    function: Callable[..., Any]
    shared: tuple[Any, ...]
    execution: Execution
    pace: Pace
    watch: Stopwatch
    keep: Callable[[Running], None]  # called after every segment but the last one of a stage


def _through(work: _Work, members: Any, start: Running | None) -> Any:
    """Run members that fit at once from where they are to their end."""
    now = start
    while True:
        before = () if now is None else now.before
        stage = _stage(work.function, len(before))
        if now is None or now.carry is None:
            begun = execute.call(stage.enter, (members, before), work.shared, work.execution, stay=True)
            if stage.length is None:
                return hosts.gather(begun)
            now = Running(before, begun, None, 0)
        members, now = _advanced(work, stage, members, now)


def _advanced(work: _Work, stage: _Stage, members: Any, now: Running) -> tuple[Any, Running]:
    """Run a stage to its end, which is the beginning of what comes after it; the members' own buffers were reused too."""
    assert stage.length is not None
    held = (members, now.before, now.carry)
    records, rounds = now.records, now.rounds
    while rounds < stage.length:
        count, start = hosts.broadcast(work.pace.rounds(stage.length - rounds)), work.watch.seconds
        part = jnp.int32(rounds), jnp.int32(count), *work.shared
        held, new = jax.block_until_ready(execute.call(stage.advance, held, part, work.execution, donate=True, stay=True))
        work.pace.took(count, work.watch.seconds - start)
        records, rounds = new if records is None else _written(records, new, *part[:2]), rounds + count
        if rounds < stage.length:
            work.keep(Running(held[1], held[2], records, rounds))
    return held[0], Running((*held[1], (held[2], records)), None, None, 0)


@jax.jit
def _written(records: Any, new: Any, first: Any, count: Any) -> Any:
    """Records with those of some rounds; the leaves are [members, rounds, ...]."""

    def one(old: Any, part: Any) -> Any:
        number = jnp.arange(old.shape[1]).reshape(1, -1, *(1,) * (old.ndim - 2))
        return jnp.where((number >= first) & (number < first + count), part, old)

    return jax.tree.map(one, records, new)


def _restored(
    function: Callable[..., Any], stacked: Any, shared: tuple[Any, ...], execution: Execution, kept: Snapshot
) -> Running:
    """What a snapshot holds, on the device: its structure is found by tracing the stages up to where it was taken."""

    def seen(program: Callable[..., Any], held: Any, *others: Any) -> Any:
        if execution.loop == "dispatch":  # its steps cannot be traced, and one round costs little
            return execute.call(program, held, (*others, *shared), execution)
        along = (0, *(None,) * (len(others) + len(shared)))
        return jax.eval_shape(jax.vmap(program, in_axes=along), held, *others, *shared)

    members = take(stacked, np.zeros(kept.at_once, np.int32))
    before: tuple[Any, ...] = ()
    while True:
        stage = _stage(function, len(before))
        carry = seen(stage.enter, (members, before))
        records = seen(stage.advance, (members, before, carry), jnp.int32(0), jnp.int32(1))[1]
        if len(before) == kept.stage:
            before, carry, records = snapshots.tree((before, carry, records), kept.state)
            return Running(before, carry, records, kept.rounds)
        before = (*before, (carry, records))
