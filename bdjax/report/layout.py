"""Pieces of the HTML pages: the shell, tiles, sortable tables, figures as inline SVG, provenance."""

import io
import json
import re
from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any, NamedTuple

from bdjax import __version__
from bdjax.report.details import Details, Drawing
from bdjax.report.figures import COLORS, INK, PAPER
from bdjax.report.filters import Facet
from bdjax.report.tables import Printed
from bdjax.results.pool import STATUSES

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

FONTS = "system-ui, 'DejaVu Sans', sans-serif"
WORDS = ("lost", "remark")  # columns whose text breaks over lines
AT_FIRST = 300  # rows of a long table that are shown before they are asked for; the script has the same number


class Section(NamedTuple):
    """A part of a page; without a body it is left out."""

    key: str
    head: str
    body: str


def shell(title: str, lead: str, tiles: str, sections: Sequence[Section], foot: str, data: str = "", up: str = "") -> str:
    """A whole page that fetches nothing.

    Args:
      title: plain text, as is ``lead``.
      lead: what the page is about.
      tiles: HTML.
      sections: in their order.
      foot: HTML.
      data: script elements with what the script reads.
      up: what identifies the records, of a page of a scenario.
    """
    shown = [section for section in sections if section.body]
    source = files("bdjax.report")
    return Template(source.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        version=escape(__version__),
        up=escape(up, quote=True),
        title=escape(title),
        lead=escape(lead),
        tiles=tiles,
        style=source.joinpath("page.css").read_text(encoding="utf-8"),
        script=source.joinpath("page.js").read_text(encoding="utf-8"),
        data=data,
        links="".join(f'<a href="#{key}">{escape(head)}</a>' for key, head, _ in shown),
        sections="\n".join(
            f'<section id="{key}" aria-labelledby="{key}-head"><h2 id="{key}-head">{escape(head)}</h2>{body}</section>'
            for key, head, body in shown
        ),
        foot=foot,
    )


def natural(text: str) -> tuple[bool, float, str]:
    """Numbers by value, then names."""
    number = text.replace(".", "", 1).isdigit()
    return not number, float(text) if number else 0.0, text


def count(things: Sequence[Any], what: str) -> str:
    """A number of things in words."""
    return f"{len(things)} {what}" + ("" if len(things) == 1 else "s")


def tiles(records: "pl.DataFrame") -> str:
    """What became of every run, in numbers."""
    trained = records.filter(records["defense"] == "none")
    told = [("trained members", trained.height, ""), ("repairs", records.height - trained.height, "")]
    for status in STATUSES:
        runs = int((records["status"] == status).sum())
        text = {"ok": "measured", "non_finite": "non-finite"}.get(status, status)
        told.append((text, runs, "lost" if runs and status != "ok" else ""))
    items = "".join(f'<li class="{kind}"><b>{runs:,}</b>{text}</li>' for text, runs, kind in told)
    return f'<ul class="tiles">{items}</ul>'


def table(
    told: Printed,
    caption: str,
    name: str,
    *,
    facets: Sequence[Facet] = (),
    link: Callable[[dict[str, Any]], str | None] = lambda about: None,
) -> str:
    """A sortable table.

    Args:
      told: the table.
      caption: for those who do not see it.
      name: the table's id; one that is long scrolls in itself, and shows its first rows only until more are asked for.
      facets: by which its rows can be chosen.
      link: where the first cell of a row leads, from what the row is about.
    """

    def cell(i: int, text: str, order: object, href: str | None) -> str:
        value, low, rest = text.partition(" [")
        shown = escape(value) + (f" <small>{escape(low + rest).strip()}</small>" if low else "")
        if href and i == 0:
            shown = f'<a href="{escape(href, quote=True)}">{shown}</a>'
        known = "" if order is None else f' data-v="{escape(str(order), quote=True)}"'
        kind = " class=n" if told.numeric[i] else " class=w" if told.columns[i] in WORDS else ""
        return f"<td{kind}{known}>{shown}</td>"

    heads = "".join(
        f'<th scope="col" data-c="{escape(column, quote=True)}"{" class=n" if numeric else ""}>'
        f'<button type="button">{escape(head)}</button></th>'
        for head, numeric, column in zip(told.heads, told.numeric, told.columns, strict=True)
    )
    lines = []
    for i, (row, about) in enumerate(zip(told.rows, told.about, strict=True)):
        places = " ".join(str(facet.place(about)) for facet in facets)
        kind = f' data-f="{places}"' * bool(places) + " hidden" * (i >= AT_FIRST)
        lines.append(f"<tr{kind}>" + "".join(cell(j, *c, link(about)) for j, c in enumerate(row)) + "</tr>")
    constants = ", ".join(f"{key} {value}" for key, value in told.constants.items())
    notes = "".join(f"<li>{escape(note)}</li>" for note in told.notes)
    body = "\n".join(lines)
    return (
        (f'<p class="soft">All rows: {escape(constants)}.</p>' if constants else "")
        + f'<div class="scroll{" tall" * (len(lines) > 24)}" tabindex="0" role="region" aria-label="{escape(caption)}">'
        + f'<table class="sortable" id="{name}"><thead><tr>{heads}</tr></thead><tbody>\n{body}\n</tbody></table></div>'
        + f'<ul class="notes">{notes}</ul>'
    )


def detailed(drawn: Details) -> list[Section]:
    """The sections of single scenarios."""
    return [
        Section("effect", "Before and after", _effects(drawn.effects)),
        Section("triggers", "What the triggers look like", pictures(drawn.triggers)),
        Section("pruning", "What pruning does", pictures(drawn.pruning)),
        Section("recovered", "The triggers that were recovered", pictures(drawn.recovered)),
        Section("course", "What happened on the way", pictures(drawn.courses)),
    ]


def _effects(drawings: list[Drawing]) -> str:
    text = (
        "Hollow: the backdoored model; filled: after the defense, with its 95 % interval. A defense without a result shows what "
        "became of its runs."
    )
    return f'<p class="soft">{text}</p>{pictures(drawings)}' if drawings else ""


def pictures(drawings: Sequence[Drawing]) -> str:
    """Figures as inline SVG, and the reasons of those that are missing."""
    parts = []
    for drawing in drawings:
        caption = escape(drawing.caption, quote=True)
        if drawing.figure is None:
            parts.append(f'<p class="missing">No pictures of {caption}: {escape(drawing.missing)}</p>')
        else:
            picture = _svg(drawing.figure, drawing.slug).replace("<svg ", f'<svg role="img" aria-label="{caption}" ', 1)
            parts.append(f"<figure><figcaption>{caption}</figcaption>{picture}</figure>")
    return f'<div class="figures">{"".join(parts)}</div>' if parts else ""


def _svg(figure: "Figure", salt: str) -> str:
    """A figure as an <svg> element in the colours of the page's theme, its text as text."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"font-family: [^;\"]*", f"font-family: {FONTS}", text)
    used = set(re.findall(r"#([\w-]+)[)\"]", text))  # the other ids repeat from figure to figure
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    for color, name in ((INK, "currentColor"), (PAPER, "var(--card)"), (COLORS[0], "var(--blue)")):
        text = text.replace(color, name)
    return text


def provenance(records: "pl.DataFrame", configured: bool) -> str:
    """Where numbers come from; ``configured``: with the full configuration of every cell."""
    import polars as pl

    def each(key: str) -> str:
        return "<br>".join(escape(str(value)) for value in records[key].drop_nulls().unique(maintain_order=True)) or "unknown"

    calls = records.select("cell", "created", "seconds", "compile_seconds").unique()
    installed = [json.loads(text) for text in records["versions"].drop_nulls().unique(maintain_order=True)]
    versions = [", ".join(f"{package} {version}" for package, version in packages.items()) for packages in installed]
    digests = records.select("dataset", "data_digest").unique(maintain_order=True).rows()
    told = [
        ("Versions", "<br>".join(map(escape, versions)) or "unknown"),
        ("Commit", each("git_commit")),
        ("Device", each("device")),
        ("Execution", each("execution")),
        ("Data", "<br>".join(f"{escape(name)} <code>{escape(str(digest))}</code>" for name, digest in digests)),
        ("Seeds", escape(", ".join(str(seed) for seed in sorted(set(records["seed"]))))),
        ("Computed", f"{escape(str(records['created'].min()))} to {escape(str(records['created'].max()))}"),
        ("Time", f"{calls['seconds'].sum():,.0f} s of computing, {calls['compile_seconds'].sum():,.0f} s of compiling"),
        ("Made again by", "<code>bdjax report</code> with this folder"),
    ]
    parts = "<dl>" + "".join(f"<dt>{key}</dt><dd>{value}</dd>" for key, value in told) + "</dl>"
    if not configured:
        return (
            parts + '<p class="soft">The full configuration of every cell stands on the page of its training configuration.</p>'
        )
    configs = records.filter(pl.col("config").is_not_null()).unique("cell", maintain_order=True).sort("attack", "defense")
    listed = "".join(
        f"<h3>{escape(row['attack'])} · {escape(row['defense'])} <small class=soft>cell {escape(row['cell'])}</small></h3>"
        f"<p><code>{escape(row['config'])}</code></p>"
        for row in configs.select("attack", "defense", "cell", "config").to_dicts()
    )
    return parts + f"<details><summary>Full configuration of every cell ({configs.height})</summary>{listed}</details>"
