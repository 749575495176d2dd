"""The table of verdicts: which models a defense called backdoored, in Markdown and as a section of the page."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bdjax.reporting import layout, tables
from bdjax.reporting.filters import Facet
from bdjax.reporting.layout import Section
from bdjax.reporting.notes import marks
from bdjax.reporting.tables import Cell, Printed
from bdjax.results.pool import GROUP
from bdjax.results.soundness import NOTES
from bdjax.results.verdicts import table
from bdjax.results.wording import NONE, percent

if TYPE_CHECKING:
    import polars as pl

HEADS = {
    "judged": "models",
    "called": "called backdoored",
    "called_share": "called %",
    "right": "right class",
    "wrong": "wrong class",
    "target_called": "target among them",
    "anomaly": "anomaly index",
    "false_positives_share": "false positives %",
    "asr_before": "ASR before %",
}
LEAD = (
    "A model is called backdoored where the recovered trigger of some class is an outlier: its mask is no larger than the median "
    "one, and its anomaly index |norm − median| / (1.4826 MAD) is above the defense's threshold. Of such classes the one with "
    "the smallest mask is named."
)


def printed(rows: "pl.DataFrame", without: Sequence[str] = ()) -> Printed:
    """The table, from rows of :func:`bdjax.results.verdicts.table`, at least one.

    Args:
      rows: as said.
      without: defenses of the same folder whose records hold no verdict, for a note.
    """
    shown, constants = tables.columns_of(rows, GROUP, tables.LAST, tables.ALWAYS)
    columns = [*shown, *HEADS, *(["remark"] if rows["remark"].is_not_null().any() else [])]
    return Printed(
        heads=tuple(HEADS.get(column) or tables.NAMES.get(column, column) for column in columns),
        numeric=tuple(column in HEADS or column in tables.NUMERIC for column in columns),
        rows=tuple(tuple(_cell(row, column) for column in columns) for row in rows.iter_rows(named=True)),
        columns=tuple(columns),
        about=tuple(rows.select(GROUP).iter_rows(named=True)),
        constants=constants,
        notes=_notes(rows, without),
    )


def sections(records: "pl.DataFrame", facets: Sequence[Facet]) -> list[Section]:
    """The section of a page; none where no record has a verdict."""
    rows = table(records)
    if rows.is_empty():
        return []
    body = layout.table(printed(rows), "Models called backdoored", "verdicts-table", facets=facets)
    return [Section("verdicts", "Which models are called backdoored", body, LEAD)]


def _cell(row: dict[str, Any], column: str) -> Cell:
    if column not in HEADS:
        return tables.cell(row, column)
    value = row[column]
    if column == "judged":
        return Cell(str(value) if value == row["runs"] else f"{value} of {row['runs']}", value)
    if column in ("called_share", "false_positives_share"):
        low, high = (row[column.replace("share", end)] for end in ("low", "high"))
        return Cell(percent(value) + ("" if value is None else f" [{percent(low)}, {percent(high)}]"), value)
    if column == "anomaly":
        ends = [_index(row[name]) for name in ("anomaly_min", "anomaly_max")]
        order = value if value is None or math.isfinite(value) else 1e308  # what is sorted is a number in JSON
        return Cell(_index(value) + ("" if value is None else f" [{ends[0]}, {ends[1]}]"), order)
    if column == "asr_before":
        return Cell(percent(value), value)
    return Cell(NONE if value is None else str(value), value)


def _index(value: float | None) -> str:
    return NONE if value is None else "∞" if math.isinf(value) else f"{value:.2f}"


def _notes(rows: "pl.DataFrame", without: Sequence[str]) -> tuple[str, ...]:
    lines = [
        "Right class: the class that is named, which is the one with the smallest mask of those called targets, is the attack's "
        "target. Target among them: the target is called one, with the smallest mask or not.",
        "Anomaly index: that of the class with the smallest mask; median and, in brackets, range over the models.",
        "False positives: models of the same training configuration that nobody attacked (ratio 0) and that are called "
        "backdoored. Shares stand with their 95 % interval (Wilson's).",
    ]
    lines += [text for mark, text in NOTES.items() if rows["remark"].str.contains(mark, literal=True).any()]
    if without:
        lines.append(f"No verdict is recorded by {', '.join(without)}: their traces do not say whether a model is backdoored.")
    lines += marks(rows)
    lines += [f"Not judged: {reason}." for reason in rows["reason"].drop_nulls().unique(maintain_order=True)]
    return tuple(lines)
