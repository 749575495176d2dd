"""Pieces of the HTML pages: the page itself, sortable tables, figures as inline SVG, provenance."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from bdjax import __version__
from bdjax.reporting import classes
from bdjax.reporting.details import Details
from bdjax.reporting.drawing import Drawing
from bdjax.reporting.filters import Facet
from bdjax.reporting.glossary import WORDS, split_marks
from bdjax.reporting.images import embedded
from bdjax.reporting.render import render, verbatim
from bdjax.reporting.svg import inline
from bdjax.reporting.tables import Printed, split_interval
from bdjax.results.pool import STATUSES
from bdjax.results.soundness import NOTES

if TYPE_CHECKING:
    import polars as pl
    from markupsafe import Markup

BROKEN = ("lost", "remark")  # columns whose text breaks over lines
AT_FIRST = 300  # rows of a long table that are shown before they are asked for; the script has the same number
TALL = 24  # a table with more rows scrolls in itself
FILES_BESIDE = ("table.md", "table.csv", "table.tex", "leaderboard.tex", "figures/")


class Section(NamedTuple):
    """A part of a page; one without a body is left out."""

    key: str
    head: str
    body: "Markup | str"
    lead: str = ""  # plain text above the body


class Tile(NamedTuple):
    """A number at the head of a page."""

    number: str
    text: str
    lost: bool = False  # runs without a result


class Badge(NamedTuple):
    """What the networks behind a row are, in a word of the glossary."""

    word: str
    all: bool  # and not only some of them


class HtmlCell(NamedTuple):
    """A cell of a table as the template reads it."""

    value: str
    marks: str
    interval: str
    badges: Sequence[Badge]
    order: float | str | None
    kind: "Markup"  # the attribute that says how the cell is set, or nothing
    link: str | None


def shell(
    title: str,
    lead: str,
    tiles: Sequence[Tile],
    sections: Sequence[Section],
    data: Mapping[str, Any],
    *,
    digest: str = "",
    up: str = "",
    pictured: bool = True,
) -> str:
    """A complete page that fetches nothing.

    Args:
      title: plain text.
      lead: what the page is about, plain text.
      tiles: the numbers at its head.
      sections: in their order.
      data: what the script reads, by the id of the element that holds it as JSON.
      digest: identifies the records behind the page of a scenario.
      up: path from the page to the folder of the report, "" or ending in "/".
      pictured: whether the page holds pictures of triggers.
    """
    return render(
        "page.html",
        version=__version__,
        digest=digest,
        title=title,
        lead=lead,
        tiles=tiles,
        sections=[section for section in sections if section.body],
        style=verbatim("theme.css") + verbatim("page.css"),
        script=verbatim("page.js"),
        data=data,
        up=up,
        pictured=pictured,
        beside=FILES_BESIDE,
    )


def natural(text: str) -> tuple[bool, float, str]:
    """A key that sorts numbers by value, then names."""
    number = text.replace(".", "", 1).isdigit()
    return not number, float(text) if number else 0.0, text


def count(things: Sequence[Any], what: str) -> str:
    """A number of things in words."""
    return f"{len(things)} {what}" + ("" if len(things) == 1 else "s")


def tiles(records: "pl.DataFrame") -> list[Tile]:
    """How many runs there are, and how many of them ended in each way."""
    trained = records.filter(records["defense"] == "none").height
    found = [Tile(f"{trained:,}", "trained members"), Tile(f"{records.height - trained:,}", "defense runs")]
    for status in STATUSES:
        runs = int((records["status"] == status).sum())
        text = {"ok": "measured", "non_finite": "non-finite"}.get(status, status)
        found.append(Tile(f"{runs:,}", text, bool(runs) and status != "ok"))
    return found


def table(
    printed: Printed,
    caption: str,
    name: str,
    *,
    facets: Sequence[Facet] = (),
    link: Callable[[dict[str, Any]], str | None] = lambda about: None,
) -> "Markup":
    """A sortable table.

    Args:
      printed: the table.
      caption: for those who do not see it.
      name: the table's id; one that is long scrolls in itself, and shows its first rows only until more are asked for.
      facets: by which its rows can be chosen.
      link: address of the link in the first cell of a row, from what the row is about.
    """
    from markupsafe import Markup

    kinds = [
        Markup(" class=n") if numeric else Markup(" class=w") if column in BROKEN else Markup("")
        for numeric, column in zip(printed.numeric, printed.columns, strict=True)
    ]
    rows = []
    for row, about in zip(printed.rows, printed.about, strict=True):
        said = dict(zip(printed.columns, row, strict=True))
        named = badges(said["remark"].text) if "remark" in said else ()
        cells = []
        for place, (cell, column, kind) in enumerate(zip(row, printed.columns, kinds, strict=True)):
            value, interval = split_interval(cell.text)
            mine = named if column == "defense" else ()
            cells.append(HtmlCell(*split_marks(value), interval, mine, cell.order, kind, None if place else link(about)))
        rows.append({"places": " ".join(str(facet.place(about)) for facet in facets), "cells": cells})
    return render(
        "table.html",
        name=name,
        caption=caption,
        constants=", ".join(f"{key} {value}" for key, value in printed.constants.items()),
        heads=[
            {"text": head, "numeric": numeric, "column": column}
            for head, numeric, column in zip(printed.heads, printed.numeric, printed.columns, strict=True)
        ],
        rows=rows,
        notes=printed.notes,
        tall=TALL,
        at_first=AT_FIRST,
    )


def badges(remark: str) -> list[Badge]:
    """What a remark says of the networks behind a row (:func:`bdjax.results.soundness.remark`); the script does the same."""
    found = [(word, part) for part in remark.split("; ") for word in NOTES if part.startswith(word)]
    return [Badge(word, re.search(r" in \d+ of \d+ runs$", part) is None) for word, part in found]


def glossary() -> Section:
    """The section that explains the words and marks of a page."""
    return Section("glossary", "Words and marks", render("glossary.html", words=WORDS))


def detailed(drawn: Details) -> list[Section]:
    """The sections of single scenarios."""
    effects = (
        "Hollow: the backdoored model; filled: after the defense, with its 95 % interval. A defense without a result shows what "
        "became of its runs."
    )
    return [
        Section("effect", "Before and after", pictures(drawn.effects), effects),
        Section("classes", "What is still wrong, class by class", classes.tables(drawn.classes), classes.LEAD),
        Section("triggers", "What the triggers look like", pictures(drawn.triggers)),
        Section("pruning", "What pruning does", pictures(drawn.pruning)),
        Section("recovered", "The triggers that were recovered", pictures(drawn.recovered)),
        Section("course", "What happened on the way", pictures(drawn.courses)),
    ]


def pictures(drawings: Sequence[Drawing]) -> "Markup | str":
    """Figures as inline SVG, and the reasons of those that are missing; "" where there are none."""
    if not drawings:
        return ""
    shown = [
        {
            "caption": one.caption,
            "missing": one.missing,
            "rows": one.rows,
            "svg": "" if one.figure is None or one.rows else inline(one.figure, one.slug),
            "points": 0 if one.figure is None else round(72 * one.figure.get_figwidth()),
        }
        for one in drawings
    ]
    return render("pictures.html", drawings=shown, embedded=embedded)


def provenance(records: "pl.DataFrame", configured: bool) -> "Markup":
    """Where the numbers come from; ``configured``: with the full configuration of every cell."""
    import polars as pl

    def each(key: str) -> list[Any]:
        return records[key].drop_nulls().unique(maintain_order=True).to_list()

    calls = records.select("cell", "created", "seconds", "compile_seconds").unique()
    installed = [json.loads(text) for text in each("versions")]
    configs = None
    if configured:
        known = records.filter(pl.col("config").is_not_null()).unique("cell", maintain_order=True).sort("attack", "defense")
        configs = known.select("attack", "defense", "cell", "config").to_dicts()
    return render(
        "provenance.html",
        versions=[", ".join(f"{package} {version}" for package, version in packages.items()) for packages in installed],
        commits=each("git_commit"),
        devices=each("device"),
        executions=each("execution"),
        digests=records.select("dataset", "data_digest").unique(maintain_order=True).rows(),
        seeds=sorted(set(records["seed"])),
        first=records["created"].min(),
        last=records["created"].max(),
        seconds=f"{calls['seconds'].sum():,.0f}",
        compile_seconds=f"{calls['compile_seconds'].sum():,.0f}",
        configs=configs,
    )
