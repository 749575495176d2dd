"""The training cell of networks that come from elsewhere: they are measured and stored instead of trained."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bdjax import population
from bdjax.errors import PluginError, UserError
from bdjax.keys import Stream, stream
from bdjax.store import checkpoints, hashing, provenance
from bdjax.store import records as store
from bdjax.store.location import Location
from bdjax.store.rows import Row, measured, one
from bdjax.sweep import build, foreign_trigger, imported
from bdjax.sweep.build import Point, member_hash
from bdjax.sweep.cells import Attacked, fail, members_of, row_of, stamped, timing, told, train
from bdjax.sweep.progress import Progress
from bdjax.train.evaluate import Counts, evaluator, finite
from bdjax.train.experiment import Data
from bdjax.train.trainer import first_trigger
from bdjax.types import Array, Member, Variables


def begin(attacked: Attacked, points: Sequence[Point], out: Location, progress: Progress) -> None:
    """Train a member set, or adopt it where its networks were imported; either leaves checkpoint and rows."""
    (train if attacked.cell.imported is None else adopt)(attacked, points, out, progress)


def adopt(attacked: Attacked, points: Sequence[Point], out: Location, progress: Progress) -> None:
    """Measure imported networks as they are and store them as the trained members of their cell.

    Args:
      attacked: the training cell on the device.
      points: seed and ratio of networks in the folder.
      out: folder of the sweep.
      progress: told of the beginning and the end.
    """
    cell, attack = attacked.cell, attacked.attack
    assert cell.imported is not None
    name = build.set_hash([member_hash(point) for point in points])
    records = [row_of(attacked, point, cell, status="ok", images=0) for point in points]
    title = f"{attacked.dataset.spec.name} / {cell.model} / {cell.attack} (imported)"
    progress.start("train", title, epochs=0, images=0, chunks=1)
    stacked = members_of(attacked, points)
    stacked = population.prepare(attack, stacked, attacked.dataset, attacked.data, attacked.execution, progress.say)
    networks = [imported.network(cell.imported, point.seed, point.ratio) for point in points]
    variables = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *networks)
    evaluate = evaluator(attacked.model, attack)

    ours = attack.triggered is None  # the images that were imported carry the trigger the network was trained with

    def measure(network: tuple[Member, Variables], data: Data) -> tuple[Counts, Counts | None, Array, Any]:
        member, variables = network
        trigger = first_trigger(attack, member, data.assets)
        counts = evaluate(variables, data.test, trigger, stream(member.key, Stream.TRIGGER))
        clean = evaluate(variables, foreign_trigger.clean_as_triggered(data.test)) if ours else None
        return counts, clean, jax.jit(finite)(variables), trigger

    try:
        call = provenance.timed(lambda: population.run(measure, (stacked, variables), (attacked.data,), attacked.execution))
    except Exception as error:
        if isinstance(error, UserError) and not isinstance(error, PluginError):
            raise
        fail(records, error, out, attacked.name, name)
    else:
        counts, clean, whole, trigger = jax.device_get(call.result)
        leaves = tuple(jax.tree.leaves(trigger))
        stored = checkpoints.Stored(tuple(row["member"] for row in records), jax.device_get(variables), leaves)
        checkpoints.save(out, attacked.name, name, stored)
        for at, row in enumerate(records):
            row.update(timing(call, len(points), attacked.execution))
            if whole[at]:
                row.update(measured(one(counts, at)))
                if clean is not None:
                    _warn(attacked, row, one(clean, at), f"{title}: seed {row['seed']} ratio {row['ratio']:g}", progress)
            else:
                row.update(status="non_finite", reason="the imported network is not finite")
                progress.say(f"{title}: seed {row['seed']} ratio {row['ratio']:g}: {row['reason']}; the others go on")
            if attacked.trigger_digest is None and leaves:
                row["trigger_digest"] = hashing.array_digest([leaf[at] for leaf in leaves])
    store.write_rows(out, attacked.name, name, stamped(records))
    progress.finish(f"{title}: measured, {told(records)}")


def _warn(attacked: Attacked, row: Row, clean: Counts, who: str, progress: Progress) -> None:
    """Say on the console and in the record where a network does not answer the trigger that it is measured with."""
    has_images = imported.opened(str(attacked.cell.imported)).triggered is not None
    text = foreign_trigger.warning(attacked.cell.attack, attacked.attack.config, has_images)
    rate = int(clean.attacked) / max(int(clean.triggered), 1)
    row.update(foreign_trigger.warned(row, rate, attacked.model.spec.classes, text))
    if row["warning"]:
        percents = f"ASR {100 * row['asr']:.1f} %, and {100 * rate:.1f} % of clean images of other classes are called the target"
        progress.say(f"{who}: warning: {percents}: {text}")
