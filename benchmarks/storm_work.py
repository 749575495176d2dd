"""How much of the storm's work was done twice, from the diaries of its processes.

The unit is the round: an epoch of a training, a step or an epoch of a defense, as :mod:`bdjax.population.segments` counts them.
The rounds that the undisturbed run needed for a cell had to be done; what is beyond them was done twice. Rounds become seconds at
the undisturbed run's own rate, for a process that shares two cores with three others is slower. Of a segment that a kill cut off,
as many rounds count as its process had time for. A cell whose finished files were damaged has to be made again: that is counted
apart, once for every damage at most.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

Key = tuple[str, int]  # cell and member set, stage


class Done(NamedTuple):
    """What processes computed."""

    rounds: dict[Key, float]
    seconds: dict[Key, float]  # of the segments that came to their end
    ended: dict[Key, int]  # the rounds of those
    cut: dict[Key, float]  # rounds of segments that were cut off; part of ``rounds``
    completed: Counter[str]  # cell and member set: how often it came to its end
    resumed: int  # times that a process went on from a checkpoint


class Twice(NamedTuple):
    """Work that was done twice, in seconds of the undisturbed run."""

    needed: float
    twice: float
    cut: float  # the part of it that kills cut off within a segment
    completed_again: float  # the part of it that belongs to cells that two processes brought to an end
    remade: float  # beyond that, what damaged files made necessary

    @property
    def share(self) -> float:
        """Of the work that was needed."""
        return self.twice / self.needed if self.needed else 0.0


def read(diaries: Iterable[Path], deaths: Mapping[str, float]) -> Done:
    """Return what the processes of these diaries computed; ``deaths`` says when each process ended."""
    found = Done(defaultdict(float), defaultdict(float), defaultdict(int), defaultdict(float), Counter(), 0)
    open_ends: list[tuple[Key, int, float]] = []
    resumed = 0
    for path in diaries:
        begun: dict[str, Any] | None = None
        for line in path.read_text().splitlines():
            event = json.loads(line)
            if begun is not None and event["event"] != "end":  # an exception ended it
                open_ends.append((_key(begun), begun["count"], event["t"] - begun["t"]))
            begun = event if event["event"] == "begin" else None
            if event["event"] == "end":
                key = _key(event)
                found.rounds[key] += event["count"]
                found.ended[key] += event["count"]
                found.seconds[key] += event["seconds"]
            resumed += event["event"] == "resumed"
            found.completed[event["cell"]] += event["event"] == "done"
        if begun is not None and str(path) in deaths:
            open_ends.append((_key(begun), begun["count"], deaths[str(path)] - begun["t"]))
    for key, count, seconds in open_ends:
        rate = found.seconds[key] / found.ended[key] if found.ended[key] else 0.0
        part = min(float(count), max(seconds, 0.0) / rate) if rate else float(count)
        found.rounds[key] += part
        found.cut[key] += part
    return found._replace(resumed=resumed)


def of_cells(done: Done, cells: Container[str]) -> Done:
    """Return the rounds of these cells alone, of what a process computed."""
    rounds, seconds, ended = (
        {key: value for key, value in found.items() if key[0].partition("/")[0] in cells}
        for found in (done.rounds, done.seconds, done.ended)
    )
    return done._replace(rounds=rounds, seconds=seconds, ended=ended)


def _key(event: Mapping[str, Any]) -> Key:
    return event["cell"], event["stage"]


def twice(storm: Done, undisturbed: Done, damaged: Mapping[str, int]) -> Twice:
    """Return what a storm did twice of the work of an undisturbed run.

    Args:
      storm: what its processes computed.
      undisturbed: what the undisturbed process computed.
      damaged: cell: damages to its finished files.
    """
    needed = done_twice = cut = again = remade = 0.0
    left = dict(damaged)
    extra: dict[str, int] = {}  # cell and member set: completions that damages explain
    for cell, times in storm.completed.items():
        name = cell.partition("/")[0]
        extra[cell] = max(min(times - 1, left.get(name, 0)), 0)
        left[name] = left.get(name, 0) - extra[cell]
    for key, rounds in undisturbed.rounds.items():
        rate = undisturbed.seconds[key] / undisturbed.ended[key]
        needed += rounds * rate
        beyond = max(storm.rounds.get(key, 0.0) - rounds * (1 + extra.get(key[0], 0)), 0.0)
        done_twice += beyond * rate
        cut += min(storm.cut.get(key, 0.0), beyond) * rate
        again += min(max(storm.completed[key[0]] - 1 - extra.get(key[0], 0), 0) * rounds, beyond) * rate
        remade += rounds * rate * extra.get(key[0], 0)
    return Twice(needed, done_twice, cut, again, remade)
