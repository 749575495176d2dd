"""A worker of the storm: the command ``bdjax``, with leases of a few seconds and a diary of what it computes.

    python -m benchmarks.storm_worker SETTINGS sweep FILE --out DIR

SETTINGS is JSON: ``diary``, a file; ``host``, the name of the machine it stands for, or null where it has that name already;
``heartbeat`` and ``timeout``, seconds; and for a folder in the emulated store ``store`` with ``folder`` (of its objects),
``latency`` (seconds at most), ``failures`` (share of the requests) and ``outage`` (a file: while it exists every request fails).
"""

import json
import os
import random
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bdjax.cli.main import main
from bdjax.population import segments
from bdjax.population.segments import Pace
from bdjax.store.leases import Leases
from bdjax.sweep import kept, run


class Diary:
    """A file with a line for the beginning and the end of every segment; a line is one write, so that no kill breaks it."""

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.where: dict[str, Any] = {}  # cell, stage and its length in rounds

    def write(self, event: str, **facts: Any) -> None:
        """Add a line."""
        os.write(self._handle, json.dumps({"t": time.time(), "event": event, **self.where, **facts}).encode() + b"\n")


def watch(diary: Diary) -> None:
    """Let the diary hear of every segment that this process computes."""

    class Watched(Pace):
        def rounds(self, left: int) -> int:
            count = super().rounds(left)
            diary.write("begin", count=count, left=left)
            return count

        def took(self, rounds: int, seconds: float) -> None:
            diary.write("end", count=rounds, seconds=seconds)
            super().took(rounds, seconds)

    plain_run, plain_advanced = kept.run, segments._advanced

    def ran(function: Any, stacked: Any, attacked: Any, execution: Any, keeper: Any, resumed: Callable[[Any], None]) -> Any:
        def went_on(found: Any) -> None:
            diary.write("resumed", rounds=found.rounds, at=found.stage)
            resumed(found)

        diary.where = {"cell": f"{keeper.cell.name}/{keeper.base.name}"}
        result = plain_run(function, stacked, attacked, execution, keeper, went_on)
        diary.write("done")
        return result

    def advanced(work: Any, stage: Any, *others: Any) -> Any:
        diary.where |= {"stage": stage.number}
        return plain_advanced(work, stage, *others)

    kept.Pace, kept.run, segments._advanced = Watched, ran, advanced  # type: ignore[misc, assignment]


def short_leases(heartbeat: float, timeout: float) -> None:
    """Let the leases of this process end after ``timeout`` seconds without a heartbeat."""

    def leases(out: Any, **others: Any) -> Leases:
        return Leases(out, **{**others, "heartbeat": heartbeat, "timeout": timeout})

    run.Leases = leases  # type: ignore[attr-defined, misc, assignment]


def emulated_store(folder: str, latency: float, failures: float, outage: str) -> None:
    """Make ``bucket://`` known, a store that is slow and fails now and then."""
    from tests.sweep import bucket

    os.environ |= {bucket.ROOT: folder, bucket.LATENCY: str(latency)}
    bucket.register()

    def trouble(request: str, key: str) -> None:
        if os.path.exists(outage) or random.random() < failures:
            raise ConnectionError(f"the store did not answer {request} {key}")

    bucket.Bucket.trouble = staticmethod(trouble)


def begin(settings: dict[str, Any]) -> None:
    """Prepare this process as its settings say."""
    if settings["host"] is not None:
        socket.gethostname = lambda: settings["host"]
    if settings.get("store"):
        emulated_store(**settings["store"])
    watch(Diary(Path(settings["diary"])))
    short_leases(settings["heartbeat"], settings["timeout"])


if __name__ == "__main__":
    begin(json.loads(sys.argv.pop(1)))
    sys.exit(main())
