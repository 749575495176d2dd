"""Cuts through a long computation of one member, whose code need not know of them.

A method calls its long loops with :func:`bdjax.train.loops.epochs`, :func:`~bdjax.train.loops.rounds` or
:func:`~bdjax.train.loops.until`. While a population runs in segments (:mod:`bdjax.population.segments`) the outermost of these
loops, in the order in which they are called, are its *stages*: the function is traced up to a stage, through some of its rounds,
or from there to the next one, and what the stages before gave is handed in instead of being computed again. What lies between two
stages is computed anew in every part, so long work belongs into a loop.

Only loops that are called in the function's own trace are stages: those inside a ``jit``, ``vmap``, ``cond`` or another loop of a
method run whole, as a part of what is around them.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

from jax.extend.core import get_opaque_trace_state


class Part(NamedTuple):
    """Some rounds of a stage."""

    carry: Any
    first: Any  # i32[]
    count: Any  # i32[]


class Reached(Exception):
    """The function came to where it is cut."""

    def __init__(self, value: Any, length: int) -> None:
        super().__init__()
        self.value, self.length = value, length  # carry, or what the rounds of a part gave; rounds of the stage in all


class Cut:
    """Where a call of the function begins and ends.

    Args:
      before: (carry, records) of the stages that are over.
      part: rounds of the stage after these; None = only come to it.
    """

    def __init__(self, before: Sequence[tuple[Any, Any]], part: Part | None) -> None:
        self.before, self.part, self._seen = before, part, 0
        self._trace = get_opaque_trace_state()

    @property
    def is_here(self) -> bool:
        """Whether this is the trace that is cut."""
        return bool(get_opaque_trace_state() == self._trace)

    def stage(self, carry: Any, length: int, advance: Callable[[Part], tuple[Any, Any]]) -> tuple[Any, Any]:
        """Return what a stage gave that is over.

        Args:
          carry: with which it begins.
          length: its rounds in all.
          advance: computes some of them.

        Raises:
          Reached: the function is cut here.
        """
        number, self._seen = self._seen, self._seen + 1
        if number < len(self.before):
            return self.before[number]
        if self.part is None:
            raise Reached(carry, length)
        with set_to(None):  # loops inside of this one are part of its rounds
            raise Reached(advance(self.part), length)


_current: ContextVar[Cut | None] = ContextVar("cut", default=None)


def current() -> Cut | None:
    """Return the cut of the function that is being called here; None where it runs whole."""
    cut = _current.get()
    return cut if cut is not None and cut.is_here else None


@contextlib.contextmanager
def set_to(cut: Cut | None) -> Iterator[None]:
    """Cut what is called in the block."""
    token = _current.set(cut)
    try:
        yield
    finally:
        _current.reset(token)
