"""Execute one cell: train a member set, or repair the trained members with one defense; each leaves a record."""

import sys
import traceback
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import population
from bdjax.attacks import slots
from bdjax.data import clean_subset
from bdjax.errors import PluginError, UserError
from bdjax.keys import Stream, root, stream
from bdjax.population import Execution, hosts
from bdjax.store import arrays, atomic, checkpoints, provenance
from bdjax.store import records as store
from bdjax.store.hashing import array_digest, canonical, short_hash
from bdjax.store.location import Location
from bdjax.store.rows import Row, blank, measured, now, one, told_masks
from bdjax.sweep import build, feasible, goal
from bdjax.sweep.build import DefenseCell, Point, TrainCell, member_hash
from bdjax.sweep.progress import Progress
from bdjax.train.experiment import Data, Subject, attack_member, defend_member, stage, trigger_form
from bdjax.types import Array, Attack, Dataset, Defense, Member, Model


class Attacked(NamedTuple):
    """A training cell on the device."""

    cell: TrainCell
    name: str  # its hash
    dataset: Dataset
    data: Data
    model: Model  # adapted to the execution
    attack: Attack
    execution: Execution
    trigger_digest: str | None  # of the triggered test images, where all members share the trigger


def place(cell: TrainCell, name: str, dataset: Dataset, execution: Execution) -> Attacked:
    """Put a training cell on the device: build its model and attack, stage its data."""
    model, attack = build.attacked(cell)
    data = stage(attack, dataset, root(cell.root))
    digest = None if data.test.triggered is None else array_digest([data.test.triggered])
    return Attacked(cell, name, dataset, data, population.adapt(model, execution), attack, execution, digest)


def train(attacked: Attacked, points: Sequence[Point], out: Location, progress: Progress) -> None:
    """Train a member set and store its checkpoint, then its rows."""
    cell, attack, rows = attacked.cell, attacked.attack, len(attacked.dataset.train.labels)
    stacked = members_of(attacked, points)
    name = build.set_hash([member_hash(point) for point in points])
    counts = np.asarray(stacked.count).tolist()
    records = [row_of(attacked, point, cell, status="ok", poisoned=count) for point, count in zip(points, counts, strict=True)]
    title = f"{attacked.dataset.spec.name} / {cell.model} / {cell.attack}"
    going = _feasible(attacked, stacked, records)
    execution, batch = attacked.execution, min(attack.recipe.batch, rows)
    per_epoch = rows // batch * batch
    if going:
        stacked = population.take(stacked, going)
        stacked = population.prepare(attack, stacked, attacked.dataset, attacked.data, execution, progress.say)
        execution = _fit(lambda model: attack_member(model, attack, rows), attacked, stacked)
    chunk = min(execution.chunk or max(len(going), 1), max(len(going), 1)) if execution.strategy != "loop" else 1
    chunks = -(-len(going) // chunk)
    images = per_epoch * len(going) // max(chunks, 1)  # what fills up the last chunk does not count
    progress.start("train", title, epochs=attack.recipe.epochs, images=images, chunks=chunks)
    if going:
        function = attack_member(attacked.model, attack, rows, progress.epoch)
        try:
            call = provenance.timed(lambda: population.run(function, stacked, (attacked.data,), execution))
        except Exception as error:
            if isinstance(error, UserError) and not isinstance(error, PluginError):
                raise
            fail([records[i] for i in going], error, out, attacked.name, name)
        else:
            trained, counts = jax.device_get(call.result)
            frozen = _frozen(stacked.assets, len(going))
            leaves = tuple(jax.tree.leaves(trained.trigger))
            members = tuple(records[i]["member"] for i in going)
            checkpoints.save(out, attacked.name, name, checkpoints.Stored(members, trained.variables, leaves))
            processed = attack.recipe.epochs * per_epoch * len(going)
            for at, i in enumerate(going):
                row, mine = records[i], one(trained._replace(variables=None), at)
                row.update(timing(call, len(going), execution), images=processed, loss=canonical(mine.loss))
                if attacked.trigger_digest is None and leaves:
                    row["trigger_digest"] = array_digest(jax.tree.leaves(mine.trigger))
                if mine.alive and frozen[at] < 0:
                    row.update(measured(one(counts, at)))
                else:
                    what, step = ("training", mine.stopped) if frozen[at] < 0 else ("the attack's preparation", frozen[at])
                    row.update(status="non_finite", reason=f"loss or gradient is not finite from step {step} of {what}")
                    progress.say(f"{title}: seed {row['seed']} ratio {row['ratio']:g}: {row['reason']}; the others go on")
    store.write_rows(out, attacked.name, name, stamped(records))
    progress.finish(f"{title}: trained, {told(records)}")


def _frozen(assets: Any, count: int) -> list[int]:
    """The step at which each member's preparation was frozen because it was not finite; -1 = none."""
    told = assets.get("stopped") if isinstance(assets, dict) else None
    return [-1] * count if told is None else np.asarray(told).tolist()


def defend(
    attacked: Attacked,
    cell: DefenseCell,
    name: str,
    points: Sequence[Point],
    trained: tuple[dict[str, Row], checkpoints.Stored],
    out: Location,
    progress: Progress,
) -> None:
    """Repair trained members with one defense and store the rows.

    Args:
      attacked: the training cell on the device.
      cell: the defense cell.
      name: its hash.
      points: members to repair.
      trained: rows {member hash: row} of the training cell, and the trained members on the host.
      out: folder of the sweep.
      progress: told of the beginning and the end.
    """
    before, stored = trained
    defense = build.defended(cell, attacked.model)
    base = [before[member_hash(point._replace(hyper={}))] for point in points]
    title = f"{attacked.dataset.spec.name} / {cell.train.model} / {cell.train.attack} / {cell.defense}"
    title += "" if cell.spc is None else f" / spc {cell.spc}"
    records = [_repair_row(attacked, cell, defense, *pair) for pair in zip(points, base, strict=True)]
    too_few = clean_reason(cell, attacked.dataset, defense)
    for row in records:
        if too_few and row["status"] == "ok":
            row.update(status="infeasible", reason=too_few)
    going = [i for i, row in enumerate(records) if row["status"] == "ok"]
    progress.start(cell.defense, title)
    if going:
        chosen, hashes = [points[i] for i in going], [base[i]["member"] for i in going]
        subjects = _subjects(attacked, defense, cell.spc or 0, chosen, hashes, stored)
        members = build.set_hash([row["member"] for row in records])
        try:
            call, execution = _repaired(attacked, cell, defense, subjects)
        except Exception as error:
            if isinstance(error, UserError) and not isinstance(error, PluginError):
                raise
            fail([records[i] for i in going], error, out, name, members)
        else:
            defended = jax.device_get(call.result)
            for at, i in enumerate(going):
                row, mine = records[i], one(defended, at)
                row.update(timing(call, len(going), execution))
                row.update(masks=told_masks(mine.defended.masks))
                if hasattr(mine.defended.trace, "_asdict"):
                    told_fields, large = arrays.parted(mine.defended.trace)
                    row["trace"] = canonical(told_fields)
                    if large:
                        arrays.write(out, name, row["member"], large)
                if mine.finite and getattr(mine.defended.trace, "alive", True):
                    row.update(measured(mine.counts, base[i]))
                else:
                    what = "a loss or gradient of the repair" if mine.finite else "the repaired network"
                    row.update(status="non_finite", reason=f"{what} is not finite")
                    progress.say(f"{title}: seed {row['seed']} ratio {row['ratio']:g}: {row['reason']}; the others go on")
    store.write_rows(out, name, build.set_hash([row["member"] for row in records]), stamped(records))
    progress.finish(f"{title}: {told(records)}")


def _repaired(attacked: Attacked, cell: DefenseCell, defense: Defense, subjects: Subject) -> tuple[provenance.Timed, Execution]:
    spc = cell.spc or 0
    execution = _fit(lambda m: defend_member(m, attacked.attack, build.defended(cell, m), spc), attacked, subjects)
    function = defend_member(attacked.model, attacked.attack, defense, spc)
    return provenance.timed(lambda: population.run(function, subjects, (attacked.data,), execution)), execution


def _fit(make: Any, attacked: Attacked, stacked: Any) -> Execution:
    """The execution with a chunk that fits memory and divides the members evenly, so that the last one needs little filling."""
    total, execution = population.size(stacked), attacked.execution
    if total > 1:  # one member alone is tried as it is
        execution = population.fit(make, attacked.model, stacked, (attacked.data,), execution)
    execution = hosts.broadcast(execution)  # memory may differ between machines, the program must not
    if not execution.chunk or execution.strategy == "loop":
        return execution
    even = -(-total // -(-total // execution.chunk))
    return execution._replace(chunk=-(-even // execution.devices) * execution.devices)


def clean_reason(cell: DefenseCell, dataset: Dataset, defense: Defense) -> str | None:
    """Why the clean subset of a defense cell cannot be drawn, or None."""
    if cell.spc is None:
        return None
    return clean_subset.infeasible(np.asarray(dataset.train.labels), dataset.spec.classes, cell.spc, defense.validation)


def members_of(attacked: Attacked, points: Sequence[Point], spc: int = 0) -> Member:
    """The members of these points, stacked, without hyper-parameters."""
    seeds, ratios = list(dict.fromkeys(p.seed for p in points)), list(dict.fromkeys(p.ratio for p in points))
    rows = len(attacked.dataset.train.labels)
    stacked, product = population.members(seeds, ratios, rows, root_number=attacked.cell.root, spc=spc)
    return population.take(stacked, [product.index((p.seed, p.ratio)) for p in points])


def _subjects(
    attacked: Attacked, defense: Defense, spc: int, points: Sequence[Point], hashes: Sequence[str], stored: checkpoints.Stored
) -> Subject:
    hyper = jax.tree.map(jnp.asarray, build.stack_hyper(defense, points))
    member = members_of(attacked, points, spc)._replace(hyper=hyper)
    index = [stored.members.index(name) for name in hashes]
    variables, leaves = jax.tree.map(lambda x: jnp.asarray(x[index]), (stored.variables, stored.trigger))
    form = trigger_form(attacked.attack, attacked.dataset, attacked.data)
    return Subject(member, variables, jax.tree.unflatten(jax.tree.structure(form), leaves))


def _feasible(attacked: Attacked, stacked: Member, records: list[Row]) -> list[int]:
    """Indices of the members whose poison set can be drawn and is not empty; the others are marked, and not trained.

    The rows that are poisoned are counted: with ratios of a class they are fewer than ``count``. An attack without a fixed poison
    set has the number of one epoch, on average.
    """
    attack, labels, total = attacked.attack, attacked.data.train.labels, len(attacked.dataset.train.labels)

    def can(member: Member, labels: Array) -> tuple[Array, Array]:
        poisoned, feasible = attack.select(stream(member.key, Stream.SELECT), labels, member.count)
        return jnp.sum(poisoned, dtype=jnp.int32), feasible

    chosen, found = jax.tree.map(np.asarray, population.run(can, stacked, (labels,), Execution()))
    for row, rows, ok in zip(records, chosen, found, strict=True):
        if ok:
            row["poisoned"] = int(rows) if attack.batch is None else slots.per_epoch(row["ratio"], total, attack.recipe.batch)
        reason = feasible.why_not(attack, attacked.cell.attack, row["ratio"], total, int(rows), bool(ok))
        if reason:
            row.update(status="infeasible", reason=reason)
    return [i for i, row in enumerate(records) if row["status"] == "ok"]


def row_of(attacked: Attacked, point: Point, cell: TrainCell | DefenseCell, **fields: Any) -> Row:
    """The row of one member of a cell, without what was measured."""
    dataset, train_cell = attacked.dataset, attacked.cell
    config = build.describe(cell, dataset.digest)
    target = goal.target(attacked.attack, train_cell.target)
    common = dict(
        cell=short_hash(config),
        member=member_hash(point),
        dataset=dataset.spec.name,
        train_images=len(dataset.train.labels),
        test_images=len(dataset.test.labels),
        classes=dataset.spec.classes,
        majority=float(np.bincount(np.asarray(dataset.test.labels)).max() / len(dataset.test.labels)),
        model=attacked.model.name,
        width=attacked.model.width,
        attack=train_cell.attack,
        defense="none",
        profile=train_cell.profile,
        seed=point.seed,
        ratio=point.ratio,
        target=target,
        target_class=goal.class_name(dataset.spec, target),
        hyper=canonical(point.hyper),
        knows_trigger=False,
        knows_test=False,
        config=canonical(config),
        execution=canonical(attacked.execution),
        versions=canonical(provenance.versions()),
        git_commit=provenance.git_commit(),
        device=provenance.device(),
        data_digest=dataset.digest,
        trigger_digest=attacked.trigger_digest,
    )
    return blank(**{**common, **fields})


def _repair_row(attacked: Attacked, cell: DefenseCell, defense: Defense, point: Point, base: Row) -> Row:
    """The row of a repair before it ran; a member that was not trained passes its status on."""
    row = row_of(attacked, point, cell, defense=cell.defense, spc=cell.spc, status=base["status"], reason=base["reason"])
    if base["status"] != "ok":
        row["reason"] = f"not trained: {base['reason']}"
    row.update(knows_trigger="triggered" in defense.needs, knows_test="test_accuracy" in defense.needs)
    row.update(poisoned=base["poisoned"], trigger_digest=base["trigger_digest"])
    row.update(acc_before=base["acc"], asr_before=base["asr"], ra_before=base["ra"], one_class_before=base["one_class"])
    row.update(target_rate=base["target_rate"], warning=base["warning"])
    return row


def timing(call: provenance.Timed, members: int, execution: Execution) -> Row:
    """The columns that tell how a call ran."""
    times = {"seconds": call.seconds, "compile_seconds": call.compile_seconds}
    return {**times, "members": members, "execution": canonical(execution)}


def stamped(records: list[Row]) -> list[Row]:
    """Rows with this moment as the time they were made."""
    moment = now()
    return [{**row, "created": moment} for row in records]


def fail(records: list[Row], error: Exception, out: Location, cell: str, members: str) -> None:
    """Mark rows as failed, say so in one line and keep the traceback beside the records."""
    lines = str(error).strip().splitlines()
    reason = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {lines[0] if lines else ''}".strip()
    path = out / "failures" / f"{cell}-{members}.txt"
    atomic.replace_file(path, "".join(traceback.format_exception(error)).encode())
    print(f"bdjax: {records[0]['attack']} / {records[0]['defense']} failed: {reason} (traceback in {path})", file=sys.stderr)
    for row in records:
        row.update(status="failed", reason=reason)


def told(records: Sequence[Row]) -> str:
    """ACC and ASR of a cell in words: median and range over its members, and how many are not ok."""
    fine = [row for row in records if row["status"] == "ok"]
    parts = []
    for name in ("acc", "asr"):
        values = [row[name] for row in fine if row[name] is not None]
        if values:
            parts.append(f"{name.upper()} {np.median(values):.3f} [{min(values):.3f}, {max(values):.3f}]")
    others = {s: sum(row["status"] == s for row in records) for s in ("infeasible", "failed", "non_finite")}
    parts += [f"{count} {status.replace('_', ' ')}" for status, count in others.items() if count]
    return f"{len(fine)} member{'s' if len(fine) != 1 else ''}" + "".join(f", {part}" for part in parts)
