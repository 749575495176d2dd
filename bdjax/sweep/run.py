"""Run a grid: train what lacks a record, repair it with every defense, store each cell as it finishes."""

import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax

from bdjax.data import sizes, spec
from bdjax.errors import UserError
from bdjax.population import Execution, device_memory, named
from bdjax.sweep import build, models, plan, store
from bdjax.sweep.adopt import adopt
from bdjax.sweep.cells import clean_reason, place, repair, train
from bdjax.sweep.choice import Chosen, chosen, origin
from bdjax.sweep.plan import Branch, Grid
from bdjax.sweep.progress import Progress
from bdjax.sweep.rows import Row
from bdjax.types import Dataset


class Work(NamedTuple):
    """A branch with its data set and what of it lacks a record."""

    branch: Branch
    dataset: Dataset
    cell: str  # hash of the training cell
    training: tuple[tuple[build.Point, ...], ...]  # member sets to train
    repairs: tuple[tuple[build.DefenseCell, str, tuple[build.Point, ...]], ...]  # defense cell, its hash, members to repair


def run(
    grid: Grid,
    out: str | Path,
    *,
    data_dir: str | None = None,
    execution: Execution | Mapping[str, Any] | None = None,
    tuned: bool = True,
    only: Mapping[str, str] | None = None,
    limit: int | None = None,
    strict: bool = False,
    stream: TextIO | None = None,
) -> Any:
    """Run what a grid lacks and return its records; the same call resumes after any interruption.

    Args:
      grid: what to run.
      out: folder of records and trained members; made if missing.
      data_dir: folder of the data archives.
      execution: how populations run, or single fields of it; the rest is what was tuned (see ``tuned``), or the default of the
        platform and the model.
      tuned: use the execution that :func:`bdjax.population.tune` remembers for a cell's model, batch and this machine, if any.
      only: {axis: value}, keeps the cells that match (see :func:`bdjax.sweep.plan.select`).
      limit: number of cells to run at most.
      strict: a clean subset larger than a class is an error and not an ``infeasible`` record.
      stream: where progress is printed; None = stderr.

    Returns:
      polars.DataFrame of the rows of this grid: one per member and cell. A cell that raised has rows with status ``failed``; the
      next call tries them again.

    Raises:
      UserError: a mistake in the grid, missing data, a folder that cannot be written.
    """
    out, branches = Path(out), plan.select(plan.cells(grid), only or {}, limit)
    choices = choices_of(branches, grid, execution, tuned=tuned, data_dir=data_dir)
    datasets = {name: load(grid, name, data_dir) for name in {branch.train.dataset: None for branch in branches}}
    if strict:
        for branch in branches:
            refuse_infeasible(branch, datasets[branch.train.dataset])
    store.writable(out)
    with store.lock(out):
        works = [survey(branch, datasets[branch.train.dataset], grid, out) for branch in branches]
        kinds = [kind for work in works for kind in _kinds(work)]
        for line in summary(works, choices):
            print(line, file=stream or sys.stderr, flush=True)
        with Progress(kinds, stream) as progress:
            for work, choice in zip(works, choices, strict=True):
                _run_branch(work, out, choice.execution, progress)
        hashes = {work.cell for work in works} | {
            build.cell_hash(cell, work.dataset.digest) for work in works for cell in work.branch.defenses
        }
        members = {build.member_hash(point) for branch in branches for point in _all_points(branch, grid)}
        rows = [row for row in store.read_rows(out) if row["cell"] in hashes and row["member"] in members]
    return store.frame(rows)


def load(grid: Grid, name: str, data_dir: str | None) -> Dataset:
    """The data set of a grid, reduced as the grid says."""
    from bdjax.data import load as load_data

    return load_data(name, data_dir, train_images=grid.train_images, test_images=grid.test_images)


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


def _run_branch(work: Work, out: Path, execution: Execution, progress: Progress) -> None:
    if not work.training and not work.repairs:
        return
    attacked = place(work.branch.train, work.cell, work.dataset, execution)
    make = train if work.branch.train.imported is None else adopt
    for points in work.training:
        make(attacked, points, out, progress)
    if not work.repairs:
        return
    rows = {row["member"]: row for row in store.latest([row for _, row in store.read_cell(out, work.cell)])}
    places = models.find(out, work.cell)
    needed = dict.fromkeys(_trained_hash(point) for _, _, points in work.repairs for point in points)
    there = [name for name in needed if rows[name]["status"] == "ok"]
    try:
        stored = models.load(out, work.cell, [places[name] for name in there])
    except store.Corrupt as reason:
        raise UserError(f"the trained members of cell {work.cell} in {out} changed while they were read: {reason}") from reason
    for cell, name, points in work.repairs:
        repair(attacked, cell, name, points, (rows, stored), out, progress)


def survey(branch: Branch, dataset: Dataset, grid: Grid, out: Path) -> Work:
    """What of a branch lacks a record."""
    cell = build.cell_hash(branch.train, dataset.digest)
    stored = store.read_cell(out, cell)
    rows = {row["member"]: row for row in store.latest([row for _, row in stored])}
    wanted = _points(grid, [{}])
    missing = tuple(point for point in wanted if not _finished(rows, point))
    repairs = []
    for defense in branch.defenses:
        name = build.cell_hash(defense, dataset.digest)
        done = {row["member"]: row for row in store.latest([row for _, row in store.read_cell(out, name)])}
        lacking = tuple(point for point in _defense_points(defense, grid) if not _finished(done, point))
        if lacking:
            repairs.append((defense, name, lacking))
    training = [missing] if missing else []
    if repairs:
        training += _lost(out, cell, stored, {_trained_hash(point) for _, _, points in repairs for point in points})
    return Work(branch, dataset, cell, tuple(training), tuple(repairs))


def _lost(out: Path, cell: str, stored: list[tuple[str, Row]], needed: set[str]) -> list[tuple[build.Point, ...]]:
    """Member sets whose trained members are needed again but no longer on disk, exactly as they were trained."""
    there = models.find(out, cell)
    gone = {name for name, row in stored if row["status"] == "ok" and row["member"] in needed and row["member"] not in there}
    return [tuple(build.Point(row["seed"], row["ratio"], {}) for at, row in stored if at == name) for name in sorted(gone)]


def _trained_hash(point: build.Point) -> str:
    """The member of the training cell that a member of a defense cell was."""
    return build.member_hash(point._replace(hyper={}))


def _finished(rows: Mapping[str, Row], point: build.Point) -> bool:
    row = rows.get(build.member_hash(point))
    return row is not None and row["status"] != "failed"


def _points(grid: Grid, hypers: list[dict[str, Any]]) -> tuple[build.Point, ...]:
    axes = itertools.product(grid.seeds, grid.poison_ratios, hypers)
    return tuple(build.Point(seed, float(ratio), hyper) for seed, ratio, hyper in axes)


def _defense_points(cell: build.DefenseCell, grid: Grid) -> tuple[build.Point, ...]:
    model, _ = build.attacked(cell.train)
    defense = build.defended(cell, model)
    return _points(grid, build.hyper_points(defense, grid.hyper.get(cell.defense, {}), cell.defense))


def _all_points(branch: Branch, grid: Grid) -> list[build.Point]:
    return [*_points(grid, [{}]), *(point for cell in branch.defenses for point in _defense_points(cell, grid))]


def _kinds(work: Work) -> list[str]:
    return ["train"] * len(work.training) + [cell.defense for cell, _, _ in work.repairs]


def summary(works: Sequence[Work], choices: Sequence[Chosen]) -> list[str]:
    """What will run, in lines: cells, members, compile buckets, memory, execution."""
    training = sum(len(points) for work in works for points in work.training)
    repairs = sum(len(points) for work in works for _, _, points in work.repairs)
    cells = sum(1 + len(work.branch.defenses) for work in works)
    open_cells = sum(bool(work.training) + len(work.repairs) for work in works)
    begin = "measure" if all(work.branch.train.imported for work in works) else "train"
    lines = [
        f"{cells} cells, {cells - open_cells} finished; {open_cells} compile buckets to run: {training} members to {begin}, "
        f"{repairs} to repair"
    ]
    for work in works:
        if work.training or work.repairs:
            model, attack = build.attacked(work.branch.train)
            each, shared = member_bytes(model), data_bytes(work.dataset)
            length = "imported" if work.branch.train.imported else f"{attack.recipe.epochs} epochs"
            lines += [
                f"{title(work.branch.train)}: width {model.width}, {len(work.dataset.train.labels)} training images, "
                f"{length}; per member {size_told(each)} of parameters and momentum, shared {size_told(shared)} of images, "
                f"{size_told(device_memory())} may be used"
            ]
    for work, choice in zip(works, choices, strict=True):
        if work.training or work.repairs:
            name, execution = work.branch.train.model, choice.execution
            fits = "" if execution.chunk or execution.strategy == "loop" else ", as many members at once as fit"
            lines.append(f"execution of {name}: {origin(choice)}: {named(execution)}{fits} ({jax.default_backend()})")
    return list(dict.fromkeys(lines))


def title(cell: build.TrainCell) -> str:
    """A training cell in words."""
    return f"{spec(cell.dataset).name} / {cell.model} / {cell.attack}"


def member_bytes(model: Any) -> int:
    """Bytes of one member's variables and momentum while it trains, without activations."""
    variables = jax.eval_shape(model.init, jax.random.key(0))
    leaves = jax.tree.leaves((variables, variables["params"]))  # the momentum mirrors the parameters
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def data_bytes(dataset: Dataset) -> int:
    """Bytes of a data set on the device, with its triggered copies."""
    return 2 * sum(split.images.nbytes + split.labels.nbytes for split in (dataset.train, dataset.test))


def size_told(count: float) -> str:
    """Bytes in words."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"
