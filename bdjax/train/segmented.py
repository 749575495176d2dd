"""A long computation of one member in parts, so that the host is asked between them (:mod:`bdjax.population.segments`)."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Segmented(NamedTuple):
    """A computation of one member in parts."""

    begin: Callable[..., Any]  # (one, *shared) -> state, which holds what the next parts need of the member
    advance: Callable[..., Any]  # (state, first i32[], count i32[], *shared) -> state after rounds first … first + count - 1
    end: Callable[..., Any]  # (state, *shared) -> result
    length: int  # rounds in all
