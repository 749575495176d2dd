"""The training cell of networks that come from elsewhere: they are measured and stored instead of trained."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bdjax import population
from bdjax.keys import Stream, stream
from bdjax.store import checkpoints, hashing, provenance
from bdjax.store.location import Location
from bdjax.store.rows import Row, measured
from bdjax.sweep import build, foreign_trigger, imported
from bdjax.sweep.cell import Point, set_hash
from bdjax.sweep.cells import Attacked, attempted, finished, members_of, not_finite
from bdjax.sweep.new_rows import row_of, timing
from bdjax.sweep.progress import Progress
from bdjax.sweep.train_cell import train
from bdjax.train.evaluate import Counts, evaluator, finite
from bdjax.train.experiment import Data
from bdjax.train.trainer import first_trigger
from bdjax.types import Array, Member, Variables


def begin(attacked: Attacked, points: Sequence[Point], out: Location, progress: Progress) -> None:
    """Train a member set, or measure it where its networks were imported; either leaves checkpoint and rows."""
    (train if attacked.cell.imported is None else measure)(attacked, points, out, progress)


def measure(attacked: Attacked, points: Sequence[Point], out: Location, progress: Progress) -> None:
    """Measure imported networks as they are and store them as the trained members of their cell.

    Args:
      attacked: the training cell on the device.
      points: seed and ratio of networks in the folder.
      out: folder of the sweep.
      progress: hears of the beginning and the end.
    """
    cell, attack = attacked.cell, attacked.attack
    assert cell.imported is not None
    config = build.described(cell, attacked.dataset.digest, attacked.model, attack)
    rows = [row_of(attacked, point, config, status="ok", images=0) for point in points]
    members = set_hash([row["member"] for row in rows])
    title = f"{attacked.dataset.spec.name} / {cell.model} / {cell.attack} (imported)"
    progress.start("train", title, cell=attacked.name, members=len(points))
    stacked = members_of(attacked, points)
    stacked = population.prepare(attack, stacked, attacked.dataset, attacked.data, attacked.execution, progress.say)
    networks = [imported.network(cell.imported, point.seed, point.ratio) for point in points]
    variables = population.stack(jax.tree.map(jnp.asarray, networks))
    run = functools.partial(population.run, _measurer(attacked), (stacked, variables), (attacked.data,), attacked.execution)
    call = attempted(lambda: provenance.timed(run), rows, out, attacked.name, members)
    if call is not None:
        counts, clean, sound, trigger = jax.device_get(call.result)
        leaves = tuple(jax.tree.leaves(trigger))
        stored = checkpoints.Stored(tuple(row["member"] for row in rows), jax.device_get(variables), leaves)
        checkpoints.save(out, attacked.name, members, stored)
        for at, row in enumerate(rows):
            row.update(timing(call, len(points), attacked.execution))
            if sound[at]:
                row.update(measured(population.take(counts, at)))
                if clean is not None:
                    who = f"{title}: seed {row['seed']} ratio {row['ratio']:g}"
                    _warn(attacked, row, population.take(clean, at), who, progress)
            else:
                not_finite(row, "the imported network is not finite", title, progress)
            if attacked.trigger_digest is None and leaves:
                row["trigger_digest"] = hashing.array_digest(population.take(leaves, at))
    finished(rows, f"{title}: measured, ", out, attacked.name, members, progress)


def _measurer(attacked: Attacked) -> Any:
    """The function of one network: counts, those on clean images taken as triggered, whether it is finite, and its trigger."""
    attack, evaluate = attacked.attack, evaluator(attacked.model, attacked.attack)
    ours = attack.triggered is None  # the images that were imported carry the trigger the network was trained with

    def measured_one(network: tuple[Member, Variables], data: Data) -> tuple[Counts, Counts | None, Array, Any]:
        member, variables = network
        trigger = first_trigger(attack, member, data.assets)
        counts = evaluate(variables, data.test, trigger, stream(member.key, Stream.TRIGGER))
        clean = evaluate(variables, foreign_trigger.clean_as_triggered(data.test)) if ours else None
        return counts, clean, jax.jit(finite)(variables), trigger

    return measured_one


def _warn(attacked: Attacked, row: Row, clean: Counts, who: str, progress: Progress) -> None:
    """Say on the console and in the record where a network does not answer the trigger that it is measured with."""
    has_images = imported.opened(str(attacked.cell.imported)).triggered is not None
    text = foreign_trigger.warning(attacked.cell.attack, attacked.attack.config, has_images)
    rate = int(clean.attacked) / max(int(clean.triggered), 1)
    row.update(foreign_trigger.warned(row, rate, attacked.model.spec.classes, text))
    if row["warning"]:
        percents = f"ASR {100 * row['asr']:.1f} %, and {100 * rate:.1f} % of clean images of other classes are called the target"
        progress.say(f"{who}: warning: {percents}: {text}")
