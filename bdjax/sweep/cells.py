"""What the cells of a sweep share while they run: data on the device, members, memory, failures, and the end of a cell."""

import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from bdjax import population
from bdjax.errors import PluginError, UserError
from bdjax.keys import root
from bdjax.population import Execution, hosts
from bdjax.population.segments import Abandoned
from bdjax.store import atomic
from bdjax.store import records as store
from bdjax.store.hashing import array_digest
from bdjax.store.location import Location
from bdjax.store.rows import Row, now
from bdjax.sweep.cell import Point, TrainCell
from bdjax.sweep.progress import Progress
from bdjax.train.experiment import Data, stage
from bdjax.types import Attack, Dataset, Member, Model


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
    checkpoint_every: float | None = None  # seconds between two checkpoints while a cell runs; None = by what they cost
    lost: Callable[[str], bool] = lambda cell: False  # whether another process has taken over a cell


def place(
    cell: TrainCell,
    model: Model,
    attack: Attack,
    name: str,
    dataset: Dataset,
    execution: Execution,
    checkpoint_every: float | None = None,
    lost: Callable[[str], bool] = lambda cell: False,
) -> Attacked:
    """Put a training cell on the device.

    Args:
      cell: what is trained.
      model, attack: built for it.
      name: its hash.
      dataset: its images on the host.
      execution: how its populations run.
      checkpoint_every: seconds between two checkpoints of a cell that runs; None = by what they cost.
      lost: says whether another process has taken over a cell, by its hash.
    """
    data = stage(attack, dataset, root(cell.root))
    digest = None if data.test.triggered is None else array_digest([data.test.triggered])
    return Attacked(
        cell, name, dataset, data, population.adapt(model, execution), attack, execution, digest, checkpoint_every, lost
    )


def members_of(attacked: Attacked, points: Sequence[Point], spc: int = 0) -> Member:
    """The members of these points, stacked, without hyper-parameters."""
    seeds, ratios = list(dict.fromkeys(p.seed for p in points)), list(dict.fromkeys(p.ratio for p in points))
    rows = len(attacked.dataset.train.labels)
    stacked, product = population.members(seeds, ratios, rows, root_number=attacked.cell.root, spc=spc)
    return population.take(stacked, [product.index((p.seed, p.ratio)) for p in points])


def fitted(make: Any, attacked: Attacked, stacked: Any) -> Execution:
    """The execution with a chunk that fits memory and divides the members evenly, so that the last one needs little filling."""
    total, execution = population.size(stacked), attacked.execution
    if total > 1:  # one member alone is tried as it is
        execution = population.fit(make, attacked.model, stacked, (attacked.data,), execution)
    execution = hosts.broadcast(execution)  # memory may differ between machines, the program must not
    if not execution.chunk or execution.strategy == "sequential":
        return execution
    even = -(-total // -(-total // execution.chunk))
    return execution._replace(chunk=-(-even // execution.devices) * execution.devices)


def attempted(run: Callable[[], Any], rows: Sequence[Row], out: Location, cell: str, members: str) -> Any:
    """Run the program of a cell; where it fails, mark these rows as failed, keep the traceback, and return None.

    Args:
      run: compiles and runs the program.
      rows: of the members that run.
      out: folder of the sweep.
      cell: hash of the cell.
      members: hash of the member set.

    Raises:
      UserError: the user's mistake, which is no result; but what a user's own method does wrong is a failed cell.
      Abandoned: another process has taken the cell over.
    """
    try:
        return run()
    except Abandoned:
        raise
    except Exception as error:
        if isinstance(error, UserError) and not isinstance(error, PluginError):
            raise
        _failed(rows, error, out, cell, members)
        return None


def _failed(rows: Sequence[Row], error: Exception, out: Location, cell: str, members: str) -> None:
    """Mark rows as failed, say so in one line and keep the traceback beside the records."""
    lines = str(error).strip().splitlines()
    reason = str(error) if isinstance(error, PluginError) else f"{type(error).__name__}: {lines[0] if lines else ''}".strip()
    path = out / "failures" / f"{cell}-{members}.txt"
    atomic.replace_file(path, "".join(traceback.format_exception(error)).encode())
    print(f"bdjax: {rows[0]['attack']} / {rows[0]['defense']} failed: {reason} (traceback in {path})", file=sys.stderr)
    for row in rows:
        row.update(status="failed", reason=reason)


def finished(rows: Sequence[Row], title: str, out: Location, cell: str, members: str, progress: Progress) -> None:
    """Write the rows of a cell with this moment as the time they were made, and say how the cell came out.

    Args:
      rows: of all members of the set.
      title: the cell in words, and what was done with it.
      out: folder of the sweep.
      cell: hash of the cell.
      members: hash of the member set.
      progress: where it is said.
    """
    moment = now()
    store.write_rows(out, cell, members, [{**row, "created": moment} for row in rows])
    progress.finish(f"{title}{outcome(rows)}")


def not_finite(row: Row, reason: str, title: str, progress: Progress) -> None:
    """Mark the row of a member whose numbers are not finite, and say so."""
    row.update(status="non_finite", reason=reason)
    progress.say(f"{title}: seed {row['seed']} ratio {row['ratio']:g}: {reason}; the others go on")


def outcome(rows: Sequence[Row]) -> str:
    """ACC and ASR of a cell in words: median and range over its members, and how many are not ok."""
    fine = [row for row in rows if row["status"] == "ok"]
    parts = []
    for name in ("acc", "asr"):
        values = [row[name] for row in fine if row[name] is not None]
        if values:
            parts.append(f"{name.upper()} {np.median(values):.3f} [{min(values):.3f}, {max(values):.3f}]")
    others = {s: sum(row["status"] == s for row in rows) for s in ("infeasible", "failed", "non_finite")}
    parts += [f"{count} {status.replace('_', ' ')}" for status, count in others.items() if count]
    return f"{len(fine)} member{'s' if len(fine) != 1 else ''}" + "".join(f", {part}" for part in parts)
