"""The training cell of networks that come from elsewhere: they are measured and stored instead of trained."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bdjax import population
from bdjax.errors import PluginError, UserError
from bdjax.evaluation import Counts, evaluator, finite
from bdjax.experiment import Data
from bdjax.keys import Stream, stream
from bdjax.sweep import build, hashing, imported, models, provenance, store
from bdjax.sweep.build import Point, member_hash
from bdjax.sweep.cells import Attacked, fail, members_of, row_of, stamped, timing, told, train
from bdjax.sweep.location import Location
from bdjax.sweep.progress import Progress
from bdjax.sweep.rows import measured, one
from bdjax.training import first_trigger
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

    def measure(network: tuple[Member, Variables], data: Data) -> tuple[Counts, Array, Any]:
        member, variables = network
        trigger = first_trigger(attack, member, data.assets)
        counts = evaluate(variables, data.test, trigger, stream(member.key, Stream.TRIGGER))
        return counts, jax.jit(finite)(variables), trigger

    try:
        call = provenance.timed(lambda: population.run(measure, (stacked, variables), (attacked.data,), attacked.execution))
    except Exception as error:
        if isinstance(error, UserError) and not isinstance(error, PluginError):
            raise
        fail(records, error, out, attacked.name, name)
    else:
        counts, whole, trigger = jax.device_get(call.result)
        leaves = tuple(jax.tree.leaves(trigger))
        stored = models.Stored(tuple(row["member"] for row in records), jax.device_get(variables), leaves)
        models.save(out, attacked.name, name, stored)
        for at, row in enumerate(records):
            row.update(timing(call, len(points), attacked.execution))
            if whole[at]:
                row.update(measured(one(counts, at)))
            else:
                row.update(status="non_finite", reason="the imported network is not finite")
                progress.say(f"{title}: seed {row['seed']} ratio {row['ratio']:g}: {row['reason']}; the others go on")
            if attacked.trigger_digest is None and leaves:
                row["trigger_digest"] = hashing.array_digest([leaf[at] for leaf in leaves])
    store.write_rows(out, attacked.name, name, stamped(records))
    progress.finish(f"{title}: measured, {told(records)}")
