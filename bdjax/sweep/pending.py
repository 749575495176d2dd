"""The members of a grid that have no record yet: those to train, and those to defend."""

import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from bdjax.store import checkpoints, records
from bdjax.store.hashing import short_hash
from bdjax.store.location import Location
from bdjax.store.rows import Row
from bdjax.sweep import build, editions
from bdjax.sweep.cell import DefenseCell, Point, member_hash
from bdjax.sweep.expand import Branch
from bdjax.sweep.grid import Grid
from bdjax.types import Dataset, Defense


class DefenseRun(NamedTuple):
    """A defense and the members it is to run on."""

    cell: DefenseCell
    name: str  # hash of the cell
    points: tuple[Point, ...]


class Work(NamedTuple):
    """What a grid asks of a branch: all its members, finished or not."""

    branch: Branch
    dataset: Dataset
    cell: str  # hash of the training cell
    points: tuple[Point, ...]  # its members
    defenses: tuple[DefenseRun, ...]
    earlier: Mapping[str, tuple[str, ...]] = MappingProxyType({})  # {hash of a cell: those it had with earlier editions}


class Pending(NamedTuple):
    """The members of a branch that have no record yet."""

    branch: Branch
    dataset: Dataset
    training: tuple[tuple[Point, ...], ...]  # member sets to train
    defenses: tuple[DefenseRun, ...]

    def kinds(self) -> list[str]:
        """What there is to do, as the progress counts it."""
        return ["train"] * len(self.training) + [run.cell.defense for run in self.defenses]


class Tries:
    """Which failed members are to be tried again: those that had failed before this call, once.

    What fails during the call, here or in another process that shares the folder, is left to the next one.
    """

    def __init__(self) -> None:
        self._before: dict[str, dict[str, str]] = {}  # cell: {member: when it failed}
        self._made: set[str] = set()  # cells that this call ran
        self._damaged: set[str] = set()  # training cells whose trained members were found damaged in this call

    def see(self, cell: str, rows: Mapping[str, Row]) -> None:
        """Look at the rows of a cell by member; the first look notes what had failed before."""
        if cell not in self._before:
            self._before[cell] = {member: row["created"] for member, row in rows.items() if row["status"] == "failed"}

    def made(self, cell: str) -> None:
        """This call ran a cell."""
        self._made.add(cell)

    def train_again(self, cell: str) -> bool:
        """Return whether the trained members of a cell, which are damaged, are to be made again: once in a call."""
        first = cell not in self._damaged
        self._damaged.add(cell)
        return first

    def open(self, cell: str, rows: Mapping[str, Row], point: Point) -> bool:
        """Return whether a member of a cell is to be made; ``rows`` are those stored of the cell, by member."""
        row = rows.get(member_hash(point))
        if cell in self._made or (row is not None and row["status"] != "failed"):
            return False
        return row is None or self._before[cell].get(row["member"]) == row["created"]


def work_of(branch: Branch, dataset: Dataset, grid: Grid) -> Work:
    """Return what a branch asks for: the names of its cells and their members."""
    built = (branch.model, branch.attack)
    settings = [build.described(branch.train, dataset.digest, *built)]
    settings += [
        build.described(cell, dataset.digest, *built, defense)
        for cell, defense in zip(branch.defenses, branch.built, strict=True)
    ]
    names = [short_hash(one) for one in settings]
    runs = tuple(
        DefenseRun(cell, name, _defense_points(cell, defense, grid))
        for cell, name, defense in zip(branch.defenses, names[1:], branch.built, strict=True)
    )
    before = {name: found for name, one in zip(names, settings, strict=True) if (found := editions.earlier(one))}
    return Work(branch, dataset, names[0], _points(grid, [{}]), runs, before)


def pending(work: Work, out: Location, tries: Tries) -> Pending:
    """Return the members of a branch that have no record yet.

    To be trained are those without a record, and those whose weights are gone though a defense needs them, in the sets they were
    trained in.
    """
    runs = [run._replace(points=missing(run.name, run.points, out, tries)) for run in work.defenses]
    runs = [run for run in runs if run.points]
    files = records.read_cell(out, work.cell)
    rows = by_member([row for _, row in files])
    tries.see(work.cell, rows)
    untrained = tuple(point for point in work.points if tries.open(work.cell, rows, point))
    sets = [untrained] if untrained else []
    if runs:
        sets += _lost(out, work.cell, files, {trained_hash(point) for run in runs for point in run.points})
    return Pending(work.branch, work.dataset, tuple(sets), tuple(runs))


def missing(cell: str, points: Sequence[Point], out: Location, tries: Tries) -> tuple[Point, ...]:
    """Return the members of a cell that have no record yet."""
    rows = by_member([row for _, row in records.read_cell(out, cell)])
    tries.see(cell, rows)
    return tuple(point for point in points if tries.open(cell, rows, point))


def by_member(rows: Sequence[Row]) -> dict[str, Row]:
    """The latest row of each member of one cell."""
    return {row["member"]: row for row in records.latest(rows)}


def _lost(out: Location, cell: str, files: list[tuple[str, Row]], needed: set[str]) -> list[tuple[Point, ...]]:
    """Member sets whose trained members are needed again but no longer on disk, exactly as they were trained."""
    there = checkpoints.find(out, cell)
    gone = {name for name, row in files if row["status"] == "ok" and row["member"] in needed and row["member"] not in there}
    return [tuple(Point(row["seed"], row["ratio"], {}) for at, row in files if at == name) for name in sorted(gone)]


def trained_hash(point: Point) -> str:
    """The member of the training cell that a member of a defense cell was."""
    return member_hash(point._replace(hyper={}))


def all_points(work: Work) -> list[Point]:
    """Every member that a branch asks for, trained or defended."""
    return [*work.points, *(point for run in work.defenses for point in run.points)]


def _points(grid: Grid, hypers: list[dict[str, Any]]) -> tuple[Point, ...]:
    axes = itertools.product(grid.seeds, grid.poison_ratio, hypers)
    return tuple(Point(seed, float(ratio), hyper) for seed, ratio, hyper in axes)


def _defense_points(cell: DefenseCell, defense: Defense, grid: Grid) -> tuple[Point, ...]:
    return _points(grid, build.hyper_points(defense, grid.hyper.get(cell.defense, {}), cell.defense))
