"""ACC and ASR of the networks along a defense's pruning curve. For analysis alone: no defender could measure them."""

import json
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.errors import UserError, choose
from bdjax.keys import Stream, stream
from bdjax.population import concatenate, members, run, stack
from bdjax.results import member as trained
from bdjax.store import arrays, location, records
from bdjax.store.location import Location
from bdjax.store.rows import Row
from bdjax.train.evaluate import Counts, evaluator
from bdjax.train.experiment import Data, Subject
from bdjax.types import Array, Attack, Curve, Model


class Measured(NamedTuple):
    """The curves of the members of one defense cell."""

    rows: tuple[Row, ...]  # their records, m of them
    label: str  # what the points are
    points: tuple[float, ...]  # L of them
    counts: Counts  # i32[m L]


def measure(
    out: "str | Location", defense: str, *, data_dir: str | None = None, dataset: str | None = None, folder: str | None = None
) -> list[Measured]:
    """Measure every level of the pruning curves of a defense's records on the test set, one compiled call per defense cell.

    Args:
      out: folder of a run.
      defense: its records are read; their traces say which channel goes when.
      data_dir: folder of the data archives.
      dataset: path of the data set, where it is a user's own.
      folder: where the networks were imported to, if they were.

    Raises:
      UserError: no finished record of this defense, a defense without a pruning curve, other images than those of the records.
    """
    from bdjax.data import load

    cells = defaultdict(list)
    fine = [row for row in records.read_rows(location.locate(out)) if row["status"] == "ok"]
    if not fine:
        raise UserError(f"{out} holds no finished records")
    choose("defense with records here", defense, sorted({row["defense"] for row in fine} - {"none"}))
    for row in fine:
        if row["defense"] == defense:
            cells[row["cell"]].append(row)
    found = []
    for rows in cells.values():
        first = rows[0]
        images = load(dataset or first["dataset"], data_dir, train_images=first["train_images"], test_images=first["test_images"])
        attack, data = trained.staged(first, images, folder)
        held = [trained.held(location.locate(out), row) for row in rows]
        model, method, execution = trained.defended(first, trained.network(held[0], dataset))
        if method.curve is None:
            raise UserError(f"{defense} has no pruning curve: it does not prune more and more")
        triggers = [trained.trigger_of(one, attack, images, data) for one in held]
        config = json.loads(first["config"])
        points = [(row["seed"], row["ratio"]) for row in rows]
        each = [members([s], [r], len(images.train.labels), root_number=config["root"])[0] for s, r in points]
        subjects = Subject(concatenate(each), _stacked([one.variables for one in held]), _stacked(triggers))
        traces = _stacked([_fields(out, row, method.curve.reads) for row in rows])
        counts = run(along(model, attack, method.curve), (subjects, traces), (data,), execution)
        found.append(Measured(tuple(rows), method.curve.label, method.curve.points, jax.tree.map(np.asarray, counts)))
    return found


def along(model: Model, attack: Attack, curve: Curve) -> Callable[..., Counts]:
    """Evaluate one member at every level: ``f((subject, fields of its trace), data: Data) -> Counts of i32[L]``."""
    # Levels are mapped inside the program, so its loops must be compiled ones.
    evaluate = evaluator(model._replace(loop=model.loop._replace(kind="scan")), attack)

    def function(one: tuple[Subject, tuple[Array, ...]], data: Data) -> Counts:
        (member, variables, trigger), trace = one
        copies = stream(member.key, Stream.TRIGGER)

        def at(level: Array) -> Counts:
            return evaluate(curve.at(variables, *trace, level), data.test, trigger, copies)

        return jax.lax.map(at, jnp.arange(len(curve.points), dtype=jnp.int32))

    return jax.jit(function)


def _stacked(trees: list[Any]) -> Any:
    return stack(jax.tree.map(jnp.asarray, trees))


def _fields(out: "str | Location", row: Row, names: tuple[str, ...]) -> tuple[Any, ...]:
    """Fields of a record's trace as arrays f32 or i32; what JSON could not hold, an infinite score, is NaN."""
    told: dict[str, Any] = {**json.loads(row["trace"]), **arrays.read(out, row)}
    fields = []
    for name in names:
        value = told.get(name)
        if value is None:
            raise UserError(f"a record of {row['defense']} does not tell {name}: an older version of it ran; run the cell anew")
        if isinstance(value, dict):
            lay = arrays.place(location.locate(out), row["cell"], row["member"])
            raise UserError(f"{name} of a record lay in {lay}, which is gone")
        array = np.array([np.nan if x is None else x for x in value])
        fields.append(array.astype(np.int32 if array.dtype.kind == "i" else np.float32))
    return tuple(fields)
