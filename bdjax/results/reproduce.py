"""Run the member of one record again from its settings, and compare the numbers."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bdjax.errors import UserError
from bdjax.population import Execution, recorded_execution
from bdjax.results.as_recorded import edited
from bdjax.results.member import load
from bdjax.results.recreate import same_images
from bdjax.store import checkpoints, hashing, provenance, records
from bdjax.store.location import Location
from bdjax.store.rows import Row
from bdjax.sweep import build, editions, pending
from bdjax.sweep.cell import DefenseCell, Point, TrainCell, member_hash
from bdjax.sweep.cells import place
from bdjax.sweep.defend_cell import defend
from bdjax.sweep.imported_cells import begin
from bdjax.sweep.progress import Progress
from bdjax.types import Dataset

MEASURED = ("status", "acc", "asr", "ra", "acc_before", "asr_before", "ra_before", "n_clean", "n_triggered", "poisoned")
DETAILS = ("masks", "trace", "loss", "trigger_digest")
RATES = ("acc", "asr", "ra")


class Verdict(NamedTuple):
    """What a second run of a record came to."""

    verdict: str  # "identical", "within tolerance" or "different"
    record: Row
    again: Row
    differing: tuple[str, ...]  # columns
    reasons: tuple[str, ...]  # what was not as it was for the record


def again(
    out: Location, row: Row, dataset: Dataset, *, tolerance: float = 0.01, retrain: bool = False, folder: str | None = None
) -> Verdict:
    """Run a record again, by itself or, where its execution runs several members at once, with the members it was run with.

    Args:
      out: folder of results.
      row: a record of it.
      dataset: images of the record.
      tolerance: largest difference of ACC, ASR and RA that passes, in [0, 1].
      retrain: also train the network again that the defense started from, instead of starting from its stored weights.
      folder: where the network was imported to, if it was.

    Returns:
      The verdict. Counts, masks, losses and traces are compared; times are not.

    Raises:
      UserError: another edition of a method, other images, a method's file that is gone or was edited, or settings that this
        version understands otherwise.
    """
    if not 0 <= tolerance <= 1:
        raise UserError(f"tolerance {tolerance} is not allowed; it lies in 0 … 1")
    editions.same(row, "the result")
    same_images(row, dataset)
    config = json.loads(row["config"])
    cell = _cell(row, config, folder)
    _same_settings(cell, dataset, config)
    train_cell = cell.train if isinstance(cell, DefenseCell) else cell
    execution = recorded_execution(json.loads(row["execution"]))
    with tempfile.TemporaryDirectory(prefix="bdjax-reproduce-") as name:
        copy = Path(name)
        placed = place(train_cell, *build.attacked(train_cell), build.cell_hash(train_cell, dataset.digest), dataset, execution)
        points = _members_of(out, row, execution)
        trained = list(dict.fromkeys(member_hash(point._replace(hyper={})) for point in points))
        with Progress(["train", row["defense"]]) as progress:
            if row["defense"] == "none" or retrain:
                bases = {member_hash(point._replace(hyper={})): point._replace(hyper={}) for point in points}
                begin(placed, list(bases.values()), copy, progress)
            if isinstance(cell, DefenseCell):
                source = copy if retrain else out
                rows = pending.by_member([mine for _, mine in records.read_cell(source, placed.name)])
                if not retrain:
                    load(out, row)  # raises UserError if the weights are gone
                places = checkpoints.find(source, placed.name)
                there = checkpoints.load(source, placed.name, [places[member] for member in trained if member in places])
                defend(placed, cell, row["cell"], points, (rows, there), copy, progress)
        found = pending.by_member([mine for _, mine in records.read_cell(copy, row["cell"])])[row["member"]]
    return judge(row, found, tolerance)


def _members_of(out: Location, row: Row, execution: Execution) -> list[Point]:
    """The members that a record was run with, in their order: those of its file; alone where members run one by one."""
    own = Point(row["seed"], row["ratio"], json.loads(row["hyper"]))
    if execution.strategy == "sequential":
        return [own]
    files = records.read_cell(out, row["cell"])
    mine = {name for name, other in files if other["member"] == row["member"] and other["created"] == row["created"]}
    rows = [other for name, other in files if name in mine]
    return [Point(other["seed"], other["ratio"], json.loads(other["hyper"])) for other in rows] or [own]


def _cell(row: Row, config: Mapping[str, Any], folder: str | None) -> TrainCell | DefenseCell:
    """The cell of a record, from the record alone."""
    if "imported" in config and folder is None:
        raise UserError("this network was imported: name its folder with --imported")
    model = config["model"]
    train_cell = TrainCell(
        dataset=row["dataset"],
        train_images=row["train_images"],
        test_images=row["test_images"],
        model=model["name"],
        width=model["width"],
        attack=config["attack"]["name"],
        attack_config=config["attack"]["config"],
        recipe=config["recipe"],
        profile=config["profile"],
        target=0,
        root=config["root"],
        precision=model["precision"],
        depth=model["depth"],
        imported=folder,
    )
    if "defense" not in config:
        return train_cell
    return DefenseCell(train_cell, config["defense"]["name"], config["defense"]["config"], config["spc"])


def _same_settings(cell: TrainCell | DefenseCell, dataset: Dataset, config: Mapping[str, Any]) -> None:
    """Raise UserError where this version, or a method's file, understands the settings of the record otherwise."""
    now = build.describe(cell, dataset.digest)
    for kind in editions.KINDS:
        before, today = (one.get(kind) or {} for one in (config, now))
        if before.get("source") != today.get("source"):
            raise edited(before, today.get("source"))
    changed = sorted(key for key in {*now, *config} if now.get(key) != config.get(key))
    if changed:
        changes = "; ".join(f"{key}: {_short(config.get(key))}, now {_short(now.get(key))}" for key in changed)
        raise UserError(f"the settings of this record mean something else here: {changes}")


def _short(value: Any) -> str:
    text = hashing.canonical(value)
    return text if len(text) <= 120 else text[:117] + "..."


def judge(record: Row, again: Row, tolerance: float) -> Verdict:
    """Compare two runs of one record."""
    differing = tuple(name for name in (*MEASURED, *DETAILS) if record[name] != again[name])
    if not differing:
        return Verdict("identical", record, again, (), ())
    close = record["status"] == again["status"] and all(_close(record[name], again[name], tolerance) for name in RATES)
    reasons = []
    for name in ("versions", "execution"):
        before, now = json.loads(record[name]), json.loads(again[name])
        changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
        reasons += [f"{key}: {before.get(key)}, now {now.get(key)}" for key in changed]
    for name in ("git_commit", "device", "members"):
        if record[name] != again[name]:
            reasons.append(f"{name.replace('_', ' ')}: {record[name]}, now {again[name]}")
    return Verdict("within tolerance" if close else "different", record, again, differing, tuple(reasons))


def _close(before: float | None, now: float | None, tolerance: float) -> bool:
    if before is None or now is None:
        return before is now
    return abs(before - now) <= tolerance + 1e-12


def lines(found: Verdict) -> list[str]:
    """The lines that print a verdict."""
    text = [found.verdict]
    for name in found.differing:
        if name in RATES:
            text.append(f"  {name.upper()}: {found.record[name]}, now {found.again[name]}")
        elif name in DETAILS:
            text.append(f"  {name}: not the same")
        else:
            text.append(f"  {name}: {found.record[name]}, now {found.again[name]}")
    if found.differing:
        none = "nothing that the record tells: neither versions, commit, device, execution nor company differ"
        text.append("  what was not as it was: " + ("; ".join(found.reasons) or none))
    text.append(f"  run on {provenance.device()}")
    return text
