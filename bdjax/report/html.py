"""One self-contained HTML page, and beside it the table as Markdown and CSV and the figures as PNG."""

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from bdjax.errors import UserError
from bdjax.report import figures, overall, tables, tuned
from bdjax.report.page import Drawing, Drawings, page
from bdjax.report.pool import precision, trained
from bdjax.report.trajectory import trajectories, trajectory
from bdjax.report.triggers import pictures
from bdjax.sweep import arrays, location
from bdjax.sweep.location import Location

if TYPE_CHECKING:
    import polars as pl


def build(out: "str | Location", records: "pl.DataFrame | None" = None, *, data_dir: str | None = None) -> Location:
    """Write ``index.html``, ``table.md``, ``table.csv`` and ``figures/*.png`` into the folder of a sweep.

    Args:
      out: folder of the records.
      records: rows to report; None = all that lie in ``out``.
      data_dir: folder of the data archives, for the pictures of triggers; the page says so where they cannot be drawn.

    Returns:
      The path of ``index.html``: one file, no other is needed to read it, nothing is fetched.

    Raises:
      UserError: there are no records, or the folder cannot be written.
    """
    folder = location.locate(out)
    if records is None:
        from bdjax.sweep.store import read

        records = read(folder)
    drawings = Drawings(
        [Drawing(slug, caption, figure) for slug, caption, figure in overall.figures_of(records)],
        list(_effects(records)),
        list(_triggers(records, data_dir, folder)),
        [*_pruning(records), *_trajectories(records)],
        list(_courses(records)),
        list(_recovered(records, folder)),
    )
    text = page(records, drawings)
    try:
        with location.written(folder) as here:
            (here / "figures").mkdir(parents=True, exist_ok=True)
            (here / "table.md").write_text(tables.markdown(records), encoding="utf-8")
            (here / "table.csv").write_text(tables.csv(records), encoding="utf-8")
            for drawing in (one for group in drawings for one in group):
                if drawing.figure is not None:
                    drawing.figure.savefig(here / "figures" / f"{drawing.slug}.png", dpi=150)
            (here / "index.html").write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write the report in {folder}: {error.strerror or error}") from error
    return folder / "index.html"


def _scenarios(records: "pl.DataFrame") -> Iterator[tuple[str, str, "pl.DataFrame"]]:
    """(title, slug, rows) of every training configuration."""
    import polars as pl

    tagged = records.with_columns(pl.Series("trained", [trained(config) for config in records["config"]], pl.String))
    parts = tagged.partition_by("trained", maintain_order=True, include_key=False)
    told = [
        (p["attack"][0], p["dataset"][0], f"{p['model'][0]} width {p['width'][0]}", precision(p["config"][0]), p["profile"][0])
        for p in parts
    ]
    told = [(facts[0].rpartition(":")[2], *facts[1:]) for facts in told]
    # A title names the attack and whatever else differs between the configurations of this report.
    titles = [" · ".join(fact for i, fact in enumerate(facts) if i == 0 or len({t[i] for t in told}) > 1) for facts in told]
    for i, (title, part) in enumerate(zip(titles, parts, strict=True)):
        if titles.count(title) > 1:
            title += f" · configuration {titles[: i + 1].count(title)}"
        yield title, _slug(title), part


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9_]+", "-", title.lower()).strip("-")


def _effects(records: "pl.DataFrame") -> Iterator[Drawing]:
    for title, slug, part in _scenarios(records):
        if (part["defense"] != "none").any():
            yield Drawing(f"before-after-{slug}", title, figures.before_after(part))


def _triggers(records: "pl.DataFrame", data_dir: str | None, folder: Location) -> Iterator[Drawing]:
    """One grid per data set, all attacks in it."""
    for part in records.partition_by("dataset", maintain_order=True):
        dataset = part["dataset"][0]
        grid: dict[str, Any] = {}
        for _, _, rows in _scenarios(part):
            row = _most_poisoned(rows)
            config = json.loads(row["config"])["attack"]
            name = row["attack"].rpartition(":")[2]
            if any(config == known for known, _ in grid.values()):
                continue
            try:
                made = pictures(row, data_dir, out=folder)
            except UserError as error:
                yield Drawing(f"triggers-{dataset}-{_slug(name)}", f"{name} on {dataset}", None, str(error))
                continue
            title = f"{name}\n{made.note}" if made.note else name
            grid[title if title not in grid else f"{title} {len(grid) + 1}"] = (config, made)
        if grid:
            made = next(iter(grid.values()))[1]
            drawn = figures.picture_grid(made.images, {name: p.triggered for name, (_, p) in grid.items()}, made.names)
            caption = f"Test images of {dataset}, the same images triggered, and ten times the change (clipped at white)"
            yield Drawing(f"triggers-{dataset}", caption, drawn)


def _most_poisoned(rows: "pl.DataFrame") -> dict[str, Any]:
    """The first row of those that are ok, if any, with the highest ratio: at ratio 0 a trigger that is learned learns nothing."""
    fine = rows.filter(rows["status"] == "ok")
    return (rows if fine.is_empty() else fine).sort("ratio", descending=True, maintain_order=True).row(0, named=True)


def _pruning(records: "pl.DataFrame") -> Iterator[Drawing]:
    for title, slug, part in _scenarios(records):
        masked = part.filter(part["masks"].is_not_null() & (part["status"] == "ok"))
        for rows in masked.partition_by("defense", maintain_order=True):
            defense = rows["defense"][0].rpartition(":")[2]
            curves = rows.filter([figures.has_curve(row) for row in rows.to_dicts()])
            if not curves.is_empty():
                caption = f"{defense} against {title}: accuracy while channels are pruned; one line per member, the median bold"
                yield Drawing(f"pruning-curve-{_slug(defense)}-{slug}", caption, figures.pruning_curve(curves))
            if _layers(rows) > 1:
                caption = f"{defense} against {title}: channels pruned in each layer, median and range over members"
                yield Drawing(f"pruned-channels-{_slug(defense)}-{slug}", caption, figures.pruned_channels(rows))


def _trajectories(records: "pl.DataFrame") -> Iterator[Drawing]:
    """The rounds of methods that prune one filter at a time, with the most clean samples there are."""
    for title, slug, part in _scenarios(records):
        for rows in part.filter(part["trace"].is_not_null()).partition_by("defense", maintain_order=True):
            most = _most_clean(rows)
            if any(trajectory(row) for row in most.to_dicts()):
                defense = rows["defense"][0].rpartition(":")[2]
                caption = (
                    f"{defense} against {title}{_per_class(most)}: round by round, a line per member, a dot at what was kept"
                )
                yield Drawing(f"trajectory-{_slug(defense)}-{slug}", caption, trajectories(most))


def _courses(records: "pl.DataFrame") -> Iterator[Drawing]:
    """What happened by epoch, per training configuration and defense, with the most clean samples there are."""
    for title, slug, part in _scenarios(records):
        for rows in part.filter(part["defense"] != "none").partition_by("defense", maintain_order=True):
            most = _most_clean(rows)
            if any(tuned.courses(row) for row in most.to_dicts()):
                defense = rows["defense"][0].rpartition(":")[2]
                caption = f"{defense} against {title}{_per_class(most)}: by epoch; one line per member, the median bold"
                yield Drawing(f"course-{_slug(defense)}-{slug}", caption, tuned.course(most))


def _recovered(records: "pl.DataFrame", folder: Location) -> Iterator[Drawing]:
    """The triggers that were found, of the first seed at each ratio, with the most clean samples there are."""
    for title, slug, part in _scenarios(records):
        fine = part.filter((part["status"] == "ok") & part["trace"].is_not_null() & (part["defense"] != "none"))
        for rows in fine.partition_by("defense", maintain_order=True):
            most = _most_clean(rows)
            members = []
            for row in most.sort("ratio", "seed").unique("ratio", keep="first", maintain_order=True).to_dicts():
                try:
                    found = tuned.recovered(row, arrays.read(folder, row))
                except UserError as error:
                    yield Drawing(f"recovered-{slug}", f"recovered triggers, {title}", None, str(error))
                    continue
                if found:
                    members.append((f"{figures.ratio_title(row['ratio'])}\nseed {row['seed']}", found))
            if members:
                defense = rows["defense"][0].rpartition(":")[2]
                caption = (
                    f"{defense} against {title}{_per_class(most)}: recovered triggers, the norm of each mask and its anomaly "
                    "index; flagged classes framed in colour"
                )
                yield Drawing(
                    f"recovered-{_slug(defense)}-{slug}", caption, tuned.recovered_triggers(members, _names(rows["dataset"][0]))
                )


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


def _layers(rows: "pl.DataFrame") -> int:
    return len(json.loads(rows["masks"][0]))
