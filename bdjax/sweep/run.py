"""Run a grid: train what lacks a record, repair it with every defense, store each cell as it finishes."""

import contextlib
import functools
import io
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

from bdjax.data import sizes
from bdjax.data.room import size_text
from bdjax.errors import UserError
from bdjax.plugins.load import settled
from bdjax.population import Execution, device_memory, hosts
from bdjax.store import atomic, checkpoints, location
from bdjax.store import records as store
from bdjax.store.leases import PATIENCE, Claims
from bdjax.store.location import Location
from bdjax.store.rows import Row
from bdjax.sweep import build, expand, manifest, outdated, pending
from bdjax.sweep.cells import clean_reason, defend, place
from bdjax.sweep.execution import Chosen, chosen
from bdjax.sweep.expand import Branch
from bdjax.sweep.grid import Grid
from bdjax.sweep.imported_cells import begin
from bdjax.sweep.pending import Open, Tries, Work
from bdjax.sweep.progress import Progress
from bdjax.sweep.ready import Ready
from bdjax.sweep.summary import summary
from bdjax.types import Dataset

POLL = (0.5, 5.0)  # seconds between two looks at what other processes have left; at first, at most


@settled()  # a user's file that is edited meanwhile is the next run's
def run(
    grid: Grid,
    out: "str | Location",
    *,
    data_dir: str | None = None,
    execution: Execution | Mapping[str, Any] | None = None,
    tuned: bool = True,
    only: Mapping[str, str] | None = None,
    limit: int | None = None,
    strict: bool = False,
    patience: float = PATIENCE,
    stream: TextIO | None = None,
) -> Any:
    """Run what a grid lacks and return its records; the same call resumes after any interruption.

    Several processes, on one machine or on many, may run the same grid or others into one folder: each takes a cell that nobody
    works on, and the call returns when nothing is left.

    Args:
      grid: what to run.
      out: folder of records and trained members, a path or the URL of one in an object store; made if missing.
      data_dir: folder of the data archives.
      execution: how populations run, or single fields of it; the rest is what was tuned (see ``tuned``), or the default of the
        platform and the model.
      tuned: use the execution that :func:`bdjax.population.autotune.tune.tune` remembers for a cell's model, batch and this
        machine, if any.
      only: {axis: value}, keeps the cells that match (see :func:`bdjax.sweep.expand.select`).
      limit: number of cells to run at most.
      strict: a clean subset larger than a class is an error and not an ``infeasible`` record.
      patience: seconds after which a cell is taken over from a process that no longer gives signs of life.
      stream: where progress is printed; None = stderr.

    Returns:
      polars.DataFrame of the rows of this grid: one per member and cell. A cell that raised has rows with status ``failed``; the
      next call tries them again.

    Raises:
      UserError: a mistake in the grid, missing data, a folder that cannot be written.
    """
    out, branches = location.locate(out), expand.select(expand.cells(grid), only or {}, limit)
    choices = choices_of(branches, grid, execution, tuned=tuned, data_dir=data_dir)
    datasets = {name: load(grid, name, data_dir) for name in {branch.train.dataset: None for branch in branches}}
    if strict:
        for branch in branches:
            refuse_infeasible(branch, datasets[branch.train.dataset])
    atomic.writable(out)
    works = [pending.work(branch, datasets[branch.train.dataset], grid) for branch in branches]
    tries = Tries()
    found = [_opened(work, out, tries) for work in works]
    ready = Ready()
    for work, one in zip(works, found, strict=True):
        if _kinds(one):
            ready.look(work.branch, work.dataset)
    if not hosts.is_leader():  # one of several processes that run the same: the first one tells
        stream = io.StringIO()
    for line in [*summary(found, choices), *(outdated.lines(works, out) if any(map(_kinds, found)) else ())]:
        print(line, file=stream or sys.stderr, flush=True)
    unfinished = [(work, choice.execution) for work, one, choice in zip(works, found, choices, strict=True) if _kinds(one)]
    progress = Progress([kind for one in found for kind in _kinds(one)], stream)
    with progress, Claims(out, patience=patience, say=progress.say) as claims:
        if hosts.is_leader():
            manifest.write(out, works, claims)
        _run(unfinished, out, tries, claims, progress)
    records = store.read(out)
    cells = [cell for work in works for cell in (work.cell, *(name for _, name, _ in work.repairs))]
    members = [build.member_hash(point) for work in works for point in pending.all_points(work)]
    return records.filter(records["cell"].is_in(cells) & records["member"].is_in(members))


def load(grid: Grid, name: str, data_dir: str | None) -> Dataset:
    """The data set of a grid, reduced as the grid says.

    Raises:
      UserError: see :func:`bdjax.data.load`; the images do not fit the memory of the device, which holds them all.
    """
    from bdjax.data import load as load_data

    dataset = load_data(name, data_dir, train_images=grid.train_images, test_images=grid.test_images)
    needed, limit = sum(split.images.nbytes for split in (dataset.train, dataset.test)), device_memory()
    if needed > limit:
        raise UserError(
            f"the images of {dataset.spec.name} need {size_text(needed)}, {size_text(limit)} of the device's memory may be used; "
            "reduce --train-images and --test-images"
        )
    return dataset


def choices_of(
    branches: Sequence[Branch],
    grid: Grid,
    execution: Execution | Mapping[str, Any] | None,
    *,
    tuned: bool = True,
    data_dir: str | None = None,
) -> list[Chosen]:
    """The execution of every branch; raises UserError for one that cannot run here."""
    members, found, choices = len(grid.seeds) * len(grid.poison_ratios), {}, []
    for cell in (branch.train for branch in branches):
        work = (cell.dataset, cell.model, build.attacked(cell)[1].recipe.batch)
        if work not in found:  # attacks share what was tuned
            found[work] = chosen(cell, sizes_of(grid, cell.dataset, data_dir)[0], members, execution, tuned=tuned)
        choices.append(found[work])
    return choices


def sizes_of(grid: Grid, name: str, data_dir: str | None) -> tuple[int, int]:
    """Training and test rows of a data set of the grid, without reading them."""
    return sizes(name, train_images=grid.train_images, test_images=grid.test_images, data_dir=data_dir)


def refuse_infeasible(branch: Branch, dataset: Dataset) -> None:
    """Raise UserError where a defense asks for more clean samples than a class holds."""
    model, _ = build.attacked(branch.train)
    for cell in branch.defenses:
        reason = clean_reason(cell, dataset, build.defended(cell, model))
        if reason:
            raise UserError(f"{cell.defense}: {reason}")


def _run(unfinished: list[tuple[Work, Execution]], out: Location, tries: Tries, claims: Claims, progress: Progress) -> None:
    """Work on every cell that nobody else works on until none is left; wait where others are at work."""
    wait = POLL[0]
    while True:
        moved = [_advance(work, out, execution, tries, claims, progress) for work, execution in unfinished]
        found = [(pair, kinds) for pair in unfinished if (kinds := _kinds(_opened(pair[0], out, tries)))]
        unfinished, kinds = [pair for pair, _ in found], [kind for _, some in found for kind in some]
        if not unfinished:
            return
        progress.expect(kinds)
        if any(moved):
            wait = POLL[0]
            continue
        if wait == POLL[0]:
            progress.say(f"waiting for {len(kinds)} cells that other processes work on")
        time.sleep(wait)
        wait = min(2 * wait, POLL[1])


def _advance(work: Work, out: Location, execution: Execution, tries: Tries, claims: Claims, progress: Progress) -> bool:
    """Make what a branch lacks and nobody else is making; gives whether there was anything."""
    found, moved = _opened(work, out, tries), False
    attacked = functools.cache(lambda: place(work.branch.train, work.cell, work.dataset, execution))
    if found.training:
        with _holding(claims, work.cell) as got:
            if not got:  # what is to be repaired is only just being trained
                return False
            for points in _opened(work, out, tries).training:
                begin(attacked(), points, out, progress)
                moved = True
            tries.made(work.cell)
    trained = functools.cache(lambda: _trained(work, out, found.repairs))
    for cell, name, points in found.repairs:
        with _holding(claims, name) as got:
            if not got:
                continue
            # Another process may have made it before it was claimed.
            points = hosts.broadcast(pending.missing(name, points, out, tries))
            if points:
                defend(attacked(), cell, name, points, trained(), out, progress)
                tries.made(name)
                moved = True
    return moved


def _opened(work: Work, out: Location, tries: Tries) -> Open:
    """What a branch lacks, as the first of several processes finds it."""
    found = pending.opened(work, out, tries)
    training, repairs = hosts.broadcast((found.training, found.repairs))
    return found._replace(training=training, repairs=repairs)


@contextlib.contextmanager
def _holding(claims: Claims, cell: str) -> Iterator[bool]:
    """Hold a cell; of several processes that work on it together the first one holds it, until all are done with it."""
    with claims.holding(cell) if hosts.is_leader() else contextlib.nullcontext(False) as got:
        yield hosts.broadcast(got)
        hosts.broadcast(None)


def _trained(work: Work, out: Location, repairs: Sequence[Any]) -> tuple[dict[str, Row], checkpoints.Stored]:
    """Rows by member of a training cell, and its trained members that ``repairs`` need."""
    rows = pending.by_member([row for _, row in store.read_cell(out, work.cell)])
    places = checkpoints.find(out, work.cell)
    needed = dict.fromkeys(pending.trained_hash(point) for _, _, points in repairs for point in points)
    there = [name for name in needed if rows[name]["status"] == "ok"]
    try:
        return rows, checkpoints.load(out, work.cell, [places[name] for name in there])
    except atomic.Corrupt as reason:
        raise UserError(f"the trained members of cell {work.cell} in {out} changed while they were read: {reason}") from reason


def _kinds(found: Open) -> list[str]:
    """What a branch lacks, as the progress counts it."""
    return ["train"] * len(found.training) + [cell.defense for cell, _, _ in found.repairs]
