"""Train the members of a training cell: checkpoint and rows."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import population
from bdjax.attacks import slots
from bdjax.population import Execution, segments
from bdjax.store import checkpoints, provenance
from bdjax.store.hashing import array_digest, canonical
from bdjax.store.location import Location
from bdjax.store.rows import Row, measured
from bdjax.store.running import Keeper
from bdjax.sweep import build, feasible
from bdjax.sweep.cell import Point, set_hash
from bdjax.sweep.cells import Attacked, attempted, finished, fitted, members_of, not_finite
from bdjax.sweep.new_rows import row_of, timing
from bdjax.sweep.progress import Progress
from bdjax.train.experiment import attack_member, attack_segments
from bdjax.train.poison import poison_set
from bdjax.types import Array, Member


def train(attacked: Attacked, points: Sequence[Point], out: Location, progress: Progress) -> None:
    """Train a member set and store its checkpoint, then its rows.

    Args:
      attacked: the training cell on the device.
      points: its members.
      out: folder of the sweep.
      progress: hears of the beginning, of every epoch and of the end.
    """
    cell, attack, images = attacked.cell, attacked.attack, len(attacked.dataset.train.labels)
    stacked = members_of(attacked, points)
    counts = np.asarray(stacked.count).tolist()
    config = build.described(cell, attacked.dataset.digest, attacked.model, attack)
    rows = [row_of(attacked, point, config, status="ok", poisoned=count) for point, count in zip(points, counts, strict=True)]
    members = set_hash([row["member"] for row in rows])
    title = f"{attacked.dataset.spec.name} / {cell.model} / {cell.attack}"
    running = _feasible(attacked, stacked, rows)
    execution = attacked.execution
    if running:
        stacked = population.take(stacked, running)
        stacked = population.prepare(attack, stacked, attacked.dataset, attacked.data, execution, progress.say)
        execution = fitted(lambda model: attack_member(model, attack, images), attacked, stacked)
    per_epoch = _start(attacked, len(running), execution, title, progress)
    if running:
        work = attack_segments(attacked.model, attack, images, progress.epoch)
        mine = [rows[i] for i in running]

        def resumed(at_once: int, finished: int, rounds: int) -> None:
            before = f"{finished} members are trained, " if finished else ""
            progress.say(f"{title}: {before}goes on after epoch {rounds}/{attack.recipe.epochs}")

        keeper = Keeper(out, attacked.name, members, [row["member"] for row in mine], resumed=resumed)
        run = functools.partial(segments.run, work, stacked, (attacked.data,), execution, keeper=keeper)
        call = attempted(lambda: provenance.timed(run), mine, out, attacked.name, members)
        if call is not None:
            _store(attacked, stacked, call, mine, out, members, title, progress)
            for row in mine:
                row.update(timing(call, len(running), execution), images=attack.recipe.epochs * per_epoch * len(running))
    finished(rows, f"{title}: trained, ", out, attacked.name, members, progress)
    Keeper(out, attacked.name, members).clear()


def _start(attacked: Attacked, running: int, execution: Execution, title: str, progress: Progress) -> int:
    """Say what begins; return the images that a member sees in an epoch."""
    recipe, images = attacked.attack.recipe, len(attacked.dataset.train.labels)
    batch = min(recipe.batch, images)
    per_epoch = images // batch * batch
    chunks = -(-running // population.at_once(execution, max(running, 1)))
    # What fills up the last chunk does not count.
    progress.start("train", title, epochs=recipe.epochs, images=per_epoch * running // max(chunks, 1), chunks=chunks)
    return per_epoch


def _store(
    attacked: Attacked,
    stacked: Member,
    call: Any,
    rows: Sequence[Row],
    out: Location,
    members: str,
    title: str,
    progress: Progress,
) -> None:
    """Write the checkpoint of the members that were trained, and fill in their rows."""
    trained, counts = jax.device_get(call.result)
    frozen = _frozen(stacked.assets, len(rows))
    leaves = tuple(jax.tree.leaves(trained.trigger))
    names = tuple(row["member"] for row in rows)
    checkpoints.save(out, attacked.name, members, checkpoints.Stored(names, trained.variables, leaves))
    for at, row in enumerate(rows):
        mine = population.take(trained._replace(variables=None), at)
        row.update(loss=canonical(mine.loss))
        if attacked.trigger_digest is None and leaves:
            row["trigger_digest"] = array_digest(jax.tree.leaves(mine.trigger))
        if mine.alive and frozen[at] < 0:
            row.update(measured(population.take(counts, at)))
        else:
            what, step = ("training", mine.stopped) if frozen[at] < 0 else ("the attack's preparation", frozen[at])
            not_finite(row, f"loss or gradient is not finite from step {step} of {what}", title, progress)


def _frozen(assets: Any, count: int) -> list[int]:
    """The step at which each member's preparation was frozen because it was not finite; -1 = none."""
    stopped = assets.get("stopped") if isinstance(assets, dict) else None
    return [-1] * count if stopped is None else np.asarray(stopped).tolist()


def _feasible(attacked: Attacked, stacked: Member, rows: Sequence[Row]) -> list[int]:
    """Indices of the members whose poison set can be drawn and is not empty; the others are marked, and not trained.

    The rows that are poisoned are counted: with ratios of a class they are fewer than ``count``. An attack without a fixed poison
    set has the number of one epoch, on average.
    """
    attack, labels, total = attacked.attack, attacked.data.train.labels, len(attacked.dataset.train.labels)

    def can(member: Member, labels: Array) -> tuple[Array, Array]:
        poisoned, feasible = poison_set(attack, member, labels)
        return jnp.sum(poisoned, dtype=jnp.int32), feasible

    chosen, found = jax.tree.map(np.asarray, population.run(can, stacked, (labels,), Execution()))
    for row, marked, ok in zip(rows, chosen, found, strict=True):
        if ok:
            row["poisoned"] = int(marked) if attack.batch is None else slots.per_epoch(row["ratio"], total, attack.recipe.batch)
        reason = feasible.why_not(attack, attacked.cell.attack, row["ratio"], total, int(marked), bool(ok))
        if reason:
            row.update(status="infeasible", reason=reason)
    return [i for i, row in enumerate(rows) if row["status"] == "ok"]
