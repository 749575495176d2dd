"""How far the sweeps of a folder are: a question that any process may ask while others work."""

import io
import time
from collections import Counter
from statistics import mean
from typing import Any, NamedTuple

from bdjax.errors import UserError, command
from bdjax.plugins.load import source_digest
from bdjax.store import leases, location
from bdjax.store.absent import no_folder
from bdjax.store.leases import Lease
from bdjax.store.location import Location
from bdjax.sweep import editions, manifest
from bdjax.sweep.bars import clock
from bdjax.sweep.manifest import Asked

KEPT = ("member", "status", "seconds", "compile_seconds", "created", "config")  # what is read of a record
STATES = (
    "done",
    "failed",
    "outdated",
    "running",
    "waiting",
)  # outdated: of another edition, or of a file since edited


class Cell(NamedTuple):
    """One cell that was asked for."""

    asked: Asked
    state: str  # one of STATES
    statuses: dict[str, int]  # of its members that have a record
    seconds: float | None  # wall time of its calls, compilation included; None = it has no record
    lease: Lease | None  # of the process that works on it
    edited: str = ""  # the file of the user's own that was edited before the cell was finished, which so is made no more
    changed: str = ""  # which editions its records were made with, where these are no longer today's


class Status(NamedTuple):
    """The cells of a folder, and the seconds that what is left will take one process; None = nothing to go by."""

    cells: tuple[Cell, ...]
    left: float | None
    replaced: tuple[str, ...] = ()  # what the records of cells were made with that were asked for again with today's editions


class Watch:
    """Looks at a folder again and again, and reads what changed since the last look.

    Args:
      out: folder of results.

    Raises:
      UserError: no sweep has ever been asked of it.
    """

    def __init__(self, out: Location):
        if not location.is_folder(out / "sweeps"):
            start = f"quickstart, run and sweep begin one, for example with: {command('sweep', 'FILE.py', '--out', out)}"
            raise no_folder(out, "a sweep", start)
        self.out = out
        self._files: dict[Location, tuple[Any, list[dict[str, Any]]]] = {}  # version of a file, and its rows
        self._cells: dict[str, list[dict[str, Any]]] = {}  # the rows of each cell at this look
        self._leased: set[str] = set()  # cells with a lease at this look

    def look(self) -> Status:
        """The state of every cell now. A cell is done when every member that was asked of it has a record that did not fail.

        A cell that was asked for again with later editions of its methods is not counted any more.
        """
        asked = manifest.read(self.out)
        before = {name for one in asked for name in one.earlier}
        self._leased = {path.stem for path in location.files(self.out / "claims", "*.json")}
        self._read()
        cells = [self._cell(one) for one in asked if one.cell not in before]
        replaced = tuple(text for name in sorted(before) if (text := self._changed(name)))
        seen: dict[str, list[float]] = {}
        for cell in cells:
            if cell.seconds is not None:
                seen.setdefault(cell.asked.defense, []).append(cell.seconds)
        known = {kind: mean(seconds) for kind, seconds in seen.items()}
        left = [cell for cell in cells if cell.state in ("outdated", "running", "waiting") and not cell.edited]
        any_kind = mean(known.values()) if known else None
        total = None if any_kind is None else sum(known.get(cell.asked.defense, any_kind) for cell in left)
        return Status(tuple(cells), total if left else 0.0, replaced)

    def _changed(self, cell: str) -> str:
        """The editions that the records of a cell were made with, in words, where these are no longer today's."""
        rows = self._cells.get(cell, [])
        return editions.said(editions.changed(rows[0]["config"])) if rows else ""

    def _cell(self, asked: Asked) -> Cell:
        rows = self._cells.get(asked.cell, [])
        best: dict[str, str] = {}
        for row in rows:
            if row["member"] in asked.members and best.get(row["member"], "failed") == "failed":
                best[row["member"]] = row["status"]
        calls = {(row["created"], row["seconds"], row["compile_seconds"]) for row in rows if row["seconds"] is not None}
        seconds = sum(spent + (compiling or 0.0) for _, spent, compiling in calls) if calls else None
        found = leases.read(self.out / "claims" / f"{asked.cell}.json") if asked.cell in self._leased else None
        lease, changed, edited = found[1] if found else None, self._changed(asked.cell), ""
        if lease is not None and not leases.holder_is_dead(lease):
            state = "running"
        elif changed:
            state, lease = "outdated", None
        elif len(best) < len(asked.members):
            state, lease = "outdated" if (edited := _edited(asked)) else "waiting", None
        else:
            state, lease = "failed" if "failed" in best.values() else "done", None
        return Cell(asked, state, dict(Counter(best.values())), seconds, lease, edited, changed)

    def _read(self) -> None:
        """Read the records that are new or changed."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        there = location.versions(self.out / "records", "*/*.parquet")
        changed = [path for path, version in there.items() if path not in self._files or self._files[path][0] != version]
        for path, content in zip(changed, location.read_many(changed), strict=True):
            try:
                if isinstance(content, OSError):
                    raise content
                table = pq.read_table(io.BytesIO(content), columns=list(KEPT), use_threads=False)
                self._files[path] = there[path], table.to_pylist()
            except (pa.ArrowException, OSError, ValueError, KeyError):  # damaged, or just replaced: a run will say so and redo it
                self._files.pop(path, None)
        self._cells = {}
        for path in sorted(path for path in there if path in self._files):  # type: ignore[type-var]
            self._cells.setdefault(path.parent.name, []).extend(self._files[path][1])


def table(status: Status, out: str) -> Any:
    """A status as a rich table: a row per data set, model and attack, and below it what runs and what failed."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False)
    for column in ("data set", "model", "attack", "cells", *STATES):
        grid.add_column(column, justify="left" if column in ("data set", "model", "attack") else "right")
    groups: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in status.cells:
        groups.setdefault((cell.asked.dataset, cell.asked.model, cell.asked.attack), []).append(cell)
    for facts, cells in groups.items():
        counts = Counter(cell.state for cell in cells)
        grid.add_row(*map(Text, facts), str(len(cells)), *(str(counts[state] or "") for state in STATES))
    return Group(Text(headline(status, out)), grid, *map(Text, notes(status)))


def headline(status: Status, out: str) -> str:
    """Cells done of cells asked for, members likewise, and the time left."""
    done = sum(cell.state in ("done", "failed") for cell in status.cells)
    asked = sum(len(cell.asked.members) for cell in status.cells)
    made = sum(sum(cell.statuses.values()) for cell in status.cells)
    workers = len({cell.lease.token for cell in status.cells if cell.lease})
    text = f"{out}: {done} of {len(status.cells)} cells finished, {made} of {asked} members"
    if workers:
        left = "" if not status.left else f", about {clock(status.left / workers)} to go"
        text += f"{left} with {workers} process{'es' if workers > 1 else ''}"
    elif status.left != 0.0:
        text += ", no process is at work: the same command goes on"
    return text


def notes(status: Status) -> list[str]:
    """A line per cell that runs, and per cell with members that are not ok; and how many were made with other editions."""
    lines = []
    for cell in status.cells:
        name = " / ".join(filter(None, (cell.asked.dataset, cell.asked.model, cell.asked.attack, cell.asked.defense)))
        name += "" if cell.asked.spc is None else f" / spc {cell.asked.spc}"
        if cell.lease:
            far = f": {cell.lease.note}" if cell.lease.note else ""
            lines.append(f"running: {name}, process {cell.lease.pid} on {cell.lease.host} since {cell.lease.since}{far}")
        bad = {status: count for status, count in cell.statuses.items() if status != "ok"}
        if bad:
            lines.append(f"not ok: {name}: " + ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in bad.items()))
    old = Counter(cell.changed for cell in status.cells if cell.state == "outdated" and not cell.edited)
    lines += [f"outdated: {_cells(count)} {text}: the same command makes them again" for text, count in old.items()]
    edited = Counter(cell.edited for cell in status.cells if cell.edited)
    lines += [
        f"outdated: {_cells(count)} of {name} before it was edited: they are made no more" for name, count in edited.items()
    ]
    again = Counter(status.replaced)
    return lines + [f"not counted: {_cells(count)} {text}: they were asked for again" for text, count in again.items()]


def _edited(asked: Asked) -> str:
    """The first file of the user's own that is another one now than when a cell was asked for; "" where none is, or is here."""
    for name, before in asked.sources:
        try:
            if source_digest(name) != before:
                return name
        except UserError:  # it is not here: nothing is known of it
            continue
    return ""


def _cells(count: int) -> str:
    return f"{count} cell{'s' if count > 1 else ''}"


def show(out: Location, *, watch: bool, interval: float = 2.0) -> None:
    """Print the status of a folder, or keep showing it until everything is finished.

    Raises:
      UserError: no sweep has ever been asked of the folder.
    """
    from rich.console import Console
    from rich.live import Live

    looking, console = Watch(out), Console(soft_wrap=True)
    status = looking.look()
    if not watch:
        console.print(table(status, str(out)))
        return
    with Live(table(status, str(out)), console=console, auto_refresh=False) as live:
        while any(cell.state in ("running", "waiting") for cell in status.cells):
            time.sleep(interval)
            status = looking.look()
            live.update(table(status, str(out)), refresh=True)
