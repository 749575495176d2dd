"""ACC and ASR of the networks along a defense's pruning curve. For analysis alone: no defender could measure them."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdjax import metrics
from bdjax.errors import UserError, choose
from bdjax.keys import Stream, stream
from bdjax.population import concatenate, members, run, stack
from bdjax.results import recreate
from bdjax.results.configs import differing, labels
from bdjax.results.member import load, network
from bdjax.store import arrays, location, records
from bdjax.store.location import Location
from bdjax.store.rows import Row
from bdjax.train.evaluate import Counts, evaluator
from bdjax.train.experiment import Data, Subject
from bdjax.types import Array, Attack, Curve, Dataset, Model

if TYPE_CHECKING:
    import polars as pl

RATES = ("acc", "asr", "ra")


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
    from bdjax.data import load as load_data

    folder_of = location.locate(out)
    cells = defaultdict(list)
    fine = [row for row in records.read_rows(folder_of) if row["status"] == "ok"]
    if not fine:
        raise UserError(f"{out} holds no finished records")
    choose("defense with records here", defense, sorted({row["defense"] for row in fine} - {"none"}))
    for row in fine:
        if row["defense"] == defense:
            cells[row["cell"]].append(row)
    found = []
    for rows in cells.values():
        sizes = {"train_images": rows[0]["train_images"], "test_images": rows[0]["test_images"]}
        images = load_data(dataset or rows[0]["dataset"], data_dir, **sizes)
        found.append(_measure_cell(folder_of, rows, images, dataset, folder))
    return found


def _measure_cell(out: Location, rows: list[Row], images: Dataset, dataset: str | None, folder: str | None) -> Measured:
    """Measure the curves of the members of one defense cell; the arguments as of :func:`measure`."""
    attack, data = recreate.staged(rows[0], images, folder)
    networks = [load(out, row) for row in rows]
    model, method, execution = recreate.prepared(rows[0], network(networks[0], dataset))
    if method.curve is None:
        raise UserError(f"{rows[0]['defense']} has no pruning curve: it does not prune more and more")
    triggers = [recreate.trigger_of(one, attack, images, data) for one in networks]
    root_number = json.loads(rows[0]["config"])["root"]
    points = [(row["seed"], row["ratio"]) for row in rows]
    each = [members([s], [r], len(images.train.labels), root_number=root_number)[0] for s, r in points]
    subjects = Subject(concatenate(each), _stacked([one.variables for one in networks]), _stacked(triggers))
    traces = _stacked([_fields(out, row, method.curve.reads) for row in rows])
    counts = run(along(model, attack, method.curve), (subjects, traces), (data,), execution)
    return Measured(tuple(rows), method.curve.label, method.curve.points, jax.tree.map(np.asarray, counts))


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
    trace: dict[str, Any] = {**json.loads(row["trace"]), **arrays.read(out, row)}
    fields = []
    for name in names:
        value = trace.get(name)
        if value is None:
            raise UserError(f"a record of {row['defense']} does not tell {name}: an older version of it ran; run the cell anew")
        if isinstance(value, dict):
            place = arrays.place(location.locate(out), row["cell"], row["member"])
            raise UserError(f"{name} of a record lay in {place}, which is gone")
        array = np.array([np.nan if x is None else x for x in value])
        fields.append(array.astype(np.int32 if array.dtype.kind == "i" else np.float32))
    return tuple(fields)


class Group(NamedTuple):
    """Members of one cell that differ in their seeds alone."""

    about: Row  # of the first member
    setting: str  # profile and label rule, if they are not the usual ones, and the hyper-parameters that differ in the cell
    label: str
    points: tuple[float, ...]
    rates: dict[str, np.ndarray]  # f64[m L] in [0, 1]
    chosen: np.ndarray  # f64[m, 2]: ACC and ASR of the records, after everything that the defense did


def grouped(found: list[Measured]) -> list[Group]:
    """One group per cell, poison ratio and choice of hyper-parameters."""
    return list(_groups(found))


def _groups(found: list[Measured]) -> Iterator[Group]:
    for cell in found:
        every = metrics.rates(cell.counts)
        hypers = {row["hyper"]: json.loads(row["hyper"]) for row in cell.rows}
        moving = differing(list(hypers.values()))
        for ratio, hyper in sorted({(row["ratio"], row["hyper"]) for row in cell.rows}):
            index = [i for i, row in enumerate(cell.rows) if (row["ratio"], row["hyper"]) == (ratio, hyper)]
            profile = [] if cell.rows[0]["profile"] == "corrected" else [cell.rows[0]["profile"]]
            rule = [] if (kind := labels(cell.rows[0]["config"])) in (None, "all_to_one") else [str(kind)]
            setting = ", ".join([*profile, *rule, *(f"{leaf} {hypers[hyper][leaf]:g}" for leaf in moving)])
            rates = {name: np.asarray(rate, float)[index] for name, rate in zip(RATES, every, strict=True)}
            mine = [cell.rows[i] for i in index]
            chosen = np.array([[row[name] if row[name] is not None else np.nan for name in RATES[:2]] for row in mine])
            yield Group(mine[0], setting, cell.label, cell.points, rates, chosen)


def frame(found: list[Measured]) -> "pl.DataFrame":
    """Every level of every member: a row each, fractions in full precision."""
    import polars as pl

    facts = ("dataset", "model", "attack", "defense", "profile", "spc", "ratio", "seed", "hyper", "cell")
    rows: list[dict[str, Any]] = []
    for cell in found:
        every = [np.asarray(rate, float) for rate in metrics.rates(cell.counts)]
        for i, row in enumerate(cell.rows):
            about = {name: row[name] for name in facts}
            for level, point in enumerate(cell.points):
                rates = {name: rate[i, level] for name, rate in zip(RATES, every, strict=True)}
                rows.append({**about, "level": level, cell.label: point, **rates})
    return pl.DataFrame(rows, infer_schema_length=None)
