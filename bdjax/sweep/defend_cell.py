"""Run one defense on trained members: rows, masks and traces."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import population
from bdjax.data import clean_subset
from bdjax.population import Execution
from bdjax.store import arrays, checkpoints, provenance
from bdjax.store.hashing import canonical
from bdjax.store.location import Location
from bdjax.store.rows import Row, encoded_masks, measured
from bdjax.store.running import Keeper
from bdjax.sweep import build, kept
from bdjax.sweep.cell import DefenseCell, Point, member_hash, set_hash
from bdjax.sweep.cells import Attacked, attempted, finished, fitted, members_of, not_finite
from bdjax.sweep.new_rows import defense_row, timing
from bdjax.sweep.progress import Progress
from bdjax.train.experiment import Subject, defend_member, trigger_form
from bdjax.types import Dataset, Defense


def defend(
    attacked: Attacked,
    cell: DefenseCell,
    name: str,
    points: Sequence[Point],
    trained: tuple[dict[str, Row], checkpoints.Stored],
    out: Location,
    progress: Progress,
) -> None:
    """Run one defense on trained members and store the rows.

    Args:
      attacked: the training cell on the device.
      cell: the defense cell.
      name: its hash.
      points: members to defend.
      trained: rows {member hash: row} of the training cell, and the trained members on the host.
      out: folder of the sweep.
      progress: hears of the beginning and the end.
    """
    before, stored = trained
    defense = build.defended(cell, attacked.model)
    config = build.described(cell, attacked.dataset.digest, attacked.model, attacked.attack, defense)
    bases = [before[member_hash(point._replace(hyper={}))] for point in points]
    title = f"{attacked.dataset.spec.name} / {cell.train.model} / {cell.train.attack} / {cell.defense}"
    title += "" if cell.spc is None else f" / spc {cell.spc}"
    rows = [defense_row(attacked, cell, config, defense, *pair) for pair in zip(points, bases, strict=True)]
    members = set_hash([row["member"] for row in rows])
    too_few = clean_reason(cell, attacked.dataset, defense)
    for row in rows:
        if too_few and row["status"] == "ok":
            row.update(status="infeasible", reason=too_few)
    running = [i for i, row in enumerate(rows) if row["status"] == "ok"]
    progress.start(cell.defense, title, cell=name, members=len(running))
    if running:
        mine, their = [rows[i] for i in running], [bases[i] for i in running]
        hashes = [base["member"] for base in their]
        subjects = _subjects(attacked, defense, cell.spc or 0, [points[i] for i in running], hashes, stored)
        keeper = Keeper(out, name, members, [row["member"] for row in mine], say=progress.say, heard=progress.kept)
        ran = attempted(lambda: _run(attacked, cell, defense, subjects, keeper, progress), mine, out, name, members)
        if ran is not None:
            call, execution = ran
            _fill(jax.device_get(call.result), mine, their, out, name, title, progress)
            for row in mine:
                row.update(timing(call, len(running), execution))
    finished(rows, f"{title}: ", out, name, members, progress)
    Keeper(out, name, members).clear()


def _run(
    attacked: Attacked, cell: DefenseCell, defense: Defense, subjects: Subject, keeper: Keeper, progress: Progress
) -> tuple[provenance.Timed, Execution]:
    """Defend and measure the members, as many at once as fit; with the execution that was used."""
    spc = cell.spc or 0
    execution = fitted(lambda m: defend_member(m, attacked.attack, build.defended(cell, m), spc), attacked, subjects)
    function = defend_member(attacked.model, attacked.attack, defense, spc)
    return kept.run(function, subjects, attacked, execution, keeper, progress.resume), execution


def _fill(
    found: Any, rows: Sequence[Row], bases: Sequence[Row], out: Location, cell: str, title: str, progress: Progress
) -> None:
    """Fill in what a defense did to each member, and what was measured."""
    for at, (row, base) in enumerate(zip(rows, bases, strict=True)):
        mine = population.take(found, at)
        row.update(masks=encoded_masks(mine.defended.masks))
        if hasattr(mine.defended.trace, "_asdict"):
            fields, large = arrays.split(mine.defended.trace)
            row["trace"] = canonical(fields)
            if large:
                arrays.write(out, cell, row["member"], large)
        if mine.finite and getattr(mine.defended.trace, "alive", True):
            row.update(measured(mine.counts, base))
        else:
            what = "a loss or gradient of the defense" if mine.finite else "the defended network"
            not_finite(row, f"{what} is not finite", title, progress)


def clean_reason(cell: DefenseCell, dataset: Dataset, defense: Defense) -> str | None:
    """Why the clean subset of a defense cell cannot be drawn, or None."""
    if cell.spc is None:
        return None
    return clean_subset.infeasible(np.asarray(dataset.train.labels), dataset.spec.classes, cell.spc, defense.validation)


def _subjects(
    attacked: Attacked, defense: Defense, spc: int, points: Sequence[Point], hashes: Sequence[str], stored: checkpoints.Stored
) -> Subject:
    hyper = jax.tree.map(jnp.asarray, build.stack_hyper(defense, points))
    member = members_of(attacked, points, spc)._replace(hyper=hyper)
    index = [stored.members.index(name) for name in hashes]
    variables, leaves = jax.tree.map(jnp.asarray, population.take((stored.variables, stored.trigger), index))
    form = trigger_form(attacked.attack, attacked.dataset, attacked.data)
    return Subject(member, variables, jax.tree.unflatten(jax.tree.structure(form), leaves))
