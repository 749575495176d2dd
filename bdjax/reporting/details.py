"""What is drawn of single scenarios: before and after, triggers, pruning, courses, what was recovered."""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from bdjax.errors import UserError
from bdjax.reporting import figures, images, tuned
from bdjax.reporting.classes import OfScenario
from bdjax.reporting.drawing import Drawing
from bdjax.reporting.trajectory import trajectories
from bdjax.results import by_class, traces
from bdjax.results.apart import apart, runs_apart
from bdjax.results.configs import parsed
from bdjax.results.scenarios import Scenario, slug
from bdjax.results.triggers import Pictures, pictures
from bdjax.results.wording import ratio_title
from bdjax.store import arrays
from bdjax.store.location import Location

if TYPE_CHECKING:
    import polars as pl


class Details(NamedTuple):
    """The figures of some scenarios by section of a page."""

    effects: list[Drawing]
    triggers: list[Drawing]
    pruning: list[Drawing]
    courses: list[Drawing]
    recovered: list[Drawing]
    classes: list[OfScenario]

    def drawings(self) -> list[Drawing]:
        """All figures."""
        return [*self.effects, *self.triggers, *self.pruning, *self.courses, *self.recovered]


def details(shown: Sequence[Scenario], folder: Location, data_dir: str | None) -> Details:
    """Draw some scenarios.

    Args:
      shown: of one report.
      folder: of the records; arrays and trained triggers lie in it.
      data_dir: folder of the data archives, for the pictures of triggers; what cannot be drawn says why.
    """
    return Details(
        [drawing for one in shown for drawing in _effect(one)],
        list(_triggers(shown, data_dir, folder)),
        [drawing for draw in (_pruning, _trajectories) for one in shown for drawing in draw(one)],
        [drawing for one in shown for drawing in _courses(one)],
        [drawing for one in shown for drawing in _recovered(one, folder)],
        [OfScenario(one.title, one.slug, _names(one.rows["dataset"][0]), by_class.pooled(one.rows)) for one in shown],
    )


def _effect(shown: Scenario) -> Iterator[Drawing]:
    if (shown.rows["defense"] != "none").any():
        yield Drawing(f"before-after-{shown.slug}", shown.title, figures.before_after(shown.rows))


def _triggers(shown: Sequence[Scenario], data_dir: str | None, folder: Location) -> Iterator[Drawing]:
    """One grid per data set, all attacks in it."""
    for dataset in dict.fromkeys(one.rows["dataset"][0] for one in shown):
        found: dict[str, Pictures] = {}
        for name, row in _attacks([one for one in shown if one.rows["dataset"][0] == dataset]):
            try:
                made = pictures(row, data_dir, out=folder)
            except UserError as error:
                yield Drawing(f"triggers-{dataset}-{slug(name)}", f"{name} on {dataset}", None, str(error))
                continue
            found[f"{name}\n{made.note}" if made.note else name] = made
        if found:
            made = next(iter(found.values()))
            sheet_rows = images.of_triggers(made.images, {name: p.triggered for name, p in found.items()}, made.names)
            caption = f"Test images of {dataset}, the same images triggered, and ten times the change (grey is unchanged)"
            yield Drawing(f"triggers-{dataset}", caption, images.sheet(sheet_rows), rows=sheet_rows)


def _attacks(shown: Sequence[Scenario]) -> list[tuple[str, dict[str, Any]]]:
    """Each attack of some scenarios once, with a row: its name, and the settings in which those of one name differ."""
    rows: dict[str, dict[str, Any]] = {}
    for one in shown:
        row = _most_poisoned(one.rows)
        rows.setdefault(json.dumps(parsed(row["config"])["attack"], sort_keys=True), row)
    names = [row["attack"].rpartition(":")[2] for row in rows.values()]
    settings = apart([{"attack": parsed(row["config"])["attack"]} for row in rows.values()], names)
    titles = [f"{name}, {one}" if one else name for name, one in zip(names, settings, strict=True)]
    return list(zip(titles, rows.values(), strict=True))


def _most_poisoned(rows: "pl.DataFrame") -> dict[str, Any]:
    """The first row of those that are ok, if any, with the highest ratio: at ratio 0 a trigger that is learned learns nothing."""
    fine = rows.filter(rows["status"] == "ok")
    return (rows if fine.is_empty() else fine).sort("ratio", descending=True, maintain_order=True).row(0, named=True)


def _pruning(shown: Scenario) -> Iterator[Drawing]:
    masked = shown.rows.filter(shown.rows["masks"].is_not_null() & (shown.rows["status"] == "ok"))
    for defense, rows in runs_apart(masked):
        curves = rows.filter([traces.pruning_curve(row) is not None for row in rows.to_dicts()])
        if not curves.is_empty():
            caption = f"{defense} against {shown.title}: accuracy while channels are pruned; one line per member, the median bold"
            yield Drawing(f"pruning-curve-{slug(defense)}-{shown.slug}", caption, figures.pruning_curve(curves))
        if len(json.loads(rows["masks"][0])) > 1:
            caption = f"{defense} against {shown.title}: channels pruned in each layer, median and range over members"
            yield Drawing(f"pruned-channels-{slug(defense)}-{shown.slug}", caption, figures.pruned_channels(rows))


def _trajectories(shown: Scenario) -> Iterator[Drawing]:
    """The rounds of methods that prune one filter at a time, with the most clean samples there are."""
    for defense, rows in runs_apart(shown.rows.filter(shown.rows["trace"].is_not_null())):
        most = _most_clean(rows)
        if any(traces.trajectory(row) for row in most.to_dicts()):
            caption = (
                f"{defense} against {shown.title}{_per_class(most)}: round by round, a line per member, a dot at what was kept"
            )
            yield Drawing(f"trajectory-{slug(defense)}-{shown.slug}", caption, trajectories(most))


def _courses(shown: Scenario) -> Iterator[Drawing]:
    """What happened by epoch, per defense, with the most clean samples there are."""
    for defense, rows in runs_apart(shown.rows.filter(shown.rows["defense"] != "none")):
        most = _most_clean(rows)
        if any(traces.courses(row) for row in most.to_dicts()):
            caption = f"{defense} against {shown.title}{_per_class(most)}: by epoch; one line per member, the median bold"
            yield Drawing(f"course-{slug(defense)}-{shown.slug}", caption, tuned.course(most))


def _recovered(shown: Scenario, folder: Location) -> Iterator[Drawing]:
    """The triggers that were found, of the first seed at each ratio, with the most clean samples there are."""
    rows = shown.rows
    fine = rows.filter((rows["status"] == "ok") & rows["trace"].is_not_null() & (rows["defense"] != "none"))
    for defense, part in runs_apart(fine):
        most = _most_clean(part)
        members = []
        for row in most.sort("ratio", "seed").unique("ratio", keep="first", maintain_order=True).to_dicts():
            try:
                found = traces.recovered(row, arrays.read(folder, row))
            except UserError as error:
                yield Drawing(f"recovered-{shown.slug}", f"recovered triggers, {shown.title}", None, str(error))
                continue
            if found:
                members.append((f"{ratio_title(row['ratio'])}\nseed {row['seed']}", found))
        if members:
            caption = (
                f"{defense} against {shown.title}{_per_class(most)}: recovered triggers, the norm of each mask and its anomaly "
                "index; flagged classes framed in colour"
            )
            sheet_rows = images.of_recovered(members, _names(part["dataset"][0]))
            yield Drawing(f"recovered-{slug(defense)}-{shown.slug}", caption, images.sheet(sheet_rows), rows=sheet_rows)


def _most_clean(rows: "pl.DataFrame") -> "pl.DataFrame":
    """The rows with the most clean samples per class; all where the defense takes none."""
    return rows if rows["spc"].is_null().all() else rows.filter(rows["spc"] == rows["spc"].max())


def _per_class(rows: "pl.DataFrame") -> str:
    return "" if rows["spc"][0] is None else f", {rows['spc'][0]} per class"


def _names(dataset: str) -> tuple[str, ...]:
    """Names of the classes, where the data set is known here."""
    from bdjax.data import spec

    try:
        return spec(dataset).class_names
    except UserError:
        return ()
