"""What came of the storm, as a table and in sentences."""

import argparse
import statistics
from collections import Counter
from typing import Any, NamedTuple

from benchmarks.storm_cluster import MACHINES, WORKERS
from benchmarks.storm_compare import COMPARED
from benchmarks.storm_events import SIGNALS
from benchmarks.storm_work import Twice

STORE = "store"  # name of the folder of the part with an object store


class Round(NamedTuple):
    """What came of a folder."""

    name: str
    seconds: float
    happened: Counter[str]
    facts: Counter[str]
    answers: list[float]  # seconds between SIGTERM and the end of a process
    wrong: list[str]
    unread: int  # networks that were damaged when nobody needed them any more
    work: Twice


def table(rounds: list[Round]) -> list[dict[str, Any]]:
    """Return how often what happened, and what the processes did about it."""
    every = sum((one.happened for one in rounds), Counter[str]())
    facts = sum((one.facts for one in rounds), Counter[str]())
    return [{"event": name, "times": count} for found in (every, facts) for name, count in sorted(found.items())]


def summary(rounds: list[Round], args: argparse.Namespace, timeout: float, mounts: bool) -> str:
    """Return the results in sentences."""
    stormy, stored = ([one for one in rounds if (one.name == STORE) is kind] for kind in (False, True))
    signals = sum(count for one in stormy for name, count in one.happened.items() if name in SIGNALS)
    answers = [seconds for one in rounds for seconds in one.answers]
    lines = [
        f"equal: {'no' if any(one.wrong for one in rounds) else 'yes'}",
        f"work done twice: {100 * share(stormy):.1f} % of what was needed",
        "",
        f"- {signals} signals over {WORKERS} processes on {len(MACHINES)} host names; the disk is "
        f"{'a tmpfs of its own' if mounts else 'not mounted: file sizes were limited'}.",
        *(_of_round(one) for one in rounds),
        *([f"- Work done twice in the object store: {100 * share(stored):.1f} %."] if stored else []),
        f"- SIGTERM was answered within {max(answers):.1f} s (median {statistics.median(answers):.1f} s)." if answers else None,
        f"- Checkpoints every {args.checkpoint_every:g} s, leases of {timeout:g} s.",
        f"- Compared columns: {', '.join(COMPARED)}; of every network its variables and trigger, and all stored arrays.",
        *(f"- DIFFERENT: {one.name}: {line}" for one in rounds for line in one.wrong[:10]),
    ]
    return "\n".join(line for line in lines if line is not None)


def share(rounds: list[Round]) -> float:
    """Return the work that was done twice, as a share of what was needed."""
    return sum(one.work.twice for one in rounds) / max(sum(one.work.needed for one in rounds), 1e-9)


def _of_round(one: Round) -> str:
    work = one.work
    unread = f"; {one.unread} networks were damaged when every defense had read them" if one.unread else ""
    return (
        f"- {one.name}: {one.seconds:.0f} s for {work.needed:.0f} s of work; done twice {work.twice:.1f} s (cut off within a "
        f"segment {work.cut:.1f} s, cells that two processes ended {work.completed_again:.1f} s), made again after damage "
        f"{work.remade:.1f} s{unread}"
    )
