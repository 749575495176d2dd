"""What of a grid lacks a record: the members to train, the members to repair."""

import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from bdjax.store import checkpoints, records
from bdjax.store.hashing import short_hash
from bdjax.store.location import Location
from bdjax.store.rows import Row
from bdjax.sweep import build, editions
from bdjax.sweep.expand import Branch
from bdjax.sweep.grid import Grid
from bdjax.types import Dataset


class Work(NamedTuple):
    """A branch with its data set, and what it asks for."""

    branch: Branch
    dataset: Dataset
    cell: str  # hash of the training cell
    points: tuple[build.Point, ...]  # its members
    repairs: tuple[tuple[build.DefenseCell, str, tuple[build.Point, ...]], ...]  # defense cell, its hash, its members
    earlier: Mapping[str, tuple[str, ...]] = MappingProxyType({})  # {hash of a cell: those it had with earlier editions}


class Open(NamedTuple):
    """A branch and what of it lacks a record."""

    branch: Branch
    dataset: Dataset
    training: tuple[tuple[build.Point, ...], ...]  # member sets to train
    repairs: tuple[tuple[build.DefenseCell, str, tuple[build.Point, ...]], ...]  # defense cell, its hash, members to repair


class Tries:
    """Which failed members are to be tried again: those that had failed before this call, once.

    What fails during the call, here or in another process that shares the folder, is left to the next one.
    """

    def __init__(self) -> None:
        self._before: dict[str, dict[str, str]] = {}  # cell: {member: when it failed}
        self._made: set[str] = set()  # cells that this call ran
        self._damaged: set[str] = set()  # training cells whose trained members were found damaged in this call

    def see(self, cell: str, rows: Mapping[str, Row]) -> None:
        """Look at the rows of a cell by member; the first look tells what had failed before."""
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

    def lacks(self, cell: str, rows: Mapping[str, Row], point: build.Point) -> bool:
        """Whether a member of a cell is to be made; ``rows`` are those stored of the cell, by member."""
        row = rows.get(build.member_hash(point))
        if cell in self._made or (row is not None and row["status"] != "failed"):
            return False
        return row is None or self._before[cell].get(row["member"]) == row["created"]


def work(branch: Branch, dataset: Dataset, grid: Grid) -> Work:
    """What a branch asks for."""
    told = [build.describe(branch.train, dataset.digest), *(build.describe(cell, dataset.digest) for cell in branch.defenses)]
    names = [short_hash(one) for one in told]
    repairs = [(cell, name, _defense_points(cell, grid)) for cell, name in zip(branch.defenses, names[1:], strict=True)]
    before = {name: found for name, one in zip(names, told, strict=True) if (found := editions.earlier(one))}
    return Work(branch, dataset, names[0], _points(grid, [{}]), tuple(repairs), before)


def opened(mine: Work, out: Location, tries: Tries) -> Open:
    """What of a branch lacks a record: the members to repair, and the member sets to train.

    Trained are those without a record, and those whose weights are gone though a repair needs them, exactly as they were.
    """
    wanted = [(cell, name, missing(name, points, out, tries)) for cell, name, points in mine.repairs]
    repairs = tuple(defense for defense in wanted if defense[2])
    files = records.read_cell(out, mine.cell)
    rows = by_member([row for _, row in files])
    tries.see(mine.cell, rows)
    lacking = tuple(point for point in mine.points if tries.lacks(mine.cell, rows, point))
    sets = [lacking] if lacking else []
    if repairs:
        sets += _lost(out, mine.cell, files, {trained_hash(point) for _, _, points in repairs for point in points})
    return Open(mine.branch, mine.dataset, tuple(sets), repairs)


def missing(cell: str, points: Sequence[build.Point], out: Location, tries: Tries) -> tuple[build.Point, ...]:
    """The members of a cell that lack a record."""
    rows = by_member([row for _, row in records.read_cell(out, cell)])
    tries.see(cell, rows)
    return tuple(point for point in points if tries.lacks(cell, rows, point))


def by_member(rows: Sequence[Row]) -> dict[str, Row]:
    """The latest row of each member of one cell."""
    return {row["member"]: row for row in records.latest(rows)}


def _lost(out: Location, cell: str, files: list[tuple[str, Row]], needed: set[str]) -> list[tuple[build.Point, ...]]:
    """Member sets whose trained members are needed again but no longer on disk, exactly as they were trained."""
    there = checkpoints.find(out, cell)
    gone = {name for name, row in files if row["status"] == "ok" and row["member"] in needed and row["member"] not in there}
    return [tuple(build.Point(row["seed"], row["ratio"], {}) for at, row in files if at == name) for name in sorted(gone)]


def trained_hash(point: build.Point) -> str:
    """The member of the training cell that a member of a defense cell was."""
    return build.member_hash(point._replace(hyper={}))


def all_points(mine: Work) -> list[build.Point]:
    """Every member that a branch asks for, trained or repaired."""
    return [*mine.points, *(point for _, _, points in mine.repairs for point in points)]


def _points(grid: Grid, hypers: list[dict[str, Any]]) -> tuple[build.Point, ...]:
    axes = itertools.product(grid.seeds, grid.poison_ratios, hypers)
    return tuple(build.Point(seed, float(ratio), hyper) for seed, ratio, hyper in axes)


def _defense_points(cell: build.DefenseCell, grid: Grid) -> tuple[build.Point, ...]:
    model, _ = build.attacked(cell.train)
    defense = build.defended(cell, model)
    return _points(grid, build.hyper_points(defense, grid.hyper.get(cell.defense, {}), cell.defense))
