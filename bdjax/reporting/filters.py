"""What the page's script needs to filter the tables: the facets of every row, and the leaderboard of every choice."""

from typing import TYPE_CHECKING, Any, NamedTuple

from bdjax.reporting.glossary import meaning
from bdjax.reporting.tables import Printed, cell
from bdjax.results.pool import BOARD, described
from bdjax.results.views import CHOICE, Views
from bdjax.results.wording import setting

if TYPE_CHECKING:
    import polars as pl

FACETS = ("attack", "labels", "dataset", "model", "ratio", "spc", "defense")
COLUMNS = {"attack": "attack_variant"}  # of a facet that does not stand in a column of its name
LABELS = {
    "labels": "label rule",
    "dataset": "data set",
    "model": "network",
    "ratio": "poison ratio, percent",
    "spc": "clean samples per class",
}
MEANINGS = {"labels": "label rule", "ratio": "poison ratio", "spc": "spc"}  # what the glossary calls a facet
ORDERED = ("left_out", "lost")  # columns that are sorted by another number than the one they begin with


class Facet(NamedTuple):
    """One way to choose rows."""

    key: str
    values: tuple[Any, ...]  # ascending; what every choice shows, such as models before a defense, is none of them

    def place(self, about: dict[str, Any]) -> int:
        """The place of a row's value; -1 where the row serves every choice."""
        value = about.get(COLUMNS.get(self.key, self.key))
        return self.values.index(value) if value in self.values else -1


def facets(records: "pl.DataFrame") -> list[Facet]:
    """The facets of a report; those with one value too, which the page leaves out."""
    rows = described(records)
    return [Facet(key, tuple(sorted(set(rows[COLUMNS.get(key, key)].drop_nulls()) - {"none"}))) for key in FACETS]


def choices(found: list[Facet]) -> list[dict[str, Any]]:
    """The facets as the page's script reads them: key, label, the text of each value, and what the label means, or ""."""
    return [
        {
            "key": facet.key,
            "label": LABELS.get(facet.key, facet.key),
            "values": [setting(facet.key, value) for value in facet.values],
            "meaning": meaning(MEANINGS[facet.key]) if facet.key in MEANINGS else "",
        }
        for facet in found
    ]


def chosen(views: Views, board: Printed, found: list[Facet]) -> dict[str, Any]:
    """The cells of the leaderboard for every choice of an attack and a ratio, as the page's script reads them.

    Args:
      views: computed from the records of the leaderboard.
      board: the leaderboard as it is printed.
      found: the facets of the report.

    Returns:
      ``columns``, those of the leaderboard that a choice changes; ``pairs``, whether choices of both an attack and a ratio are
      among them; and ``cells``: by the choice, ``"place of the attack.place of the ratio"`` with nothing for what is not chosen,
      and by the number of the row in the leaderboard, the text of each column, or [text, number it is sorted by]. A row that is
      not there met no run of that choice.
    """
    columns = [column for column in board.columns if column not in board.about[0]]
    places = {tuple(about[key] for key in BOARD): i for i, about in enumerate(board.about)}
    attack, ratio = (next(facet for facet in found if facet.key == key) for key in ("attack", "ratio"))
    cells: dict[str, dict[int, list[Any]]] = {}
    for row in views.rows.iter_rows(named=True):
        pair = [
            "" if row[name] is None else str(facet.values.index(row[name]))
            for name, facet in zip(CHOICE, (attack, ratio), strict=True)
        ]
        printed = [(column, cell(row, column)) for column in columns]
        cells.setdefault(".".join(pair), {})[places[tuple(row[key] for key in BOARD)]] = [
            [one.text, one.order] if column in ORDERED else one.text for column, one in printed
        ]
    return {"columns": columns, "pairs": views.pairs, "cells": cells}
