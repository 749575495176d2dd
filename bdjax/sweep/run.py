"""Run a grid: train what has no record yet, run every defense on it, store each cell as it finishes."""

import io
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TextIO

from bdjax.data import sizes
from bdjax.data.poisoned_export import already_poisoned
from bdjax.data.room import size_text
from bdjax.errors import UserError
from bdjax.plugins.load import settled
from bdjax.population import Execution, device_memory, hosts
from bdjax.store import atomic, location
from bdjax.store import records as store
from bdjax.store.leases import TIMEOUT, Leases
from bdjax.store.location import Location
from bdjax.sweep import expand, first_tuning, manifest, outdated, trackers
from bdjax.sweep.cell import member_hash
from bdjax.sweep.defend_cell import clean_reason
from bdjax.sweep.execution import Chosen, chosen
from bdjax.sweep.expand import Branch
from bdjax.sweep.grid import Grid
from bdjax.sweep.listeners import about_this_process, listeners
from bdjax.sweep.pending import Tries, all_points, work_of
from bdjax.sweep.progress import Progress
from bdjax.sweep.ready import Ready
from bdjax.sweep.summary import summary
from bdjax.sweep.working import agreed, tidy, work_off
from bdjax.types import Dataset


@settled()  # a user's file that is edited meanwhile is the next run's
def run(
    grid: Grid,
    out: "str | Location",
    *,
    data_dir: str | None = None,
    execution: Execution | Mapping[str, Any] | None = None,
    tuned: bool = True,
    tune: bool = True,
    only: Mapping[str, str] | None = None,
    limit: int | None = None,
    part: Collection[int] | None = None,
    strict: bool = False,
    timeout: float = TIMEOUT,
    checkpoint_every: float | None = None,
    stream: TextIO | None = None,
    log_to: str | Sequence[str] = (),
) -> Any:
    """Run what of a grid has no record yet and return its records; the same call resumes after any interruption.

    Several processes, on one machine or on many, may run the same grid or others into one folder: each takes a cell that nobody
    works on, and the call returns when nothing is left.

    Args:
      grid: what to run.
      out: folder of records and trained members, a path or the URL of one in an object store; made if missing.
      data_dir: folder of the data archives.
      execution: how populations run, or single fields of it; the rest is what was tuned (see ``tuned``), or the default of the
        platform and the model.
      tuned: use the execution that :func:`bdjax.population.autotune.tune.tune` cached for a cell's model, batch and this
        machine, if any.
      tune: where nothing is remembered of this device, nothing of ``execution`` is given and the plan is longer than ten minutes,
        measure first which execution is fastest, for at most a minute (see :mod:`bdjax.sweep.first_tuning`).
      only: {axis: value}, keeps the cells that match (see :func:`bdjax.sweep.expand.select`).
      limit: number of cells to run at most.
      part: of the training cells that are left by these, the numbers of those to run with their defenses; None = all.
      strict: a clean subset larger than a class is an error and not an ``infeasible`` record.
      timeout: seconds after which a cell is taken over from a process that no longer gives signs of life.
      checkpoint_every: seconds between two checkpoints of a cell that runs, from which a killed run goes on; None = at least 5
        and at most 60, as many as make them cost a hundredth.
      stream: where progress is printed; None = stderr.
      log_to: "tensorboard", "wandb" or both: where curves go beside the log file that every run writes below ``out/logs``
        (see :mod:`bdjax.sweep.trackers`).

    Returns:
      polars.DataFrame of the rows of this grid: one per member and cell. A cell that raised has rows with status ``failed``; the
      next call tries them again.

    Raises:
      UserError: a mistake in the grid, missing data, a folder that cannot be written, a package that is not installed.
    """
    if checkpoint_every is not None and not checkpoint_every > 0:
        raise UserError(f"checkpoint-every {checkpoint_every:g} is not allowed; it is a number of seconds above 0")
    out, branches = location.locate(out), expand.select(expand.cells(grid), only or {}, limit)
    log_to = trackers.checked(log_to, out)
    branches = branches if part is None else [branch for number, branch in enumerate(branches) if number in part]
    choices = choices_of(branches, grid, execution, tuned=tuned, data_dir=data_dir)
    datasets = {name: load(grid, name, data_dir) for name in {branch.train.dataset: None for branch in branches}}
    if strict:
        for branch in branches:
            refuse_infeasible(branch, datasets[branch.train.dataset])
    atomic.writable(out)
    works = [work_of(branch, datasets[branch.train.dataset], grid) for branch in branches]
    tries = Tries()
    found = [agreed(work, out, tries) for work in works]
    ready = Ready()
    for work, one in zip(works, found, strict=True):
        if one.kinds():
            ready.look(work.branch, work.dataset)
    if not hosts.is_leader():  # one of several processes that run the same: the first one speaks
        stream = io.StringIO()
    if tune and tuned and not execution:
        choices = first_tuning.tuned(found, choices, lambda line: print(line, file=stream or sys.stderr, flush=True))
    for line in [*summary(found, choices), *(outdated.lines(works, out) if any(one.kinds() for one in found) else ())]:
        print(line, file=stream or sys.stderr, flush=True)
    unfinished = [(work, choice.execution) for work, one, choice in zip(works, found, choices, strict=True) if one.kinds()]
    about = about_this_process()
    heard = listeners(out, log_to, about) if unfinished and hosts.is_leader() else ()
    progress = Progress([kind for one in found for kind in one.kinds()], stream, listeners=heard, about=about)
    cells = [cell for work in works for cell in (work.cell, *(run.name for run in work.defenses))]
    with progress, Leases(out, timeout=timeout, say=progress.say, note=progress.note) as leases:
        if hosts.is_leader():
            manifest.write(out, works, leases)
        work_off(unfinished, out, tries, leases, progress, checkpoint_every)
        if hosts.is_leader():
            tidy(cells, out, leases)
    records = store.read(out)
    members = [member_hash(point) for work in works for point in all_points(work)]
    return records.filter(records["cell"].is_in(cells) & records["member"].is_in(members))


def load(grid: Grid, name: str, data_dir: str | None) -> Dataset:
    """The data set of a grid, reduced as the grid says.

    Raises:
      UserError: see :func:`bdjax.data.load`; the images do not fit the memory of the device, which holds them all.
    """
    from bdjax.data import load as load_data

    dataset = load_data(name, data_dir, train_images=grid.train_images, test_images=grid.test_images)
    note = already_poisoned(name) if grid.imported is None else ""
    if note and hosts.is_leader():
        print(f"bdjax: note: {note}", file=sys.stderr, flush=True)
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
    members, found, choices = len(grid.seeds) * len(grid.poison_ratio), {}, []
    for branch in branches:
        work = (branch.train.dataset, branch.train.model, branch.attack.recipe.batch)
        if work not in found:  # attacks share what was tuned
            rows = sizes_of(grid, branch.train.dataset, data_dir)[0]
            found[work] = chosen(branch.model, branch.attack, rows, members, execution, tuned=tuned)
        choices.append(found[work])
    return choices


def sizes_of(grid: Grid, name: str, data_dir: str | None) -> tuple[int, int]:
    """Training and test rows of a data set of the grid, without reading them."""
    return sizes(name, train_images=grid.train_images, test_images=grid.test_images, data_dir=data_dir)


def refuse_infeasible(branch: Branch, dataset: Dataset) -> None:
    """Raise UserError where a defense asks for more clean samples than a class holds."""
    for cell, defense in zip(branch.defenses, branch.built, strict=True):
        reason = clean_reason(cell, dataset, defense)
        if reason:
            raise UserError(f"{cell.defense}: {reason}")
