"""The two kinds of HTML page: the index of a folder of records, and the page of one training configuration."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from bdjax.reporting import filters, layout, tables, verdicts
from bdjax.reporting.details import Details
from bdjax.reporting.drawing import Drawing
from bdjax.reporting.layout import Section
from bdjax.reporting.tables import Cell, Printed
from bdjax.results.mitigation import LIMITS, Limits
from bdjax.results.scenarios import Scenario
from bdjax.results.views import Views
from bdjax.results.wording import setting

if TYPE_CHECKING:
    import polars as pl

CELLS = "cells"  # the folder of the pages of single scenarios


class Drawn(NamedTuple):
    """The figures of the index."""

    overall: Sequence[Drawing]
    sensitivity: Sequence[Drawing]
    details: Details | None  # None: they are on pages of their own


class Pooled(NamedTuple):
    """Records pooled over runs."""

    table: "pl.DataFrame"  # of bdjax.results.pool.table
    board: "pl.DataFrame"  # of bdjax.results.pool.leaderboard
    views: Views  # of bdjax.results.views.views


def index(
    records: "pl.DataFrame",
    pooled: Pooled,
    full: Printed,
    shown: Sequence[Scenario],
    drawn: Drawn,
    *,
    linked: bool = True,
    limits: Limits = LIMITS,
) -> str:
    """The index as one string of HTML.

    Args:
      records: rows of a sweep, at least one.
      pooled: the same.
      full: all of ``pooled.table``, ready to be laid out.
      shown: the scenarios of ``records``.
      drawn: what was drawn from them.
      linked: lead to the pages of the scenarios, where they have some.
      limits: that the records were judged and pooled with.
    """
    inside = drawn.details is not None
    found = filters.facets(records)
    board = None if pooled.board.is_empty() else tables.board_of(pooled.board, limits)
    pages = {} if inside or not linked else {cell: one.name for one in shown for cell in one.rows["cell"].unique()}

    def link(cell: str) -> str | None:
        return f"{CELLS}/{pages[cell]}.html" if pages else None

    every = layout.table(
        full, "Results per scenario and defense", "scenarios", facets=found, link=lambda about: link(about["cell"])
    )
    sections = [
        *([] if board is None else [_leaders(board, pooled.views.pairs, found, limits)]),
        Section("compared", "Defenses compared", layout.pictures(drawn.overall)),
        Section("sensitivity", "What hyper-parameters do", layout.pictures(drawn.sensitivity)),
        *verdicts.sections(records, found),
        *(layout.detailed(drawn.details) if drawn.details is not None else []),
        *([_cells(shown, found)] if pages else []),
        Section("all", "Every scenario", every),
        Section("provenance", "Where the numbers come from", layout.provenance(records, configured=not pages)),
        layout.glossary(),
    ]
    datasets, attacks, methods, networks, seeds, ratios = (
        sorted({str(value) for value in records[key].unique()} - {"none"}, key=layout.natural)
        for key in ("dataset", "attack", "defense", "model", "seed", "ratio")
    )
    title = "Backdoor attacks and defenses"
    if len(attacks) + len(datasets) < 5:
        title = f"{' and '.join(attacks)} on {' and '.join(datasets)}"
    lead = (
        f"{layout.count(attacks, 'attack')} against {', '.join(networks)}; {layout.count(methods, 'defense')}, "
        f"{layout.count(seeds, 'seed')}, poison ratios {', '.join(f'{100 * float(r):g}' for r in ratios)} %. All numbers are "
        "percent of test images."
    )
    data: dict[str, Any] = {"facets": filters.choices(found)}
    if board is not None:
        data["views"] = filters.chosen(pooled.views, board, found)
    return layout.shell(title, lead, layout.tiles(records), sections, data, pictured=inside)


def scenario(shown: Scenario, drawn: Details, digest: str, limits: Limits = LIMITS) -> str:
    """The page of one training configuration: its tables, curves, masks, pictures and provenance.

    Args:
      shown: the training configuration and its rows, of every ratio, seed and defense.
      drawn: what was drawn from them.
      digest: what identifies these rows.
      limits: that they were judged with.
    """
    found = filters.facets(shown.rows)
    printed = tables.full(shown.rows, limits)
    facts = [f"{key} {value}" for key, value in printed.constants.items()]
    sections = [
        Section("all", "Every defense", layout.table(printed, f"Results of {shown.title}", "scenarios", facets=found)),
        *verdicts.sections(shown.rows, found),
        *layout.detailed(drawn),
        Section("provenance", "Where the numbers come from", layout.provenance(shown.rows, configured=True)),
        layout.glossary(),
    ]
    data = {"facets": filters.choices(found)}
    return layout.shell(shown.title, "; ".join(facts), layout.tiles(shown.rows), sections, data, digest=digest, up="../")


def _leaders(board: Printed, pairs: bool, found: Sequence[filters.Facet], limits: Limits) -> Section:
    lead = (
        "Pooled over all attacks and poison ratios above 0; compare rows with the same number of tasks (training configurations "
        f"× ratios). The best defense mitigated the most of its attacked runs: {limits.text()}. Of equals it is the one that "
        "kept the accuracy in more runs, then the one with the larger DER. DER adds up what was removed of the backdoor and what "
        "was lost of the accuracy, so a network that is destroyed still scores: 50 means no change, 100 a perfect defense. The "
        "cost is what the defense takes from the accuracy (ARR) of models nobody attacked. Click a column to sort; where "
        f"{'an attack, a ratio or both are' if pairs else 'an attack or a ratio is'} chosen, its runs alone are pooled."
    )
    body = layout.table(board, "Defenses pooled over attacks and poison ratios", "board", facets=found)
    return Section("defenses", "Defenses, best first", body, lead)


def _cells(shown: Sequence[Scenario], found: Sequence[filters.Facet]) -> Section:
    """Links to the pages of the scenarios."""
    columns = ("attack", "dataset", "model")
    rows, about = [], []
    for one in shown:
        facts = {key: one.rows[key][0] for key in (*columns, "cell")} | {"name": one.name}
        ratios = sorted(one.rows["ratio"].unique().to_list())
        ok = int((one.rows["status"] == "ok").sum())
        cells = [Cell(one.title, one.title), *(Cell(str(facts[key]), facts[key]) for key in columns[1:])]
        cells.append(Cell(", ".join(setting("ratio", ratio) for ratio in ratios), max(ratios)))
        cells += [Cell(f"{number:,}", number) for number in (one.rows.height, one.rows["defense"].n_unique() - 1, ok)]
        rows.append(tuple(cells))
        about.append(facts)
    printed = Printed(
        heads=("training configuration", "data set", "network", "poison ratios %", "records", "defenses", "measured"),
        numeric=(False, False, False, False, True, True, True),
        rows=tuple(rows),
        columns=("title", *columns[1:], "ratio", "records", "defenses", "measured"),
        about=tuple(about),
        constants={},
        notes=("A page each: before and after, the trigger, pruning curves and masks, courses, recovered triggers, settings.",),
    )
    body = layout.table(printed, "Pages of the training configurations", "pages-table", facets=found, link=_page)
    return Section("pages", "A page per training configuration", body)


def _page(about: dict[str, object]) -> str:
    return f"{CELLS}/{about['name']}.html"
